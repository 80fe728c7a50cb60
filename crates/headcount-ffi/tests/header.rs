//! `include/headcount.h` is what cbindgen makes of the source, and says the same as the library.

use std::path::{Path, PathBuf};
use std::process::Command;

use headcount_core::{Cause, Doubt, ErrorKind, Kind, Phase, Role, SingletonKind, SingletonState, State};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn committed() -> String {
    std::fs::read_to_string(root().join("include/headcount.h")).unwrap()
}

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_crate(root()).with_config(config).generate().unwrap();
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let generated = generated();
    if std::env::var_os("HEADCOUNT_BLESS").is_some() {
        std::fs::write(root().join("include/headcount.h"), &generated).unwrap();
    }
    let committed = committed();
    let differs = generated.lines().zip(committed.lines()).find(|(new, old)| new != old);
    assert!(
        generated == committed,
        "include/headcount.h is stale, first at {differs:?}; HEADCOUNT_BLESS=1 cargo test -p headcount-ffi --test header \
         writes it anew"
    );
}

/// The value of a constant in the header.
fn constant(header: &str, name: &str) -> i64 {
    let define = format!("#define {name} ");
    let line = header.lines().find_map(|line| line.strip_prefix(&define));
    line.unwrap_or_else(|| panic!("the header has no {name}")).trim().parse().unwrap()
}

#[test]
fn every_word_of_the_core_is_a_constant() {
    let header = committed();
    let check = |prefix: &str, name: &str, number: i64| {
        let constant_name = format!("HEADCOUNT_{prefix}_{}", name.to_uppercase());
        assert_eq!(constant(&header, &constant_name), number, "{constant_name}");
    };
    for (number, kind) in (1..).zip(ErrorKind::ALL) {
        check("ERR", kind.name(), -number);
    }
    Kind::ALL.iter().for_each(|kind| check("KIND", kind.name(), kind.code().into()));
    Cause::ALL.iter().for_each(|cause| check("CAUSE", cause.name(), cause.code().into()));
    Role::ALL.iter().for_each(|role| check("ROLE", role.name(), role.code().into()));
    State::ALL.iter().for_each(|state| check("STATE", state.name(), state.code().into()));
    Phase::ALL.iter().for_each(|phase| check("PHASE", phase.name(), phase.code().into()));
    Doubt::ALL.iter().for_each(|doubt| check("DOUBT", doubt.name(), doubt.code().into()));
    SingletonKind::ALL.iter().for_each(|kind| check("SINGLETON", kind.name(), kind.code().into()));
    SingletonState::ALL.iter().for_each(|state| check("SINGLETON_STATE", state.name(), state.code().into()));
    let count = |prefix: &str| {
        header.lines().filter(|l| l.starts_with(&format!("#define HEADCOUNT_{prefix}_"))).count()
    };
    assert_eq!(count("ERR"), ErrorKind::ALL.len() + 2, "a panic and an ABI mismatch are the library's own");
    assert_eq!(count("KIND"), Kind::ALL.len());
    assert_eq!(count("CAUSE"), Cause::ALL.len());
    assert_eq!(count("ROLE"), Role::ALL.len());
    assert_eq!(count("STATE"), State::ALL.len());
    assert_eq!(count("PHASE"), Phase::ALL.len());
    assert_eq!(count("DOUBT"), Doubt::ALL.len());
    assert_eq!(count("SINGLETON_STATE"), SingletonState::ALL.len());
}

fn compile(compiler: &str, arguments: &[&str], source: &str, extension: &str) {
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    let file = folder.join(format!("header-{}.{extension}", std::process::id()));
    std::fs::write(&file, source).unwrap();
    let output = Command::new(compiler)
        .args(arguments)
        .args(["-Wall", "-Wextra", "-Wpedantic", "-Werror", "-fsyntax-only", "-I"])
        .arg(root().join("include"))
        .arg(&file)
        .output()
        .unwrap_or_else(|e| panic!("{compiler}: {e}"));
    let _ = std::fs::remove_file(&file);
    assert!(output.status.success(), "{compiler}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_strict_compiler_has_nothing_to_say() {
    compile("gcc", &["-std=c11"], "#include <headcount.h>\nint x;\n", "c");
    compile("gcc", &["-std=c99"], "#include <headcount.h>\n#include <headcount.h>\nint x;\n", "c");
    compile("g++", &["-std=c++11"], "#include <headcount.h>\nint x;\n", "cpp");
}
