//! `headcount cluster reload`: all nodes of a cluster, in waves. What is asked when, `headcount_cluster::rollout` decides.

mod printer;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::anyhow;
use clap::Args;
use headcount_cluster::conductor::{self, Conductor, News, Refused};
use headcount_cluster::config::ClusterConfig;
use headcount_cluster::follower::{self, Follower};
use headcount_cluster::rollout::{Count, Failure, How, Options, RolloutValue, Step, View};
use headcount_cluster::task::{Outcome as Became, Target, TaskState};
use headcount_report::{age, plural};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep, timeout};

use crate::args::duration;
use crate::commands::wait::{not_reached, reload_failed};
use crate::escape::escape;
use crate::outcome::{Outcome, UsageError};
use printer::Printer;

const RELOAD_EXAMPLES: &str = "\
Each host's agent must allow it: reload = true under [agent].

Examples:
  headcount cluster reload --dry-run
  headcount cluster reload --node nginx --first 1 --max-unavailable 25% --drained --timeout 10m
  headcount cluster reload --resume

Exit codes: 0 all nodes serve their new generation; 1 a node timed out, or it was interrupted; 2 usage error; 3 a server \
refused its configuration, or could not apply it; 4 nothing was begun, an agent could not do it, or etcd cannot be read.";

#[derive(Args)]
#[command(after_help = RELOAD_EXAMPLES)]
pub struct ReloadArgs {
    /// So many nodes at most may at any time not serve, or be reloading: a number, or a percentage of all nodes, rounded down
    #[arg(long, value_name = "COUNT", default_value = "1")]
    pub max_unavailable: Count,
    /// Reload so many before all others, and go on only when they serve
    #[arg(long, value_name = "COUNT")]
    pub first: Option<Count>,
    /// Go on only when a node has no older generation left
    #[arg(long)]
    pub drained: bool,
    /// So long may each node take
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub timeout: Duration,
    /// Leave out the nodes of hosts that are lost
    #[arg(long)]
    pub skip_lost: bool,
    /// Only show what would be reloaded when
    #[arg(long)]
    pub dry_run: bool,
    /// Go on with the reload that was interrupted or has stopped, as it was asked for: with each node that is not through
    #[arg(long, conflicts_with_all = ["max_unavailable", "first", "drained", "timeout", "skip_lost", "dry_run", "abort"])]
    pub resume: bool,
    /// End the reload that is under way or was interrupted
    #[arg(long, conflicts_with_all = ["max_unavailable", "first", "drained", "timeout", "skip_lost", "dry_run"])]
    pub abort: bool,
    /// Print JSON lines, for programs (described in docs/cli/cluster.md)
    #[arg(long)]
    pub json: bool,
}

/// What can be asked of an agent.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// Beyond its time, an agent may take so long to say what became of a node; and its host's lease has to run out.
const GRACE: Duration = Duration::from_secs(5);
/// So long may giving up take.
const GIVING_UP: Duration = Duration::from_secs(5);
/// So long is heard at once what there is to hear.
const AT_ONCE: Duration = Duration::from_millis(50);
/// Time limits are looked at this often, if nothing happens.
const LOOK: Duration = Duration::from_secs(1);

pub async fn run(config: ClusterConfig, node: Option<&str>, args: &ReloadArgs) -> anyhow::Result<Outcome> {
    if node.is_some() && (args.resume || args.abort) {
        let text = "--resume and --abort are about the reload as it was asked for, so --node cannot be used with them";
        return Err(UsageError(text.to_owned()).into());
    }
    let who = who();
    let mut printer = Printer::new(args.json);
    if args.abort {
        let record = conductor::abort(&config, &who).await.map_err(|why| in_words(why, "end"))?;
        printer.aborted(&record)?;
        return Ok(Outcome::Done);
    }
    if !(SHORTEST..=LONGEST).contains(&args.timeout) {
        return Err(UsageError("--timeout: from 1s to 24h".to_owned()).into());
    }
    let signals = Signals::catch()?;
    let (follower, _) = super::read(Follower::new(config.clone(), false)).await?;
    let refused = |why| in_words(why, "go on with");
    let conductor = if args.resume {
        Conductor::resume(config.clone(), &who).await.map_err(refused)?
    } else {
        let plan = RolloutValue::plan(follower.fleet(), &args.options(node))?;
        if args.dry_run {
            conductor::is_free(&config).await.map_err(refused)?;
            printer.plan(&config.name, &plan, true)?;
            return Ok(Outcome::Done);
        }
        Conductor::begin(config.clone(), &who, plan).await.map_err(refused)?
    };
    match args.resume {
        false => printer.plan(&config.name, conductor.record(), false)?,
        true => printer.resumed(&config.name, conductor.record(), conductor.had_stopped())?,
    }
    let grace = config.ttl + GRACE;
    let mut rollout = Rollout {
        follower,
        conductor,
        printer,
        grace,
        fleet_is_known: true,
        tasks_are_known: false,
        seen: BTreeMap::new(),
        overdue: BTreeSet::new(),
        blocked_since: None,
        wave: None,
    };
    let outcome = rollout.go(signals).await;
    if outcome.is_err() {
        // Whoever goes on with it need not wait. If this fails as well, that has to.
        let _ = timeout(GIVING_UP, rollout.conductor.release()).await;
    }
    outcome
}

impl ReloadArgs {
    fn options(&self, node: Option<&str>) -> Options {
        Options {
            node: node.map(str::to_owned),
            max_unavailable: self.max_unavailable,
            first: self.first,
            drained: self.drained,
            timeout: self.timeout,
            skip_lost: self.skip_lost,
        }
    }
}

/// Who asks, for others to read.
fn who() -> String {
    let name =
        ["LOGNAME", "USER"].iter().find_map(|name| std::env::var(name).ok().filter(|name| !name.is_empty()));
    let name = name.unwrap_or_else(|| format!("uid {}", rustix::process::geteuid().as_raw()));
    let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let text = format!("{name} on {} (process {})", machine.trim(), std::process::id());
    text.chars().take(200).collect()
}

/// Why nothing is done, and what to do.
fn in_words(why: Refused, what: &str) -> anyhow::Error {
    const END: &str = "end it for good with `headcount cluster reload --abort`";
    match why {
        Refused::Held(by, since) => anyhow!(
            "{by} is reloading this cluster since {}: interrupt that and go on with --resume, or {END}",
            printer::at(since)
        ),
        Refused::Interrupted(record) => anyhow!(
            "a reload of {} that {} began at {} was interrupted: go on with `headcount cluster reload --resume`, or {END}",
            plural(record.nodes as u64, "node"),
            record.by,
            printer::at(record.begun)
        ),
        Refused::Nothing => anyhow!("there is no reload to {what}"),
        other => other.into(),
    }
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn catch() -> std::io::Result<Signals> {
        Ok(Signals {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// A node that was asked to reload, as far as it was seen here.
struct Seen {
    state: TaskState,
    since: Instant,
}

struct Rollout {
    follower: Follower,
    conductor: Conductor,
    printer: Printer,
    grace: Duration,
    fleet_is_known: bool,
    tasks_are_known: bool,
    seen: BTreeMap<Target, Seen>,
    overdue: BTreeSet<Target>,
    blocked_since: Option<Instant>,
    /// The wave that was announced last.
    wave: Option<usize>,
}

impl Rollout {
    async fn go(&mut self, mut signals: Signals) -> anyhow::Result<Outcome> {
        loop {
            let is_known = self.fleet_is_known && self.tasks_are_known && self.conductor.is_connected();
            if is_known && let Some(outcome) = self.act().await? {
                return Ok(outcome);
            }
            let is_connected = self.conductor.is_connected();
            tokio::select! {
                biased;
                () = signals.next() => return Ok(self.interrupted().await),
                news = self.conductor.next() => if let Some(outcome) = self.hear(news)? {
                    return Ok(outcome);
                },
                // One at a time: what connects must not be given up whenever the other has something to say.
                news = self.follower.next(), if is_connected => self.hear_of_fleet(&news),
                () = sleep(LOOK), if is_connected => {}
            }
            if let Some(outcome) = self.hear_the_rest().await? {
                return Ok(outcome);
            }
        }
    }

    /// What there is to hear already. To look at thousands of nodes once for each of a thousand news would take longer than they do.
    async fn hear_the_rest(&mut self) -> anyhow::Result<Option<Outcome>> {
        let until = Instant::now() + AT_ONCE;
        while self.conductor.is_connected() && Instant::now() < until {
            tokio::select! {
                biased;
                news = self.conductor.next() => if let Some(outcome) = self.hear(news)? {
                    return Ok(Some(outcome));
                },
                news = self.follower.next() => self.hear_of_fleet(&news),
                () = std::future::ready(()) => break,
            }
        }
        Ok(None)
    }

    fn hear_of_fleet(&mut self, news: &follower::News) {
        match news {
            follower::News::Away(trouble) => {
                self.fleet_is_known = false;
                self.printer.say(&format!("{trouble}. Nothing more begins until it answers"));
            }
            _ => self.fleet_is_known = true,
        }
    }

    /// What the conductor has to tell.
    fn hear(&mut self, news: News) -> anyhow::Result<Option<Outcome>> {
        match news {
            News::Changed => self.tasks_are_known = true,
            News::Away(trouble) => {
                self.printer.say(&format!("{trouble}. What has begun goes on; trying again"));
            }
            News::Back => self.printer.say("etcd answers again"),
            News::Lost(by) => {
                self.printer.pause();
                return Ok(Some(not_reached(&escape(&format!("{by} goes on with it in place of this one")))));
            }
            News::Ended(ended) => {
                self.printer.pause();
                let left = self.left();
                return Ok(Some(not_reached(&escape(&format!("it was ended {}: {left}", ended.why)))));
            }
            News::Gone => {
                return Err(anyhow!(
                    "the record of this reload is gone from etcd, or is no longer this one's"
                ));
            }
        }
        Ok(None)
    }

    /// Does what can be done now. How it ended, if it has.
    async fn act(&mut self) -> anyhow::Result<Option<Outcome>> {
        loop {
            self.look_at_tasks()?;
            let tasks = self.conductor.tasks();
            let view = View { fleet: self.follower.fleet(), tasks, overdue: &self.overdue };
            let step = self.conductor.record().next(&view);
            if !matches!(step, Step::Blocked(_)) {
                self.blocked_since = None;
            }
            // If etcd is in the way, the conductor tells it next, and finds out what is true.
            match step {
                Step::Ask(wave, targets) => {
                    if self.wave.replace(wave) != Some(wave) {
                        self.printer.wave(self.conductor.record(), wave)?;
                    }
                    if self.conductor.ask(&targets).await.is_err() || !self.conductor.is_connected() {
                        return Ok(None);
                    }
                }
                Step::Wind(targets) => {
                    if self.conductor.withdraw(&targets).await.is_err() || !self.conductor.is_connected() {
                        return Ok(None);
                    }
                }
                Step::Wait => {
                    self.printer.waiting(tasks);
                    return Ok(None);
                }
                Step::Blocked(why) => {
                    let limit = self.conductor.record().timeout();
                    if self.blocked_since.get_or_insert_with(Instant::now).elapsed() < limit {
                        self.printer.blocked(&why);
                        return Ok(None);
                    }
                    let why = format!("nothing could begin for {}: {}", age(limit), why.join("; "));
                    return self.stop(&Failure { outcome: Became::TimedOut, why: vec![why] }).await;
                }
                Step::Stop(failure) => return self.stop(&failure).await,
                Step::Done => {
                    if self.conductor.end(How::Done, "").await.is_err() {
                        return Ok(None);
                    }
                    self.printer.done(self.conductor.record())?;
                    return Ok(Some(Outcome::Done));
                }
            }
        }
    }

    /// Shows what is new, and notes what takes too long.
    fn look_at_tasks(&mut self) -> anyhow::Result<()> {
        let limit = self.conductor.record().timeout() + self.grace;
        for (target, task) in self.conductor.tasks() {
            // What was through before this one went on with it was shown then.
            let is_old = self.wave.is_none() && task.state == TaskState::Done;
            let first = || Seen {
                state: if is_old { TaskState::Done } else { TaskState::Asked },
                since: Instant::now(),
            };
            if !self.seen.contains_key(target) {
                self.seen.insert(target.clone(), first());
            }
            let Some(seen) = self.seen.get_mut(target) else { continue };
            if seen.state != task.state {
                self.printer.task(target, task)?;
                seen.state = task.state;
            }
            if task.state != TaskState::Done && seen.since.elapsed() > limit {
                self.overdue.insert(target.clone());
            }
        }
        Ok(())
    }

    async fn stop(&mut self, failure: &Failure) -> anyhow::Result<Option<Outcome>> {
        if self.conductor.end(How::Stopped, &failure.to_string()).await.is_err() {
            return Ok(None);
        }
        let text = format!(
            "stopped: {failure}. {}. When that is repaired, go on with `headcount cluster reload --resume`",
            self.left()
        );
        self.printer.stopped(failure, &text)?;
        match failure.outcome {
            Became::Refused => Ok(Some(reload_failed(&escape(&text)))),
            Became::Failed | Became::NotAllowed => Err(anyhow!("{text}")),
            _ => Ok(Some(not_reached(&escape(&text)))),
        }
    }

    async fn interrupted(&mut self) -> Outcome {
        let released = timeout(GIVING_UP, self.conductor.release()).await;
        self.printer.pause();
        let when = match released {
            Ok(Ok(())) => "",
            _ => " (in some seconds, since etcd does not answer)",
        };
        not_reached(&escape(&format!(
            "interrupted: {}. Go on with `headcount cluster reload --resume`{when}, or end it with --abort",
            self.left()
        )))
    }

    /// What was not reloaded.
    fn left(&self) -> String {
        let tasks = self.conductor.tasks();
        let through = |target: &&Target| {
            tasks
                .get(*target)
                .and_then(|task| task.report.as_ref())
                .is_some_and(|r| r.outcome == Became::Serving)
        };
        let all = self.conductor.record().targets().count();
        let done = self.conductor.record().targets().filter(through).count();
        format!("{done} of {} through", plural(all as u64, "node"))
    }
}
