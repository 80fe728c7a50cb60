//! A registry's header: what it says of itself.

use std::path::Path;

use crate::error::{Error, ErrorKind, Result};
use crate::registry::layout::{FORMAT, Geometry, Header, MAGIC};
use crate::sys::atomic::Ordering::Relaxed;
use crate::sys::clock;

/// What a header says, checked against the size of its file.
pub(crate) fn read_geometry(header: &Header, file_size: u64, path: &Path) -> Result<Geometry> {
    if header.magic.load(Relaxed) != MAGIC {
        return Err(Error::new(
            ErrorKind::NotARegistry,
            format!(
                "{} is no headcount registry, and is left alone (remove it, or set another `path`)",
                path.display()
            ),
        ));
    }
    let format = header.format.load(Relaxed);
    if format != FORMAT {
        return Err(Error::new(
            ErrorKind::Version,
            format!(
                "{} has format {format}, this is headcount {} with format {FORMAT} (stop the node that uses it, or \
                 use the same version of headcount)",
                path.display(),
                env!("CARGO_PKG_VERSION")
            ),
        ));
    }
    let corrupt = |what: String| {
        Error::new(
            ErrorKind::Corrupt,
            format!("{} is corrupt: {what} (remove it while the node is stopped)", path.display()),
        )
    };
    let [slots, singletons, records] =
        [&header.slots, &header.singletons, &header.journal_records].map(|word| word.load(Relaxed));
    let geometry = Geometry::new(slots, singletons, records).map_err(|e| corrupt(e.to_string()))?;
    if header.generations.load(Relaxed) as usize != geometry.generations() {
        return Err(corrupt(format!("a table of {} generations", header.generations.load(Relaxed))));
    }
    if file_size != geometry.file_size() as u64 {
        return Err(corrupt(format!("{file_size} bytes, expected were {}", geometry.file_size())));
    }
    Ok(geometry)
}

/// Writes a new one.
pub(crate) fn initialise(header: &Header, name: &str, geometry: Geometry) {
    header.created_ns.store(clock::wall_ns(), Relaxed);
    restore(header, name, geometry, boot_id());
}

/// Writes what never changes while a node lives. The magic number comes last: without it, it is none.
pub(crate) fn restore(header: &Header, name: &str, geometry: Geometry, boot: [u64; 2]) {
    for (word, value) in header.boot_id.iter().zip(boot) {
        word.store(value, Relaxed);
    }
    header.format.store(FORMAT, Relaxed);
    header.slots.store(geometry.slots() as u32, Relaxed);
    header.generations.store(geometry.generations() as u32, Relaxed);
    header.singletons.store(geometry.singletons() as u32, Relaxed);
    header.journal_records.store(geometry.journal_records() as u32, Relaxed);
    let mut bytes = [0u8; 64];
    // Names are checked to be at most 63 bytes.
    for (to, from) in bytes.iter_mut().zip(name.bytes()) {
        *to = from;
    }
    for (word, chunk) in header.name.iter().zip(bytes.chunks_exact(8)) {
        word.store(chunk.iter().rev().fold(0, |w, &b| w << 8 | u64::from(b)), Relaxed);
    }
    header.magic.store(MAGIC, Relaxed);
}

/// The node's name as the registry tells it.
pub(crate) fn stored_name(header: &Header) -> String {
    let bytes = header.name.iter().flat_map(|w| w.load(Relaxed).to_le_bytes()).take_while(|&b| b != 0);
    // Whoever has the memory can write into it, and it is shown on people's terminals.
    bytes
        .map(char::from)
        .map(|c| if c.is_ascii_alphanumeric() || "._-".contains(c) { c } else { '?' })
        .collect()
}

/// The boot that we are in; zeros where `/proc` does not tell.
pub(crate) fn boot_id() -> [u64; 2] {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let value = u128::from_str_radix(&digits, 16).unwrap_or(0);
    [(value >> 64) as u64, value as u64]
}
