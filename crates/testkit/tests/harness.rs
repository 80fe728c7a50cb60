//! The harness against plain nginx, without the library: what it says about processes must be true
//! before anything that it says about headcount can be.

use testkit::{Integration, Nginx, Setup, Signal, Who, permit, process};

fn plain() -> Setup {
    Setup::new(Integration::Lua).who(Who::Nobody)
}

#[test]
fn starts_serves_and_leaves_nothing() {
    let _permit = permit();
    let nginx = Nginx::start(plain());
    nginx.must_serve();
    assert_eq!(nginx.workers().len(), 4);
    let folder = nginx.folder().to_owned();
    let master = nginx.master();
    drop(nginx);
    assert!(!process::is_alive(master));
    assert!(!folder.exists() || std::env::var_os("HEADCOUNT_TEST_KEEP").is_some());
}

#[test]
fn runs_in_the_foreground_and_as_one_process() {
    let _permit = permit();
    let nginx = Nginx::start(plain().foreground());
    nginx.must_serve();
    nginx.end(Signal::QUIT);
    let nginx = Nginx::start(plain().single_process());
    nginx.must_serve();
    nginx.end(Signal::TERM);
}

#[test]
fn a_slow_client_keeps_a_worker_draining() {
    let _permit = permit();
    let nginx = Nginx::start(plain().workers(2));
    let client = nginx.slow_client();
    assert!(nginx.workers().contains(&client.worker));
    nginx.reload();
    nginx.wait_until("the held worker alone to be left", || {
        let leaving = nginx.titled(nginx.master(), |t| t == "nginx: worker process is shutting down");
        (leaving == [client.worker]).then_some(())
    });
    let worker = client.worker;
    client.finish();
    nginx.wait_gone(worker);
    nginx.end(Signal::QUIT);
}

#[test]
fn an_upgrade_gives_a_second_master() {
    let _permit = permit();
    let nginx = Nginx::start(plain().workers(2));
    let (old, new) = nginx.upgrade();
    nginx.wait_until("workers of the new master", || (nginx.workers_of(new).len() == 2).then_some(()));
    process::send(old, Signal::QUIT);
    nginx.wait_gone(old);
    nginx.must_serve();
    nginx.end(Signal::QUIT);
}

#[test]
#[should_panic(expected = "lines that it must not have")]
fn an_alert_in_the_log_fails_the_test() {
    let _permit = permit();
    let nginx = Nginx::start(plain().workers(1));
    let worker = nginx.workers()[0];
    process::send(worker, Signal::KILL);
    nginx.wait_until("a respawned worker", || {
        let now = nginx.workers();
        (now.len() == 1 && now[0] != worker).then_some(())
    });
    nginx.end(Signal::TERM);
}

#[test]
fn a_killed_master_leaves_no_orphan_behind() {
    let _permit = permit();
    let nginx = Nginx::start(plain());
    let workers = nginx.workers();
    process::send(nginx.master(), Signal::KILL);
    nginx.wait_gone(nginx.master());
    assert!(workers.iter().all(|&pid| process::is_alive(pid)), "workers outlive their master");
    drop(nginx);
    assert!(!workers.iter().any(|&pid| process::is_alive(pid)), "the harness outlives nobody");
}
