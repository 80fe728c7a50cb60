//! A registry without its empty parts, so that a fuzzer spends its time on what is read: the header, and the first records of
//! each table.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use attacker::format::{Field, Table, format};

use crate::people::{self, FIRST_STAND_IN};

/// The sizes of a registry of these targets.
pub const SLOTS: u32 = 16;
/// As [`SLOTS`].
pub const RECORDS: u32 = 64;

/// The header says truly which registry it is, and how large.
const TRUE_SIZES: u8 = 1;
/// It is of this boot.
const THIS_BOOT: u8 = 2;
/// Stand-ins become the processes for which they stand.
const PEOPLE: u8 = 4;
const ALL: u8 = TRUE_SIZES | THIS_BOOT | PEOPLE;

const HEADER: usize = 776;

/// The table's name, where it begins, how many records it has, how many a packed one has at most.
const TABLES: [(&str, usize, usize); 3] = [
    ("Slot", SLOTS as usize, 8),
    ("Generation", SLOTS as usize, 8),
    ("Record", RECORDS as usize, RECORDS as usize),
];

fn sizes() -> &'static BTreeMap<&'static str, usize> {
    static SIZES: OnceLock<BTreeMap<&'static str, usize>> = OnceLock::new();
    SIZES.get_or_init(|| {
        ["Header", "Slot", "Generation", "Record"].map(|name| (name, format().table(name).size)).into()
    })
}

fn tables() -> impl Iterator<Item = (&'static str, usize, usize, usize)> {
    let mut base = sizes()["Header"];
    TABLES.into_iter().map(move |(name, capacity, most)| {
        let at = base;
        base += capacity * sizes()[name];
        (name, at, sizes()[name], most)
    })
}

fn len() -> usize {
    let end: usize = TABLES.iter().map(|(name, capacity, _)| capacity * sizes()[name]).sum();
    (sizes()["Header"] + end).next_multiple_of(4096)
}

fn get(bytes: &[u8], base: usize, field: &Field) -> u64 {
    let mut word = [0; 8];
    let size = field.bytes.min(8);
    word[..size].copy_from_slice(&bytes[base + field.offset..][..size]);
    u64::from_ne_bytes(word)
}

fn set(bytes: &mut [u8], base: usize, field: &Field, value: u64) {
    let size = field.bytes.min(8);
    bytes[base + field.offset..][..size].copy_from_slice(&value.to_ne_bytes()[..size]);
}

/// Takes the empty parts out of a registry of these sizes. `living`: for whom there are to be stand-ins: the process itself, its
/// parent, another.
#[must_use]
pub fn pack(registry: &[u8], living: &[u32]) -> Vec<u8> {
    let mut registry = registry.to_vec();
    replace_people(&mut registry, &|pid| {
        let index = living.iter().position(|&known| known == pid)?;
        let pid = FIRST_STAND_IN + u32::try_from(index).ok()?;
        Some((pid, u64::from(pid) << 40, 0))
    });
    let mut packed = vec![ALL];
    let counts = tables().map(|(_, at, size, most)| {
        let is_used = |i: &usize| registry[at + i * size..][..size].iter().any(|&byte| byte != 0);
        (0..most).rev().find(is_used).map_or(0, |last| last + 1)
    });
    let counts: Vec<usize> = counts.collect();
    packed.extend(counts.iter().map(|&count| count as u8));
    packed.extend_from_slice(&registry[..HEADER]);
    for ((_, at, size, _), count) in tables().zip(counts) {
        packed.extend_from_slice(&registry[at..at + count * size]);
    }
    packed
}

/// The registry that is packed in these bytes, and what is left of them. `lock_tag`: what stands for the lock file of the node
/// in a slot. Where the bytes end, the rest is zeroes.
#[must_use]
pub fn unpack(packed: &[u8], lock_tag: u32) -> (Vec<u8>, &[u8]) {
    let mut rest = packed;
    let mut take = |most: usize| {
        let (taken, left) = rest.split_at(most.min(rest.len()));
        rest = left;
        taken
    };
    let head = take(4);
    let at = |index: usize| head.get(index).copied().unwrap_or(0);
    let mut registry = vec![0; len()];
    let header = take(HEADER);
    registry[..header.len()].copy_from_slice(header);
    for (index, (_, base, size, most)) in tables().enumerate() {
        let records = take(usize::from(at(index + 1)).min(most) * size);
        registry[base..base + records.len()].copy_from_slice(records);
    }
    let flags = at(0);
    if flags & TRUE_SIZES != 0 {
        say_sizes(&mut registry);
    }
    let field = |name: &str| format().table("Header").field(name);
    if flags & THIS_BOOT != 0 {
        let [upper, lower] = people::boot_id();
        set(&mut registry, 0, field("boot_id"), upper);
        set(&mut registry, 8, field("boot_id"), lower);
        set(&mut registry, 0, field("namespace"), u64::from(people::namespace()));
    }
    if flags & PEOPLE != 0 {
        replace_people(&mut registry, &|pid| {
            people::behind(pid).map(|person| (person.pid, person.word(), lock_tag))
        });
    }
    (registry, rest)
}

fn say_sizes(registry: &mut [u8]) {
    registry[..8].copy_from_slice(b"HEADCNT\n");
    let sizes =
        [("format", format().number), ("slots", SLOTS), ("generations", SLOTS), ("journal_records", RECORDS)];
    for (name, value) in sizes {
        set(registry, 0, format().table("Header").field(name), u64::from(value));
    }
}

/// Puts others in the place of those whom `other` knows: pid, word, and the tag of their lock file.
fn replace_people(registry: &mut [u8], other: &dyn Fn(u32) -> Option<(u32, u64, u32)>) {
    const MOST_PID: u32 = (1 << 22) - 1;
    let pid_in = |word: u64| (word >> 40) as u32 & MOST_PID;
    for (name, base, size, most) in tables() {
        let table: &Table = format().table(name);
        let field = match name {
            "Slot" => table.field("pid"),
            "Generation" => table.field("master_pid"),
            _ => table.field("reporter_pid"),
        };
        for base in (0..most).map(|i| base + i * size) {
            let Some((pid, word, tag)) = other(get(registry, base, field) as u32) else { continue };
            set(registry, base, field, u64::from(pid));
            if name == "Slot" {
                set(registry, base, table.field("birth"), word & ((1 << 40) - 1));
                set(registry, base, table.field("birth_kind"), 1);
                set(registry, base, table.field("namespace"), u64::from(people::namespace()));
                let has_tag = get(registry, base, table.field("lock_tag")) != 0;
                set(registry, base, table.field("lock_tag"), u64::from(if has_tag { tag.max(1) } else { 0 }));
            }
        }
    }
    let header = format().table("Header");
    for name in ["lock", "joiners"] {
        let field = header.field(name);
        for base in (0..field.bytes).step_by(8) {
            if let Some((_, word, _)) = other(pid_in(get(registry, base, field))) {
                set(registry, base, field, word);
            }
        }
    }
    let field = header.field("holder_pid");
    if let Some((pid, ..)) = other(get(registry, 0, field) as u32) {
        set(registry, 0, field, u64::from(pid));
    }
}
