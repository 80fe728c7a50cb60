//! Whatever ends the campaign, nothing is left of it: it runs as a child of a process that sees to that.

use std::fs;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGINT, SIGTERM};
use testkit::{Folder, Signal, process, wait};

/// Set for the child.
const CHILD: &str = "HEADCOUNT_CAMPAIGN_CHILD";
/// In the folder of a campaign.
const MARK: &str = "campaign-cluster";
/// How a program's exit code says that a signal has ended it.
const BY_SIGNAL: u8 = 128;

/// Whether this is the child, which does the work.
pub fn is_child() -> bool {
    std::env::var_os(CHILD).is_some()
}

/// This folder is a campaign's.
pub fn mark(folder: &Folder) {
    folder.write(MARK, "");
}

/// Runs the same program as a child, and clears away what is left of it.
pub fn watch() -> std::io::Result<ExitCode> {
    clear(left());
    let is_asked = Arc::new(AtomicBool::new(false));
    signal_hook::flag::register(SIGINT, Arc::clone(&is_asked))?;
    signal_hook::flag::register(SIGTERM, Arc::clone(&is_asked))?;
    // It ends with this process, whatever ends that; and its machines end with it.
    let mut child = Command::new("setpriv")
        .args(["--pdeathsig", "KILL", "--"])
        .arg(std::env::current_exe()?)
        .args(std::env::args_os().skip(1))
        .env(CHILD, "1")
        .spawn()?;
    let ended = loop {
        if let Some(status) = child.try_wait()? {
            break status.code();
        }
        if is_asked.load(Ordering::Relaxed) {
            eprintln!("headcount-campaign-cluster: a signal ends it; all is cleared away");
            child.kill()?;
            child.wait()?;
            break None;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    clear(of(child.id() as i32));
    let code = ended.and_then(|code| u8::try_from(code).ok()).unwrap_or(BY_SIGNAL + SIGTERM as u8);
    Ok(ExitCode::from(code))
}

fn folders() -> Vec<(i32, PathBuf)> {
    let all = fs::read_dir(std::env::temp_dir()).into_iter().flatten().flatten();
    all.filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        let pid = name.strip_prefix(testkit::FOLDER_PREFIX)?.split('-').next()?.parse().ok()?;
        Some((pid, entry.path()))
    })
    .collect()
}

fn of(pid: i32) -> Vec<PathBuf> {
    folders().into_iter().filter(|(of, _)| *of == pid).map(|(_, path)| path).collect()
}

/// By campaigns that were killed before: nobody has their numbers any more.
fn left() -> Vec<PathBuf> {
    let is_left = |(pid, path): &(i32, PathBuf)| path.join(MARK).exists() && !process::is_alive(*pid);
    folders().into_iter().filter(is_left).map(|(_, path)| path).collect()
}

fn clear(folders: Vec<PathBuf>) {
    for folder in folders {
        let text = folder.display().to_string();
        let users = || -> Vec<i32> {
            process::all()
                .into_iter()
                .map(|stat| stat.pid)
                .filter(|&pid| process::title(pid).contains(&text))
                .collect()
        };
        // Its machines take a moment to end. What does not belong to one is ended here.
        let gone = wait::poll(Duration::from_secs(2), || users().is_empty().then_some(()));
        if gone.is_none() {
            users().into_iter().for_each(|pid| process::send(pid, Signal::KILL));
        }
        let done = wait::poll(wait::PATIENCE, || match fs::remove_dir_all(&folder) {
            Err(_) if folder.exists() => None,
            _ => Some(()),
        });
        if done.is_none() {
            eprintln!("headcount-campaign-cluster: {text} cannot be removed");
        }
    }
}
