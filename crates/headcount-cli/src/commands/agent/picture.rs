//! The fleet, for the processes of this host that ask: followed only while somebody does, by all who ask together.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use headcount_cluster::config::ClusterConfig;
use headcount_cluster::follower::{Follower, News};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_stream::wrappers::ReceiverStream;

use crate::commands::cluster::{events, status};

/// So long is it followed after somebody has asked.
const KEPT: Duration = Duration::from_secs(60);
/// So long may it take until all is read.
const PATIENCE: Duration = Duration::from_secs(5);
/// So many events may be on their way to one who does not read; and so many may follow at once.
const UNREAD: usize = 1024;
const MOST_FOLLOWERS: usize = 64;
/// Of these, so many may be of users who may have nothing of the cluster's.
const MOST_STRANGERS: usize = 16;

/// The way to whatever follows it.
#[derive(Clone)]
pub struct Picture {
    asks: mpsc::Sender<Ask>,
    strangers: Arc<Semaphore>,
}

enum Ask {
    State(oneshot::Sender<Result<Bytes, String>>),
    Events(oneshot::Sender<Option<broadcast::Receiver<String>>>),
}

impl Picture {
    /// Begins, in a task that ends with the last of these.
    pub fn begin(config: ClusterConfig) -> Picture {
        let (asks, asked) = mpsc::channel(64);
        let news = broadcast::Sender::new(UNREAD);
        tokio::spawn(
            Painter { config, asked, news, waiting: Vec::new(), trouble: None, document: None }.run(),
        );
        Picture { asks, strangers: Arc::new(Semaphore::new(MOST_STRANGERS)) }
    }

    /// The document of `headcount cluster status --json`, or why there is none.
    pub async fn state(&self) -> Result<Bytes, String> {
        let (answer, answered) = oneshot::channel();
        let asking = async {
            self.asks.send(Ask::State(answer)).await.ok()?;
            answered.await.ok()
        };
        let late = || format!("etcd was not read within {PATIENCE:?}");
        timeout(PATIENCE, asking)
            .await
            .map_err(|_| late())?
            .unwrap_or_else(|| Err("the agent ends".to_owned()))
    }

    /// What happens from now on, a line each. `None`: too many follow.
    pub async fn events(&self, is_trusted: bool) -> Option<ReceiverStream<Result<String, Infallible>>> {
        let place = match is_trusted {
            true => None,
            false => Some(Arc::clone(&self.strangers).try_acquire_owned().ok()?),
        };
        let (answer, answered) = oneshot::channel();
        self.asks.send(Ask::Events(answer)).await.ok()?;
        let mut news = answered.await.ok().flatten()?;
        let (lines, body) = mpsc::channel(16);
        tokio::spawn(async move {
            let _place = place;
            loop {
                let line = tokio::select! {
                    news = news.recv() => match news {
                        Ok(line) => line,
                        Err(broadcast::error::RecvError::Lagged(number)) => notice("missed", &number.to_string()),
                        Err(broadcast::error::RecvError::Closed) => return,
                    },
                    () = lines.closed() => return,
                };
                if lines.send(Ok(line)).await.is_err() {
                    return;
                }
            }
        });
        Some(ReceiverStream::new(body))
    }
}

/// A line that is no event.
fn notice(what: &str, text: &str) -> String {
    serde_json::json!({ "notice": what, "text": text }).to_string() + "\n"
}

struct Painter {
    config: ClusterConfig,
    asked: mpsc::Receiver<Ask>,
    news: broadcast::Sender<String>,
    waiting: Vec<oneshot::Sender<Result<Bytes, String>>>,
    trouble: Option<String>,
    /// Of which revision it is. Of thousands of hosts it is megabytes, which all who ask have together.
    document: Option<(i64, Bytes)>,
}

impl Painter {
    async fn run(mut self) {
        while let Some(ask) = self.asked.recv().await {
            if self.follow(ask).await.is_none() {
                return;
            }
        }
    }

    /// As long as somebody asks. `None`: the agent ends.
    async fn follow(&mut self, first: Ask) -> Option<()> {
        let mut follower = Follower::from_now(self.config.clone());
        (self.trouble, self.document) = (None, None);
        self.ask(first, &follower);
        let mut idle_at = Instant::now() + KEPT;
        loop {
            tokio::select! {
                ask = self.asked.recv() => {
                    self.ask(ask?, &follower);
                    idle_at = Instant::now() + KEPT;
                }
                news = follower.next() => self.tell(&news, &follower),
                () = sleep_until(idle_at) => {
                    self.document = None;
                    if self.news.receiver_count() == 0 {
                        return Some(());
                    }
                    idle_at = Instant::now() + KEPT;
                }
            }
            // What comes all at once must not keep the agent from everything else.
            sleep(Duration::ZERO).await;
        }
    }

    fn ask(&mut self, ask: Ask, follower: &Follower) {
        // Whoever does not wait any more has been given up.
        match ask {
            Ask::State(answer) => match (&self.trouble, follower.revision()) {
                (Some(trouble), _) => drop(answer.send(Err(trouble.clone()))),
                (None, 0) => self.waiting.push(answer),
                (None, _) => drop(answer.send(Ok(self.document(follower)))),
            },
            Ask::Events(answer) => {
                let is_room = self.news.receiver_count() < MOST_FOLLOWERS;
                let _ = answer.send(is_room.then(|| self.news.subscribe()));
            }
        }
    }

    fn document(&mut self, follower: &Follower) -> Bytes {
        let revision = follower.revision();
        if let Some((of, document)) = &self.document
            && *of == revision
        {
            return document.clone();
        }
        let document = Bytes::from(status::document(&self.config.name, follower));
        self.document = Some((revision, document.clone()));
        document
    }

    fn tell(&mut self, news: &News, follower: &Follower) {
        let line = match news {
            News::Event(event) => events::json_line(event) + "\n",
            News::Away(trouble) => {
                self.trouble = Some(trouble.to_string());
                notice("away", &trouble.to_string())
            }
            News::Back => notice("back", "etcd answers again"),
            News::Missed { after, upto } => {
                notice("missed", &format!("between the revisions {after} and {upto}"))
            }
            News::SetBack => notice("set_back", "etcd was set back to an older state"),
            News::Unreadable(key, why) => notice("unreadable", &format!("{key}: {why}")),
            News::Read | News::Changed => String::new(),
        };
        if !matches!(news, News::Away(_)) {
            self.trouble = None;
        }
        // An etcd that was set back comes to the same revision once more, with something else.
        if matches!(news, News::SetBack | News::Missed { .. } | News::Read) {
            self.document = None;
        }
        if !self.waiting.is_empty() && (self.trouble.is_some() || follower.revision() > 0) {
            let answer = self.trouble.clone().map_or_else(|| Ok(self.document(follower)), Err);
            for waiting in std::mem::take(&mut self.waiting) {
                // Whoever does not wait any more has been given up.
                let _ = waiting.send(answer.clone());
            }
        }
        if !line.is_empty() {
            // Perhaps nobody follows.
            let _ = self.news.send(line);
        }
    }
}
