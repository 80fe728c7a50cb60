//! `headcount lock`: a command that runs while no other process of the node has the lock of this name. Reference:
//! `docs/cli/lock.md`.

mod passed_on;
mod who;

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use headcount::{ErrorKind, LockGuard, NamedLock, Visitor, Wait};
use headcount_report::age;
use rustix::process::Signal;

use crate::args::{NodeSelector, duration};
use crate::child::{self, Child, Variable};
use crate::escape::escape;
use crate::find;
use crate::outcome::{Outcome, UsageError};
use crate::process;
use crate::say::say;

use passed_on::PassedOn;
use who::Who;

const LOCK_EXAMPLES: &str = "\
Examples:
  headcount lock backup -- ./backup --full
  headcount lock -n rotate -- logrotate /etc/logrotate.d/shop   (if it runs already, leave it at that)
  headcount lock --node shop --timeout 5m migrate -- ./migrate

The exit code is that of COMMAND, or 128 and the signal that ended it.

Exit codes: 1 somebody else has the lock (see --conflict-exit-code); 2 usage error; 4 no such node, or it cannot be taken part \
in; 126 COMMAND cannot be run; 127 there is no such COMMAND.";

#[derive(Args)]
#[command(after_long_help = LOCK_EXAMPLES)]
pub struct LockArgs {
    /// The lock: 1 to 48 letters, digits, `.`, `_` and `-`
    pub name: String,
    /// What to run while the lock is held. It gets HEADCOUNT_NODE, HEADCOUNT_LOCK, HEADCOUNT_LOCK_TOKEN and, if the holder before
    /// it ended inside, HEADCOUNT_LOCK_ABANDONED_BY in its environment
    #[arg(last = true, required = true, value_name = "COMMAND")]
    pub command: Vec<OsString>,
    /// Give up if the lock cannot be had within this time [default: wait for ever]
    #[arg(long, short = 'w', value_name = "TIME", value_parser = duration)]
    pub timeout: Option<Duration>,
    /// Give up at once if somebody else has the lock
    #[arg(long, short, conflicts_with = "timeout")]
    pub nonblock: bool,
    /// The exit code if somebody else has the lock
    #[arg(long, short = 'E', value_name = "CODE", default_value_t = Outcome::NotReached.code())]
    pub conflict_exit_code: u8,
}

/// How often a signal, or a registry that was replaced, is looked for while it waits. A release wakes it at once.
const SLICE: Duration = Duration::from_millis(250);
/// When a waiter says whom it waits for.
const FIRST_WORD: Duration = Duration::from_secs(1);
/// How often a holder looks at its node.
const LOOK: Duration = Duration::from_secs(1);

pub fn run(selector: &NodeSelector, args: &LockArgs) -> anyhow::Result<Outcome> {
    let Some(path) = find::the_one_meant(selector)? else { bail!("{}", find::no_such_node(selector)) };
    // Before it has anything: a signal must not end it between the lock and the command.
    let signals = PassedOn::catch()?;
    let begun = Instant::now();
    loop {
        let visitor = enter(&path)?;
        let lock = visitor.lock(&args.name).map_err(|e| match e.kind() {
            ErrorKind::InvalidOption => UsageError(e.to_string()).into(),
            _ => anyhow::Error::from(e),
        })?;
        let outcome = match wait(&visitor, &lock, args, &signals, begun)? {
            Waited::Held(guard) => Some(hold(&visitor, guard, args, &signals)?),
            Waited::InVain(text) => {
                crate::say::complain(&escape(&text));
                Some(Outcome::Exit(args.conflict_exit_code))
            }
            Waited::Told(signal) => {
                leave(visitor);
                signal_hook::low_level::emulate_default_handler(signal.as_raw())
                    .context("cannot end by a signal")?;
                // Its default is to end nothing.
                return Ok(Outcome::Failed);
            }
            Waited::Replaced => None,
        };
        leave(visitor);
        if let Some(outcome) = outcome {
            return Ok(outcome);
        }
    }
}

fn enter(path: &Path) -> anyhow::Result<Visitor> {
    /// The registry is being replaced at this moment, say.
    const TRIES: u32 = 20;
    for _ in 1..TRIES {
        match Visitor::enter(path) {
            Err(e) if e.kind() == ErrorKind::Busy => std::thread::sleep(Duration::from_millis(50)),
            entered => return entered.context("cannot take part in the node"),
        }
    }
    Visitor::enter(path).context("cannot take part in the node")
}

fn leave(visitor: Visitor) {
    // Otherwise it is seen to be gone.
    let _ = visitor.leave(Wait::For(LOOK));
}

enum Waited {
    Held(LockGuard),
    /// And why, for people.
    InVain(String),
    Told(Signal),
    /// Its registry is another one by now.
    Replaced,
}

fn wait(
    visitor: &Visitor,
    lock: &NamedLock,
    args: &LockArgs,
    signals: &PassedOn,
    begun: Instant,
) -> anyhow::Result<Waited> {
    let limit = if args.nonblock { Some(Duration::ZERO) } else { args.timeout };
    let mut said: Option<u32> = None;
    let mut looked: Option<Instant> = None;
    let node = escape(visitor.node().name());
    loop {
        let left = limit.map(|limit| limit.saturating_sub(begun.elapsed()));
        let slice = left.map_or(SLICE, |left| left.min(SLICE));
        match lock.acquire(if slice.is_zero() { Wait::Try } else { Wait::For(slice) }) {
            Ok(guard) => return Ok(Waited::Held(guard)),
            Err(e) if !e.is_busy() => return Err(e.into()),
            Err(_) => {}
        }
        if let Some(signal) = signals.come().first() {
            return Ok(Waited::Told(*signal));
        }
        if !visitor.is_current() {
            return Ok(Waited::Replaced);
        }
        visitor.tend();
        let is_over = left.is_some_and(|left| left.is_zero());
        if !is_over && looked.is_some_and(|looked| looked.elapsed() < LOOK) {
            continue;
        }
        looked = Some(Instant::now());
        let who = Who::has(visitor, lock.name());
        if let Some(who) = who.as_ref().filter(|who| process::ancestors().any(|pid| pid == who.pid)) {
            bail!(
                "{node}: {}, and has started this command, which would wait for itself (take the lock {} only once)",
                who.with(lock.name()),
                lock.name()
            );
        }
        if is_over {
            let why = who.map_or_else(|| "it was taken all the time".to_owned(), |who| who.with("it"));
            let text = match args.nonblock {
                true => format!("{node}: the lock {} is taken: {why}", lock.name()),
                false => format!(
                    "{node}: timed out after {} waiting for the lock {}: {why}",
                    age(limit.unwrap_or_default()),
                    lock.name()
                ),
            };
            return Ok(Waited::InVain(text));
        }
        if let Some(who) = who.filter(|who| begun.elapsed() >= FIRST_WORD && said != Some(who.pid)) {
            say(&format!("{node}: waiting for the lock {}: {}", lock.name(), who.with("it")));
            said = Some(who.pid);
        }
    }
}

/// Runs the command, and releases the lock when it has ended.
fn hold(visitor: &Visitor, guard: LockGuard, args: &LockArgs, signals: &PassedOn) -> anyhow::Result<Outcome> {
    let node = visitor.node();
    let abandoned_by = guard.abandoned_by().map(|pid| pid.to_string());
    if let Some(pid) = &abandoned_by {
        let name = node.name();
        say(&format!("{name}: process {pid} ended while it held the lock {}", args.name));
    }
    let variables: [Variable; 4] = [
        ("HEADCOUNT_NODE", Some(node.name().to_owned())),
        ("HEADCOUNT_LOCK", Some(args.name.clone())),
        ("HEADCOUNT_LOCK_TOKEN", Some(guard.token().to_string())),
        ("HEADCOUNT_LOCK_ABANDONED_BY", abandoned_by),
    ];
    let child = Child::start(&args.command, &variables, false)?;
    let mut is_current = true;
    while !child.has_ended() {
        child.wait(&signals.fds(), LOOK)?;
        for signal in signals.come() {
            if !signals.is_from_terminal(signal) {
                child.signal(signal);
            }
        }
        visitor.tend();
        if is_current && !visitor.is_current() {
            is_current = false;
            say(&format!(
                "{}: its registry was removed or replaced: who comes now does not see that the lock {} is taken",
                node.name(),
                args.name
            ));
        }
    }
    let code = child::code_of(child.reap()?);
    drop(guard);
    Ok(Outcome::Exit(code))
}
