//! What an operator does with an etcd, from where all members are heard.

use std::time::Duration;

use etcd_client::{AlarmAction, AlarmOptions, AlarmType, Client, CompactionOptions, Error};
use testkit::net::Net;

use crate::recorder::{ROOT, options};

/// A member that does not answer for so long is given up.
const PATIENCE: Duration = Duration::from_secs(5);

/// Why something could not be done.
pub type Failure = String;

/// Does something with the first member that answers.
pub fn with<T: Send>(
    net: &Net,
    endpoints: &[String],
    act: impl AsyncFn(Client) -> Result<T, Error> + Sync,
) -> Result<T, Failure> {
    net.inside(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(async {
            let mut failure = String::new();
            for endpoint in endpoints {
                let attempt = async { act(Client::connect([endpoint], Some(options())).await?).await };
                match tokio::time::timeout(PATIENCE, attempt).await {
                    Ok(Ok(done)) => return Ok(done),
                    Ok(Err(error)) => failure = format!("{endpoint}: {error}"),
                    Err(_) => failure = format!("{endpoint}: no answer"),
                }
            }
            Err(failure)
        })
    })
}

/// Forgets all history up to this revision.
pub async fn compact(client: Client, revision: i64) -> Result<(), Error> {
    match client.kv_client().compact(revision, Some(CompactionOptions::new().with_physical())).await {
        // Somebody has done so.
        Err(Error::GRpcStatus(status)) if status.message().contains("compacted") => Ok(()),
        other => other.map(drop),
    }
}

/// Writes until the quota is used up.
pub async fn fill(client: Client) -> Result<(), Error> {
    for n in 0..100_u8 {
        if let Err(error) = client.kv_client().put("filler", vec![n; 1 << 20], None).await {
            return match &error {
                Error::GRpcStatus(status) if status.message().contains("space") => Ok(()),
                _ => Err(error),
            };
        }
    }
    Ok(())
}

/// Makes one member give back what it does not use.
pub async fn defragment(client: Client) -> Result<(), Error> {
    client.maintenance_client().defragment().await.map(drop)
}

/// Makes room, as docs/cluster.md says it.
pub fn make_room(net: &Net, endpoints: &[String], seen: i64) -> Result<(), Failure> {
    with(net, endpoints, async |client| {
        client.kv_client().delete("filler", None).await?;
        compact(client, seen).await
    })?;
    for endpoint in endpoints {
        with(net, std::slice::from_ref(endpoint), defragment)?;
    }
    with(net, endpoints, async |client| {
        let mut maintenance = client.maintenance_client();
        let alarms = maintenance.alarm(AlarmAction::Get, AlarmType::None, None).await?;
        for alarm in alarms.alarms() {
            let mut one = AlarmOptions::new();
            one.with_member(alarm.member_id());
            maintenance.alarm(AlarmAction::Deactivate, AlarmType::Nospace, Some(one)).await?;
        }
        Ok(())
    })?;
    // A member that had the rest from another since it was defragmented may still be full: it says so at the next write.
    let again = with(net, endpoints, async |client| {
        client.kv_client().put("filler", "", None).await?;
        let alarms = client.maintenance_client().alarm(AlarmAction::Get, AlarmType::None, None).await?;
        Ok(alarms.alarms().len())
    })?;
    if again > 0 { Err(format!("{again} members are full again")) } else { Ok(()) }
}

/// Writes something that whoever follows all keys must come to see. Its revision.
pub fn mark(net: &Net, endpoints: &[String]) -> Result<i64, Failure> {
    with(net, endpoints, async |client| {
        let answer = client.kv_client().put(format!("{ROOT}mark"), "", None).await?;
        Ok(answer.header().map_or(0, etcd_client::ResponseHeader::revision))
    })
}
