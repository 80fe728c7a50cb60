//! How a process comes to its node: the same one again, a new one under a name of its own, or one without files; and
//! how it becomes its master.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::{Acquire, Release};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::engine::inner::{Inner, Settings};
use crate::engine::node_lock::{Operation, Wait};
use crate::engine::process::{NoticeLevel, relock};
use crate::engine::session::Session;
use crate::engine::tables::NewGeneration;
use crate::error::{Error, ErrorKind, Result};
use crate::event::{Cause, Role};
use crate::lifecycle::{Facts, Phase, SlotFacts};
use crate::registry::header::boot_id;
use crate::registry::layout::Geometry;
use crate::registry::store::{LONGEST_OPENING, Opened, Store};
use crate::sys::atomic::Ordering::Relaxed;
use crate::sys::clock;
use crate::sys::grown::Grown;
use crate::sys::identity::{Identity, Liveness};
use crate::sys::per_process::PerProcess;
use crate::sys::process;

/// What is asked for: options that were checked.
pub(crate) struct Request {
    pub(crate) name: String,
    pub(crate) path: PathBuf,
    pub(crate) geometry: Geometry,
    pub(crate) settings: Settings,
    /// The master that this one takes over from, by its word.
    pub(crate) predecessor: Option<u32>,
}

/// Every node that this process or one that it was forked from has open. Nothing is ever taken out; a list that only
/// grows at its head needs no lock, which a forked child could find locked for ever.
static OPEN: Grown<Arc<Inner>> = Grown::new();
/// Of the threads of one process, one opens at a time.
static OPENING: PerProcess<Mutex<()>> = PerProcess::new();

/// The node of this process that has the lock file at `path` open, if there is one. Then nobody here may open it once
/// more: closing that would drop the proof of membership.
pub(crate) fn with_lock_file(path: &Path) -> Option<&'static Arc<Inner>> {
    OPEN.iter().find(|inner| inner.store.has_lock_file(path))
}

/// The same node, as what is kept until this process ends.
pub(crate) fn kept(inner: &Arc<Inner>) -> Option<&'static Inner> {
    OPEN.iter().find(|open| Arc::ptr_eq(open, inner)).map(Arc::as_ref)
}

/// The node of this process that has the registry at `path` open, if there is one.
pub(crate) fn with_registry(path: &Path) -> Option<&'static Arc<Inner>> {
    OPEN.iter().find(|inner| inner.store.lies_at(path))
}

/// From here on it is open until the process ends.
pub(crate) fn keep(inner: &Arc<Inner>) {
    OPEN.push(inner.clone());
}

/// Opens the node.
pub(crate) fn open(request: &Request) -> Result<Arc<Inner>> {
    let _turn = relock(OPENING.get(|_| Mutex::new(())));
    let same = |inner: &&Arc<Inner>| inner.wanted == request.path || inner.store.lies_at(&request.path);
    if let Some(inner) = OPEN.iter().find(same) {
        // The same master again, at a reload.
        if inner.store.is_missing() && inner.process().master().is_some() {
            return Ok(replace(inner, request).unwrap_or_else(|| inner.clone()));
        }
        inner.set_settings(request.settings);
        inner.publish_settings();
        if !is_name_of(&inner.name, &request.name) {
            inner.notice(NoticeLevel::Error, other_name(&request.path, &inner.name, &request.name));
        }
        if let Some(text) = inner.shortfall.get() {
            inner.notice(NoticeLevel::Error, text.clone());
        }
        let process = inner.process();
        if process.slots().is_empty() && process.inherited_master.is_none() {
            // A master that had left (the server was reconfigured to do without), and is back.
            claim_master(inner, request.predecessor)?;
        }
        return Ok(inner.clone());
    }
    let inner = open_files(request).or_else(|error| {
        if error.kind() == ErrorKind::InvalidOption {
            return Err(error);
        }
        without_files(request, &error)
    })?;
    go_on_from_relative(&inner, request);
    inner.publish_settings();
    OPEN.push(inner.clone());
    Ok(inner)
}

/// The registry of a node that runs was removed: a new one goes on where it was. `None`: it cannot be made now.
fn replace(old: &Arc<Inner>, request: &Request) -> Option<Arc<Inner>> {
    let told = |why: &Error| {
        let text = format!(
            "{} was removed while its server runs, so `headcount` cannot see this node, and another one cannot be made: {why}",
            old.place()
        );
        old.notice(NoticeLevel::Error, text);
    };
    // From here on it is kept whatever comes: closing its lock file, which may be the old one's, would drop the proof of
    // membership.
    let new = open_files(request).inspect_err(told).ok()?;
    go_on(&new, old, Cause::Reload);
    if let Some(id) = old.process().begun() {
        new.process().set_begun(id, old.process().expected_of(id));
    }
    new.publish_settings();
    OPEN.push(new.clone());
    Some(new)
}

/// The same at a binary upgrade: the old registry is only in the memory of the server that this one takes over from.
fn go_on_from_relative(new: &Arc<Inner>, request: &Request) {
    let header = new.header();
    let is_new = header.head.load(Relaxed) == 0 && header.runs.load(Relaxed) == 0;
    let Some(path) = new.store.path.as_deref().filter(|_| is_new) else { return };
    // The first of them is this very process.
    let kin = relatives(request.predecessor);
    let Some(store) = kin.iter().skip(1).find_map(|member| Store::removed(path, member)) else { return };
    let old = Arc::new(Inner::new(store, new.name.clone(), request.path.clone(), request.settings));
    OPEN.push(old.clone());
    match claim_master(&old, request.predecessor) {
        Ok(None) => {
            go_on(new, &old, Cause::Upgrade);
            new.process().upgrades.store(true, Release);
        }
        // Another server's, by now.
        Ok(Some(_)) => {}
        Err(error) => new.notice(NoticeLevel::Warning, error.to_string()),
    }
}

/// The new registry takes over number and journal of one that was removed. The workers that have mapped the old one stay in
/// that, and leave in favour of a generation that is only there for this.
fn go_on(new: &Inner, old: &Arc<Inner>, cause: Cause) {
    new.store.region.will_go_on_from(&old.store.region);
    let process = old.process();
    let wait = Wait::For(old.settings().lock_timeout.min(LONGEST_OPENING));
    let superseded = Session::begin(old, wait, Operation::Open).and_then(|mut session| {
        let last = session.facts().generations.iter().map(|g| g.id).max().unwrap_or(0);
        // While nobody writes into the old one.
        new.store.region.go_on_from(&old.store.region);
        session.new_generation(NewGeneration {
            id: last.saturating_add(1),
            cause,
            phase: Phase::Committed,
            expected: 0,
            master: process.master(),
            master_pid: process.identity.pid,
            previous_run: None,
        })
    });
    if let Err(error) = superseded {
        new.notice(NoticeLevel::Warning, error.to_string());
        // Whoever holds its lock may write one more event, which is lost then.
        new.store.region.go_on_from(&old.store.region);
    }
    new.notice(
        NoticeLevel::Error,
        format!(
            "{}: its registry was removed while its server runs; a new one was made, in which the workers of before are not \
             counted (find what removes it: RuntimeDirectory= of a systemd unit, tmpfiles.d, RemoveIPC=)",
            new.place()
        ),
    );
}

fn open_files(request: &Request) -> Result<Arc<Inner>> {
    const MOST_NAMESAKES: u32 = 64;
    let mut taken = None;
    for number in 1..=MOST_NAMESAKES {
        let (path, name) = match number {
            1 => (request.path.clone(), request.name.clone()),
            _ => namesake(&request.path, &request.name, number),
        };
        // By another name: it is ours already, for another server of this process.
        if OPEN.iter().any(|inner| inner.store.lies_at(&path)) {
            continue;
        }
        let relatives = relatives(request.predecessor);
        let timeout = request.settings.lock_timeout;
        let (store, remarks) = match Store::open(&path, &name, request.geometry, timeout, &relatives)? {
            Opened::Ours(store, remarks) => (store, remarks),
            Opened::Taken => {
                taken.get_or_insert_with(|| ("another server is just starting under it".to_owned(), name));
                continue;
            }
        };
        let inner = Arc::new(Inner::new(*store, name, request.path.clone(), request.settings));
        for remark in remarks {
            inner.notice(NoticeLevel::Error, remark);
        }
        let Some(stranger) = claim_master(&inner, request.predecessor)? else {
            if let Some((by, name)) = taken {
                inner.falls_short(format!(
                    "node {name} is in use: {by}. This server is tracked as node {}; give it a name of its own with the \
                     option `node`",
                    inner.name
                ));
            }
            return Ok(inner);
        };
        taken.get_or_insert_with(|| (stranger, inner.name.clone()));
    }
    Err(Error::new(
        ErrorKind::InUse,
        format!(
            "{} and its {MOST_NAMESAKES} namesakes are in use by other servers: give this one a name of its own with the \
             option `node`",
            request.path.display()
        ),
    ))
}

/// The server must run whatever is wrong with the file.
fn without_files(request: &Request, why: &Error) -> Result<Arc<Inner>> {
    let store = Store::anonymous(&request.name, request.geometry).map_err(|error| {
        let text = format!(
            "{why}; nor can the node {} run on memory of its own: {error} (allow its server more memory and descriptors, or set \
             the option `slots` lower)",
            request.name
        );
        Error::new(error.kind(), text)
    })?;
    let inner = Arc::new(Inner::new(store, request.name.clone(), request.path.clone(), request.settings));
    inner.falls_short(format!(
        "{why}; the node {} runs on memory of its own: counts and callbacks work, no program outside can see it, and a binary \
         upgrade or restart will not know of it",
        request.name
    ));
    claim_master(&inner, None)?;
    Ok(inner)
}

fn namesake(path: &Path, name: &str, number: u32) -> (PathBuf, String) {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let file = match path.extension() {
        Some(extension) => format!("{stem}-{number}.{}", extension.to_string_lossy()),
        None => format!("{stem}-{number}"),
    };
    (path.with_file_name(file), format!("{name}-{number}"))
}

/// Whether a server that asked for the name `asked` can have got this one.
pub(crate) fn is_name_of(name: &str, asked: &str) -> bool {
    let more = name.strip_prefix(asked);
    more.is_some_and(|more| {
        more.is_empty() || more.strip_prefix('-').is_some_and(|n| n.parse::<u32>().is_ok())
    })
}

/// Why it did not.
pub(crate) fn other_name(path: &Path, name: &str, asked: &str) -> String {
    format!(
        "{} is the registry of node {name} as long as that lives, so it cannot be that of node {asked} (restart the server, \
         or set another `path` with the name)",
        path.display()
    )
}

/// The live masters of a table that are not this process's kin. Kin is this very process, its parent, and who it was told
/// to take over from: each by its identity, since a number is soon somebody else's.
fn strangers(facts: &Facts, predecessor: Option<u32>) -> impl Iterator<Item = &SlotFacts> {
    let kin = relatives(predecessor);
    let masters = facts.slots.iter().filter(|s| s.role == Role::Master && s.liveness != Liveness::Gone);
    masters.filter(move |s| !kin.iter().any(|k| k.is(&s.identity)))
}

fn relatives(predecessor: Option<u32>) -> Vec<Identity> {
    let mut kin = vec![Identity::own()];
    kin.extend(Identity::parent());
    kin.extend(predecessor.map(Identity::of));
    kin
}

/// Makes this process a master of the node. `Some`: another, unrelated one has it, in words.
fn claim_master(inner: &Arc<Inner>, predecessor: Option<u32>) -> Result<Option<String>> {
    bury_other_boots(inner);
    // Of those who look alive, one may be about to end: a server that is killed and started again at once. It is waited for,
    // once, since nobody can tell how long that takes: its memory is given back meanwhile.
    const PATIENCE: Duration = Duration::from_secs(2);
    let mut session = begin_opening(inner)?;
    if let Some(ending) = ending_master(session.facts(), predecessor) {
        drop(session);
        process::wait_for_end(ending.as_fd(), PATIENCE);
        session = begin_opening(inner)?;
    }
    inner.free_unreadable(session.facts(), true);
    let is_ours = inner.store.has_kin(&relatives(predecessor));
    session.heal(is_ours);
    // Between relatives nobody stands: somebody may write such names all the time. But a server that was started by a worker
    // of the node is the child of a member, and yet another server: the kernel says so, by its parent's parent.
    let grandparent = if is_ours { process::parent_of(process::parent_pid()) } else { None };
    let blocks =
        |s: &&SlotFacts| !is_ours || grandparent == Some(s.pid()) && inner.store.is_proven(&s.identity);
    if let Some(stranger) = strangers(session.facts(), predecessor).find(blocks) {
        let pid = stranger.pid();
        return Ok(Some(match stranger.liveness {
            Liveness::Unknown(doubt) => {
                format!("its master (process {pid}) may be alive, which is not known: {}", doubt.reason())
            }
            _ => format!("its master is process {pid}, of another server"),
        }));
    }
    session.claim_master()?;
    inner.header().namespace.store(inner.process().identity.namespace, Relaxed);
    Ok(None)
}

fn begin_opening(inner: &Arc<Inner>) -> Result<Session> {
    Session::begin(inner, Wait::For(inner.settings().lock_timeout.min(LONGEST_OPENING)), Operation::Open)
}

/// A master of the table, none of our kin, that is about to end.
fn ending_master(facts: &Facts, predecessor: Option<u32>) -> Option<OwnedFd> {
    let namespace = Identity::own().namespace;
    let is_ending = |s: &&SlotFacts| {
        s.liveness == Liveness::Alive
            && s.identity.namespace == namespace
            && (process::is_killed(s.pid()) || process::is_ending(s.pid()))
    };
    let ending = strangers(facts, predecessor).find(is_ending)?;
    process::open_pidfd(ending.pid()).ok()
}

/// Of another boot nobody is alive, whoever has the same id and birth in this one.
fn bury_other_boots(inner: &Inner) {
    let header = inner.header();
    let then = header.boot_id.each_ref().map(|word| word.load(Relaxed));
    let now = boot_id();
    if then == now || now == [0, 0] {
        return;
    }
    header.earlier_boots.store(header.head.load(Relaxed), Relaxed);
    for index in 0..inner.view().used_slots().len() {
        inner.bury(u32::try_from(index).unwrap_or(u32::MAX));
    }
    header.lock.store(0, Relaxed);
    for (word, value) in header.boot_id.iter().zip(now) {
        word.store(value, Relaxed);
    }
}

/// Makes this process the master, if the one that opened the node was only its parent that went into the
/// background. `Ok(true)`: it has become the master.
pub(crate) fn adopt_master(inner: &Arc<Inner>, wait: Wait) -> Result<bool> {
    let me = inner.process();
    if me.is_no_master.load(Acquire) || !me.slots().is_empty() {
        return Ok(false);
    }
    let Some((old, parent)) = me.inherited_master else { return Ok(false) };
    // The parent of a process that goes into the background ends at once. One that is still there after this time, and
    // not about to end, is a master, and we are a child of its own. On a machine that has too much to do, "at once"
    // takes its time, and its memory that is given back takes more.
    const PATIENCE: Duration = Duration::from_millis(500);
    // Either it is about to end, or this process has begun a session of its own, as who goes into the background does.
    const PATIENCE_IF_IT_SURELY_ENDS: Duration = Duration::from_secs(10);
    let lives = || parent.liveness() != Liveness::Gone;
    let pidfd = process::open_pidfd(parent.pid);
    let wait_for_end = |patience| match &pidfd {
        Ok(pidfd) if lives() => process::wait_for_end(pidfd.as_fd(), patience),
        Ok(_) => {}
        // A sandbox without pidfds, or no descriptor left: nothing tells, so it is looked for.
        Err(_) => {
            let begun = clock::boot_ns();
            while lives() && clock::elapsed_since(begun) < patience {
                std::thread::sleep(Duration::from_millis(1));
            }
        }
    };
    wait_for_end(PATIENCE);
    if lives() && (process::leads_a_session() || process::is_ending(parent.pid)) {
        wait_for_end(PATIENCE_IF_IT_SURELY_ENDS);
    }
    if lives() {
        me.is_no_master.store(true, Release);
        return Ok(false);
    }
    let mut session = Session::begin(inner, wait, Operation::Begin)?;
    session.claim_master()?;
    session.inherit_generations(old);
    // The old one's slot has nothing left to tell.
    session.tidy();
    inner.store.opened();
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_namesake_keeps_its_suffix() {
        let (path, name) = namesake(Path::new("/run/headcount/nginx.registry"), "nginx", 2);
        assert_eq!(path, Path::new("/run/headcount/nginx-2.registry"));
        assert_eq!(name, "nginx-2");
    }
}
