//! Lines of the server's log that nobody caused.

/// What no server may write unless a fault explains it.
const BAD: [&str; 6] =
    ["[alert]", "[emerg]", "[crit]", "stack traceback", "lua entry thread aborted", "panicked at"];

/// What nginx itself writes because of what was done to it.
const CAUSED: [&str; 13] = [
    // A worker was killed.
    "exited on signal",
    // The master told one that had just been killed.
    "failed (3: No such process)",
    "sendmsg() failed (32: Broken pipe)",
    "sendmsg() failed (104: Connection reset by peer)",
    // A worker was told to leave at once while a client was connected.
    "open socket #",
    "aborting",
    // A reload was made to fail.
    "unknown directive \"this\"",
    "bind() to 192.0.2.1:80 failed",
    "nginx.pid/access.log\" failed (20: Not a directory)",
    // The master was killed, and a worker of its asks for its parent's channel.
    "recvmsg() failed (104: Connection reset by peer)",
    // A server that was started while another one of the same folder ended.
    "http.sock failed (2: No such file or directory)",
    // An upgrade was interrupted.
    "nginx.pid.oldbin\" failed (2: No such file or directory)",
    "nginx.pid\" failed (2: No such file or directory)",
];

/// Those of a log.
pub fn bad_lines(log: &str) -> Vec<String> {
    log.lines()
        .filter(|line| BAD.iter().any(|bad| line.contains(bad)))
        .filter(|line| !CAUSED.iter().any(|text| line.contains(text)))
        .map(str::to_owned)
        .collect()
}
