//! The inventory in docs/unsafe.md is complete, and its numbers are right.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Blocks, and everything else that is unsafe.
type Count = (usize, usize);

fn count(text: &str) -> Count {
    // Tests stand at the end of a file.
    let shipped = || text.lines().take_while(|line| !(line.starts_with("#[cfg(") && line.contains("test")));
    let code = || shipped().filter(|line| !line.trim_start().starts_with("//"));
    let all = |words: &[&str]| -> usize {
        code().map(|line| words.iter().map(|word| line.matches(word).count()).sum::<usize>()).sum()
    };
    (all(&["unsafe {"]), all(&["unsafe fn", "unsafe extern", "unsafe impl", "unsafe trait"]))
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder of the source").flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// `where`, blocks, others, what for.
fn row(line: &str) -> Option<(PathBuf, Count)> {
    let cells: Vec<_> = line.strip_prefix("| `")?.split(" | ").collect();
    let place = cells.first()?.strip_suffix('`')?;
    Some((place.into(), (cells.get(1)?.parse().ok()?, cells.get(2)?.parse().ok()?)))
}

#[test]
fn all_unsafe_code_is_in_the_inventory_and_counted() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let page = std::fs::read_to_string(root.join("docs/unsafe.md")).expect("the page");
    let rows: BTreeMap<_, _> = page.lines().filter_map(row).collect();
    assert!(rows.len() > 15, "{rows:?}");
    let mut files = Vec::new();
    sources(&root.join("crates"), &mut files);
    let mut found: BTreeMap<PathBuf, Count> = BTreeMap::new();
    for file in files.iter().filter(|file| file.components().any(|part| part.as_os_str() == "src")) {
        let (blocks, others) = count(&std::fs::read_to_string(file).expect("a source"));
        if (blocks, others) == (0, 0) {
            continue;
        }
        let file = file.strip_prefix(&root).expect("below the root");
        // The row of the file, or of the nearest folder that has one; else it is a row that is missing.
        let place = file.ancestors().find(|place| rows.contains_key(*place)).unwrap_or(file);
        let sum = found.entry(place.to_owned()).or_default();
        *sum = (sum.0 + blocks, sum.1 + others);
    }
    let lines = |rows: &BTreeMap<PathBuf, Count>| -> String {
        rows.iter().map(|(place, (b, o))| format!("| `{}` | {b} | {o} |\n", place.display())).collect()
    };
    assert_eq!(lines(&rows), lines(&found), "docs/unsafe.md says the first, the source the second");
}
