//! Ten thousand hosts on one etcd, each with a lease of its own, as agents have them. `HOSTS=10000` says how many, `CONNECTIONS=1000`
//! on how many connections their leases are kept, `JOINING=64` how many join at a time,
//! `TTL=5` for how many seconds a lease lasts.

mod agent;
mod asking;
mod line;
mod pace;

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::str::FromStr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use etcd_client::Client;
use headcount_bench::{Sample, heading, line};
use testkit::{Etcd, Folder, process};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::sleep;

use super::{Host, Ours, until};
use agent::{Agent, Course};
use line::Lines;

/// That of the leases: the agents' own, or `TTL` seconds.
fn ttl() -> Duration {
    static TTL: LazyLock<Duration> = LazyLock::new(|| Duration::from_secs(number("TTL", 5)));
    *TTL
}

fn number<N: FromStr>(name: &str, usual: N) -> N {
    std::env::var(name).ok().and_then(|n| n.parse().ok()).unwrap_or(usual)
}
/// Connections that carry writes, and those of a fleet whose leases share some.
const FEW: usize = 16;
/// So many join at a time.
const JOINING: usize = 64;
/// A reload of four workers: so many events, in so many writes.
const RELOAD: [u64; 2] = [2, 12];
/// So long each part goes on.
const LASTS: Duration = Duration::from_secs(15);

pub fn thousands() {
    let hosts = number("HOSTS", 10_000);
    let connections = number("CONNECTIONS", hosts);
    heading(&format!("{hosts} hosts with a node each, on one etcd of one member"));
    let (etcd, folder) = (Etcd::start_with(&["--quota-backend-bytes", "8000000000"]), Folder::new());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let asking = Host::new(&folder, &etcd, "asking", "");
    let joining = number("JOINING", JOINING);
    runtime.block_on(run(hosts, connections, joining, &etcd, &asking)).expect("etcd answers");
}

fn key(rest: &str) -> String {
    format!("/headcount/v1/bench/{rest}")
}

/// What etcd and this simulation use from one moment on. Both have the same processors.
struct Meter<'a> {
    etcd: &'a Etcd,
    begun: Instant,
    before: [Duration; 2],
}

impl Meter<'_> {
    fn begin(etcd: &Etcd) -> Meter<'_> {
        Meter { etcd, begun: Instant::now(), before: Meter::used(etcd) }
    }

    fn used(etcd: &Etcd) -> [Duration; 2] {
        [etcd.pid(), std::process::id() as i32].map(|pid| process::stat(pid).expect("it runs").cpu)
    }

    /// Both, in seconds.
    fn spent(&self) -> [f64; 2] {
        let now = Meter::used(self.etcd);
        [0, 1].map(|of| (now[of] - self.before[of]).as_secs_f64())
    }

    fn memory(&self) -> u64 {
        process::resident_kib(self.etcd.pid()) / 1024
    }

    /// For what is over at some time.
    fn time(&self) -> String {
        let [etcd, own] = self.spent();
        let time = self.begun.elapsed();
        format!(
            "{time:.1?}; processor time: etcd {etcd:.1} s, simulation {own:.1} s; etcd has {} MiB",
            self.memory()
        )
    }

    /// For what goes on.
    fn share(&self) -> String {
        let part = self.spent().map(|spent| spent / self.begun.elapsed().as_secs_f64() * 100.0);
        let memory = self.memory();
        format!("of a processor: etcd {:.0} %, simulation {:.0} %; etcd has {memory} MiB", part[0], part[1])
    }
}

async fn run(
    hosts: usize,
    connections: usize,
    joining: usize,
    etcd: &Etcd,
    asking: &Host,
) -> Result<(), String> {
    let asking_agent = asking.agent();
    let mut clients = Vec::new();
    for _ in 0..FEW {
        clients.push(Client::connect([etcd.url()], None).await.map_err(|error| error.to_string())?);
    }
    let mut lines = Arc::new(Lines::connect(&etcd.url(), FEW, false).await);
    let meter = Meter::begin(etcd);
    let mut agents = joined(hosts, joining, &clients, &lines).await?;
    line(&format!("all join, {joining} at a time"), &meter.time(), "");
    let again = all_are_there(&mut agents, &lines).await?;
    let text = format!("{again}; all are there after {:.1?}", meter.begun.elapsed() - ttl());
    line("… that lost their lease meanwhile, and joined again", &text, "0");

    quiet(etcd, &lines, &format!("quiet, {FEW} connections")).await;
    if connections > FEW {
        let before = Meter::begin(etcd).memory();
        let many = Lines::connect(&etcd.url(), connections, true).await;
        agents.iter().for_each(|agent| many.keep(agent.number, agent.presence));
        lines = Arc::new(many);
        all_are_there(&mut agents, &lines).await?;
        let more = Meter::begin(etcd).memory().saturating_sub(before);
        let text = format!("{more} MiB more: {} KiB each", more * 1024 / connections as u64);
        line(
            &format!("{connections} connections, with a stream of keep-alives and two of watches"),
            &text,
            "",
        );
        quiet(etcd, &lines, &format!("quiet, {connections} connections")).await;
    }

    asking::all(asking, &asking_agent, hosts);

    let mut agents = reload(etcd, asking, &lines, agents).await?;
    let again = all_are_there(&mut agents, &lines).await?;
    line("… that were lost after that, and joined again", &again.to_string(), "0");
    for arguments in [
        &["cluster", "events", "--json"][..],
        &["cluster", "events", "-n", "20"],
        &["cluster", "status", "--json"],
    ] {
        let meter = Meter::begin(etcd);
        let used = asking::run(asking.command(arguments));
        let text = format!("{used}; etcd: {:.1} s of processor time", meter.spent()[0]);
        line(&format!("`{}`, with all these events kept", arguments.join(" ")), &text, "");
    }

    let mut agents = crash_loop(etcd, &lines, agents).await?;
    let again = all_are_there(&mut agents, &lines).await?;
    line("… that were lost after that, and joined again", &again.to_string(), "0");
    lines.check();
    // What it still does for what was written is not what a loss costs.
    sleep(ttl()).await;
    loss(etcd, asking, &lines, &agents).await;
    drop(asking_agent);
    Ok(())
}

async fn joined(
    hosts: usize,
    at_a_time: usize,
    clients: &[Client],
    lines: &Arc<Lines>,
) -> Result<Vec<Agent>, String> {
    let (mut joining, room) = (JoinSet::new(), Arc::new(Semaphore::new(at_a_time)));
    for number in 0..hosts {
        let (client, lines) = (clients[number % clients.len()].clone(), Arc::clone(lines));
        let room = Arc::clone(&room);
        joining.spawn(async move {
            let _room = room.acquire().await.expect("it is not closed");
            Agent::join(client, number, &lines).await
        });
    }
    let mut agents = Vec::new();
    while let Some(agent) = joining.join_next().await {
        agents.push(agent.expect("no panic")?);
    }
    Ok(agents)
}

/// Until nobody has lost its lease for as long as one lasts. How often somebody had to join again.
async fn all_are_there(agents: &mut Vec<Agent>, lines: &Arc<Lines>) -> Result<usize, String> {
    let mut again = 0;
    loop {
        sleep(ttl()).await;
        let gone = std::mem::take(&mut *lines.counts.gone.lock().expect("nobody panicked"));
        if gone.is_empty() {
            return Ok(again);
        }
        let (mut joining, mut there) = (JoinSet::new(), Vec::new());
        for agent in agents.extract_if(.., |agent| gone.contains(&agent.presence)) {
            let lines = Arc::clone(lines);
            if joining.len() >= JOINING
                && let Some(agent) = joining.join_next().await
            {
                there.push(agent.expect("no panic")?);
            }
            again += 1;
            joining.spawn(async move { agent.join_again(&lines).await });
        }
        while let Some(agent) = joining.join_next().await {
            there.push(agent.expect("no panic")?);
        }
        agents.append(&mut there);
    }
}

async fn quiet(etcd: &Etcd, lines: &Lines, what: &str) {
    sleep(ttl()).await;
    lines.counts.reset();
    let meter = Meter::begin(etcd);
    sleep(LASTS).await;
    let rate = lines.counts.answers.load(Relaxed) as f64 / LASTS.as_secs_f64();
    line(what, &format!("{rate:.0} keep-alives/s; {}", meter.share()), "");
    kept(lines);
}

fn kept(lines: &Lines) {
    lines.check();
    let (late, slowest, own) = (lines.counts.late.load(Relaxed), lines.counts.slowest(), lines.counts.own());
    let broken = lines.counts.broken.load(Relaxed);
    let text = format!(
        "{late} too late, slowest answer {slowest:.1?}, {broken} streams opened again, the simulation itself at most {own:.1?} late"
    );
    line("… its keep-alives", &text, "none, less than the ttl");
}

/// All of them, with one who follows all events and one who waits for the fleet.
async fn reload(
    etcd: &Etcd,
    asking: &Host,
    lines: &Arc<Lines>,
    agents: Vec<Agent>,
) -> Result<Vec<Agent>, String> {
    let (follower, mut out) = asking.follow();
    until(&mut out, "\"host\":\"asking\"");
    let (tell, told) = std::sync::mpsc::channel();
    // Until the follower ends.
    std::thread::spawn(move || {
        for text in out.lines().map_while(Result::ok) {
            if text.contains("\"worker_died\"") && tell.send(Instant::now()).is_err() {
                return;
            }
        }
    });
    let mut command = asking.command(&["cluster", "wait", "--serving", "--generation-newer-than", "7"]);
    command.args(["--timeout", "60s"]).stdout(Stdio::null()).stderr(Stdio::null());
    let mut waiting = Ours::start(&mut command);
    // Until it has read all.
    sleep(Duration::from_secs(2)).await;
    let pid = follower.pid();
    let through = std::thread::spawn(move || {
        let is_through = waiting.0.wait().expect("our own child").success();
        is_through.then(Instant::now)
    });

    lines.counts.reset();
    let (hosts, events) = (agents.len() as u64, RELOAD.iter().sum::<u64>());
    let meter = Meter::begin(etcd);
    let (agents, course) =
        together(agents, lines, |agent, lines| async move { agent.reload(&RELOAD, &lines).await }).await?;
    let what = format!("all reload at the same moment: {events} events each, in {} writes", RELOAD.len());
    line(&what, &meter.time(), "");
    line("… hosts that were lost, and joined again", &course.lost.to_string(), "0");
    line("… a write of these", &Sample::new(course.times).to_string(), "");
    kept(lines);
    let last = (0..hosts * events).map(|_| told.recv().expect("it follows")).max().expect("some events");
    let memory = process::peak_kib(pid) / 1024;
    line(
        "… `cluster events --follow` has printed all of it after",
        &format!("{:.1?}, {memory} MiB", last - meter.begun),
        "",
    );
    let text = match through.join().expect("no panic") {
        Some(through) => format!("{:.1?}", through.saturating_duration_since(meter.begun)),
        None => "not at all".to_owned(),
    };
    line("… `cluster wait` has seen it through after", &text, "");
    drop(told);
    drop(follower);
    Ok(agents)
}

/// All of them do this at the same time.
async fn together<F: Future<Output = Result<(Agent, Course), String>> + Send + 'static>(
    agents: Vec<Agent>,
    lines: &Arc<Lines>,
    what: impl Fn(Agent, Arc<Lines>) -> F,
) -> Result<(Vec<Agent>, Course), String> {
    let mut doing = JoinSet::new();
    for agent in agents {
        doing.spawn(what(agent, Arc::clone(lines)));
    }
    let (mut agents, mut all) = (Vec::new(), Course::default());
    while let Some(done) = doing.join_next().await {
        let (agent, course) = done.expect("no panic")?;
        agents.push(agent);
        all.times.extend(course.times);
        all.lost += course.lost;
    }
    Ok((agents, all))
}

async fn crash_loop(etcd: &Etcd, lines: &Arc<Lines>, agents: Vec<Agent>) -> Result<Vec<Agent>, String> {
    let hosts = agents.len();
    lines.counts.reset();
    let meter = Meter::begin(etcd);
    let (agents, course) =
        together(agents, lines, |agent, lines| async move { agent.crash_loop(LASTS, &lines).await }).await?;
    let rate = course.times.len() as f64 / meter.begun.elapsed().as_secs_f64();
    let disk = std::fs::metadata(etcd.at("data/member/snap/db")).map_or(0, |file| file.len() >> 20);
    let text = format!(
        "{rate:.0} writes/s, {:.2} per host; {}, {disk} MiB on disk",
        rate / hosts as f64,
        meter.share()
    );
    line("all loop in crashes", &text, "");
    line("… a write of these", &Sample::new(course.times).to_string(), "");
    kept(lines);
    line("… hosts that were lost, and joined again", &course.lost.to_string(), "0");
    Ok(agents)
}

/// Half of them at the same moment.
async fn loss(etcd: &Etcd, asking: &Host, lines: &Lines, agents: &[Agent]) {
    let mut command = asking.command(&["cluster", "events", "--follow", "--json", "-n", "0"]);
    let mut follower = Ours::start(command.stdout(Stdio::piped()));
    let mut out = BufReader::new(follower.0.stdout.take().expect("it is piped"));
    // Until it has read all.
    sleep(Duration::from_secs(2)).await;
    let lost = agents.len() / 2;
    let meter = Meter::begin(etcd);
    agents[..lost].iter().for_each(|agent| lines.let_go(agent.number, agent.presence));
    let telling = tokio::task::spawn_blocking(move || {
        let mut all = Vec::new();
        for _ in 0..lost {
            until(&mut out, "\"host_lost\"");
            all.push(Instant::now());
        }
        all
    });
    let all: Vec<_> = telling.await.expect("no panic").into_iter().map(|then| then - meter.begun).collect();
    let text = format!("{}; {}", Sample::new(all), meter.time());
    line(&format!("{lost} hosts lost at the same moment, until `host_lost` is printed"), &text, "");
}
