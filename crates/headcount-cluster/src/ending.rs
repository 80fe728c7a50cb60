//! How an agent's part in the cluster is to end.

use tokio::sync::watch;

/// How it is to end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ending {
    /// Not yet.
    #[default]
    GoOn,
    /// The host leaves the cluster, at once.
    Leave,
    /// Another agent of this host takes over: nobody is told anything.
    HandOver,
}

/// Waits until it is to end.
pub(crate) async fn asked(ending: &mut watch::Receiver<Ending>) {
    // Whoever could ask is gone: as if this were to be handed over.
    let _ = ending.wait_for(|ending| *ending != Ending::GoOn).await;
}
