//! Everything that is kept of the fuzzer's findings, and of real registries, once more.

use std::path::{Path, PathBuf};

use fuzz_targets::TARGETS;

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fuzz/corpus")
}

fn names(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.expect("an entry").path())
        .collect();
    all.sort();
    all
}

#[test]
fn each_target_takes_its_corpus() {
    for (name, target) in TARGETS {
        let files = names(&corpus().join(name));
        assert!(!files.is_empty(), "{name} has a corpus");
        for file in files {
            let bytes = std::fs::read(&file).expect("read");
            // Which one it was, should it panic or hang.
            eprintln!("{}", file.display());
            target(&bytes);
        }
    }
}

#[test]
fn each_folder_of_the_corpus_is_of_a_target() {
    for folder in names(&corpus()) {
        let name = folder.file_name().expect("a name").to_string_lossy().into_owned();
        assert!(TARGETS.iter().any(|(target, _)| *target == name), "{name} is of no target");
    }
}
