//! Ten thousand hosts on one etcd, each with a lease of its own, as agents have them: same calls, same keys, same documents, same
//! pace. `HOSTS=10000` says how many.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use etcd_client::{Client, Compare, CompareOp, Error, GetOptions, PutOptions, Txn, TxnOp};
use headcount_bench::{Sample, heading, line};
use testkit::{Etcd, Folder, process};
use tokio::sync::Mutex;
use tokio::task::JoinSet;

use super::Host;

/// The agents' own settings.
const TTL: Duration = Duration::from_secs(5);
/// Longer, for here all join at the same moment, and are kept only then.
const JOINING: Duration = Duration::from_secs(60);
const PER_SECOND: f64 = 5.0;
const SLOW: Duration = Duration::from_millis(100);
const SPARED: u32 = 4;
/// Their connections are few, so that this measures etcd more than this process.
const CONNECTIONS: usize = 32;
/// A reload of four workers: so many events.
const RELOAD: u64 = 14;
/// So long each part goes on.
const LASTS: Duration = Duration::from_secs(20);

#[derive(Clone)]
struct Agent {
    client: Client,
    name: String,
    presence: i64,
    records: i64,
    events: i64,
    /// The number of its last event.
    head: u64,
}

pub fn thousands() {
    let number: usize = std::env::var("HOSTS").ok().and_then(|n| n.parse().ok()).unwrap_or(10_000);
    heading(&format!("{number} hosts with a node each, on one etcd of one member"));
    let (etcd, folder) = (Etcd::start_with(&["--quota-backend-bytes", "8000000000"]), Folder::new());
    let asking = Host::new(&folder, &etcd, "asking", "");
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run(number, &etcd, &asking)).expect("etcd answers");
}

fn key(rest: &str) -> String {
    format!("/headcount/v1/bench/{rest}")
}

async fn run(number: usize, etcd: &Etcd, asking: &Host) -> Result<(), Error> {
    let used = || process::stat(etcd.pid()).expect("it runs").cpu;
    let memory = || format!("{} MiB", process::resident_kib(etcd.pid()) / 1024);
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        clients.push(Client::connect([etcd.url()], None).await?);
    }
    let (begun, before) = (Instant::now(), used());
    let mut joining = JoinSet::new();
    for n in 0..number {
        let client = clients[n % CONNECTIONS].clone();
        joining.spawn(async move {
            let mut failures = 0;
            loop {
                match join(client.clone(), format!("web-{n:05}")).await {
                    Err(error) if is_busy(&error) => back_off(&mut failures).await,
                    other => return other,
                }
            }
        });
    }
    let mut agents = Vec::new();
    while let Some(agent) = joining.join_next().await {
        agents.push(agent.expect("no panic")?);
    }
    line(
        "all join at the same moment",
        &format!("{:.1?}, etcd: {:.1?} of processor time, {}", begun.elapsed(), used() - before, memory()),
        "",
    );

    // From here on, all leases are kept.
    let (answers, lost) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let worst = Arc::new(AtomicU64::new(0));
    let mut keeping = JoinSet::new();
    for agent in &agents {
        let (client, lease) = (agent.client.clone(), agent.presence);
        keeping.spawn(keep(client, lease, Arc::clone(&answers), Arc::clone(&lost), Arc::clone(&worst)));
    }
    tokio::time::sleep(TTL).await;
    worst.store(0, Relaxed);
    let (before, answered, begun) = (used(), answers.load(Relaxed), Instant::now());
    tokio::time::sleep(LASTS).await;
    let rate = (answers.load(Relaxed) - answered) as f64 / begun.elapsed().as_secs_f64();
    let part = (used() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let late = |worst: &AtomicU64| Duration::from_micros(worst.load(Relaxed));
    line(
        "quiet: keep-alives",
        &format!(
            "{rate:.0}/s, etcd: {:.0} % of a processor, slowest answer {:.1?}",
            part * 100.0,
            late(&worst)
        ),
        "",
    );

    let begun = Instant::now();
    let answer = asking.command(&["cluster", "status", "--json"]).output().expect("it can be started");
    assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    line(
        "`cluster status --json`",
        &format!("{:.2?}, {} KiB", begun.elapsed(), answer.stdout.len() / 1024),
        "",
    );

    let (begun, before) = (Instant::now(), used());
    let mut writing = JoinSet::new();
    for mut agent in std::mem::take(&mut agents) {
        writing.spawn(async move { write(&mut agent, RELOAD).await.map(|time| (agent, time)) });
    }
    let mut times = Vec::new();
    while let Some(done) = writing.join_next().await {
        let (agent, time) = done.expect("no panic")?;
        agents.push(agent);
        times.push(time);
    }
    line(
        &format!("all reload at the same moment: {RELOAD} events each"),
        &format!("{:.1?}, etcd: {:.1?} of processor time, {}", begun.elapsed(), used() - before, memory()),
        "",
    );
    line("… a write of these", &Sample::new(times).to_string(), "");

    worst.store(0, Relaxed);
    lost.store(0, Relaxed);
    let (before, begun) = (used(), Instant::now());
    let times = Arc::new(Mutex::new(Vec::new()));
    let mut looping = JoinSet::new();
    for agent in agents {
        looping.spawn(crash_loop(agent, Arc::clone(&times)));
    }
    while let Some(done) = looping.join_next().await {
        done.expect("no panic")?;
    }
    let times = std::mem::take(&mut *times.lock().await);
    let part = (used() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    line(
        "all loop in crashes",
        &format!(
            "{:.0} writes/s, etcd: {:.0} % of a processor, {}",
            times.len() as f64 / begun.elapsed().as_secs_f64(),
            part * 100.0,
            memory()
        ),
        "",
    );
    line("… a write of these", &Sample::new(times).to_string(), "");
    line(
        "… keep-alives too late, and the slowest",
        &format!("{}, {:.1?}", lost.load(Relaxed), late(&worst)),
        "0, less than the ttl",
    );
    Ok(())
}

/// What an agent does to join.
async fn join(mut client: Client, name: String) -> Result<Agent, Error> {
    client.get(key(&format!("hosts/{name}")), None).await?;
    client.get(key(&format!("known/{name}")), None).await?;
    let records = client.lease_grant(86_400, None).await?.id();
    let presence = client.lease_grant(JOINING.as_secs() as i64, None).await?.id();
    let events = client.lease_grant(4_500, None).await?.id();
    let under = |lease| Some(PutOptions::new().with_lease(lease));
    let host = format!(
        r#"{{"v":1,"agent":"0.1.0","place":"00000000-0000-0000-0000-000000000000:4026531836","machine":"{name}","pid":811,"birth":1042,"since":1795703674.2986557}}"#
    );
    let known = format!(r#"{{"v":1,"presence":"here","since":1795703674.2986557,"lease":{presence}}}"#);
    let joined =
        format!(r#"{{"v":1,"kind":"host_joined","sentence":"host {name} has joined","time":1795703674.29}}"#);
    let txn = Txn::new()
        .when([Compare::create_revision(key(&format!("hosts/{name}")), CompareOp::Equal, 0)])
        .and_then([
            TxnOp::put(key(&format!("hosts/{name}")), host, under(presence)),
            TxnOp::put(key(&format!("known/{name}")), known, under(records)),
            TxnOp::put(key(&format!("events/{name}/@host/{presence:x}/{:020}", 1)), joined, under(events)),
        ]);
    client.txn(txn).await?;
    client.get(key(&format!("nodes/{name}/")), Some(GetOptions::new().with_prefix())).await?;
    let mut agent = Agent { client, name, presence, records, events, head: 0 };
    write(&mut agent, 0).await?;
    Ok(agent)
}

/// What an agent writes when so many events have happened. How long that took.
async fn write(agent: &mut Agent, events: u64) -> Result<Duration, Error> {
    let Agent { name, presence, records, .. } = agent.clone();
    let under = |lease| Some(PutOptions::new().with_lease(lease));
    let mut puts: Vec<TxnOp> = (1..=events)
        .map(|n| {
            let number = agent.head + n;
            let event = format!(
                r#"{{"v":1,"node":"nginx","seq":{number},"kind":"worker_died","cause":"signal","generation":7,"role":"worker","pid":20141,"worker_id":3,"mine":3,"draining":0,"total":3,"signal":11,"age":12.7,"state":"serving","in_state_for":12.6,"time":1795703674.29,"timestamp":"2026-11-26T14:34:34.290000Z","reporter":20140,"sentence":"worker 3 (pid 20141) of generation 7 died by SIGSEGV, 12 s old, serving for 12 s; 3 workers left"}}"#
            );
            let at = key(&format!("events/{name}/nginx/18db5f0a1b2c3d4e/{number:020}"));
            TxnOp::put(at, event, under(agent.events))
        })
        .collect();
    agent.head += events;
    let state = format!(
        r#"{{"v":1,"registry":"18db5f0a1b2c3d4e","head":{},"missed":0,"time":1795703674.29,"state":"serving","generation":7,"begun":1795703674.29,"expected":4,"serving":4,"draining":0,"stalled":0,"old_generations":0,"deaths":0}}"#,
        agent.head
    );
    puts.push(TxnOp::put(key(&format!("nodes/{name}/nginx")), state, under(records)));
    let is_ours = Compare::lease(key(&format!("hosts/{name}")), CompareOp::Equal, presence);
    let txn = Txn::new().when([is_ours]).and_then(puts);
    let (begun, mut failures) = (Instant::now(), 0);
    loop {
        match agent.client.txn(txn.clone()).await {
            Ok(done) => {
                assert!(done.succeeded(), "{name} is there");
                return Ok(begun.elapsed());
            }
            Err(error) if is_busy(&error) => back_off(&mut failures).await,
            Err(error) => return Err(error),
        }
    }
}

/// etcd refuses what it cannot do soon. Which code it gives depends on its version.
fn is_busy(error: &Error) -> bool {
    matches!(error, Error::GRpcStatus(status) if status.message().contains("too many requests"))
}

/// As an agent does.
async fn back_off(failures: &mut u32) {
    let whole = (Duration::from_millis(250) * 2_u32.pow((*failures).min(10))).min(Duration::from_secs(10));
    *failures += 1;
    tokio::time::sleep(whole.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
}

/// Keeps a lease as an agent does.
async fn keep(
    mut client: Client,
    lease: i64,
    answers: Arc<AtomicU64>,
    lost: Arc<AtomicU64>,
    worst: Arc<AtomicU64>,
) -> Result<(), Error> {
    let (mut keeper, mut stream) = client.lease_keep_alive(lease).await?;
    // Not all at the same moment.
    tokio::time::sleep((TTL / 3).mul_f64((lease as u64 % 1000) as f64 / 1000.0)).await;
    loop {
        let begun = Instant::now();
        keeper.keep_alive().await?;
        let lasts = stream.message().await?.is_some_and(|answer| answer.ttl() > 0);
        answers.fetch_add(1, Relaxed);
        // A lease of an agent would have run out meanwhile.
        if !lasts || begun.elapsed() > TTL * 2 / 3 {
            lost.fetch_add(1, Relaxed);
        }
        worst.fetch_max(begun.elapsed().as_micros() as u64, Relaxed);
        tokio::time::sleep((TTL / 3).saturating_sub(begun.elapsed())).await;
    }
}

/// A death and its replacement, all the time, at the pace of an agent.
async fn crash_loop(mut agent: Agent, times: Arc<Mutex<Vec<Duration>>>) -> Result<(), Error> {
    let begun = Instant::now();
    let mut own = Vec::new();
    while begun.elapsed() < LASTS {
        let time = write(&mut agent, 2).await?;
        own.push(time);
        let spared = if time > SLOW { time * SPARED } else { Duration::ZERO };
        tokio::time::sleep(spared.max(Duration::from_secs_f64(1.0 / PER_SECOND).saturating_sub(time))).await;
    }
    times.lock().await.extend(own);
    Ok(())
}
