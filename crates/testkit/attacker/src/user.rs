//! What a local user does with files of his own, of whatever name, in whatever folder he may write to.

use std::ffi::CString;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::format::format;
use crate::random::Random;
use crate::registry::Registry;
use crate::{hostage, locks, scribble};

/// What all of a local user's attacks are called.
pub const ATTACKS: &[&str] = &[
    "fifos",
    "fifo_locks",
    "sockets",
    "links",
    "leases",
    "folders",
    "truncated",
    "huge",
    "largest",
    "many",
    "impostor",
    "noise",
    "record_locks",
];

/// What he has to do with.
#[derive(Debug)]
pub struct Ground {
    /// A folder that he may write to; it is made if it is not there.
    pub folder: PathBuf,
    /// The file name of the registry in place of which his things shall stand.
    pub name: String,
    /// A registry that he may read, to have one that looks real.
    pub model: Option<PathBuf>,
    /// Processes that are none of a node's.
    pub strangers: Vec<u32>,
}

impl Ground {
    fn registry(&self) -> PathBuf {
        self.folder.join(&self.name)
    }

    fn beside(&self, ending: &str) -> PathBuf {
        self.folder.join(format!("{}{ending}", self.name))
    }

    /// The registry, its lock file, and what a new registry is called until it is whole.
    fn all(&self) -> [PathBuf; 3] {
        [self.registry(), self.beside(".lock"), self.beside(".new")]
    }

    /// A registry that looks real.
    fn copy(&self) -> io::Result<File> {
        let model = self.model.as_ref().ok_or_else(|| io::Error::other("a model is needed"))?;
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create(true).truncate(false).mode(0o644).open(self.registry())?;
        // Zeroes of a sparse file stay holes.
        file.write_all_at(&fs::read(model)?, 0)?;
        Ok(file)
    }

    fn make_lock_file(&self) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o666)
            .open(self.beside(".lock"))
    }
}

/// Puts everything into place; what must go on goes on until this process ends. Returns what was done.
///
/// # Errors
/// The first thing that did not work.
pub fn begin(attack: &str, ground: &Ground) -> io::Result<String> {
    match fs::create_dir(&ground.folder) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    match attack {
        "fifos" => ground
            .all()
            .iter()
            .map(|path| fifo(path))
            .collect::<io::Result<Vec<_>>>()
            .map(|all| all.join(" ")),
        "fifo_locks" => {
            ground.copy()?;
            fifo(&ground.beside(".lock"))
        }
        "sockets" => ground.all().iter().try_fold(String::new(), |_, path| {
            // It stays open as long as the process is there.
            let _ = UnixListener::bind(path)?.into_raw_fd();
            Ok("sockets".to_owned())
        }),
        "links" => links(ground),
        "leases" => leases(ground),
        "folders" => ground.all().iter().try_for_each(fs::create_dir).map(|()| "folders".to_owned()),
        "truncated" => truncated(ground),
        // More than anybody may have, and as much as anybody may have.
        "huge" => sized(ground, 1 << 24, 1 << 24),
        "largest" => sized(ground, 65_536, 1_048_576),
        "many" => many(ground),
        "impostor" => impostor(ground),
        "noise" => {
            ground.copy()?;
            ground.make_lock_file()?;
            Ok(scribble::noise(Registry::map(&ground.registry())?))
        }
        "record_locks" => {
            ground.copy()?;
            let _ = ground.make_lock_file()?.into_raw_fd();
            let _ = OpenOptions::new().read(true).write(true).open(ground.registry())?.into_raw_fd();
            Ok(format!("{}, {}", locks::flood(), locks::whole_file()))
        }
        other => Err(io::Error::other(format!("no attack is called {other}"))),
    }
}

/// A FIFO that is held (see `hostage.rs`).
fn fifo(path: &Path) -> io::Result<String> {
    let name = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: a C string that is there.
    if unsafe { libc::mkfifo(name.as_ptr(), 0o666) } != 0 {
        return Err(io::Error::last_os_error());
    }
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    // SAFETY: one byte from memory that is there.
    unsafe { libc::write(file.as_raw_fd(), b"!".as_ptr().cast(), 1) };
    Ok(format!("held: {}", hostage::hold(file.into_raw_fd())))
}

/// To a device that never ends, to a FIFO that is held, and to nowhere.
fn links(ground: &Ground) -> io::Result<String> {
    let pipe = ground.folder.join("pipe");
    let held = fifo(&pipe)?;
    let [registry, lock, new] = ground.all();
    symlink("/dev/zero", &registry)?;
    symlink(&pipe, &lock)?;
    symlink("nowhere", &new)?;
    symlink(&pipe, ground.folder.join("pipe.registry"))?;
    symlink(&ground.folder, ground.folder.join("again.registry"))?;
    Ok(held)
}

/// A lease makes who opens the file wait till its holder gives it up, for 45 seconds at most.
fn leases(ground: &Ground) -> io::Result<String> {
    let files = [ground.copy()?, ground.make_lock_file()?];
    let take = |file: &File| {
        // SAFETY: plain calls; SIGIO, by which the holder is asked, is ignored.
        unsafe {
            libc::signal(libc::SIGIO, libc::SIG_IGN);
            libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, libc::F_WRLCK) == 0
        }
    };
    let taken = files.iter().filter(|file| take(file)).count();
    std::thread::spawn(move || {
        loop {
            files.iter().for_each(|file| _ = take(file));
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    Ok(format!("{taken} leases"))
}

/// Cut off and made whole again all the time, at any length.
fn truncated(ground: &Ground) -> io::Result<String> {
    let file = ground.copy()?;
    ground.make_lock_file()?;
    let whole = fs::read(ground.model.as_ref().expect("copied from it"))?;
    std::thread::spawn(move || {
        let mut random = Random::new(7);
        loop {
            let _ = file.set_len(random.below(whole.len() as u64 + 1));
            std::thread::sleep(Duration::from_micros(random.below(500)));
            let _ = file.write_all_at(&whole, 0);
        }
    });
    Ok("truncated".to_owned())
}

/// So many slots and journal records, in a file that is as long: a hole.
fn sized(ground: &Ground, slots: u32, records: u32) -> io::Result<String> {
    let file = ground.copy()?;
    ground.make_lock_file()?;
    let header = format().table("Header");
    let put =
        |name: &str, value: u32| file.write_all_at(&value.to_ne_bytes(), header.field(name).offset as u64);
    for (name, value) in [("slots", slots), ("generations", slots), ("journal_records", records)] {
        put(name, value)?;
    }
    put("slots_used", u32::MAX)?;
    put("generations_used", u32::MAX)?;
    file.write_all_at(&u64::MAX.to_ne_bytes(), header.field("head").offset as u64)?;
    let sizes = format().tables.iter().map(|table| match table.records.as_str() {
        "slots" | "generations" => u64::from(slots) * table.size as u64,
        "journal_records" => u64::from(records) * table.size as u64,
        number => number.parse::<u64>().unwrap_or(0) * table.size as u64,
    });
    let size = sizes.sum::<u64>().next_multiple_of(4096);
    file.set_len(size)?;
    Ok(format!("{size} bytes"))
}

/// More of them than anybody has descriptors for.
fn many(ground: &Ground) -> io::Result<String> {
    const MANY: usize = 3_000;
    let model = fs::read(ground.model.as_ref().ok_or_else(|| io::Error::other("a model is needed"))?)?;
    for i in 0..MANY {
        let path = ground.folder.join(format!("{i}-{}", ground.name));
        match i % 3 {
            0 => fs::write(path, b"HEADCNT\n")?,
            // Its first pages: the rest is a hole.
            1 if i < 300 => {
                let file = File::create(path)?;
                file.write_all_at(&model[..model.len().min(8192)], 0)?;
                file.set_len(model.len() as u64)?;
            }
            _ => fs::write(path, b"")?,
        }
    }
    Ok(format!("{MANY} files"))
}

/// The model as it is, but with strangers in place of all its processes: who signals "its master" hits a stranger.
fn impostor(ground: &Ground) -> io::Result<String> {
    drop(ground.copy()?);
    ground.make_lock_file()?;
    let registry = Registry::map(&ground.registry())?;
    let (slots, slot) = registry.records("Slot");
    let taken: Vec<usize> =
        slots.into_iter().filter(|&at| registry.get(at, slot.field("role")) != 0).collect();
    for (i, &at) in taken.iter().enumerate() {
        let pid = ground.strangers.get(i % ground.strangers.len().max(1)).copied().unwrap_or(1);
        scribble::name(registry, at, slot, pid);
    }
    let (generations, generation) = registry.records("Generation");
    let first = ground.strangers.first().copied().unwrap_or(1);
    for at in generations {
        if registry.get(at, generation.field("phase")) != 0 {
            registry.set(at, generation.field("master_pid"), u64::from(first));
        }
    }
    Ok(format!("{} processes", taken.len()))
}
