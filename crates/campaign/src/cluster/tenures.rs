//! Whoever leads a role appends lines to a file that all hosts share: at most one does so at any instant.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// In the campaign's folder.
pub const FILE: &str = "tenures";

/// What runs while a process leads: each line has its token, its host and the time.
pub const SCRIPT: &str =
    r#"while echo "$HEADCOUNT_LEADER_TOKEN $HEADCOUNT_HOST $EPOCHREALTIME" >> "$1"; do sleep 0.04; done"#;

/// A time in which lines prove nothing: of this host, or of all.
#[derive(Clone, Debug)]
pub struct Blind {
    /// `None`: all hosts.
    pub host: Option<String>,
    /// Since 1970.
    pub from: f64,
    /// The same.
    pub to: f64,
    /// What was before is another history: tokens may begin anew.
    pub is_anew: bool,
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

/// What was found in the file so far.
#[derive(Debug, Default)]
pub struct Tenures {
    taken: usize,
    greatest: u64,
    of: String,
    /// When the last line that counts was written.
    last: f64,
    /// All tokens.
    pub tokens: BTreeSet<u64>,
    /// How many lines were compared.
    pub lines: u64,
}

impl Tenures {
    /// Takes in what is new in the file. What is wrong, and whose token was not its own any more.
    pub fn take(&mut self, text: &str, blind: &[Blind]) -> Vec<(String, u64)> {
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut wrong = Vec::new();
        for line in text[self.taken..whole].lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let [token, host, time] = parts[..] else {
                wrong.push((format!("{line:?} is no line of a leader"), 0));
                continue;
            };
            let (Ok(token), Ok(time)) = (token.parse::<u64>(), time.parse::<f64>()) else {
                wrong.push((format!("{line:?} is no line of a leader"), 0));
                continue;
            };
            if blind.iter().any(|b| b.is_anew && self.last < b.to && b.to <= time) {
                (self.greatest, self.of) = (0, String::new());
            }
            if blind
                .iter()
                .any(|b| (b.from..=b.to).contains(&time) && b.host.as_ref().is_none_or(|h| h == host))
            {
                continue;
            }
            (self.lines, self.last) = (self.lines + 1, time);
            self.tokens.insert(token);
            if token < self.greatest {
                let text = format!(
                    "{host} leads with token {token} at {time:.3}, after {} had led with {}",
                    self.of, self.greatest
                );
                wrong.push((text, token));
            } else if token == self.greatest && self.of != host {
                wrong.push((format!("{host} and {} lead with one token, {token}", self.of), 0));
            }
            if token > self.greatest {
                (self.greatest, self.of) = (token, host.to_owned());
            }
        }
        self.taken = whole;
        wrong
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str, blind: &[Blind]) -> usize {
        Tenures::default().take(text, blind).len()
    }

    #[test]
    fn two_that_lead_at_once_are_found() {
        assert_eq!(wrong("5 a 1.0\n5 a 1.1\n7 b 2.0\n9 a 3.0\n9 a", &[]), 0);
        assert_eq!(wrong("5 a 1.0\n7 b 1.1\n5 a 1.2\n", &[]), 1);
        assert_eq!(wrong("5 a 1.0\n5 b 1.1\n", &[]), 1);
        assert_eq!(wrong("nonsense\n", &[]), 1);
    }

    #[test]
    fn one_that_stood_still_and_an_etcd_that_was_set_back_prove_nothing() {
        let still = Blind { host: Some("a".into()), from: 0.9, to: 1.3, is_anew: false };
        assert_eq!(wrong("5 a 0.5\n7 b 1.1\n5 a 1.2\n", std::slice::from_ref(&still)), 0);
        assert_eq!(wrong("5 a 0.5\n7 b 1.1\n5 a 1.4\n", &[still]), 1);
        let back = Blind { host: None, from: 1.0, to: 2.0, is_anew: true };
        assert_eq!(wrong("50 a 0.5\n50 a 1.5\n7 b 2.1\n", std::slice::from_ref(&back)), 0);
        assert_eq!(wrong("50 a 0.5\n7 b 2.1\n6 a 2.2\n", &[back]), 1);
    }
}
