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

const LEADS: &str = r#"map $headcount_leads_cron $cron { 1 here; default elsewhere; }
    add_header X-Leads "$headcount_worker $headcount_leads_cron $headcount_leads_reports $cron" always;"#;

fn roles(nginx: &Nginx) -> Vec<(String, i64, u64)> {
    let status = nginx.json("/status");
    let all = status["nodes"][0]["singletons"].as_array().cloned().unwrap_or_default();
    let role = |x: &serde_json::Value| {
        Some((x["name"].as_str()?.to_owned(), x["holder"].as_i64()?, x["token"].as_u64()?))
    };
    all.iter().filter_map(role).collect()
}

/// Who leads in both roles, once somebody does.
fn leader(nginx: &Nginx) -> i32 {
    nginx.wait_until("a leader of both", || match &roles(nginx)[..] {
        [(_, cron, _), (_, reports, _)] if cron == reports => i32::try_from(*cron).ok(),
        _ => None,
    })
}

/// The worker that answers, and what it says of the roles.
fn says(nginx: &Nginx) -> String {
    let answer = testkit::http::raw(&nginx.socket(), "GET", "/ping").expect("an answer");
    let line = answer.lines().find_map(|line| line.strip_prefix("X-Leads: "));
    line.unwrap_or_else(|| panic!("{answer}")).to_owned()
}

/// nginx without Lua: each worker stands for the roles that the directive names.
#[test]
fn one_worker_leads_in_the_roles_of_the_directive_and_a_variable_says_so() {
    let _permit = permit();
    let directive = "headcount on path=@FOLDER@/run/registry heartbeat=100ms stall=2s roles=cron,reports;";
    let nginx = Nginx::start_ready(plain(Server::Debian).directive(directive).http(LEADS).allow_kills());
    let first = leader(&nginx);
    let other = nginx.workers().into_iter().find(|pid| *pid != first).expect("two workers");
    // Only the leader can answer.
    nginx.freeze(other);
    let leads =
        nginx.wait_until("its answer", || Some(says(&nginx)).filter(|said| said.contains("1 1 here")));
    nginx.thaw(other);
    // Only the other one can; and after `stall` it leads.
    nginx.freeze(first);
    let number = |said: &str| said.split(' ').next().unwrap_or_default().to_owned();
    let does_not = says(&nginx);
    assert_eq!(does_not, format!("{} 0 0 elsewhere", number(&does_not)));
    assert_ne!(number(&does_not), number(&leads));
    let second = nginx.wait_until("another leader", || Some(leader(&nginx)).filter(|pid| *pid != first));
    assert_eq!(second, other);
    nginx.wait_until("its answer", || says(&nginx).contains("1 1 here").then_some(()));
    nginx.thaw(first);
    // A death, and a reload.
    process::send(second, Signal::KILL);
    let third = nginx.wait_until("a third leader", || Some(leader(&nginx)).filter(|pid| *pid != second));
    nginx.reload_and_settle(2);
    let fourth = nginx.wait_until("a leader of generation 2", || {
        Some(leader(&nginx)).filter(|pid| *pid != third && nginx.workers().contains(pid))
    });
    // A reload that takes the roles away, and one that has others.
    nginx.reload_with(|setup| {
        setup.directive(&directive.replace("roles=cron,reports", "roles=cron,reports,more"))
    });
    nginx.wait_until("a leader of generation 3", || {
        let all = roles(&nginx);
        (all.len() == 3 && all.iter().all(|(_, pid, _)| *pid != i64::from(fourth))).then_some(())
    });
    nginx.end(Signal::QUIT);
}

#[test]
fn roles_that_cannot_be_or_are_not_there_are_refused_by_the_test_of_the_configuration() {
    let _permit = permit();
    let on = |more: &str| format!("headcount on path=@FOLDER@/run/registry{more};");
    let nginx = Nginx::prepare(plain(Server::Debian).directive(&on(" roles=cron,reports")).http(LEADS));
    let refused = |directive: String, said: &str| {
        nginx.change(|setup| setup.directive(&directive));
        let output = nginx.ask(&["-t"]);
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && text.contains("[emerg]") && text.contains(said), "{text}");
    };
    refused(on(" roles=cron"), "$headcount_leads_reports: \"roles\" of the directive \"headcount\" has cron");
    refused(on(""), "has no parameter \"roles\"");
    refused(on(" roles=Cron,reports"), "with the role \"Cron\"; allowed are names of 1 to 48 small letters");
    refused(on(" roles=cron,reports,cron"), "names the role \"cron\" twice");
    for fine in [on(" roles=reports,cron"), "headcount off roles=cron;".to_owned()] {
        nginx.change(|setup| setup.directive(&fine));
        let output = nginx.ask(&["-t"]);
        assert!(output.status.success(), "{output:?}");
    }
    // Off: the variables are empty, as all others.
    nginx.run();
    nginx.must_serve();
    assert_eq!(says(&nginx).trim(), "elsewhere");
    nginx.end(Signal::QUIT);
}

/// Where Lua is in charge, it stands for its roles, and the variables tell of them.
#[test]
fn with_lua_the_variables_tell_of_its_roles() {
    let _permit = permit();
    let stands = r#"
        kit.after_join = function()
            require("resty.headcount").leader("cron", { on_elected = function() end, on_lost = function() end })
        end
    "#;
    let nginx = Nginx::start_ready(
        Setup::new(Integration::Both)
            .workers(1)
            .directive("headcount on path=@FOLDER@/run/registry heartbeat=100ms roles=reports;")
            .http(LEADS)
            .after_init(stands)
            .allow("\"roles\" has no effect where Lua is in charge"),
    );
    nginx.wait_until("the leader's answer", || says(&nginx).contains("1 0 here").then_some(()));
    assert!(nginx.log().contains("let it stand for reports by headcount.leader()"), "{}", nginx.log());
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
