//! A cgroup whose processes can be frozen: they stop at any place, and no signal but SIGKILL moves them.

use std::fs;
use std::path::PathBuf;

/// One cgroup of version 2.
pub struct Freezer {
    group: PathBuf,
    root: PathBuf,
}

impl Freezer {
    /// Makes one, where this machine lets us.
    pub fn make() -> Option<Self> {
        ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].into_iter().map(PathBuf::from).find_map(|root| {
            let group = root.join(format!("headcount-campaign-{}", std::process::id()));
            fs::create_dir(&group).ok()?;
            let freezer = Self { group, root };
            freezer.set(false).then_some(freezer)
        })
    }

    /// Freezes a process, with all that are in it.
    pub fn freeze(&self, pid: i32) -> bool {
        fs::write(self.group.join("cgroup.procs"), pid.to_string()).is_ok() && self.set(true)
    }

    /// Lets them all run again, out of it.
    pub fn thaw(&self) -> bool {
        let thawed = self.set(false);
        let all = fs::read_to_string(self.group.join("cgroup.procs")).unwrap_or_default();
        for pid in all.lines() {
            // It may have ended.
            let _ = fs::write(self.root.join("cgroup.procs"), pid);
        }
        thawed
    }

    fn set(&self, frozen: bool) -> bool {
        fs::write(self.group.join("cgroup.freeze"), if frozen { "1" } else { "0" }).is_ok()
    }
}

impl Drop for Freezer {
    fn drop(&mut self) {
        self.thaw();
        let _ = fs::remove_dir(&self.group);
    }
}
