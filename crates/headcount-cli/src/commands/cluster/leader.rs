//! `headcount cluster leader`: who leads which role of the cluster, and a command that runs on whichever of all processes leads one.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use headcount_cluster::claims::{self, Claim, Kind};
use headcount_cluster::config::{ClusterConfig, Config};
use headcount_cluster_client::{Client, Event};
use headcount_report::{age, plural};
use rustix::event::{PollFd, PollFlags};
use serde::Serialize;

use super::ClusterArgs;
use crate::args::duration;
use crate::clock;
use crate::commands::run::duty::{self, Duty, Tenure};
use crate::escape::{escape, escape_json};
use crate::hooks::backoff::Backoff;
use crate::hooks::log::Log;
use crate::hooks::stop::{Stop, TICK};
use crate::outcome::{Outcome, UsageError};
use crate::paint;
use crate::table::{Cell, Side, Table, paragraph};

const LEADER_EXAMPLES: &str = "\
Examples:
  headcount cluster leader                                who leads which role
  headcount cluster leader cron -- ./scheduler            runs on one of all hosts where this is started

Exit codes: 0 success, or ended by SIGTERM or SIGINT; 2 usage error; 4 no cluster is configured, or etcd cannot be read.";

#[derive(Args)]
#[command(after_help = LEADER_EXAMPLES)]
pub struct LeaderArgs {
    /// Run COMMAND while this process leads this role, by way of the agent of this host
    ///
    /// At most one process of the cluster leads a role. COMMAND is started when this process is elected, again if it ends, after
    /// --backoff, and ended before another can be elected. It gets HEADCOUNT_CLUSTER, HEADCOUNT_HOST, HEADCOUNT_LEADER and
    /// HEADCOUNT_LEADER_TOKEN in its environment.
    #[arg(requires = "command")]
    pub role: Option<String>,
    /// What to run
    #[arg(last = true, value_name = "COMMAND", requires = "role")]
    pub command: Vec<OsString>,
    /// Without ROLE: print JSON, for programs (described in docs/cli/cluster.md)
    #[arg(long, conflicts_with = "role")]
    pub json: bool,
    /// The socket of the agent [default: that of its configuration]
    #[arg(long, value_name = "PATH", requires = "role")]
    pub socket: Option<PathBuf>,
    /// How long COMMAND has between SIGTERM and SIGKILL; at most a quarter of the cluster's ttl [default: 2s]
    #[arg(long, value_name = "TIME", requires = "role", value_parser = duration)]
    pub grace: Option<Duration>,
    /// The wait before COMMAND is run again, and the longest one; it doubles each time
    #[arg(long, value_name = "TIME..TIME", default_value = "1s..60s", value_parser = Backoff::parse)]
    pub backoff: Backoff,
    /// With ROLE: print problems only
    #[arg(long, short, requires = "role")]
    pub quiet: bool,
}

/// The version of the document, as that of `headcount cluster status --json`.
const SCHEMA: u32 = 1;

#[derive(Serialize)]
struct Document<'a> {
    schema: u32,
    cluster: &'a str,
    revision: i64,
    roles: Vec<RoleDocument<'a>>,
}

#[derive(Serialize)]
struct RoleDocument<'a> {
    role: &'a str,
    host: Option<&'a str>,
    pid: Option<u32>,
    process: Option<&'a str>,
    since: Option<f64>,
    token: i64,
    waiting: usize,
}

impl<'a> RoleDocument<'a> {
    fn new(claim: &'a Claim) -> RoleDocument<'a> {
        let holder = claim.holder.as_ref();
        RoleDocument {
            role: &claim.name,
            host: holder.map(|holder| holder.host.as_str()),
            pid: holder.and_then(|holder| holder.pid),
            process: holder.and_then(|holder| holder.process.as_deref()),
            since: holder.and_then(|holder| holder.since),
            token: claim.token,
            waiting: claim.waiting,
        }
    }
}

pub async fn list(config: ClusterConfig, args: &LeaderArgs) -> anyhow::Result<Outcome> {
    let (claims, revision) = claims::list(&config, Kind::Role).await?;
    let mut out = anstream::stdout().lock();
    if args.json {
        let roles = claims.iter().map(RoleDocument::new).collect();
        let document = Document { schema: SCHEMA, cluster: &config.name, revision, roles };
        writeln!(out, "{}", escape_json(serde_json::to_string_pretty(&document)?))?;
    } else {
        write!(out, "{}", text(&config.name, &claims, clock::wall_ns() as f64 / 1e9))?;
    }
    out.flush()?;
    Ok(Outcome::Done)
}

fn text(cluster: &str, claims: &[Claim], now: f64) -> String {
    let mut out = String::new();
    let title = format!("cluster {}: {}", escape(cluster), plural(claims.len() as u64, "role"));
    paragraph(&mut out, 0, paint::HEADING, &title);
    let mut table = Table::new(&[
        ("ROLE", Side::Left),
        ("HOST", Side::Left),
        ("PROCESS", Side::Left),
        ("FOR", Side::Left),
        ("TOKEN", Side::Right),
        ("WAITING", Side::Right),
    ]);
    for claim in claims {
        let holder = claim.holder.as_ref();
        let text =
            |text: Option<String>| text.map_or_else(Cell::none, |text| Cell::new(escape(&text).into_owned()));
        let process = holder.and_then(|holder| {
            let name = holder.process.as_ref().map_or(String::new(), |name| format!(" {name}"));
            holder.pid.map(|pid| format!("{pid}{name}"))
        });
        let since = holder.and_then(|holder| holder.since);
        let since = since.map(|since| age(Duration::from_secs_f64((now - since).clamp(0.0, 1e9))));
        table.row(vec![
            text(Some(claim.name.clone())),
            text(holder.map(|holder| holder.host.clone())),
            text(process),
            text(since),
            Cell::new(claim.token.to_string()),
            if claim.waiting == 0 { Cell::none() } else { Cell::new(plural(claim.waiting as u64, "host")) },
        ]);
    }
    if !table.is_empty() {
        out.push('\n');
        table.write(&mut out);
    }
    out
}

/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(2);
/// The end of the command must be over before the deadline: so much earlier than its grace it begins.
const EARLIER: Duration = Duration::from_millis(150);

pub fn lead(role: &str, args: &ClusterArgs) -> anyhow::Result<Outcome> {
    let super::ClusterCommand::Leader(leader) = &args.command else { return Ok(Outcome::Failed) };
    let socket = match &leader.socket {
        Some(socket) => socket.clone(),
        None => Config::socket(&args.config)?,
    };
    let log = Log::of("cluster leader", leader.quiet);
    let stop = Stop::watch()?;
    let mut client = Client::new(&socket);
    client.stand(role).map_err(|error| UsageError(error.to_string()))?;
    let duty = Duty { command: &leader.command, backoff: leader.backoff, grace: GRACE, log: &log };
    let mut candidate = Candidate {
        role,
        asked: leader.grace.unwrap_or(GRACE),
        client,
        duty,
        tenure: None,
        stands: true,
        names: None,
    };
    while !stop.is_asked() {
        candidate.look()?;
        candidate.sleep(&stop)?;
    }
    candidate.end()?;
    candidate.client.leave(role);
    // What does not go now the agent learns from the end of this process.
    candidate.client.process();
    Ok(Outcome::Done)
}

struct Candidate<'a> {
    role: &'a str,
    /// The grace that was asked for.
    asked: Duration,
    client: Client,
    duty: Duty<'a>,
    tenure: Option<Tenure>,
    stands: bool,
    /// Of the cluster, and of this host in it.
    names: Option<(String, String)>,
}

impl Candidate<'_> {
    fn look(&mut self) -> anyhow::Result<()> {
        self.client.process();
        while let Some(event) = self.client.next_event() {
            self.take(event)?;
        }
        let Some(tenure) = &mut self.tenure else { return Ok(()) };
        // Early enough that the command has ended when another can be elected.
        let is_over = self.client.token(self.role) != Some(tenure.token)
            || self.client.time_left() < self.duty.grace + EARLIER;
        if is_over {
            self.duty
                .log
                .warn(format_args!("gives {} up: the agent has not confirmed it in time", self.role));
            self.end()?;
            self.client.leave(self.role);
            return Ok(self.client.stand(self.role)?);
        }
        let (token, role, names) = (tenure.token, self.role, &self.names);
        let variables = || {
            vec![
                ("HEADCOUNT_CLUSTER", names.as_ref().map(|(cluster, _)| cluster.clone())),
                ("HEADCOUNT_HOST", names.as_ref().map(|(_, host)| host.clone())),
                ("HEADCOUNT_LEADER", Some(role.to_owned())),
                ("HEADCOUNT_LEADER_TOKEN", Some(token.to_string())),
            ]
        };
        let client = &mut self.client;
        self.duty.look(tenure, variables, &mut || client.process())
    }

    fn take(&mut self, event: Event) -> anyhow::Result<()> {
        let (role, log) = (self.role, self.duty.log);
        match event {
            Event::Connected { cluster, host } => {
                log.note(format_args!("standing for {role} of the cluster {cluster}, on host {host}"));
                log.is_well("agent");
                self.duty.grace = self.asked.min(self.client.ttl() / 4);
                self.names = Some((cluster, host));
                if !std::mem::replace(&mut self.stands, true) {
                    self.client.stand(role)?;
                }
            }
            Event::Elected { token, .. } => {
                log.note(format_args!("leads {role} from now on (token {token})"));
                self.tenure = Some(Tenure::new(token));
            }
            Event::Lost { why, .. } => {
                if self.tenure.is_some() {
                    log.warn(format_args!("has lost {role}: {why}"));
                }
                self.end()?;
            }
            Event::GiveUp { .. } => {
                log.note(format_args!("gives {role} up: the agent ends"));
                self.end()?;
                self.client.leave(role);
                self.stands = false;
            }
            Event::Disconnected { why } => {
                log.warn_once("agent", format_args!("{why}; trying again"));
            }
            Event::Away { why } => log.warn(why),
            Event::Back => log.note("etcd answers again"),
            Event::Error { error } => log.warn(error),
            _ => {}
        }
        Ok(())
    }

    /// Ends the command, if it runs.
    fn end(&mut self) -> anyhow::Result<()> {
        let (tenure, client) = (self.tenure.take(), &mut self.client);
        self.duty.end(tenure, &mut || client.process())
    }

    fn sleep(&self, stop: &Stop) -> anyhow::Result<()> {
        let mut fds = vec![PollFd::new(stop, PollFlags::IN)];
        let flags = |has_to_write| if has_to_write { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let agent = self.client.fd();
        fds.extend(agent.iter().map(|(fd, write)| PollFd::from_borrowed_fd(*fd, flags(*write))));
        let limit = self.client.timeout().map_or(TICK, |timeout| timeout.min(TICK));
        duty::wait(self.tenure.as_ref(), &mut fds, limit)
    }
}

#[cfg(test)]
mod tests {
    use headcount_cluster::claims::ClaimValue;

    use super::*;

    #[test]
    fn for_people_and_for_programs() {
        let holder = ClaimValue {
            v: 1,
            host: "web-2".into(),
            attempt: 1,
            pid: Some(71),
            process: Some("nginx".into()),
            since: Some(900.0),
        };
        let claim = Claim { name: "cron".into(), holder: Some(holder), token: 4711, waiting: 2 };
        let open = Claim { name: "other".into(), holder: None, token: 5, waiting: 0 };
        let text = anstream::adapter::strip_str(&text("shop", &[claim.clone(), open], 1000.0)).to_string();
        insta::assert_snapshot!(text);
        let document = serde_json::to_value(RoleDocument::new(&claim)).unwrap();
        assert_eq!(
            (&document["host"], &document["token"], &document["pid"]),
            (&"web-2".into(), &4711.into(), &71.into())
        );
    }
}
