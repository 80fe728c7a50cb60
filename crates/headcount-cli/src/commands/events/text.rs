//! An event as a line for people, or as one for programs.

use anstyle::{AnsiColor, Style};
use headcount::{Event, Kind};
use headcount_report::{EventDocument, plural, sentence};
use jiff::{Timestamp, tz::TimeZone};
use serde::Serialize;

use super::journals::Entry;
use crate::escape::{escape, escape_json};
use crate::paint;

/// How lines are formatted.
pub struct LineFormat {
    pub json: bool,
    /// More than one node: each line begins with its name.
    pub names: bool,
    pub zone: TimeZone,
}

/// In place of events that were lost.
#[derive(Serialize)]
struct Lost<'a> {
    node: &'a str,
    lost: u64,
}

impl LineFormat {
    pub fn line(&self, node: &str, entry: &Entry) -> serde_json::Result<String> {
        match (entry, self.json) {
            (Entry::Event(event), true) => {
                serde_json::to_string(&EventDocument::new(node, event)).map(escape_json)
            }
            (Entry::Lost(lost), true) => serde_json::to_string(&Lost { node, lost: *lost }).map(escape_json),
            (Entry::Event(event), false) => {
                let time = time(event.time_ns, &self.zone);
                Ok(self.text(&time, node, colour(event.kind), &sentence(event)))
            }
            (Entry::Lost(lost), false) => {
                let lost =
                    format!("({} lost: overwritten before they could be read)", plural(*lost, "event"));
                Ok(self.text(&format!("{:23}", ""), node, paint::WARNING, &lost))
            }
        }
    }

    fn text(&self, time: &str, node: &str, style: Style, what: &str) -> String {
        let name = if self.names { format!("{}  ", escape(node)) } else { String::new() };
        format!("{}{time}{:#}  {name}{style}{what}{style:#}", paint::DIM, paint::DIM)
    }
}

/// `2025-01-31 13:00:00.123` in the local time zone, as the server's own log has it.
pub fn time(time_ns: u64, zone: &TimeZone) -> String {
    let stamp = Timestamp::from_nanosecond(i128::from(time_ns)).unwrap_or(Timestamp::MAX);
    stamp.to_zoned(zone.clone()).strftime("%Y-%m-%d %H:%M:%S%.3f").to_string()
}

pub fn colour(kind: Kind) -> Style {
    match kind {
        Kind::GenerationStarted | Kind::GenerationEnded | Kind::LeaderElected => paint::HEADING,
        Kind::WorkerStarted | Kind::WorkerRecovered | Kind::HelperStarted => paint::GOOD,
        Kind::WorkerDraining => AnsiColor::Yellow.on_default(),
        Kind::WorkerStalled => AnsiColor::Magenta.on_default().bold(),
        Kind::WorkerDied | Kind::MasterLost | Kind::CallbackDied => paint::ERROR,
        Kind::OnceDone => paint::GOOD,
        Kind::OnceFailed => paint::ERROR,
        Kind::GenerationAbandoned | Kind::CallbackFailed | Kind::LeaderLost | Kind::LockAbandoned => {
            paint::WARNING
        }
        _ => paint::DIM,
    }
}

/// Whether to show an event of this kind: all are shown if none was named.
pub fn wants(kinds: &[Kind], event: &Event) -> bool {
    kinds.is_empty() || kinds.contains(&event.kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn format(json: bool, names: bool) -> LineFormat {
        LineFormat { json, names, zone: TimeZone::UTC }
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn lines_for_people() {
        let time = time(1_738_324_800_123_456_789, &TimeZone::UTC);
        let line =
            format(false, false).text(&time, "shop", paint::ERROR, "worker 2 (pid 11) of generation 3 died");
        insta::assert_snapshot!(plain(&line), @"2025-01-31 12:00:00.123  worker 2 (pid 11) of generation 3 died");
        let line =
            format(false, true).text(&time, "shop", paint::ERROR, "worker 2 (pid 11) of generation 3 died");
        insta::assert_snapshot!(plain(&line), @"2025-01-31 12:00:00.123  shop  worker 2 (pid 11) of generation 3 died");
        assert!(
            line.contains("\x1b["),
            "colours go to anstream, which takes them away where nobody sees them"
        );
        // A registry may say anything.
        assert_eq!(super::time(u64::MAX, &TimeZone::UTC).len(), 23);
    }

    #[test]
    fn the_local_time_zone_counts() {
        let zone = TimeZone::fixed(jiff::tz::offset(2));
        assert_eq!(time(1_738_324_800_000_000_000, &zone), "2025-01-31 14:00:00.000");
    }

    #[test]
    fn lost_events() {
        let entry = Entry::Lost(136);
        insta::assert_snapshot!(format(true, true).line("shop", &entry).unwrap(), @r#"{"node":"shop","lost":136}"#);
        insta::assert_snapshot!(
            plain(&format(false, false).line("shop", &entry).unwrap()).trim_start(),
            @"(136 events lost: overwritten before they could be read)"
        );
    }

    #[test]
    fn nothing_that_went_wrong_is_dimmed() {
        let dimmed: Vec<_> = Kind::ALL.iter().filter(|kind| colour(**kind) == paint::DIM).collect();
        assert_eq!(dimmed, [&Kind::WorkerExited, &Kind::HelperExited, &Kind::MasterExited]);
    }
}
