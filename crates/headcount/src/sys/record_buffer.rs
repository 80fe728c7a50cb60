//! A private buffer of journal records, as a reader fills it from the file.

use super::map::Page;
use crate::registry::layout::Record;

/// Room for a number of records.
pub(crate) struct RecordBuffer {
    pages: Vec<Page>,
}

impl RecordBuffer {
    pub(crate) fn new(records: usize) -> RecordBuffer {
        RecordBuffer { pages: Page::buffer(records * size_of::<Record>()) }
    }

    /// The bytes of the first so many records, or of as many as there is room for.
    pub(crate) fn bytes_mut(&mut self, records: usize) -> &mut [u8] {
        let bytes = Page::bytes_mut(&mut self.pages);
        let wanted = records.saturating_mul(size_of::<Record>()).min(bytes.len());
        &mut bytes[..wanted]
    }

    pub(crate) fn records(&self) -> &[Record] {
        let count = size_of_val(&*self.pages) / size_of::<Record>();
        // SAFETY: the pages are aligned for a record, hold this many of them, and live as long as the borrow of `self`; a
        // record consists of atomics only, for which every bit pattern is valid.
        unsafe { std::slice::from_raw_parts(self.pages.as_ptr().cast(), count) }
    }
}
