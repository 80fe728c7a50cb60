//! Memory that processes share, or a private copy of it for readers.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags, fallocate, fcntl_add_seals, memfd_create};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous};

use super::atomic::AtomicU32;
use super::shared::Shared;

/// Memory at a page's boundary, of which only shared records are made.
///
/// A mapping is never unmapped: processes forked from this one, and threads still inside of a call,
/// go on using it until they end.
pub(crate) struct Memory {
    base: NonNull<u8>,
    len: usize,
    // Keeps a private copy alive; `None` for a mapping.
    _copy: Option<Vec<Page>>,
}

/// What a private copy is made of, for its alignment.
#[repr(C, align(4096))]
#[derive(Clone)]
pub(crate) struct Page([u8; PAGE]);

pub(crate) const PAGE: usize = 4096;

impl Page {
    pub(crate) fn buffer(len: usize) -> Vec<Page> {
        vec![Page([0; PAGE]); len.div_ceil(PAGE)]
    }

    pub(crate) fn bytes_mut(pages: &mut [Page]) -> &mut [u8] {
        let len = size_of_val(pages);
        // SAFETY: a page is 4096 plain bytes without padding, so a slice of them is a slice of bytes.
        unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), len) }
    }
}

// SAFETY: the memory is only ever read and written through atomics (see `Shared`), and lies at a fixed address until the
// process ends or this is dropped.
unsafe impl Send for Memory {}
// SAFETY: as above: all access is atomic.
unsafe impl Sync for Memory {}

impl Memory {
    /// Maps the first `len` bytes of a file. The caller has checked that it is that long. Before any of it is touched, it
    /// must be allocated (by [`Memory::allocate`], or with the file), so that touching it cannot fail.
    pub(crate) fn map(fd: BorrowedFd<'_>, len: usize) -> io::Result<Memory> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { mmap(std::ptr::null_mut(), len, protection, flags, fd, 0) }?;
        Memory::new(base.cast(), len, None)
    }

    /// Shared memory without a file, for forked children only.
    pub(crate) fn anonymous(len: usize) -> io::Result<Memory> {
        let (protection, flags) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED);
        // SAFETY: a fresh mapping at an address of the kernel's choice aliases nothing.
        let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, protection, flags) }?;
        Memory::new(base.cast(), len, None)
    }

    /// The same under a name that `/proc/PID/fd` shows as long as the descriptor is open. Whoever inherits it can neither
    /// shorten nor lengthen the memory.
    pub(crate) fn named(name: &str, len: usize) -> io::Result<(Memory, OwnedFd)> {
        let fd = memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        // All of it, so that touching it cannot fail later.
        fallocate(&fd, FallocateFlags::empty(), 0, len as u64)?;
        fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        Ok((Memory::map(fd.as_fd(), len)?, fd))
    }

    /// A private copy, as a reader makes it.
    pub(crate) fn copy(mut pages: Vec<Page>) -> io::Result<Memory> {
        let (base, len) = (pages.as_mut_ptr().cast(), size_of_val(&*pages));
        Memory::new(base, len, Some(pages))
    }

    fn new(base: *mut u8, len: usize, copy: Option<Vec<Page>>) -> io::Result<Memory> {
        let base = NonNull::new(base).filter(|_| len >= PAGE).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Memory { base, len, _copy: copy })
    }

    /// Has the file system allocate what is missing of this range. Linux before 5.14 cannot.
    /// Where there is no room: [`io::ErrorKind::StorageFull`].
    pub(crate) fn allocate(&self, offset: usize, end: usize) -> io::Result<()> {
        let (start, end) = (offset / PAGE * PAGE, end.min(self.len).next_multiple_of(PAGE));
        if start >= end {
            return Ok(());
        }
        // SAFETY: a range of pages within the mapping; nothing in it is changed.
        let allocated =
            unsafe { madvise(self.base.as_ptr().add(start).cast(), end - start, Advice::LinuxPopulateWrite) };
        // The kernel says that it would have sent SIGBUS.
        allocated.map_err(|e| if e == Errno::FAULT { Errno::NOSPC } else { e }.into())
    }

    /// Whether each page from this offset on up to `end` is in memory: so it is allocated, whoever has done that. All of them are
    /// said to be where the kernel does not tell.
    pub(crate) fn resident(&self, offset: usize, end: usize) -> Vec<bool> {
        let (start, end) = (offset / PAGE * PAGE, end.min(self.len));
        let mut pages = vec![1u8; end.saturating_sub(start).div_ceil(PAGE)];
        if !pages.is_empty() {
            // SAFETY: a range of pages within the mapping, of which nothing is changed, and a byte for each of them. Where it
            // fails, the bytes stay as they are.
            unsafe { libc::mincore(self.base.as_ptr().add(start).cast(), end - start, pages.as_mut_ptr()) };
        }
        pages.into_iter().map(|page| page & 1 == 1).collect()
    }

    /// Gives the whole pages within this range back to the file system; they read as zeroes from then on. Best effort: not
    /// every file system can.
    pub(crate) fn give_back(&self, offset: usize, end: usize) {
        let (start, end) = (offset.next_multiple_of(PAGE), end.min(self.len) / PAGE * PAGE);
        if start < end {
            // SAFETY: a range of whole pages within the mapping, which is shared and only accessed through atomics.
            let _ =
                unsafe { madvise(self.base.as_ptr().add(start).cast(), end - start, Advice::LinuxRemove) };
        }
    }

    /// `count` records from `offset` on; as many of them as lie within the memory, none if the offset is not aligned.
    pub(crate) fn table<T: Shared>(&self, offset: usize, count: usize) -> &[T] {
        let room = self.len.saturating_sub(offset) / size_of::<T>();
        let count = if offset % align_of::<T>() == 0 { count.min(room) } else { 0 };
        if count == 0 {
            return &[];
        }
        // SAFETY: `offset + count * size` is within the memory, which begins at a page's boundary, so the offset is aligned
        // for `T`, which is `Shared`.
        unsafe { std::slice::from_raw_parts(self.base.as_ptr().add(offset).cast(), count) }
    }

    /// The record that the memory begins with.
    pub(crate) fn first<T: Shared>(&self) -> &T {
        const { assert!(cfg!(loom) || size_of::<T>() <= PAGE) };
        // SAFETY: the memory is at least a page, begins at a page's boundary, and `T` is `Shared`.
        unsafe { self.base.cast::<T>().as_ref() }
    }
}

/// A private buffer of records, as a reader fills it from a file.
pub(crate) struct Buffer<T> {
    pages: Vec<Page>,
    _of: PhantomData<T>,
}

impl<T: Shared> Buffer<T> {
    pub(crate) fn new(records: usize) -> Buffer<T> {
        Buffer { pages: Page::buffer(records * size_of::<T>()), _of: PhantomData }
    }

    /// The bytes of the first so many records, or of as many as there is room for.
    pub(crate) fn bytes_mut(&mut self, records: usize) -> &mut [u8] {
        let bytes = Page::bytes_mut(&mut self.pages);
        let wanted = records.saturating_mul(size_of::<T>()).min(bytes.len());
        &mut bytes[..wanted]
    }

    pub(crate) fn records(&self) -> &[T] {
        let count = size_of_val(&*self.pages) / size_of::<T>();
        // SAFETY: the pages are aligned for `T`, which is `Shared`, hold this many of it, and live as long as the borrow.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), count) }
    }
}

/// A word that a process shares with all that it forks. Never unmapped.
pub(crate) struct SharedWord(Memory);

impl SharedWord {
    pub(crate) fn new() -> io::Result<SharedWord> {
        Ok(SharedWord(Memory::anonymous(PAGE)?))
    }

    pub(crate) fn get(&self) -> &AtomicU32 {
        self.0.first()
    }
}
