//! What has roles, locks and onces for the processes of this host: carries out what the [`Book`] orders. It talks to etcd only while
//! somebody wants something, with a lease of its own: that of the host goes over to the agent's successor, and must not take with it
//! what processes have that the successor knows nothing of.

mod connection;
mod who;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use headcount_cluster_client::protocol::{Message, Request};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use connection::{Connection, next_ended};

use super::book::{Book, How, Kind, Order, SessionId, What};
use super::chase::{Chase, Report, Reports, free, sign};
use super::handle::{Claims, Command, Peer, Session};
use super::lease::{Lease, boot_ms};
use super::values::ClaimValue;
use crate::config::ClusterConfig;
use crate::keys::Keys;
use crate::now;
use crate::pace::{Backoff, Pace};
use crate::trouble::Trouble;
use crate::value::VERSION;

/// So many processes may be connected,
const MOST_SESSIONS: usize = 256;
/// and so much may be on its way to one that does not read.
const UNREAD: usize = 256;
/// How often something is begun, for long. Each is three writes at most.
const BEGUN_PER_SECOND: u32 = 20;
/// So long a lease is kept that nothing is under.
const IDLE: Duration = Duration::from_secs(60);
/// So long is waited, when the agent ends, until all have let go.
const ENDING: Duration = Duration::from_secs(3);

/// Something to be freed.
struct Free {
    attempt: u64,
    how: How,
    signed: ClaimValue,
    is_begun: bool,
}

pub(super) struct Engine {
    config: ClusterConfig,
    keys: Keys,
    inbox: mpsc::Receiver<Command>,
    commands: mpsc::WeakSender<Command>,
    reports: Reports,
    reported: mpsc::UnboundedReceiver<Report>,
    book: Book,
    peers: BTreeMap<SessionId, (Peer, mpsc::Sender<Message>)>,
    next_session: SessionId,
    lease: Option<Lease>,
    /// One that must not be used any more, and that etcd may still have.
    abandoned: Vec<i64>,
    connection: Option<Connection>,
    connecting: Option<JoinSet<()>>,
    next_connect: Instant,
    backoff: Backoff,
    pace: Pace,
    /// When something is begun that the bound has kept back.
    next_launch: Option<Instant>,
    trouble: Option<Trouble>,
    /// Attempts that a task is at, and what stops it.
    chased: BTreeMap<What, (u64, watch::Sender<bool>)>,
    /// How many connections there were.
    connections: u64,
    frees: BTreeMap<What, VecDeque<Free>>,
    /// Whom what is had is for, and its token.
    signed: BTreeMap<What, (u64, ClaimValue)>,
    tokens: BTreeMap<What, (u64, i64)>,
    /// Who was seen to have what this host waits for.
    seen: BTreeMap<What, ClaimValue>,
    timeouts: BTreeSet<(u64, SessionId, u64, u64)>,
    idle_since: Option<Instant>,
    ending: Option<(oneshot::Sender<()>, Instant)>,
}

impl Claims {
    /// Begins, in a task of its own, which ends with the last of these.
    #[must_use]
    pub fn begin(config: ClusterConfig) -> Claims {
        let (commands, inbox) = mpsc::channel(256);
        let claims = Claims::new(commands.clone(), &config);
        tokio::spawn(Engine::new(config, inbox, commands.downgrade()).run());
        claims
    }
}

impl Engine {
    fn new(
        config: ClusterConfig,
        inbox: mpsc::Receiver<Command>,
        commands: mpsc::WeakSender<Command>,
    ) -> Engine {
        let (reports, reported) = mpsc::unbounded_channel();
        Engine {
            keys: Keys::new(&config.prefix, &config.name),
            config,
            inbox,
            commands,
            reports,
            reported,
            book: Book::default(),
            peers: BTreeMap::new(),
            next_session: 1,
            lease: None,
            abandoned: Vec::new(),
            connection: None,
            connecting: None,
            next_connect: Instant::now(),
            backoff: Backoff::default(),
            pace: Pace::new(BEGUN_PER_SECOND, Instant::now()),
            next_launch: None,
            trouble: None,
            chased: BTreeMap::new(),
            connections: 0,
            frees: BTreeMap::new(),
            signed: BTreeMap::new(),
            tokens: BTreeMap::new(),
            seen: BTreeMap::new(),
            timeouts: BTreeSet::new(),
            idle_since: None,
            ending: None,
        }
    }

    pub async fn run(mut self) {
        loop {
            self.carry_out();
            self.launch();
            if self.is_over() {
                break;
            }
            let (tick, connect) = (self.next_look(), self.wants_connection().then_some(self.next_connect));
            tokio::select! {
                command = self.inbox.recv() => match command {
                    Some(command) => self.command(command),
                    None => break,
                },
                Some(report) = self.reported.recv() => self.report(report),
                ended = next_ended(&mut self.connection) => self.task_ended(ended),
                () = until(connect) => self.connect(),
                () = until(tick) => self.tick(),
            }
        }
        self.give_back().await;
    }

    fn wants_connection(&self) -> bool {
        let has_work = self.book.is_wanted() || !self.frees.is_empty();
        self.connection.is_none() && self.connecting.is_none() && has_work
    }

    /// When there is something to do though nothing happens.
    fn next_look(&self) -> Option<Instant> {
        let times = self.book.next_tick().into_iter().chain(self.timeouts.first().map(|(at, ..)| *at));
        let soonest =
            times.min().map(|at| Instant::now() + Duration::from_millis(at.saturating_sub(boot_ms())));
        let idle = self.idle_since.map(|since| since + IDLE);
        let ending = self.ending.as_ref().map(|(_, limit)| *limit);
        [soonest, idle, ending, self.next_launch].into_iter().flatten().min()
    }

    fn tick(&mut self) {
        let now = boot_ms();
        self.book.tick(now);
        while let Some(&(at, session, id, limit)) = self.timeouts.first().filter(|(at, ..)| *at <= now) {
            self.timeouts.remove(&(at, session, id, limit));
            if let Some(what) = self.book.waits_for(session, id) {
                let why = format!("timed out after {limit} ms: {}", self.who_has(&what));
                self.book.time_out(session, id, why);
            }
        }
        if self.idle_since.is_some_and(|since| since.elapsed() >= IDLE) {
            self.idle_since = None;
            self.let_go_of_the_lease();
        }
    }

    // What is asked -------------------------------------------------------------------------------------------------------

    fn command(&mut self, command: Command) {
        match command {
            Command::Enter(peer, answer) => {
                // Whoever asked has gone if it cannot be told.
                let _ = answer.send(self.enter(peer));
            }
            Command::Request(session, request) => {
                if let Err(error) = self.request(session, request) {
                    self.tell(session, Message::Error { error });
                }
            }
            Command::Refuse(session, error) => self.tell(session, Message::Error { error }),
            Command::Gone(session) => {
                self.forget(session);
                self.book.gone(session);
            }
            Command::Closed(session) => {
                self.forget(session);
                self.book.closed(session);
            }
            Command::End(done) => {
                self.book.end();
                self.ending = Some((done, Instant::now() + ENDING));
            }
        }
    }

    fn forget(&mut self, session: SessionId) {
        self.peers.remove(&session);
        self.timeouts.retain(|(_, of, ..)| *of != session);
    }

    fn enter(&mut self, peer: Peer) -> Option<Session> {
        if self.peers.len() >= MOST_SESSIONS || self.ending.is_some() {
            return None;
        }
        let commands = self.commands.upgrade()?;
        let (id, (out, messages)) = (self.next_session, mpsc::channel(UNREAD));
        self.next_session += 1;
        self.book.enter(id);
        if let Some(trouble) = &self.trouble {
            // It is empty.
            let _ = out.try_send(Message::Away { why: trouble.to_string() });
        }
        self.peers.insert(id, (peer, out));
        Some(Session { id, commands, messages })
    }

    fn request(&mut self, session: SessionId, request: Request) -> Result<(), String> {
        if !self.peers.contains_key(&session) {
            return Ok(());
        }
        // Nothing is given to anybody after the deadline, however late this process comes to look.
        self.book.tick(boot_ms());
        match request {
            Request::Stand { role } => self.book.want(session, What::new(Kind::Role, &role), 0),
            Request::Leave { role } => self.book.let_go(session, &What::new(Kind::Role, &role), How::LetGo),
            Request::Lock { id, name, timeout } => {
                self.book.want(session, What::new(Kind::Lock, &name), id)?;
                if let Some(limit) = timeout {
                    self.timeouts.insert((boot_ms().saturating_add(limit), session, id, limit));
                }
                Ok(())
            }
            Request::Unlock { id } => {
                self.timeouts.retain(|(_, of, number, _)| (*of, *number) != (session, id));
                self.book.unlock(session, id)
            }
            Request::Once { key } => {
                let what = What::new(Kind::Once, &key);
                self.book.want(session, what.clone(), 0)?;
                self.tell_who_runs(&what, &[session]);
                Ok(())
            }
            Request::End { key, token, ok, late } => {
                let what = What::new(Kind::Once, &key);
                let current = self.tokens.get(&what).and_then(|(_, token)| u64::try_from(*token).ok());
                // Of an attempt that was lost since, which nobody asks about any more.
                if current.is_some_and(|current| current != token) {
                    return Ok(());
                }
                let how = match (ok, late) {
                    (true, _) => How::LetGo,
                    (false, true) => How::Stalled,
                    (false, false) => How::Failed,
                };
                self.book.let_go(session, &what, how)
            }
            Request::Ack => {
                self.book.acked(session);
                Ok(())
            }
        }
    }

    fn tell(&mut self, session: SessionId, mut message: Message) {
        message.clean();
        let Some((_, out)) = self.peers.get(&session) else { return };
        // Of one whose connection has ended this is told right after.
        if let Err(mpsc::error::TrySendError::Full(_)) = out.try_send(message) {
            tracing::warn!("a process that does not read what it is told was disconnected");
            self.peers.remove(&session);
            self.book.closed(session);
        }
    }

    fn tell_all(&mut self, message: &Message) {
        let all: Vec<SessionId> = self.peers.keys().copied().collect();
        all.into_iter().for_each(|session| self.tell(session, message.clone()));
    }

    // What is ordered -----------------------------------------------------------------------------------------------------

    fn carry_out(&mut self) {
        loop {
            let orders = self.book.orders();
            if orders.is_empty() {
                break;
            }
            for order in orders {
                match order {
                    Order::Tell(session, message) => self.tell(session, message),
                    // `launch` sees to what is tried.
                    Order::Try(..) => {}
                    Order::Sign(what, attempt, session) => self.sign(what, attempt, session),
                    Order::Free(what, attempt, how) => {
                        self.tokens.remove(&what);
                        if let Some((_, stop)) = self.chased.get(&what) {
                            stop.send_replace(true);
                        }
                        let signed = self.signed.remove(&what).filter(|(of, _)| *of == attempt);
                        let signed = signed.map(|(_, value)| value).unwrap_or_default();
                        let free = Free { attempt, how, signed, is_begun: false };
                        self.frees.entry(what).or_default().push_back(free);
                    }
                    Order::Abandon => self.let_go_of_the_lease(),
                }
            }
        }
        // Who has what nobody here waits for any more is of no interest, and not known for long.
        let book = &self.book;
        self.seen.retain(|what, _| book.attempt_of(what).is_some());
        let is_idle = !self.book.is_wanted() && self.frees.is_empty() && self.lease.is_some();
        self.idle_since = if is_idle { self.idle_since.or_else(|| Some(Instant::now())) } else { None };
    }

    fn let_go_of_the_lease(&mut self) {
        if let Some(lease) = self.lease.take() {
            self.abandoned.push(lease.id);
        }
        // They are all under it.
        self.disconnect();
        self.frees.clear();
        self.signed.clear();
        self.tokens.clear();
        self.book.lapse("the lease was given up");
    }

    fn sign(&mut self, what: What, attempt: u64, session: SessionId) {
        let peer = self.peers.get(&session).map(|(peer, _)| peer.clone()).unwrap_or_default();
        let value = ClaimValue {
            v: VERSION,
            host: self.config.host.clone(),
            attempt,
            pid: peer.pid,
            process: peer.process,
            since: Some(now()),
        };
        self.signed.insert(what.clone(), (attempt, value.clone()));
        self.tell_all_who_runs(&what);
        if let (Some(connection), Some((_, token))) = (&mut self.connection, self.tokens.get(&what)) {
            connection.tasks.spawn(sign(Arc::clone(&connection.place), what, attempt, *token, value));
        }
    }

    /// Begins what waits for a connection: what is to be freed before what is to be tried.
    fn launch(&mut self) {
        self.next_launch = None;
        let Some(connection) = &mut self.connection else { return };
        for (what, frees) in &mut self.frees {
            let Some(first) = frees.front_mut().filter(|first| !first.is_begun) else { continue };
            if self.chased.contains_key(what) {
                continue;
            }
            first.is_begun = true;
            let (at, signed) = (Arc::clone(&connection.place), first.signed.clone());
            connection.tasks.spawn(free(at, what.clone(), first.attempt, first.how, signed));
        }
        for (what, attempt) in self.book.attempts() {
            if self.frees.contains_key(what) || self.chased.contains_key(what) {
                continue;
            }
            let token = self.tokens.get(what).filter(|(of, _)| *of == attempt).map(|(_, token)| *token);
            // What is had already costs no write.
            if token.is_none()
                && let Err(later) = self.pace.take(Instant::now())
            {
                self.next_launch = Some(later);
                break;
            }
            let (stop, stopped) = watch::channel(false);
            self.chased.insert(what.clone(), (attempt, stop));
            let at = Arc::clone(&connection.place);
            let chase = Chase { at, what: what.clone(), attempt, token, stop: stopped };
            connection.tasks.spawn(chase.run());
        }
    }

    // What etcd says ------------------------------------------------------------------------------------------------------

    fn report(&mut self, report: Report) {
        match report {
            Report::Connected(place, lease) => self.connected(place, lease),
            Report::Trouble(trouble) => self.troubled(trouble),
            Report::Renewed(deadline) => {
                self.renewed(deadline);
                self.backoff.succeeded();
                if self.trouble.as_ref().is_some_and(|trouble| !trouble.refuses_writes()) {
                    self.is_well();
                }
            }
            Report::Refused(trouble) => self.is_troubled(trouble),
            Report::Ended { what, attempt } => {
                if self.chased.get(&what).is_some_and(|(of, _)| *of == attempt) {
                    self.chased.remove(&what);
                }
            }
            Report::Held { what, attempt, token, run } => {
                self.is_well();
                self.seen.remove(&what);
                if self.book.attempt_of(&what) == Some(attempt) {
                    self.tokens.insert(what.clone(), (attempt, token));
                }
                self.book.held(&what, attempt, u64::try_from(token).unwrap_or(0), run, boot_ms());
            }
            Report::Gone { what, attempt } => {
                if self.tokens.get(&what).is_some_and(|(of, _)| *of == attempt) {
                    self.tokens.remove(&what);
                }
                self.book.key_gone(&what, attempt);
            }
            Report::Settled { what, attempt, failed } => {
                self.book.settled(&what, attempt, failed);
            }
            Report::Seen { what, by } => {
                if self.seen.insert(what.clone(), by.clone()) != Some(by) {
                    self.tell_all_who_runs(&what);
                }
            }
            Report::Freed { what, attempt } => {
                self.is_well();
                if let Some(frees) = self.frees.get_mut(&what) {
                    frees.retain(|free| free.attempt != attempt);
                    if frees.is_empty() {
                        self.frees.remove(&what);
                    }
                }
            }
        }
    }

    // The end -------------------------------------------------------------------------------------------------------------

    fn is_over(&mut self) -> bool {
        let Some((_, limit)) = &self.ending else { return false };
        let is_free = !self.book.is_held() && (self.frees.is_empty() || self.connection.is_none());
        is_free || *limit <= Instant::now()
    }

    /// What somebody may still use ends with its lease; otherwise that is given back at once.
    async fn give_back(mut self) {
        if let (false, Some(lease), Some(connection)) = (self.book.is_held(), self.lease, &self.connection) {
            // Otherwise it ends by itself.
            let _ = connection.place.etcd.revoke(lease.id).await;
        }
        if let Some((done, _)) = self.ending.take() {
            // Whoever asked has given up.
            let _ = done.send(());
        }
    }
}

async fn until(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => {
            // Whatever happens wakes the loop.
            sleep(Duration::from_secs(3600)).await;
        }
    }
}
