//! What an agent asks of etcd, without its lease: same calls, same keys, same documents, same pace.

use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, PutOptions, Txn, TxnOp};

use super::{TTL, key};

/// The agents' own settings.
const PER_SECOND: f64 = 5.0;
const SLOW: Duration = Duration::from_millis(100);
const SPARED: u32 = 4;
const WAITS: u32 = 5;

#[derive(Clone)]
pub struct Agent {
    client: Client,
    pub number: usize,
    name: String,
    pub presence: i64,
    records: i64,
    events: i64,
    /// The number of its last event, and its newest generation.
    head: u64,
    generation: u64,
}

impl Agent {
    /// What an agent does to join. Its lease is to be kept as soon as `keep` hears of it.
    pub async fn join(client: Client, number: usize, keep: impl Fn(i64)) -> Result<Agent, Error> {
        let mut failures = 0;
        loop {
            match Agent::join_once(client.clone(), number, &keep).await {
                Ok(agent) => return Ok(agent),
                Err(error) if failures >= 20 => return Err(error),
                // Too much to do, or so much that its lease has run out before it was used.
                Err(_) => back_off(&mut failures).await,
            }
        }
    }

    /// The same again, when its lease has run out.
    pub async fn join_again(self, keep: impl Fn(i64)) -> Result<Agent, Error> {
        let Agent { client, number, head, generation, .. } = self;
        Ok(Agent { head, generation, ..Agent::join(client, number, keep).await? })
    }

    async fn join_once(mut client: Client, number: usize, keep: &impl Fn(i64)) -> Result<Agent, Error> {
        let name = format!("web-{number:05}");
        for _ in 0..=WAITS {
            let begun = Instant::now();
            client.get(key(""), Some(GetOptions::new().with_count_only())).await?;
            if begun.elapsed() <= SLOW {
                break;
            }
            let spared = (begun.elapsed() * SPARED).min(Duration::from_secs(10));
            tokio::time::sleep(spared.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
        client.get(key(&format!("hosts/{name}")), None).await?;
        client.get(key(&format!("known/{name}")), None).await?;
        let events = client.lease_grant(4_500, None).await?.id();
        let records = client.lease_grant(86_400, None).await?.id();
        let presence = client.lease_grant(TTL.as_secs() as i64, None).await?.id();
        let under = |lease| Some(PutOptions::new().with_lease(lease));
        let host = format!(
            r#"{{"v":1,"agent":"0.1.0","place":"00000000-0000-0000-0000-000000000000:4026531836","machine":"{name}","pid":811,"birth":1042,"since":1795703674.2986557}}"#
        );
        let known = format!(r#"{{"v":1,"presence":"here","since":1795703674.2986557,"lease":{presence}}}"#);
        let joined = format!(
            r#"{{"v":1,"kind":"host_joined","sentence":"host {name} has joined","time":1795703674.29}}"#
        );
        let event = key(&format!("events/{name}/@host/{presence:x}/{:020}", 1));
        let txn = Txn::new()
            .when([Compare::create_revision(key(&format!("hosts/{name}")), CompareOp::Equal, 0)])
            .and_then([
                TxnOp::put(key(&format!("hosts/{name}")), host, under(presence)),
                TxnOp::put(key(&format!("known/{name}")), known, under(records)),
                TxnOp::put(event, joined, under(events)),
            ]);
        client.txn(txn).await?;
        keep(presence);
        let all = || Some(GetOptions::new().with_prefix());
        client.get(key(&format!("nodes/{name}/")), all()).await?;
        // As the one that could note losses, and as the one that reloads.
        client.get(key("roles/@teller"), Some(GetOptions::new().with_count_only())).await?;
        client.get(key("roles/@teller"), None).await?;
        client.get(key("roles/@teller"), None).await?;
        client.get(key(&format!("tasks/{name}/")), all()).await?;
        let mut agent = Agent { client, number, name, presence, records, events, head: 0, generation: 7 };
        // If its lease is gone by now, the next keep-alive tells it.
        agent.write(0).await?;
        Ok(agent)
    }

    /// What it writes when it has reloaded.
    pub async fn reload(&mut self, events: u64) -> Result<Option<Duration>, Error> {
        self.generation += 1;
        self.write(events).await
    }

    /// What it writes when so many events have happened. How long that took; `None`: its lease has run out.
    async fn write(&mut self, events: u64) -> Result<Option<Duration>, Error> {
        let Agent { name, generation, .. } = self.clone();
        let under = |lease| Some(PutOptions::new().with_lease(lease));
        let mut puts: Vec<TxnOp> = (1..=events)
            .map(|n| {
                let number = self.head + n;
                let event = format!(
                    r#"{{"v":1,"node":"nginx","seq":{number},"kind":"worker_died","cause":"signal","generation":{generation},"role":"worker","pid":20141,"worker_id":3,"mine":3,"draining":0,"total":3,"signal":11,"age":12.7,"state":"serving","in_state_for":12.6,"time":1795703674.29,"timestamp":"2026-11-26T14:34:34.290000Z","reporter":20140,"sentence":"worker 3 (pid 20141) of generation {generation} died by SIGSEGV, 12 s old, serving for 12 s; 3 workers left"}}"#
                );
                let at = key(&format!("events/{name}/nginx/18db5f0a1b2c3d4e/{number:020}"));
                TxnOp::put(at, event, under(self.events))
            })
            .collect();
        self.head += events;
        let state = format!(
            r#"{{"v":1,"registry":"18db5f0a1b2c3d4e","head":{},"missed":0,"time":1795703674.29,"state":"serving","generation":{generation},"begun":1795703674.29,"expected":4,"serving":4,"draining":0,"stalled":0,"old_generations":0,"deaths":0,"reload":true}}"#,
            self.head
        );
        puts.push(TxnOp::put(key(&format!("nodes/{name}/nginx")), state, under(self.records)));
        let is_ours = Compare::lease(key(&format!("hosts/{name}")), CompareOp::Equal, self.presence);
        let txn = Txn::new().when([is_ours]).and_then(puts);
        let (begun, mut failures) = (Instant::now(), 0);
        loop {
            match self.client.txn(txn.clone()).await {
                Ok(done) => return Ok(done.succeeded().then(|| begun.elapsed())),
                Err(error) if is_busy(&error) => back_off(&mut failures).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// A death and its replacement, all the time, at the pace of an agent. How long each write took; and whether it has its lease still.
    pub async fn crash_loop(mut self, lasts: Duration) -> Result<(Vec<Duration>, Option<Agent>), Error> {
        let (begun, mut times) = (Instant::now(), Vec::new());
        while begun.elapsed() < lasts {
            let Some(time) = self.write(2).await? else { return Ok((times, None)) };
            times.push(time);
            let spared = if time > SLOW { time * SPARED } else { Duration::ZERO };
            tokio::time::sleep(spared.max(Duration::from_secs_f64(1.0 / PER_SECOND).saturating_sub(time)))
                .await;
        }
        Ok((times, Some(self)))
    }
}

/// etcd refuses what it cannot do soon, or gives up what it could not do in time: an agent tries that again, too. Which code it gives
/// depends on its version.
fn is_busy(error: &Error) -> bool {
    let about = |status: &str| ["too many requests", "timed out"].iter().any(|what| status.contains(what));
    matches!(error, Error::GRpcStatus(status) if about(status.message()))
}

/// As an agent does.
async fn back_off(failures: &mut u32) {
    let whole = (Duration::from_millis(250) * 2_u32.pow((*failures).min(10))).min(Duration::from_secs(10));
    *failures += 1;
    tokio::time::sleep(whole.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
}
