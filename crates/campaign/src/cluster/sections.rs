//! Whoever has the claimants' role or lock writes lines with its token: of two tokens, nobody looked at the smaller one and still had it
//! when somebody had the greater one. By the times at which they looked, so that a process that stood still between its look and
//! its line proves nothing, and one that did not look again is found.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::tenures::Blind;

/// How late a process may come to look at its clock, on a loaded machine, since it wrote its last line.
const LATE: f64 = 0.5;

/// What is wrong, and whose token was not its own any more.
#[derive(Debug, PartialEq, Eq)]
pub struct Wrong {
    /// For people.
    pub text: String,
    /// Of the one that was too late.
    pub token: u64,
}

#[derive(Debug)]
struct Section {
    by: String,
    first: f64,
    last: f64,
    /// By the clock of its host that goes on while it is suspended.
    boot: f64,
}

/// What was found in a file so far.
#[derive(Debug)]
pub struct Sections {
    what: &'static str,
    /// So long after its last look a process has nothing more.
    lasts: Duration,
    taken: usize,
    sections: BTreeMap<u64, Section>,
    greatest: u64,
    /// Only what was looked at since then counts.
    since: f64,
    /// Of these it was said.
    said: BTreeSet<u64>,
    /// Tokens that were not asked for yet, and whose they are.
    pub fresh: BTreeMap<u64, String>,
    /// How many lines were compared.
    pub lines: u64,
    /// How many tokens there were.
    pub tokens: u64,
    /// Lines that came after those of a greater token, which gives them away.
    pub late: u64,
}

impl Sections {
    /// Before anything is known.
    pub fn new(what: &'static str, ttl: Duration) -> Sections {
        Sections {
            what,
            lasts: ttl * 4 / 5,
            taken: 0,
            sections: BTreeMap::new(),
            greatest: 0,
            since: 0.0,
            said: BTreeSet::new(),
            fresh: BTreeMap::new(),
            lines: 0,
            tokens: 0,
            late: 0,
        }
    }

    /// What was before this time is another history.
    pub fn begin_anew(&mut self, since: f64) {
        self.since = since;
        self.sections.clear();
        self.fresh.clear();
        self.greatest = 0;
    }

    /// Takes in what is new in the file. What is wrong. `blind`: when etcd was set back.
    pub fn take(&mut self, text: &str, blind: &[Blind]) -> Vec<Wrong> {
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut wrong = Vec::new();
        for line in text[self.taken..whole].lines() {
            let parts: Vec<&str> = line.split(' ').collect();
            let parsed = match parts[..] {
                [token, by, time, boot] => token
                    .parse::<u64>()
                    .ok()
                    .zip(time.parse().ok())
                    .zip(boot.parse().ok())
                    .map(|found| (by, found)),
                _ => None,
            };
            let Some((by, ((token, time), boot))) = parsed else {
                wrong.push(Wrong { text: format!("{line:?} is no line of a claimant"), token: 0 });
                continue;
            };
            if time < self.since || blind.iter().any(|b| b.host.is_none() && (b.from..=b.to).contains(&time))
            {
                continue;
            }
            self.lines += 1;
            self.late += u64::from(token < self.greatest);
            self.greatest = self.greatest.max(token);
            // Once for each.
            wrong.extend(self.line(token, by, time, boot).filter(|_| self.said.insert(token)));
        }
        self.taken = whole;
        wrong
    }

    fn line(&mut self, token: u64, by: &str, time: f64, boot: f64) -> Option<Wrong> {
        let what = self.what;
        let wrong = |text: String, token| Some(Wrong { text: format!("{what}: {text}"), token });
        let newer = self.sections.range(token + 1..).find(|(_, other)| other.first < time);
        if let Some((greater, other)) = newer {
            return wrong(
                format!(
                    "{by} still had token {token} at {time:.3}, when {} had {greater} since {:.3}",
                    other.by, other.first
                ),
                token,
            );
        }
        let older = self.sections.range(..token).rev().find(|(_, other)| other.last > time);
        if let Some((smaller, other)) = older {
            return wrong(
                format!(
                    "{} still had token {smaller} at {:.3}, when {by} had {token} at {time:.3}",
                    other.by, other.last
                ),
                *smaller,
            );
        }
        let Some(section) = self.sections.get_mut(&token) else {
            self.tokens += 1;
            self.fresh.insert(token, by.to_owned());
            self.sections.insert(token, Section { by: by.to_owned(), first: time, last: time, boot });
            return None;
        };
        if section.by != by {
            return wrong(format!("{by} and {} have one token, {token}", section.by), 0);
        }
        let passed = boot - section.boot;
        section.last = section.last.max(time);
        section.boot = boot;
        if passed > self.lasts.as_secs_f64() + LATE {
            return wrong(
                format!("{by} went on with token {token} after its clock had gone on by {passed:.3} s"),
                0,
            );
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str, blind: &[Blind]) -> usize {
        Sections::new("lock", Duration::from_secs(2)).take(text, blind).len()
    }

    #[test]
    fn two_that_have_it_at_once_are_found() {
        assert_eq!(wrong("5 a/1 1.0 1.0\n5 a/1 1.1 1.1\n7 b/1 2.0 8.0\n9 a/1 3.0 3.0\n9 a", &[]), 0);
        assert_eq!(wrong("5 a/1 1.0 1.0\n7 b/1 1.1 9.0\n5 a/1 1.2 1.2\n", &[]), 1);
        assert_eq!(wrong("7 b/1 1.1 9.0\n5 a/1 1.2 1.2\n", &[]), 1);
        assert_eq!(wrong("5 a/1 1.2 1.2\n7 b/1 1.1 9.0\n", &[]), 1);
        assert_eq!(wrong("5 a/1 1.0 1.0\n5 a/2 1.1 1.1\n", &[]), 1);
        assert_eq!(wrong("nonsense\n", &[]), 1);
    }

    #[test]
    fn a_line_that_comes_late_proves_nothing_and_one_after_a_suspend_does() {
        assert_eq!(wrong("5 a/1 1.0 1.0\n7 b/1 1.5 9.0\n5 a/1 1.2 1.2\n", &[]), 0);
        assert_eq!(wrong("5 a/1 1.0 1.0\n5 a/1 1.2 61.0\n", &[]), 1);
        let back = Blind { host: None, from: 1.0, to: 2.0, is_anew: true };
        assert_eq!(wrong("50 a/1 1.5 1.0\n7 b/1 2.1 1.0\n", std::slice::from_ref(&back)), 0);
    }
}
