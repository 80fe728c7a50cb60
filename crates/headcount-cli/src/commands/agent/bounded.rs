//! Connections to the agent's socket, within bounds. Everybody may connect, and nobody may use up the agent's descriptors, with which it
//! reads registries and asks etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use axum::serve::Listener;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};

/// How many connections may be open: of one user, and of all together. Root's and the agent's own user's do not count.
#[derive(Clone, Copy)]
struct Bounds {
    of_one: usize,
    of_all: usize,
}

/// A process that has been given 1,024 descriptors has enough of them left for all else.
const BOUNDS: Bounds = Bounds { of_one: 320, of_all: 512 };

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
}

impl Bounded {
    pub fn new(listener: UnixListener) -> Bounded {
        let trusted = [0, nix::unistd::geteuid().as_raw()];
        Bounded { listener, bounds: BOUNDS, trusted, open: Arc::default() }
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
    type Io = Connection;
    type Addr = <UnixListener as Listener>::Addr;

    async fn accept(&mut self) -> (Connection, Self::Addr) {
        loop {
            let (stream, address) = Listener::accept(&mut self.listener).await;
            // Of somebody who has gone already nothing can be asked.
            let Ok(who) = stream.peer_cred() else { continue };
            if let Some(place) = self.place(who.uid()) {
                return (Connection { stream, _place: place }, address);
            }
        }
    }

    fn local_addr(&self) -> io::Result<Self::Addr> {
        Listener::local_addr(&self.listener)
    }
}

/// Taken until this is dropped.
struct Place(Option<(u32, Arc<Mutex<Open>>)>);

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

/// One of them.
pub struct Connection {
    pub stream: UnixStream,
    _place: Place,
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, to)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
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
}
