//! The registry in memory, for whoever does with it what no honest process does.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering::SeqCst};

use crate::format::{Field, Format, Table, format};

const MAGIC: u64 = u64::from_le_bytes(*b"HEADCNT\n");

/// The mapping of a registry in this process. It is never unmapped.
#[derive(Clone, Copy, Debug)]
pub struct Registry {
    words: &'static [AtomicU64],
}

impl Registry {
    /// That which this process inherited.
    pub fn inherited() -> Option<Registry> {
        let maps = fs::read_to_string("/proc/self/maps").ok()?;
        let mut found: Option<(usize, usize)> = None;
        for line in maps.lines() {
            let mut parts = line.split_whitespace();
            let (Some(range), Some(rights)) = (parts.next(), parts.next()) else { continue };
            if rights != "rw-s" {
                continue;
            }
            let Some((start, end)) = range.split_once('-') else { continue };
            let number = |text| usize::from_str_radix(text, 16).ok();
            let (Some(start), Some(end)) = (number(start), number(end)) else { continue };
            found = match found {
                // One mapping that was split in two.
                Some((first, last)) if last == start => Some((first, end)),
                Some(_) => break,
                None => {
                    // SAFETY: a mapping of at least one page that this process may read, aligned to a page.
                    let word = unsafe { &*(start as *const AtomicU64) };
                    (word.load(SeqCst) == MAGIC).then_some((start, end))
                }
            };
        }
        let (start, end) = found?;
        // SAFETY: page-aligned, mapped for reading and writing, never unmapped, and only used through atomics.
        let words = unsafe { std::slice::from_raw_parts(start as *const AtomicU64, (end - start) / 8) };
        Some(Registry { words })
    }

    /// Maps a file.
    pub fn map(path: &Path) -> std::io::Result<Registry> {
        let file = fs::OpenOptions::new().read(true).write(true).open(path)?;
        let len = file.metadata()?.len() as usize;
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let start = unsafe {
            let rights = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), len, rights, libc::MAP_SHARED, file.as_raw_fd(), 0)
        };
        if start == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        // SAFETY: as above.
        let words = unsafe { std::slice::from_raw_parts(start as *const AtomicU64, len / 8) };
        Ok(Registry { words })
    }

    /// All of it.
    pub fn words(&self) -> &'static [AtomicU64] {
        self.words
    }

    fn word32(&self, offset: usize) -> &'static AtomicU32 {
        let word = &self.words[offset / 8];
        let half = offset / 4 % 2;
        // SAFETY: one half of a word that is there, aligned to its size; both sizes are only used through atomics.
        unsafe { &*std::ptr::from_ref(word).cast::<AtomicU32>().add(half) }
    }

    /// A 32-bit word, for futexes.
    pub fn futex(&self, offset: usize) -> &'static AtomicU32 {
        self.word32(offset)
    }

    /// Reads a field of the record that begins at `base`; of a longer one its first word.
    pub fn get(&self, base: usize, field: &Field) -> u64 {
        match field.bytes {
            4 => u64::from(self.word32(base + field.offset).load(SeqCst)),
            _ => self.words[(base + field.offset) / 8].load(SeqCst),
        }
    }

    /// Writes one, and every word of a longer one.
    pub fn set(&self, base: usize, field: &Field, value: u64) {
        if field.bytes == 4 {
            self.word32(base + field.offset).store(value as u32, SeqCst);
        } else {
            let first = (base + field.offset) / 8;
            self.words[first..first + field.bytes / 8].iter().for_each(|word| word.store(value, SeqCst));
        }
    }

    /// Where a table's records lie, as far as they are in the mapping.
    pub fn records(&self, name: &str) -> (Vec<usize>, &'static Table) {
        let format: &'static Format = format();
        let mut base = 0;
        for table in &format.tables {
            let count = table.records.parse().unwrap_or_else(|_| {
                // Somebody may have scribbled over it.
                let header = format.table("Header");
                header.find(&table.records).map_or(0, |f| self.get(0, f) as usize).min(1 << 16)
            });
            if table.name == name {
                let last = self.words.len() * 8;
                let all = (0..count).map(|i| base + i * table.size);
                return (all.take_while(|at| at + table.size <= last).collect(), table);
            }
            base += count * table.size;
        }
        panic!("docs/format.md has no table {name}");
    }
}
