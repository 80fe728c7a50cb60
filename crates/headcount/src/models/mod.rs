//! Models: the decisions of `lifecycle` in a node whose kernel and registry are simulated, a step at a time. What each of
//! them covers, and what not: `docs/models.md`.
//!
//! `node.rs` is the node, `steps.rs` what the holder of its lock does. `history.rs` lets random things happen to it and
//! compares it with `reference.rs`; `protocol.rs` tries every order of its steps and every death between them, and takes states for
//! one that differ only in names (`quotient.rs`); `lock.rs`
//! does so for the node lock itself.

mod election;
mod history;
mod lock;
mod node;
mod protocol;
mod quotient;
mod reference;
mod singletons;
mod steps;
