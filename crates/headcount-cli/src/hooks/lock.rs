//! One `headcount run` for each state file.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, OFlags, fcntl_lock};
use rustix::io::Errno;

use super::state::{ANOTHER, must_be_ours};

/// Held as long as it lives, and no longer than this process: a record lock, since flock(2) stays with a child that was
/// forked and has not begun its command when we are killed. No other descriptor of the file may be closed meanwhile.
pub struct Lock {
    _file: File,
}

impl Lock {
    /// Locks a state file, by a file beside it: the state file itself is replaced by each write.
    pub fn take(state: &Path) -> anyhow::Result<Lock> {
        let path = lock_path(state);
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            // Not what a link leads to: it would be emptied.
            .custom_flags(OFlags::NOFOLLOW.bits() as i32)
            .open(&path)
            .with_context(|| {
                format!("cannot create {} (choose a file in an existing folder with --state)", path.display())
            })?;
        let found = file.metadata().with_context(|| format!("cannot read {}", path.display()))?;
        must_be_ours(&path, &found)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(Errno::WOULDBLOCK | Errno::ACCESS) => {
                let mut holder = String::new();
                let known = file.read_to_string(&mut holder).is_ok();
                let holder = match holder.trim().parse::<u32>() {
                    Ok(pid) if known => format!("process {pid}"),
                    // It has taken the lock at this moment.
                    _ => "another process".to_owned(),
                };
                bail!("the state file {} is in use by {holder}: stop it, or {ANOTHER}", state.display());
            }
            Err(error) => return Err(error).with_context(|| format!("cannot lock {}", path.display())),
        }
        file.set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| writeln!(file, "{}", std::process::id()))
            .with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Lock { _file: file })
    }
}

fn lock_path(state: &Path) -> PathBuf {
    let mut name = state.as_os_str().to_owned();
    name.push(".lock");
    name.into()
}
