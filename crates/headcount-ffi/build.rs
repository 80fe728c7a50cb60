//! Linker flags of libheadcount.so.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // A server that unloads its modules at a reload would take the code away from under the fork handlers
    // and the waker thread.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
    println!("cargo::rustc-cdylib-link-arg=-Wl,-soname,libheadcount.so");
}
