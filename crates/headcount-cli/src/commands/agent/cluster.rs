//! The agent's part in the cluster, if it has one.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use headcount_cluster::Nodes;
use headcount_cluster::claims::Claims;
use headcount_cluster::config::Config;
use headcount_cluster::doer::Doer;
use headcount_cluster::ending::Ending;
use headcount_cluster::publisher::{Publisher, SharedStatus, Status};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::picture::Picture;

/// So long may leaving take. Whoever waits for the agent's end has a limit, too.
const LEAVING: Duration = Duration::from_secs(5);

pub struct Membership {
    ending: watch::Sender<Ending>,
    task: Option<JoinHandle<()>>,
    status: SharedStatus,
    claims: Option<Claims>,
    picture: Option<Picture>,
}

impl Membership {
    /// Does nothing where no cluster is named.
    pub fn begin(config: &Config, nodes: watch::Receiver<Nodes>, doer: &Arc<Doer>) -> Membership {
        let (ending, asked) = watch::channel(Ending::GoOn);
        let status = Arc::default();
        let publisher = config
            .cluster
            .clone()
            .map(|cluster| Publisher::new(cluster, nodes, asked, Arc::clone(&status)).with(Arc::clone(doer)));
        Membership {
            ending,
            task: publisher.map(|publisher| tokio::spawn(publisher.run())),
            status,
            claims: config.cluster.clone().map(Claims::begin),
            picture: config.cluster.clone().map(Picture::begin),
        }
    }

    /// What has roles, locks and onces for the processes of this host.
    pub fn claims(&self) -> Option<&Claims> {
        self.claims.as_ref()
    }

    /// The fleet, for those who ask.
    pub fn picture(&self) -> Option<&Picture> {
        self.picture.as_ref()
    }

    pub async fn end(&mut self, how: Ending) {
        self.picture = None;
        if let Some(claims) = self.claims.take()
            && tokio::time::timeout(LEAVING, claims.end()).await.is_err()
        {
            tracing::warn!("some process has not let go of what it has: that ends with its lease");
        }
        self.ending.send_replace(how);
        if let Some(task) = self.task.take()
            && tokio::time::timeout(LEAVING, task).await.is_err()
        {
            tracing::warn!("leaving the cluster takes too long: the others will call this host lost");
        }
    }

    /// How it is, if there is one.
    pub fn reader(&self) -> Option<impl Fn() -> Status + Clone + Send + Sync + 'static> {
        let status = self.task.as_ref().map(|_| Arc::clone(&self.status))?;
        Some(move || status.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}
