//! Deaths and hangs: reported once, by whoever is left, with exact counts.

mod family;

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use headcount::{Cause, ErrorKind, Generation, Join, Kind, Liveness, Role, State};
use nix::fcntl::posix_fallocate;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::Signal;

use family::callbacks::Act;
use family::home::{Home, leave_all, moment, triple};
use family::worker::{Habit, start, worker};
use family::{Child, alone, fork, is_root, skip, wait_for};

#[test]
fn a_death_is_reported_by_a_survivor_with_its_cause() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(3);
    let mut workers: Vec<Child> = (0..3).map(|n| home.serving(&generation, n)).collect();
    let mut dead = workers.remove(1);
    home.kill(&mut dead);
    home.wait_for_callback(Kind::WorkerDied, dead.pid());
    let died = home.wait_for(Kind::WorkerDied, dead.pid());
    assert_eq!((died.cause, died.signal, died.exit_code), (Cause::Signal, Some(9), None));
    assert_eq!((triple(&died), died.worker_id), ((None, 2, None), Some(1)));
    assert!(workers.iter().any(|w| w.pid() == died.reporter_pid));

    let mut again = home.respawned(&generation, 1, Habit::Serving);
    let started = home.wait_for(Kind::WorkerStarted, again.pid());
    assert_eq!((started.cause, triple(&started)), (Cause::Respawn, (None, 3, None)));
    // A worker that just ends has died, too.
    again.tell("exit 3");
    let status = again.wait();
    home.truth.dead.push((again.pid(), home.head()));
    home.node.child_exited(again.pid(), ExitStatus::from_raw(status));
    let died = home.wait_for(Kind::WorkerDied, again.pid());
    assert_eq!((died.cause, died.signal, died.exit_code), (Cause::Exit, None, Some(3)));
    home.wait_for_callback(Kind::WorkerDied, again.pid());
    leave_all(&mut workers);
    home.check();
}

#[test]
fn the_kernel_tells_the_cause_where_the_parent_does_not() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(2);
    let mut sibling = home.serving(&generation, 0);
    let mut dead = home.quiet(&generation, 1);
    wait_for("a sentinel", || home.node.snapshot().sentinel);
    moment();
    home.truth.dead.push((dead.pid(), home.head()));
    // Its parent asks the kernel, and does not tell the node.
    dead.kill();
    let died = home.wait_for(Kind::WorkerDied, dead.pid());
    // Before Linux 6.15 nobody knows, and that is what it says.
    let known = matches!((died.cause, died.signal), (Cause::Signal, Some(9)));
    assert!(known || (died.cause, died.signal) == (Cause::Unknown, None), "{died:?}");
    leave_all([&mut sibling]);
}

#[test]
fn workers_that_die_all_at_once_are_reported_by_the_next_one() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(4);
    let mut workers: Vec<Child> = (0..4).map(|n| home.serving(&generation, n)).collect();
    let head = home.head();
    // Stopped first, so that none of them sees another die.
    workers.iter().for_each(|w| w.signal(Signal::SIGSTOP));
    workers.iter().for_each(|w| w.signal(Signal::SIGKILL));
    for child in &mut workers {
        home.truth.dead.push((child.pid(), head));
        let status = child.wait();
        home.node.child_exited(child.pid(), ExitStatus::from_raw(status));
    }
    assert_eq!(home.head(), head, "nobody is left to report anything");
    assert_eq!(home.node.snapshot().total, 0, "but they are not counted");
    let mut next = home.respawned(&generation, 0, Habit::Serving);
    let started = home.wait_for(Kind::WorkerStarted, next.pid());
    assert_eq!(triple(&started), (None, 1, None));
    for child in &workers {
        home.wait_for_callback(Kind::WorkerDied, child.pid());
        let died = home.wait_for(Kind::WorkerDied, child.pid());
        assert_eq!((died.signal, died.reporter_pid), (Some(9), next.pid()));
        assert_eq!(
            triple(&died),
            (None, 0, None),
            "the dead are not counted, also those that are not reported yet"
        );
        assert!(died.seq < started.seq, "who finds nobody at work reports the dead before its own start");
    }
    let runs = home.callbacks.all();
    let at = |kind, pid| runs.iter().position(|r| (r.kind, r.subject) == (kind, pid)).expect("a callback");
    let last = workers.iter().map(|w| at(Kind::WorkerDied, w.pid())).max();
    assert!(last < Some(at(Kind::WorkerStarted, next.pid())), "and so are their callbacks: {runs:?}");
    leave_all([&mut next]);
    home.check();
}

#[test]
fn the_last_worker_of_an_old_generation_dies_and_so_the_generation_ends() {
    let _alone = alone();
    let mut home = Home::new();
    let old = home.begin(1);
    let mut last = home.serving(&old, 0);
    let new = home.begin(1);
    let mut survivor = home.serving(&new, 0);
    last.tell("drain");
    home.kill(&mut last);
    home.wait_for_callback(Kind::GenerationEnded, std::process::id());
    let events = home.events();
    let ended: Vec<_> = events.iter().filter(|e| e.kind == Kind::GenerationEnded).collect();
    assert_eq!((ended.len(), ended[0].generation, triple(ended[0])), (1, old.id(), (None, 0, Some(1))));
    assert_eq!(ended[0].reporter_pid, survivor.pid());
    leave_all([&mut survivor]);
    home.check();
}

#[test]
fn an_old_generation_waits_for_the_replacement_of_one_that_died_at_work() {
    let _alone = alone();
    let mut home = Home::new();
    let old = home.begin(1);
    let mut last = home.serving(&old, 0);
    let new = home.begin(1);
    let mut survivor = home.serving(&new, 0);
    // Its master has not told it to go yet, and respawns it.
    home.kill(&mut last);
    home.wait_for_callback(Kind::WorkerDied, last.pid());
    let mut again = home.respawned(&old, 0, Habit::Serving);
    assert!(home.about(Kind::GenerationEnded).is_empty());
    // This one comes back no more, and after a while that is certain.
    home.kill(&mut again);
    home.wait_for_callback(Kind::GenerationEnded, std::process::id());
    let ended = home.about(Kind::GenerationEnded);
    assert_eq!((ended.len(), ended[0].generation), (1, old.id()));
    leave_all([&mut survivor]);
    home.check();
}

/// A node that takes a worker for stalled after 300 ms.
fn impatient() -> Home {
    Home::with(|options| options.stall_after(Duration::from_millis(300)))
}

fn stalls(home: &Home, generation: &Generation, victim: usize, workers: &mut [Child]) {
    let pid = workers[victim].pid();
    workers[victim].signal(Signal::SIGSTOP);
    home.wait_for_callback(Kind::WorkerStalled, pid);
    let stalled = home.wait_for(Kind::WorkerStalled, pid);
    let others = workers.len() as u32 - 1;
    assert_eq!(
        (stalled.cause, triple(&stalled), stalled.generation),
        (Cause::Overdue, (None, others, None), generation.id())
    );
    assert_eq!((home.state(pid), home.process(pid).liveness), (State::Stalled, Liveness::Alive));
    assert_eq!(home.node.snapshot().total, others);
}

#[test]
fn a_worker_stalls_and_recovers() {
    let _alone = alone();
    let mut home = impatient();
    let generation = home.begin(3);
    let mut workers: Vec<Child> = (0..3).map(|n| home.serving(&generation, n)).collect();
    for victim in 0..3 {
        // One of the three is the sentinel.
        stalls(&home, &generation, victim, &mut workers);
        workers[victim].signal(Signal::SIGCONT);
        home.wait_for_callback(Kind::WorkerRecovered, workers[victim].pid());
        let recovered = home.wait_for(Kind::WorkerRecovered, workers[victim].pid());
        assert_eq!(triple(&recovered), (None, 3, None));
        assert_eq!(home.state(workers[victim].pid()), State::Serving);
    }
    leave_all(&mut workers);
    assert_eq!(home.about(Kind::WorkerStalled).len(), 3);
    assert_eq!(home.about(Kind::WorkerRecovered).len(), 3);
}

#[test]
fn a_stalled_worker_dies_once() {
    let _alone = alone();
    let mut home = impatient();
    let generation = home.begin(3);
    let mut workers: Vec<Child> = (0..3).map(|n| home.serving(&generation, n)).collect();
    stalls(&home, &generation, 1, &mut workers);
    let mut dead = workers.remove(1);
    home.kill(&mut dead);
    home.wait_for_callback(Kind::WorkerDied, dead.pid());
    assert_eq!(triple(&home.wait_for(Kind::WorkerDied, dead.pid())), (None, 2, None), "not taken off twice");
    leave_all(&mut workers);
    assert_eq!(home.about(Kind::WorkerDied).len(), 1);
    assert!(home.about(Kind::WorkerRecovered).is_empty());
}

#[test]
fn a_long_callback_is_no_stall() {
    let _alone = alone();
    let mut home = impatient();
    let generation = home.begin(2);
    let mut sibling = home.serving(&generation, 0);
    home.callbacks.plan(Kind::WorkerStarted, Act::Sleep, 1, Duration::from_millis(700));
    // It has never beaten when its callback ends: its time begins then.
    let mut slow = start(&generation, home.callbacks, Habit::Quiet, Join::worker(Some(1)));
    slow.expect("joined");
    let begun = Instant::now();
    home.wait_for_callback(Kind::WorkerStalled, slow.pid());
    let took = begun.elapsed();
    assert!(took > Duration::from_millis(250), "stalled after {took:?}");
    leave_all([&mut slow, &mut sibling]);
}

/// A machine that was suspended, or a container that was frozen.
#[test]
fn nobody_has_stalled_when_all_of_them_have_slept() {
    let _alone = alone();
    let mut home = impatient();
    let generation = home.begin(3);
    let mut workers: Vec<Child> = (0..3).map(|n| home.serving(&generation, n)).collect();
    wait_for("a sentinel", || home.node.snapshot().sentinel);
    for _ in 0..3 {
        workers.iter().for_each(|w| w.signal(Signal::SIGSTOP));
        std::thread::sleep(Duration::from_millis(700));
        // The sentinel first, who sees the others' old heartbeats.
        let sentinel = home.node.snapshot().sentinel;
        workers.sort_by_key(|w| Some(w.pid()) != sentinel);
        for child in &workers {
            child.signal(Signal::SIGCONT);
            std::thread::sleep(Duration::from_millis(15));
        }
        moment();
    }
    assert!(home.about(Kind::WorkerStalled).is_empty(), "{:?}", home.about(Kind::WorkerStalled));
    leave_all(&mut workers);
}

/// Forks until the kernel gives out this process id.
fn fork_as(pid: u32, mut child: impl FnMut() -> Child) -> Option<Child> {
    for _ in 0..50 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let mut found = child();
        if found.pid() == pid {
            return Some(found);
        }
        // Somebody else on this machine was quicker.
        found.kill();
    }
    None
}

#[test]
fn a_process_id_that_is_used_again_brings_nobody_back() {
    let _alone = alone();
    if !is_root() {
        return skip(
            "only root can have the kernel give out a certain process id (/proc/sys/kernel/ns_last_pid)",
        );
    }
    let mut home = Home::new();
    let generation = home.begin(2);
    let mut dead = home.quiet(&generation, 0);
    home.truth.dead.push((dead.pid(), home.head()));
    dead.kill();

    // A stranger gets the number. Nobody has reported the death yet.
    let stranger = fork_as(dead.pid(), || {
        fork(|line| {
            line.hear();
            0
        })
    });
    let Some(mut stranger) = stranger else {
        return skip("the kernel did not give out the wanted process id");
    };
    assert_eq!(home.process(dead.pid()).liveness, Liveness::Gone, "the stranger is not counted");
    assert_eq!(home.node.snapshot().total, 0);
    stranger.kill();

    // A worker of the same node gets it, in another slot.
    let mut namesake =
        fork_as(dead.pid(), || start(&generation, home.callbacks, Habit::Quiet, Join::worker(Some(1))))
            .expect("the same process id");
    namesake.expect("joined");
    assert_eq!(home.node.snapshot().total, 1, "the two are not taken for one");
    let mut sentinel = home.respawned(&generation, 0, Habit::Serving);
    home.wait_for_callback(Kind::WorkerDied, dead.pid());
    let died = home.about(Kind::WorkerDied);
    assert_eq!((died.len(), died[0].worker_id), (1, Some(0)));
    wait_for("the dead one's slot to be free", || (home.workers().len() == 2).then_some(()));
    leave_all([&mut namesake, &mut sentinel]);
    assert_eq!(home.about(Kind::WorkerExited).len(), 2);
}

#[test]
fn a_helper_is_shown_and_not_counted() {
    let _alone = alone();
    let mut home = Home::new();
    let generation = home.begin(1);
    let mut helper = worker(&generation, home.callbacks, Habit::Quiet, Join::helper());
    assert_eq!(home.node.snapshot().total, 0);
    assert_eq!((home.process(helper.pid()).role, home.state(helper.pid())), (Role::Helper, State::Serving));
    let mut child = home.serving(&generation, 0);
    assert_eq!(triple(&home.wait_for(Kind::WorkerStarted, child.pid())), (None, 1, None));
    // It dies, and that is no worker's death.
    home.kill(&mut helper);
    home.wait_for(Kind::HelperExited, helper.pid());
    let mut second = worker(&generation, home.callbacks, Habit::Quiet, Join::helper());
    leave_all([&mut second]);
    leave_all([&mut child]);
    assert!(home.about(Kind::WorkerDied).is_empty());
    let helpers =
        home.callbacks.all().iter().any(|r| matches!(r.kind, Kind::HelperStarted | Kind::HelperExited));
    assert!(!helpers, "helpers have no callbacks");
    home.check();
}

#[test]
fn a_full_registry_says_so_and_takes_the_next_when_there_is_room() {
    let _alone = alone();
    let mut home = Home::with(|options| options.slots(4));
    let generation = home.begin(4);
    let mut workers: Vec<Child> = (0..3).map(|n| home.quiet(&generation, n)).collect();
    let head = home.head();
    let error = generation.join(Join::worker(Some(3))).err().expect("it is full");
    assert_eq!(error.kind(), ErrorKind::Full);
    assert!(
        error.to_string().contains("all 4 slots") && error.to_string().contains("option `slots`"),
        "{error}"
    );
    assert_eq!((home.head(), home.node.snapshot().total), (head, 3), "it has left no trace");
    assert!(home.node.snapshot().holder.is_none(), "and not the lock either");
    // One leaves, another dies without that having been reported: there is room for two.
    leave_all([&mut workers[0]]);
    home.kill(&mut workers[1]);
    let mut two = [home.quiet(&generation, 0), home.quiet(&generation, 1)];
    leave_all(&mut two);
    leave_all([&mut workers[2]]);
}

#[test]
fn sixty_four_workers_start_die_and_leave() {
    let _alone = alone();
    let mut home = Home::with(|options| options.slots(128).journal_records(1024));
    let generation = home.begin(64);
    let begun = Instant::now();
    let join = |n| start(&generation, home.callbacks, Habit::Serving, Join::worker(Some(n)));
    let mut workers: Vec<Child> = (0..64).map(join).collect();
    workers.iter_mut().for_each(|w| w.expect("joined"));
    eprintln!("64 workers joined after {:.1?}", begun.elapsed());
    let mine: Vec<_> = home.about(Kind::WorkerStarted).iter().map(|e| e.counts.mine).collect();
    assert_eq!(mine, (1..=64).collect::<Vec<_>>());

    // Half of them at once, the sentinel among them.
    let sentinel = wait_for("a sentinel", || home.node.snapshot().sentinel);
    let at = workers.iter().position(|w| w.pid() == sentinel).expect("one of them");
    workers.swap(0, at);
    let mut dead: Vec<Child> = workers.drain(..32).collect();
    dead.iter().for_each(|w| w.signal(Signal::SIGKILL));
    for child in &mut dead {
        let status = child.wait();
        home.node.child_exited(child.pid(), ExitStatus::from_raw(status));
    }
    dead.iter().for_each(|w| home.wait_for_callback(Kind::WorkerDied, w.pid()));
    assert_eq!(home.node.snapshot().total, 32);
    home.truth.racing = true;
    home.truth.dead.extend(dead.iter().map(|w| (w.pid(), 0)));
    leave_all(&mut workers);
    let mine: Vec<_> = home.about(Kind::WorkerExited).iter().map(|e| e.counts.mine).collect();
    assert_eq!(mine, (1..=32).rev().collect::<Vec<_>>());
    home.check();
}

/// One that drains may have no loop any more that looks after the others; and the one that takes over may be the
/// next to die, before the others have looked who it is.
#[test]
fn a_death_is_seen_at_once_also_while_the_sentinel_drains() {
    let _alone = alone();
    for (looks_away, kills_the_new_one) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut home = Home::new();
        let generation = home.begin(4);
        let mut workers: Vec<Child> = (0..4).map(|n| home.serving(&generation, n)).collect();
        let first = wait_for("a sentinel", || home.node.snapshot().sentinel);
        let at = workers.iter().position(|w| w.pid() == first).expect("one of them");
        workers[at].tell("drain");
        if looks_away {
            workers[at].tell("look away");
        }
        let begun = Instant::now();
        let second =
            wait_for("another sentinel", || home.node.snapshot().sentinel.filter(|&pid| pid != first));
        let empty = begun.elapsed();
        let victim =
            workers.iter().position(|w| w.pid() != first && (w.pid() == second) == kills_the_new_one);
        let mut victim = workers.remove(victim.expect("another one"));
        let begun = Instant::now();
        home.kill(&mut victim);
        home.wait_for_callback(Kind::WorkerDied, victim.pid());
        let took = begun.elapsed();
        let limit = Duration::from_millis(250);
        assert!(empty < limit && took < limit, "{looks_away}, {kills_the_new_one}: {empty:?}, {took:?}");
        leave_all(&mut workers);
    }
}

#[test]
fn a_worker_that_has_left_beats_for_nobody_else() {
    let _alone = alone();
    // Room for one more: who leaves makes room at once, although its process goes on.
    let mut home = Home::with(|options| options.stall_after(Duration::from_millis(300)).slots(3));
    let generation = home.begin(2);
    let mut sibling = home.serving(&generation, 0);
    let callbacks = home.callbacks;
    let mut gone = fork(|line| {
        let (worker, transitions) = generation.join(Join::worker(Some(1))).expect("join");
        callbacks.run(transitions);
        callbacks.run(worker.leave(headcount::Wait::Timeout).expect("leave"));
        line.say("left");
        // On and on, as a timer that nobody has stopped.
        wait_for("the end", || {
            worker.beat();
            (callbacks.word(0).load(std::sync::atomic::Ordering::SeqCst) != 0).then_some(())
        });
        0
    });
    gone.expect("left");
    // The next one gets its slot, and hangs.
    let mut next = home.serving(&generation, 1);
    next.signal(Signal::SIGSTOP);
    home.wait_for_callback(Kind::WorkerStalled, next.pid());
    callbacks.word(0).store(1, std::sync::atomic::Ordering::SeqCst);
    gone.ended_well();
    home.kill(&mut next);
    home.wait_for_callback(Kind::WorkerDied, next.pid());
    leave_all([&mut sibling]);
}

/// A process that ends drops its proof of membership and its memory some time before the kernel calls it dead. A master that
/// begins a generation in this moment must not take it for a stranger that somebody has written into the table: its death
/// would never be told.
#[test]
fn a_worker_that_is_ending_while_a_generation_begins_is_reported() {
    let _alone = alone();
    let mut home = Home::new();
    let first = home.begin(1);
    // What it has open is given back after its locks, and takes long if it is large.
    let hoard = memfd_create(c"hoard", MFdFlags::empty()).expect("a file in memory");
    posix_fallocate(&hoard, 0, 256 << 20).expect("memory");
    let mut dying = home.quiet(&first, 0);
    drop(hoard);
    home.truth.dead.push((dying.pid(), home.head()));
    dying.signal(Signal::SIGKILL);
    let maps = format!("/proc/{}/maps", dying.pid());
    wait_for("it to give up its memory", || std::fs::read_to_string(&maps).ok().filter(String::is_empty));
    let was_ending = home.process(dying.pid()).liveness == Liveness::Alive;
    let second = home.begin(1);
    dying.wait();
    let mut other = home.serving(&second, 0);
    home.wait_for(Kind::WorkerDied, dying.pid());
    leave_all([&mut other]);
    if !was_ending {
        skip("the worker ended too quickly to be met on its way out");
    }
}
