//! `headcount_status`: what it answers to whom, judged by those who ask: a JSON parser, promtool, a browser.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;
use testkit::{Integration, Nginx, Setup, permit, process, promtool};

const LOCATIONS: &str = "
    location = /any { headcount_status; }
    location = /json { headcount_status json; }
    location = /metrics { headcount_status prometheus; }
    location = /page { headcount_status html; }";

/// One that nobody had a moment ago.
fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind(("127.0.0.1", 0)).expect("a socket");
    listener.local_addr().expect("its address").port()
}

struct Server {
    nginx: Nginx,
    port: u16,
}

struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Server {
    fn start() -> Server {
        let port = free_port();
        let conf =
            format!("server {{ listen 127.0.0.1:{port}; access_log @FOLDER@/access.log; {LOCATIONS} }}");
        let setup = Setup::new(Integration::Native).option("node", "\"edge\"").http(&conf).allow_kills();
        Server { nginx: Nginx::start_ready(setup), port }
    }

    fn ask(&self, method: &str, address: &str, accept: &str) -> Answer {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).expect("a connection");
        let accept = if accept.is_empty() { String::new() } else { format!("Accept: {accept}\r\n") };
        write!(stream, "{method} {address} HTTP/1.1\r\nHost: test\r\n{accept}Connection: close\r\n\r\n")
            .expect("asked");
        let mut text = String::new();
        stream.read_to_string(&mut text).expect("an answer");
        let (head, body) =
            text.split_once("\r\n\r\n").unwrap_or_else(|| self.nginx.fail(&format!("{address}: {text:?}")));
        let status = head.split(' ').nth(1).and_then(|code| code.parse().ok()).expect("a status");
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }

    fn json(&self, address: &str) -> Value {
        serde_json::from_str(&self.ask("GET", address, "").body).expect("JSON")
    }
}

#[test]
fn each_wish_has_its_form() {
    let _permit = permit();
    let server = Server::start();
    let (json, metrics, html) =
        ("application/json", "text/plain; version=0.0.4; charset=utf-8", "text/html; charset=utf-8");
    let browser = "text/html,application/xhtml+xml,*/*;q=0.8";
    for (address, accept, content_type) in [
        ("/any", "", json),
        ("/any", "*/*", json),
        ("/any", browser, html),
        ("/any", "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.3", metrics),
        ("/json", browser, json),
        ("/metrics", browser, metrics),
        ("/page", "", html),
        ("/page?events=3", "application/json", json),
    ] {
        let got = server.ask("GET", address, accept);
        assert_eq!(got.status, 200, "{address} {accept}");
        assert!(
            got.head.contains(&format!("content-type: {content_type}\r\n")),
            "{address} {accept}: {}",
            got.head
        );
        let length = format!("content-length: {}", got.body.len());
        assert!(got.head.lines().any(|line| line == length), "{length}: {}", got.head);
        assert!(
            got.head.contains("cache-control: no-store") && got.head.contains("vary: accept"),
            "{}",
            got.head
        );

        let policy = if content_type == html { "script-src 'sha256-" } else { "default-src 'none'" };
        for header in
            ["x-content-type-options: nosniff", "x-frame-options: deny", "frame-ancestors 'none'", policy]
        {
            assert!(got.head.contains(header), "{address}: no {header} in {}", got.head);
        }

        let head = server.ask("HEAD", address, accept);
        assert_eq!((head.status, head.body.as_str()), (200, ""), "HEAD {address}");
        assert!(head.head.contains(&format!("content-type: {content_type}\r\n")), "{}", head.head);
    }
    assert_eq!(server.ask("POST", "/any", "").status, 405);
}

#[test]
fn the_document_is_true_at_each_moment() {
    let _permit = permit();
    let server = Server::start();
    let nginx = &server.nginx;
    let node = server.json("/json")["nodes"][0].take();
    assert_eq!((&node["node"], &node["total"]), (&"edge".into(), &4.into()));
    assert_eq!(node.get("events"), None, "only for who asks");
    assert_eq!(node["settings"]["heartbeat_interval"], 1.0);

    let victim = nginx.workers()[1];
    process::send(victim, Signal::KILL);
    let node = nginx.wait_until("the death and the respawn", || {
        let node = server.json("/json?events=4")["nodes"][0].take();
        (node["recent"]["deaths"] == 1 && node["recent"]["respawns"] == 1 && node["total"] == 4)
            .then_some(node)
    });
    let events = node["events"].as_array().expect("events");
    assert!(
        events.len() <= 4 && events.iter().any(|e| e["kind"] == "worker_died" && e["pid"] == victim),
        "{events:?}"
    );

    nginx.reload_and_settle(2);
    nginx.wait_until("the old generation to be gone, and the new one alone", || {
        let node = server.json("/json")["nodes"][0].take();
        let generations = node["generations"].as_array().expect("generations");
        (generations.len() == 1 && generations[0]["id"] == 2).then_some(())
    });
}

#[test]
fn promtool_has_nothing_to_say_about_the_metrics() {
    let _permit = permit();
    let server = Server::start();
    let serving = "headcount_workers{generation=\"current\",node=\"edge\",state=\"serving\"} 4";
    let text = server.nginx.wait_until("4 workers to serve", || {
        Some(server.ask("GET", "/metrics", "").body).filter(|text| text.contains(serving))
    });
    promtool::accepts(&text);
}

fn browse(server: &Server, arguments: &[&str]) -> String {
    ended(open_browser(server, arguments))
}

fn open_browser(server: &Server, arguments: &[&str]) -> Child {
    let folder = server.nginx.at("browser");
    Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .arg(format!("--user-data-dir={}", folder.display()))
        .args(arguments)
        .arg(format!("http://127.0.0.1:{}/page", server.port))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("chromium (scripts/setup test installs it)")
}

fn ended(browser: Child) -> String {
    let out = browser.wait_with_output().expect("it ends");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Width, height, and bytes.
fn size_of_png(file: &Path) -> (u32, u32, u64) {
    let bytes = std::fs::read(file).expect("a screenshot");
    assert_eq!(&bytes[..8], b"\x89PNG\r\n\x1a\n");
    let number = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().expect("four bytes"));
    (number(16), number(20), bytes.len() as u64)
}

#[test]
fn the_page_lives_in_a_browser_also_on_a_phone() {
    let _permit = permit();
    let server = Server::start();
    let victim = server.nginx.workers()[0];
    // The page was loaded before this happens, and shows it: it refreshes itself.
    let browser = open_browser(&server, &["--virtual-time-budget=15000", "--dump-dom"]);
    server.nginx.wait_until("the page's first request", || {
        let log = std::fs::read_to_string(server.nginx.at("access.log")).unwrap_or_default();
        log.contains("/page").then_some(())
    });
    process::send(victim, Signal::KILL);
    let dom = ended(browser);
    for part in
        ["<h1 id=\"name\">edge</h1>", "time line of the workers", "4 workers", ">live<", "died by SIGKILL"]
    {
        assert!(dom.contains(part), "{part} is not in\n{dom}");
    }
    server.nginx.wait_until("the respawn", || {
        (server.json("/json")["nodes"][0]["total"] == 4 && server.nginx.workers().len() == 4).then_some(())
    });
    for (name, width, height) in [("desk", 1100, 900), ("phone", 390, 844)] {
        let file = server.nginx.at(&format!("{name}.png"));
        let window = format!("--window-size={width},{height}");
        let shot = format!("--screenshot={}", file.display());
        browse(&server, &[&window, &shot, "--virtual-time-budget=3000"]);
        let (w, h, bytes) = size_of_png(&file);
        assert_eq!((w, h), (width, height));
        assert!(bytes > 10_000, "{name}: {bytes} bytes are a blank page");
        if let Ok(folder) = std::env::var("HEADCOUNT_PICTURES") {
            std::fs::copy(&file, Path::new(&folder).join(format!("{name}.png"))).expect("a copy");
        }
    }
    let probe = browse(&server, &["--window-size=390,844", "--virtual-time-budget=3000", "--dump-dom"]);
    assert!(probe.contains(&format!("worker 0 (pid {victim}) of generation 1 died by SIGKILL")), "{probe}");
    assert!(probe.contains("✕"), "the death is marked in the time line");
}

/// Makes docs/pictures/page.png anew, from a real run: `cargo test -p testkit --test status -- --ignored the_picture`.
#[test]
#[ignore = "writes into docs/, and takes its time, for the sake of the picture"]
fn the_picture() {
    let _permit = permit();
    let server = Server::start();
    let nginx = &server.nginx;
    let begun = std::time::Instant::now();
    let until = |seconds| {
        std::thread::sleep(std::time::Duration::from_secs(seconds).saturating_sub(begun.elapsed()));
    };
    until(15);
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    until(30);
    process::send(nginx.workers()[1], Signal::KILL);
    until(50);
    let picture = std::path::absolute("../../docs/pictures/page.png").expect("a path");
    let shot = format!("--screenshot={}", picture.display());
    browse(&server, &["--window-size=900,760", &shot, "--virtual-time-budget=3000"]);
    client.finish();
}
