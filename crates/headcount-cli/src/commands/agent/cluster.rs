//! The agent's part in the cluster, if it has one.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use headcount_cluster::Nodes;
use headcount_cluster::config::Config;
use headcount_cluster::doer::Doer;
use headcount_cluster::publisher::{Ending, Publisher, SharedStatus, Status};
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// So long may leaving take. Whoever waits for the agent's end has a limit, too.
const LEAVING: Duration = Duration::from_secs(5);

pub struct Membership {
    ending: watch::Sender<Ending>,
    task: Option<JoinHandle<()>>,
    status: SharedStatus,
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
        Membership { ending, task: publisher.map(|publisher| tokio::spawn(publisher.run())), status }
    }

    pub async fn end(&mut self, how: Ending) {
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
