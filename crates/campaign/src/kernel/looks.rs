//! The truth where the connector is not to be had: looks at /proc every other millisecond. Processes that live shorter than that
//! are missed, and nobody's status is known.

use std::collections::BTreeMap;

use testkit::process;
use testkit::wait::boot_clock;

use super::Told;

/// What was seen at the last look.
#[derive(Default)]
pub(super) struct Looks {
    /// Birth of each descendant, which with the pid names it.
    seen: BTreeMap<i32, u64>,
}

impl Looks {
    /// What has changed since the last look, among the descendants of `root`.
    pub(super) fn look(&mut self, root: i32) -> Vec<Told> {
        let before = boot_clock();
        let all = process::all();
        let parents: BTreeMap<i32, i32> = all.iter().map(|stat| (stat.pid, stat.parent)).collect();
        let ours = |mut pid: i32| {
            for _ in 0..64 {
                match parents.get(&pid) {
                    Some(&parent) if parent == root || self.seen.contains_key(&parent) => return true,
                    Some(&parent) => pid = parent,
                    None => return false,
                }
            }
            false
        };
        let mut told = Vec::new();
        let mut now = BTreeMap::new();
        for stat in all.iter().filter(|stat| stat.state != 'Z' && stat.state != 'X') {
            match self.seen.get(&stat.pid) {
                Some(&birth) if birth == stat.started => {}
                _ if !ours(stat.pid) => continue,
                _ => told.push(Told::Forked { parent: stat.parent, pid: stat.pid, at: before }),
            }
            now.insert(stat.pid, stat.started);
        }
        let mut ended: Vec<Told> = self
            .seen
            .iter()
            .filter(|&(pid, birth)| now.get(pid) != Some(birth))
            .map(|(&pid, _)| Told::Ended { pid, status: None, at: boot_clock() })
            .collect();
        // A number that was used again: its first owner ends first.
        ended.append(&mut told);
        self.seen = now;
        ended
    }
}
