//! The cluster for who looks at the page: it is followed only while somebody does, so that the agents of a large fleet do not all
//! watch all of it.

use std::sync::Arc;
use std::time::Duration;

use headcount_cluster::config::ClusterConfig;
use headcount_cluster::follower::{Follower, News};
use serde_json::Value;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout_at};

use crate::clock::wall_ns;
use crate::commands::cluster::status::Document;

/// So long the first one to look waits for etcd.
const FIRST: Duration = Duration::from_secs(3);
/// So long everybody after him waits for what has come meanwhile.
const NEXT: Duration = Duration::from_millis(5);
/// So long after the last look it is not followed any more.
const FORGOTTEN: Duration = Duration::from_secs(30);

/// The cluster, as far as somebody looks at it.
pub struct FleetView {
    config: ClusterConfig,
    following: Mutex<Option<Following>>,
}

struct Following {
    follower: Follower,
    is_read: bool,
    /// Why etcd cannot be read just now.
    trouble: Option<String>,
    asked: Instant,
}

impl FleetView {
    pub fn new(config: ClusterConfig) -> Arc<FleetView> {
        Arc::new(FleetView { config, following: Mutex::new(None) })
    }

    /// As `headcount cluster status --json` has it; with the time, and what is wrong with etcd.
    pub async fn document(self: &Arc<FleetView>) -> serde_json::Result<Value> {
        let mut following = self.following.lock().await;
        let now = Instant::now();
        if following.is_none() {
            tokio::spawn(Arc::clone(self).forget());
        }
        let following = following.get_or_insert_with(|| Following {
            follower: Follower::new(self.config.clone(), false),
            is_read: false,
            trouble: None,
            asked: now,
        });
        following.asked = now;
        following.catch_up(now).await;
        let fleet = following.follower.fleet();
        let mut document = serde_json::to_value(Document::new(
            &self.config.name,
            following.follower.revision(),
            fleet,
            None,
        ))?;
        document["time"] = (wall_ns() as f64 / 1e9).into();
        if let Some(trouble) = &following.trouble {
            document["trouble"] = trouble.as_str().into();
        }
        Ok(document)
    }

    async fn forget(self: Arc<FleetView>) {
        loop {
            sleep(FORGOTTEN).await;
            let mut following = self.following.lock().await;
            if following.as_ref().is_none_or(|following| following.asked.elapsed() >= FORGOTTEN) {
                *following = None;
                return;
            }
        }
    }
}

impl Following {
    async fn catch_up(&mut self, now: Instant) {
        let limit = now + if self.is_read { NEXT } else { FIRST };
        while let Ok(news) = timeout_at(limit, self.follower.next()).await {
            match news {
                News::Read if !self.is_read => {
                    self.is_read = true;
                    return;
                }
                News::Away(trouble) => {
                    self.trouble = Some(trouble.to_string());
                    return;
                }
                News::Back => self.trouble = None,
                _ => {}
            }
        }
        if !self.is_read && self.trouble.is_none() {
            self.trouble = Some("etcd has not answered yet".to_owned());
        }
    }
}
