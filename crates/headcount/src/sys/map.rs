//! The registry's memory: mapped and shared, or a private copy for readers.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous};

use super::atomic::AtomicU32;
use crate::registry::layout::{Generation, Geometry, Header, Record, Slot};

/// Memory of at least `Geometry::file_size()` bytes, 64-byte aligned, laid out as a registry.
///
/// A mapping is never unmapped: processes forked from this one, and threads still inside of a call,
/// go on using it until they end.
pub(crate) struct Region {
    base: NonNull<u8>,
    geometry: Geometry,
    // Keeps a private copy alive; `None` for a mapping.
    _copy: Option<Vec<Page>>,
}

/// What a private copy is made of, for its alignment.
#[repr(C, align(4096))]
#[derive(Clone)]
pub(crate) struct Page([u8; 4096]);

impl Page {
    pub(crate) fn buffer(len: usize) -> Vec<Page> {
        vec![Page([0; 4096]); len.div_ceil(4096)]
    }

    pub(crate) fn bytes_mut(pages: &mut [Page]) -> &mut [u8] {
        let len = size_of_val(pages);
        // SAFETY: a page is 4096 plain bytes without padding, so a slice of them is a slice of bytes.
        unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), len) }
    }
}

// SAFETY: the region is only ever read and written through atomics (every field of every record is
// one), and its memory lives at a fixed address until the process ends or the region is dropped.
unsafe impl Send for Region {}
// SAFETY: as above: all access is atomic.
unsafe impl Sync for Region {}

impl Region {
    /// Maps a file of the size that `geometry` asks for. The caller has checked that it has that size
    /// and that its blocks are allocated, so that touching it cannot fail later.
    pub(crate) fn map(fd: BorrowedFd<'_>, geometry: Geometry) -> io::Result<Region> {
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                geometry.file_size(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        Region::new(base.cast(), geometry, None)
    }

    /// Shared memory without a file, for forked children only.
    pub(crate) fn anonymous(geometry: Geometry) -> io::Result<Region> {
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe {
            mmap_anonymous(
                std::ptr::null_mut(),
                geometry.file_size(),
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED,
            )
        }?;
        Region::new(base.cast(), geometry, None)
    }

    /// A private copy, as a reader makes it. `None` if it is too short for `geometry`.
    pub(crate) fn copy(mut pages: Vec<Page>, geometry: Geometry) -> Option<Region> {
        if size_of_val(&*pages) < geometry.file_size() {
            return None;
        }
        let base = pages.as_mut_ptr().cast();
        Region::new(base, geometry, Some(pages)).ok()
    }

    fn new(base: *mut u8, geometry: Geometry, copy: Option<Vec<Page>>) -> io::Result<Region> {
        let base = NonNull::new(base).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Region { base, geometry, _copy: copy })
    }

    pub(crate) fn geometry(&self) -> Geometry {
        self.geometry
    }

    pub(crate) fn header(&self) -> &Header {
        // SAFETY: the region is page-aligned and at least `file_size()` bytes, of which the header
        // is the first page; all its fields are atomics, for which every bit pattern is valid.
        unsafe { self.base.cast::<Header>().as_ref() }
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        self.table(self.geometry.slots_offset(), self.geometry.slots())
    }

    pub(crate) fn generations(&self) -> &[Generation] {
        self.table(self.geometry.generations_offset(), self.geometry.generations())
    }

    pub(crate) fn journal(&self) -> &[Record] {
        self.table(self.geometry.journal_offset(), self.geometry.journal_records())
    }

    fn table<T: SharedRecord>(&self, offset: usize, count: usize) -> &[T] {
        debug_assert!(offset + count * size_of::<T>() <= self.geometry.file_size());
        // SAFETY: the geometry is the one the memory was sized with (it is kept in private memory and
        // never read again from the shared header), its offsets are multiples of 128 and its tables
        // do not overlap; a `SharedRecord` consists of atomics only.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast(), count) }
    }
}

/// A word that a process shares with all that it forks. Never unmapped.
pub(crate) struct SharedWord(NonNull<AtomicU32>);

// SAFETY: all access is atomic, and the memory is never unmapped.
unsafe impl Send for SharedWord {}
// SAFETY: as above.
unsafe impl Sync for SharedWord {}

impl SharedWord {
    pub(crate) fn new() -> io::Result<SharedWord> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let page = unsafe { mmap_anonymous(std::ptr::null_mut(), 4096, protection, flags) }?;
        Ok(SharedWord(NonNull::new(page.cast()).ok_or(io::ErrorKind::InvalidData)?))
    }

    pub(crate) fn get(&self) -> &AtomicU32 {
        // SAFETY: page-aligned, mapped for good, and every bit pattern is a valid atomic.
        unsafe { self.0.as_ref() }
    }
}

/// # Safety
/// Only for `repr(C)` types that consist of atomics alone: any bit pattern is valid, and shared
/// references to them may be read and written from several processes.
unsafe trait SharedRecord {}
// SAFETY: `record!` in layout.rs makes it of atomics only.
unsafe impl SharedRecord for Slot {}
// SAFETY: as above.
unsafe impl SharedRecord for Generation {}
// SAFETY: as above.
unsafe impl SharedRecord for Record {}
