//! Follows the cluster, in a thread whose runtime sleeps until etcd tells something.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context;
use headcount_cluster::config::ClusterConfig;
use headcount_cluster::fleet::Fleet;
use headcount_cluster::follower::{FleetEvent, Follower, News};
use tokio::time::{Instant, sleep_until};

use crate::poll::Signals;

/// So many of the last events are kept for the screen.
const LATEST: usize = 200;
/// Between two copies of the fleet, at least.
const BETWEEN: Duration = Duration::from_millis(100);

/// What is known of the cluster.
#[derive(Clone, Debug, Default)]
pub struct Picture {
    pub fleet: Fleet,
    /// Whether it was read at all.
    pub is_read: bool,
    /// Why etcd cannot be read now.
    pub trouble: Option<String>,
    /// The last events, newest last.
    pub latest: VecDeque<FleetEvent>,
}

/// What has come since the screen looked last: however long that is, it is no more than the screen can show.
#[derive(Default)]
struct Unread {
    fleet: Option<Fleet>,
    /// Whether there is one from now on, and which.
    trouble: Option<Option<String>>,
    events: VecDeque<FleetEvent>,
}

pub struct Reader {
    pub cluster: String,
    pub picture: Picture,
    unread: Arc<Mutex<Unread>>,
    bell: Signals,
}

impl Reader {
    pub fn begin(config: ClusterConfig) -> anyhow::Result<Reader> {
        let unread = Arc::default();
        let (ring, bell) = Signals::by_another()?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
        let cluster = config.name.clone();
        let mut tell = Tell { unread: Arc::clone(&unread), ring };
        std::thread::Builder::new()
            .name("cluster".to_owned())
            .spawn(move || runtime.block_on(follow(config, &mut tell)))
            .context("cannot start a thread")?;
        Ok(Reader { cluster, picture: Picture::default(), unread, bell })
    }

    /// Takes in what has come. Whether something has.
    pub fn read(&mut self) -> bool {
        // First: what comes later rings again.
        let came = self.bell.came();
        let unread = std::mem::take(&mut *self.unread.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some(fleet) = unread.fleet {
            (self.picture.fleet, self.picture.is_read) = (fleet, true);
        }
        if let Some(trouble) = unread.trouble {
            self.picture.trouble = trouble;
        }
        unread.events.into_iter().for_each(|event| push(&mut self.picture.latest, event));
        came
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

fn push(latest: &mut VecDeque<FleetEvent>, event: FleetEvent) {
    latest.push_back(event);
    if latest.len() > LATEST {
        latest.pop_front();
    }
}

struct Tell {
    unread: Arc<Mutex<Unread>>,
    ring: UnixStream,
}

impl Tell {
    fn tell(&mut self, note: impl FnOnce(&mut Unread)) {
        use std::io::Write;
        note(&mut self.unread.lock().unwrap_or_else(PoisonError::into_inner));
        // If there is no room, it has rung often enough.
        let _ = self.ring.write(&[0]);
    }

    /// Whether somebody still looks.
    fn is_wanted(&self) -> bool {
        Arc::strong_count(&self.unread) > 1
    }
}

async fn follow(config: ClusterConfig, tell: &mut Tell) {
    let mut follower = Follower::from_last(config, LATEST);
    // A copy of very many hosts takes its time: of all that changes together, there is one.
    let mut copy_at: Option<Instant> = None;
    let mut copied = Instant::now();
    while tell.is_wanted() {
        let news = tokio::select! {
            news = follower.next() => news,
            () = sleep_until(copy_at.unwrap_or(copied)), if copy_at.is_some() => {
                (copy_at, copied) = (None, Instant::now());
                let fleet = follower.fleet().clone();
                tell.tell(|unread| unread.fleet = Some(fleet));
                continue;
            }
        };
        match news {
            News::Read | News::Changed => {
                copy_at.get_or_insert(copied + BETWEEN);
            }
            News::Event(event) => tell.tell(|unread| push(&mut unread.events, event)),
            News::Away(trouble) => tell.tell(|unread| unread.trouble = Some(Some(trouble.to_string()))),
            News::Back => tell.tell(|unread| unread.trouble = Some(None)),
            // What is missing of the past is no matter for what is there now.
            News::Unreadable(..) | News::Missed { .. } | News::SetBack => {}
        }
    }
}
