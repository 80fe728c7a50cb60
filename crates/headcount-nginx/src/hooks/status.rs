//! What `headcount_status` answers.

use headcount_core::{Cursor, Event, Node};
use headcount_report::{Format, History, NodeDocument, StatusDocument, page, prometheus};

/// So many events are looked through for the recent past, and given at most.
const MOST_EVENTS: u64 = 1024;
/// So many the page begins with.
const EVENTS_OF_PAGE: u64 = 500;

/// The document, from a snapshot and the journal: without a lock, and without holding anybody up.
///
/// `events`: how many of the newest events the request asks for.
pub(crate) fn body(
    node: &Node,
    format: Format,
    events: Option<u64>,
) -> Result<String, Box<dyn std::error::Error>> {
    let snapshot = node.snapshot();
    let recent = newest(node, snapshot.head, MOST_EVENTS);
    let history = History::of(&recent, &snapshot);
    let document = |wanted: Option<u64>| {
        let document = NodeDocument::new(&snapshot, &history);
        StatusDocument::new(vec![match wanted {
            None => document,
            Some(number) => {
                let number = usize::try_from(number).unwrap_or(usize::MAX);
                document.with_events(&recent[recent.len().saturating_sub(number)..])
            }
        }])
    };
    Ok(match format {
        Format::Json => serde_json::to_string(&document(events))?,
        Format::Prometheus => prometheus([(&snapshot, &history)])?,
        Format::Html => page(&document(Some(events.unwrap_or(EVENTS_OF_PAGE))))?,
    })
}

fn newest(node: &Node, head: u64, number: u64) -> Vec<Event> {
    let mut cursor = Cursor::at(head.saturating_sub(number) + 1);
    // A spoiled head may have gone on since: the whole journal is more than an answer may cost.
    node.events(&mut cursor, usize::try_from(number).unwrap_or(usize::MAX)).events
}

/// The number behind `events=` in a query.
pub(crate) fn events_of(query: &[u8]) -> Option<u64> {
    let query = std::str::from_utf8(query).ok()?;
    query.split('&').find_map(|part| part.strip_prefix("events="))?.parse().ok()
}
