//! The truth where the connector is not to be had: looks at /proc, a hundred a second. Processes that live shorter than that
//! are missed, and nobody's status is known.

use std::collections::BTreeMap;
use std::time::Duration;

use testkit::process::{self, Stat};
use testkit::wait::boot_clock;

use super::Told;

/// Between two looks.
pub(super) const EVERY: Duration = Duration::from_millis(10);

/// What was seen at the last look.
pub(super) struct Looks {
    /// The process whose descendants matter.
    root: i32,
    /// What is in the command lines of its servers: a daemon is nobody's child.
    mark: String,
    /// Birth of each descendant, which with the pid names it.
    seen: BTreeMap<i32, u64>,
    /// The same of all others, which are not asked again.
    others: BTreeMap<i32, u64>,
}

impl Looks {
    pub(super) fn new(root: i32) -> Self {
        let mark = format!("/headcount-testkit-{root}-");
        Self { root, mark, seen: BTreeMap::new(), others: BTreeMap::new() }
    }

    /// What has changed since the last look.
    pub(super) fn look(&mut self) -> Vec<Told> {
        let before = boot_clock();
        let mut all = process::all();
        // Parents first.
        all.sort_by_key(|stat| (stat.started, stat.pid));
        let mut begun = Vec::new();
        let (mut now, mut others) = (BTreeMap::new(), BTreeMap::new());
        for stat in all.iter().filter(|stat| stat.state != 'Z' && stat.state != 'X') {
            let is_known = self.seen.get(&stat.pid) == Some(&stat.started);
            if !is_known && !self.is_ours(stat, &now) {
                others.insert(stat.pid, stat.started);
                continue;
            }
            now.insert(stat.pid, stat.started);
            if !is_known {
                begun.push(Told::Forked { parent: stat.parent, pid: stat.pid, at: before });
            }
        }
        // A number that was used again: its first owner ends first.
        let gone = self.seen.iter().filter(|&(pid, birth)| now.get(pid) != Some(birth));
        let mut told: Vec<Told> =
            gone.map(|(&pid, _)| Told::Ended { pid, status: None, at: boot_clock() }).collect();
        told.append(&mut begun);
        (self.seen, self.others) = (now, others);
        told
    }

    fn is_ours(&self, stat: &Stat, now: &BTreeMap<i32, u64>) -> bool {
        stat.parent == self.root
            || now.contains_key(&stat.parent)
            || self.others.get(&stat.pid) != Some(&stat.started) && self.has_mark(stat.pid)
    }

    /// A daemon has it in its command line. A worker whose master is gone has lost it, but not its log file.
    fn has_mark(&self, pid: i32) -> bool {
        let title = process::title(pid);
        let may_be_a_worker = title.starts_with("nginx: worker") || title.contains("/examples/scheduler ");
        title.contains(&self.mark) || may_be_a_worker && self.has_file(pid)
    }

    fn has_file(&self, pid: i32) -> bool {
        let open = std::fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let mut links = open.filter_map(|fd| std::fs::read_link(fd.path()).ok());
        links.any(|link| link.to_string_lossy().contains(&self.mark))
    }
}
