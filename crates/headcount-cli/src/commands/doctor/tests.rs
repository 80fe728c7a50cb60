//! What `doctor` thinks of what it finds, and how it says so.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use headcount::{
    Holder, KernelFeatures, Kind, Liveness, ProcessStatus, RegistryInfo, Role, Snapshot, State,
    kernel_features,
};

use super::check::{FileFacts, FileKind, Level, Section};
use super::registry::{Inside, RegistryFacts};
use super::{host, leftovers, registry, text};

fn kernel() -> KernelFeatures {
    let mut kernel = kernel_features();
    kernel.release = "6.18.4".into();
    (kernel.pidfd, kernel.exit_info) = (true, Some(true));
    (kernel.descriptors, kernel.most_descriptors) = (1024, 524_288);
    kernel
}

fn file(kind: FileKind, mode: u32) -> FileFacts {
    FileFacts { kind, uid: 0, mode, links: 1, size: 790_528, identity: (7, 9) }
}

/// A registry in which a master and a worker are alive, and the worker runs a callback.
fn healthy() -> RegistryFacts {
    let mut snapshot = Snapshot::new("nginx");
    snapshot.processes = vec![process(Role::Master, 10), process(Role::Worker, 11)];
    let mut holder = Holder::new(11);
    holder.callback = Some((Kind::WorkerStarted, Duration::ZERO));
    snapshot.holder = Some(holder);
    let mut info = RegistryInfo::default();
    (info.format, info.slots, info.journal_records, info.runs) = (1, 1024, 4096, 1);
    (info.created_ns, info.boot_id) = (1_700_000_000_000_000_000, [1, 2]);
    info.of_this_boot = Some(true);
    RegistryFacts {
        path: "/run/headcount/nginx.registry".into(),
        registry: Ok(file(FileKind::Regular, 0o644)),
        lock: Ok(file(FileKind::Regular, 0o600)),
        inside: Ok(Inside { info, snapshot, sentinel_descriptors: Some(1024) }),
    }
}

impl RegistryFacts {
    fn inside(&mut self) -> &mut Inside {
        self.inside.as_mut().expect("it can be read")
    }

    fn kill_all(&mut self) {
        for p in &mut self.inside().snapshot.processes {
            (p.liveness, p.state) = (Liveness::Gone, State::Died);
        }
    }
}

fn process(role: Role, pid: u32) -> ProcessStatus {
    ProcessStatus::new(role, pid, State::Serving)
}

fn said(sections: &[Section], removed: &[PathBuf]) -> String {
    anstream::adapter::strip_str(&text::text(sections, removed)).to_string()
}

/// The one thing that is wrong, and how to fix it.
#[track_caller]
fn finding(section: &Section) -> (String, String) {
    let found: Vec<_> = section.checks.iter().filter(|check| check.level == Level::Finding).collect();
    let [check] = found.as_slice() else { panic!("{section:#?}") };
    (check.text.clone(), check.fix.clone().expect("a fix"))
}

#[track_caller]
fn finds(section: &Section, text: &str, fix: &str) {
    let found = finding(section);
    assert!(found.0.contains(text) && found.1.contains(fix), "{found:?}");
}

#[test]
fn all_is_well() {
    let folder = host::folder(Path::new("/run/headcount"), &Ok(file(FileKind::Folder, 0o755)), true);
    let sections = [host::kernel(&kernel()), folder, registry::judge(&healthy())];
    insta::assert_snapshot!(said(&sections, &[]));
    insta::assert_snapshot!(
        serde_json::to_string_pretty(&text::document(&kernel(), &sections, &[])).expect("json")
    );
}

#[test]
fn many_problems() {
    let mut kernel = kernel();
    (kernel.pidfd, kernel.exit_info, kernel.most_descriptors) = (false, Some(false), u64::MAX);
    let folder = host::folder(Path::new("/run/headcount"), &Ok(file(FileKind::Folder, 0o777)), true);
    let mut facts = healthy();
    facts.kill_all();
    facts.inside().info.repairs = 2;
    facts.lock.as_mut().expect("there").mode = 0o644;
    let left = PathBuf::from("/run/headcount/old.registry");
    let checks =
        vec![leftovers::judge(&left, &[registry::beside(&left, ".lock"), registry::beside(&left, ".wake")])];
    let left = Section { subject: "registry /run/headcount/old.registry".into(), checks };
    let sections = [host::kernel(&kernel), folder, registry::judge(&facts), left];
    insta::assert_snapshot!(said(&sections, &["/run/headcount/gone.registry".into()]));
}

#[test]
fn folders() {
    let of = |path: &str, kind, mode, uid| {
        host::folder(Path::new(path), &Ok(FileFacts { uid, ..file(kind, mode) }), true)
    };
    finds(&of("/x", FileKind::Folder, 0o770, 0), "others could replace", "chmod go-w /x");
    finds(&of("/x", FileKind::Regular, 0o644, 0), "is a regular file", "remove /x");
    finds(&of("/dev/shm/headcount-1000", FileKind::Folder, 0o755, 7), "uid 1000", "chown 1000");
    finds(&of("/run/user/1000/headcount", FileKind::Folder, 0o755, 7), "uid 1000", "chown 1000");
    finds(&of("/run/headcount", FileKind::Folder, 0o755, 7), "uid 0", "chown 0");
    for (path, mode, uid) in
        [("/x", 0o755, 7), ("/dev/shm", 0o1777, 0), ("/dev/shm/headcount-1000", 0o755, 1000)]
    {
        assert_eq!(of(path, FileKind::Folder, mode, uid).checks[0].level, Level::Good, "{path}");
    }
    let missing = || Err(io::Error::from(io::ErrorKind::NotFound));
    assert_eq!(host::folder(Path::new("/tmp/not-there"), &missing(), true).checks[0].level, Level::Note);
    finds(&host::folder(Path::new("/not/there"), &missing(), true), "no server", "mkdir -p /not/there");
    let forbidden = || Err(io::Error::from(io::ErrorKind::PermissionDenied));
    finds(&host::folder(Path::new("/x"), &forbidden(), true), "cannot be read", "owner");
    assert_eq!(host::folder(Path::new("/x"), &forbidden(), false).checks[0].level, Level::Note);
}

#[test]
fn files() {
    let judge = |change: fn(&mut RegistryFacts)| {
        let mut facts = healthy();
        change(&mut facts);
        registry::judge(&facts)
    };
    finds(&judge(|f| f.registry = Ok(file(FileKind::Regular, 0o666))), "others may write", "chmod 0644");
    finds(&judge(|f| f.registry.as_mut().expect("there").links = 2), "2 links", "remove");
    finds(&judge(|f| f.lock = Ok(file(FileKind::Fifo, 0o600))), "lock file: is a FIFO", "--clean");
    finds(&judge(|f| f.lock = Ok(file(FileKind::Regular, 0o644))), "keep the server from", "chmod 0600");
    finds(&judge(|f| f.lock.as_mut().expect("there").uid = 5), "lock file: belongs to uid 5", "--clean");
    finds(&judge(|f| f.lock = Err(io::ErrorKind::NotFound.into())), "no lock file", "restart its server");
}

#[test]
fn what_it_says_of_its_processes() {
    let mut facts = healthy();
    let worker = facts.inside().snapshot.processes.last().expect("a worker").clone();
    facts.inside().snapshot.processes.extend(vec![worker; 300]);
    finds(&registry::judge(&facts), "too few to watch 301 workers", "worker_rlimit_nofile");
    facts.inside().sentinel_descriptors = None;
    facts.inside().info.slots = 330;
    finds(&registry::judge(&facts), "302 of 330 slots", "option `slots`");

    let mut facts = healthy();
    let holder = facts.inside().snapshot.holder.as_mut().expect("the callback's");
    (holder.pid, holder.held_for) = (99, Duration::from_secs(40));
    finds(
        &registry::judge(&facts),
        "process 99 has held the node lock for 40 s, in a callback about",
        "kill 99",
    );

    let mut facts = healthy();
    facts.inside().info.of_this_boot = Some(false);
    facts.kill_all();
    finds(&registry::judge(&facts), "earlier boot", "--clean");
    assert!(facts.is_stale());

    let mut facts = healthy();
    facts.kill_all();
    finds(&registry::judge(&facts), "nobody is alive: 2 processes died", "--clean");
    assert!(facts.is_stale());
    // Its files may not be taken away from a helper.
    facts.inside().snapshot.processes.push(process(Role::Helper, 12));
    finds(&registry::judge(&facts), "2 processes died", "stop what is left");
    finds(&registry::judge(&facts), "; only a helper is left: process 12", "--clean");
    assert!(!facts.is_stale());
    facts.inside().snapshot.processes.pop();
    // Unknown is not gone.
    facts.inside().snapshot.processes[0] = ProcessStatus::new(Role::Master, 10, State::Unknown);
    let section = registry::judge(&facts);
    assert!(
        !facts.is_stale() && section.checks.iter().all(|check| check.level != Level::Finding),
        "{section:#?}"
    );
}
