//! Follows the cluster, in a thread whose runtime sleeps until etcd tells something.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, channel};

use anyhow::Context;
use headcount_cluster::config::ClusterConfig;
use headcount_cluster::fleet::Fleet;
use headcount_cluster::follower::{FleetEvent, Follower, News};

use crate::poll::Signals;

/// So many of the last events are kept for the screen.
const LATEST: usize = 200;

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

enum Told {
    Fleet(Box<Fleet>),
    Event(Box<FleetEvent>),
    Trouble(Option<String>),
}

pub struct Reader {
    pub cluster: String,
    pub picture: Picture,
    from: Receiver<Told>,
    bell: Signals,
}

impl Reader {
    pub fn begin(config: ClusterConfig) -> anyhow::Result<Reader> {
        let (to, from) = channel();
        let (ring, bell) = Signals::by_another()?;
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?;
        let cluster = config.name.clone();
        let mut tell = Tell { to, ring };
        std::thread::Builder::new()
            .name("cluster".to_owned())
            .spawn(move || runtime.block_on(follow(config, &mut tell)))
            .context("cannot start a thread")?;
        Ok(Reader { cluster, picture: Picture::default(), from, bell })
    }

    /// Takes in what has come. Whether something has.
    pub fn read(&mut self) -> bool {
        // First: what comes later rings again.
        self.bell.came();
        let mut came = false;
        while let Ok(told) = self.from.try_recv() {
            came = true;
            match told {
                Told::Fleet(fleet) => (self.picture.fleet, self.picture.is_read) = (*fleet, true),
                Told::Trouble(trouble) => self.picture.trouble = trouble,
                Told::Event(event) => {
                    self.picture.latest.push_back(*event);
                    if self.picture.latest.len() > LATEST {
                        self.picture.latest.pop_front();
                    }
                }
            }
        }
        came
    }
}

impl AsFd for Reader {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.as_fd()
    }
}

struct Tell {
    to: std::sync::mpsc::Sender<Told>,
    ring: UnixStream,
}

impl Tell {
    /// Whether somebody still listens.
    fn tell(&mut self, told: Told) -> bool {
        use std::io::Write;
        let sent = self.to.send(told).is_ok();
        // If there is no room, it has rung often enough.
        let _ = self.ring.write(&[0]);
        sent
    }
}

async fn follow(config: ClusterConfig, tell: &mut Tell) {
    let mut follower = Follower::new(config, true);
    loop {
        let told = match follower.next().await {
            News::Read | News::Changed => Told::Fleet(Box::new(follower.fleet().clone())),
            News::Event(event) => Told::Event(Box::new(event)),
            News::Away(trouble) => Told::Trouble(Some(trouble.to_string())),
            News::Back => Told::Trouble(None),
            // What is missing of the past is no matter for what is there now.
            News::Unreadable(..) | News::Missed { .. } | News::SetBack => continue,
        };
        if !tell.tell(told) {
            return;
        }
    }
}
