//! `include/headcount_cluster.h` is what cbindgen makes of the source, and strict compilers take it.

mod support;

use support::root;

fn generated() -> String {
    let config = cbindgen::Config::from_file(root().join("cbindgen.toml")).unwrap();
    let bindings = cbindgen::Builder::new().with_crate(root()).with_config(config).generate().unwrap();
    let mut text = Vec::new();
    bindings.write(&mut text);
    String::from_utf8(text).unwrap()
}

#[test]
fn the_committed_header_is_the_generated_one() {
    let (generated, file) = (generated(), root().join("include/headcount_cluster.h"));
    if std::env::var_os("HEADCOUNT_BLESS").is_some() {
        std::fs::write(&file, &generated).unwrap();
    }
    let committed = std::fs::read_to_string(&file).unwrap();
    let differs = generated.lines().zip(committed.lines()).find(|(new, old)| new != old);
    assert!(
        generated == committed,
        "include/headcount_cluster.h is stale, first at {differs:?}; HEADCOUNT_BLESS=1 cargo test -p headcount-cluster-ffi --test \
         header writes it anew"
    );
}

#[test]
fn a_strict_compiler_has_nothing_to_say() {
    let twice = "#include <headcount_cluster.h>\n#include <headcount_cluster.h>\nint x;\n";
    support::check_syntax("gcc", "-std=c99", twice, "c");
    support::check_syntax("gcc", "-std=c11", twice, "c");
    support::check_syntax("g++", "-std=c++11", twice, "cpp");
}
