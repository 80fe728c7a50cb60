//! What is delivered and how: the options of `headcount run`, and the members of a hook in the agent's configuration.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use headcount_cluster::config::time;
use serde::{Deserialize, Deserializer, de};

use super::backoff::Backoff;
use super::rules::{self, Rule};
use crate::args::{NodeSelector, duration};

const TIMEOUT: &str = "30s";
const RETRIES: u32 = 5;
const BACKOFF: &str = "1s..60s";
const QUEUE: u32 = 1024;
const QUEUES: std::ops::RangeInclusive<i64> = 1..=1_048_576;

/// A set of rules, and how to deliver.
#[derive(Args, Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Of a hook: what it is called in the log, and by what its record is found again.
    #[arg(skip)]
    pub name: String,
    /// Of a hook: whose events these are.
    #[arg(skip)]
    #[serde(default)]
    pub scope: Scope,
    /// Of a hook: the only node that it is about.
    #[arg(skip)]
    #[serde(default)]
    pub node: Option<String>,
    /// Of a hook: the only registry that it is about.
    #[arg(skip)]
    #[serde(default)]
    pub registry: Option<PathBuf>,
    /// Run COMMAND with `sh -c`, or post to it if it is a URL, on these events; may be repeated
    ///
    /// EVENT is a kind of event in the journal (worker_died, generation_ended, …), or node_started, node_stopped,
    /// node_died, lost or any. COMMAND gets the event in HEADCOUNT_… variables and as JSON on standard input.
    #[arg(long = "on", value_name = "EVENT[,EVENT…]=COMMAND", required_unless_present_any = ["kill_stalled_after", "as_leader"], value_parser = Rule::parse)]
    pub on: Vec<Rule>,
    /// The file that records what was delivered [default: one per node and set of rules, in $STATE_DIRECTORY,
    /// /var/lib/headcount for root, or $XDG_STATE_HOME/headcount]
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub state: Option<PathBuf>,
    /// Where to begin if there is no state file yet
    #[arg(long, value_name = "WHERE", default_value = "run")]
    #[serde(default)]
    pub from: StartFrom,
    /// What to do with a delivery that was in progress when `headcount run` was killed
    #[arg(long, value_name = "WHAT", default_value = "retry")]
    #[serde(default)]
    pub if_interrupted: IfInterrupted,
    /// Stop a command, or give up on a post, after this time
    #[arg(long, value_name = "TIME", default_value = TIMEOUT, value_parser = timeout)]
    #[serde(default = "default_timeout", deserialize_with = "timeout_of")]
    pub timeout: Duration,
    /// How many times to retry a failed delivery
    #[arg(long, value_name = "N", default_value_t = RETRIES)]
    #[serde(default = "default_retries")]
    pub retries: u32,
    /// The wait before the first retry, and the longest wait; it doubles each time
    #[arg(long, value_name = "TIME..TIME", default_value = BACKOFF, value_parser = Backoff::parse)]
    #[serde(default = "default_backoff")]
    pub backoff: Backoff,
    /// What to do when the last retry has failed
    #[arg(long, value_name = "WHAT", default_value = "continue")]
    #[serde(default)]
    pub on_failure: OnFailure,
    /// How many events to read ahead of the one being delivered
    #[arg(long, value_name = "N", default_value_t = QUEUE, value_parser = clap::value_parser!(u32).range(QUEUES))]
    #[serde(default = "default_queue", deserialize_with = "queue_of")]
    pub queue: u32,
}

impl Settings {
    /// Which node is meant; none: each.
    pub fn selector(&self) -> Option<NodeSelector> {
        let selector = NodeSelector { node: self.node.clone(), registry: self.registry.clone() };
        (selector.node.is_some() || selector.registry.is_some()).then_some(selector)
    }

    /// What contradicts itself in a hook, in words.
    pub fn check(&self) -> Result<(), String> {
        let fits = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if !(1..=64).contains(&self.name.len()) || !self.name.chars().all(fits) {
            return Err(format!("{:?} is not a name: 1 to 64 of A-Z a-z 0-9 . _ -", self.name));
        }
        if self.on.is_empty() {
            return Err("on: name at least one rule, such as [\"worker_died=./tell\"]".to_owned());
        }
        if let Some(twice) = rules::given_twice(&self.on) {
            return Err(format!("on: {twice:?} is given twice"));
        }
        if self.node.is_some() && self.registry.is_some() {
            return Err("node and registry: only one of them".to_owned());
        }
        let allowed: Vec<_> = match self.scope {
            Scope::Host => rules::allowed().collect(),
            Scope::Cluster => rules::allowed_for_cluster().collect(),
        };
        for rule in &self.on {
            rule.must_be_among(&allowed).map_err(|why| format!("on: {why}"))?;
        }
        if self.scope == Scope::Cluster && self.registry.is_some() {
            return Err("registry: it is a file of one host: for a cluster, use node".to_owned());
        }
        if let Some(path) = self.registry.as_ref().filter(|path| !path.is_absolute()) {
            return Err(format!("registry: {} is not an absolute path", path.display()));
        }
        Ok(())
    }
}

/// Whose events a hook is about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Those of this host.
    #[default]
    Host,
    /// Those of all hosts, each once for all of them.
    Cluster,
}

/// Where to begin without a record.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StartFrom {
    /// With the start of the run that is there
    #[default]
    Run,
    /// With what happens from now on
    Now,
    /// With the oldest event that is kept
    Oldest,
}

/// What becomes of a delivery whose end nobody saw.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfInterrupted {
    /// Deliver again, marked as a retry
    #[default]
    Retry,
    /// Go on with the next
    Skip,
}

/// What to do when a delivery failed for good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Log it and go on with the next
    #[default]
    Continue,
    /// End with code 4; the next start tries it again
    Stop,
}

fn timeout(text: &str) -> Result<Duration, String> {
    let time = duration(text)?;
    if time.is_zero() { Err("it must be at least 1ms".to_owned()) } else { Ok(time) }
}

fn timeout_of<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    let limit = time(from)?;
    if limit.is_zero() { Err(de::Error::custom("it must be at least 1ms")) } else { Ok(limit) }
}

fn queue_of<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    let number = i64::deserialize(from)?;
    let fits = QUEUES.contains(&number).then(|| u32::try_from(number).ok()).flatten();
    fits.ok_or_else(|| {
        de::Error::custom(format!("{number} is not in {} to {}", QUEUES.start(), QUEUES.end()))
    })
}

fn default_timeout() -> Duration {
    duration(TIMEOUT).unwrap_or_default()
}

fn default_retries() -> u32 {
    RETRIES
}

fn default_backoff() -> Backoff {
    Backoff::parse(BACKOFF).unwrap_or_default()
}

fn default_queue() -> u32 {
    QUEUE
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Run {
        #[command(flatten)]
        args: crate::commands::run::RunArgs,
    }

    #[test]
    fn a_hook_and_the_command_have_the_same_defaults() {
        let run = Run::parse_from(["run", "--on", "any=x"]).args.settings;
        let hook: Settings = toml::from_str("name = \"\"\non = [\"any=x\"]").expect("a hook");
        assert_eq!(run, hook);
    }

    #[test]
    fn a_hook_and_the_command_have_the_same_options() {
        let options = ["--from", "oldest", "--if-interrupted", "skip", "--timeout", "5s", "--retries", "2"];
        let more = ["--backoff", "2s..5m", "--on-failure", "stop", "--queue", "7"];
        let run = Run::parse_from(["run", "--on", "any=x"].into_iter().chain(options).chain(more));
        let text = options.chunks(2).chain(more.chunks(2)).map(|pair| {
            let name = pair[0].trim_start_matches("--").replace('-', "_");
            let is_number = pair[1].chars().all(|c| c.is_ascii_digit());
            if is_number { format!("{name} = {}\n", pair[1]) } else { format!("{name} = {:?}\n", pair[1]) }
        });
        let text = "name = \"\"\non = [\"any=x\"]\n".to_owned() + &text.collect::<String>();
        assert_eq!(run.args.settings, toml::from_str(&text).expect("a hook"));
    }
}
