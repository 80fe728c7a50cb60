//! What headcount does with bytes that somebody else has written. Each target is a function of the bytes, which panics if
//! something is wrong: libFuzzer calls it (`fuzz/`, `make fuzz`), and an ordinary test runs it over the corpus that is kept.

mod accept;
mod directive;
mod file;
pub mod image;
mod member;
mod node;
mod opening;
mod people;
mod reader;
mod room;

/// A name, as that of the folder of its corpus, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const TARGETS: &[Target] = &[
    ("accept", accept::run),
    ("directive", directive::run),
    ("file", file::run),
    ("member", member::run),
    ("opening", opening::run),
    ("reader", reader::run),
];

/// The target of this name.
///
/// # Panics
/// If there is none.
pub fn run(name: &str, bytes: &[u8]) {
    match TARGETS.iter().find(|(known, _)| *known == name) {
        Some((_, target)) => target(bytes),
        None => panic!("there is no target {name}"),
    }
}
