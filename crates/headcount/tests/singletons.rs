//! Who leads, what runs once, who holds a lock: on exactly one process, whatever happens to it.

mod family;

use std::time::{Duration, Instant};

use headcount::{Cause, Event, Generation, Kind, SingletonKind, SingletonState, SingletonStatus};
use nix::sys::signal::Signal;

use family::home::Home;
use family::{Child, alone, wait_for};

/// Heartbeats and stalls are short here.
fn home() -> Home {
    Home::with(|o| o.heartbeat_interval(Duration::from_millis(50)).stall_after(Duration::from_millis(400)))
}

fn standing(home: &Home, generation: &Generation, number: u32) -> Child {
    let mut worker = home.serving(generation, number);
    worker.tell("stand cron");
    worker
}

fn named(home: &Home, kind: Kind) -> Vec<Event> {
    home.events().into_iter().filter(|e| e.kind == kind).collect()
}

fn status(home: &Home, kind: SingletonKind, name: &str) -> Option<SingletonStatus> {
    home.node.snapshot().singletons.into_iter().find(|x| x.kind == kind && x.name == name)
}

/// The process that leads, as soon as it knows.
fn leader(home: &Home) -> u32 {
    wait_for("a leader", || {
        let pid = status(home, SingletonKind::Role, "cron")?.holder?;
        let deeds = deeds(home);
        deeds.iter().rev().find(|d| d.what == "elected").filter(|d| d.pid == pid).map(|d| d.pid)
    })
}

struct Deed {
    what: String,
    pid: u32,
    token: u64,
}

fn deeds(home: &Home) -> Vec<Deed> {
    let text = std::fs::read_to_string(home.place.folder().join("deeds")).unwrap_or_default();
    let deed = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [what, _, pid, token] = words[..] else { panic!("{line:?}") };
        Deed { what: what.to_owned(), pid: pid.parse().unwrap(), token: token.parse().unwrap() }
    };
    text.lines().map(deed).collect()
}

/// Nobody has worked as a leader after somebody with a later token has.
#[track_caller]
fn there_was_one_leader_at_a_time(home: &Home) {
    let mut newest = 0;
    for deed in deeds(home).iter().filter(|d| matches!(d.what.as_str(), "elected" | "works" | "gives-up")) {
        assert!(deed.token >= newest, "{} by {} with {} after {newest}", deed.what, deed.pid, deed.token);
        newest = deed.token;
    }
    let tokens: Vec<_> = named(home, Kind::LeaderElected).iter().map(|e| e.token).collect();
    assert!(tokens.is_sorted() && !tokens.is_empty(), "{tokens:?}");
}

#[test]
fn one_of_those_who_stand_leads_and_the_others_do_not() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(3);
    let mut workers: Vec<_> = (0..3).map(|n| standing(&home, &generation, n)).collect();
    let leads = leader(&home);
    for worker in &mut workers {
        worker.say("leads cron");
        worker.expect(&(worker.pid() == leads).to_string());
    }
    let elected = &named(&home, Kind::LeaderElected)[..];
    let [elected] = elected else { panic!("{elected:?}") };
    assert_eq!(
        (elected.pid, elected.name.as_deref(), elected.generation),
        (leads, Some("cron"), generation.id())
    );
    let shown = status(&home, SingletonKind::Role, "cron").unwrap();
    assert_eq!((shown.state, shown.token, shown.holder), (SingletonState::Held, elected.token, Some(leads)));
}

#[test]
fn another_is_elected_when_the_leader_dies_and_tokens_grow() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(3);
    let mut workers: Vec<_> = (0..3).map(|n| standing(&home, &generation, n)).collect();
    for _ in 0..2 {
        let leads = leader(&home);
        let at = workers.iter().position(|w| w.pid() == leads).unwrap();
        let mut dead = workers.remove(at);
        home.kill(&mut dead);
        wait_for("another leader", || (leader(&home) != leads).then_some(()));
        let lost = named(&home, Kind::LeaderLost);
        let lost = lost.last().unwrap();
        assert_eq!((lost.pid, lost.cause, lost.signal), (leads, Cause::Signal, Some(9)));
        // Told in this order: the death, the loss, the election.
        let died = home.wait_for(Kind::WorkerDied, leads);
        let elected = named(&home, Kind::LeaderElected).pop().unwrap();
        assert!(died.seq < lost.seq && lost.seq < elected.seq && lost.token < elected.token);
    }
    there_was_one_leader_at_a_time(&home);
}

#[test]
fn a_leader_that_hangs_loses_it_and_hears_so_when_it_wakes() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(2);
    let workers: Vec<_> = (0..2).map(|n| standing(&home, &generation, n)).collect();
    let first = leader(&home);
    let hung = workers.iter().find(|w| w.pid() == first).unwrap();
    hung.signal(Signal::SIGSTOP);
    let second = wait_for("another leader", || Some(leader(&home)).filter(|&pid| pid != first));
    assert_eq!(named(&home, Kind::LeaderLost)[0].cause, Cause::Overdue);
    hung.signal(Signal::SIGCONT);
    wait_for("the word of its loss", || {
        deeds(&home).iter().any(|d| d.what == "lost" && d.pid == first).then_some(())
    });
    home.wait_for(Kind::WorkerRecovered, first);
    assert_eq!(leader(&home), second, "it does not come back");
    there_was_one_leader_at_a_time(&home);
}

#[test]
fn after_a_reload_the_newest_generation_leads_as_soon_as_the_old_one_has_let_go() {
    let _alone = alone();
    let mut home = home();
    let old_generation = home.begin(2);
    let mut old: Vec<_> = (0..2).map(|n| standing(&home, &old_generation, n)).collect();
    let first = leader(&home);
    let new_generation = home.begin(2);
    let mut new: Vec<_> = (0..2).map(|n| standing(&home, &new_generation, n)).collect();
    let second = wait_for("another leader", || Some(leader(&home)).filter(|&pid| pid != first));
    assert!(new.iter().any(|w| w.pid() == second));
    let lost = named(&home, Kind::LeaderLost).remove(0);
    assert_eq!((lost.pid, lost.cause), (first, Cause::Superseded));
    let order: Vec<_> = deeds(&home)
        .into_iter()
        .filter(|d| d.what == "gives-up" || d.what == "elected")
        .map(|d| (d.what, d.pid))
        .collect();
    let is = |what: &str, pid| (what.to_owned(), pid);
    assert_eq!(order, [is("elected", first), is("gives-up", first), is("elected", second)]);
    old.iter_mut().for_each(|w| w.tell("drain"));
    old.iter_mut().for_each(|w| w.tell("leave"));
    // Rolled back, so to say: the only ones left.
    assert_eq!(leader(&home), second);
    assert_eq!(named(&home, Kind::LeaderElected).len(), 2);
    // One after the other: whoever still serves may lead for a moment.
    new.iter_mut().for_each(|w| w.tell("drain"));
    wait_for("the end of the tenure", || {
        status(&home, SingletonKind::Role, "cron")?.holder.is_none().then_some(())
    });
    new.iter_mut().for_each(|w| w.tell("leave"));
    there_was_one_leader_at_a_time(&home);
}

#[test]
fn who_does_not_give_a_role_up_in_time_loses_it() {
    let _alone = alone();
    let mut home = home();
    let old = home.begin(1);
    let mut stubborn = standing(&home, &old, 0);
    stubborn.tell("stubborn");
    let first = leader(&home);
    let new = home.begin(1);
    let worker = standing(&home, &new, 0);
    wait_for("another leader", || (leader(&home) == worker.pid()).then_some(()));
    stubborn.say("leads cron");
    stubborn.expect("false");
    assert_eq!(named(&home, Kind::LeaderLost)[0].pid, first);
}

#[test]
fn who_resigns_gives_it_up_and_an_abandoned_role_needs_no_record() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(2);
    let mut workers: Vec<_> = (0..2).map(|n| standing(&home, &generation, n)).collect();
    let first = leader(&home);
    let at = workers.iter().position(|w| w.pid() == first).unwrap();
    workers[at].tell("resign cron");
    let second = wait_for("another leader", || Some(leader(&home)).filter(|&pid| pid != first));
    assert_eq!(named(&home, Kind::LeaderLost)[0].cause, Cause::Resigned);
    let at = workers.iter().position(|w| w.pid() == second).unwrap();
    workers[at].tell("resign cron");
    wait_for("nothing left of it", || status(&home, SingletonKind::Role, "cron").is_none().then_some(()));
}

fn wait_for_a_waiter(home: &Home) {
    let begun = Instant::now();
    wait_for("a waiter", || {
        let keys = status(home, SingletonKind::Lock, "keys");
        assert!(
            begun.elapsed() < Duration::from_secs(4),
            "{keys:?} {:?} {:?}",
            home.node.snapshot().processes,
            home.events()
        );
        let keys = keys?;
        (keys.waiters == 1).then_some(())
    });
}

#[test]
fn a_lock_excludes_and_the_one_after_a_dead_holder_is_told() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(3);
    let mut workers: Vec<_> = (0..3).map(|n| home.serving(&generation, n)).collect();
    let answer = |worker: &mut Child, order: &str| {
        worker.say(order);
        worker.hear().unwrap()
    };
    let first = answer(&mut workers[0], "lock keys 0");
    assert!(first.starts_with("locked ") && first.ends_with(" after None"), "{first}");
    let busy = answer(&mut workers[1], "lock keys 0");
    let (pid, holder) = (workers[0].pid(), "worker 0");
    assert!(
        busy.starts_with("error busy: ") && busy.contains(&format!("{holder} (process {pid})")),
        "{busy}"
    );
    let late = answer(&mut workers[1], "lock keys 30");
    assert!(late.starts_with("error lock_timeout: ") && late.contains("waiting for the lock keys"), "{late}");
    let again = answer(&mut workers[0], "lock keys 1000");
    assert!(again.starts_with("error wrong_state: ") && again.contains("already"), "{again}");

    // One waits while it is released, and one while its holder dies.
    workers[1].say("lock keys 5000");
    wait_for_a_waiter(&home);
    workers[0].tell("unlock");
    assert!(workers[1].hear().unwrap().ends_with(" after None"));
    workers[0].say("lock keys 5000");
    wait_for_a_waiter(&home);
    let mut dead = workers.remove(1);
    let begun = Instant::now();
    home.kill(&mut dead);
    let told = workers[0].hear().unwrap();
    assert!(begun.elapsed() < Duration::from_secs(1));
    assert!(told.ends_with(&format!(" after Some({})", dead.pid())), "{told}");
    let abandoned = wait_for("the report", || named(&home, Kind::LockAbandoned).pop());
    assert_eq!(
        (abandoned.name.as_deref(), abandoned.pid, abandoned.worker_id),
        (Some("keys"), dead.pid(), Some(1))
    );
    workers[0].tell("unlock");

    // Nobody waits: the next one is told all the same, and who leaves with a lock leaves it behind.
    assert!(answer(&mut workers[1], "lock keys 0").ends_with(" after None"));
    workers[1].tell("leave");
    let told = answer(&mut workers[0], "lock keys 0");
    assert!(told.ends_with(&format!(" after Some({})", workers[1].pid())), "{told}");
    assert_eq!(named(&home, Kind::LockAbandoned).len(), 2);
}

#[test]
fn what_is_done_once_is_done_once_in_its_scope() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(2);
    let mut workers: Vec<_> = (0..2).map(|n| home.serving(&generation, n)).collect();
    for scope in ["generation", "node"] {
        workers[0].say(&format!("once {scope} warm do"));
        workers[0].expect("run 1 after None None");
        workers[0].expect("did");
        for worker in &mut workers {
            worker.say(&format!("once {scope} warm do"));
            worker.expect("done");
        }
    }
    let next = home.begin(1);
    let mut worker = home.serving(&next, 0);
    worker.say("once node warm do");
    worker.expect("done");
    worker.say("once generation warm do");
    worker.expect("run 1 after None None");
    worker.expect("did");
    assert_eq!(named(&home, Kind::OnceDone).iter().map(|e| e.generation).collect::<Vec<_>>(), [1, 0, 2]);
}

#[test]
fn another_tries_when_one_dies_or_fails_and_three_times_at_most() {
    let _alone = alone();
    let mut home = home();
    let generation = home.begin(4);
    let mut workers: Vec<_> = (0..4).map(|n| home.serving(&generation, n)).collect();
    let mut dead = workers.remove(0);
    dead.say("once node migrate leave");
    dead.expect("run 1 after None None");
    dead.expect("left");
    workers[0].say("once node migrate do");
    workers[0].expect(&format!("running {}", dead.pid()));
    home.kill(&mut dead);
    wait_for("it to be open", || {
        (status(&home, SingletonKind::Once, "migrate")?.state == SingletonState::Open).then_some(())
    });
    workers[0].say("once node migrate fail");
    workers[0].expect("run 2 after Some(Signal) Some(9)");
    workers[0].expect("failed");
    workers[1].say("once node migrate fail");
    workers[1].expect("run 3 after Some(Failed) None");
    workers[1].expect("failed");
    for worker in &mut workers {
        worker.say("once node migrate do");
        worker.expect("failed 3");
    }
    let failed = &named(&home, Kind::OnceFailed)[..];
    let [failed] = failed else { panic!("{failed:?}") };
    assert_eq!((failed.cause, failed.attempts, failed.name.as_deref()), (Cause::Failed, 3, Some("migrate")));
    assert!(named(&home, Kind::OnceDone).is_empty());
}

#[test]
fn wrong_names_and_full_tables_are_errors_that_say_so() {
    let _alone = alone();
    let mut home = Home::with(|o| o.singletons(2));
    let generation = home.begin(1);
    let mut worker = home.serving(&generation, 0);
    let mut answer = |order: &str| {
        worker.say(order);
        worker.hear().unwrap()
    };
    for order in
        ["stand a/b", "stand ,", "lock a/b 0", "once node ä do", &format!("stand {}", "x".repeat(49))]
    {
        let error = answer(order);
        assert!(error.starts_with("error invalid_option: ") && error.contains("1 to 48 letters"), "{error}");
    }
    assert_eq!(answer("stand a"), "done");
    assert_eq!(answer("stand b"), "done");
    let full = answer("lock c 0");
    assert!(full.starts_with("error full: ") && full.contains("`singletons`"), "{full}");
    assert_eq!(answer("resign b"), "done");
    // A lock that nobody holds makes room for the next.
    for name in ["c", "d", "e"] {
        assert!(answer(&format!("lock {name} 0")).starts_with("locked "), "{name}");
        assert_eq!(answer("unlock"), "done");
    }
}
