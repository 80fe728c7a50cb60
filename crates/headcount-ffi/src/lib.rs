//! The C library `libheadcount.so`: the core behind a border that no panic and no bad pointer crosses.
//!
//! `include/headcount.h` is generated from the documentation in here, which therefore speaks C.

#![allow(clippy::missing_safety_doc, reason = "headcount.h says once, at its top, what pointers must be")]

// Each floor uses only those above it in this list.
mod border;

mod handle;

mod fork;

mod calls;

pub use border::codes::*;
pub use border::event::EventRecord;
pub use border::options::{JoinOptions, OpenOptions};
pub use border::words::*;
pub use calls::counts::*;
pub use calls::journal::*;
pub use calls::leader::*;
pub use calls::lock::*;
pub use calls::master::*;
pub use calls::member::*;
pub use calls::nginx::*;
pub use calls::node::*;
pub use calls::once::*;
pub use calls::singletons::*;
pub use calls::snapshot::*;
pub use calls::watch::*;
pub use calls::worker::*;
pub use handle::{Handle, listen};

/// The version of everything in this header. Compare it with `headcount_abi_version()` before anything
/// else: they differ when a program runs with another library than it was compiled for.
pub const HEADCOUNT_ABI_VERSION: u32 = 3;

/// For `headcount_struct_size`: `headcount_options`.
pub const HEADCOUNT_STRUCT_OPTIONS: u32 = 1;
/// For `headcount_struct_size`: `headcount_event`.
pub const HEADCOUNT_STRUCT_EVENT: u32 = 2;
/// For `headcount_struct_size`: `headcount_join_options`.
pub const HEADCOUNT_STRUCT_JOIN_OPTIONS: u32 = 3;
/// For `headcount_struct_size`: `headcount_counts`.
pub const HEADCOUNT_STRUCT_COUNTS: u32 = 4;
/// For `headcount_struct_size`: `headcount_snapshot`.
pub const HEADCOUNT_STRUCT_SNAPSHOT: u32 = 5;
/// For `headcount_struct_size`: `headcount_generation_status`.
pub const HEADCOUNT_STRUCT_GENERATION_STATUS: u32 = 6;
/// For `headcount_struct_size`: `headcount_process_status`.
pub const HEADCOUNT_STRUCT_PROCESS_STATUS: u32 = 7;
/// For `headcount_struct_size`: `headcount_step`.
pub const HEADCOUNT_STRUCT_STEP: u32 = 8;
/// For `headcount_struct_size`: `headcount_nginx_call`.
pub const HEADCOUNT_STRUCT_NGINX_CALL: u32 = 9;
/// For `headcount_struct_size`: `headcount_leader`.
pub const HEADCOUNT_STRUCT_LEADER: u32 = 10;
/// For `headcount_struct_size`: `headcount_once`.
pub const HEADCOUNT_STRUCT_ONCE: u32 = 11;
/// For `headcount_struct_size`: `headcount_lock`.
pub const HEADCOUNT_STRUCT_LOCK: u32 = 12;
/// For `headcount_struct_size`: `headcount_singleton`.
pub const HEADCOUNT_STRUCT_SINGLETON: u32 = 13;

/// The ABI version of the library. Cannot fail.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_abi_version() -> u32 {
    HEADCOUNT_ABI_VERSION
}

/// The size in bytes that the library takes a structure to have, by its HEADCOUNT_STRUCT_ number; 0 for
/// any other number. For callers that wrote the declarations by hand, such as an FFI of a script language.
#[unsafe(no_mangle)]
pub extern "C" fn headcount_struct_size(which: u32) -> u64 {
    let size = match which {
        HEADCOUNT_STRUCT_OPTIONS => size_of::<OpenOptions>(),
        HEADCOUNT_STRUCT_EVENT => size_of::<EventRecord>(),
        HEADCOUNT_STRUCT_JOIN_OPTIONS => size_of::<JoinOptions>(),
        HEADCOUNT_STRUCT_COUNTS => size_of::<CountsRecord>(),
        HEADCOUNT_STRUCT_SNAPSHOT => size_of::<SnapshotRecord>(),
        HEADCOUNT_STRUCT_GENERATION_STATUS => size_of::<GenerationRecord>(),
        HEADCOUNT_STRUCT_PROCESS_STATUS => size_of::<ProcessRecord>(),
        HEADCOUNT_STRUCT_STEP => size_of::<StepRecord>(),
        HEADCOUNT_STRUCT_NGINX_CALL => size_of::<NginxCall>(),
        HEADCOUNT_STRUCT_LEADER => size_of::<LeaderRecord>(),
        HEADCOUNT_STRUCT_ONCE => size_of::<OnceRecord>(),
        HEADCOUNT_STRUCT_LOCK => size_of::<LockRecord>(),
        HEADCOUNT_STRUCT_SINGLETON => size_of::<SingletonRecord>(),
        _ => 0,
    };
    size as u64
}
