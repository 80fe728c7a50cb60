//! A machine that was suspended: `CLOCK_BOOTTIME` has gone on, and no other clock has. The kernel lets nobody move that clock of a
//! process that runs; so the function that such a process reads it by, which the kernel maps into each, is changed in its memory, and
//! in its memory only. What runs is what is shipped. Linux on x86-64.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::FileExt;
use std::process::{Command, Stdio};

/// Whose clocks are moved: all who talk of deadlines. (A server's are tried in the core's own tests.)
const WHOSE: [&str; 2] = ["headcount", CLAIMANT];
/// The program of `src/claimant`.
pub const CLAIMANT: &str = "headcount-campaign-claimant";

/// Where in the kernel's image there is what.
#[derive(Clone, Copy, Debug)]
pub struct Asleep {
    entry: usize,
    spare: usize,
}

/// Asks the kernel, and adds seconds if it is about `CLOCK_BOOTTIME` (7) and went well:
/// `mov eax, 228; syscall; cmp edi, 7; jne end; test eax, eax; jne end; mov rcx, SECONDS; add [rsi], rcx; end: ret`.
const CODE: [u8; 30] = [
    0xb8, 0xe4, 0, 0, 0, 0x0f, 0x05, 0x83, 0xff, 0x07, 0x75, 0x11, 0x85, 0xc0, 0x75, 0x0d, 0x48, 0xb9, 0, 0,
    0, 0, 0, 0, 0, 0, 0x48, 0x01, 0x0e, 0xc3,
];
const SECONDS: usize = 18;

impl Asleep {
    /// Finds it, and tries it.
    ///
    /// # Errors
    /// Why it cannot be done here.
    pub fn new() -> Result<Asleep, String> {
        if !cfg!(target_arch = "x86_64") {
            return Err("clocks can be moved on x86-64 only".to_owned());
        }
        let own = std::process::id() as i32;
        let (base, end) = image(own).ok_or("this process has no vdso")?;
        let mut bytes = vec![0; end - base];
        File::open("/proc/self/mem")
            .and_then(|file| file.read_exact_at(&mut bytes, base as u64))
            .map_err(|error| format!("/proc/self/mem: {error}"))?;
        let entry = symbol(&bytes, "__vdso_clock_gettime").ok_or("the vdso has no __vdso_clock_gettime")?;
        let spare = bytes.len() - 64;
        if bytes[spare..].iter().any(|byte| *byte != 0) {
            return Err("the vdso has no room at its end".to_owned());
        }
        let asleep = Asleep { entry, spare };
        asleep.prove()?;
        Ok(asleep)
    }

    /// Of a process that only tells its clock.
    fn prove(self) -> Result<(), String> {
        const LATER: u64 = 1000;
        let mut child = Command::new(claimant()?)
            .arg("--clock")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| format!("{CLAIMANT}: {error}"))?;
        let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("no pipes".to_owned());
        };
        let mut output = BufReader::new(output);
        let mut ask = || -> Result<f64, String> {
            let mut line = String::new();
            input
                .write_all(b"\n")
                .and_then(|()| output.read_line(&mut line))
                .map_err(|error| error.to_string())?;
            line.trim().parse().map_err(|_| format!("{line:?} is no time"))
        };
        let first = ask();
        self.shift(child.id() as i32, LATER);
        let second = ask();
        drop(input);
        let _ = child.wait();
        let passed = second? - first?;
        match (LATER as f64..LATER as f64 + 60.0).contains(&passed) {
            true => Ok(()),
            false => Err(format!("a clock that was to go on by {LATER} s went on by {passed} s")),
        }
    }

    /// From now on the clock of this process is so many seconds ahead of the kernel's. Of one that has ended, nothing is done.
    pub fn shift(self, pid: i32, seconds: u64) {
        let Some((base, _)) = image(pid) else { return };
        let Ok(memory) = OpenOptions::new().read(true).write(true).open(format!("/proc/{pid}/mem")) else {
            return;
        };
        let mut code = CODE;
        code[SECONDS..SECONDS + 8].copy_from_slice(&seconds.to_le_bytes());
        let way = (self.spare as i64 - (self.entry as i64 + 5)) as i32;
        let mut jump = [0xe9; 5];
        jump[1..].copy_from_slice(&way.to_le_bytes());
        // First where to, then how. It may have ended meanwhile.
        let _ = memory
            .write_all_at(&code, (base + self.spare) as u64)
            .and_then(|()| memory.write_all_at(&jump, (base + self.entry) as u64));
    }
}

/// Whether its clock is to be moved.
pub fn is_moved(pid: i32) -> bool {
    let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
    WHOSE.iter().any(|name| program.file_name() == Some(OsStr::new(name)))
}

/// Beside this program.
///
/// # Errors
/// It was not built.
pub fn claimant() -> Result<std::path::PathBuf, String> {
    let own = std::env::current_exe().map_err(|error| error.to_string())?;
    let path = own.with_file_name(CLAIMANT);
    match path.exists() {
        true => Ok(path),
        false => Err(format!("{} is missing: cargo build -p headcount-campaign", path.display())),
    }
}

/// Where the kernel's image is in the memory of a process.
fn image(pid: i32) -> Option<(usize, usize)> {
    let mut text = String::new();
    File::open(format!("/proc/{pid}/maps")).ok()?.read_to_string(&mut text).ok()?;
    let line = text.lines().find(|line| line.ends_with("[vdso]"))?;
    let (from, to) = line.split(' ').next()?.split_once('-')?;
    Some((usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?))
}

/// Where a function begins, in an image of 64 bits.
fn symbol(image: &[u8], name: &str) -> Option<usize> {
    let number = |at: usize, size: usize| -> Option<usize> {
        let mut bytes = [0; 8];
        bytes[..size].copy_from_slice(image.get(at..at + size)?);
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let (sections, size, count) = (number(0x28, 8)?, number(0x3a, 2)?, number(0x3c, 2)?);
    let section = |n: usize| sections + n * size;
    const DYNSYM: usize = 11;
    let symbols = (0..count).map(section).find(|at| number(at + 4, 4) == Some(DYNSYM))?;
    let texts = number(section(number(symbols + 0x28, 4)?) + 0x18, 8)?;
    let (from, length) = (number(symbols + 0x18, 8)?, number(symbols + 0x20, 8)?);
    (0..length / 24).map(|n| from + n * 24).find_map(|at| {
        let text = texts + number(at, 4)?;
        let is_it = image.get(text..text + name.len())? == name.as_bytes()
            && image.get(text + name.len()) == Some(&0);
        if is_it { number(at + 8, 8) } else { None }
    })
}
