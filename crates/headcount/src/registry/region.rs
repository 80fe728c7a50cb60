//! A registry in memory: mapped and shared, or a private copy.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use crate::registry::layout::{Generation, Geometry, Header, Record, Slot};
use crate::registry::reading::read_exact;
use crate::sys::atomic::AtomicU64;
use crate::sys::atomic::Ordering::{Relaxed, Release};
use crate::sys::memory::{Memory, Page};

/// Memory that is laid out as a registry of this geometry, which is kept here and never read again from the shared header.
pub(crate) struct Region {
    memory: Memory,
    geometry: Geometry,
}

/// The name under which a node's memory shows in `/proc/PID/fd`, where there is no file.
pub(crate) fn memory_name(node: &str) -> String {
    format!("headcount:{node}")
}

impl Region {
    /// Maps a file of the size that `geometry` asks for: see [`Memory::map`].
    pub(crate) fn map(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Region> {
        Ok(Region { memory: Memory::map(fd, geometry.file_size())?, geometry })
    }

    /// Without a file, for forked children only. If the kernel allows, with a descriptor that names the node.
    pub(crate) fn anonymous(node: &str, geometry: Geometry) -> io::Result<(Region, Option<OwnedFd>)> {
        let (memory, fd) = match Memory::named(&memory_name(node), geometry.file_size()) {
            Ok((memory, fd)) => (memory, Some(fd)),
            Err(_) => (Memory::anonymous(geometry.file_size())?, None),
        };
        Ok((Region { memory, geometry }, fd))
    }

    /// A private copy of the first `len` bytes of a file, without its journal.
    pub(crate) fn read(file: BorrowedFd<'_>, geometry: Geometry, len: usize) -> io::Result<Region> {
        // A region has a journal: the smallest, and not the one of the file, which may be large.
        let geometry = geometry.with_smallest_journal();
        let mut pages = Page::buffer(geometry.file_size());
        read_exact(file, &mut Page::bytes_mut(&mut pages)[..len], 0)?;
        Ok(Region { memory: Memory::copy(pages)?, geometry })
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn header(&self) -> &Header {
        self.memory.first()
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        self.memory.table(self.geometry.slots_offset(), self.geometry.slots())
    }

    pub(crate) fn generations(&self) -> &[Generation] {
        self.memory.table(self.geometry.generations_offset(), self.geometry.generations())
    }

    /// Goes on where another registry of this node is: with its numbers, and, if there is as much room, with its journal. Does
    /// nothing to one that has events of its own.
    pub(crate) fn go_on_from(&self, other: &Region) {
        let (header, from) = (self.header(), other.header());
        if header.head.load(Relaxed) != 0 {
            return;
        }
        header.last_generation.store(from.last_generation.load(Relaxed), Relaxed);
        header.runs.store(from.runs.load(Relaxed), Relaxed);
        if self.geometry != other.geometry {
            return;
        }
        let words = |region: &'_ Region| {
            let (start, end) = (region.geometry.journal_offset(), region.geometry.file_size());
            (start, (end - start) / size_of::<AtomicU64>())
        };
        let (start, count) = words(self);
        let (to, old): (&[AtomicU64], &[AtomicU64]) =
            (self.memory.table(start, count), other.memory.table(start, count));
        for (to, from) in to.iter().zip(old).chain(header.kinds.iter().zip(&from.kinds)) {
            to.store(from.load(Relaxed), Relaxed);
        }
        header.head.store(from.head.load(Relaxed), Release);
    }

    /// Gives back what a node without processes does not need: its tables, which are empty, and what its journal has never
    /// used.
    pub(crate) fn shrink(&self) {
        let (header, geometry) = (self.header(), self.geometry);
        header.slots_used.store(0, Relaxed);
        header.generations_used.store(0, Relaxed);
        self.memory.give_back(geometry.slots_offset(), geometry.journal_offset());
        let used = usize::try_from(header.head.load(Relaxed)).unwrap_or(usize::MAX);
        if used < geometry.journal_records() {
            self.memory
                .give_back(geometry.journal_offset() + used * size_of::<Record>(), geometry.file_size());
        }
    }

    pub(crate) fn journal(&self) -> &[Record] {
        self.memory.table(self.geometry.journal_offset(), self.geometry.journal_records())
    }
}
