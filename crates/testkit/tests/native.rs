//! The module in servers that have no Lua, and what only it has.

use testkit::{Integration, Kind, Nginx, Server, Setup, Signal, permit, process, wait::PATIENCE};

fn plain(server: Server) -> Setup {
    Setup::new(Integration::Native).server(server).workers(2)
}

fn registries(nginx: &Nginx) -> Vec<String> {
    let files = std::fs::read_dir(nginx.at("run")).expect("our own folder").flatten();
    let mut names: Vec<String> = files.map(|f| f.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Start, death, reload, upgrade, stop.
fn whole_life(server: Server) {
    let nginx = Nginx::start_ready(plain(server).allow_kills());
    nginx.must_serve();
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    nginx.wait_for("the respawned worker", PATIENCE, |all| all.at_least(3, Kind::WorkerStarted, 1));
    nginx.reload_and_settle(2);
    nginx.wait_for("the end of generation 1", PATIENCE, |all| all.at_least(1, Kind::GenerationEnded, 1));
    let (old, new) = nginx.upgrade();
    nginx.wait_for("the new master's workers", PATIENCE, |all| all.at_least(2, Kind::WorkerStarted, 3));
    process::send(old, Signal::QUIT);
    nginx.wait_gone(old);
    nginx.wait_for("the end of generation 2", PATIENCE, |all| all.at_least(1, Kind::GenerationEnded, 2));
    assert_eq!(nginx.master(), new);
    nginx.must_serve();
    let mut ledger = nginx.end(Signal::TERM);
    ledger.one_with(Kind::GenerationStarted, 1, (None, Some(0), None));
    let death = ledger.one_with(Kind::WorkerDied, 1, (None, Some(1), None));
    ledger.same("who died", &death.pid(), &victim);
    let starts = ledger.take(Kind::WorkerStarted, 1);
    ledger.same("cause of the third start", starts[2].cause(), "respawn");
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    let upgrade = ledger.one_with(Kind::GenerationStarted, 3, (Some(2), Some(0), None));
    ledger.same("cause", upgrade.cause(), "upgrade");
    ledger.starts(3, 2, "upgrade");
    ledger.graceful_end(2, 2, true);
    ledger.fast_end(3, 2, false);
    ledger.nothing_else();
}

#[test]
fn a_whole_life_in_debians_nginx() {
    let _permit = permit();
    whole_life(Server::Debian);
}

#[test]
fn a_whole_life_in_a_current_nginx() {
    let _permit = permit();
    whole_life(Server::Vendored);
}

#[test]
fn a_server_without_http_is_tracked() {
    let _permit = permit();
    for server in [Server::Debian, Server::Vendored] {
        let nginx = Nginx::start_ready(plain(server).without_http());
        nginx.reload_and_settle(2);
        nginx.wait_for("the end of generation 1", PATIENCE, |all| all.at_least(1, Kind::GenerationEnded, 1));
        let mut ledger = nginx.end(Signal::QUIT);
        ledger.cold_start(2);
        ledger.reloaded(2, 2, 2);
        ledger.graceful_end(1, 2, true);
        ledger.graceful_end(2, 2, false);
        ledger.nothing_else();
    }
}

#[test]
fn a_server_without_the_directive_is_left_alone() {
    let _permit = permit();
    for directive in ["", "headcount off;", "headcount off path=/nowhere/registry;"] {
        let nginx = Nginx::start(plain(Server::Debian).directive(directive));
        nginx.must_serve();
        nginx.reload();
        nginx.wait_for_log("the old workers' exit", |line| line.contains("exited with code 0"));
        assert_eq!(nginx.get("/status").status, 503);
        assert!(registries(&nginx).is_empty(), "{:?}", registries(&nginx));
        nginx.end(Signal::QUIT).nothing_else();
        assert!(!nginx.log().contains("[headcount]"), "{}", nginx.log());
    }
}

#[test]
fn a_reload_turns_it_on_and_off_and_on() {
    let _permit = permit();
    let on = "headcount on path=@FOLDER@/run/registry;";
    let nginx = Nginx::start(plain(Server::Debian).directive("headcount off;"));
    nginx.reload_with(|setup| setup.directive(on));
    nginx.ready(1);
    nginx.settled();
    nginx.reload_with(|setup| setup.directive("headcount off;"));
    nginx.wait_for("the end of generation 1", PATIENCE, |all| all.at_least(1, Kind::GenerationEnded, 1));
    nginx.must_serve();
    nginx.reload_with(|setup| setup.directive(on));
    nginx.ready(2);
    nginx.settled();
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.starts(1, 2, "start");
    ledger.graceful_end(1, 2, false);
    ledger.take(Kind::GenerationStarted, 1);
    ledger.one(Kind::GenerationStarted, 2);
    ledger.take(Kind::WorkerStarted, 2);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

/// nginx takes the module away with the configuration that loads it; what it has left behind must not need its code.
#[test]
fn a_reload_that_no_longer_loads_the_module_does_no_harm() {
    let _permit = permit();
    let nginx = Nginx::start_ready(plain(Server::Debian).allow_kills());
    nginx.reload_with(|setup| setup.by(Integration::Lua));
    nginx.wait_until("the old workers to be gone", || {
        nginx.log().matches("exited with code 0").nth(1).map(drop)
    });
    let victim = nginx.workers()[0];
    process::send(victim, Signal::KILL);
    nginx.wait_until("a respawned worker", || {
        let now = nginx.workers();
        (now.len() == 2 && !now.contains(&victim)).then_some(())
    });
    nginx.must_serve();
    nginx.end(Signal::QUIT);
}

#[test]
fn both_integrations_give_a_server_the_same_name() {
    let _permit = permit();
    let nginx = Nginx::start_ready(Setup::new(Integration::Lua).workers(1).default_place());
    let by_lua = registries(&nginx);
    nginx.end(Signal::QUIT);
    nginx.forget_reports();
    nginx.change(|setup| setup.by(Integration::Native));
    nginx.run();
    nginx.ready(2);
    assert_eq!(registries(&nginx), by_lua);
    nginx.end(Signal::QUIT);
}

#[test]
fn variables_and_the_status_page_show_what_is() {
    let _permit = permit();
    let page = r#"log_format tracked "$headcount_node"; add_header X-Headcount
        "$headcount_node/$headcount_generation/$headcount_state/$headcount_workers/$headcount_worker" always;"#;
    let nginx = Nginx::start_ready(plain(Server::Debian).option("node", "\"shown\"").http(page));
    let answer = testkit::http::raw(&nginx.socket(), "GET", "/ping").expect("an answer");
    assert!(answer.contains("X-Headcount: shown/1/serving/2/"), "{answer}");
    let answer = testkit::http::raw(&nginx.socket(), "HEAD", "/status").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\n"), "{answer}");
    assert!(answer.contains("Cache-Control: no-store"), "{answer}");
    let answer = testkit::http::raw(&nginx.socket(), "POST", "/status").expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 405"), "{answer}");
    assert_eq!(nginx.json("/status")["nodes"][0]["node"], "shown");
    nginx.end(Signal::QUIT);
}

/// However many processes there are, the watch costs each worker one connection of nginx's, which is no client's.
#[test]
fn the_watch_takes_one_connection() {
    let _permit = permit();
    let setup =
        plain(Server::Debian).workers(16).http("server { listen unix:@FOLDER@/stub.sock; stub_status; }");
    let nginx = Nginx::start_ready(setup);
    let active = || testkit::http::get(&nginx.at("stub.sock"), "/").expect("stub_status").body;
    assert!(active().contains("Active connections: 1 "), "{}", active());
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(16);
    ledger.graceful_end(1, 16, false);
    ledger.nothing_else();
}

/// Lua finds the module: one engine, one place in the registry for each process, one line and one callback for each event.
#[test]
fn with_lua_there_is_one_engine() {
    let _permit = permit();
    let nginx = Nginx::start_ready(Setup::new(Integration::Both).workers(2).allow_kills());
    for pid in nginx.workers() {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).expect("a worker that lives");
        assert!(maps.contains("ngx_headcount_module.so") && !maps.contains("libheadcount.so"), "{maps}");
    }
    let status = nginx.json("/status");
    let processes = testkit::scenarios::identity::processes(&status);
    assert_eq!(processes.len(), 3, "a master and two workers: {status}");
    process::send(nginx.workers()[0], Signal::KILL);
    nginx.wait_for("the respawned worker", PATIENCE, |all| all.at_least(3, Kind::WorkerStarted, 1));
    nginx.reload_and_settle(2);
    nginx.wait_for("the end of generation 1", PATIENCE, |all| all.at_least(1, Kind::GenerationEnded, 1));
    let told = nginx.end(Signal::TERM);
    let seqs = |all: &testkit::Reports| {
        let events = all.0.iter().filter(|r| r.kind().is_some());
        events.filter_map(|r| r.int("seq")).collect::<Vec<_>>()
    };
    let (by_callbacks, by_lines) = (seqs(told.all()), seqs(&nginx.logged_reports()));
    assert_eq!(by_callbacks, by_lines, "each event once, in its order\n{}", nginx.log());
}

/// Lua's init asks when the http block has been read; the directive must have been by then.
#[test]
fn the_directive_stands_before_the_http_block_where_lua_needs_it() {
    let _permit = permit();
    let setup = Setup::new(Integration::Both).workers(2).directive("").allow("must stand before");
    let nginx = Nginx::start_ready(setup);
    let path = nginx.at("nginx.conf");
    let conf = std::fs::read_to_string(&path).expect("our own file");
    std::fs::write(&path, conf + "headcount on;\n").expect("our own file");
    nginx.reload();
    nginx.wait_for_log("nginx's refusal", |line| {
        line.contains("[emerg]") && line.contains("must stand before the http block")
    });
    nginx.must_serve();
    nginx.end(Signal::TERM);
}
