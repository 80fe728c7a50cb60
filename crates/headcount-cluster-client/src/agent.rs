//! What passes between a [`Client`] and the agent: how the connection comes and goes, and what each message means for what is had.

use std::time::{Duration, UNIX_EPOCH};

use crate::connection::Connection;
use crate::protocol::{LONGEST_LINE, Message, PATH, Request, UPGRADE};
use crate::{
    Client, Event, FIRST_PAUSE_MS, Held, LATE_MS, LONGEST_PAUSE_MS, Lock, PATIENCE_MS, WhoRuns, boot_ms,
};

impl Client {
    pub(super) fn connect(&mut self, now: u64) {
        let request = format!(
            "GET {PATH} HTTP/1.1\r\nHost: agent\r\nConnection: Upgrade\r\nUpgrade: {UPGRADE}\r\n\r\n"
        );
        match Connection::open(&self.socket, request, "101", LONGEST_LINE) {
            Ok(connection) => {
                (self.connection, self.is_welcome) = (Some(connection), false);
                (self.asked_at, self.give_up_at) = (now, now + PATIENCE_MS);
            }
            Err(error) => self.disconnect(&error.to_string()),
        }
    }

    pub(super) fn disconnect(&mut self, why: &str) {
        (self.connection, self.is_welcome) = (None, false);
        self.leaving.clear();
        self.connect_at = boot_ms() + self.pause;
        self.pause = (self.pause * 2).min(LONGEST_PAUSE_MS);
        let why = format!("the agent at {}: {why}", self.socket.display());
        self.lose_all(&why, false);
        if !std::mem::replace(&mut self.has_complained, true) {
            self.events.push_back(Event::Disconnected { why });
        }
    }

    /// `tell`: the agent may still think that this process has it.
    pub(super) fn lose_all(&mut self, why: &str, tell: bool) {
        for (held, token) in std::mem::take(&mut self.held) {
            let why = why.to_owned();
            match held {
                Held::Role(role) => {
                    if tell {
                        self.ask_to_leave(&role);
                        self.ask(&Request::Stand { role: role.clone() });
                    }
                    self.events.push_back(Event::Lost { role, why });
                }
                Held::Lock(id) => {
                    self.locks.remove(&id);
                    if tell {
                        self.ask(&Request::Unlock { id });
                    }
                    self.events.push_back(Event::LockLost { id, why });
                }
                Held::Run(key) => {
                    if tell {
                        self.ask(&Request::End { key: key.clone(), token, ok: false, late: true });
                    }
                    self.events.push_back(Event::RunLost { key, why });
                }
            }
        }
    }

    pub(super) fn lose_what_is_over(&mut self, now: u64) {
        if !self.held.is_empty() && now >= self.deadline {
            self.lose_all("the agent has not confirmed it in time", true);
        }
    }

    pub(super) fn waited_for(&self) -> impl Iterator<Item = (u64, &Lock)> {
        let waits = |id: &u64| !self.held.contains_key(&Held::Lock(*id));
        self.locks.iter().filter(move |(id, _)| waits(id)).map(|(id, lock)| (*id, lock))
    }

    /// When it is not waited for any more. The agent sees to it while there is one, unless it stands still.
    pub(super) fn over_at(&self, lock: &Lock) -> Option<u64> {
        let late = if self.is_welcome { LATE_MS } else { 0 };
        lock.limit.map(|limit| limit.saturating_add(late))
    }

    pub(super) fn time_out(&mut self, now: u64) {
        let over: Vec<u64> = self
            .waited_for()
            .filter(|(_, lock)| self.over_at(lock).is_some_and(|at| at <= now))
            .map(|(id, _)| id)
            .collect();
        for id in over {
            self.locks.remove(&id);
            // It would have it when the agent goes on.
            self.ask(&Request::Unlock { id });
            let why = format!("timed out: the agent at {} does not answer", self.socket.display());
            self.events.push_back(Event::NotLocked { id, why });
        }
    }

    pub(super) fn ask(&mut self, request: &Request) {
        if let Some(connection) = self.connection.as_mut().filter(|_| self.is_welcome) {
            connection.send(request);
        }
    }

    pub(super) fn welcome(&mut self, cluster: String, host: String, agent_now: u64) {
        let now = boot_ms();
        // It looked at its clock after it was asked and before this, if that is ours. Otherwise it may be behind by as long as its
        // answer was on its way: so it is compared with when it was asked.
        let is_other = agent_now + 1 < self.asked_at || agent_now > now;
        // Milliseconds since a boot: far below what an i64 holds, unless it is no agent.
        let ms = |time: u64| i64::try_from(time).unwrap_or(i64::MAX);
        self.offset = if is_other { ms(self.asked_at).saturating_sub(ms(agent_now)) } else { 0 };
        (self.is_welcome, self.has_complained, self.pause) = (true, false, FIRST_PAUSE_MS);
        self.events.push_back(Event::Connected { cluster, host });
        for role in self.roles.clone() {
            self.ask(&Request::Stand { role });
        }
        for key in self.onces.clone() {
            self.ask(&Request::Once { key });
        }
        let locks: Vec<Request> = self
            .waited_for()
            .map(|(id, lock)| {
                let timeout = lock.limit.map(|limit| limit.saturating_sub(now));
                Request::Lock { id, name: lock.name.clone(), timeout }
            })
            .collect();
        locks.iter().for_each(|request| self.ask(request));
    }

    pub(super) fn has_until(&mut self, held: Option<(Held, u64)>, deadline: u64) {
        let deadline = deadline.saturating_add_signed(self.offset);
        self.deadline = if self.held.is_empty() { deadline } else { deadline.max(self.deadline) };
        self.held.extend(held);
        self.ask(&Request::Ack);
    }

    pub(super) fn take(&mut self, message: Message) {
        let event = match message {
            Message::Welcome { cluster, host, ttl, now, .. } => {
                self.ttl = Duration::from_millis(ttl);
                return self.welcome(cluster, host, now);
            }
            Message::Renewed { deadline } => return self.has_until(None, deadline),
            Message::Elected { role, token, deadline } => {
                // It was left before this came.
                if !self.roles.contains(&role) || self.leaving.contains_key(&role) {
                    return self.ask(&Request::Ack);
                }
                self.has_until(Some((Held::Role(role.clone()), token)), deadline);
                Event::Elected { role, token }
            }
            Message::Locked { id, token, deadline, .. } => {
                if !self.locks.contains_key(&id) {
                    return self.ask(&Request::Ack);
                }
                self.has_until(Some((Held::Lock(id), token)), deadline);
                Event::Locked { id, token }
            }
            Message::Run { key, attempt, last, token, deadline } => {
                self.has_until(Some((Held::Run(key.clone()), token)), deadline);
                Event::Run { key, attempt, last, token }
            }
            Message::Running { key, host, pid, process, since } => {
                let since = since.and_then(|ms| UNIX_EPOCH.checked_add(Duration::from_millis(ms)));
                Event::Running { key, by: WhoRuns { host, pid, process, since } }
            }
            Message::Lost { role, why } => match self.held.remove(&Held::Role(role.clone())) {
                Some(_) => Event::Lost { role, why },
                None => return,
            },
            Message::GiveUp { role } => Event::GiveUp { role },
            Message::NotLocked { id, why, .. } => match self.locks.remove(&id) {
                Some(_) => Event::NotLocked { id, why },
                None => return,
            },
            Message::LockLost { id, why, .. } => match self.held.remove(&Held::Lock(id)) {
                Some(_) => {
                    self.locks.remove(&id);
                    Event::LockLost { id, why }
                }
                None => return,
            },
            Message::RunLost { key, why } => match self.held.remove(&Held::Run(key.clone())) {
                Some(_) => Event::RunLost { key, why },
                None => return,
            },
            Message::Done { key } => {
                self.onces.retain(|other| *other != key);
                Event::Done { key }
            }
            Message::Failed { key, attempts, last } => {
                self.onces.retain(|other| *other != key);
                Event::Failed { key, attempts, last }
            }
            Message::Away { why } => Event::Away { why },
            Message::Back => Event::Back,
            Message::Error { error } => Event::Error { error },
            Message::Left { role } => {
                if let Some(count) = self.leaving.get_mut(&role) {
                    *count -= 1;
                    if *count == 0 {
                        self.leaving.remove(&role);
                    }
                }
                return;
            }
            Message::Unlocked { .. } => return,
        };
        self.events.push_back(event);
    }
}
