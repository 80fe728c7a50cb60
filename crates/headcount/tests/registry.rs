//! Row 30 of the contract: whatever is wrong with the registry's file, the server starts and serves, a notice names
//! the file and the mend, and nothing but the registry is touched.

mod family;

use std::cell::Cell;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::SeqCst;

use headcount::{Begin, Cursor, ErrorKind, Join, Options, Wait};

use family::callbacks::Callbacks;
use family::kernel::{mount_tmpfs, no_mounts};
use family::{Child, Place, alone, become_nobody, fork, is_root, registry, skip};

/// What came of opening a node in a new process.
struct Opened {
    /// The registry's file; `None` if the node runs on memory of its own.
    path: Option<PathBuf>,
    notices: String,
    /// Still there, if it was to stay.
    process: Child,
}

/// Opens a node in a process of its own, and lets it live: the server must start and serve in each case.
fn open(options: Options, before: impl FnOnce()) -> Opened {
    let mut process = fork(|line| {
        before();
        let master = options.open().expect("it opens in each case");
        let node = master.node();
        let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("begin");
        transitions.run(|_| ());
        master.commit(generation.id());
        let callbacks = Callbacks::new();
        let mut child = family::worker::worker(
            &generation,
            callbacks,
            family::worker::Habit::Serving,
            Join::worker(Some(0)),
        );
        assert_eq!(node.snapshot().total, 1);
        line.say(&node.path().map_or_else(String::new, |p| p.display().to_string()));
        line.say(&node.take_notices().into_iter().map(|n| n.text).collect::<Vec<_>>().join("; "));
        line.hear();
        child.tell("leave");
        child.ended_well();
        master.leave(Wait::Timeout).expect("leave").run(|_| ());
        0
    });
    let path = process.hear().expect("a path");
    let notices = process.hear().expect("notices");
    assert!(!path.contains("panicked"), "{path}");
    Opened { path: Some(PathBuf::from(path)).filter(|p| !p.as_os_str().is_empty()), notices, process }
}

impl Opened {
    fn ends(&mut self) -> &mut Opened {
        self.process.say("end");
        self.process.ended_well();
        self
    }

    /// It has its file, and the notice says all this.
    #[track_caller]
    fn with_file(&mut self, parts: &[&str]) {
        assert!(self.path.is_some(), "no file: {}", self.notices);
        self.says(parts);
    }

    /// It runs on memory of its own, and the notice says why.
    #[track_caller]
    fn without_file(&mut self, parts: &[&str]) {
        assert_eq!(self.path, None, "{}", self.notices);
        self.says(&["runs on memory of its own"]);
        self.says(parts);
    }

    #[track_caller]
    fn says(&self, parts: &[&str]) {
        for part in parts {
            assert!(self.notices.contains(part), "{part:?} is not in {:?}", self.notices);
        }
        assert!(!parts.is_empty() || self.notices.is_empty(), "{}", self.notices);
    }
}

/// A file as it must still be afterwards.
struct Untouched {
    path: PathBuf,
    content: Vec<u8>,
    meta: (u64, u32, u32, i64, i64),
}

impl Untouched {
    fn new(path: &Path, content: &[u8]) -> Untouched {
        std::fs::write(path, content).expect("write");
        Untouched::now(path)
    }

    fn now(path: &Path) -> Untouched {
        Untouched {
            path: path.to_owned(),
            content: std::fs::read(path).expect("read"),
            meta: Untouched::meta(path),
        }
    }

    fn meta(path: &Path) -> (u64, u32, u32, i64, i64) {
        let meta = std::fs::symlink_metadata(path).expect("look");
        (meta.ino(), meta.mode(), meta.uid(), meta.mtime(), meta.mtime_nsec())
    }

    #[track_caller]
    fn check(&self) {
        assert_eq!(Untouched::meta(&self.path), self.meta, "{}", self.path.display());
        assert!(
            std::fs::read(&self.path).expect("read") == self.content,
            "{} has changed",
            self.path.display()
        );
    }
}

fn mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("set a mode");
}

/// The names in the place's folder.
fn names(place: &Place) -> Vec<String> {
    let entries = std::fs::read_dir(place.folder()).expect("look");
    let mut names: Vec<_> =
        entries.map(|e| e.expect("an entry").file_name().into_string().expect("a name")).collect();
    names.sort();
    names
}

#[test]
fn a_folder_that_is_missing_is_made() {
    let _alone = alone();
    let place = Place::new();
    let folder = place.folder().join("new");
    open(place.options().path(folder.join("x.registry")), || ()).ends().with_file(&[]);
    assert_eq!(std::fs::metadata(&folder).expect("look").mode() & 0o7022, 0);
    assert_eq!(std::fs::metadata(folder.join("x.registry")).expect("look").mode() & 0o7777, 0o644);
    assert_eq!(std::fs::metadata(folder.join("x.registry.lock")).expect("look").mode() & 0o7777, 0o600);
    // But no more than that one.
    let far = place.folder().join("a/b/x.registry");
    open(place.options().path(&far), || ()).ends().without_file(&["a/b", "make that folder"]);
    assert!(!place.folder().join("a").exists());
}

#[test]
fn a_umask_opens_and_closes_nothing() {
    let _alone = alone();
    for mask in [0, 0o077] {
        let place = Place::new();
        let umask = || _ = rustix::process::umask(rustix::fs::Mode::from_raw_mode(mask));
        open(place.options(), umask).ends().with_file(&[]);
        let mode = |suffix: &str| {
            std::fs::metadata(place.folder().join(format!("node.registry{suffix}"))).expect("look").mode()
                & 0o7777
        };
        assert_eq!((mode(""), mode(".lock") & 0o077), (0o644, 0), "umask {mask:o}");
        // And it can be used again.
        open(place.options(), || ()).ends().with_file(&[]);
    }
}

#[test]
fn a_folder_that_may_not_be_written_is_left_alone() {
    let _alone = alone();
    if !is_root() {
        return skip("only root can become somebody else");
    }
    let place = Place::new();
    mode(place.folder(), 0o755);
    open(place.options(), become_nobody)
        .ends()
        .without_file(&["node.registry", "as the owner of that folder"]);
    assert!(names(&place).is_empty());
    // Nor is one used in which everybody may swap files.
    mode(place.folder(), 0o777);
    open(place.options(), || ()).ends().without_file(&["mode 0777", "others could swap the registry"]);
    assert!(names(&place).is_empty());
    // With the sticky bit, as /tmp has it, they may not.
    mode(place.folder(), 0o1777);
    open(place.options(), || ()).ends().with_file(&[]);
}

#[test]
fn a_file_that_is_no_registry_is_left_alone() {
    let _alone = alone();
    let place = Place::new();
    open(place.options(), || ()).ends().with_file(&[]);
    let genuine = std::fs::read(place.registry()).expect("read");
    let garbage: Vec<u8> = (0..genuine.len()).map(|i| (i * 7 + i / 256) as u8).collect();
    let cases: [(&str, &[u8], &str); 5] = [
        ("empty", b"", "truncated"),
        ("a part of the first page", &genuine[..100], "truncated"),
        ("a text", b"user www-data;\n", "truncated"),
        ("garbage", &garbage, "no headcount registry"),
        ("another file", &[b'x'; 100_000], "no headcount registry"),
    ];
    for (what, content, why) in cases {
        // Beside a lock file, garbage of just this size would be a registry that somebody has spoiled.
        let _ = std::fs::remove_file(place.folder().join("node.registry.lock"));
        let file = Untouched::new(&place.registry(), content);
        eprintln!("{what}");
        open(place.options(), || ()).ends().without_file(&["node.registry", why, "remove it"]);
        file.check();
    }
    // The mend is what the notice says.
    std::fs::remove_file(place.registry()).expect("remove");
    open(place.options(), || ()).ends().with_file(&[]);
}

/// A registry of a node that was stopped, in which a word was changed.
fn spoiled(place: &Place, offset: usize, value: u32) {
    open(place.options(), || ()).ends();
    let mut content = std::fs::read(place.registry()).expect("read");
    content[offset..offset + 4].copy_from_slice(&value.to_le_bytes());
    std::fs::write(place.registry(), content).expect("write");
}

#[test]
fn a_registry_that_nobody_uses_is_made_anew_where_it_cannot_be_gone_on_with() {
    let _alone = alone();
    for (what, offset, value) in [
        ("format 99", 8, 99),
        ("option `slots` is 0", 12, 0),
        ("generations", 16, 5),
        ("journal_records", 20, 3),
    ] {
        let place = Place::new();
        spoiled(&place, offset, value);
        open(place.options(), || ()).ends().with_file(&[
            "node.registry",
            what,
            "a new one was made",
            "history is lost",
        ]);
        open(place.options(), || ()).ends().with_file(&[]);
    }
    // Cut behind its first page.
    let place = Place::new();
    open(place.options(), || ()).ends();
    let file = std::fs::OpenOptions::new().write(true).open(place.registry()).expect("open");
    file.set_len(8192).expect("truncate");
    open(place.options(), || ()).ends().with_file(&["8192 bytes", "a new one was made"]);
}

#[test]
fn a_registry_of_another_version_that_somebody_uses_is_left_to_them() {
    let _alone = alone();
    let place = Place::new();
    let mut first = open(place.options(), || ());
    registry::words(&place.registry())[1].fetch_add(96, SeqCst);
    let before = Untouched::now(&place.registry());
    open(place.options(), || ()).ends().without_file(&[
        "node.registry",
        "format 99",
        "stop the node that uses it",
    ]);
    assert_eq!(Untouched::meta(&place.registry()).0, before.meta.0, "it was not replaced");
    first.ends();
}

#[test]
fn other_sizes_take_effect_once_the_registry_is_gone() {
    let _alone = alone();
    let place = Place::new();
    open(place.options(), || ()).ends();
    open(place.options().slots(32), || ()).ends().with_file(&["keeps its 16 slots", "removed"]);
    std::fs::remove_file(place.registry()).expect("remove");
    open(place.options().slots(32), || ()).ends().with_file(&[]);
}

#[test]
fn a_registry_that_is_somebody_elses_is_left_alone() {
    let _alone = alone();
    if !is_root() {
        return skip("only root can give files away");
    }
    let place = Place::new();
    open(place.options(), || ()).ends();
    let path = place.registry();
    for name in [&path, &path.with_extension("registry.lock")] {
        std::os::unix::fs::chown(name, Some(65534), None).expect("give away");
        let meta = Untouched::meta(name);
        open(place.options(), || ()).ends().without_file(&[
            &name.display().to_string(),
            "uid 65534",
            "remove it",
        ]);
        assert_eq!(Untouched::meta(name).0, meta.0);
        std::os::unix::fs::chown(name, Some(0), None).expect("take back");
    }
    open(place.options(), || ()).ends().with_file(&[]);
    for (name, bits) in [(&path, 0o664), (&path, 0o646), (&path.with_extension("registry.lock"), 0o640)] {
        let before = std::fs::metadata(name).expect("look").mode();
        mode(name, bits);
        open(place.options(), || ())
            .ends()
            .without_file(&[&name.display().to_string(), &format!("{bits:o}")]);
        mode(name, before);
    }
    open(place.options(), || ()).ends().with_file(&[]);
}

#[test]
fn no_link_is_followed() {
    let _alone = alone();
    for suffix in ["registry", "registry.lock", "registry.new"] {
        let place = Place::new();
        let precious = Untouched::new(&place.folder().join("precious"), &[1; 20_000]);
        let name = place.registry().with_extension(suffix);
        symlink(&precious.path, &name).expect("link");
        let mut opened = open(place.options(), || ());
        match suffix {
            // Where a new file is made first; what was there before is removed.
            "registry.new" => opened.ends().with_file(&[]),
            _ => opened.ends().without_file(&[&name.display().to_string(), "symbolic link"]),
        }
        precious.check();
    }

    // A second name of a file elsewhere.
    let place = Place::new();
    let precious = place.folder().join("precious");
    std::fs::write(&precious, [1; 20_000]).expect("write");
    std::fs::hard_link(&precious, place.registry()).expect("link");
    let precious = Untouched::now(&precious);
    open(place.options(), || ()).ends().without_file(&["node.registry", "2 links"]);
    precious.check();
}

#[test]
fn what_is_no_file_is_left_alone() {
    let _alone = alone();
    let fifo = |path: &Path| {
        let mode = rustix::fs::Mode::from_raw_mode(0o600);
        rustix::fs::mknodat(rustix::fs::CWD, path, rustix::fs::FileType::Fifo, mode, 0).expect("make a pipe");
    };
    let socket = |path: &Path| drop(std::os::unix::net::UnixListener::bind(path).expect("make a socket"));
    let folder = |path: &Path| std::fs::create_dir(path).expect("make");
    type Make<'a> = &'a dyn Fn(&Path);
    let kinds: [(Make, &str); 3] = [(&fifo, "a FIFO"), (&socket, "a socket"), (&folder, "a directory")];
    for name in ["node.registry", "node.registry.lock"] {
        for (make, kind) in kinds {
            let place = Place::new();
            let path = place.folder().join(name);
            make(&path);
            let before = Untouched::meta(&path);
            if (name, kind) == ("node.registry", "a directory") {
                // That is no path of a file, so the option is wrong.
                let error = place.options().open().err().expect("a directory was accepted");
                assert_eq!(error.kind(), ErrorKind::InvalidOption, "{error}");
                assert_eq!(Untouched::meta(&path), before);
                continue;
            }
            // Nor is it opened, where a FIFO would have it wait for a writer.
            let why = format!("{name} is not a regular file but {kind}");
            open(place.options(), || ()).ends().without_file(&[&why, "remove it"]);
            assert_eq!(Untouched::meta(&path), before, "{why}");
            assert_eq!(names(&place), [name], "{why}: nothing was made beside it");
        }
    }
}

#[test]
fn a_full_and_a_read_only_file_system_are_called_so() {
    let _alone = alone();
    if let Some(why) = no_mounts() {
        return skip(why);
    }
    let place = Place::new();
    // Room for the lock file, none for a registry.
    let full = || {
        mount_tmpfs(place.folder(), false, "32k");
        std::fs::write(place.folder().join("ballast"), [0; 20_000]).expect("fill it");
    };
    let after = place.folder().to_owned();
    open(place.options(), full).ends().without_file(&["node.registry", "free some room"]);
    assert!(std::fs::read_dir(&after).expect("look").next().is_none(), "the mount was the child's own");
    open(place.options(), || mount_tmpfs(place.folder(), true, "1m"))
        .ends()
        .without_file(&["node.registry", "read-only"]);
    // One that was made while it could be written.
    let remount = || {
        mount_tmpfs(place.folder(), false, "1m");
        let mut first = open(place.options(), || ());
        first.ends().with_file(&[]);
        let target = std::ffi::CString::new(place.folder().to_str().expect("a path")).expect("no zero");
        let flags = libc::MS_REMOUNT | libc::MS_RDONLY;
        // SAFETY: a plain system call with a string that outlives it.
        let answer = unsafe {
            libc::mount(std::ptr::null(), target.as_ptr(), std::ptr::null(), flags, std::ptr::null())
        };
        assert_eq!(answer, 0, "remount: {}", std::io::Error::last_os_error());
    };
    open(place.options(), remount).ends().without_file(&["node.registry", "read-only"]);
}

#[test]
fn a_registry_grows_with_what_is_in_it() {
    let _alone = alone();
    let place = Place::new();
    // Where what is not written takes no room.
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder");
    let path = folder.path().join("node.registry");
    let used = || std::fs::metadata(&path).expect("look").blocks() * 512;
    let master = place.options().path(&path).slots(1024).journal_records(4096).open().expect("open");
    let node = master.node();
    let begin = || {
        let (generation, transitions) = master.begin(Begin::new(), Wait::Timeout).expect("begin");
        transitions.run(|_| ());
        master.commit(generation.id());
    };
    begin();
    assert!(used() <= 64 << 10, "{} bytes for one generation", used());
    (1..500).for_each(|_| begin());
    let (events, lost) = kept_and_lost(node);
    assert_eq!((events, lost), (500, 0));
    assert_eq!(node.snapshot().generations.len(), 500);
    assert!(used() < 200 << 10, "{} bytes: its slots are not used", used());
}

#[test]
fn a_file_system_that_fills_up_costs_events_and_nothing_else() {
    let _alone = alone();
    if let Some(why) = no_mounts() {
        return skip(why);
    }
    let place = Place::new();
    let mut child = fork(|line| {
        mount_tmpfs(place.folder(), false, "256k");
        let master = place.options().slots(1024).journal_records(4096).open().expect("open");
        let node = master.node();
        let ballast = place.folder().join("ballast");
        std::fs::write(&ballast, vec![0; 1 << 20]).expect_err("it fills up");
        let told = Cell::new(0);
        let begin = || {
            let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout)?;
            transitions.run(|_| told.set(told.get() + 1));
            Ok::<_, headcount::Error>(generation)
        };
        for _ in 0..300 {
            master.abandon(begin().expect("there is room for one at a time").id());
        }
        // What is told is the start of each, and at the next one's its end.
        let notices: Vec<String> = node.take_notices().into_iter().map(|n| n.text).collect();
        let is_said = |text: &str| notices.iter().filter(|notice| notice.contains(text)).count();
        assert_eq!(is_said("the file system is full"), 1, "{notices:?}");
        let join = || {
            let generation = begin().expect("there is room for 64");
            master.commit(generation.id());
            generation
                .join(Join::helper())
                .map(|(_, transitions)| transitions.run(|_| told.set(told.get() + 1)))
        };
        let full = (1..=64).find_map(|_| join().err()).expect("there is no room for 65");
        assert_eq!(full.kind(), ErrorKind::Full);
        assert!(full.to_string().contains("the file system is full, with room for 64 slots"), "{full}");
        let head = node.snapshot().head;
        assert_eq!(
            told.get() + 63,
            head,
            "every start of a generation was told, and those of helpers are not"
        );
        assert_eq!(kept_and_lost(node), (256, head - 256));
        std::fs::remove_file(&ballast).expect("make room");
        join().expect("there is room again");
        assert_eq!(kept_and_lost(node).0, 258);
        line.say("it lives");
        0
    });
    assert_eq!(child.hear().as_deref(), Some("it lives"));
    child.ended_well();
}

/// How many events the journal has, and how many it has lost.
fn kept_and_lost(node: &headcount::Node) -> (u64, u64) {
    let batch = node.events(&mut Cursor::oldest(), usize::MAX);
    (batch.events.len() as u64, batch.lost)
}

#[test]
fn a_registry_whose_lock_file_vanished_is_not_taken_from_those_who_use_it() {
    let _alone = alone();
    let place = Place::new();
    let mut first = open(place.options(), || ());
    let inode = Untouched::meta(&place.registry()).0;
    std::fs::remove_file(place.registry().with_extension("registry.lock")).expect("remove");
    // Who is alive is no matter of that file.
    let mut second = open(place.options(), || ());
    second.ends().with_file(&[&format!("its master is process {}", first.process.pid()), "node-2"]);
    assert_ne!(second.path, Some(place.registry()));
    assert_eq!(Untouched::meta(&place.registry()).0, inode, "the registry of the running node was replaced");
    first.ends();
    let mut third = open(place.options(), || ());
    third.ends().with_file(&[]);
    assert_eq!(third.path, Some(place.registry()));
    assert_eq!(Untouched::meta(&place.registry()).0, inode, "it went on with what was there");
}

#[test]
fn a_registry_that_was_removed_while_its_node_runs_is_made_anew() {
    let _alone = alone();
    let place = Place::new();
    let mut first = open(place.options(), || ());
    std::fs::remove_file(place.registry()).expect("remove");
    let mut second = open(place.options(), || ());
    second.with_file(&["node.registry", "removed while its node runs"]);
    // Neither has harmed the other: both still stop as they should.
    first.ends();
    second.ends();
}
