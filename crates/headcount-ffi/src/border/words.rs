//! The words that events and snapshots are made of, as numbers and as names.

use std::ffi::{CString, c_char};
use std::sync::LazyLock;

use headcount_core::{Cause, Doubt, Kind, Liveness, Phase, Role, SingletonKind, SingletonState, State};

use crate::border::codes::{Code, HEADCOUNT_EVENT, HEADCOUNT_OK};

/// "There is none", or "not known": of counts, worker ids, exit codes, and whatever says so.
pub const HEADCOUNT_NONE: i32 = -1;
/// For `wait_ms`: wait for the node lock as long as the option `lock_timeout_ms` says.
pub const HEADCOUNT_WAIT_LOCK_TIMEOUT: i64 = -1;
/// For `wait_ms`: do not wait for the node lock.
pub const HEADCOUNT_WAIT_TRY: i64 = 0;

/// A configuration was loaded; its workers are about to come.
pub const HEADCOUNT_KIND_GENERATION_STARTED: u32 = 1;
/// The last worker of a generation is gone, and no more will come.
pub const HEADCOUNT_KIND_GENERATION_ENDED: u32 = 2;
/// A generation that was announced never got a worker.
pub const HEADCOUNT_KIND_GENERATION_ABANDONED: u32 = 3;
/// A worker has joined.
pub const HEADCOUNT_KIND_WORKER_STARTED: u32 = 4;
/// A worker takes no new work, and finishes what it has.
pub const HEADCOUNT_KIND_WORKER_DRAINING: u32 = 5;
/// A worker is leaving properly; it is still in the event's counts.
pub const HEADCOUNT_KIND_WORKER_EXITED: u32 = 6;
/// A worker is gone without having left.
pub const HEADCOUNT_KIND_WORKER_DIED: u32 = 7;
/// A worker is alive with an overdue heartbeat; it is out of the counts.
pub const HEADCOUNT_KIND_WORKER_STALLED: u32 = 8;
/// A stalled worker beats again; it is in the counts again.
pub const HEADCOUNT_KIND_WORKER_RECOVERED: u32 = 9;
/// A master is gone without having left, and its workers live on.
pub const HEADCOUNT_KIND_MASTER_LOST: u32 = 10;
/// In the journal only: a helper (cache manager, privileged agent) has joined.
pub const HEADCOUNT_KIND_HELPER_STARTED: u32 = 11;
/// In the journal only: a helper is gone.
pub const HEADCOUNT_KIND_HELPER_EXITED: u32 = 12;
/// In the journal only: a process died while it acted on an event, see `previous_generation`.
pub const HEADCOUNT_KIND_CALLBACK_DIED: u32 = 13;
/// In the journal only: acting on an event failed, see `previous_generation`.
pub const HEADCOUNT_KIND_CALLBACK_FAILED: u32 = 14;
/// In the journal only: a master has left properly.
pub const HEADCOUNT_KIND_MASTER_EXITED: u32 = 15;
/// In the journal only: a worker has a role from now on.
pub const HEADCOUNT_KIND_LEADER_ELECTED: u32 = 16;
/// In the journal only: a worker has a role no more; `cause` says why.
pub const HEADCOUNT_KIND_LEADER_LOST: u32 = 17;
/// In the journal only: what is to be done once was done.
pub const HEADCOUNT_KIND_ONCE_DONE: u32 = 18;
/// In the journal only: what is to be done once was tried as often as allowed, in vain.
pub const HEADCOUNT_KIND_ONCE_FAILED: u32 = 19;
/// In the journal only: a process ended while it held a named lock, and may have left things half-done.
pub const HEADCOUNT_KIND_LOCK_ABANDONED: u32 = 20;

/// Not known, or not told by this kernel.
pub const HEADCOUNT_CAUSE_UNKNOWN: u32 = 0;
/// The server was started.
pub const HEADCOUNT_CAUSE_START: u32 = 1;
/// The configuration was loaded anew by the same master.
pub const HEADCOUNT_CAUSE_RELOAD: u32 = 2;
/// A new binary took over from a running master.
pub const HEADCOUNT_CAUSE_UPGRADE: u32 = 3;
/// Replaces a worker that is gone.
pub const HEADCOUNT_CAUSE_RESPAWN: u32 = 4;
/// A generation that had ended got workers again (a binary upgrade that was rolled back).
pub const HEADCOUNT_CAUSE_RESUME: u32 = 5;
/// The node stops: no other generation is there.
pub const HEADCOUNT_CAUSE_STOP: u32 = 6;
/// Another generation has taken over.
pub const HEADCOUNT_CAUSE_SUPERSEDED: u32 = 7;
/// Ended by a signal, see `signal`.
pub const HEADCOUNT_CAUSE_SIGNAL: u32 = 8;
/// Ended by itself, see `exit_code`.
pub const HEADCOUNT_CAUSE_EXIT: u32 = 9;
/// The heartbeat is overdue.
pub const HEADCOUNT_CAUSE_OVERDUE: u32 = 10;
/// Found when the node was started again: it had ended uncleanly.
pub const HEADCOUNT_CAUSE_UNCLEAN: u32 = 11;
/// The master never came to start workers.
pub const HEADCOUNT_CAUSE_NO_WORKERS: u32 = 12;
/// Told to leave, though its master was not told to stop: the master replaces it.
pub const HEADCOUNT_CAUSE_RECYCLED: u32 = 13;
/// It stands for the role no more.
pub const HEADCOUNT_CAUSE_RESIGNED: u32 = 14;
/// It said that it had failed.
pub const HEADCOUNT_CAUSE_FAILED: u32 = 15;

/// Spawns the workers.
pub const HEADCOUNT_ROLE_MASTER: u32 = 1;
/// Serves.
pub const HEADCOUNT_ROLE_WORKER: u32 = 2;
/// Neither.
pub const HEADCOUNT_ROLE_HELPER: u32 = 3;
/// None of the server's processes: it takes part beside it, for the node's roles and locks.
pub const HEADCOUNT_ROLE_VISITOR: u32 = 4;

/// Its start callback runs.
pub const HEADCOUNT_STATE_STARTING: u32 = 1;
/// At work.
pub const HEADCOUNT_STATE_SERVING: u32 = 2;
/// Finishes its work, takes no new.
pub const HEADCOUNT_STATE_DRAINING: u32 = 3;
/// Its exit callback runs.
pub const HEADCOUNT_STATE_LEAVING: u32 = 4;
/// Alive, with an overdue heartbeat.
pub const HEADCOUNT_STATE_STALLED: u32 = 5;
/// Alive, and its master is gone.
pub const HEADCOUNT_STATE_ORPHANED: u32 = 6;
/// Gone after leaving properly, and not cleared away yet.
pub const HEADCOUNT_STATE_EXITED: u32 = 7;
/// Gone without leaving, and not reported or not cleared away yet.
pub const HEADCOUNT_STATE_DIED: u32 = 8;
/// It cannot be told whether it is alive.
pub const HEADCOUNT_STATE_UNKNOWN: u32 = 9;

/// By the kernel's word it is there.
pub const HEADCOUNT_LIVENESS_ALIVE: u32 = 1;
/// By the kernel's word it is not.
pub const HEADCOUNT_LIVENESS_GONE: u32 = 2;
/// It cannot be told from here, see `doubt`. Never to be taken for gone.
pub const HEADCOUNT_LIVENESS_UNKNOWN: u32 = 3;

/// The process lives in another pid namespace, where its id means nothing here.
pub const HEADCOUNT_DOUBT_OTHER_NAMESPACE: u32 = 1;
/// Its pid namespace, or that of this process, is not known: /proc is not mounted.
pub const HEADCOUNT_DOUBT_NAMESPACE_UNKNOWN: u32 = 2;
/// The registry is of another boot, or /proc does not tell which boot this is.
pub const HEADCOUNT_DOUBT_BOOT_UNKNOWN: u32 = 3;
/// The kernel refused the question.
pub const HEADCOUNT_DOUBT_REFUSED: u32 = 4;
/// Its record changed during the look.
pub const HEADCOUNT_DOUBT_CHANGING: u32 = 5;

/// Its configuration was read; whether it gets workers is open.
pub const HEADCOUNT_PHASE_ANNOUNCED: u32 = 1;
/// It has, or had, a worker, or its master went on to start them.
pub const HEADCOUNT_PHASE_COMMITTED: u32 = 2;
/// It never got a worker, and never will.
pub const HEADCOUNT_PHASE_ABANDONED: u32 = 3;

/// A role.
pub const HEADCOUNT_SINGLETON_ROLE: u32 = 1;
/// Something that is to be done once.
pub const HEADCOUNT_SINGLETON_ONCE: u32 = 2;
/// A lock.
pub const HEADCOUNT_SINGLETON_LOCK: u32 = 3;

/// Nobody has the role or the lock.
pub const HEADCOUNT_SINGLETON_STATE_FREE: u32 = 1;
/// Somebody has it.
pub const HEADCOUNT_SINGLETON_STATE_HELD: u32 = 2;
/// The leader has been asked to give the role up.
pub const HEADCOUNT_SINGLETON_STATE_ASKED: u32 = 3;
/// The leader has given the role up, and that is not reported yet.
pub const HEADCOUNT_SINGLETON_STATE_GIVEN_UP: u32 = 4;
/// A process is at it.
pub const HEADCOUNT_SINGLETON_STATE_RUNNING: u32 = 5;
/// It is still, or again, to be done.
pub const HEADCOUNT_SINGLETON_STATE_OPEN: u32 = 6;
/// It was done.
pub const HEADCOUNT_SINGLETON_STATE_DONE: u32 = 7;
/// It was tried as often as allowed, in vain.
pub const HEADCOUNT_SINGLETON_STATE_FAILED: u32 = 8;

/// `previous_run`: there was none that this registry knows of.
pub const HEADCOUNT_PREVIOUS_RUN_NONE: u32 = 1;
/// `previous_run`: it was stopped properly.
pub const HEADCOUNT_PREVIOUS_RUN_CLEAN: u32 = 2;
/// `previous_run`: processes died, or lost their master, without the node having been stopped.
pub const HEADCOUNT_PREVIOUS_RUN_UNCLEAN: u32 = 3;

/// `level`: good to know.
pub const HEADCOUNT_LEVEL_NOTICE: u32 = 1;
/// `level`: something is less than was asked for.
pub const HEADCOUNT_LEVEL_WARNING: u32 = 2;
/// `level`: something failed that nobody was there to be told.
pub const HEADCOUNT_LEVEL_ERROR: u32 = 3;

/// Numbers with their names, as C strings that live for ever.
type Names = Vec<(i64, CString)>;

fn names<'a>(pairs: impl IntoIterator<Item = (i64, &'a str)>) -> Names {
    // A name never contains a NUL; one that did would read as empty.
    pairs.into_iter().map(|(number, name)| (number, CString::new(name).unwrap_or_default())).collect()
}

static ERRORS: LazyLock<Names> = LazyLock::new(|| {
    let codes = Code::all().map(|code| (i64::from(code.number()), code.name()));
    names([(i64::from(HEADCOUNT_OK), "ok"), (i64::from(HEADCOUNT_EVENT), "event")].into_iter().chain(codes))
});
static KINDS: LazyLock<Names> =
    LazyLock::new(|| names(Kind::ALL.iter().map(|k| (i64::from(k.code()), k.name()))));
static CAUSES: LazyLock<Names> =
    LazyLock::new(|| names(Cause::ALL.iter().map(|c| (i64::from(c.code()), c.name()))));
static ROLES: LazyLock<Names> =
    LazyLock::new(|| names(Role::ALL.iter().map(|r| (i64::from(r.code()), r.name()))));
static STATES: LazyLock<Names> =
    LazyLock::new(|| names(State::ALL.iter().map(|s| (i64::from(s.code()), s.name()))));
static PHASES: LazyLock<Names> =
    LazyLock::new(|| names(Phase::ALL.iter().map(|p| (i64::from(p.code()), p.name()))));
static SINGLETONS: LazyLock<Names> =
    LazyLock::new(|| names(SingletonKind::ALL.iter().map(|k| (i64::from(k.code()), k.name()))));
static SINGLETON_STATES: LazyLock<Names> =
    LazyLock::new(|| names(SingletonState::ALL.iter().map(|s| (i64::from(s.code()), s.name()))));
static REASONS: LazyLock<Names> =
    LazyLock::new(|| names(Doubt::ALL.iter().map(|d| (i64::from(d.code()), d.reason()))));
static LIVENESS: LazyLock<Names> = LazyLock::new(|| {
    // Whatever the doubt is, the name is one.
    let all = [Liveness::Alive, Liveness::Gone, Liveness::Unknown(Doubt::Refused)];
    names(all.map(|liveness| (i64::from(liveness_codes(liveness).0), liveness.name())))
});

/// A liveness, and the doubt about it; 0: none.
pub(crate) fn liveness_codes(liveness: Liveness) -> (u32, u32) {
    match liveness {
        Liveness::Alive => (HEADCOUNT_LIVENESS_ALIVE, 0),
        Liveness::Gone => (HEADCOUNT_LIVENESS_GONE, 0),
        Liveness::Unknown(doubt) => (HEADCOUNT_LIVENESS_UNKNOWN, doubt.code()),
    }
}

fn name_in(names: &'static LazyLock<Names>, number: i64) -> *const c_char {
    let found = std::panic::catch_unwind(|| names.iter().find(|(n, _)| *n == number));
    found.ok().flatten().map_or(c"unknown".as_ptr(), |(_, name)| name.as_ptr())
}

/// The name of a code: "lock_timeout" for HEADCOUNT_ERR_LOCK_TIMEOUT, "unknown" for none of ours. The
/// string is the library's and stays for ever. Never NULL.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_error_name(code: i32) -> *const c_char {
    name_in(&ERRORS, i64::from(code))
}

/// The name of a kind: "worker_died" for HEADCOUNT_KIND_WORKER_DIED. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_kind_name(kind: u32) -> *const c_char {
    name_in(&KINDS, i64::from(kind))
}

/// The name of a cause: "reload" for HEADCOUNT_CAUSE_RELOAD. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_cause_name(cause: u32) -> *const c_char {
    name_in(&CAUSES, i64::from(cause))
}

/// The name of a role: "worker" for HEADCOUNT_ROLE_WORKER. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_role_name(role: u32) -> *const c_char {
    name_in(&ROLES, i64::from(role))
}

/// The name of a state: "stalled" for HEADCOUNT_STATE_STALLED. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_state_name(state: u32) -> *const c_char {
    name_in(&STATES, i64::from(state))
}

/// The name of a liveness: "alive" for HEADCOUNT_LIVENESS_ALIVE. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_liveness_name(liveness: u32) -> *const c_char {
    name_in(&LIVENESS, i64::from(liveness))
}

/// The name of a phase: "committed" for HEADCOUNT_PHASE_COMMITTED. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_phase_name(phase: u32) -> *const c_char {
    name_in(&PHASES, i64::from(phase))
}

/// The name of a kind of singleton: "role" for HEADCOUNT_SINGLETON_ROLE. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_singleton_name(kind: u32) -> *const c_char {
    name_in(&SINGLETONS, i64::from(kind))
}

/// The name of its state: "held" for HEADCOUNT_SINGLETON_STATE_HELD. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_singleton_state_name(state: u32) -> *const c_char {
    name_in(&SINGLETON_STATES, i64::from(state))
}

/// The reason for a doubt, and what helps: "it runs in another pid namespace; ask from inside its container" for
/// HEADCOUNT_DOUBT_OTHER_NAMESPACE. As `headcount_error_name`.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_doubt_reason(doubt: u32) -> *const c_char {
    name_in(&REASONS, i64::from(doubt))
}
