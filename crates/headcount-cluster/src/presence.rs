//! That this host is there: its lease, its key, and what is known of it when it is not.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use etcd_client::{Compare, CompareOp, KeyValue, PutOptions, Txn, TxnOp, TxnResponse};

use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::claims::boot_ms;
use crate::config::ClusterConfig;
use crate::ending::{Ending, asked};
use crate::etcd::Etcd;
use crate::keys::{self, Key, Keys};
use crate::node::AT_ONCE;
use crate::now;
use crate::pace::spared;
use crate::trouble::Trouble;
use crate::value::{self, EventValue, HostValue, KnownValue, NodeValue, Presence, VERSION};

/// The leases of a host that is there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Leases {
    /// It is there as long as this one lasts.
    pub(crate) presence: i64,
    /// What is known of it ends with this one.
    pub(crate) records: i64,
    /// That of the host's key, as this agent wrote it.
    pub(crate) revision: i64,
    /// Since when this host is there.
    pub(crate) since: f64,
    /// The same in milliseconds since the boot, which nobody sets; 0 if an agent before this one has joined.
    pub(crate) since_boot_ms: u64,
    /// The agent before this one has left them: nobody was told anything.
    pub(crate) adopted: bool,
}

/// The lease that events are under: each for its time, since nobody extends it.
pub(crate) struct EventLease {
    lifetime: Duration,
    current: Option<(i64, Instant)>,
}

impl EventLease {
    pub(crate) fn new(config: &ClusterConfig) -> EventLease {
        EventLease { lifetime: config.events_for, current: None }
    }

    /// It is not known to etcd any more, which may have been set back.
    pub(crate) fn forget(&mut self) {
        self.current = None;
    }

    /// One that is young: what is under it lasts for the lifetime, or a quarter longer.
    pub(crate) async fn get(&mut self, etcd: &Etcd) -> Result<i64, Trouble> {
        if let Some((lease, granted)) = self.current
            && granted.elapsed() < self.lifetime / 4
        {
            return Ok(lease);
        }
        let lease = etcd.grant_patiently(self.lifetime + self.lifetime / 4).await?;
        self.current = Some((lease, Instant::now()));
        Ok(lease)
    }
}

/// This agent, as others are to know it.
pub(crate) fn this_agent() -> HostValue {
    let pid = std::process::id();
    HostValue {
        v: VERSION,
        agent: env!("CARGO_PKG_VERSION").to_owned(),
        place: place(),
        machine: text("/proc/sys/kernel/hostname"),
        pid,
        birth: birth(pid).unwrap_or(0),
        since: now(),
    }
}

fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// Where a process id means a process: the boot of the machine, and the pid namespace.
fn place() -> String {
    let namespace = fs::metadata("/proc/self/ns/pid").map_or(0, |found| found.ino());
    format!("{}:{namespace}", text("/proc/sys/kernel/random/boot_id"))
}

/// When a process began: a number that is used again has another one. `None` of one that is not seen, or has ended and nobody
/// has asked for its end yet.
fn birth(pid: u32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name before it may contain anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    let is_alive = !matches!(*fields.first()?, "Z" | "X");
    fields.get(19)?.parse().ok().filter(|_| is_alive)
}

/// Whether that agent was a process of this very place that has ended, for certain.
fn has_ended(other: &HostValue) -> bool {
    if other.place != place() {
        return false;
    }
    if birth(other.pid).is_some() || Path::new(&format!("/proc/{}", other.pid)).exists() {
        return birth(other.pid) != Some(other.birth);
    }
    // It may be hidden from us: what is there may not be signalled, and what is not there cannot.
    let pid = i32::try_from(other.pid).ok().and_then(rustix::process::Pid::from_raw);
    pid.is_none_or(|pid| rustix::process::test_kill_process(pid) == Err(rustix::io::Errno::SRCH))
}

/// So often at most a host that is to join waits for an etcd that may be far away.
const WAITS: u32 = 5;
/// Nothing is so far away: an etcd that takes longer has a lot to do,
const FAR: Duration = Duration::from_secs(1);
/// and so long at most a host waits for it.
const LONGEST_WAIT: Duration = Duration::from_secs(120);

/// Waits while etcd has a lot to do, for very many hosts may join at the same moment: joining is several writes, and keep-alives wait
/// for writes that came before them. If all of them wrote at once, the leases of the first would run out before the last has joined,
/// and so on for ever. An etcd that is far away is slow as well: there it joins all the same, some seconds later. Whoever takes over from
/// an agent before, whose lease goes on, does so at once. Also until the agent is to end.
pub(crate) async fn await_turn(
    etcd: &Etcd,
    keys: &Keys,
    config: &ClusterConfig,
    ending: &mut watch::Receiver<Ending>,
) -> Result<(), Trouble> {
    let (mut waits, since) = (0, Instant::now());
    while waits < WAITS && since.elapsed() < LONGEST_WAIT {
        let begun = Instant::now();
        if etcd.get(&keys.host(&config.host)).await?.is_some() {
            return Ok(());
        }
        let time = begun.elapsed();
        let spared = spared(time);
        if spared.is_zero() {
            return Ok(());
        }
        waits += u32::from(time < FAR);
        tokio::select! {
            () = sleep(spared.mul_f64(0.5 + fastrand::f64() / 2.0)) => {}
            () = asked(ending) => return Ok(()),
        }
    }
    Ok(())
}

/// Makes this host be there, or takes over from this host's agent before. `spare`: a lease for what is known of the host that an
/// earlier attempt got, so that not each leaves one behind.
pub(crate) async fn register(
    etcd: &Etcd,
    keys: &Keys,
    config: &ClusterConfig,
    events: &mut EventLease,
    spare: &mut Option<i64>,
) -> Result<Leases, Trouble> {
    let me = this_agent();
    if let Some(there) = etcd.get(&keys.host(&config.host)).await? {
        return take_over(etcd, keys, config, &me, &there, spare).await;
    }
    let since_boot_ms = boot_ms();
    // It was lost, and is back before anybody has noted it.
    note_lost(etcd, keys, events.get(etcd).await?, &config.host).await?;
    let records = records(etcd, keys, config, spare).await?;
    let presence = etcd.grant(config.ttl).await?;
    let known = known_value(Presence::Here, presence);
    let event = EventValue::of_host(&config.host, "joined", "has joined");
    let under = |lease| Some(PutOptions::new().with_lease(lease));
    let txn =
        Txn::new().when([Compare::create_revision(keys.host(&config.host), CompareOp::Equal, 0)]).and_then([
            TxnOp::put(keys.host(&config.host), json(&me), under(presence)),
            TxnOp::put(keys.known(&config.host), json(&known), under(records)),
            TxnOp::put(
                keys.host_event(&config.host, presence, keys::JOINED),
                json(&event),
                under(events.get(etcd).await?),
            ),
        ]);
    let done = etcd.txn("tell that this host is there", txn).await;
    match done {
        Ok(answer) if answer.succeeded() => Ok(Leases {
            presence,
            records,
            revision: revision_of(&answer),
            since: me.since,
            since_boot_ms,
            adopted: false,
        }),
        other => {
            // If this fails as well, the lease ends by itself.
            let _ = etcd.revoke(presence).await;
            other.and(Err(Trouble::Taken(format!(
                "another host has just taken the name {}: give one of them another (cluster.host)",
                config.host
            ))))
        }
    }
}

/// The lease that what is known of this host is under: the one that it has, if it still lasts.
async fn records(
    etcd: &Etcd,
    keys: &Keys,
    config: &ClusterConfig,
    spare: &mut Option<i64>,
) -> Result<i64, Trouble> {
    let key = keys.known(&config.host);
    let mut known = etcd.get(&key).await?;
    if let Some(Err(why)) = known.as_ref().map(|kv| value::parse::<KnownValue>(kv.value())) {
        // It says how this host was, which nobody else needs to know.
        tracing::warn!("the key {key} is about this host and cannot be read: {why}. It is written anew");
        known = None;
    }
    for lease in known.as_ref().map(KeyValue::lease).filter(|lease| *lease != 0).into_iter().chain(*spare) {
        match etcd.keep_alive(lease).await {
            Ok(_) => return Ok(lease),
            Err(Trouble::LeaseGone) => {}
            Err(trouble) => return Err(trouble),
        }
    }
    let lease = etcd.grant(config.forget_after).await?;
    *spare = Some(lease);
    Ok(lease)
}

/// There is a host of this name. Its agent may have been ours, which has ended: then its lease goes on, and nobody is told.
async fn take_over(
    etcd: &Etcd,
    keys: &Keys,
    config: &ClusterConfig,
    me: &HostValue,
    there: &KeyValue,
    spare: &mut Option<i64>,
) -> Result<Leases, Trouble> {
    let key = keys.host(&config.host);
    let other: HostValue = value::parse(there.value()).map_err(|why| {
        Trouble::Taken(format!("the key {key} of this host's name cannot be read, and is left alone: {why}"))
    })?;
    let is_me = other.place == me.place && other.pid == me.pid && other.birth == me.birth;
    let presence = there.lease();
    if presence == 0 || !is_me && !has_ended(&other) {
        let who = match other.place == me.place {
            true => format!("process {} of this machine", other.pid),
            false => format!("an agent on machine {}", other.machine),
        };
        let unless = match presence {
            // Agents write it under a lease.
            0 => format!(
                "the key {key} is under no lease, so that it does not end: if it is nobody's, remove it with etcdctl del"
            ),
            _ => format!(
                "if it is this machine before its last boot, this goes away by itself within {:?}",
                config.ttl
            ),
        };
        return Err(Trouble::Taken(format!(
            "there is a host {} already: {who}. Give one of them another name (cluster.host); {unless}",
            config.host
        )));
    }
    etcd.keep_alive(presence).await?;
    let records = records(etcd, keys, config, spare).await?;
    let value = HostValue { since: other.since, ..me.clone() };
    let put = TxnOp::put(key.clone(), json(&value), Some(PutOptions::new().with_lease(presence)));
    let txn =
        Txn::new().when([Compare::mod_revision(key, CompareOp::Equal, there.mod_revision())]).and_then([put]);
    let answer = etcd.txn("take over from the agent before", txn).await?;
    match answer.succeeded() {
        true => Ok(Leases {
            presence,
            records,
            revision: revision_of(&answer),
            since: other.since,
            since_boot_ms: 0,
            adopted: true,
        }),
        false => Err(Trouble::LeaseGone),
    }
}

/// Notes that the host is lost, by an event under this lease, unless it has left, is back, or it was noted.
pub(crate) async fn note_lost(etcd: &Etcd, keys: &Keys, events: i64, host: &str) -> Result<(), Trouble> {
    let at = keys.known(host);
    let Some(kv) = etcd.get(&at).await? else { return Ok(()) };
    // What cannot be read is left alone.
    let Ok(known) = value::parse::<KnownValue>(kv.value()) else { return Ok(()) };
    if known.presence != Presence::Here {
        return Ok(());
    }
    let value = known_value(Presence::Lost, known.lease);
    let event = EventValue::of_host(
        host,
        "lost",
        "is lost: its lease has run out. What its nodes do is unknown since then",
    );
    let under = |lease| Some(PutOptions::new().with_lease(lease));
    let txn = Txn::new()
        .when([
            Compare::create_revision(keys.host(host), CompareOp::Equal, 0),
            Compare::mod_revision(at.clone(), CompareOp::Equal, kv.mod_revision()),
        ])
        .and_then([
            TxnOp::put(at, json(&value), under(kv.lease())),
            TxnOp::put(keys.host_event(host, known.lease, keys::GONE), json(&event), under(events)),
        ]);
    // If not, somebody else was quicker, or it is back.
    etcd.txn("note that a host is lost", txn).await.map(drop)
}

/// Tells that this host leaves, at once, and takes back what was told of its nodes.
pub(crate) async fn leave(
    etcd: &Etcd,
    keys: &Keys,
    config: &ClusterConfig,
    leases: Leases,
    events: &mut EventLease,
) -> Result<(), Trouble> {
    let known = known_value(Presence::Left, leases.presence);
    let event = EventValue::of_host(&config.host, "left", "has left");
    let under = |lease| Some(PutOptions::new().with_lease(lease));
    // What somebody else has put there is left alone.
    let (found, _) = etcd.all(&keys.nodes_of(&config.host), None).await?;
    let is_state = |kv: &KeyValue| {
        matches!(keys.parse(kv.key()), Some(Key::Node(..))) && value::parse::<NodeValue>(kv.value()).is_ok()
    };
    let told: Vec<_> =
        found.iter().filter(|kv| is_state(kv)).map(|kv| TxnOp::delete(kv.key(), None)).collect();
    let (last, before) = told.split_at(told.len().min(AT_ONCE));
    for some in before.chunks(AT_ONCE) {
        let txn = Txn::new().when([is_ours(keys, config, leases)]).and_then(some);
        etcd.txn("take back what was told of nodes", txn).await?;
    }
    let mut ops = last.to_vec();
    ops.extend([
        TxnOp::put(keys.known(&config.host), json(&known), under(leases.records)),
        TxnOp::put(
            keys.host_event(&config.host, leases.presence, keys::GONE),
            json(&event),
            under(events.get(etcd).await?),
        ),
        TxnOp::delete(keys.host(&config.host), None),
    ]);
    let txn = Txn::new().when([is_ours(keys, config, leases)]).and_then(ops);
    etcd.txn("tell that this host leaves", txn).await?;
    etcd.revoke(leases.presence).await
}

/// What must hold whenever something is written for this host: that it is still there, and still this agent's. A write may reach
/// etcd long after this agent has given it up, or was replaced.
pub(crate) fn is_ours(keys: &Keys, config: &ClusterConfig, leases: Leases) -> Compare {
    Compare::mod_revision(keys.host(&config.host), CompareOp::Equal, leases.revision)
}

/// That of a write that was made.
pub(crate) fn revision_of(answer: &TxnResponse) -> i64 {
    answer.header().map_or(0, etcd_client::ResponseHeader::revision)
}

pub(crate) fn known_value(presence: Presence, lease: i64) -> KnownValue {
    KnownValue { v: VERSION, presence, since: now(), lease }
}

pub(crate) fn json(value: &impl serde::Serialize) -> Vec<u8> {
    // Structures of plain members, whose maps have texts for keys.
    serde_json::to_vec(value).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_known_by_its_process() {
        let me = this_agent();
        assert!(me.birth > 0 && !has_ended(&me));
        assert!(
            has_ended(&HostValue { birth: me.birth + 1, ..me.clone() }),
            "another process of this number"
        );
        assert!(
            !has_ended(&HostValue { place: "elsewhere".into(), birth: 1, ..me }),
            "nothing is known of it"
        );
    }
}
