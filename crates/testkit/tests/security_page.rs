//! Each claim of docs/security.md names tests, and so does each limit of docs/reliability.md and each scenario of docs/singletons.md; they
//! are there.

use std::path::{Path, PathBuf};

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs" || ending == "c") {
            found.push(path);
        }
    }
}

/// What stands in the last column, between backquotes.
fn claims(page: &str) -> Vec<&str> {
    let rows = page.lines().filter(|line| line.starts_with("| ") && line.ends_with(" |"));
    let tests = rows.filter_map(|row| row.trim_end_matches(" |").rsplit_once(" | ")).map(|(_, tests)| tests);
    tests.flat_map(|tests| tests.split('`').skip(1).step_by(2)).collect()
}

fn named_tests_are_there(page: &str, text: &str, least: usize) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let mut files = Vec::new();
    sources(&root.join("crates"), &mut files);
    let claims: Vec<_> = claims(text).into_iter().filter(|name| !name.contains('-')).collect();
    assert!(claims.len() > least, "{claims:?}");
    for claim in claims {
        let (file, test) = claim.split_once("::").unwrap_or((claim, ""));
        let named = files.iter().filter(|path| path.file_stem().is_some_and(|stem| stem == file));
        let text: String = named.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
        // By a macro: its name alone.
        let there = text.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == test);
        assert!(!text.is_empty() && (test.is_empty() || there), "{page}: there is no test {claim}");
    }
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    std::fs::read_to_string(path).expect("the page")
}

#[test]
fn the_tests_that_it_names_are_there() {
    named_tests_are_there("docs/security.md", &page("security.md"), 40);
}

#[test]
fn the_tests_of_the_limits_are_there() {
    let page = page("reliability.md");
    let (_, limits) = page.split_once("\n## Limits\n").expect("the section");
    let (limits, _) = limits.split_once("\n### ").expect("what follows it");
    named_tests_are_there("docs/reliability.md", limits, 20);
}

#[test]
fn the_tests_of_the_scenarios_are_there() {
    let page = page("singletons.md");
    let (_, scenarios) = page.split_once("\n## Proof\n").expect("the section");
    named_tests_are_there("docs/singletons.md", scenarios, 25);
}
