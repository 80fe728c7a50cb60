//! Connections to the agent's socket and port, within bounds. Everybody may connect, and nobody may use up the agent's descriptors, with
//! which it reads registries and asks etcd: neither by many connections, nor by some that say and take nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep};

/// How many connections may be open: of one user, and of all together. Root's and the agent's own user's do not count.
#[derive(Clone, Copy)]
struct Bounds {
    of_one: usize,
    of_all: usize,
}

/// A process that has been given 1,024 descriptors has enough of them left for all else.
const BOUNDS: Bounds = Bounds { of_one: 320, of_all: 512 };

/// The same of the port, where nobody knows who it is.
const ON_THE_PORT: usize = 256;
/// So long may it take until a whole request has come, and until something is read of the answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who has how many, by the users' numbers.
#[derive(Default)]
struct Open {
    count: BTreeMap<u32, usize>,
    refused: BTreeSet<u32>,
}

/// The socket.
pub struct Bounded {
    listener: UnixListener,
    bounds: Bounds,
    /// Whose connections do not count.
    trusted: [u32; 2],
    open: Arc<Mutex<Open>>,
    patience: Duration,
}

impl Bounded {
    pub fn new(listener: UnixListener) -> Bounded {
        let trusted = [0, nix::unistd::geteuid().as_raw()];
        Bounded { listener, bounds: BOUNDS, trusted, open: Arc::default(), patience: PATIENCE }
    }

    /// A place for a connection of this user. `None`: there is none.
    fn place(&self, uid: u32) -> Option<Place> {
        if self.trusted.contains(&uid) {
            return Some(Place(None));
        }
        let mut open = lock(&self.open);
        let of_one = open.count.get(&uid).copied().unwrap_or(0);
        let of_all: usize = open.count.values().sum();
        if of_one >= self.bounds.of_one || of_all >= self.bounds.of_all {
            if open.refused.insert(uid) {
                tracing::warn!(
                    "user {uid} has {of_one} connections open, and all users together {of_all}: a further one is closed. Up to {} \
                     and {} may be open",
                    self.bounds.of_one,
                    self.bounds.of_all
                );
            }
            return None;
        }
        open.count.insert(uid, of_one + 1);
        Some(Place(Some((uid, Arc::clone(&self.open)))))
    }
}

impl Listener for Bounded {
    type Io = Connection<UnixStream, Place>;
    type Addr = <UnixListener as Listener>::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // Of somebody who has gone already nothing can be asked.
            let Ok(who) = stream.peer_cred() else { continue };
            if let Some(place) = self.place(who.uid()) {
                return (Connection::new(stream, place, self.patience), address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Listener::local_addr(&self.listener)
    }
}

/// The port.
pub struct BoundedPort {
    listener: TcpListener,
    room: Arc<Semaphore>,
}

impl BoundedPort {
    pub fn new(listener: TcpListener) -> BoundedPort {
        BoundedPort { listener, room: Arc::new(Semaphore::new(ON_THE_PORT)) }
    }
}

impl Listener for BoundedPort {
    type Io = Connection<TcpStream, OwnedSemaphorePermit>;
    type Addr = <TcpListener as Listener>::Addr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            if let Ok(place) = Arc::clone(&self.room).try_acquire_owned() {
                return (Connection::new(stream, place, PATIENCE), address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Listener::local_addr(&self.listener)
    }
}

/// Taken until this is dropped.
pub struct Place(Option<(u32, Arc<Mutex<Open>>)>);

impl Drop for Place {
    fn drop(&mut self) {
        let Some((uid, open)) = &self.0 else { return };
        let mut open = lock(open);
        if let Some(count) = open.count.get_mut(uid) {
            *count -= 1;
            if *count == 0 {
                open.count.remove(uid);
                open.refused.remove(uid);
            }
        }
    }
}

fn lock(open: &Mutex<Open>) -> MutexGuard<'_, Open> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether nothing need be said on a connection.
#[derive(Clone, Debug, Default)]
pub struct Quiet(Arc<AtomicBool>);

impl Quiet {
    pub fn allow(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    fn is_allowed(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// One of them.
pub struct Connection<S, P> {
    pub stream: S,
    _place: P,
    patience: Duration,
    quiet: Quiet,
    /// Until then an answer must have begun: so a request that comes in drops does not go on for ever.
    limit: Pin<Box<Sleep>>,
    /// Until then something must be read of it.
    stuck: Option<Pin<Box<Sleep>>>,
}

impl<S, P> Connection<S, P> {
    fn new(stream: S, place: P, patience: Duration) -> Connection<S, P> {
        let limit = Box::pin(sleep(patience));
        Connection { stream, _place: place, patience, quiet: Quiet::default(), limit, stuck: None }
    }

    pub fn quiet(&self) -> Quiet {
        self.quiet.clone()
    }
}

impl<S: AsyncRead + Unpin, P: Unpin> AsyncRead for Connection<S, P> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if !self.quiet.is_allowed() && self.limit.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl<S: AsyncWrite + Unpin, P: Unpin> AsyncWrite for Connection<S, P> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let patience = self.patience;
        let written = Pin::new(&mut self.stream).poll_write(cx, bytes);
        if written.is_ready() {
            self.stuck = None;
            self.limit.as_mut().reset(Instant::now() + patience);
            return written;
        }
        let stuck = self.stuck.get_or_insert_with(|| Box::pin(sleep(patience)));
        stuck.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_user_leaves_room_for_others_and_all_leave_room_for_the_agent() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
            let door = Bounded { bounds: Bounds { of_one: 2, of_all: 3 }, ..Bounded::new(listener) };
            let first = [door.place(7001), door.place(7001)];
            assert!(first.iter().all(Option::is_some) && door.place(7001).is_none());
            let other = door.place(7002);
            assert!(other.is_some() && door.place(7002).is_none() && door.place(7003).is_none());
            assert!(door.place(0).is_some(), "root always has room");
            drop(first);
            assert!(door.place(7001).is_some() && door.place(7003).is_some());
        });
    }

    /// What is asked is answered, or the connection is closed without a word.
    async fn is_answered<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S) -> bool {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut answer = Vec::new();
        let asking = async {
            stream.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await?;
            while !answer.ends_with(b"here") {
                if stream.read_buf(&mut answer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            io::Result::Ok(())
        };
        let how = tokio::time::timeout(Duration::from_secs(20), asking).await;
        how.expect("neither an answer nor an end").is_ok()
    }

    /// Through a door with room for two.
    async fn a_third_one_is_closed<L, S>(door: L, connect: impl AsyncFn() -> S)
    where
        L: Listener,
        L::Addr: std::fmt::Debug,
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let app = axum::Router::new().route("/", axum::routing::get(|| async { "here" }));
        let serving = tokio::spawn(async { axum::serve(door, app).await });
        let (mut first, mut second) = (connect().await, connect().await);
        assert!(is_answered(&mut first).await && is_answered(&mut second).await);
        assert!(!is_answered(&mut connect().await).await);
        assert!(is_answered(&mut first).await, "the others are still heard");
        drop(first);
        let begun = Instant::now();
        while !is_answered(&mut connect().await).await {
            assert!(begun.elapsed() < Duration::from_secs(20), "one that has ended makes no room");
        }
        assert!(is_answered(&mut second).await);
        serving.abort();
    }

    #[test]
    fn a_connection_too_many_is_closed_on_the_socket_and_on_the_port() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            // Of users that are not trusted, of whom we are one for once.
            let (bounds, trusted) = (Bounds { of_one: 2, of_all: 3 }, [u32::MAX; 2]);
            let door = Bounded { bounds, trusted, ..Bounded::new(UnixListener::bind(&path).unwrap()) };
            a_third_one_is_closed(door, async || UnixStream::connect(&path).await.unwrap()).await;
            let port = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = port.local_addr().unwrap();
            let port = BoundedPort { room: Arc::new(Semaphore::new(2)), ..BoundedPort::new(port) };
            a_third_one_is_closed(port, async || TcpStream::connect(address).await.unwrap()).await;
        });
    }

    /// One that says nothing, one whose request comes in drops, and one that does not take the answer: each gives its place back. One that
    /// may be quiet keeps it.
    #[test]
    fn who_says_or_takes_nothing_is_gone_after_a_time() {
        use axum::Router;
        use axum::extract::ConnectInfo;
        use axum::routing::get;
        use tokio::io::{AsyncReadExt, AsyncWriteExt};

        use crate::commands::agent::session::Caller;

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let patience = Duration::from_millis(300);
            let door = Bounded { patience, ..Bounded::new(UnixListener::bind(&path).unwrap()) };
            let quiet = |ConnectInfo(caller): ConnectInfo<Caller>| async move {
                caller.may_be_quiet();
                "quiet"
            };
            let app =
                Router::new().route("/", get(quiet)).route("/much", get(|| async { "x".repeat(64 << 20) }));
            let app = app.into_make_service_with_connect_info::<Caller>();
            let serving = tokio::spawn(async { axum::serve(door, app).await });
            let connect = || UnixStream::connect(&path);
            let gone = async |mut stream: UnixStream| {
                let mut got = Vec::new();
                // What was under way is lost with it.
                let _ = tokio::time::timeout(Duration::from_secs(20), stream.read_to_end(&mut got))
                    .await
                    .unwrap();
                got.len()
            };
            let begun = Instant::now();
            let silent = connect().await.unwrap();
            let (mut much, mut good) = (connect().await.unwrap(), connect().await.unwrap());
            much.write_all(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            good.write_all(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
            let mut answer = [0; 15];
            good.read_exact(&mut answer).await.unwrap();
            assert_eq!(&answer, b"HTTP/1.1 200 OK");
            let (mut slow, mut drops) = (connect().await.unwrap(), 0);
            while slow.write_all(b"G").await.is_ok() {
                drops += 1;
                tokio::time::sleep(Duration::from_millis(50)).await;
                assert!(drops < 400, "it goes on for ever");
            }
            assert!(begun.elapsed() >= patience);
            assert_eq!(gone(silent).await, 0);
            // More than the kernel holds of it nobody has taken meanwhile.
            tokio::time::sleep(patience * 3).await;
            assert!(gone(much).await < 64 << 20);
            good.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").await.unwrap();
            assert!(gone(good).await > 100, "it is still heard");
            serving.abort();
        });
    }
}
