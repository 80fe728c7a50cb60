//! Linker flags of libheadcount-cluster.so.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Whoever unloads it would take the code away from under its fork handler.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libheadcount-cluster.so");
}
