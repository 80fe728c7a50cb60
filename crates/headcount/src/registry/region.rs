//! A registry in memory: mapped and shared, or a private copy.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed as Plain;

use rustix::fs::{FallocateFlags, fallocate};
use rustix::io::Errno;

use crate::registry::layout::{Generation, Geometry, Header, Record, Singleton, Slot};
use crate::sys::atomic::AtomicU64;
use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::memory::{Memory, PAGE, Page};
use crate::sys::shared::Shared;

/// Memory that is laid out as a registry of this geometry, which is kept here and never read again from the shared header.
///
/// A file grows with what is in it: of each table, the file system has allocated only what somebody needed so far.
pub(crate) struct Region {
    memory: Memory,
    geometry: Geometry,
    slots: Table<Slot>,
    generations: Table<Generation>,
    singletons: Table<Singleton>,
    journal: Table<Record>,
}

/// One table, and how many of its records this process knows to be allocated, so that touching them cannot fail.
struct Table<T> {
    offset: usize,
    capacity: usize,
    /// What a start needs, so that it is not asked for page by page.
    first: usize,
    allocated: AtomicUsize,
    _of: PhantomData<T>,
}

impl<T: Shared> Table<T> {
    fn new(offset: usize, capacity: usize, first: usize, is_allocated: bool) -> Table<T> {
        let allocated = AtomicUsize::new(if is_allocated { capacity } else { 0 });
        Table { offset, capacity, first, allocated, _of: PhantomData }
    }

    fn end(&self, count: usize) -> usize {
        self.offset + count * size_of::<T>()
    }

    /// What is known to be allocated.
    fn known<'a>(&self, memory: &'a Memory) -> &'a [T] {
        memory.table(self.offset, self.allocated.load(Plain))
    }

    /// At least the first `count` records, if there is room for them.
    fn up_to<'a>(&self, memory: &'a Memory, count: usize) -> &'a [T] {
        if count > self.allocated.load(Plain) {
            // A full file system is seen by what is missing.
            let _ = self.allocate(memory, count);
        }
        self.known(memory)
    }

    /// The first record that fits; perhaps one that was not allocated yet.
    fn find<'a>(&self, memory: &'a Memory, mut fits: impl FnMut(&T) -> bool) -> Option<(u32, &'a T)> {
        let mut known = self.known(memory);
        let index = known.iter().position(&mut fits).or_else(|| {
            let more = known.len();
            known = self.up_to(memory, more + 1);
            known.get(more).filter(|record| fits(record)).map(|_| more)
        })?;
        Some((u32::try_from(index).ok()?, known.get(index)?))
    }

    fn allocate(&self, memory: &Memory, count: usize) -> io::Result<()> {
        let known = self.allocated.load(Plain);
        let wanted = count.max(self.first).checked_next_power_of_two().unwrap_or(count).min(self.capacity);
        memory.allocate(self.end(known), self.end(wanted))?;
        self.allocated.fetch_max(wanted, Plain);
        Ok(())
    }
}

/// The name under which a node's memory shows in `/proc/PID/fd`, where there is no file.
pub(crate) fn memory_name(node: &str) -> String {
    format!("headcount:{node}")
}

impl Region {
    fn new(memory: Memory, geometry: Geometry, is_allocated: bool) -> Region {
        let (slots, generations, records) =
            (geometry.slots(), geometry.generations(), geometry.journal_records());
        Region {
            memory,
            geometry,
            slots: Table::new(geometry.slots_offset(), slots, 64, is_allocated),
            generations: Table::new(geometry.generations_offset(), generations, 64, is_allocated),
            // Most nodes have none.
            singletons: Table::new(geometry.singletons_offset(), geometry.singletons(), 16, is_allocated),
            journal: Table::new(geometry.journal_offset(), records, 256, is_allocated),
        }
    }

    /// Maps a file of the size that `geometry` asks for, and has the file system allocate the little that a start needs.
    pub(crate) fn map(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Region> {
        let region = Region::new(Memory::map(fd, geometry.file_size())?, geometry, false);
        let memory = &region.memory;
        match memory.allocate(0, size_of::<Header>()) {
            Err(e) if e.kind() == io::ErrorKind::StorageFull => return Err(e),
            // The kernel, or a sandbox, does not know how: then all at once.
            Err(_) => {
                fallocate(fd, FallocateFlags::empty(), 0, geometry.file_size() as u64)?;
                return Ok(Region::new(region.memory, geometry, true));
            }
            Ok(()) => {}
        }
        region.slots.allocate(memory, 1)?;
        region.generations.allocate(memory, 1)?;
        region.journal.allocate(memory, 1)?;
        Ok(region)
    }

    /// Without a file, for forked children only. If the kernel allows, with a descriptor that names the node.
    pub(crate) fn anonymous(node: &str, geometry: Geometry) -> io::Result<(Region, Option<OwnedFd>)> {
        let (memory, fd) = match Memory::named(&memory_name(node), geometry.file_size()) {
            Ok((memory, fd)) => (memory, Some(fd)),
            Err(_) => (Memory::anonymous(geometry.file_size())?, None),
        };
        Ok((Region::new(memory, geometry, true), fd))
    }

    /// A private copy of the first `len` bytes of a file, without its journal.
    pub(crate) fn read(file: BorrowedFd<'_>, geometry: Geometry, len: usize) -> io::Result<Region> {
        // A region has a journal: the smallest, and not the one of the file, which may be large.
        let geometry = geometry.with_smallest_journal();
        let mut pages = Page::buffer(geometry.file_size());
        read_exact(file, &mut Page::bytes_mut(&mut pages)[..len], 0)?;
        Ok(Region::new(Memory::copy(pages)?, geometry, true))
    }

    /// The same of all tables; of singletons, which most nodes have none of, those that are used.
    pub(crate) fn read_tables(file: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Region> {
        let geometry = geometry.with_smallest_journal();
        let start = geometry.singletons_offset();
        let mut pages = Page::buffer(geometry.file_size());
        let bytes = Page::bytes_mut(&mut pages);
        read_exact(file, &mut bytes[..start], 0)?;
        let used = std::mem::offset_of!(Header, singletons_used);
        let used = bytes[used..].first_chunk().map_or(0, |word| u32::from_ne_bytes(*word) as usize);
        let end = start + used.min(geometry.singletons()) * size_of::<Singleton>();
        read_exact(file, &mut bytes[start..end], start as u64)?;
        Ok(Region::new(Memory::copy(pages)?, geometry, true))
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn header(&self) -> &Header {
        self.memory.first()
    }

    /// The slots that this process knows to be allocated.
    pub(crate) fn slots(&self) -> &[Slot] {
        self.slots.known(&self.memory)
    }

    /// At least so many slots; fewer if there are fewer, or no room for them.
    pub(crate) fn slots_up_to(&self, count: usize) -> &[Slot] {
        self.slots.up_to(&self.memory, count)
    }

    /// Every slot and every generation that somebody can have written, whatever the header says of how many there are.
    pub(crate) fn everything(&self) -> (&[Slot], &[Generation]) {
        let (start, end) = (self.geometry.slots_offset(), self.geometry.singletons_offset());
        let resident = self.memory.resident(start, end);
        let pages = || {
            resident
                .iter()
                .enumerate()
                .filter(|(_, is_there)| **is_there)
                .map(|(page, _)| start + page * PAGE)
        };
        // A page at a border has records of both tables.
        let last_slot = pages().rfind(|&page| page < self.geometry.generations_offset());
        let last_generation = pages().next_back();
        let count = |last: Option<usize>, table_start: usize, size: usize| {
            last.map_or(0, |page| (page + PAGE).saturating_sub(table_start).div_ceil(size))
        };
        (
            self.slots_up_to(count(last_slot, start, size_of::<Slot>())),
            self.generations_up_to(count(
                last_generation,
                self.geometry.generations_offset(),
                size_of::<Generation>(),
            )),
        )
    }

    /// The first slot that fits; perhaps one that was not allocated yet.
    pub(crate) fn find_slot(&self, fits: impl FnMut(&Slot) -> bool) -> Option<(u32, &Slot)> {
        self.slots.find(&self.memory, fits)
    }

    /// As [`Region::slots`].
    pub(crate) fn generations(&self) -> &[Generation] {
        self.generations.known(&self.memory)
    }

    /// As [`Region::slots_up_to`].
    pub(crate) fn generations_up_to(&self, count: usize) -> &[Generation] {
        self.generations.up_to(&self.memory, count)
    }

    /// As [`Region::find_slot`].
    pub(crate) fn find_generation(
        &self,
        fits: impl FnMut(&Generation) -> bool,
    ) -> Option<(u32, &Generation)> {
        self.generations.find(&self.memory, fits)
    }

    /// As [`Region::slots`].
    pub(crate) fn singletons(&self) -> &[Singleton] {
        self.singletons.known(&self.memory)
    }

    /// As [`Region::slots_up_to`].
    pub(crate) fn singletons_up_to(&self, count: usize) -> &[Singleton] {
        self.singletons.up_to(&self.memory, count)
    }

    /// As [`Region::find_slot`].
    pub(crate) fn find_singleton(&self, fits: impl FnMut(&Singleton) -> bool) -> Option<(u32, &Singleton)> {
        self.singletons.find(&self.memory, fits)
    }

    /// As [`Region::slots_up_to`].
    pub(crate) fn journal_up_to(&self, count: usize) -> &[Record] {
        self.journal.up_to(&self.memory, count)
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
        header.last_token.store(from.last_token.load(Relaxed), Relaxed);
        if self.geometry != other.geometry {
            return;
        }
        // First: what is written meanwhile is not known to be whole.
        let head = from.head.load(Acquire);
        let used = usize::try_from(head).unwrap_or(usize::MAX);
        let words = |region: &'_ Region| {
            let records = region.journal_up_to(used.min(region.geometry.journal_records()));
            (region.geometry.journal_offset(), size_of_val(records) / size_of::<AtomicU64>())
        };
        let ((start, room), (_, count)) = (words(self), words(other));
        let (to, old): (&[AtomicU64], &[AtomicU64]) =
            (self.memory.table(start, room), other.memory.table(start, count));
        for (to, from) in to.iter().zip(old).chain(header.kinds.iter().zip(&from.kinds)) {
            to.store(from.load(Relaxed), Relaxed);
        }
        header.earlier_boots.store(from.earlier_boots.load(Relaxed), Relaxed);
        header.goes_on_at.store(head, Relaxed);
        header.head.store(head, Release);
    }

    /// Says, before anything else, that it is going to go on where another one was: readers that come early wait for it.
    pub(crate) fn will_go_on_from(&self, other: &Region) {
        self.header().goes_on_from_ns.store(other.header().created_ns.load(Relaxed), Release);
    }

    /// Gives back what a node without processes does not need: its tables, which are empty, and what its journal has never
    /// used.
    pub(crate) fn shrink(&self) {
        let (header, geometry) = (self.header(), self.geometry);
        header.slots_used.store(0, Relaxed);
        header.generations_used.store(0, Relaxed);
        header.singletons_used.store(0, Relaxed);
        self.slots.allocated.store(0, Plain);
        self.generations.allocated.store(0, Plain);
        self.singletons.allocated.store(0, Plain);
        self.memory.give_back(geometry.slots_offset(), geometry.journal_offset());
        let used = usize::try_from(header.head.load(Relaxed)).unwrap_or(usize::MAX);
        if used < geometry.journal_records() {
            self.journal.allocated.store(0, Plain);
            self.memory
                .give_back(geometry.journal_offset() + used * size_of::<Record>(), geometry.file_size());
        }
    }
}

/// Fills `bytes` from the file at `at`; [`io::ErrorKind::UnexpectedEof`] if it ends before.
pub(crate) fn read_exact(file: BorrowedFd<'_>, bytes: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        match rustix::io::pread(file, &mut bytes[done..], at + done as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => done += n,
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
