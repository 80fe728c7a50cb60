//! What is new is taken in and judged: which of it is wrong, and which is etcd's doing.

use std::time::{Instant, SystemTime};

use crate::revoked::{Members, Verdict};
use crate::{Campaign, recorder, sections, tenures};

impl Campaign {
    /// etcd's history so far.
    pub fn take(&mut self) {
        let history = self.recorder.history();
        if let Some(gap) = &history.gap {
            self.violations.push(format!("the campaign could not follow etcd: {gap}"));
        }
        let (fleet, stalls) = (&self.fleet, self.stalls.all());
        self.checker.take(&history, |host| {
            let number = (0..fleet.hosts.len()).find(|&n| fleet.name(n) == host);
            let done = number.map_or(&[][..], |n| &fleet.disturbed[n]);
            stalls.iter().chain(done).copied().collect()
        });
        drop(history);
        self.violations.append(&mut self.checker.violations);
        for early in std::mem::take(&mut self.checker.early) {
            self.judge(early.text, early.lease, early.at);
        }
    }

    fn members(&mut self) -> &Members {
        self.members.read(self.fleet.members.iter().map(testkit::net::Member::folder));
        &self.members
    }

    /// A lease has ended too early. Only what is proved to be etcd's doing is not a violation.
    fn judge(&mut self, text: String, lease: i64, at: Instant) {
        match self.members().verdict(lease, SystemTime::now() - at.elapsed()) {
            Verdict::Known(proof) => {
                let text = format!("{text}; lease {lease:x}: {proof}");
                self.note(&format!("known (etcd 15247): {text}"));
                self.known.push(text);
            }
            Verdict::Open(what) => self.violations.push(format!("{text}; lease {lease:x}: {what}")),
        }
    }

    /// Two had the same. Was the lease of the first one ended while it was its own?
    fn judge_token(&mut self, text: String, token: u64) {
        let claim = i64::try_from(token).ok().and_then(|token| self.checker.claims.made.get(&token)).cloned();
        let Some(claim) = claim else { return self.violations.push(text) };
        let gone = {
            let history = self.recorder.history();
            let of_it =
                |record: &&recorder::Record| record.value.is_none() && record.key.starts_with(&claim.what);
            // The first that went after it had come, of those that may have been its own.
            let gone = history.records.iter().filter(of_it).find(|record| {
                record.key.contains(&format!("{:x}", claim.lease)) && record.revision > token as i64
            });
            gone.map(|record| record.at)
        };
        match gone {
            Some(at) => self.judge(text, claim.lease, at),
            None => self.violations.push(format!("{text}; it is there")),
        }
    }

    /// Who has led so far.
    pub fn take_tenures(&mut self) {
        let folder = self.fleet.folder().to_owned();
        let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap_or_default();
        let wrong = self.tenures.take(&read(tenures::FILE), &self.blind);
        let late: Vec<sections::Wrong> = ["claims.roles", "claims.locks"]
            .iter()
            .zip(&mut self.sections)
            .flat_map(|(name, sections)| sections.take(&read(name), &self.blind))
            .collect();
        self.violations.extend(self.onces.take(&read("claims.onces"), &self.blind));
        for (text, token) in wrong {
            self.judge_token(text, token);
        }
        for wrong in late {
            self.judge_token(wrong.text, wrong.token);
        }
    }

    /// Whatever claimants wrote under a token, etcd has made that for their host; and what they have heard of onces is so.
    pub fn compare_claims(&mut self) {
        let begun = self.recorder.history().begun;
        let fresh =
            self.sections.iter_mut().map(|sections| &mut sections.fresh).chain([&mut self.onces.fresh]);
        let names = ["roles/claimant", "locks/claimant", "running"];
        let mut compared = 0;
        for (tokens, name) in fresh.zip(names) {
            for (token, by) in std::mem::take(tokens) {
                let token = i64::try_from(token).unwrap_or(0);
                if token <= begun {
                    continue;
                }
                compared += 1;
                let host = by.split('/').next().unwrap_or_default();
                match self.checker.claims.made.get(&token) {
                    Some(made) if made.what == name && made.host == host => {}
                    made => self
                        .violations
                        .push(format!("{by} had {name} with token {token}, and etcd has {made:?}")),
                }
            }
        }
        self.tally.add("tokens compared with etcd", compared);
        for (key, how) in self.onces.settled() {
            let state = self.checker.claims.state(key);
            if state != how.split(' ').next() {
                self.violations.push(format!("it was heard of once {key}: {how}; and etcd has {state:?}"));
            }
        }
    }
}
