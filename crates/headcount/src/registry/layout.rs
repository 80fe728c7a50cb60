//! The registry byte by byte. `docs/format.md` says the same in prose; a test keeps the two together.
//!
//! Every field is an atomic, because every field may be written by another process at any time, and by
//! one that means harm. Nothing in it is a pointer, and no index in it is used unchecked.

use crate::error::{Allowed, Error};
use crate::sys::atomic::Ordering::Relaxed;
use crate::sys::atomic::{AtomicI32, AtomicU32, AtomicU64};
use crate::sys::clock;
use crate::sys::shared::record;

/// The first eight bytes of a registry.
pub(crate) const MAGIC: u64 = u64::from_le_bytes(*b"HEADCNT\n");
/// The layout's version. Any change of a size, an offset or a meaning is a new one.
pub(crate) const FORMAT: u32 = 3;

/// The byte of the lock file that a process shares, to prove that it is a member of the node: by id and birth, since
/// the id alone is soon somebody else's. `word`: see `Identity::to_word`, of which the upper bits are left out.
pub(crate) const fn member_byte(word: u64) -> u64 {
    1 + (word & BYTES)
}

/// The byte that it shares as long as it waits for the node lock to join, or holds it.
pub(crate) const fn engaged_byte(word: u64) -> u64 {
    member_byte(word) + BYTES + 1
}

/// So many bytes are there of each kind.
const BYTES: u64 = (1 << 61) - 1;

/// So many processes that wait to join are known at a time.
pub(crate) const JOINERS: usize = 16;

/// "There is no such generation" in a count.
pub(crate) const NO_GENERATION: i32 = -1;

/// For so many kinds of events there is room in the header.
pub(crate) const KINDS: usize = 32;

record! {
    /// The first page of a registry.
    Header, 4096, {
        // Fixed when the registry is made.
        0 magic: AtomicU64,
        8 format: AtomicU32,
        12 slots: AtomicU32,
        16 generations: AtomicU32,
        20 journal_records: AtomicU32,
        24 boot_id: [AtomicU64; 2],
        40 created_ns: AtomicU64,
        // Made in place of a registry that was removed under its server: when that was made, and the last event that was
        // copied from it. 0: none.
        48 goes_on_from_ns: AtomicU64,
        56 goes_on_at: AtomicU64,
        64 name: [AtomicU64; 8],
        // The settings of the newest generation: everybody judges alike.
        128 heartbeat_interval_ns: AtomicU64,
        136 stall_after_ns: AtomicU64,
        144 lock_timeout_ns: AtomicU64,
        // What moves. Written under the node lock, but for `released`, `lock`, `joiners` and `joining`.
        152 head: AtomicU64,
        160 last_generation: AtomicU64,
        168 runs: AtomicU64,
        176 slots_used: AtomicU32,
        180 generations_used: AtomicU32,
        184 sentinel: AtomicU64,
        // Changes whenever the node lock is released.
        192 released: AtomicU32,
        196 holder_pid: AtomicU32,
        200 holder_since: AtomicU64,
        208 holder_operation: AtomicU32,
        212 callback_kind: AtomicU32,
        216 callback_seq: AtomicU64,
        224 callback_since: AtomicU64,
        232 redeliver_seq: AtomicU64,
        240 repairs: AtomicU64,
        248 redeliver_tries: AtomicU32,
        // The pid namespace of the node's masters.
        252 namespace: AtomicU32,
        // How many events of each kind there have been, by the kind's code.
        256 kinds: [AtomicU64; KINDS],
        // Who holds the node lock: see `Identity::to_word`. Worth something only while that process is alive.
        512 lock: AtomicU64,
        // Who waits to join, and which generation.
        520 joiners: [AtomicU64; JOINERS],
        648 joining: [AtomicU64; JOINERS],
        // The number of the newest event of an earlier boot, whose clock was another. 0: none.
        776 earlier_boots: AtomicU64,
        // The newest token of a leader: tokens only grow.
        784 last_token: AtomicU64,
        792 singletons: AtomicU32,
        796 singletons_used: AtomicU32,
        // Changes whenever a process may have to be told that it leads, or leads no more, or that a once is open again.
        800 calls: AtomicU32,
        804 reserved_word: AtomicU32,
        808 reserved: [AtomicU64; 411],
    }
}

record! {
    /// One process of the node.
    Slot, 192, {
        // Odd while it is being claimed or freed; half of it is the incarnation.
        0 version: AtomicU64,
        8 generation: AtomicU64,
        16 pid: AtomicU32,
        20 worker_id: AtomicI32,
        24 role: AtomicU32,
        28 cause: AtomicU32,
        32 birth: AtomicU64,
        40 joined_ns: AtomicU64,
        48 joined_wall_ns: AtomicU64,
        56 intent: AtomicU32,
        60 retry: AtomicU32,
        // The second cache line belongs to the process itself and is written at every heartbeat.
        64 heartbeat_ns: AtomicU64,
        72 intent_since_ns: AtomicU64,
        80 started_seq: AtomicU64,
        88 exited_seq: AtomicU64,
        96 died_seq: AtomicU64,
        104 stalled_seq: AtomicU64,
        112 recovered_seq: AtomicU64,
        // Bit 32 set: the lower half is a wait status.
        120 wait_status: AtomicU64,
        128 namespace: AtomicU32,
        132 birth_kind: AtomicU32,
        // The lock file in which it shares its byte, 0 if in none.
        136 lock_tag: AtomicU32,
        // What it waits for: the index of a lock among the singletons, + 1.
        140 waits_for: AtomicU32,
        // When that heartbeat was on the clock that stands still while the machine is suspended; 0 = not noted.
        144 heartbeat_awake_ns: AtomicU64,
        // The roles that it stands for, by their numbers.
        152 stands_for: AtomicU64,
        160 reserved: [AtomicU64; 4],
    }
}

record! {
    /// One generation that is announced, serves, or has not been reported to have ended.
    Generation, 128, {
        0 version: AtomicU64,
        8 id: AtomicU64,
        16 phase: AtomicU32,
        20 cause: AtomicU32,
        24 master_slot: AtomicU32,
        28 master_pid: AtomicU32,
        32 master_version: AtomicU64,
        40 begun_ns: AtomicU64,
        48 begun_wall_ns: AtomicU64,
        56 expected: AtomicU32,
        60 joined: AtomicU32,
        64 started_seq: AtomicU64,
        72 ended_seq: AtomicU64,
        80 abandoned_seq: AtomicU64,
        88 start_delivered: AtomicU32,
        92 marks: AtomicU32,
        96 retry: AtomicU32,
        // How the run before this generation's ended: told with its start.
        100 previous_run: AtomicU32,
        104 previous_generation: AtomicU64,
        112 previous_workers: AtomicU32,
        // When the last worker died that was not told to go: boot clock in units of 2^20 ns, 0 = never.
        116 lost_at_work: AtomicU32,
        // Bit i: worker number i has joined.
        120 came: AtomicU64,
    }
}

record! {
    /// What one process has at a time: a role, a once, a lock.
    Singleton, 192, {
        0 version: AtomicU64,
        8 kind: AtomicU32,
        12 state: AtomicU32,
        16 name: [AtomicU64; 6],
        // Of a role: the token of who leads. Of a lock: who holds it, as in `Header::lock`. 0: nobody.
        64 word: AtomicU64,
        // As in the header, of a lock.
        72 released: AtomicU32,
        // Somebody sleeps until it is released.
        76 awaited: AtomicU32,
        // How often a lock was taken.
        80 token: AtomicU64,
        // The holder died inside: its pid, until the next one is told.
        88 abandoned_by: AtomicU32,
        // How often a once was tried.
        92 attempts: AtomicU32,
        // Somebody has taken a lock from this one, who was dead, and it is not reported yet.
        96 broken_from: AtomicU64,
        // Who leads, or runs a once.
        104 owner_version: AtomicU64,
        112 owner_slot: AtomicU32,
        116 owner_pid: AtomicU32,
        120 owner_worker_id: AtomicI32,
        // How the last tenure or attempt ended.
        124 cause: AtomicU32,
        128 wait_status: AtomicU64,
        136 since_ns: AtomicU64,
        // Of a once: its generation, 0 for the node's. Of a role: the leader's.
        144 generation: AtomicU64,
        // Of a role: since when its leader has been asked to give it up.
        152 asked_ns: AtomicU64,
        // Of a role: its bit in `Slot::stands_for`.
        160 number: AtomicU32,
        // What `state` becomes with the event that `seq` counts: if its writer dies, whoever comes next completes that.
        164 next_state: AtomicU32,
        168 seq: AtomicU64,
        // The last holder of a lock of whom it is reported that he died with it.
        176 last_dead: AtomicU64,
        184 reserved: AtomicU64,
    }
}

record! {
    /// One event of the journal.
    Record, 128, {
        // The event's number, written last; 0 while the record is being written. Of those that have a name it is in the words from
        // `prev` to `previous_run`.
        0 seq: AtomicU64,
        8 generation: AtomicU64,
        16 time_ns: AtomicU64,
        24 boot_ns: AtomicU64,
        32 heartbeat_ns: AtomicU64,
        40 detail: AtomicU64,
        48 kind: AtomicU32,
        52 cause: AtomicU32,
        56 pid: AtomicU32,
        60 worker_id: AtomicI32,
        64 prev: AtomicI32,
        68 mine: AtomicI32,
        72 next: AtomicI32,
        76 draining: AtomicI32,
        80 prev_draining: AtomicI32,
        84 next_draining: AtomicI32,
        88 total: AtomicI32,
        92 signal: AtomicI32,
        96 exit_code: AtomicI32,
        100 role: AtomicU32,
        104 reporter_pid: AtomicU32,
        108 previous_run: AtomicU32,
        112 previous_workers: AtomicI32,
        // Of a process that is gone, its state (8 bits) and the upper half of when that began; the lower half is where
        // `previous_workers` is.
        116 state: AtomicU32,
        // How many events of this kind there have been, this one with them.
        120 nth: AtomicU64,
    }
}

impl Slot {
    /// Whether somebody is in it, or was just about to be.
    pub(crate) fn is_taken(&self) -> bool {
        self.role.load(Relaxed) != 0 || self.version.load(Relaxed) % 2 == 1
    }

    /// A heartbeat, at this time of the boot clock.
    pub(crate) fn beat(&self, now: u64) {
        self.heartbeat_ns.store(now, Relaxed);
        // At most a tick too early: by so much less of a suspend is known.
        self.heartbeat_awake_ns.store(clock::awake_lately_ns(), Relaxed);
    }

    /// The numbers of the events that reported something of it.
    pub(crate) fn seqs(&self) -> [&AtomicU64; 5] {
        [&self.started_seq, &self.exited_seq, &self.died_seq, &self.stalled_seq, &self.recovered_seq]
    }
}

impl Singleton {
    /// As [`Slot::is_taken`].
    pub(crate) fn is_taken(&self) -> bool {
        self.kind.load(Relaxed) != 0 || self.version.load(Relaxed) % 2 == 1
    }
}

/// How long the name of a role, a once or a lock may be, in bytes.
pub(crate) const LONGEST_NAME: usize = 48;

impl Record {
    /// Writes a name where other events have their counts and how a process ended.
    pub(crate) fn set_name(&self, name: &str) {
        let mut bytes = [0u8; LONGEST_NAME];
        for (to, from) in bytes.iter_mut().zip(name.bytes()) {
            *to = from;
        }
        let mut words = bytes.chunks_exact(4).map(|b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]));
        for (to, word) in self.signed().into_iter().zip(&mut words) {
            to.store(word as i32, Relaxed);
        }
        for (to, word) in self.unsigned().into_iter().zip(words) {
            to.store(word, Relaxed);
        }
    }

    pub(crate) fn name(&self) -> Option<String> {
        let signed = self.signed().into_iter().map(|word| word.load(Relaxed) as u32);
        let unsigned = self.unsigned().into_iter().map(|word| word.load(Relaxed));
        read_name(signed.chain(unsigned).flat_map(u32::to_ne_bytes))
    }

    fn signed(&self) -> [&AtomicI32; 9] {
        [
            &self.prev,
            &self.mine,
            &self.next,
            &self.draining,
            &self.prev_draining,
            &self.next_draining,
            &self.total,
            &self.signal,
            &self.exit_code,
        ]
    }

    fn unsigned(&self) -> [&AtomicU32; 3] {
        [&self.role, &self.reporter_pid, &self.previous_run]
    }
}

/// A name as a record tells it. `None`: it is none.
pub(crate) fn read_name(bytes: impl Iterator<Item = u8>) -> Option<String> {
    let name: String = bytes.take_while(|&b| b != 0).map(char::from).collect();
    is_singleton_name(&name).then_some(name)
}

/// What a role, a once or a lock may be called.
pub(crate) fn is_singleton_name(name: &str) -> bool {
    (1..=LONGEST_NAME).contains(&name.len()) && name.chars().all(is_in_a_name)
}

pub(crate) fn is_in_a_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-')
}

impl Generation {
    /// As [`Slot::is_taken`].
    pub(crate) fn is_taken(&self) -> bool {
        self.phase.load(Relaxed) != 0 || self.version.load(Relaxed) % 2 == 1
    }

    /// The numbers of the events that reported something of it.
    pub(crate) fn seqs(&self) -> [&AtomicU64; 3] {
        [&self.started_seq, &self.ended_seq, &self.abandoned_seq]
    }
}

/// The sizes of one registry's tables. Kept in private memory once it is checked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    slots: u32,
    singletons: u32,
    journal_records: u32,
}

/// Bounds of the options `slots`, `singletons` and `journal_records`.
pub(crate) const SLOTS_RANGE: std::ops::RangeInclusive<u32> = 2..=65_536;
pub(crate) const SINGLETONS_RANGE: std::ops::RangeInclusive<u32> = 1..=65_536;
pub(crate) const JOURNAL_RANGE: std::ops::RangeInclusive<u32> = 64..=1_048_576;

impl Geometry {
    pub(crate) const SMALLEST: Geometry = Geometry {
        slots: *SLOTS_RANGE.start(),
        singletons: *SINGLETONS_RANGE.start(),
        journal_records: *JOURNAL_RANGE.start(),
    };

    pub(crate) fn new(slots: u32, singletons: u32, journal_records: u32) -> Result<Geometry, Error> {
        let within = |option: &'static str, value: u32, range: &std::ops::RangeInclusive<u32>| {
            if range.contains(&value) {
                return Ok(());
            }
            let allowed = Allowed::Number { from: *range.start(), to: *range.end() };
            Err(Error::option(option, value.to_string(), allowed))
        };
        within("slots", slots, &SLOTS_RANGE)?;
        within("singletons", singletons, &SINGLETONS_RANGE)?;
        within("journal_records", journal_records, &JOURNAL_RANGE)?;
        Ok(Geometry { slots, singletons, journal_records })
    }

    pub(crate) fn with_smallest_journal(self) -> Geometry {
        Geometry { journal_records: Geometry::SMALLEST.journal_records, ..self }
    }

    pub(crate) fn slots(self) -> usize {
        self.slots as usize
    }

    /// As many generations as slots: each one that lives has a worker or is about to get one.
    pub(crate) fn generations(self) -> usize {
        self.slots as usize
    }

    pub(crate) fn singletons(self) -> usize {
        self.singletons as usize
    }

    pub(crate) fn journal_records(self) -> usize {
        self.journal_records as usize
    }

    pub(crate) fn slots_offset(self) -> usize {
        4096
    }

    pub(crate) fn generations_offset(self) -> usize {
        self.slots_offset() + self.slots() * size_of::<Slot>()
    }

    pub(crate) fn singletons_offset(self) -> usize {
        self.generations_offset() + self.generations() * size_of::<Generation>()
    }

    pub(crate) fn journal_offset(self) -> usize {
        self.singletons_offset() + self.singletons() * size_of::<Singleton>()
    }

    pub(crate) fn file_size(self) -> usize {
        (self.journal_offset() + self.journal_records() * size_of::<Record>()).next_multiple_of(4096)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_registry_is_under_one_mebibyte() {
        assert!(Geometry::new(1024, 256, 4096).unwrap().file_size() < 1 << 20);
    }

    #[test]
    fn the_documentation_knows_every_field() {
        let text = include_str!("../../../../docs/format.md");
        for (record, fields) in [
            ("Header", Header::FIELDS),
            ("Slot", Slot::FIELDS),
            ("Generation", Generation::FIELDS),
            ("Singleton", Singleton::FIELDS),
            ("Record", Record::FIELDS),
        ] {
            let section = text
                .split("\n## ")
                .find(|s| s.starts_with(record))
                .unwrap_or_else(|| panic!("docs/format.md has no section {record}"));
            for (field, offset) in fields {
                let row = format!("| {offset} | `{field}` |");
                assert!(section.contains(&row), "docs/format.md, {record}: no row `{row}`");
            }
        }
    }
}
