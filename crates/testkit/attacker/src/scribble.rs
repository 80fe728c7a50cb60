//! Writing into the registry: anything at all, and what passes for the real thing.

use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::format::{Field, Table, format};
use crate::random::Random;
use crate::registry::Registry;

#[cfg(test)]
/// What the attacks call by its name; a test looks whether docs/format.md still has it.
pub const FIELDS: &[(&str, &[&str])] = &[
    (
        "Header",
        &[
            "slots",
            "slots_used",
            "generations_used",
            "singletons_used",
            "head",
            "last_generation",
            "last_token",
            "joiners",
            "joining",
        ],
    ),
    ("Slot", &["version", "generation", "pid", "role", "intent", "birth", "birth_kind"]),
    ("Generation", &["version", "id", "phase", "master_pid"]),
];

const MASTER: u64 = 1;
const WORKER: u64 = 2;

fn forever(mut each: impl FnMut(&mut Random) + Send + 'static) {
    std::thread::spawn(move || {
        let mut random = Random::new(u64::from(std::process::id()));
        loop {
            for _ in 0..256 {
                each(&mut random);
            }
            // Others on this machine have tests, too.
            std::thread::sleep(Duration::from_micros(200));
        }
    });
}

/// Random words everywhere, most of them where the most important things are.
pub fn noise(registry: Registry) -> String {
    let words = registry.words();
    forever(move |random| {
        let tables = (4096 + 512 * 256) / 8;
        let at = match random.below(4) {
            0 => random.below(64),
            1 | 2 => random.below(tables.min(words.len() as u64)),
            _ => random.below(words.len() as u64),
        };
        let value = match random.below(6) {
            0 => random.next(),
            1 => random.below(70),
            2 => u64::MAX,
            3 => words[random.below(words.len() as u64) as usize].load(SeqCst),
            4 => words[at as usize].load(SeqCst).wrapping_add(1),
            _ => random.below(1 << 16) | random.below(8) << 32,
        };
        words[at as usize].store(value, SeqCst);
    });
    format!("{} words", words.len())
}

const EXTREMES: [u64; 8] =
    [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 63) - 1, u32::MAX as u64, (1 << 53) - 1];

/// From here on the header has what changes; before it is what was fixed when the registry was made.
const MOVING: usize = 128;

/// What was fixed when the registry was made, at extremes.
pub fn fixed(registry: Registry) -> String {
    let all: Vec<Field> =
        format().table("Header").fields.iter().filter(|f| f.offset < MOVING).cloned().collect();
    let text = format!("{} fields", all.len());
    forever(move |random| {
        let field = &all[random.below(all.len() as u64) as usize];
        registry.set(0, field, EXTREMES[random.below(8) as usize]);
    });
    text
}

/// Each number that moves, in header and tables, at an extreme, one after the other.
pub fn extremes(registry: Registry) -> String {
    let header: Vec<Field> =
        format().table("Header").fields.iter().filter(|f| f.offset >= MOVING).cloned().collect();
    let (slots, slot) = registry.records("Slot");
    let (generations, generation) = registry.records("Generation");
    let (singletons, singleton) = registry.records("Singleton");
    let (journal, record) = registry.records("Record");
    forever(move |random| {
        let any = |random: &mut Random, all: &[usize], table: &Table| {
            let base = all[random.below(all.len().min(64) as u64) as usize];
            (base, table.fields[random.below(table.fields.len() as u64) as usize].clone())
        };
        let (base, field) = match random.below(5) {
            0 => (0, header[random.below(header.len() as u64) as usize].clone()),
            1 => any(random, &slots, slot),
            2 => any(random, &generations, generation),
            3 => any(random, &singletons, singleton),
            _ => any(random, &journal, record),
        };
        registry.set(base, &field, EXTREMES[random.below(8) as usize]);
    });
    format!("{} header fields", format().table("Header").fields.len())
}

/// The counters that everybody goes by, at their ends, and left so.
pub fn ends(registry: Registry) -> String {
    let header = format().table("Header");
    forever(move |_| {
        for name in
            ["head", "last_generation", "last_token", "slots_used", "generations_used", "singletons_used"]
        {
            registry.set(0, header.field(name), u64::MAX);
        }
        std::thread::sleep(Duration::from_millis(1));
    });
    "6 counters".to_owned()
}

/// Slots that pass for living processes: strangers as masters and workers, at work, dying, draining.
pub fn strangers(registry: Registry, pids: &[u32]) -> String {
    let (slots, slot) = registry.records("Slot");
    let real = real_slot(registry, &slots, slot);
    let pids = pids.to_vec();
    let (own, used) = (real, format().table("Header").field("slots_used"));
    let text = format!("{} strangers, a real slot: {}", pids.len(), own.is_some());
    let few: Vec<usize> = slots.into_iter().take(32).collect();
    let count = few.len() as u64;
    forever(move |random| {
        let base = few[random.below(count) as usize];
        // The rest of it as in a real one: its generation, its namespace, its times.
        if let Some(own) = own {
            copy(registry, own, base, slot.size);
        }
        let pid = pids[random.below(pids.len() as u64) as usize];
        name(registry, base, slot, pid);
        registry.set(base, slot.field("role"), if random.below(3) == 0 { MASTER } else { WORKER });
        registry.set(base, slot.field("intent"), random.below(5));
        registry.set(base, slot.field("version"), random.below(50) * 2);
        registry.set(0, used, count);
    });
    text
}

/// A slot of a process that is there.
fn real_slot(registry: Registry, slots: &[usize], slot: &Table) -> Option<usize> {
    slots.iter().copied().find(|&at| registry.get(at, slot.field("role")) == WORKER)
}

fn copy(registry: Registry, from: usize, to: usize, size: usize) {
    let words = registry.words();
    for i in 0..size / 8 {
        words[to / 8 + i].store(words[from / 8 + i].load(SeqCst), SeqCst);
    }
}

/// A process in one word, as docs/format.md says: what a forger makes of a slot.
fn word_of(registry: Registry, base: usize, slot: &Table) -> u64 {
    let get = |name| registry.get(base, slot.field(name));
    let kind = match get("birth_kind") {
        1 => 2,
        2 => 1,
        _ => 0,
    };
    kind << 62 | (get("pid") & ((1 << 22) - 1)) << 40 | get("birth") & ((1 << 40) - 1)
}

/// The words that say who has the lock name everybody in turn: each slot of a living process, the dead, forged ones, and
/// none at all.
pub fn lock_words(registry: Registry, strangers: &[u32]) -> String {
    let (slots, slot) = registry.records("Slot");
    let lock: Vec<Field> = format().lock_words().into_iter().cloned().collect();
    let text = format!("{} words", lock.len());
    // One forged slot for each stranger, at the end of the table.
    let real = real_slot(registry, &slots, slot);
    for (&pid, &base) in strangers.iter().zip(slots.iter().rev()) {
        if let Some(real) = real {
            copy(registry, real, base, slot.size);
        }
        name(registry, base, slot, pid);
    }
    forever(move |random| {
        let index = match random.below(4) {
            0 => slots.len() as u64 - 1 - random.below(4.min(slots.len() as u64)),
            _ => random.below(slots.len().min(12) as u64),
        };
        let base = slots[index as usize];
        let version = registry.get(base, slot.field("version"));
        let value = match random.below(8) {
            0 => 0,
            1 => u64::MAX,
            2 => random.next(),
            3 => registry.get(base, slot.field("pid")),
            4 => (index + 1) | version << 32,
            _ => word_of(registry, base, slot),
        };
        let field = &lock[random.below(lock.len() as u64) as usize];
        registry.set(0, field, value);
    });
    text
}

/// Puts a process into a slot, so that the kernel bears out what the slot says.
pub fn name(registry: Registry, base: usize, slot: &Table, pid: u32) {
    registry.set(base, slot.field("pid"), u64::from(pid));
    registry.set(base, slot.field("birth"), birth_of(pid));
    registry.set(base, slot.field("birth_kind"), 1);
}

/// The inode of its pidfds.
fn birth_of(pid: u32) -> u64 {
    // SAFETY: plain calls; a descriptor that was got is looked at and closed.
    unsafe {
        let fd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32;
        let mut stat: libc::stat = crate::descriptors::zeroed();
        let found = fd >= 0 && libc::fstat(fd, &raw mut stat) == 0;
        if fd >= 0 {
            libc::close(fd);
        }
        if found { stat.st_ino } else { 0 }
    }
}

/// The lock names one process and no other, again as soon as it is cleared.
pub fn one_lock_word(registry: Registry, whose: Whose, strangers: &[u32]) -> String {
    let (slots, slot) = registry.records("Slot");
    let of_role = |want| slots.iter().copied().find(|&at| registry.get(at, slot.field("role")) == want);
    let last = slots[slots.len() - 1];
    let base = match whose {
        Whose::Masters => of_role(MASTER),
        Whose::Siblings => of_role(WORKER),
        Whose::Strangers => strangers.first().map(|&pid| {
            name(registry, last, slot, pid);
            last
        }),
    };
    let Some(base) = base else { return "no slot".to_owned() };
    let (word, lock) = (word_of(registry, base, slot), format().table("Header").field("lock"));
    if whose == Whose::Strangers {
        // Nobody is to find it in the table.
        registry.words()[last / 8..(last + slot.size) / 8].iter().for_each(|word| word.store(0, SeqCst));
    }
    forever(move |_| registry.set(0, lock, word));
    format!("{word:#x}")
}

/// Whose name is put into the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    Masters,
    Siblings,
    Strangers,
}

/// Everybody seems to be about to join every generation: then none may end.
pub fn joiners(registry: Registry) -> String {
    let header = format().table("Header");
    let (slots, slot) = registry.records("Slot");
    let (generations, generation) = registry.records("Generation");
    let text = "joiners".to_owned();
    forever(move |random| {
        let alive = slots.iter().take(16).filter(|&&at| registry.get(at, slot.field("role")) != 0);
        let words: Vec<u64> = alive.map(|&at| word_of(registry, at, slot)).collect();
        let ids = generations.iter().take(16).map(|&at| registry.get(at, generation.field("id")));
        let ids: Vec<u64> = ids.filter(|&id| id != 0).collect();
        for (name, values) in [("joiners", words), ("joining", ids)] {
            if let (false, field) = (values.is_empty(), header.field(name)) {
                for at in (field.offset..field.offset + field.bytes).step_by(8) {
                    let one = Field { offset: at, bytes: 8, name: String::new() };
                    registry.set(0, &one, values[random.below(values.len() as u64) as usize]);
                }
            }
        }
    });
    text
}

/// All tables full, with records that are whole.
pub fn full(registry: Registry, strangers: &[u32]) -> String {
    let header = format().table("Header");
    let (slots, slot) = registry.records("Slot");
    let (generations, generation) = registry.records("Generation");
    let real = real_slot(registry, &slots, slot);
    let strangers = strangers.to_vec();
    let text = format!("{} slots, {} generations", slots.len(), generations.len());
    forever(move |random| {
        let (first, last) = (slots.len(), generations.len());
        registry.set(0, header.field("slots_used"), first as u64);
        registry.set(0, header.field("generations_used"), last as u64);
        let base = slots[random.below(first as u64) as usize];
        if registry.get(base, slot.field("role")) == 0 {
            if let Some(real) = real {
                copy(registry, real, base, slot.size);
            }
            name(registry, base, slot, strangers[random.below(strangers.len() as u64) as usize]);
            registry.set(base, slot.field("role"), WORKER);
        }
        let base = generations[random.below(last as u64) as usize];
        if registry.get(base, generation.field("phase")) == 0 {
            registry.set(base, generation.field("id"), 1 + random.below(1 << 20));
            registry.set(base, generation.field("master_pid"), u64::from(strangers[0]));
            registry.set(base, generation.field("version"), 2);
            registry.set(base, generation.field("phase"), 1 + random.below(2));
        }
    });
    text
}

/// Holes punched into the file, by the mapping.
pub fn holes(registry: Registry) -> String {
    let words = registry.words();
    let (start, len) = (words.as_ptr() as usize, words.len() * 8);
    let punch = move |from: usize, size: usize| {
        // SAFETY: a range of a mapping that stays; what it holds becomes zeroes, as its users must expect.
        unsafe { libc::madvise((start + from) as *mut _, size, libc::MADV_REMOVE) == 0 }
    };
    let page = 4096;
    let works = punch(len - page, page);
    forever(move |random| {
        let at = random.below((len / page) as u64) as usize * page;
        punch(if random.below(4) == 0 { 0 } else { at }, page);
        std::thread::sleep(Duration::from_micros(100));
    });
    format!("{} pages, allowed: {works}", len / page)
}
