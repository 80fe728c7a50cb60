//! What this process has and wants, and what it has not been told yet.

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::BorrowedFd;
use std::time::Duration;

use headcount_border::Failure;
use headcount_cluster_client::{Client, Event, WhoRuns};

use crate::border::{away, not_found};

/// So many messages are kept for one who does not take them.
const MOST_NOTICES: usize = 64;

/// `level`: good to know.
pub const NOTICE: u32 = 1;
/// `level`: something is less than was asked for.
pub const WARNING: u32 = 2;
/// `level`: something failed that nobody was there to be told.
pub const ERROR: u32 = 3;

pub(crate) struct Session {
    pub(crate) client: Client,
    pub(crate) roles: BTreeMap<String, Role>,
    pub(crate) onces: BTreeMap<String, Once>,
    pub(crate) locks: BTreeMap<u64, Lock>,
    pub(crate) notices: VecDeque<(u32, String)>,
    /// Cluster and host, from the first answer on.
    pub(crate) names: Option<(String, String)>,
    /// Why the agent does not answer, if so.
    trouble: Option<String>,
    /// Why etcd does not answer the agent, if so.
    etcd: Option<String>,
}

/// What has become of a role.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Elected,
    GiveUp,
    Lost,
}

#[derive(Default)]
pub(crate) struct Role {
    /// Not told yet.
    pub(crate) changes: VecDeque<Change>,
    /// The agent ends: there is nobody to stand before until the next one answers.
    pub(crate) agent_ends: bool,
    waits_for_agent: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) attempt: u32,
    pub(crate) last: Option<String>,
    pub(crate) token: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Done,
    Failed { attempts: u32, last: String },
}

#[derive(Default)]
pub(crate) struct Once {
    /// It is for this process to do it, and it was not told yet.
    pub(crate) turn: Option<Turn>,
    /// Another process that is at it.
    pub(crate) by: Option<WhoRuns>,
    /// The token with which it is at it.
    pub(crate) running: Option<u64>,
    /// Why that was lost.
    pub(crate) lost: Option<String>,
    pub(crate) settled: Option<Settled>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Lock {
    Waiting,
    Held,
    NotHad(String),
    Lost(String),
}

impl Session {
    pub(crate) fn new(client: Client) -> Session {
        Session {
            client,
            roles: BTreeMap::new(),
            onces: BTreeMap::new(),
            locks: BTreeMap::new(),
            notices: VecDeque::new(),
            names: None,
            trouble: None,
            etcd: None,
        }
    }

    /// Does what is due, without waiting. Whether something has happened.
    pub(crate) fn step(&mut self) -> bool {
        self.client.process();
        let mut has_happened = false;
        while let Some(event) = self.client.next_event() {
            has_happened = true;
            self.take(event);
        }
        has_happened
    }

    pub(crate) fn fd(&self) -> Option<(BorrowedFd<'_>, bool)> {
        self.client.fd()
    }

    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.client.timeout()
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.names.is_some() && self.trouble.is_none()
    }

    pub(crate) fn is_etcd_away(&self) -> bool {
        self.etcd.is_some()
    }

    /// What keeps all that is asked for from being answered, if so.
    pub(crate) fn trouble(&self, socket: &std::path::Path) -> Option<Failure> {
        match (&self.trouble, &self.names, &self.etcd) {
            (Some(why), ..) => Some(away(why)),
            (None, None, _) => Some(away(&format!("the agent at {} has not answered", socket.display()))),
            (None, Some(_), Some(why)) => {
                Some(Failure::new(crate::border::HEADCOUNT_CLUSTER_ERR_AWAY, why.clone()))
            }
            (None, Some(_), None) => None,
        }
    }

    pub(crate) fn role(&mut self, role: &str) -> Result<&mut Role, Failure> {
        let missing = || not_found(format!("this process does not stand for the role {role}"));
        self.roles.get_mut(role).ok_or_else(missing)
    }

    /// What it did as the leader has ended. It stands on.
    pub(crate) fn give_up(&mut self, role: &str) -> Result<(), Failure> {
        let of_role = self.role(role)?;
        of_role.changes.clear();
        let agent_ends = std::mem::take(&mut of_role.agent_ends);
        of_role.waits_for_agent = agent_ends;
        self.client.leave(role);
        if agent_ends { Ok(()) } else { self.stand(role) }
    }

    pub(crate) fn stand(&mut self, role: &str) -> Result<(), Failure> {
        self.client.stand(role).map_err(|error| Failure::invalid(error.to_string()))
    }

    pub(crate) fn note(&mut self, level: u32, text: String) {
        if self.notices.len() >= MOST_NOTICES {
            self.notices.pop_front();
        }
        self.notices.push_back((level, text));
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Connected { cluster, host } => {
                if self.trouble.take().is_some() {
                    self.note(NOTICE, "the agent answers again".to_owned());
                }
                self.names = Some((cluster, host));
                let waiting = self
                    .roles
                    .iter_mut()
                    .filter_map(|(role, of)| std::mem::take(&mut of.waits_for_agent).then(|| role.clone()));
                for role in waiting.collect::<Vec<_>>() {
                    // It is a name, and was left.
                    if let Err(failure) = self.stand(&role) {
                        self.note(ERROR, failure.message);
                    }
                }
            }
            Event::Disconnected { why } => {
                self.etcd = None;
                // Another may be at it by the time that the agent answers.
                self.onces.values_mut().for_each(|once| once.by = None);
                self.note(WARNING, format!("{why}; trying again"));
                self.trouble = Some(why);
            }
            Event::Away { why } => {
                self.note(WARNING, why.clone());
                self.etcd = Some(why);
            }
            Event::Back => {
                self.etcd = None;
                self.note(NOTICE, "etcd answers again".to_owned());
            }
            Event::Elected { role, .. } => self.changed(&role, Change::Elected),
            Event::GiveUp { role } => {
                if let Some(of) = self.roles.get_mut(&role) {
                    of.agent_ends = true;
                }
                self.changed(&role, Change::GiveUp);
            }
            Event::Lost { role, why } => {
                self.note(WARNING, format!("lost the role {role}: {why}"));
                self.changed(&role, Change::Lost);
            }
            Event::Locked { id, .. } => drop(self.locks.insert(id, Lock::Held)),
            Event::NotLocked { id, why } => drop(self.locks.insert(id, Lock::NotHad(why))),
            Event::LockLost { id, why } => {
                self.note(WARNING, format!("lost a lock: {why}"));
                self.locks.insert(id, Lock::Lost(why));
            }
            Event::Run { key, attempt, last, token } => {
                let once = self.onces.entry(key).or_default();
                (once.turn, once.by) = (Some(Turn { attempt, last, token }), None);
            }
            Event::Running { key, by } => {
                if let Some(once) = self.onces.get_mut(&key) {
                    once.by = Some(by);
                }
            }
            Event::RunLost { key, why } => {
                let once = self.onces.entry(key).or_default();
                once.turn = None;
                if once.running.take().is_some() {
                    once.lost = Some(why);
                }
            }
            Event::Done { key } => self.onces.entry(key).or_default().settled = Some(Settled::Done),
            Event::Failed { key, attempts, last } => {
                self.onces.entry(key).or_default().settled = Some(Settled::Failed { attempts, last });
            }
            Event::Error { error } => self.note(ERROR, error),
        }
    }

    /// A tenure that has ended before anybody was told of it was none.
    fn changed(&mut self, role: &str, change: Change) {
        let Some(of) = self.roles.get_mut(role) else { return };
        let began = of.changes.iter().rposition(|change| *change == Change::Elected);
        match (change, began) {
            (Change::Lost, Some(began)) => of.changes.truncate(began),
            _ => of.changes.push_back(change),
        }
        if change == Change::Lost {
            of.agent_ends = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        let mut session = Session::new(Client::new("/nowhere/agent.sock"));
        session.roles.insert("cron".into(), Role::default());
        session
    }

    fn elected() -> Event {
        Event::Elected { role: "cron".into(), token: 7 }
    }

    fn lost() -> Event {
        Event::Lost { role: "cron".into(), why: "x".into() }
    }

    #[test]
    fn a_tenure_of_which_nobody_was_told_is_none() {
        let mut session = session();
        session.take(elected());
        session.take(lost());
        assert!(session.roles["cron"].changes.is_empty());
        session.take(elected());
        assert_eq!(session.role("cron").unwrap().changes.pop_front(), Some(Change::Elected));
        session.take(lost());
        session.take(elected());
        session.take(Event::GiveUp { role: "cron".into() });
        session.take(lost());
        assert_eq!(session.roles["cron"].changes, [Change::Lost]);
        assert_eq!(
            session.role("x").map(|_| ()).unwrap_err().code,
            crate::border::HEADCOUNT_CLUSTER_ERR_NOT_FOUND
        );
    }

    #[test]
    fn who_gives_up_to_an_agent_that_ends_stands_before_the_next_one() {
        let mut session = session();
        session.stand("cron").unwrap();
        session.take(Event::GiveUp { role: "cron".into() });
        session.give_up("cron").unwrap();
        // It has left: so it can stand.
        session.take(Event::Connected { cluster: "shop".into(), host: "a".into() });
        assert!(session.stand("cron").is_err(), "it stands already");
        session.give_up("cron").unwrap();
        assert!(session.stand("cron").is_err(), "at once, where no agent ends");
    }

    #[test]
    fn an_attempt_that_is_lost_is_told_to_who_is_at_it_alone() {
        let mut session = session();
        let run = || Event::Run { key: "k".into(), attempt: 1, last: None, token: 9 };
        session.take(run());
        session.take(Event::RunLost { key: "k".into(), why: "x".into() });
        assert!(session.onces["k"].turn.is_none() && session.onces["k"].lost.is_none());
        session.take(run());
        let once = session.onces.get_mut("k").unwrap();
        once.running = once.turn.take().map(|turn| turn.token);
        session.take(Event::RunLost { key: "k".into(), why: "x".into() });
        assert_eq!(session.onces["k"].lost.as_deref(), Some("x"));
    }

    #[test]
    fn who_is_at_it_is_known_as_long_as_it_is_not_this_process_s_turn_and_the_agent_answers() {
        let mut session = session();
        let running = |host: &str| {
            let by = WhoRuns { host: host.into(), pid: None, process: None, since: None };
            Event::Running { key: "k".into(), by }
        };
        session.onces.insert("k".into(), Once::default());
        let host = |session: &Session| session.onces["k"].by.as_ref().map(|by| by.host.clone());
        session.take(running("a"));
        session.take(running("b"));
        assert_eq!(host(&session).as_deref(), Some("b"));
        session.take(Event::Disconnected { why: "x".into() });
        assert_eq!(host(&session), None);
        session.take(running("a"));
        session.take(Event::Run { key: "k".into(), attempt: 2, last: None, token: 9 });
        assert_eq!(host(&session), None);
    }

    #[test]
    fn messages_that_nobody_takes_are_bounded() {
        let mut session = session();
        for n in 0..200 {
            session.note(NOTICE, n.to_string());
        }
        assert_eq!((session.notices.len(), session.notices[0].1.as_str()), (MOST_NOTICES, "136"));
    }

    #[test]
    fn what_keeps_answers_away_is_said() {
        let mut session = session();
        let socket = std::path::Path::new("/x/agent.sock");
        let text = |session: &Session| session.trouble(socket).map(|failure| failure.message);
        assert!(
            text(&session)
                .unwrap()
                .contains("the agent at /x/agent.sock has not answered. Does `headcount agent` run")
        );
        session.take(Event::Connected { cluster: "shop".into(), host: "a".into() });
        assert_eq!(text(&session), None);
        session.take(Event::Away { why: "etcd does not answer".into() });
        assert_eq!(text(&session).unwrap(), "etcd does not answer");
        session.take(Event::Disconnected { why: "the agent at /x/agent.sock: it refuses: no".into() });
        assert_eq!(text(&session).unwrap(), "the agent at /x/agent.sock: it refuses: no");
        assert!(!session.is_connected() && !session.is_etcd_away());
    }
}
