//! The way to the engine: for whoever talks to the processes of this host.

use std::time::Duration;

use headcount_cluster_client::protocol::{Message, Request};
use tokio::sync::{mpsc, oneshot};

use super::book::SessionId;
use super::lease::{boot_ms, margin};
use crate::config::ClusterConfig;
use crate::value::VERSION;

/// A process, as the kernel tells of it.
#[derive(Clone, Debug, Default)]
pub struct Peer {
    /// Its number, if it can be seen from here.
    pub pid: Option<u32>,
    /// What it is called.
    pub process: Option<String>,
}

/// The way to whatever has roles, locks and onces.
#[derive(Clone)]
pub struct Claims {
    commands: mpsc::Sender<Command>,
    cluster: String,
    host: String,
    ttl: Duration,
}

/// A process that is connected.
pub struct Session {
    pub(super) id: SessionId,
    pub(super) commands: mpsc::Sender<Command>,
    /// What it is to be told. It ends if the process does not read, and with the agent.
    pub messages: mpsc::Receiver<Message>,
}

/// What the engine is told.
pub(super) enum Command {
    Enter(Peer, oneshot::Sender<Option<Session>>),
    Request(SessionId, Request),
    Refuse(SessionId, String),
    Gone(SessionId),
    Closed(SessionId),
    End(oneshot::Sender<()>),
}

impl Claims {
    pub(super) fn new(commands: mpsc::Sender<Command>, config: &ClusterConfig) -> Claims {
        Claims { commands, cluster: config.name.clone(), host: config.host.clone(), ttl: config.ttl }
    }

    /// A process connects. `None`: there are too many, or the agent ends.
    pub async fn enter(&self, peer: Peer) -> Option<Session> {
        let (answer, entered) = oneshot::channel();
        self.commands.send(Command::Enter(peer, answer)).await.ok()?;
        entered.await.ok().flatten()
    }

    /// The first line of a session.
    #[must_use]
    pub fn welcome(&self) -> Message {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Message::Welcome {
            version: VERSION,
            cluster: self.cluster.clone(),
            host: self.host.clone(),
            ttl: ms(self.ttl),
            margin: ms(margin(self.ttl)),
            now: boot_ms(),
        }
    }

    /// Has all let go, for a while, and ends.
    pub async fn end(&self) {
        let (done, ended) = oneshot::channel();
        if self.commands.send(Command::End(done)).await.is_ok() {
            // It is gone if it does not answer.
            let _ = ended.await;
        }
    }
}

impl Session {
    /// The process asks for something.
    pub async fn request(&self, request: Request) {
        self.send(Command::Request(self.id, request)).await;
    }

    /// The process asks for what there is not.
    pub async fn refuse(&self, error: String) {
        self.send(Command::Refuse(self.id, error)).await;
    }

    /// The process has ended, or has closed its connection.
    pub async fn gone(self) {
        self.send(Command::Gone(self.id)).await;
    }

    /// Its connection is closed from here: it may not know that yet.
    pub async fn closed(self) {
        self.send(Command::Closed(self.id)).await;
    }

    async fn send(&self, command: Command) {
        // The agent ends: so does this.
        let _ = self.commands.send(command).await;
    }
}
