//! What an agent takes from whoever reaches its socket or its port, and what it does not.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;

use testkit::{Folder, http, permit, wait};

use super::fleet::{FOR_LONG, Fleet, Host};
use crate::scripted::LONG;

/// Without a cluster, with a port.
fn with_port(folder: &Folder) -> (Host, SocketAddr) {
    let mut host = Host::alone(folder.path());
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = free.local_addr().expect("its address");
    drop(free);
    host.configure(&format!("listen = \"{port}\"\n"));
    host.start(&format!("and {port}"));
    (host, port)
}

fn on_the_port(port: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(port).expect("it listens");
    stream.set_read_timeout(Some(LONG)).expect("a limit");
    stream.set_write_timeout(Some(LONG)).expect("a limit");
    stream
}

fn on_the_socket(host: &Host) -> UnixStream {
    let stream = UnixStream::connect(host.socket()).expect("it listens");
    stream.set_read_timeout(Some(LONG)).expect("a limit");
    stream.set_write_timeout(Some(LONG)).expect("a limit");
    stream
}

/// The status of a page.
fn status(mut stream: impl Read + Write, page: &str) -> String {
    write!(stream, "GET {page} HTTP/1.0\r\nHost: x\r\n\r\n").expect("it reads");
    let mut text = String::new();
    stream.read_to_string(&mut text).expect("it answers");
    text.split(' ').nth(1).expect("a status").to_owned()
}

/// Everybody on the host may ask; whoever reaches the port may read, and neither have anything nor stay for long.
#[test]
fn on_the_port_there_are_documents_alone_and_on_the_socket_everybody_may_ask() {
    let _permit = permit();
    let folder = Folder::new();
    let (host, port) = with_port(&folder);
    let mode = std::fs::metadata(host.socket()).expect("it listens").permissions().mode();
    assert_eq!(mode & 0o777, 0o666);
    for (page, here, there) in [
        ("/metrics", "200", "200"),
        ("/", "200", "200"),
        ("/cluster", "503", "503"),
        ("/cluster/events", "503", "404"),
        ("/cluster/session", "503", "404"),
    ] {
        let found = (status(on_the_socket(&host), page), status(on_the_port(port), page));
        assert_eq!((found.0.as_str(), found.1.as_str()), (here, there), "{page}");
    }
}

/// Sends a request that does not end, until it is not taken any more.
#[track_caller]
fn is_cut_off(mut stream: impl Write, begin: &str, piece: &str) {
    let (piece, mut sent) = (piece.repeat(4096 / piece.len()), 0);
    let mut bytes = begin.as_bytes();
    loop {
        match stream.write(bytes) {
            Ok(n) => sent += n,
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                return;
            }
            Err(error) => panic!("neither taken nor refused after {sent} bytes: {error}"),
        }
        assert!(sent < 8 << 20, "all of {begin:?} is taken");
        bytes = piece.as_bytes();
    }
}

#[test]
fn a_request_that_is_too_long_is_cut_off_and_nobody_else_is() {
    let _permit = permit();
    let folder = Folder::new();
    let (host, port) = with_port(&folder);
    let other = on_the_socket(&host);
    for (begin, piece) in [
        ("GET /", "x"),
        ("GET / HTTP/1.1\r\nx: ", "x"),
        ("GET / HTTP/1.1\r\n", "x: y\r\n"),
        ("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000000000\r\n\r\n", "x"),
        ("GET /metrics HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", "1\r\nx\r\n"),
    ] {
        is_cut_off(on_the_socket(&host), begin, piece);
        is_cut_off(on_the_port(port), begin, piece);
    }
    assert_eq!(status(other, "/metrics"), "200");
    assert_eq!(status(on_the_port(port), "/metrics"), "200");
}

#[test]
fn so_many_follow_the_events_and_one_that_has_gone_makes_room() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host_with("a", FOR_LONG);
    a.join();
    let follow = || {
        let mut stream = on_the_socket(&a);
        write!(stream, "GET /cluster/events HTTP/1.0\r\n\r\n").expect("it reads");
        let mut head = [0; 12];
        stream.read_exact(&mut head).expect("it answers");
        (stream, String::from_utf8_lossy(&head).into_owned())
    };
    let mut all = Vec::new();
    for _ in 0..64 {
        let (stream, head) = follow();
        assert!(head.ends_with(" 200"), "{head}");
        all.push(stream);
    }
    let refused = http::get(&a.socket(), "/cluster/events").expect("it answers");
    assert!(refused.status == 503 && refused.body.contains("Too many follow"), "{refused:?}");
    assert_eq!(http::get(&a.socket(), "/cluster").expect("it answers").status, 200);
    all.truncate(63);
    wait::poll(LONG, || follow().1.ends_with(" 200").then_some(())).expect("there is room again");
}
