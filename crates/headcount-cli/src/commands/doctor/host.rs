//! The kernel, and the folders in which registries lie.

use std::io;
use std::path::Path;

use headcount::KernelFeatures;

use super::check::{Check, FileFacts, FileKind, Section};
use crate::escape::escape_path;

pub fn kernel(found: &KernelFeatures) -> Section {
    let pidfd = match found.pidfd {
        true => Check::good("pidfd_open works: the end of a process is seen at once"),
        false => Check::finding(
            "no pidfd_open: headcount cannot see when a process ends",
            "run Linux 5.3 or newer; in a container, allow the system call pidfd_open",
        ),
    };
    let exit_info = match found.exit_info {
        Some(true) => Check::good("PIDFD_GET_INFO gives exit information: deaths are reported with their cause"),
        Some(false) => Check::note(
            "PIDFD_GET_INFO gives no exit information: the cause of a death is reported as unknown, unless the \
             master passes it on",
        )
        .with_fix("run Linux 6.15 or newer"),
        None => Check::note("PIDFD_GET_INFO could not be tried: cannot start a process"),
    };
    let number = |n: u64| if n == u64::MAX { "any number of".to_owned() } else { n.to_string() };
    let descriptors = Check::good(format!(
        "{} descriptors per process here, {} at most",
        number(found.descriptors),
        number(found.most_descriptors)
    ));
    Section { subject: format!("kernel {}", found.release), checks: vec![pidfd, exit_info, descriptors] }
}

/// A folder, by what `lstat` said of it. `chosen`: this user's servers make their registries there, or the user named it.
pub fn folder(path: &Path, found: &io::Result<FileFacts>, chosen: bool) -> Section {
    let check = match found {
        Ok(facts) => of_a_folder(path, facts),
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => {
            Check::note("does not exist yet: the first server creates it")
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Check::finding(
            "does not exist, and neither does its parent folder: no server can have a registry here",
            format!("mkdir -p {}", escape_path(path)),
        ),
        Err(e) => {
            let text = format!("cannot be read: {e}");
            if chosen {
                Check::finding(text, "run headcount doctor as the folder's owner or as root")
            } else {
                Check::note(text)
            }
        }
    };
    Section { subject: format!("folder {}", escape_path(path)), checks: vec![check] }
}

fn of_a_folder(path: &Path, facts: &FileFacts) -> Check {
    let whose = facts.whose();
    if facts.kind != FileKind::Folder {
        // Servers follow a link to a folder: somebody has chosen it.
        return match facts.kind {
            FileKind::Link if path.is_dir() => Check::note("is a symbolic link to a folder"),
            kind => Check::finding(
                format!("is a {}: no server can have a registry here", kind.name()),
                format!("remove {}", escape_path(path)),
            ),
        };
    }
    // As a server judges it when it opens its registry.
    if facts.mode & 0o022 != 0 && facts.mode & 0o1000 == 0 {
        return Check::finding(
            format!("{whose}: others could replace the registries in it, so servers refuse it"),
            format!("chmod go-w {}", escape_path(path)),
        );
    }
    match owner_by_name(path) {
        Some(uid) if uid != facts.uid && facts.uid != 0 => Check::finding(
            format!("{whose}: it should belong to uid {uid}, whose servers refuse it"),
            format!("as root: chown {uid} {}, or remove it", escape_path(path)),
        ),
        _ => Check::good(whose),
    }
}

/// Who should own the folder, by its name: `/dev/shm/headcount-1000`, `/run/user/1000/headcount`.
fn owner_by_name(path: &Path) -> Option<u32> {
    let text = path.to_str()?;
    let uid = text
        .strip_prefix("/dev/shm/headcount-")
        .or_else(|| text.strip_prefix("/run/user/").and_then(|rest| rest.strip_suffix("/headcount")));
    if text == "/run/headcount" { Some(0) } else { uid?.parse().ok() }
}
