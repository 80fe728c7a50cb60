//! Reloads a node of this host when the cluster asks for it, as `headcount reload` does: by its very code.

use headcount::Observer;
use headcount_cluster::doer::{Perform, Work};
use headcount_cluster::task::{Outcome, Report};
use headcount_report::Newest;

use crate::clock::Deadline;
use crate::commands::reload::{Reload, of_registry};
use crate::commands::wait::condition::Wanted;
use crate::commands::wait::node_watch::NodeWatch;
use crate::commands::wait::{Ended, until};

/// What the agent does for the cluster.
pub fn perform() -> Box<Perform> {
    Box::new(|work, tell| {
        let result = match work.only_look_since {
            None => reload(work, tell),
            Some(since) => look(work, since, tell),
        };
        result.unwrap_or_else(|error| Report::new(Outcome::Failed, &format!("not reloaded: {error:#}")))
    })
}

fn reload(work: &Work, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
    let observer = Observer::open(&work.registry)?;
    let master = of_registry(&work.registry, &observer)?;
    let deadline = Deadline::after(work.timeout);
    let reload = Reload { registry: work.registry.clone(), master, drained: work.drained, deadline };
    let mut said = Said::default();
    Ok(report(reload.perform(&mut |what| said.tell(what, tell))?))
}

/// The signal may have been sent by an agent that has ended: what came of it?
fn look(work: &Work, since: u64, tell: &mut dyn FnMut(&str)) -> anyhow::Result<Report> {
    let mut node = NodeWatch::with_history(work.registry.clone());
    let wanted =
        Wanted { reloaded: true, drained: work.drained, newer_than: Some(since), ..Wanted::default() };
    let mut said = Said::default();
    let deadline = Deadline::after(work.timeout);
    let ended = until(&mut node, &wanted, deadline, None, &mut |what| said.tell(what, tell))?;
    let has_begun =
        node.snapshot()?.as_ref().and_then(Newest::of).is_some_and(|newest| newest.generation.id > since);
    let mut report = report(ended);
    if report.outcome == Outcome::TimedOut && !has_begun {
        report.outcome = Outcome::Unknown;
    }
    report.text = format!("its agent ended while it reloaded; since then: {}", report.text);
    Ok(report)
}

/// The same is told once: what is waited for is looked at all the time.
#[derive(Default)]
struct Said(String);

impl Said {
    fn tell(&mut self, what: &str, tell: &mut dyn FnMut(&str)) {
        if self.0 != what {
            what.clone_into(&mut self.0);
            tell(what);
        }
    }
}

fn report(ended: Ended) -> Report {
    let in_one_line = |text: String| text.split('\n').map(str::trim).collect::<Vec<_>>().join("; ");
    match ended {
        Ended::Reached(what, generation) => {
            Report { generation, ..Report::new(Outcome::Serving, &in_one_line(what)) }
        }
        Ended::NotReached(why) => Report::new(Outcome::TimedOut, &in_one_line(why)),
        Ended::ReloadFailed(why) => Report::new(Outcome::Refused, &in_one_line(why)),
    }
}
