//! The journal. Reading it takes no lock.

use headcount_core::{Cursor, ErrorKind};

use crate::border::codes::HEADCOUNT_OK;
use crate::border::entry::{Failure, check_pointer, check_struct, entry, put};
use crate::border::event::EventRecord;
use crate::handle::{self, Handle};

/// Reads on in the journal. `*cursor` is the number of the event that is wanted next, 0: the oldest that is
/// kept; it is moved on. At most `capacity` events go to `events` and their number to `*number`;
/// `*lost` (may be NULL) gets how many were overwritten before they could be read.
///
/// `struct_size` of `events[0]` must be set.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn headcount_events(
    node: *mut Handle,
    cursor: *mut u64,
    events: *mut EventRecord,
    capacity: u64,
    number: *mut u64,
    lost: *mut u64,
) -> i32 {
    entry(|| {
        let handle = handle::find(node)?;
        check_pointer(cursor, "cursor")?;
        check_pointer(number, "number")?;
        if capacity == 0 {
            return Err(Failure::new(
                ErrorKind::InvalidOption,
                "argument `capacity` is 0; allowed is 1 and more",
            ));
        }
        // SAFETY: NULL, or room for at least one structure whose size is set, by the caller's word.
        unsafe { check_struct(events, "events") }?;
        // SAFETY: checked above; readable by the caller's word.
        let mut position = Cursor::at(unsafe { cursor.read() });
        let batch = handle.node.events(&mut position, usize::try_from(capacity).unwrap_or(usize::MAX));
        for (i, event) in batch.events.iter().enumerate() {
            // SAFETY: the core keeps to the limit, so that `i` is below the caller's capacity.
            unsafe { events.add(i).write(EventRecord::new(event, false)) };
        }
        // SAFETY: checked above, but for `lost`, which may be NULL; all writable by the caller's word.
        unsafe {
            put(cursor, "cursor", position.next_seq())?;
            put(number, "number", batch.events.len() as u64)?;
            if !lost.is_null() {
                put(lost, "lost", batch.lost)?;
            }
        }
        Ok(HEADCOUNT_OK)
    })
}
