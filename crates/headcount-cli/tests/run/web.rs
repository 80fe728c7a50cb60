//! Posts, to a server of the test's own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::Value;
use testkit::{Folder, Nginx, permit};

use super::follower::{Follower, PATIENCE, server};

/// A request, as it came.
#[derive(Clone, Debug)]
pub struct Request {
    pub head: String,
    pub body: Value,
}

impl Request {
    fn header(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (own, value) = line.split_once(':')?;
            own.eq_ignore_ascii_case(name).then_some(value.trim())
        })
    }
}

/// Answers with these codes, one after the other, then with 200; 0: with nothing.
pub fn serve(listener: TcpListener, answers: &[u16]) -> Arc<Mutex<Vec<Request>>> {
    let requests = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&requests);
    let mut answers: VecDeque<u16> = answers.iter().copied().collect();
    // Ends with the test's process: it waits for a client that does not come.
    thread::spawn(move || {
        let mut unanswered = Vec::new();
        for stream in listener.incoming() {
            let stream = stream.expect("a client");
            let Some(request) = read(&stream) else { continue };
            seen.lock().expect("no thread has failed").push(request);
            match answers.pop_front().unwrap_or(200) {
                0 => unanswered.push(stream),
                code => answer(stream, code),
            }
        }
    });
    requests
}

fn read(stream: &TcpStream) -> Option<Request> {
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).expect("a line") == 0 {
            return None;
        }
    }
    let request = Request { head, body: Value::Null };
    let length = request.header("content-length").expect("a length").parse().expect("a number");
    let mut body = vec![0; length];
    reader.read_exact(&mut body).expect("a body");
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).expect("JSON") };
    Some(Request { body, ..request })
}

fn answer(mut stream: TcpStream, code: u16) {
    let location = if code == 302 { "Location: http://127.0.0.1:1/\r\n" } else { "" };
    write!(stream, "HTTP/1.1 {code} Whatever\r\n{location}Content-Length: 2\r\nConnection: close\r\n\r\nok")
        .expect("the client reads");
}

/// A port, and a URL that leads to it.
pub fn listener() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/hook?a=b", listener.local_addr().expect("an address"));
    (listener, url)
}

#[test]
fn an_event_is_posted_until_it_is_taken() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let (listener, url) = listener();
    let requests = serve(listener, &[500, 302]);
    let rule = format!("generation_started,worker_started={url}");
    let mut run = Follower::start(&own, &["--on", &rule, "--backoff", "10ms"]);
    run.wait_until("both events", || {
        (requests.lock().expect("no thread has failed").len() == 4).then_some(())
    });
    run.wait_for_log("worker_started at 2 to rule 1: delivered");
    run.end();
    let requests = requests.lock().expect("no thread has failed").clone();
    let posted: Vec<_> = requests
        .iter()
        .map(|r| (r.body["kind"].as_str(), r.body["attempt"].as_u64(), r.body["retry"].as_bool()))
        .collect();
    let start = Some("generation_started");
    let first = |attempt| (start, Some(attempt), Some(false));
    assert_eq!(posted, [first(1), first(2), first(3), (Some("worker_started"), Some(1), Some(false))]);
    for request in &requests {
        assert!(request.head.starts_with("POST /hook?a=b HTTP/1.1\r\n"), "{}", request.head);
        assert_eq!(request.header("content-type"), Some("application/json"));
        assert_eq!(request.header("idempotency-key"), request.body["id"].as_str());
    }
    assert_eq!(requests[0].body["id"], requests[2].body["id"]);
    for said in ["the server answered 500", "the server answered 302"] {
        assert!(run.log().contains(said), "{said}: {}", run.log());
    }
}

#[test]
fn nobody_answers_and_nobody_is_there() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let (listener, url) = listener();
    let address = listener.local_addr().expect("an address");
    drop(listener);
    let rule = format!("worker_started={url}");
    let arguments = ["--on", &rule, "--backoff", "10ms..100ms", "--timeout", "1s", "--retries", "1000"];
    let mut run = Follower::start(&own, &arguments);
    run.wait_for_log("refused");
    let listener = run.wait_until("the port to be free", || TcpListener::bind(address).ok());
    let requests = serve(listener, &[0]);
    run.wait_for_log("timed out after 1.0 s");
    run.wait_for_log("delivered in");
    run.end();
    assert_eq!(requests.lock().expect("no thread has failed").len(), 2);
}

#[test]
fn a_post_whose_end_nobody_saw_is_repeated_as_a_retry() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let (listener, url) = listener();
    let requests = serve(listener, &[0, 0]);
    let count =
        |n| move |all: &Arc<Mutex<Vec<Request>>>| (all.lock().expect("no failure").len() == n).then_some(());
    let rule = format!("worker_started={url}");
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("the post", || count(1)(&requests));
    run.kill();
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("the second post", || count(2)(&requests));
    // Asked twice to end, it does not wait for the answer; and does not know it.
    run.signal(testkit::Signal::TERM);
    run.wait_until("its end", || {
        run.signal(testkit::Signal::TERM);
        run.log().contains("stopped before it was delivered").then_some(())
    });
    assert_eq!(run.ended().code(), Some(0));
    let mut run = Follower::start(&own, &["--on", &rule]);
    run.wait_until("the third post", || count(3)(&requests));
    run.wait_for_log("delivered in");
    run.end();
    let requests = requests.lock().expect("no thread has failed").clone();
    let marks: Vec<_> =
        requests.iter().map(|r| (r.body["attempt"].as_u64(), r.body["retry"].as_bool())).collect();
    assert_eq!(marks, [(Some(1), Some(false)), (Some(2), Some(true)), (Some(3), Some(true))]);
}

#[test]
fn https_is_spoken_and_a_certificate_that_nobody_vouches_for_is_refused() {
    let _permit = permit();
    let own = Folder::new();
    let _nginx = Nginx::start_ready(server(&own).workers(1));
    let (key, certificate) = (own.at("key.pem"), own.at("certificate.pem"));
    let made = std::process::Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:prime256v1",
            "-nodes",
            "-days",
            "2",
        ])
        .args(["-subj", "/CN=headcount-test", "-addext", "subjectAltName=DNS:localhost"])
        .args(["-addext", "basicConstraints=critical,CA:FALSE"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output();
    let Ok(made) = made else {
        eprintln!("skipped: there is no openssl to make a certificate with");
        return;
    };
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let port = {
        let (listener, _) = listener();
        listener.local_addr().expect("an address").port()
    };
    // Another nginx is the server.
    let tls = format!(
        "server {{ listen 127.0.0.1:{port} ssl; ssl_certificate {}; ssl_certificate_key {}; access_log {} posts; \
         location / {{ return 204; }} }}",
        certificate.display(),
        key.display(),
        own.at("posts").display()
    );
    let web = Nginx::start(
        testkit::Setup::new(testkit::Integration::Lua)
            .who(testkit::Who::Nobody)
            .workers(1)
            .http("log_format posts '$request_method $ssl_protocol $http_idempotency_key';")
            .http(&tls),
    );
    let rule = format!("worker_started=https://localhost:{port}/");
    let mut run = Follower::start(&own, &["--on", &rule, "--retries", "0"]);
    run.wait_for_log("failed for good");
    run.end();
    assert!(run.log().to_lowercase().contains("unknownissuer"), "{}", run.log());
    // Vouched for by the system.
    let mut command = super::follower::headcount();
    command
        .arg("--registry")
        .arg(super::follower::registry(&own))
        .arg("--state")
        .arg(own.at("other-state.json"));
    command.args(["--on", &rule, "--retries", "0"]).env("SSL_CERT_FILE", &certificate);
    let mut run = Follower::spawn(&own, command);
    run.wait_for_log("rule 1: ");
    run.end();
    assert!(run.log().contains("delivered in"), "{}", run.log());
    let posts = std::fs::read_to_string(own.at("posts")).expect("the web server's log");
    assert!(posts.starts_with("POST TLSv1."), "{posts}");
    drop(web);
}
