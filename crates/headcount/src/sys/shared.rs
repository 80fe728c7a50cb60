//! Records in memory that other processes write to at any time: all their fields are atomics, and nothing else.

use super::atomic::{AtomicI32, AtomicU32, AtomicU64};

/// # Safety
/// Only for `repr(C)` types that consist of atomics alone, without padding: any bit pattern is valid, and shared
/// references to them may be read and written from several processes.
pub(crate) unsafe trait Shared {}

// SAFETY: it is one atomic.
unsafe impl Shared for AtomicU32 {}
// SAFETY: as above.
unsafe impl Shared for AtomicU64 {}

/// What a field of a shared record may be.
// Rust 1.85 does not count what the constant below does with it.
#[allow(dead_code)]
pub(crate) trait Field {}
impl Field for AtomicI32 {}
impl Field for AtomicU32 {}
impl Field for AtomicU64 {}
impl<F: Field, const N: usize> Field for [F; N] {}

/// A record of a given size, each field at the offset that stands before it.
macro_rules! record {
    ($(#[$meta:meta])* $name:ident, $size:literal, { $($(#[$doc:meta])* $offset:literal $field:ident: $type:ty,)* }) => {
        $(#[$meta])*
        #[repr(C)]
        pub(crate) struct $name { $($(#[$doc])* pub(crate) $field: $type,)* }

                // Loom's atomics are larger, and never lie in a registry.
        const _: () = {
            const fn is_field<F: $crate::sys::shared::Field>() -> usize {
                size_of::<F>()
            }
            // Each field begins where the one before ends: so there is no padding.
            let mut end = 0;
            $(
                assert!(cfg!(loom) || std::mem::offset_of!($name, $field) == $offset && end == $offset);
                end += is_field::<$type>();
            )*
            assert!(cfg!(loom) || size_of::<$name>() == $size && end == $size);
        };

        // SAFETY: repr(C), and the constant above fails to compile unless all fields are atomics without padding.
                #[allow(unsafe_code)]
                unsafe impl $crate::sys::shared::Shared for $name {}

        #[cfg(test)]
        impl $name {
            /// Name and offset of each field, for the test that compares them with the documentation.
            pub(crate) const FIELDS: &[(&str, usize)] = &[$((stringify!($field), $offset)),*];
        }
    };
}
pub(crate) use record;
