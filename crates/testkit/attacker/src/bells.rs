//! What wakes others: rung in a storm, silenced, filled up.

use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use crate::descriptors::{Descriptor, What, inherited, set_blocking, zeroed};

/// Sets a timer: to now, or to never.
fn set_timer(fd: RawFd, ring: bool) {
    let mut when: libc::itimerspec = zeroed();
    when.it_value.tv_nsec = i64::from(ring);
    // SAFETY: `when` is a valid structure for this call, and nothing is asked back.
    unsafe { libc::timerfd_settime(fd, 0, &raw const when, std::ptr::null_mut()) };
}

fn write_to(fd: RawFd) {
    // SAFETY: one byte from memory that is there.
    unsafe { libc::write(fd, b"!".as_ptr().cast(), 1) };
}

fn drain(fd: RawFd) {
    let mut bytes = [0u8; 4096];
    // SAFETY: as many bytes as there is room for.
    while unsafe { libc::read(fd, bytes.as_mut_ptr().cast(), bytes.len()) } > 0 {}
}

fn bells() -> Vec<Descriptor> {
    let mut all = inherited();
    // An eventfd is nginx's own, and rung by a stranger it ends the worker: no news.
    all.retain(|d| matches!(d.what, What::Timer | What::Pipe));
    // The attacker must not wait himself.
    all.iter().for_each(|d| set_blocking(d.fd, false));
    all
}

fn forever(mut each: impl FnMut(&Descriptor) + Send + 'static) -> String {
    let all = bells();
    let text = format!("{} bells", all.len());
    std::thread::spawn(move || {
        loop {
            all.iter().for_each(&mut each);
            if all.is_empty() {
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    });
    text
}

/// Rings all the time.
pub fn storm() -> String {
    forever(|bell| match bell.what {
        What::Timer => set_timer(bell.fd, true),
        _ => write_to(bell.fd),
    })
}

/// Sees to it that nobody is woken.
pub fn silence() -> String {
    let begun = Instant::now();
    forever(move |bell| {
        match bell.what {
            What::Timer => set_timer(bell.fd, false),
            _ => drain(bell.fd),
        }
        if begun.elapsed() > Duration::from_secs(1) {
            std::thread::sleep(Duration::from_micros(100));
        }
    })
}
