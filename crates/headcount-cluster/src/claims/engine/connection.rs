//! The way to etcd: how it comes and goes, and what that means for what is had.

use std::sync::Arc;

use headcount_cluster_client::protocol::Message;
use tokio::sync::{OnceCell, mpsc};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Engine;
use crate::claims::chase::{Place, Report, Reports};
use crate::claims::lease::{Lease, boot_ms};
use crate::config::ClusterConfig;
use crate::etcd::Etcd;
use crate::keys::Keys;
use crate::trouble::Trouble;

pub(super) struct Connection {
    pub(super) place: Arc<Place>,
    pub(super) tasks: JoinSet<Result<(), Trouble>>,
}

impl Engine {
    pub(super) fn connect(&mut self) {
        let (config, keys) = (self.config.clone(), self.keys.clone());
        let (reports, lease, abandoned) = (self.reports.clone(), self.lease, self.abandoned.clone());
        self.connections += 1;
        let number = self.connections;
        let mut connecting = JoinSet::new();
        connecting.spawn(async move {
            let report = match connect(&config, keys, lease, &abandoned, number, reports.clone()).await {
                Ok((place, lease)) => Report::Connected(Arc::new(place), lease),
                Err(trouble) => Report::Trouble(trouble),
            };
            // Nobody listens when the agent ends.
            let _ = reports.send(report);
        });
        self.connecting = Some(connecting);
    }

    pub(super) fn disconnect(&mut self) {
        (self.connection, self.connecting) = (None, None);
        self.chased.clear();
        self.frees.values_mut().flatten().for_each(|free| free.is_begun = false);
        // What the tasks that were ended have said is of that connection.
        (self.reports, self.reported) = mpsc::unbounded_channel();
        // Whoever was to wait still does.
        self.next_connect = self.next_connect.max(Instant::now());
    }

    pub(super) fn task_ended(&mut self, ended: Result<(), Trouble>) {
        if let Err(trouble) = ended {
            self.troubled(trouble);
        }
    }

    pub(super) fn troubled(&mut self, trouble: Trouble) {
        self.disconnect();
        if trouble == Trouble::LeaseGone {
            self.lease = None;
            self.frees.clear();
            self.signed.clear();
            self.tokens.clear();
            self.book.lapse("its lease has run out");
        }
        self.next_connect = Instant::now() + self.backoff.next();
        self.is_troubled(trouble);
    }

    /// Said once for each kind.
    pub(super) fn is_troubled(&mut self, trouble: Trouble) {
        let kind = std::mem::discriminant(&trouble);
        if self.trouble.as_ref().map(std::mem::discriminant) != Some(kind) {
            tracing::warn!("cluster {}: roles, locks and onces: {trouble}. Trying again", self.config.name);
            self.tell_all(&Message::Away { why: trouble.to_string() });
            self.trouble = Some(trouble);
        }
    }

    pub(super) fn is_well(&mut self) {
        if self.trouble.take().is_some() {
            tracing::info!("cluster {}: roles, locks and onces: etcd answers again", self.config.name);
            self.tell_all(&Message::Back);
        }
    }

    /// Which may have been over before this was heard: then it stays so.
    pub(super) fn renewed(&mut self, deadline: u64) {
        self.book.tick(boot_ms());
        self.carry_out();
        if let Some(lease) = &mut self.lease {
            lease.deadline = lease.deadline.max(deadline);
            self.book.renewed(lease.deadline);
        }
    }

    pub(super) fn connected(&mut self, place: Arc<Place>, lease: Lease) {
        self.connecting = None;
        self.abandoned.clear();
        self.lease = Some(lease);
        let mut tasks = JoinSet::new();
        let (etcd, at) = (place.etcd.clone(), Arc::clone(&place));
        let renewed = move |deadline| at.report(Report::Renewed(deadline));
        tasks.spawn(async move { Err(lease.keep(etcd, renewed).await) });
        self.connection = Some(Connection { place, tasks });
        if boot_ms() < lease.deadline {
            self.renewed(lease.deadline);
        }
    }
}

/// Connects, and goes on with the lease, or gets one.
async fn connect(
    config: &ClusterConfig,
    keys: Keys,
    lease: Option<Lease>,
    abandoned: &[i64],
    connection: u64,
    reports: Reports,
) -> Result<(Place, Lease), Trouble> {
    let etcd = Etcd::connect(config, keys.root()).await?;
    for lease in abandoned {
        // Those that are gone are as they are to be. The others end by themselves.
        let _ = etcd.revoke(*lease).await;
    }
    let lease = match lease {
        Some(lease) => lease,
        None => Lease::grant(&etcd, config.ttl).await?,
    };
    let (host, is_begun) = (config.host.clone(), OnceCell::new());
    Ok((Place { etcd, keys, lease: lease.id, connection, is_begun, host, reports }, lease))
}

pub(super) async fn next_ended(connection: &mut Option<Connection>) -> Result<(), Trouble> {
    let ended = match connection {
        Some(connection) => connection.tasks.join_next().await,
        None => std::future::pending().await,
    };
    match ended {
        Some(Ok(ended)) => ended,
        Some(Err(error)) => Err(Trouble::Other { what: "go on", why: error.to_string() }),
        // That which keeps the lease is always there.
        None => Err(Trouble::LeaseGone),
    }
}
