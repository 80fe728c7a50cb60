//! What an agent asks of etcd, without its lease: same calls, same keys, same documents, same pace.

use std::sync::Arc;
use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, PutOptions, Txn, TxnOp};
use tokio::time::{sleep, timeout};

use super::line::Lines;
use super::pace::{BUSY, SLOW, pause, spared};
use super::{key, ttl};

/// The agents' own settings.
const PER_SECOND: f64 = 5.0;
const WAITS: u32 = 5;
const FAR: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(120);
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// So often it tries to join, for minutes.
const ATTEMPTS: u32 = 60;

/// How long its writes took, and how often it was lost meanwhile, and joined again.
#[derive(Default)]
pub struct Course {
    pub times: Vec<Duration>,
    pub lost: u64,
}

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
    /// What an agent does to join. Its lease is kept from then on.
    pub async fn join(client: Client, number: usize, lines: &Arc<Lines>) -> Result<Agent, String> {
        let mut failures = 0;
        loop {
            match Agent::join_once(client.clone(), number, lines).await {
                Ok(agent) => return Ok(agent),
                Err(why) if failures >= ATTEMPTS => return Err(why),
                // Too much to do, or so much that its lease has run out before it was used.
                Err(_) => sleep(pause(&mut failures)).await,
            }
        }
    }

    /// The same again, when its lease has run out.
    pub async fn join_again(self, lines: &Arc<Lines>) -> Result<Agent, String> {
        let Agent { client, number, head, generation, .. } = self;
        Ok(Agent { head, generation, ..Agent::join(client, number, lines).await? })
    }

    async fn join_once(mut client: Client, number: usize, lines: &Arc<Lines>) -> Result<Agent, String> {
        let name = format!("web-{number:05}");
        let (mut waits, since) = (0, Instant::now());
        while waits < WAITS && since.elapsed() < LONGEST_WAIT {
            let begun = Instant::now();
            in_time(client.get(key(&format!("hosts/{name}")), None)).await?;
            let time = begun.elapsed();
            if time <= SLOW {
                break;
            }
            waits += u32::from(time < FAR);
            sleep(spared(time).mul_f64(0.5 + fastrand::f64() / 2.0)).await;
        }
        in_time(client.get(key(&format!("hosts/{name}")), None)).await?;
        in_time(client.get(key(&format!("known/{name}")), None)).await?;
        let events = in_time(client.lease_grant(4_500, None)).await?.id();
        let records = in_time(client.lease_grant(86_400, None)).await?.id();
        let presence = in_time(client.lease_grant(ttl().as_secs() as i64, None)).await?.id();
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
        in_time(client.txn(txn)).await?;
        lines.keep(number, presence);
        let all = || Some(GetOptions::new().with_prefix());
        in_time(client.get(key(&format!("nodes/{name}/")), all())).await?;
        // As the one that could note losses, and as the one that reloads.
        in_time(client.get(key("roles/@teller"), Some(GetOptions::new().with_count_only()))).await?;
        in_time(client.get(key("roles/@teller"), None)).await?;
        in_time(client.get(key("roles/@teller"), None)).await?;
        in_time(client.get(key(&format!("tasks/{name}/")), all())).await?;
        let mut agent = Agent { client, number, name, presence, records, events, head: 0, generation: 7 };
        // If its lease is gone by now, the next keep-alive tells it.
        agent.write(0).await.map_err(|error| error.to_string())?;
        Ok(agent)
    }

    /// What it writes when it has reloaded: the first events soon, and what comes while these are written after that, if etcd is slow
    /// after a pause.
    pub async fn reload(mut self, parts: &[u64], lines: &Arc<Lines>) -> Result<(Agent, Course), String> {
        self.generation += 1;
        let mut course = Course::default();
        for events in parts {
            self = self.tell(*events, lines, &mut course).await?;
        }
        Ok((self, course))
    }

    /// A death and its replacement, all the time, at the pace of an agent.
    pub async fn crash_loop(
        mut self,
        lasts: Duration,
        lines: &Arc<Lines>,
    ) -> Result<(Agent, Course), String> {
        let (begun, mut course) = (Instant::now(), Course::default());
        while begun.elapsed() < lasts {
            let before = Instant::now();
            self = self.tell(2, lines, &mut course).await?;
            sleep(Duration::from_secs_f64(1.0 / PER_SECOND).saturating_sub(before.elapsed())).await;
        }
        Ok((self, course))
    }

    /// Writes, after a pause if etcd was slow the last time. Joins first if it has to.
    async fn tell(mut self, events: u64, lines: &Arc<Lines>, course: &mut Course) -> Result<Agent, String> {
        if let Some(time) = course.times.last() {
            sleep(spared(*time)).await;
        }
        loop {
            if let Some(time) = self.write(events).await.map_err(|error| error.to_string())? {
                course.times.push(time);
                return Ok(self);
            }
            course.lost += 1;
            self = self.join_again(lines).await?;
        }
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
        let head = self.head + events;
        let state = format!(
            r#"{{"v":1,"registry":"18db5f0a1b2c3d4e","head":{head},"missed":0,"time":1795703674.29,"state":"serving","generation":{generation},"begun":1795703674.29,"expected":4,"serving":4,"draining":0,"stalled":0,"old_generations":0,"deaths":0,"reload":true}}"#
        );
        puts.push(TxnOp::put(key(&format!("nodes/{name}/nginx")), state, under(self.records)));
        let is_ours = Compare::lease(key(&format!("hosts/{name}")), CompareOp::Equal, self.presence);
        let txn = Txn::new().when([is_ours]).and_then(puts);
        let (begun, mut failures) = (Instant::now(), 0);
        loop {
            match timeout(WRITE_PATIENCE, self.client.txn(txn.clone())).await {
                Ok(Ok(done)) if done.succeeded() => {
                    self.head = head;
                    return Ok(Some(begun.elapsed()));
                }
                Ok(Ok(_)) => return Ok(None),
                Ok(Err(error)) if !is_busy(&error) => return Err(error),
                Ok(Err(_)) | Err(_) => {
                    failures = failures.max(BUSY);
                    sleep(pause(&mut failures)).await;
                }
            }
        }
    }
}

/// A call that somebody waits for.
async fn in_time<T>(call: impl Future<Output = Result<T, Error>>) -> Result<T, String> {
    let patience = (ttl() / 2).clamp(Duration::from_secs(1), Duration::from_secs(5));
    match timeout(patience, call).await {
        Ok(answer) => answer.map_err(|error| error.to_string()),
        Err(_) => Err(format!("no answer for {patience:?}")),
    }
}

/// etcd refuses what it cannot do soon, or gives up what it could not do in time: an agent tries that again, too. Which code it gives
/// depends on its version.
fn is_busy(error: &Error) -> bool {
    let about = |status: &str| ["too many requests", "timed out"].iter().any(|what| status.contains(what));
    matches!(error, Error::GRpcStatus(status) if about(status.message()))
}
