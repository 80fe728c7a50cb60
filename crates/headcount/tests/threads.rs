//! Threads are inside the library while another one forks: the child can use it, or is told clearly that it cannot. It
//! never hangs.

mod family;

use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::time::{Duration, Instant};

use headcount::{Begin, Cursor, Generation, Join, Master, Wait};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid};

use family::{Line, Place, alone, fork};

const ROUNDS: u32 = 200;
/// A child waits for a lock for a moment at most; one that needs so long hangs.
const LONGEST: Duration = Duration::from_secs(10);
const MOMENT: Wait = Wait::For(Duration::from_millis(500));

/// What threads of a server may do at any time.
fn busy(place: &Place, master: &Master, generation: &Generation, calls: &AtomicU64, what: u32) {
    let node = master.node();
    match what {
        0 => drop(node.snapshot()),
        1 => {
            let _ = node.events(&mut Cursor::oldest(), usize::MAX);
            drop(node.take_notices());
        }
        // As at a reload: the same node again.
        2 => assert_eq!(place.options().open().expect("open").node().path(), node.path()),
        _ => {
            if let Ok((worker, transitions)) = generation.join(Join::worker(Some(9)).wait(MOMENT)) {
                transitions.run(|_| ());
                worker.beat();
                if let Ok(transitions) = worker.leave(MOMENT) {
                    transitions.run(|_| ());
                }
            }
        }
    }
    calls.fetch_add(1, SeqCst);
}

/// What a forked child does. Whatever comes of a call: it comes.
fn child(place: &Place, master: &Master, generation: &Generation) {
    let node = master.node();
    assert!(!node.snapshot().processes.is_empty());
    let _ = node.events(&mut Cursor::oldest(), 16);
    if let Ok((worker, transitions)) = generation.join(Join::worker(Some(1)).wait(MOMENT)) {
        transitions.run(|_| ());
        worker.beat();
        if let Ok(transitions) = worker.leave(MOMENT) {
            transitions.run(|_| ());
        }
    }
    if let Ok(own) = place.options().open() {
        if let Ok((generation, transitions)) = own.begin(Begin::new().workers(1), MOMENT) {
            transitions.run(|_| ());
            own.abandon(generation.id());
        }
    }
}

/// Whether it ended well; a child that hangs is killed.
fn ended(pid: Pid) -> Result<(), String> {
    let begun = Instant::now();
    loop {
        match waitpid(pid, Some(WaitPidFlag::WNOHANG)).expect("our own child") {
            WaitStatus::StillAlive if begun.elapsed() < LONGEST => {
                std::thread::sleep(Duration::from_millis(1))
            }
            WaitStatus::StillAlive => {
                let waits_in = std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
                kill(pid, Signal::SIGKILL).expect("our own child");
                waitpid(pid, None).expect("our own child");
                return Err(format!("it hangs in {waits_in}"));
            }
            WaitStatus::Exited(_, 0) => return Ok(()),
            other => return Err(format!("{other:?}")),
        }
    }
}

fn forks_in_threads(place: &Place, line: &mut Line) -> Vec<String> {
    let master = place.options().lock_timeout(Duration::from_secs(2)).open().expect("open");
    let (generation, transitions) = master.begin(Begin::new().workers(3), Wait::Timeout).expect("begin");
    transitions.run(|_| ());
    master.commit(generation.id());
    let (ends, calls) = (AtomicBool::new(false), AtomicU64::new(0));
    let mut wrongs = Vec::new();
    std::thread::scope(|scope| {
        for what in [0, 0, 1, 2, 3] {
            let (master, generation, ends, calls) = (&master, &generation, &ends, &calls);
            scope.spawn(move || {
                while !ends.load(SeqCst) {
                    busy(place, master, generation, calls, what);
                }
            });
        }
        for round in 0..ROUNDS {
            // At another moment each time.
            let before = calls.load(SeqCst);
            while calls.load(SeqCst) < before + 20 {
                std::thread::yield_now();
            }
            // SAFETY: the child only calls the library, which is what is tested, and `_exit`s.
            match unsafe { nix::unistd::fork() }.expect("fork") {
                ForkResult::Child => {
                    let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                        child(place, &master, &generation);
                    }));
                    // SAFETY: ends the process without running anybody's destructors a second time.
                    unsafe { libc::_exit(i32::from(well.is_err())) }
                }
                ForkResult::Parent { child } => {
                    wrongs.extend(ended(child).err().map(|e| format!("round {round}: {e}")));
                }
            }
            // Who hears nothing for long gives us up.
            line.say("goes on");
            if wrongs.len() > 2 {
                break;
            }
        }
        ends.store(true, SeqCst);
    });
    wrongs
}

#[test]
fn a_child_that_is_forked_while_threads_are_inside_never_hangs() {
    let _alone = alone();
    let place = Place::new();
    // In a process of its own: the threads of the test harness are nobody's business.
    let mut parent = fork(|line| {
        let wrongs = forks_in_threads(&place, line);
        line.say(&format!("{wrongs:?}"));
        0
    });
    let said = loop {
        match parent.hear() {
            Some(said) if said == "goes on" => {}
            said => break said.unwrap_or_default(),
        }
    };
    assert_eq!(said, "[]");
    parent.ended_well();
}
