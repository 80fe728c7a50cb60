//! Noticing at once that this process was told to stop, by the signals that it handles itself.
//!
//! A server's master tells its workers to go, and ends after them. Whether they go because all of it stops, or because
//! somebody told only them to, is known to nobody else. So its own handlers are called by one of ours, which first writes
//! down that it was told.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicUsize};

use super::process;
// The registry's own, which loom replaces in its models.
use super::atomic::AtomicU32 as Word;

const SIGNALS: [libc::c_int; 3] = [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT];

/// The handlers that ours calls, and their flags. Written before ours is in force.
static HANDLERS: [(AtomicUsize, AtomicU32); SIGNALS.len()] =
    [const { (AtomicUsize::new(0), AtomicU32::new(0)) }; SIGNALS.len()];

/// Where to write what: words that stay for as long as the process does. A server has one of them, or a few.
static WORDS: [AtomicPtr<Word>; 8] = [const { AtomicPtr::new(std::ptr::null_mut()) }; 8];
static TOLD: AtomicU32 = AtomicU32::new(0);
/// The process to which that applies. A child has the handlers, too.
static OWNER: AtomicU32 = AtomicU32::new(0);

/// From now on `word` becomes `told` when this process gets a signal that stops it. Nothing is done about signals that it
/// does not handle: then `false`, if it handles none of them. To be called again after the server has set its handlers, and
/// in a process that goes on in the background.
pub(crate) fn watch(word: &'static Word, told: u32) -> bool {
    TOLD.store(told, Relaxed);
    let own = std::ptr::from_ref(word).cast_mut();
    let pid = process::pid();
    if OWNER.load(Acquire) != pid {
        WORDS.iter().for_each(|entry| entry.store(std::ptr::null_mut(), Release));
        OWNER.store(pid, Release);
    }
    let is_there = WORDS.iter().any(|entry| entry.load(Acquire) == own);
    let is_noted = is_there
        || WORDS
            .iter()
            .any(|entry| entry.compare_exchange(std::ptr::null_mut(), own, Release, Relaxed).is_ok());
    // Each of them: a server may handle one and not another.
    let handled = SIGNALS.iter().zip(&HANDLERS).filter(|(signal, entry)| precede(**signal, entry)).count();
    is_noted && handled > 0
}

/// Puts our handler before the process's own, once. `false`: it has none.
fn precede(signal: libc::c_int, (handler, flags): &(AtomicUsize, AtomicU32)) -> bool {
    if handler.load(Relaxed) != 0 {
        // Once and never again: if another library has put its own before ours since, the two would call each other for ever.
        return true;
    }
    let Some(mut action) = action_of(signal) else { return false };
    match action.sa_sigaction {
        libc::SIG_DFL | libc::SIG_IGN => return false,
        current => {
            handler.store(current, Relaxed);
            flags.store(action.sa_flags as u32, Release);
        }
    }
    action.sa_sigaction = on_signal as *const () as usize;
    action.sa_flags |= libc::SA_SIGINFO;
    // SAFETY: `action` is what the kernel gave, with another handler that has the signature that SA_SIGINFO asks for.
    unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) == 0 }
}

fn action_of(signal: libc::c_int) -> Option<libc::sigaction> {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::uninit();
    // SAFETY: a place for the kernel to write to, which it has filled if it says so.
    unsafe {
        let answer = libc::sigaction(signal, std::ptr::null(), action.as_mut_ptr());
        (answer == 0).then(|| action.assume_init())
    }
}

/// Only atomics and getpid(2): it may interrupt anything.
extern "C" fn on_signal(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: getpid cannot fail, and is safe in a handler.
    if unsafe { libc::getpid() } as u32 == OWNER.load(Acquire) {
        for entry in &WORDS {
            // SAFETY: `watch` has put words there that stay.
            if let Some(word) = unsafe { entry.load(Acquire).as_ref() } {
                word.store(TOLD.load(Relaxed), Release);
            }
        }
    }
    let Some(at) = SIGNALS.iter().position(|s| *s == signal) else { return };
    let (handler, flags) = &HANDLERS[at];
    let with_info = flags.load(Acquire) & libc::SA_SIGINFO as u32 != 0;
    let handler = handler.load(Relaxed);
    if handler == 0 {
        return;
    }
    // SAFETY: the process itself has set this handler for this signal, with these flags, and it is called as it would have
    // been: with the same arguments, mask and stack.
    unsafe {
        if with_info {
            type WithInfo = extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);
            std::mem::transmute::<usize, WithInfo>(handler)(signal, info, context);
        } else {
            std::mem::transmute::<usize, extern "C" fn(libc::c_int)>(handler)(signal);
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    static CALLED: AtomicU32 = AtomicU32::new(0);

    extern "C" fn handler(signal: libc::c_int) {
        CALLED.store(signal as u32, Relaxed);
    }

    /// In a child, which alone is told to stop.
    fn in_child(body: impl FnOnce() -> bool) -> i32 {
        // SAFETY: the child runs `body`, which only takes signals, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            let is_right = body();
            // SAFETY: ends the child without the test harness.
            unsafe { libc::_exit(i32::from(!is_right)) };
        }
        let mut status = 0;
        // SAFETY: our own child, and a place for its status.
        assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
        status
    }

    #[test]
    fn the_word_says_so_and_the_servers_handler_runs() {
        static WORD: AtomicU32 = AtomicU32::new(1);
        let status = in_child(|| {
            let handles_nothing = !watch(&WORD, 4);
            // SAFETY: a handler that only stores a number.
            unsafe { libc::signal(libc::SIGQUIT, handler as *const () as usize) };
            let is_watched = watch(&WORD, 4) && watch(&WORD, 4);
            let is_untold = WORD.load(Relaxed) == 1;
            // SAFETY: handled above.
            unsafe { libc::raise(libc::SIGQUIT) };
            handles_nothing
                && is_watched
                && is_untold
                && WORD.load(Relaxed) == 4
                && CALLED.load(Relaxed) == libc::SIGQUIT as u32
        });
        assert_eq!(status, 0);
    }

    #[test]
    fn a_child_that_is_told_says_nothing_of_its_parent() {
        static WORD: AtomicU32 = AtomicU32::new(1);
        let status = in_child(|| {
            // SAFETY: a handler that only stores a number.
            unsafe { libc::signal(libc::SIGTERM, handler as *const () as usize) };
            let is_watched = watch(&WORD, 4);
            let grandchild = in_child(|| {
                // SAFETY: handled, as in its parent.
                unsafe { libc::raise(libc::SIGTERM) };
                WORD.load(Relaxed) == 1 && CALLED.load(Relaxed) == libc::SIGTERM as u32
            });
            is_watched && grandchild == 0
        });
        assert_eq!(status, 0);
    }
}
