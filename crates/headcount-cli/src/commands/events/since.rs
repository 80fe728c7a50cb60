//! `--since`: the first event to show.

use std::time::Duration;

use headcount::Event;
use jiff::Timestamp;

use crate::args::duration;
use crate::clock;

/// The first event to show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// By its number.
    Seq(u64),
    /// By its age.
    Ago(Duration),
    /// By its wall time, in nanoseconds since 1970.
    Wall(u64),
}

impl Since {
    pub fn parse(text: &str) -> Result<Since, String> {
        // A bare number is an event's: in a script, a duration has a unit.
        if let Ok(seq) = text.strip_prefix("seq:").unwrap_or(text).parse() {
            return Ok(Since::Seq(seq));
        }
        if let Ok(ago) = duration(text) {
            return Ok(Since::Ago(ago));
        }
        let wall = text.parse::<Timestamp>().ok().and_then(|t| u64::try_from(t.as_nanosecond()).ok());
        wall.map(Since::Wall).ok_or_else(|| {
            format!(
                "{text:?} is not a time; allowed are an age (500ms, 60s, 10m, 2h, 1d), a date and time with time zone \
                 (2025-01-31T12:00:00Z, 2025-01-31T13:00:00+01:00), or the number of an event (seq:123, 123)"
            )
        })
    }
}

/// A `Since`, and the time it is relative to.
#[derive(Clone, Copy, Debug)]
pub struct From {
    since: Since,
    boot_ns: u64,
    wall_ns: u64,
}

impl From {
    pub fn now(since: Since) -> From {
        From { since, boot_ns: clock::boot_ns(), wall_ns: clock::wall_ns() }
    }

    /// The number of the first event to show, if that was given.
    pub fn first_seq(self) -> Option<u64> {
        if let Since::Seq(seq) = self.since { Some(seq) } else { None }
    }

    /// Whether to show this event. Those of another boot have only the wall clock in common with us.
    pub fn covers(&self, event: &Event, of_this_boot: bool) -> bool {
        self.covers_times(event.seq, event.boot_ns, event.time_ns, of_this_boot)
    }

    fn covers_times(&self, seq: u64, boot_ns: u64, wall_ns: u64, of_this_boot: bool) -> bool {
        match self.since {
            Since::Seq(first) => seq >= first,
            Since::Wall(from) => wall_ns >= from,
            Since::Ago(ago) if of_this_boot => {
                boot_ns >= self.boot_ns.saturating_sub(clock::nanoseconds(ago))
            }
            Since::Ago(ago) => wall_ns >= self.wall_ns.saturating_sub(clock::nanoseconds(ago)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_written() {
        assert_eq!(Since::parse("10m"), Ok(Since::Ago(Duration::from_secs(600))));
        assert_eq!(Since::parse("123"), Ok(Since::Seq(123)));
        assert_eq!(Since::parse("seq:123"), Ok(Since::Seq(123)));
        let noon = Ok(Since::Wall(1_738_324_800_000_000_000));
        assert_eq!(Since::parse("2025-01-31T12:00:00Z"), noon);
        assert_eq!(Since::parse("2025-01-31T13:00:00+01:00"), noon);
        for wrong in
            ["", "yesterday", "seq:", "seq:-1", "2025-01-31", "2025-01-31T12:00:00", "1900-01-01T00:00:00Z"]
        {
            assert!(Since::parse(wrong).is_err_and(|e| e.contains("allowed")), "{wrong}");
        }
    }

    #[test]
    fn a_wall_clock_that_was_set_does_not_change_how_long_ago_something_was() {
        let second = 1_000_000_000;
        let from = From {
            since: Since::Ago(Duration::from_secs(10)),
            boot_ns: 100 * second,
            wall_ns: 5_000 * second,
        };
        assert!(from.covers_times(1, 95 * second, 1, true));
        assert!(!from.covers_times(1, 89 * second, 4_999 * second, true));
        assert!(from.covers_times(1, 900_000 * second, 4_991 * second, false));
        assert!(!from.covers_times(1, 95 * second, 4_989 * second, false));
        let from = From { since: Since::Seq(7), ..from };
        assert!(from.covers_times(7, 0, 0, true) && !from.covers_times(6, 0, 0, true));
    }
}
