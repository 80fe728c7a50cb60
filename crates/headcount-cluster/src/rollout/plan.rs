//! Whether it may begin, and in which waves.

use std::collections::BTreeSet;

use super::{LeftOut, Options, RolloutValue, all, is_idle, serves};
use crate::fleet::Fleet;
use crate::task::Target;
use crate::value::VERSION;

/// Why nothing was begun.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is none.
    #[error("there is no node{} that could be reloaded", node.as_ref().map_or(String::new(), |node| format!(" {node}")))]
    NoNodes {
        /// Of this name.
        node: Option<String>,
    },
    /// What a host tells cannot be read.
    #[error("nothing was reloaded: {}", list(.0))]
    Unreadable(Vec<String>),
    /// What their nodes do is not known.
    #[error(
        "nothing was reloaded: lost: {}. What their nodes do is not known. --skip-lost leaves them out, and does not count them",
        list(.0)
    )]
    Lost(Vec<String>),
    /// Their agents would not do it.
    #[error(
        "nothing was reloaded: the agents' configuration does not allow it for {}. Set reload under [agent] there (docs/cli/agent.md), or choose nodes with --node",
        list(.0)
    )]
    NotAllowed(Vec<String>),
    /// Too many do not serve already.
    #[error(
        "nothing was reloaded: {} not serve already ({}), and {at_most} at a time may not. Repair them, or allow more with --max-unavailable",
        if nodes.len() == 1 { "1 node does".to_owned() } else { format!("{} nodes do", nodes.len()) },
        list(nodes)
    )]
    NotServing {
        /// Which.
        nodes: Vec<String>,
        /// So many may.
        at_most: usize,
    },
}

/// So many are named.
const NAMED: usize = 10;

fn list(all: &[String]) -> String {
    match all.len().checked_sub(NAMED).filter(|more| *more > 0) {
        Some(more) => format!("{} and {more} more", all[..NAMED].join(", ")),
        None => all.join(", "),
    }
}

impl RolloutValue {
    /// The plan. Its name and who has begun it are filled in later.
    ///
    /// # Errors
    /// Why nothing may be begun.
    pub fn plan(fleet: &Fleet, options: &Options) -> Result<RolloutValue, Refusal> {
        let node = options.node.as_deref();
        let unreadable: Vec<_> = fleet
            .unreadable
            .iter()
            .map(|(key, why)| format!("the key {key} cannot be read: {why}"))
            .collect();
        if !unreadable.is_empty() {
            return Err(Refusal::Unreadable(unreadable));
        }
        let lost: Vec<_> = all(fleet, node).filter(|(_, host, _)| host.is_lost()).collect();
        if !lost.is_empty() && !options.skip_lost {
            let hosts: BTreeSet<_> = lost.iter().map(|(at, ..)| at.host.to_owned()).collect();
            return Err(Refusal::Lost(hosts.into_iter().collect()));
        }
        let mut left_out: Vec<_> = lost
            .into_iter()
            .map(|(at, ..)| LeftOut { target: at.target(), lost: true, why: "its host is lost".to_owned() })
            .collect();
        let here: Vec<_> = all(fleet, node).filter(|(_, host, _)| host.is_here()).collect();
        let (idle, mut meant): (Vec<_>, Vec<_>) = here.iter().partition(|(_, _, value)| is_idle(value));
        left_out.extend(idle.into_iter().map(|(at, _, value)| LeftOut {
            target: at.target(),
            lost: false,
            why: format!("{}: it reads its configuration when it starts", value.state),
        }));
        let not_allowed: Vec<_> = meant
            .iter()
            .filter(|(.., value)| !value.reload)
            .map(|(at, ..)| at.target().to_string())
            .collect();
        if !not_allowed.is_empty() {
            return Err(Refusal::NotAllowed(not_allowed));
        }
        if meant.is_empty() {
            return Err(Refusal::NoNodes { node: options.node.clone() });
        }
        let at_most = options.max_unavailable.of(here.len());
        let not_serving: Vec<_> = here
            .iter()
            .filter(|(.., value)| !serves(value))
            .map(|(at, _, value)| format!("{}: {}", at.target(), value.state))
            .collect();
        // With as many as may, only what does not serve anyway can be reloaded.
        let is_stuck = not_serving.len() == at_most && meant.iter().all(|(.., value)| serves(value));
        if not_serving.len() > at_most || is_stuck {
            return Err(Refusal::NotServing { nodes: not_serving, at_most });
        }
        // Those that do not serve first: their reload takes nothing away.
        meant.sort_by_key(|(at, _, value)| (serves(value), *at));
        let mut rest: Vec<Target> = meant.into_iter().map(|(at, ..)| at.target()).collect();
        let mut waves = Vec::new();
        if let Some(first) = options.first {
            waves.push(rest.drain(..first.of(here.len()).min(rest.len())).collect());
        }
        waves.extend(rest.chunks(at_most).map(<[Target]>::to_vec));
        Ok(RolloutValue {
            v: VERSION,
            id: String::new(),
            by: String::new(),
            begun: crate::now(),
            node: options.node.clone(),
            at_most,
            nodes: waves.iter().map(Vec::len).sum(),
            parts: 0,
            first: options.first.is_some(),
            drained: options.drained,
            timeout: options.timeout.as_secs_f64(),
            skip_lost: options.skip_lost,
            waves,
            left_out,
            ended: None,
        })
    }
}
