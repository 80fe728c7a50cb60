//! The library under test, and a C compiler.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-pedantic", "-Werror"];

/// The library of this very source. Cargo does not build one that Rust cannot link for the tests of its package, so it is told to,
/// unless `make` has done so (`HEADCOUNT_TEST_PROFILE`).
pub fn library() -> &'static Path {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        if let Some(folder) = std::env::var_os("HEADCOUNT_LIB_DIR") {
            return PathBuf::from(folder).join("libheadcount_cluster.so");
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
        if let Ok(profile) = std::env::var("HEADCOUNT_TEST_PROFILE") {
            return there(target, &profile);
        }
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "-p", "headcount-cluster-ffi", "--target-dir"])
            .arg(target)
            .current_dir(root());
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{build:?}");
        there(target, if cfg!(debug_assertions) { "debug" } else { "release" })
    })
}

fn there(target: &Path, profile: &str) -> PathBuf {
    let library = target.join(profile).join("libheadcount_cluster.so");
    assert!(library.exists(), "there is no {}", library.display());
    library
}

/// Compiles a C file of this crate against the library, as strictly as can be and with what `HEADCOUNT_CFLAGS` adds, and gives the
/// program.
pub fn compile(source: &Path, folder: &Path) -> PathBuf {
    let program = folder.join(source.file_stem().unwrap());
    // By the name that it has where it is installed.
    let link = folder.join("libheadcount-cluster.so");
    if !link.exists() {
        std::os::unix::fs::symlink(library(), link).unwrap();
    }
    let output = Command::new("gcc")
        .args(["-std=c11", "-g", "-O1", "-pthread"])
        .args(STRICT)
        .arg("-I")
        .arg(root().join("include"))
        .arg(root().join(source))
        .arg(format!("-L{}", folder.display()))
        .args(["-lheadcount-cluster", &format!("-Wl,--disable-new-dtags,-rpath,{}", folder.display())])
        .args(std::env::var("HEADCOUNT_CFLAGS").unwrap_or_default().split_whitespace())
        .arg("-o")
        .arg(&program)
        .output()
        .expect("gcc");
    assert!(output.status.success(), "{}: {}", source.display(), String::from_utf8_lossy(&output.stderr));
    program
}

pub fn check_syntax(compiler: &str, standard: &str, source: &str, extension: &str) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join(format!("header.{extension}"));
    std::fs::write(&file, source).unwrap();
    let output = Command::new(compiler)
        .arg(standard)
        .args(STRICT)
        .args(["-fsyntax-only", "-I"])
        .arg(root().join("include"))
        .arg(&file)
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
}
