//! Where to begin when nothing was delivered yet.

use headcount::{Cause, Cursor, Kind, Observer};

use super::node_state::{may_be_up, serves};
use super::settings::StartFrom;
use super::state::{Ask, State};

/// Sets the state to the beginning.
pub fn set(state: &mut State, observer: &Observer, from: StartFrom) -> headcount::Result<()> {
    let mut cursor = Cursor::oldest();
    let mut first = None;
    let mut run = None;
    loop {
        let batch = observer.events(&mut cursor, usize::MAX)?;
        if batch.events.is_empty() && batch.lost == 0 {
            break;
        }
        for event in batch.events {
            first.get_or_insert(event.seq);
            if event.kind == Kind::GenerationStarted && event.cause == Cause::Start {
                run = Some(event.seq);
            }
        }
    }
    let end = cursor.next_seq();
    let snapshot = observer.snapshot()?;
    state.node_is_up = false;
    state.ask = Ask::Never;
    state.next_seq = match (from, run) {
        (StartFrom::Oldest, _) => 0,
        (StartFrom::Now, _) => {
            state.node_is_up = serves(&snapshot);
            end
        }
        // There is no run: it has ended.
        (StartFrom::Run, _) if !may_be_up(&snapshot) => end,
        (StartFrom::Run, Some(start)) => start,
        (StartFrom::Run, None) => {
            // The event that says that the node is up is gone. What is left of the run comes after the one that we
            // make of what is there.
            state.ask = Ask::AtOnce;
            first.unwrap_or(end)
        }
    };
    Ok(())
}
