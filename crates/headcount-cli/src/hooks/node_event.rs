//! What the journal says about the node as a whole.
//!
//! It is a state of two values, up and down, and each event of the journal may change it. So what is told of a node is
//! always `node_started`, then `node_stopped` or `node_died`, then `node_started` again, whatever was missed in between.

use headcount::{Cause, Event, Kind, PreviousRun};

/// An event of the node as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeEvent {
    /// The first generation of a run started, or the node is there again.
    Started,
    /// The last generation ended, or the last master left, because the node stops.
    Stopped,
    /// Nobody is alive, and it was not stopped.
    Died,
}

impl NodeEvent {
    pub fn name(self) -> &'static str {
        match self {
            NodeEvent::Started => "node_started",
            NodeEvent::Stopped => "node_stopped",
            NodeEvent::Died => "node_died",
        }
    }
}

/// What an event of the journal says of the node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    /// To be told before the event itself.
    pub before: Vec<NodeEvent>,
    /// To be told after it.
    pub after: Option<NodeEvent>,
    /// Whether the node is up after it.
    pub up: bool,
}

/// What an event says of a node that was up, or was not, before it.
pub fn of(up: bool, event: &Event) -> Changes {
    decide(up, event.kind, event.cause, event.previous_run)
}

fn decide(mut up: bool, kind: Kind, cause: Cause, previous: Option<PreviousRun>) -> Changes {
    let mut changes = Changes::default();
    // A new run clears away what the one before has left, and finds how that ended.
    let new_run = kind == Kind::GenerationStarted && cause == Cause::Start;
    if up && (cause == Cause::Unclean || new_run) {
        let stopped = new_run && previous == Some(PreviousRun::Clean);
        changes.before.push(if stopped { NodeEvent::Stopped } else { NodeEvent::Died });
        up = false;
    }
    // After `lost`, or when generations come again in a node that had none left.
    if !up && matches!(kind, Kind::GenerationStarted | Kind::WorkerStarted) {
        changes.before.push(NodeEvent::Started);
        up = true;
    }
    if up && cause == Cause::Stop && matches!(kind, Kind::GenerationEnded | Kind::MasterExited) {
        changes.after = Some(NodeEvent::Stopped);
        up = false;
    }
    changes.up = up;
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is told of a node in which all this happens.
    fn told(up: bool, events: &[(Kind, Cause, Option<PreviousRun>)]) -> Vec<NodeEvent> {
        let mut now = up;
        let mut told = Vec::new();
        for &(kind, cause, previous) in events {
            let changes = decide(now, kind, cause, previous);
            told.extend(changes.before);
            told.extend(changes.after);
            now = changes.up;
        }
        told
    }

    use Cause::{Reload, Start, Stop, Superseded, Unclean, Unknown};
    use Kind::{GenerationEnded, GenerationStarted, MasterExited, WorkerDied, WorkerStarted};
    use NodeEvent::{Died, Started, Stopped};

    const CLEAN: Option<PreviousRun> = Some(PreviousRun::Clean);

    #[test]
    fn a_run_with_a_reload_is_one_start_and_one_stop() {
        let run = [
            (GenerationStarted, Start, Some(PreviousRun::None)),
            (WorkerStarted, Start, None),
            (GenerationStarted, Reload, None),
            (GenerationEnded, Superseded, None),
            (WorkerDied, Unknown, None),
            (GenerationEnded, Stop, None),
            (MasterExited, Stop, None),
        ];
        assert_eq!(told(false, &run), [Started, Stopped]);
    }

    #[test]
    fn a_death_that_nobody_saw_is_told_before_what_the_next_run_found() {
        let found = [
            (WorkerDied, Unclean, None),
            (GenerationEnded, Unclean, None),
            (GenerationStarted, Start, Some(PreviousRun::Unclean { generation: 1, workers: 2 })),
        ];
        assert_eq!(told(true, &found), [Died, Started]);
        // Seen by the kernel's word already.
        assert_eq!(told(false, &found), [Started]);
    }

    #[test]
    fn a_stop_that_was_lost_is_told_at_the_next_start() {
        assert_eq!(told(true, &[(GenerationStarted, Start, CLEAN)]), [Stopped, Started]);
    }

    #[test]
    fn a_node_whose_generation_ended_may_go_on() {
        let events =
            [(GenerationEnded, Stop, None), (GenerationStarted, Reload, None), (MasterExited, Stop, None)];
        assert_eq!(told(true, &events), [Stopped, Started, Stopped]);
    }

    #[test]
    fn a_master_that_leaves_after_an_upgrade_is_no_stop() {
        assert_eq!(told(true, &[(MasterExited, Superseded, None)]), []);
    }

    #[test]
    fn a_worker_that_starts_shows_that_the_node_is_up() {
        assert_eq!(told(false, &[(WorkerStarted, Start, None), (WorkerStarted, Start, None)]), [Started]);
    }
}
