//! What a suspended machine and a reboot do to a node: the clocks jump, and nobody has done anything wrong.

mod family;

use std::time::{Duration, SystemTime};

use headcount::{
    Begin, Cause, Cursor, Event, Join, Kind, Liveness, Observer, PreviousRun, Role, State, Wait,
};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use family::home::{Home, leave_all};
use family::kernel::{Later, another_boot, no_mounts};
use family::{Child, Place, alone, fork, is_root, skip, wait_for};

const HOUR: u32 = 3_600;
const MONTH: u32 = 30 * 24 * HOUR;

/// A time that begins an hour later.
fn later() -> Option<Later> {
    let later = is_root().then(|| Later::by(HOUR)).flatten();
    if later.is_none() {
        skip("only root makes another time, where the kernel knows time namespaces");
    }
    later
}

/// Goes on in a process with one thread: only such a one can be moved to another time.
fn in_a_child(body: impl FnOnce()) {
    let mut child = fork(|_| {
        body();
        0
    });
    child.ended_well();
}

fn stalls(home: &Home) -> Vec<Event> {
    home.about(Kind::WorkerStalled)
}

/// After it nobody has beaten yet but who looks: whatever makes somebody look then, nobody is called stalled, and all are
/// counted.
#[test]
fn nobody_is_called_stalled_after_a_suspend() {
    let _alone = alone();
    let Some(later) = later() else { return };
    in_a_child(|| {
        let mut home = Home::with(|options| options.stall_after(Duration::from_secs(4)));
        let generation = home.begin(4);
        let mut sentinel = home.serving(&generation, 0);
        let mut others: Vec<Child> = (1..4).map(|n| home.quiet(&generation, n)).collect();
        others.iter_mut().for_each(|worker| worker.tell("beat"));
        let sleep = format!("sleep {}", later.number());
        others.iter_mut().for_each(|worker| worker.tell(&sleep));
        sentinel.tell(&sleep);
        later.begin();

        // Whoever reads it.
        let snapshot = home.node.snapshot();
        let workers = snapshot.processes.iter().filter(|p| p.role == Role::Worker);
        let states: Vec<_> = workers.clone().map(|p| p.state).collect();
        assert_eq!((snapshot.total, states), (4, vec![State::Serving; 4]), "{snapshot:#?}");
        let ages: Vec<_> = workers.map(|p| p.age.as_secs()).collect();
        assert!(ages.iter().all(|age| (3_600..3_700).contains(age)), "a sleep makes one older: {ages:?}");

        // The sentinel has to report a death.
        let mut victim = others.remove(0);
        home.kill(&mut victim);
        let death = home.wait_for(Kind::WorkerDied, victim.pid());
        assert_eq!(death.counts.mine, 3);
        assert!(death.age().is_some_and(|age| age.as_secs() >= 3_600), "{death:?}");
        // The master begins a generation.
        let second = home.begin(1);
        let new = home.quiet(&second, 0);
        assert_eq!(stalls(&home), [], "{:#?}", home.events());

        // One that really hangs is found, by the time for which the machine was awake.
        others[0].tell("beat");
        let hung = others[1].pid();
        assert_eq!(home.wait_for(Kind::WorkerStalled, hung).pid, hung);
        others[1].tell("beat");
        home.wait_for(Kind::WorkerRecovered, hung);
        let mut all = vec![sentinel, new];
        all.extend(others);
        leave_all(&mut all);
    });
}

/// All processes of a node were stopped, as a container is that is paused; whoever is quicker than the others when they go
/// on does not call them stalled.
#[test]
fn nobody_is_called_stalled_after_a_pause() {
    let _alone = alone();
    const STALL_AFTER: Duration = Duration::from_secs(2);
    let mut node = fork(|line| {
        // All of them are stopped together.
        nix::unistd::setpgid(Pid::from_raw(0), Pid::from_raw(0)).expect("a group of its own");
        let mut home = Home::with(|options| {
            options.stall_after(STALL_AFTER).heartbeat_interval(Duration::from_millis(1_500))
        });
        let generation = home.begin(4);
        let mut all = vec![home.serving(&generation, 0)];
        all.extend((1..4).map(|n| home.quiet(&generation, n)));
        all[1..].iter_mut().for_each(|worker| worker.tell("beat"));
        line.say("stop");
        line.expect("go on");
        let second = home.begin(1);
        let new = home.quiet(&second, 0);
        let mut victim = all.remove(1);
        home.kill(&mut victim);
        let death = home.wait_for(Kind::WorkerDied, victim.pid());
        assert_eq!((death.counts.mine, death.counts.total), (3, 4), "{death:?}");
        all[1..].iter_mut().for_each(|worker| worker.tell("beat"));
        assert_eq!(stalls(&home), [], "{:#?}", home.events());
        all.push(new);
        leave_all(&mut all);
        0
    });
    node.expect("stop");
    let group = Pid::from_raw(-(node.pid() as i32));
    kill(group, Signal::SIGSTOP).expect("stop them");
    std::thread::sleep(STALL_AFTER + Duration::from_millis(500));
    kill(group, Signal::SIGCONT).expect("let them go on");
    node.say("go on");
    node.ended_well();
}

/// A machine that is suspended while somebody waits for the lock keeps its holder from going on, too.
#[test]
fn a_wait_for_the_lock_does_not_count_a_suspend() {
    let _alone = alone();
    let Some(later) = later() else { return };
    static LATER: std::sync::atomic::AtomicI32 = std::sync::atomic::AtomicI32::new(-1);
    extern "C" fn sleep(_: libc::c_int) {
        // SAFETY: a plain system call about this process, which a signal handler may do.
        unsafe { libc::setns(LATER.load(std::sync::atomic::Ordering::SeqCst), libc::CLONE_NEWTIME) };
    }
    LATER.store(later.number(), std::sync::atomic::Ordering::SeqCst);
    in_a_child(|| {
        let mut home = Home::new();
        let generation = home.begin(2);
        let mut holder = fork(|line| {
            let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("join");
            transitions.run(|_| {
                line.say("holds it");
                line.hear();
            });
            line.say("has let go");
            line.hear();
            drop(worker);
            0
        });
        holder.expect("holds it");
        let mut waiter = fork(|line| {
            let handler: extern "C" fn(libc::c_int) = sleep;
            // SAFETY: the handler does nothing but a system call.
            unsafe { libc::signal(libc::SIGUSR1, handler as libc::sighandler_t) };
            line.say("waits");
            match generation.join(Join::worker(Some(1))) {
                Ok((_, transitions)) => transitions.run(|_| ()),
                Err(error) => panic!("{error}"),
            }
            line.say("joined");
            line.hear();
            0
        });
        waiter.expect("waits");
        wait_for("it to sleep in the kernel", || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", waiter.pid())).ok()?;
            stat.contains(") S ").then_some(())
        });
        waiter.signal(Signal::SIGUSR1);
        let time = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/time")).expect("its time");
        wait_for("it to be later for it", || (time(waiter.pid()) != time(holder.pid())).then_some(()));
        // It has looked again by then: it does every 20 ms.
        std::thread::sleep(Duration::from_millis(100));
        holder.say("go on");
        holder.expect("has let go");
        waiter.expect("joined");
    });
}

/// One life of a node, in a boot of its own: two workers, then the machine is switched off. Gives the worker that is still
/// there all the same, to be somebody else with the same id and even the same birth in the next boot.
fn first_life(place: &Place, time: Option<&Later>) -> Stranger {
    let mut server = fork(|line| {
        if let Some(later) = time {
            later.begin();
        }
        let master = place.open();
        let (generation, transitions) = master.begin(Begin::new().workers(2), Wait::Timeout).expect("begin");
        transitions.run(|_| ());
        master.commit(generation.id());
        let mut pids = Vec::new();
        let workers: Vec<Child> = (0..2)
            .map(|n| {
                let mut worker = fork(|line| {
                    let (worker, transitions) = generation.join(Join::worker(Some(n))).expect("join");
                    transitions.run(|_| ());
                    worker.beat();
                    line.say("joined");
                    loop {
                        std::thread::sleep(Duration::from_secs(1_000));
                    }
                });
                worker.expect("joined");
                pids.push(worker.pid());
                worker
            })
            .collect();
        line.say(&pids[0].to_string());
        // Killed with the master, and the other one is not.
        let mut workers = workers.into_iter();
        let survivor = workers.next();
        line.expect("off");
        drop(workers);
        std::mem::forget(survivor);
        line.say("off");
        line.hear();
        0
    });
    let survivor = server.hear().expect("a process id").parse().expect("a process id");
    let stranger = Stranger(survivor);
    server.say("off");
    server.expect("off");
    server.kill();
    stranger
}

/// Killed at last.
struct Stranger(u32);

impl Drop for Stranger {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0 as i32), Signal::SIGKILL);
    }
}

fn wall_ns() -> u64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_nanos() as u64
}

/// A registry on a disk: the machine was switched off, and is there again. `before`, `after`: the times of the two boots.
fn rebooted(before: Option<&Later>, after: Option<&Later>) {
    let place = Place::new();
    let stranger = first_life(&place, before);
    let off = wall_ns();
    // As long as it takes to tell the two moments apart.
    std::thread::sleep(Duration::from_secs(1));
    let mut child = fork(|_| {
        another_boot(place.folder());
        if let Some(later) = after {
            later.begin();
        }
        // Before the server is started again.
        let observer = Observer::open(&place.registry()).expect("open to read");
        let snapshot = observer.snapshot().expect("a snapshot");
        assert!(snapshot.processes.iter().any(|p| p.pid == stranger.0));
        assert!(snapshot.processes.iter().all(|p| p.liveness == Liveness::Gone), "{snapshot:#?}");
        assert_eq!(observer.registry().expect("it can be read").of_this_boot, Some(false));
        let old = snapshot.head;
        assert_eq!(snapshot.earlier_boots, old);

        let master = place.open();
        let node = master.node();
        assert_eq!(node.path(), Some(&*place.registry()), "{:?}", node.take_notices());
        assert!(node.take_notices().is_empty());
        let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
        let mut told = Vec::new();
        transitions.run(|transition| told.push(transition.event.clone()));
        master.commit(generation.id());
        let [start] = &told[..] else { panic!("{told:#?}") };
        assert_eq!((start.kind, start.cause, start.generation), (Kind::GenerationStarted, Cause::Start, 2));
        assert_eq!(start.previous_run, Some(PreviousRun::Unclean { generation: 1, workers: 2 }));

        let events = family::news(node, &mut Cursor::at(old + 1));
        let kinds: Vec<_> = events.iter().map(|e| (e.kind, e.cause)).collect();
        let unclean = |kind| (kind, Cause::Unclean);
        let expected = [
            unclean(Kind::WorkerDied),
            unclean(Kind::WorkerDied),
            unclean(Kind::GenerationEnded),
            (Kind::GenerationStarted, Cause::Start),
        ];
        assert_eq!(kinds, expected, "{events:#?}");
        assert_eq!(events[0].seq, old + 1, "the numbers go on");
        for death in &events[..2] {
            assert_eq!((death.signal, death.exit_code), (None, None), "{death:#?}");
            let ago = Duration::from_nanos(off.abs_diff(death.time_ns));
            assert!(ago < Duration::from_millis(900), "dated by its last sign of life: {ago:?} {death:#?}");
            assert_eq!((death.heartbeat_ns, death.age(), death.was()), (0, None, None), "of another clock");
            assert_eq!(death.state, Some(State::Serving));
        }
        let snapshot = node.snapshot();
        assert_eq!(snapshot.earlier_boots, old);
        let known: Vec<_> = snapshot.processes.iter().map(|p| p.pid).collect();
        assert_eq!(known, [std::process::id()], "nobody of before");
        assert!(node.snapshot().processes[0].age < Duration::from_secs(60));

        // And it lives on.
        let mut worker = fork(|line| {
            let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("join");
            transitions.run(|_| ());
            line.say("joined");
            line.hear();
            worker.leave(Wait::Timeout).expect("leave").run(|_| ());
            0
        });
        worker.expect("joined");
        assert_eq!(node.snapshot().total, 1);
        worker.say("go");
        worker.ended_well();
        master.leave(Wait::Timeout).expect("leave").run(|_| ());
        0
    });
    child.ended_well();
    let stranger_lives = std::fs::read_to_string(format!("/proc/{}/stat", stranger.0)).is_ok();
    assert!(stranger_lives, "nobody has done it any harm");
}

#[test]
fn after_a_reboot_nobody_of_before_is_alive() {
    let _alone = alone();
    if let Some(why) = no_mounts() {
        return skip(why);
    }
    rebooted(None, None);
}

/// The clock of the boot before was far ahead of this one's, or far behind it.
#[test]
fn after_a_reboot_the_clock_begins_anew() {
    let _alone = alone();
    if let Some(why) = no_mounts() {
        return skip(why);
    }
    let Some(later) = Later::by(MONTH) else { return skip("the kernel has no time namespaces") };
    rebooted(Some(&later), None);
    rebooted(None, Some(&later));
}
