//! One registry, and the files beside it.

use std::io;
use std::path::{Path, PathBuf};

use headcount::{ErrorKind, Liveness, Observer, RegistryInfo, Role, Snapshot, State};
use headcount_report::{age, plural, timestamp};

use super::check::{Check, FileFacts, FileKind, Section};
use crate::alive::{doubts, helpers, only_helpers};
use crate::escape::{escape, escape_path};

/// What was read of a registry.
pub struct RegistryFacts {
    pub path: PathBuf,
    pub registry: io::Result<FileFacts>,
    pub lock: io::Result<FileFacts>,
    pub inside: headcount::Result<Inside>,
}

/// What it contains.
pub struct Inside {
    pub info: RegistryInfo,
    pub snapshot: Snapshot,
    /// How many descriptors the sentinel may have open, if that is known.
    pub sentinel_descriptors: Option<u64>,
}

pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

impl RegistryFacts {
    pub fn read(path: PathBuf) -> RegistryFacts {
        RegistryFacts {
            registry: FileFacts::of(&path),
            lock: FileFacts::of(&beside(&path, ".lock")),
            inside: Observer::open(&path).and_then(|observer| inside(&observer)),
            path,
        }
    }

    /// It has no live process, as far as this process can tell. Removing it takes a closer look.
    pub fn is_stale(&self) -> bool {
        self.inside.as_ref().is_ok_and(Inside::is_stale)
    }

    /// It exists, and this process may not read it.
    pub fn may_not_look(&self) -> bool {
        self.inside
            .as_ref()
            .is_err_and(|e| matches!(e.kind(), ErrorKind::Permission | ErrorKind::NotFound | ErrorKind::Io))
    }
}

fn inside(observer: &Observer) -> headcount::Result<Inside> {
    let snapshot = observer.snapshot()?;
    Ok(Inside {
        info: observer.registry()?,
        sentinel_descriptors: snapshot.sentinel.and_then(descriptors),
        snapshot,
    })
}

/// The soft limit of open files of a process.
fn descriptors(pid: u32) -> Option<u64> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

impl Inside {
    fn is_stale(&self) -> bool {
        self.snapshot.liveness() == Liveness::Gone && helpers(&self.snapshot).next().is_none()
    }
}

/// The verdict on it.
pub fn judge(facts: &RegistryFacts) -> Section {
    let mut checks = Vec::new();
    file(facts, &mut checks);
    match &facts.inside {
        Ok(inside) => {
            contents(inside, &mut checks);
            lock_file(facts, &mut checks);
            life(facts, inside, &mut checks);
            checks.extend(namesake(&facts.path));
        }
        Err(e) => checks.push(unreadable(facts, e)),
    }
    Section { subject: format!("registry {}", escape_path(&facts.path)), checks }
}

fn file(facts: &RegistryFacts, checks: &mut Vec<Check>) {
    let Ok(found) = &facts.registry else { return };
    let path = escape_path(&facts.path);
    let whose = found.whose();
    checks.push(if found.kind != FileKind::Regular {
        Check::finding(format!("is a {}: servers refuse it", found.kind.name()), format!("remove {path}"))
    } else if found.mode & 0o022 != 0 {
        Check::finding(
            format!("{whose}: others may write to it, so servers refuse it"),
            format!("chmod 0644 {path}"),
        )
    } else if found.links > 1 {
        Check::finding(
            format!("has {} links, so servers refuse it", found.links),
            "remove the other links".to_owned(),
        )
    } else {
        Check::good(format!("{whose}, {} bytes", found.size))
    });
}

fn unreadable(facts: &RegistryFacts, error: &headcount::Error) -> Check {
    let path = escape_path(&facts.path);
    let text = escape(&error.to_string()).into_owned();
    let fix = match error.kind() {
        ErrorKind::Permission => "run headcount doctor as the registry's owner or as root".to_owned(),
        ErrorKind::NotFound => "start its server, or name another registry".to_owned(),
        ErrorKind::NotARegistry | ErrorKind::SymbolicLink => format!("if it is not needed: rm {path}"),
        ErrorKind::Corrupt => format!("stop its server, rm {path}, start the server again"),
        ErrorKind::Version => "use the headcount of the server's version, or restart the server".to_owned(),
        _ => "see the system's message".to_owned(),
    };
    Check::finding(text, fix)
}

fn contents(inside: &Inside, checks: &mut Vec<Check>) {
    let info = &inside.info;
    let boot = u128::from(info.boot_id[0]) << 64 | u128::from(info.boot_id[1]);
    let which = match info.of_this_boot {
        Some(true) => "this boot",
        Some(false) => "an earlier boot",
        None => "an unknown boot (is /proc mounted?)",
    };
    checks.push(Check::good(format!(
        "node {}, format {}, created {}, last used in {which} ({boot:032x})",
        escape(&inside.snapshot.node),
        info.format,
        timestamp(info.created_ns),
    )));
    let used = u32::try_from(inside.snapshot.processes.len()).unwrap_or(u32::MAX);
    let text = format!(
        "{used} of {} slots used, room for {} events; {}",
        info.slots,
        info.journal_records,
        plural(info.runs, "run")
    );
    // A reload needs a slot for each new worker while the old ones drain.
    checks.push(if u64::from(used) * 10 >= u64::from(info.slots) * 9 {
        Check::finding(
            format!("{text}: workers without a slot are not counted"),
            "raise the option `slots`, stop the server, run `headcount doctor --clean`, start the server again",
        )
    } else {
        Check::good(text)
    });
    if info.repairs > 0 {
        checks.push(Check::note(format!(
            "a process died while it held the node lock ({}); the next holder finished its work",
            if info.repairs == 1 { "once".to_owned() } else { format!("{} times", info.repairs) }
        )));
    }
}

/// The lock file.
fn lock_file(facts: &RegistryFacts, checks: &mut Vec<Check>) {
    let path = escape_path(&beside(&facts.path, ".lock"));
    let anew =
        format!("stop its server, run `headcount doctor --clean` (or remove {path}), start the server again");
    let owner = facts.registry.as_ref().ok().map(|f| f.uid);
    checks.push(match &facts.lock {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Check::finding(
            "has no lock file: two servers that start at the same time could share the node",
            "restart its server, which creates a new one",
        ),
        Err(e) => Check::note(format!("lock file: cannot be read: {e}")),
        Ok(f) if f.kind != FileKind::Regular => Check::finding(
            format!("lock file: is a {}, not a regular file: servers refuse it", f.kind.name()),
            anew,
        ),
        Ok(f) if f.mode & 0o077 != 0 => {
            let text = format!(
                "lock file: {}: whoever opens it can keep the server from starting, so servers refuse it",
                f.whose()
            );
            Check::finding(text, format!("chmod 0600 {path}"))
        }
        Ok(f) if owner.is_some_and(|uid| uid != f.uid) => Check::finding(
            format!("lock file: {}, but the registry belongs to another user: servers refuse it", f.whose()),
            anew,
        ),
        Ok(f) => Check::good(format!("lock file: {}", f.whose())),
    });
}

/// A server that finds its name in use by another one takes the next: `NAME-2`.
fn namesake(path: &Path) -> Option<Check> {
    let stem = path.file_stem()?.to_str()?;
    let (name, number) = stem.rsplit_once('-')?;
    number.parse::<u32>().ok().filter(|number| (2..=64).contains(number))?;
    let of_the_name = path.with_file_name(format!("{name}.{}", path.extension()?.to_str()?));
    let snapshot = Observer::open(&of_the_name).and_then(|observer| observer.snapshot()).ok()?;
    (snapshot.liveness() == Liveness::Alive).then(|| {
        let name = escape(name);
        Check::note(format!(
            "if its server asks for the name {name}: that is in use by another server, as its error log says"
        ))
        .with_fix("give each server a name of its own")
    })
}

fn life(facts: &RegistryFacts, inside: &Inside, checks: &mut Vec<Check>) {
    let snapshot = &inside.snapshot;
    let count = |liveness| snapshot.processes.iter().filter(|p| p.liveness == liveness).count();
    let alive = count(Liveness::Alive);
    let processes = |n: usize| if n == 1 { "1 process".to_owned() } else { format!("{n} processes") };
    if snapshot.liveness() == Liveness::Gone {
        let died = snapshot.processes.iter().filter(|p| p.state == State::Died).count();
        let why = match (inside.info.of_this_boot, died) {
            (Some(false), _) => "it is from an earlier boot".to_owned(),
            (_, 0) => "its server was stopped".to_owned(),
            (_, n) => format!("{} died, and no process was left to report it", processes(n)),
        };
        let clean = format!(
            "start its server again; or, if it is gone for good: headcount doctor --clean --registry {}",
            escape_path(&facts.path)
        );
        checks.push(match only_helpers(snapshot) {
            // Nothing is wrong with a server that was stopped.
            None if died == 0 => Check::note(format!("nobody is alive: {why}")).with_fix(clean),
            None => Check::finding(format!("nobody is alive: {why}"), clean),
            Some(only) => Check::finding(
                format!("no master or worker is alive: {why}; {only}"),
                format!("stop what is left, unless it belongs to a running server; then {clean}"),
            ),
        });
        return;
    }
    checks.push(Check::good(format!("{} alive", processes(alive))));
    checks.extend(doubts(snapshot).into_iter().map(Check::note));
    if let Some(holder) = snapshot.holder.as_ref().filter(|h| h.held_for > snapshot.settings.lock_timeout) {
        let callback = holder
            .callback
            .map_or(String::new(), |(kind, _)| format!(", in a callback about {}", kind.name()));
        checks.push(Check::finding(
            format!(
                "process {} has held the node lock for {}{callback}: others have timed out waiting for it",
                holder.pid,
                age(holder.held_for)
            ),
            format!("see what it is waiting for; if it is stuck, kill {}, which frees the lock", holder.pid),
        ));
    }
    let workers =
        snapshot.processes.iter().filter(|p| p.role == Role::Worker && p.liveness == Liveness::Alive).count();
    let workers = u64::try_from(workers).unwrap_or(u64::MAX);
    match inside.sentinel_descriptors {
        // At most a quarter of its descriptors are used for watching.
        Some(limit) if workers.saturating_sub(1) > limit / 4 => checks.push(Check::finding(
            format!("the sentinel may open {limit} descriptors, too few to watch {workers} workers: some deaths are seen late"),
            "raise worker_rlimit_nofile or the service's LimitNOFILE",
        )),
        Some(limit) => checks.push(Check::good(format!("the sentinel may open {limit} descriptors"))),
        None => {}
    }
}
