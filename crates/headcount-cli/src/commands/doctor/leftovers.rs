//! Files of a registry that does not exist.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::check::Check;
use super::registry::beside;
use crate::escape::escape_path;

const ENDINGS: [&str; 2] = [".lock", ".new"];

/// What is left, by registry.
pub type Leftovers = BTreeMap<PathBuf, Vec<PathBuf>>;

/// Those of one registry.
pub fn of(registry: &Path, found: &mut Leftovers) {
    if std::fs::symlink_metadata(registry).is_ok() {
        return;
    }
    let files = ENDINGS.map(|ending| beside(registry, ending));
    let there: Vec<_> = files.into_iter().filter(|file| std::fs::symlink_metadata(file).is_ok()).collect();
    if !there.is_empty() {
        found.insert(registry.to_owned(), there);
    }
}

/// Those in a folder, by their names.
pub fn within(folder: &Path) -> Leftovers {
    let mut found = Leftovers::new();
    // A folder that cannot be read is reported as such.
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if let Some(stem) =
            ENDINGS.iter().find_map(|ending| name.strip_suffix(ending)).filter(|n| n.ends_with(".registry"))
        {
            of(&folder.join(stem), &mut found);
        }
    }
    found
}

pub fn judge(registry: &Path, files: &[PathBuf]) -> Check {
    let names: Vec<_> = files.iter().map(|file| escape_path(file)).collect();
    Check::finding(
        format!(
            "{} without a registry: left over, or the registry was removed while its server runs",
            names.join(", ")
        ),
        format!(
            "if its server runs, restart it; if not: headcount doctor --clean --registry {}",
            escape_path(registry)
        ),
    )
}
