//! Light load: some who ask for pages all the time, and do not mind if nobody answers. Every other page is one that a worker writes
//! under a lock.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::time::Duration;

/// So many, for a lock that others want too.
const CLIENTS: usize = 3;
/// Between two requests of one.
const EVERY: Duration = Duration::from_millis(20);
/// Whoever does not answer by then is stopped, or busy, or gone.
const PATIENCE: Duration = Duration::from_millis(300);

#[derive(Default)]
struct Shared {
    ends: AtomicBool,
    rests: AtomicBool,
    answered: AtomicU64,
}

/// Asks until it is dropped.
pub struct Load {
    shared: Arc<Shared>,
}

impl Load {
    /// Begins. nginx is asked at its socket, the example server where its output says.
    pub fn begin(socket: &Path, output: Option<PathBuf>) -> Self {
        let shared = Arc::<Shared>::default();
        for _ in 0..CLIENTS {
            let (theirs, socket, output) = (Arc::clone(&shared), socket.to_owned(), output.clone());
            // Nobody waits for its end: a request may hang as long as it likes.
            std::thread::spawn(move || {
                for page in ["/ping", "/report"].into_iter().cycle() {
                    if theirs.ends.load(SeqCst) {
                        return;
                    }
                    if !theirs.rests.load(SeqCst) && ask(&socket, output.as_deref(), page).is_some() {
                        theirs.answered.fetch_add(1, SeqCst);
                    }
                    std::thread::sleep(EVERY);
                }
            });
        }
        Self { shared }
    }

    /// Whether it rests.
    pub fn rest(&self, yes: bool) {
        self.shared.rests.store(yes, SeqCst);
    }

    /// How many requests were answered.
    pub fn answered(&self) -> u64 {
        self.shared.answered.load(SeqCst)
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.ends.store(true, SeqCst);
    }
}

fn ask(socket: &Path, output: Option<&Path>, page: &str) -> Option<()> {
    let Some(output) = output else {
        let stream = UnixStream::connect(socket).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        return answered(stream, page);
    };
    let text = std::fs::read_to_string(output).ok()?;
    let line = text.lines().rev().find_map(|line| line.strip_prefix("listening on "))?;
    let address = line.split(' ').next()?.parse().ok()?;
    let stream = TcpStream::connect_timeout(&address, PATIENCE).ok()?;
    stream.set_read_timeout(Some(PATIENCE)).ok()?;
    answered(stream, page)
}

fn answered(mut stream: impl Read + Write, page: &str) -> Option<()> {
    stream.write_all(format!("GET {page} HTTP/1.0\r\nHost: test\r\n\r\n").as_bytes()).ok()?;
    let mut bytes = [0; 12];
    stream.read_exact(&mut bytes).ok()?;
    bytes.ends_with(b"200").then_some(())
}
