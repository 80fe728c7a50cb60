//! What will be done to a server: a list of faults that a seed determines, and nothing else.

use std::fmt;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use testkit::Signal;

use crate::front::Front;

/// Who is meant, decided when it is done: a worker by its place among those that live then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// One of them.
    One(u32),
    /// So many of them, from that one on.
    Some(u32, u32),
    /// All.
    All,
    /// The one that watches the others.
    Sentinel,
    /// The eldest two but the sentinel, one of which is its deputy.
    Deputy,
    /// These three.
    Both,
    /// The one that leads.
    Leader,
    /// The one that holds the lock, or is at something that is to be done once; else the one that leads.
    Holder,
}

/// How a process is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Deadly {
    Kill,
    Segv,
    Abort,
}

impl Deadly {
    /// The signal.
    pub fn signal(self) -> Signal {
        match self {
            Self::Kill => Signal::KILL,
            Self::Segv => Signal::SEGV,
            Self::Abort => Signal::ABORT,
        }
    }
}

/// How a process is told to leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Told {
    Term,
    Int,
    Quit,
}

impl Told {
    /// The signal.
    pub fn signal(self) -> Signal {
        match self {
            Self::Term => Signal::TERM,
            Self::Int => Signal::INT,
            Self::Quit => Signal::QUIT,
        }
    }
}

/// Why a reload fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Bad {
    Syntax,
    Address,
    Permission,
}

/// Who is killed while an upgrade is under way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Interruption {
    None,
    OldWorkers,
    NewWorkers,
    OldMaster,
    NewMaster,
}

/// What becomes of workers whose master was killed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Orphans {
    Killed,
    ToldToLeave(Told),
    /// Killed only when a new master serves.
    Outlast,
}

/// Which callback a trap is laid in.
pub const CALLBACKS: [&str; 4] =
    ["on_worker_start", "on_worker_died", "on_worker_exit", "on_worker_draining"];

/// One fault. Times are in milliseconds unless they say otherwise.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Fault {
    Kill { who: Who, how: Deadly },
    Newborn { after_us: u32, how: Deadly },
    Stop { who: Who, faults: usize },
    Spin { who: u32, for_ms: u32 },
    Leave { who: Who, how: Told },
    DieInCallback { callback: &'static str },
    HoldLock { callback: &'static str, for_ms: u32, kills: u32 },
    Reload { workers: u32 },
    Reloads { workers: Vec<u32>, gap_ms: u32 },
    BadReload { why: Bad },
    Drain { clients: u32, faults: usize },
    StopServer { how: Told, group: bool },
    LoseMaster { orphans: Orphans, after_ms: u32 },
    KillNode,
    Upgrade { back: bool, interruption: Interruption, after_ms: u32 },
    Winch { after_ms: u32 },
    Twins { workers: u32 },
    LoseFiles { lock: bool, after_ms: u32 },
    Reader { kill: bool, faults: usize },
    CrashLoop { deaths: usize },
    Freeze { who: Who, faults: usize },
}

impl Fault {
    /// Whether it makes sense on this front.
    pub fn is_for(&self, front: Front) -> bool {
        match self {
            Fault::DieInCallback { .. } | Fault::HoldLock { .. } => front.has_own_callbacks(),
            // The example's number of workers is fixed, and it answers only to HUP, TERM and QUIT.
            Fault::Spin { .. }
            | Fault::BadReload { .. }
            | Fault::Drain { .. }
            | Fault::Upgrade { .. }
            | Fault::Winch { .. }
            | Fault::LoseFiles { .. }
            | Fault::CrashLoop { .. } => front.is_nginx(),
            _ => true,
        }
    }

    /// Its name in the summary.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Kill { who: Who::All, .. } => "all workers killed",
            Self::Kill { who: Who::Some(..), .. } => "several workers killed",
            Self::Kill { who: Who::Sentinel, .. } => "sentinel killed",
            Self::Kill { who: Who::Deputy, .. } => "deputy killed",
            Self::Kill { who: Who::Both, .. } => "sentinel and deputy killed",
            Self::Kill { who: Who::Leader, .. } => "leader killed",
            Self::Kill { who: Who::Holder, .. } => "killed inside a lock or a once",
            Self::Kill { .. } => "a worker killed",
            Self::Newborn { .. } => "a worker killed within 5 ms of its fork",
            Self::Stop { who: Who::Sentinel, .. } => "sentinel stopped",
            Self::Stop { who: Who::Leader, .. } => "leader stopped",
            Self::Stop { who: Who::Holder, .. } => "stopped inside a lock or a once",
            Self::Stop { .. } => "workers stopped",
            Self::Spin { .. } => "a worker busy",
            Self::Leave { .. } => "workers told to leave",
            Self::DieInCallback { .. } => "killed in its callback",
            Self::HoldLock { .. } => "killed while waiting for the lock",
            Self::Reload { .. } => "reload",
            Self::Reloads { .. } => "burst of reloads",
            Self::BadReload { why: Bad::Syntax } => "failed reload: syntax",
            Self::BadReload { why: Bad::Address } => "failed reload: address",
            Self::BadReload { why: Bad::Permission } => "failed reload: permission",
            Self::Drain { .. } => "clients that keep old workers",
            Self::StopServer { group: false, .. } => "stop and start",
            Self::StopServer { group: true, .. } => "stop of the whole group, and start",
            Self::LoseMaster { .. } => "master killed, then the rest, then a start",
            Self::KillNode => "all killed at once, and a start",
            Self::Upgrade { interruption: Interruption::None, back: false, .. } => "upgrade",
            Self::Upgrade { interruption: Interruption::None, back: true, .. } => "upgrade rolled back",
            Self::Upgrade { .. } => "upgrade interrupted by kills",
            Self::Winch { .. } => "workers sent away and called back (WINCH, HUP)",
            Self::Twins { .. } => "two servers of one name started together",
            Self::LoseFiles { .. } => "registry's files removed, and a reload",
            Self::Reader { kill: true, .. } => "reader killed",
            Self::Reader { kill: false, .. } => "reader stopped",
            Self::CrashLoop { .. } => "crash loop in init_worker",
            Self::Freeze { .. } => "workers frozen by their cgroup",
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {self:?}", self.kind())
    }
}

/// A fault, and what follows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub fault: Fault,
    /// Milliseconds until the next.
    pub pause: u32,
    /// Whether all comes to rest and is compared before the next.
    pub rest: bool,
}

/// A server's life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Which server.
    pub front: Front,
    /// Its number of workers at the start.
    pub workers: u32,
    /// What is done to it.
    pub steps: Vec<Step>,
}

/// The life of this number under this seed. The same for ever.
pub fn plan(seed: u64, life: u64, front: Front, length: usize) -> Plan {
    let mut dice = ChaCha8Rng::seed_from_u64(seed.wrapping_mul(1_000_003).wrapping_add(life));
    let workers = dice.random_range(2..=16);
    let steps = (0..length)
        .map(|_| Step {
            fault: fault(&mut dice, front),
            pause: *pick(&mut dice, &[0, 0, 0, 1, 5, 20, 60, 150]),
            rest: dice.random_ratio(1, 4),
        })
        .collect();
    Plan { front, workers, steps }
}

fn pick<'a, T>(dice: &mut ChaCha8Rng, from: &'a [T]) -> &'a T {
    &from[dice.random_range(0..from.len())]
}

fn who(dice: &mut ChaCha8Rng) -> Who {
    match dice.random_range(0..26) {
        0..8 => Who::One(dice.random()),
        8..12 => Who::Some(dice.random(), dice.random_range(2..6)),
        12..14 => Who::All,
        14..17 => Who::Sentinel,
        17..19 => Who::Deputy,
        19 => Who::Both,
        20..23 => Who::Leader,
        _ => Who::Holder,
    }
}

fn deadly(dice: &mut ChaCha8Rng) -> Deadly {
    *pick(dice, &[Deadly::Kill, Deadly::Kill, Deadly::Segv, Deadly::Abort])
}

fn told(dice: &mut ChaCha8Rng, front: Front) -> Told {
    // The example server does not know INT.
    *pick(
        dice,
        if front.is_nginx() { &[Told::Term, Told::Int, Told::Quit] } else { &[Told::Term, Told::Quit] },
    )
}

/// How often each is drawn: what is cheap and likely to meet another fault, more often.
fn fault(dice: &mut ChaCha8Rng, front: Front) -> Fault {
    loop {
        let fault = any(dice, front);
        if fault.is_for(front) {
            return fault;
        }
    }
}

fn any(dice: &mut ChaCha8Rng, front: Front) -> Fault {
    match dice.random_range(0..200) {
        0..74 => Fault::Kill { who: who(dice), how: deadly(dice) },
        74..89 => Fault::Newborn { after_us: dice.random_range(0..5000), how: deadly(dice) },
        89..101 => Fault::Stop { who: who(dice), faults: dice.random_range(1..5) },
        101..105 => Fault::Spin { who: dice.random(), for_ms: dice.random_range(50..2500) },
        105..111 => Fault::Leave { who: who(dice), how: told(dice, front) },
        111..119 => Fault::DieInCallback { callback: pick::<&str>(dice, &CALLBACKS) },
        119..125 => Fault::HoldLock {
            callback: pick::<&str>(dice, &CALLBACKS),
            for_ms: dice.random_range(10..200),
            kills: dice.random_range(1..6),
        },
        125..137 => Fault::Reload { workers: dice.random_range(2..=16) },
        137..141 => Fault::Reloads {
            workers: (0..dice.random_range(2..6)).map(|_| dice.random_range(2..=16)).collect(),
            gap_ms: *pick(dice, &[0, 5, 50, 150]),
        },
        141..147 => Fault::BadReload { why: *pick(dice, &[Bad::Syntax, Bad::Address, Bad::Permission]) },
        147..154 => Fault::Drain { clients: dice.random_range(1..4), faults: dice.random_range(1..8) },
        154..161 => Fault::StopServer { how: told(dice, front), group: dice.random_ratio(1, 4) },
        161..167 => Fault::LoseMaster {
            orphans: match dice.random_range(0..4) {
                0 => Orphans::Killed,
                1 => Orphans::Outlast,
                _ => Orphans::ToldToLeave(told(dice, front)),
            },
            after_ms: *pick(dice, &[0, 5, 50, 200]),
        },
        167..171 => Fault::KillNode,
        171..179 => Fault::Upgrade {
            back: dice.random(),
            interruption: *pick(
                dice,
                &[
                    Interruption::None,
                    Interruption::None,
                    Interruption::OldWorkers,
                    Interruption::NewWorkers,
                    Interruption::OldMaster,
                    Interruption::NewMaster,
                ],
            ),
            after_ms: *pick(dice, &[0, 20, 100, 300]),
        },
        179..182 => Fault::Winch { after_ms: *pick(dice, &[0, 50, 200]) },
        182..183 => Fault::LoseFiles { lock: dice.random(), after_ms: *pick(dice, &[0, 50, 400]) },
        183..191 => Fault::Reader { kill: dice.random(), faults: dice.random_range(1..6) },
        191..194 => Fault::CrashLoop { deaths: dice.random_range(1..12) },
        194..195 => Fault::Twins { workers: dice.random_range(2..=8) },
        _ => Fault::Freeze { who: who(dice), faults: dice.random_range(1..4) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_gives_the_same_faults_and_another_gives_others() {
        let of = |seed, life| plan(seed, life, Front::Both, 100);
        assert_eq!(of(7, 1), of(7, 1));
        assert_ne!(of(7, 1), of(7, 2));
        assert_ne!(of(7, 1), of(8, 1));
    }

    #[test]
    fn each_front_gets_only_what_it_can_do() {
        for front in Front::ALL {
            let plan = plan(1, 1, front, 2000);
            assert!(plan.steps.iter().all(|step| step.fault.is_for(front)));
        }
    }
}
