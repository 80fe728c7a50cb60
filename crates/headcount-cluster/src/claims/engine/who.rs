//! Who has what others wait for, as far as this host knows.

use headcount_cluster_client::protocol::Message;

use super::Engine;
use crate::claims::book::{Kind, SessionId, What};
use crate::claims::values::ClaimValue;

impl Engine {
    /// For people who have waited in vain.
    pub(super) fn who_has(&self, what: &What) -> String {
        match (self.holder(what), &self.trouble) {
            (Some(value), _) if self.book.holder(what).is_some() => {
                format!("{} has it since {}", value.who(), since(value))
            }
            (_, Some(trouble)) => trouble.to_string(),
            (Some(value), None) => format!("{} has it or is before it since {}", value.who(), since(value)),
            (None, None) => "nobody knows yet who has it".to_owned(),
        }
    }

    /// A process of this host, or whichever was seen last in etcd.
    fn holder(&self, what: &What) -> Option<&ClaimValue> {
        match self.book.holder(what) {
            Some(_) => self.signed.get(what).map(|(_, value)| value),
            None => self.seen.get(what),
        }
    }

    /// All who wait for their turn to run it hear who does.
    pub(super) fn tell_all_who_runs(&mut self, what: &What) {
        let waiters: Vec<SessionId> = self.book.waiters(what).collect();
        self.tell_who_runs(what, &waiters);
    }

    /// These hear who runs it, if that is known.
    pub(super) fn tell_who_runs(&mut self, what: &What, waiters: &[SessionId]) {
        let Some(by) = self.holder(what).filter(|_| what.kind == Kind::Once) else { return };
        let message = Message::Running {
            key: what.name.clone(),
            host: by.host.clone(),
            pid: by.pid,
            process: by.process.clone(),
            since: by.since.map(|since| (since * 1e3) as u64),
        };
        for waiter in waiters {
            self.tell(*waiter, message.clone());
        }
    }
}

fn since(value: &ClaimValue) -> String {
    value
        .since
        .map_or_else(|| "a moment ago".to_owned(), |since| headcount_report::timestamp((since * 1e9) as u64))
}
