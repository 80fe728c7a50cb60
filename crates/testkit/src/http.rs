//! Just enough HTTP to talk to a server through its socket.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::wait::PATIENCE;

/// An answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: String,
}

fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    let stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// Asks for a page. HTTP/1.0, so that the body ends with the connection.
pub fn get(socket: &Path, page: &str) -> std::io::Result<Answer> {
    let mut stream = connect(socket)?;
    write!(stream, "GET {page} HTTP/1.0\r\nHost: test\r\n\r\n")?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text
        .split_once("\r\n\r\n")
        .ok_or_else(|| std::io::Error::other(format!("no answer from {page}: {text:?}")))?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok(Answer {
        status: status.ok_or_else(|| std::io::Error::other(format!("no status in {head:?}")))?,
        body: body.to_owned(),
    })
}

/// The whole answer to a request without a body, as it came.
pub fn raw(socket: &Path, method: &str, page: &str) -> std::io::Result<String> {
    let mut stream = connect(socket)?;
    write!(stream, "{method} {page} HTTP/1.0\r\nHost: test\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

/// Sends a request and does not wait for its answer: for pages that hang or end the worker.
pub fn send(socket: &Path, page: &str) -> std::io::Result<UnixStream> {
    let mut stream = connect(socket)?;
    write!(stream, "GET {page} HTTP/1.0\r\nHost: test\r\n\r\n")?;
    Ok(stream)
}

/// A client that takes its time, and so keeps a worker from leaving.
#[derive(Debug)]
pub struct SlowClient {
    stream: UnixStream,
    /// The worker that waits for it.
    pub worker: i32,
}

impl SlowClient {
    /// Opens a request whose body does not come.
    pub fn open(socket: &Path) -> std::io::Result<Self> {
        let mut stream = connect(socket)?;
        write!(stream, "POST /hold HTTP/1.0\r\nHost: test\r\nContent-Length: 1\r\n\r\n")?;
        let mut lines = BufReader::new(stream.try_clone()?).lines();
        // The worker says who it is as soon as it has the request.
        let worker = lines
            .by_ref()
            .map_while(Result::ok)
            .skip_while(|line| !line.trim().is_empty())
            .nth(1)
            .and_then(|line| line.trim().parse().ok())
            .ok_or_else(|| std::io::Error::other("the worker did not answer a slow client"))?;
        Ok(Self { stream, worker })
    }

    /// Sends the rest and reads the answer to its end.
    pub fn finish(mut self) {
        self.stream.set_read_timeout(Some(Duration::from_secs(5))).ok();
        self.stream.write_all(b"x").ok();
        let mut rest = String::new();
        self.stream.read_to_string(&mut rest).ok();
    }
}
