//! Linker flags of the module.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // nginx unloads a module that the next configuration does not load; our fork handler and the open node stay.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
