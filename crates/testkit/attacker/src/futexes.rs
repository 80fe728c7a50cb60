//! Futexes: everybody woken all the time, waiters moved elsewhere, and more waiters than anybody wakes.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use crate::format::format;
use crate::registry::Registry;

fn futex(word: &AtomicU32, operation: i32, value: u32, limit: usize, other: &AtomicU32) {
    // SAFETY: both words are in a mapping that is never unmapped; for a wait, `limit` points to a time that is there.
    unsafe {
        let (word, other) = (std::ptr::from_ref(word), std::ptr::from_ref(other));
        libc::syscall(libc::SYS_futex, word, operation, value, limit, other, 0);
    }
}

/// Every word of the header that somebody may sleep on.
fn words(registry: Registry) -> Vec<&'static AtomicU32> {
    let header = &format().table("Header").fields;
    let numbers = header.iter().filter(|f| f.bytes <= 8 && f.offset >= 128);
    numbers.flat_map(|f| (f.offset..f.offset + f.bytes).step_by(4)).map(|at| registry.futex(at)).collect()
}

/// Wakes everybody all the time, moves waiters to a word of its own, and has many waiters itself.
pub fn storm(registry: Registry) -> String {
    const WAITERS: usize = 200;
    let words = words(registry);
    let aside = registry.futex(registry.words().len() * 8 - 4);
    for i in 0..WAITERS {
        let word = words[i % words.len()];
        std::thread::Builder::new()
            .stack_size(64 << 10)
            .spawn(move || {
                let limit = libc::timespec { tv_sec: 1, tv_nsec: 0 };
                loop {
                    let now = word.load(SeqCst);
                    futex(word, libc::FUTEX_WAIT, now, std::ptr::from_ref(&limit) as usize, word);
                }
            })
            .expect("a thread");
    }
    let text = format!("{} words", words.len());
    std::thread::spawn(move || {
        for round in 0u64.. {
            for word in &words {
                // Twice woken, once moved: those who sleep there sleep on elsewhere.
                match round % 3 {
                    0 => futex(word, libc::FUTEX_REQUEUE, 0, i32::MAX as usize, aside),
                    _ => futex(word, libc::FUTEX_WAKE, i32::MAX as u32, 0, word),
                }
            }
            std::thread::sleep(Duration::from_micros(50));
        }
    });
    text
}
