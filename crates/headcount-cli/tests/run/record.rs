//! What commands have written down, and what the journal says.

use std::fs;
use std::path::Path;

use headcount::{Cursor, Event, Observer};
use serde_json::Value;

/// The command that appends its standard input to a file, in one write.
pub fn cat_to(path: &Path) -> String {
    format!("cat >> '{}'", path.display())
}

/// One delivery, as its command got it.
#[derive(Clone, Debug, PartialEq)]
pub struct Delivered(pub Value);

impl Delivered {
    pub fn kind(&self) -> &str {
        self.0["kind"].as_str().expect("each has a kind")
    }
    pub fn id(&self) -> &str {
        self.0["id"].as_str().expect("each has an id")
    }
    pub fn seq(&self) -> Option<u64> {
        self.0["seq"].as_u64()
    }
    pub fn attempt(&self) -> u64 {
        self.0["attempt"].as_u64().expect("each has an attempt")
    }
    pub fn is_retry(&self) -> bool {
        self.0["retry"].as_bool().expect("each says whether it is one")
    }
    /// Of a node, not of the journal.
    pub fn is_derived(&self) -> bool {
        self.kind().starts_with("node_") || self.kind() == "lost"
    }
}

/// All deliveries in a file so far.
pub fn deliveries(path: &Path) -> Vec<Delivered> {
    let text = fs::read_to_string(path).unwrap_or_default();
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    whole
        .lines()
        .map(|line| Delivered(serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}"))))
        .collect()
}

/// Their kinds.
pub fn kinds(deliveries: &[Delivered]) -> Vec<&str> {
    deliveries.iter().map(Delivered::kind).collect()
}

/// The whole journal.
pub fn journal(registry: &Path) -> Vec<Event> {
    let observer = Observer::open(registry).expect("a registry");
    observer.events(&mut Cursor::oldest(), usize::MAX).expect("a journal").events
}

/// Each event of the journal was delivered once, in order, in its first attempt.
#[track_caller]
pub fn assert_all_once(deliveries: &[Delivered], registry: &Path) {
    let journal: Vec<_> =
        journal(registry).iter().map(|e| (e.seq, e.kind.name().to_owned(), 1, false)).collect();
    let seen: Vec<_> = deliveries
        .iter()
        .filter(|d| !d.is_derived())
        .map(|d| (d.seq().unwrap_or(0), d.kind().to_owned(), d.attempt(), d.is_retry()))
        .collect();
    assert_eq!(seen, journal);
}
