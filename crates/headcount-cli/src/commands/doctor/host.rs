//! The kernel, and the folders in which registries lie.

use std::io;
use std::path::Path;

use headcount::KernelFeatures;

use super::check::{Check, FileFacts, FileKind, Section};
use crate::plain::plain_path;

pub fn kernel(found: &KernelFeatures) -> Section {
    let pidfd = match found.pidfd {
        true => Check::good("pidfd_open: the end of a process is seen at once"),
        false => Check::finding(
            "no pidfd_open: nobody can be told when a process ends",
            "run Linux 5.3 or newer; in a container, allow the system call pidfd_open",
        ),
    };
    let exit_info = match found.exit_info {
        Some(true) => Check::good("PIDFD_GET_INFO with exit information: deaths are reported with their cause"),
        Some(false) => Check::note(
            "no exit information by PIDFD_GET_INFO: deaths are reported with the cause unknown, unless the master \
             passes on what it was told",
        )
        .with_mend("run Linux 6.15 or newer"),
        None => Check::note("exit information by PIDFD_GET_INFO could not be tried: no process could be made"),
    };
    let number = |n: u64| if n == u64::MAX { "any number of".to_owned() } else { n.to_string() };
    let descriptors = Check::good(format!(
        "{} descriptors per process here, {} at most",
        number(found.descriptors),
        number(found.most_descriptors)
    ));
    Section { subject: format!("kernel {}", found.release), checks: vec![pidfd, exit_info, descriptors] }
}

/// A folder by what `lstat` said of it. `chosen`: it is where this user's servers make their registries, or was named.
pub fn folder(path: &Path, found: &io::Result<FileFacts>, chosen: bool) -> Section {
    let check = match found {
        Ok(facts) => of_a_folder(path, facts),
        Err(e) if e.kind() == io::ErrorKind::NotFound && path.parent().is_some_and(Path::is_dir) => {
            Check::note("is not there yet: the first server makes it")
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Check::finding(
            "is not there, nor the folder that it would be made in: no server can have a registry here",
            format!("mkdir -p {}", plain_path(path)),
        ),
        Err(e) => {
            let text = format!("cannot be looked at: {e}");
            if chosen {
                Check::finding(text, "run it as the folder's owner or root")
            } else {
                Check::note(text)
            }
        }
    };
    Section { subject: format!("folder {}", plain_path(path)), checks: vec![check] }
}

fn of_a_folder(path: &Path, facts: &FileFacts) -> Check {
    let whose = facts.whose();
    if facts.kind != FileKind::Folder {
        // A link to a folder is followed by servers, and is somebody's choice.
        return match facts.kind {
            FileKind::Link if path.is_dir() => Check::note("is a symbolic link to a folder"),
            kind => Check::finding(
                format!("is a {}: no server can have a registry here", kind.name()),
                format!("remove {}", plain_path(path)),
            ),
        };
    }
    // As a server judges it when it opens its registry.
    if facts.mode & 0o022 != 0 && facts.mode & 0o1000 == 0 {
        return Check::finding(
            format!("{whose}: others could swap the registries in it, so servers refuse it"),
            format!("chmod go-w {}", plain_path(path)),
        );
    }
    match owner_by_name(path) {
        Some(uid) if uid != facts.uid && facts.uid != 0 => Check::finding(
            format!("{whose}: the servers of uid {uid}, whose folder it should be, refuse it"),
            format!("as root: chown {uid} {}, or remove it", plain_path(path)),
        ),
        _ => Check::good(whose),
    }
}

/// Whose the folder is to be by its name: `/dev/shm/headcount-1000`, `/run/user/1000/headcount`.
fn owner_by_name(path: &Path) -> Option<u32> {
    let text = path.to_str()?;
    let uid = text
        .strip_prefix("/dev/shm/headcount-")
        .or_else(|| text.strip_prefix("/run/user/").and_then(|rest| rest.strip_suffix("/headcount")));
    if text == "/run/headcount" { Some(0) } else { uid?.parse().ok() }
}
