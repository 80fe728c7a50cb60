//! A whole registry, as whoever is not part of the node reads it and shows it.

use headcount::{Batch, Cursor, Observer, Snapshot};
use headcount_report::{History, NodeDocument, StatusDocument, page, prometheus, sentence};
use serde_json::Value;

use crate::{image, room};

pub(crate) fn run(bytes: &[u8]) {
    let path = room::folder().join("reader.registry");
    let (registry, rest) = image::unpack(bytes, 0);
    std::fs::write(&path, registry).expect("write");
    // What is no registry is the target `file`'s.
    let Ok(observer) = Observer::open(&path) else { return };
    let start = rest.first_chunk().map_or(0, |start| u64::from_le_bytes(*start));
    let snapshot = observer.snapshot().expect("it can be read");
    let batch = read_all(start, |cursor, limit| observer.events(cursor, limit).expect("it can be read"));
    for process in &snapshot.processes {
        assert!(
            !observer.is_proven(process).unwrap_or(false),
            "nobody shares a byte of a lock file that is not there"
        );
    }
    show(&snapshot, &batch);
}

/// Reads a journal to its end, which comes within its capacity.
pub(crate) fn read_all(start: u64, mut read: impl FnMut(&mut Cursor, usize) -> Batch) -> Batch {
    const AT_ONCE: usize = 7;
    let mut cursor = Cursor::at(start);
    let mut all = Batch::default();
    for _ in 0..=image::RECORDS {
        let batch = read(&mut cursor, AT_ONCE);
        assert!(batch.events.len() <= AT_ONCE, "no more than asked for");
        if batch.events.is_empty() && batch.lost == 0 {
            return all;
        }
        all.lost = all.lost.saturating_add(batch.lost);
        all.events.extend(batch.events);
    }
    panic!(
        "there is no end of a journal of {} records: the cursor is at {}",
        image::RECORDS,
        cursor.next_seq()
    );
}

/// Everything that people and programs are shown of it is well-formed.
pub(crate) fn show(snapshot: &Snapshot, batch: &Batch) {
    for pair in batch.events.windows(2) {
        assert!(pair[0].seq < pair[1].seq, "in order, and none twice");
    }
    let alive = snapshot.generations.iter().map(|g| u64::from(g.counts.mine)).sum::<u64>();
    assert!(u64::from(snapshot.total) <= snapshot.processes.len() as u64, "no more than there are");
    assert!(alive <= snapshot.processes.len() as u64, "nobody is counted twice");
    for event in &batch.events {
        assert!(!sentence(event).is_empty() && !sentence(event).contains('\n'), "one line");
    }
    let history = History::of(&batch.events, snapshot);
    let node = NodeDocument::new(snapshot, &history).with_events(&batch.events);
    let document = StatusDocument::new(vec![node]);
    let text = serde_json::to_string(&document).expect("JSON");
    let read: Value = serde_json::from_str(&text).expect("JSON that can be read");
    assert_eq!(read["nodes"][0]["events"].as_array().map(Vec::len), Some(batch.events.len()), "{text}");
    let page = page(&document).expect("a page");
    assert_eq!(page.matches("</script").count(), 2, "nothing in it ends a script");
    for line in prometheus([(snapshot, &history)]).expect("metrics").lines() {
        let value = line.rsplit(' ').next().and_then(|value| value.parse::<f64>().ok());
        assert!(line.starts_with('#') || value.is_some_and(f64::is_finite), "{line}");
    }
}
