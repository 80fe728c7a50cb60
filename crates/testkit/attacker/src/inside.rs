//! The attacks of a worker, by name, and how a worker of nginx comes to run one.

use std::ffi::{CStr, c_char};
use std::path::Path;
use std::time::Duration;

use crate::registry::Registry;
use crate::scribble::Whose;
use crate::{bells, descriptors, futexes, hostage, locks, scribble};

/// What all attacks are called.
pub const ATTACKS: &[&str] = &[
    "hostage",
    "ofd_locks",
    "record_locks",
    "flock",
    "noise",
    "extremes",
    "fixed",
    "ends",
    "strangers",
    "lock_words",
    "masters_lock",
    "siblings_lock",
    "strangers_lock",
    "joiners",
    "full",
    "holes",
    "bell_storm",
    "bell_silence",
    "futexes",
    "files",
];

/// Nobody attacks for longer, should a test end without it.
const LONGEST: Duration = Duration::from_secs(150);

/// Begins an attack with what this process has. Returns what it found to attack.
pub fn run(attack: &str, strangers: &[u32]) -> String {
    let registry = || Registry::inherited().ok_or("no registry is mapped");
    let on = |attack: &dyn Fn(Registry) -> String| registry().map_or_else(str::to_owned, attack);
    match attack {
        "hostage" => hostage::all(),
        "ofd_locks" => locks::open_description(),
        "record_locks" => locks::flood(),
        "flock" => locks::whole_file(),
        "noise" => on(&scribble::noise),
        "extremes" => on(&scribble::extremes),
        "fixed" => on(&scribble::fixed),
        "ends" => on(&scribble::ends),
        "strangers" => on(&|registry| scribble::strangers(registry, strangers)),
        "lock_words" => on(&|registry| scribble::lock_words(registry, strangers)),
        "masters_lock" => on(&|registry| scribble::one_lock_word(registry, Whose::Masters, strangers)),
        "siblings_lock" => on(&|registry| scribble::one_lock_word(registry, Whose::Siblings, strangers)),
        "strangers_lock" => on(&|registry| scribble::one_lock_word(registry, Whose::Strangers, strangers)),
        "joiners" => on(&scribble::joiners),
        "full" => on(&|registry| scribble::full(registry, strangers)),
        "holes" => on(&scribble::holes),
        "bell_storm" => bells::storm(),
        "bell_silence" => bells::silence(),
        "futexes" => on(&futexes::storm),
        "files" => files(),
        other => format!("no attack is called {other}"),
    }
}

/// Files by their inherited descriptors: cut off, made long, filled, opened again for writing.
fn files() -> String {
    let all = descriptors::inherited();
    let files = all.iter().filter(|d| d.what == descriptors::What::File);
    let mut done = Vec::new();
    for file in files {
        let again =
            std::fs::OpenOptions::new().write(true).open(format!("/proc/self/fd/{}", file.fd)).is_ok();
        // SAFETY: plain calls about a descriptor; eight bytes from memory that is there.
        let (written, cut, grown) = unsafe {
            (
                libc::pwrite(file.fd, b"nonsense".as_ptr().cast(), 8, 0) > 0,
                libc::ftruncate(file.fd, 0) == 0,
                libc::fallocate(file.fd, 0, 0, 1 << 30) == 0,
            )
        };
        done.push(format!("{}: opened {again}, written {written}, cut {cut}, grown {grown}", file.target));
    }
    done.join("; ")
}

/// For a worker of nginx, by LuaJIT: forks a child that attacks with all that it inherits, and returns its pid. When
/// the attack is under way, the child writes what it found into `DIRECTORY/attack-PID`.
///
/// # Safety
/// The arguments are C strings. `strangers` are pids with commas in between.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn attacker_begin(
    attack: *const c_char,
    directory: *const c_char,
    strangers: *const c_char,
) -> i32 {
    // SAFETY: the caller's promise.
    let text = |string| unsafe { CStr::from_ptr(string) }.to_string_lossy().into_owned();
    let (attack, directory, strangers) = (text(attack), text(directory), text(strangers));
    // SAFETY: the child of a worker, which has at most the library's own thread beside it, only runs the attack; what it
    // needs of the C library (memory, threads) works in a forked child.
    let pid = unsafe { libc::fork() };
    if pid == 0 {
        // SAFETY: a process may say of itself that it can be looked at; without it, it could not look into its own /proc.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 1) };
        descriptors::close_sockets();
        let strangers: Vec<u32> = strangers.split(',').filter_map(|pid| pid.parse().ok()).collect();
        let found = run(&attack, &strangers);
        announce(Path::new(&directory), &found);
        std::thread::sleep(LONGEST);
        // SAFETY: ends a child that is no nginx.
        unsafe { libc::_exit(0) };
    }
    pid
}

/// Whole, or not at all: it is written under another name.
fn announce(directory: &Path, found: &str) {
    let pid = std::process::id();
    let (part, whole) = (directory.join(format!("part-{pid}")), directory.join(format!("attack-{pid}")));
    if std::fs::write(&part, found).is_ok() {
        let _ = std::fs::rename(part, whole);
    }
}
