//! The library under test, and a C compiler.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The folder with the `libheadcount.so` of this very source, or `HEADCOUNT_LIB_DIR`. Cargo does not build a library
/// that Rust cannot link for the tests of its package, so it is told to, unless `make` has done so (`HEADCOUNT_TEST_PROFILE`).
pub fn library_folder() -> &'static Path {
    static FOLDER: OnceLock<PathBuf> = OnceLock::new();
    FOLDER.get_or_init(|| {
        if let Some(folder) = std::env::var_os("HEADCOUNT_LIB_DIR") {
            return PathBuf::from(folder);
        }
        let tmp = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let target = tmp.parent().unwrap();
        if let Some(profile) = std::env::var_os("HEADCOUNT_TEST_PROFILE") {
            return there(target.join(profile));
        }
        let mut build = Command::new(env!("CARGO"));
        build
            .args(["build", "--quiet", "-p", "headcount-ffi", "--target-dir"])
            .arg(target)
            .current_dir(root());
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        assert!(build.status().unwrap().success(), "{build:?}");
        there(target.join(if cfg!(debug_assertions) { "debug" } else { "release" }))
    })
}

fn there(folder: PathBuf) -> PathBuf {
    assert!(folder.join("libheadcount.so").exists(), "there is no libheadcount.so in {}", folder.display());
    folder
}

/// Compiles a C file of this crate against the library, as strictly as can be and with what `HEADCOUNT_CFLAGS` adds, and
/// gives the program.
pub fn compile(source: &str, folder: &Path) -> PathBuf {
    let program = folder.join(Path::new(source).file_stem().unwrap());
    // The old kind, which comes before LD_LIBRARY_PATH: cargo names its own folders there.
    let mut rpath = std::ffi::OsString::from("-Wl,--disable-new-dtags,-rpath,");
    rpath.push(library_folder());
    let output = Command::new("gcc")
        .args(["-std=c11", "-g", "-O1", "-Wall", "-Wextra", "-Wpedantic", "-Werror", "-pthread", "-I"])
        .arg(root().join("include"))
        .arg(root().join(source))
        .arg("-L")
        .arg(library_folder())
        .args(["-lheadcount".as_ref(), rpath.as_os_str()])
        .args(std::env::var("HEADCOUNT_CFLAGS").unwrap_or_default().split_whitespace())
        .arg("-o")
        .arg(&program)
        .output()
        .expect("gcc");
    assert!(output.status.success(), "{source}: {}", String::from_utf8_lossy(&output.stderr));
    program
}

/// A folder for one test, fit for a registry, and gone after it.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Folder {
        use std::os::unix::fs::DirBuilderExt;
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
        std::fs::DirBuilder::new().mode(0o755).create(&path).unwrap();
        Folder(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
