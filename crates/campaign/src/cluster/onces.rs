//! What claimants run once: each succeeds at most once without a mark, its attempts are told in order, and all hear the same of its end.

use std::collections::{BTreeMap, BTreeSet};

use crate::tenures::Blind;

/// So often is tried what is to be done once.
const MOST: u64 = 3;

#[derive(Debug, Default)]
struct Once {
    /// The last attempt that has begun: its number and token.
    begun: Option<(u64, u64)>,
    /// It has not been told that another had been begun before, and has come to its end.
    unmarked: u64,
    /// Some attempt has come to its end.
    succeeded: bool,
    /// Tokens of attempts that failed, or were lost.
    ended_badly: BTreeSet<u64>,
    /// What was heard of it.
    settled: Option<String>,
    /// Not all that was written counts.
    is_blind: bool,
}

/// What was found in the file so far.
#[derive(Debug, Default)]
pub struct Onces {
    taken: usize,
    onces: BTreeMap<String, Once>,
    /// Only what was written since then counts.
    since: f64,
    /// Tokens of attempts that were not asked for yet, and whose they are.
    pub fresh: BTreeMap<u64, String>,
    /// How often, by what.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Onces {
    /// What was before this time is another history.
    pub fn begin_anew(&mut self, since: f64) {
        self.since = since;
        self.onces.clear();
        self.fresh.clear();
    }

    /// What was heard of each that is settled: `done`, or `failed` and how.
    pub fn settled(&self) -> impl Iterator<Item = (&String, &String)> {
        self.onces.iter().filter_map(|(key, once)| Some((key, once.settled.as_ref()?)))
    }

    /// Takes in what is new in the file. What is wrong.
    pub fn take(&mut self, text: &str, blind: &[Blind]) -> Vec<String> {
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        let mut wrong = Vec::new();
        for line in text[self.taken..whole].lines() {
            let parts: Vec<&str> = line.splitn(6, ' ').collect();
            let parsed = match parts[..] {
                [what, key, token, by, time, mark] => token
                    .parse()
                    .ok()
                    .zip(time.parse().ok())
                    .map(|(token, time)| (what, key, token, by, time, mark)),
                _ => None,
            };
            let Some((what, key, token, by, time, mark)) = parsed else {
                wrong.push(format!("{line:?} is no line of a once"));
                continue;
            };
            let at = |b: &&Blind| (b.from..=b.to).contains(&time);
            if time < self.since || blind.iter().filter(at).any(|b| b.host.is_none()) {
                // It may be of either history.
                self.onces.entry(key.to_owned()).or_default().is_blind = true;
                continue;
            }
            // Who stood still between what it was told and its line writes that in another order.
            let host = by.split('/').next().unwrap_or(by);
            if blind.iter().filter(at).any(|b| b.host.as_deref() == Some(host)) {
                self.onces.entry(key.to_owned()).or_default().is_blind = true;
            }
            if let Err(why) = self.line(what, key, token, by, mark) {
                wrong.push(format!("once {key}: {why}"));
            }
        }
        self.taken = whole;
        wrong
    }

    fn line(&mut self, what: &str, key: &str, token: u64, by: &str, mark: &str) -> Result<(), String> {
        let once = self.onces.entry(key.to_owned()).or_default();
        let (number, last) = mark.split_once(' ').unwrap_or((mark, "-"));
        match what {
            "begins" => {
                let number: u64 = number.parse().map_err(|_| format!("{mark:?} is no attempt"))?;
                *self.counts.entry("attempts of onces").or_default() += 1;
                self.fresh.insert(token, by.to_owned());
                if number == 0 || number > MOST || (number > 1) != (last != "-") {
                    return Err(format!("{by} is told attempt {number}, and of the one before: {last}"));
                }
                if once.is_blind {
                    return Ok(());
                }
                if let Some(how) = &once.settled {
                    return Err(format!("{by} begins attempt {number}, and it was settled: {how}"));
                }
                let before = once.begun.replace((number, token));
                if let Some((n, t)) = before {
                    if n >= number || t >= token {
                        return Err(format!(
                            "{by} begins attempt {number} with token {token}, after attempt {n} with {t}"
                        ));
                    }
                    // Of those between, nobody was told.
                    if last == "failed" && n + 1 == number && !once.ended_badly.contains(&t) {
                        return Err(format!("{by} is told that attempt {n} had failed, and it had not"));
                    }
                }
            }
            "succeeds" => {
                *self.counts.entry("attempts that succeeded").or_default() += 1;
                once.succeeded = true;
                once.unmarked += u64::from(last == "-");
                if once.unmarked > 1 {
                    return Err(format!("{by} has done again what was done, and was not told"));
                }
            }
            "fails" | "loses" => {
                *self.counts.entry("attempts that failed or were lost").or_default() += 1;
                once.ended_badly.insert(token);
            }
            "hears" => {
                *self.counts.entry("times a once was heard to be settled").or_default() += 1;
                if number == "done" && once.begun.is_some() && !once.succeeded && !once.is_blind {
                    return Err(format!("{by} hears that it is done, and nobody has done it"));
                }
                if number == "failed" && !last.starts_with(&format!("{MOST} ")) {
                    return Err(format!("{by} hears that it has failed: {last}"));
                }
                let before = once.settled.get_or_insert_with(|| mark.to_owned());
                if before != mark {
                    return Err(format!("{by} hears {mark}, and another had heard {before}"));
                }
            }
            other => return Err(format!("{other:?} is nothing that a claimant does")),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrong(text: &str) -> usize {
        Onces::default().take(text, &[]).len()
    }

    #[test]
    fn each_succeeds_once_or_is_marked() {
        let first = "begins k 5 a/1 1.0 1 -\nsucceeds k 5 a/1 1.1 1 -\n";
        assert_eq!(wrong(&format!("{first}hears k 0 a/1 1.2 done\nhears k 0 b/1 1.3 done\n")), 0);
        assert_eq!(wrong(&format!("{first}begins k 9 b/1 2.0 2 lost\nsucceeds k 9 b/1 2.1 2 lost\n")), 0);
        for (what, more) in [
            ("not told", "begins k 9 b/1 2.0 2 -\n"),
            ("the same attempt", "begins k 9 b/1 2.0 1 -\n"),
            ("a smaller token", "begins k 4 b/1 2.0 2 lost\n"),
            ("it had not failed", "begins k 9 b/1 2.0 2 failed\n"),
            ("a fourth attempt", "begins k 9 b/1 2.0 4 lost\n"),
            ("after it was settled", "hears k 0 b/1 2.0 done\nbegins k 9 b/1 2.0 2 lost\n"),
            ("two ends", "hears k 0 b/1 2.0 done\nhears k 0 a/1 2.0 failed 3 lost\n"),
            ("too few attempts", "hears k 0 a/1 2.0 failed 2 lost\n"),
            ("nonsense", "nonsense\n"),
        ] {
            assert_eq!(wrong(&format!("{first}{more}")), 1, "{what}");
        }
        assert_eq!(wrong("begins k 5 a/1 1.0 1 -\nhears k 0 b/1 1.2 done\n"), 1, "nobody has done it");
        assert_eq!(wrong(&format!("{first}succeeds k 5 a/1 1.1 1 -\n")), 1);
    }
}
