//! Nodes that run on memory of their own: no file tells of them, but the descriptors of their processes do.

use std::collections::BTreeMap;
use std::path::Path;

use crate::registry::region::memory_name;

/// A master opens it early, so it is among its first descriptors. A process that has very many is not searched to the end.
const MOST_DESCRIPTORS: usize = 4096;

/// A node that could not have a registry's file when its server started.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct FilelessNode {
    /// Its name. Whoever made the memory has chosen it: it may be anything.
    pub name: String,
    /// Its processes, as far as this one may look into them.
    pub pids: Vec<u32>,
}

/// All such nodes of this host whose processes this one may look into. Opens nothing of theirs.
#[must_use]
pub fn fileless_nodes() -> Vec<FilelessNode> {
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for pid in numbers(Path::new("/proc")) {
        if let Some(name) = node_of(pid) {
            found.entry(name).or_default().push(pid);
        }
    }
    found.into_iter().map(|(name, pids)| FilelessNode { name, pids }).collect()
}

fn numbers(folder: &Path) -> impl Iterator<Item = u32> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

fn node_of(pid: u32) -> Option<String> {
    let folder = format!("/proc/{pid}/fd");
    let prefix = format!("/memfd:{}", memory_name(""));
    numbers(Path::new(&folder)).take(MOST_DESCRIPTORS).find_map(|fd| {
        let target = std::fs::read_link(format!("{folder}/{fd}")).ok()?;
        let name = target.to_str()?.strip_prefix(&prefix)?;
        Some(name.strip_suffix(" (deleted)").unwrap_or(name).to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::layout::Geometry;
    use crate::registry::region::Region;

    #[test]
    fn a_node_without_a_file_is_found_by_its_memory() {
        let name = format!("fileless-{}", std::process::id());
        let geometry = Geometry::new(16, 4, 64).unwrap();
        let (_region, fd) = Region::anonymous(&name, geometry).unwrap();
        let me = FilelessNode { name, pids: vec![std::process::id()] };
        assert_eq!(fileless_nodes().contains(&me), fd.is_some());
        drop(fd);
        assert!(!fileless_nodes().contains(&me));
    }
}
