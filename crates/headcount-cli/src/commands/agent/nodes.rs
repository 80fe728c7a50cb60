//! Follows all nodes of this host, in a thread that sleeps until something happens to one of them.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::anyhow;
use headcount::{Cursor, Follow, Followers, Item, Liveness};
use rustix::event::{PollFd, PollFlags};
use tokio::sync::{oneshot, watch};

use crate::find::{self, Folders};
use crate::poll;

/// Searching for nodes takes longer the more files there are: it takes at most one part in so many of our time.
const SEARCH_SHARE: u32 = 10;

/// The nodes of this host, each with a number that grows whenever something happens to it.
pub struct Nodes {
    changes: watch::Sender<headcount_cluster::Nodes>,
    ended: oneshot::Receiver<anyhow::Error>,
    /// When it is closed, the thread ends.
    _wake: UnixStream,
}

impl Nodes {
    /// Those of root and of this user, and these.
    pub fn follow(registries: &[PathBuf]) -> anyhow::Result<Nodes> {
        let (wake, woken) = UnixStream::pair()?;
        let (end, ended) = oneshot::channel();
        let changes = watch::Sender::new(headcount_cluster::Nodes::new());
        let mut following = Following {
            followers: Followers::new()?,
            folders: Folders::watch()?,
            further: registries.to_vec(),
            numbers: BTreeMap::new(),
            changes: changes.clone(),
        };
        // So that all that are there are known before anybody asks.
        following.search()?;
        std::thread::Builder::new().name("nodes".to_owned()).spawn(move || {
            if let Err(error) = following.run(&woken) {
                // Nobody waits for it any more if the agent ends.
                let _ = end.send(error);
            }
        })?;
        Ok(Nodes { changes, ended, _wake: wake })
    }

    pub fn subscribe(&self) -> watch::Receiver<headcount_cluster::Nodes> {
        self.changes.subscribe()
    }

    /// Why the thread has ended, should it.
    pub async fn ended(&mut self) -> anyhow::Error {
        (&mut self.ended).await.unwrap_or_else(|_| anyhow!("the thread that follows them has panicked"))
    }
}

/// The registries that the agent is about: those of root and of this user, and those that are named.
pub fn registries(further: &[PathBuf]) -> Vec<PathBuf> {
    let mut found = find::ours(find::registries(&find::folders()));
    found.extend(
        further.iter().filter(|path| path.exists() && !found.contains(path)).cloned().collect::<Vec<_>>(),
    );
    found
}

struct Following {
    followers: Followers,
    folders: Folders,
    further: Vec<PathBuf>,
    /// The registry of each number among the followers, and whether its file was removed.
    numbers: BTreeMap<usize, (PathBuf, bool)>,
    changes: watch::Sender<headcount_cluster::Nodes>,
}

impl Following {
    fn run(&mut self, woken: &UnixStream) -> anyhow::Result<()> {
        let mut changed = false;
        let mut pause_until = Instant::now();
        loop {
            while let Some((number, item)) = self.followers.try_next() {
                self.take(number, &item);
            }
            changed |= self.folders.changed()?;
            if changed && pause_until <= Instant::now() {
                changed = false;
                let begun = Instant::now();
                self.search()?;
                pause_until = Instant::now() + begun.elapsed() * (SEARCH_SHARE - 1);
                // What it has found has something to tell.
                continue;
            }
            let mut fds =
                vec![PollFd::new(woken, PollFlags::IN), PollFd::new(&self.followers, PollFlags::IN)];
            let pause = changed
                .then(|| pause_until.saturating_duration_since(Instant::now()).max(Duration::from_millis(1)));
            if !changed {
                fds.push(PollFd::new(&self.folders, PollFlags::IN));
            }
            poll::wait(&mut fds, pause)?;
            if !fds[0].revents().is_empty() {
                return Ok(());
            }
        }
    }

    fn search(&mut self) -> anyhow::Result<()> {
        self.folders.refresh()?;
        let mut wanted = find::ours(find::registries(&find::folders()));
        // Also those that are not there yet.
        wanted.extend(self.further.iter().cloned());
        for path in wanted {
            if !self.numbers.values().any(|(known, _)| *known == path) {
                let number = self.followers.add(&path, Cursor::oldest(), Follow::Node)?;
                self.numbers.insert(number, (path, false));
            }
        }
        Ok(())
    }

    fn take(&mut self, number: usize, item: &Item) {
        let Some((path, is_removed)) = self.numbers.get_mut(&number) else { return };
        let path = path.clone();
        match item {
            Item::Appeared | Item::Replaced => {
                *is_removed = false;
                // What it did before is of no interest here.
                let newest = self.followers.observer(number).and_then(|observer| observer.newest_seq().ok());
                self.followers.read_from(number, Cursor::at(newest.unwrap_or(0) + 1));
            }
            Item::Removed => {
                *is_removed = true;
                let observer = self.followers.observer(number);
                let life = observer
                    .and_then(|observer| observer.snapshot().ok())
                    .map(|snapshot| snapshot.liveness());
                // Its server may be alive, and go on with it.
                if life.is_none_or(|life| life == Liveness::Gone) {
                    return self.forget(number, &path);
                }
            }
            Item::Node(Liveness::Gone) if *is_removed => return self.forget(number, &path),
            Item::Unreadable(error) => tracing::warn!("{error}"),
            _ => {}
        }
        if self.followers.observer(number).is_some() {
            self.changes.send_modify(|nodes| *nodes.entry(path).or_default() += 1);
        }
    }

    fn forget(&mut self, number: usize, path: &PathBuf) {
        self.changes.send_modify(|nodes| {
            nodes.remove(path);
        });
        // One that is named may come again.
        if !self.further.contains(path) {
            self.followers.remove(number);
            self.numbers.remove(&number);
        }
    }
}
