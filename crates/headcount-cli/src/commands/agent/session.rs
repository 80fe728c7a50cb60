//! Sessions: processes of this host that stand for roles, and ask for locks and onces of the cluster.

use std::collections::BTreeSet;
use std::ffi::CString;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::extract::connect_info::Connected;
use axum::http::{HeaderMap, header};
use axum::serve::IncomingStream;
use headcount_cluster::claims::{Claims, Peer, Session};
use headcount_cluster_client::protocol::{LONGEST_LINE, Message, Request, UPGRADE};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::bounded::{Bounded, Quiet};

/// So long may a process not read what it is told.
const PATIENCE: Duration = Duration::from_secs(5);

/// Who has connected, as the kernel says.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    uid: Option<u32>,
    gid: u32,
    pid: Option<u32>,
    quiet: Quiet,
}

impl Connected<IncomingStream<'_, Bounded>> for Caller {
    fn connect_info(stream: IncomingStream<'_, Bounded>) -> Caller {
        let quiet = stream.io().quiet();
        stream.io().stream.peer_cred().map_or_else(
            |_| Caller::default(),
            |found| Caller {
                quiet,
                uid: Some(found.uid()),
                gid: found.gid(),
                // 0: it cannot be seen from here.
                pid: found.pid().and_then(|pid| u32::try_from(pid).ok()).filter(|pid| *pid > 0),
            },
        )
    }
}

impl Caller {
    /// What is asked for goes on for as long as it likes, with nothing said.
    pub fn may_be_quiet(&self) {
        self.quiet.allow();
    }

    fn peer(&self) -> Peer {
        let name = |pid| std::fs::read_to_string(format!("/proc/{pid}/comm")).ok();
        let process = self.pid.and_then(name).map(|name| name.trim_end().to_owned());
        Peer { pid: self.pid, process }
    }

    pub fn name(&self) -> String {
        self.uid.map_or_else(|| "somebody unknown".to_owned(), |uid| format!("user {uid}"))
    }
}

/// Who may have something.
#[derive(Clone, Debug)]
pub struct Allowed {
    everybody: bool,
    users: BTreeSet<u32>,
    groups: BTreeSet<u32>,
    /// Each look-up has a thread of its own, and anybody can ask for one.
    room: Arc<Semaphore>,
}

/// So many are looked up at once. The others wait.
const LOOK_UPS: usize = 4;

impl Allowed {
    /// These, root, and the agent's own user.
    pub fn find(names: &[String]) -> anyhow::Result<Allowed> {
        let room = Arc::new(Semaphore::new(LOOK_UPS));
        let mut allowed = Allowed { everybody: false, users: BTreeSet::new(), groups: BTreeSet::new(), room };
        allowed.users.extend([0, rustix::process::geteuid().as_raw()]);
        for name in names {
            let wrong = || format!("agent.claims: cannot look up {name}");
            match name.strip_prefix('@') {
                None if name == "*" => allowed.everybody = true,
                None if name.parse::<u32>().is_ok() => allowed.users.extend(name.parse::<u32>()),
                None => match User::from_name(name).with_context(wrong)? {
                    Some(user) => drop(allowed.users.insert(user.uid.as_raw())),
                    None => bail!(
                        "agent.claims: there is no user {name}; a group is written as @{name}, everybody as *"
                    ),
                },
                Some(group) if group.parse::<u32>().is_ok() => allowed.groups.extend(group.parse::<u32>()),
                Some(group) => match Group::from_name(group).with_context(wrong)? {
                    Some(group) => drop(allowed.groups.insert(group.gid.as_raw())),
                    None => bail!("agent.claims: there is no group {group}"),
                },
            }
        }
        Ok(allowed)
    }

    pub async fn has(&self, caller: &Caller) -> bool {
        let Some(uid) = caller.uid else { return false };
        if self.everybody || self.users.contains(&uid) || self.groups.contains(&caller.gid) {
            return true;
        }
        if self.groups.is_empty() {
            return false;
        }
        let gid = caller.gid;
        let groups = self.look_up(move || groups_of(uid, gid)).await;
        groups.is_some_and(|groups| groups.iter().any(|group| self.groups.contains(group)))
    }

    /// In a thread: the system's lists may be far away. Its place is kept until that has ended, also if whoever asked has gone.
    async fn look_up<T: Send + 'static>(&self, look: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        // It is never closed.
        let place = Arc::clone(&self.room).acquire_owned().await.ok()?;
        let looking = tokio::task::spawn_blocking(move || {
            let _place = place;
            look()
        });
        looking.await.ok()
    }
}

fn groups_of(uid: u32, gid: u32) -> Vec<u32> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
    let name = user.and_then(|user| CString::new(user.name).ok());
    let found = name.and_then(|name| getgrouplist(&name, Gid::from_raw(gid)).ok());
    found.unwrap_or_default().into_iter().map(Gid::as_raw).collect()
}

/// Whether it asks for what is spoken here.
pub fn is_asked_for(headers: &HeaderMap) -> bool {
    let upgrade = headers.get(header::UPGRADE).and_then(|value| value.to_str().ok());
    upgrade.is_some_and(|value| value.eq_ignore_ascii_case(UPGRADE))
}

/// Enters, and talks as soon as the answer was sent. False: there are too many.
pub async fn begin(claims: &Claims, caller: &Caller, upgrade: OnUpgrade) -> bool {
    let Some(session) = claims.enter(caller.peer()).await else { return false };
    let welcome = claims.welcome();
    tokio::spawn(async move {
        match upgrade.await {
            Ok(upgraded) => talk(TokioIo::new(upgraded), session, welcome).await,
            // It has gone meanwhile.
            Err(_) => session.gone().await,
        }
    });
    true
}

/// How it ended.
enum End {
    /// The process has closed its end, or has none any more.
    Gone,
    /// It is closed from here.
    Closed,
}

async fn talk(io: impl tokio::io::AsyncRead + AsyncWrite, mut session: Session, welcome: Message) {
    let (mut read, mut write) = tokio::io::split(io);
    let mut received = Vec::new();
    let mut buffer = [0; 4096];
    let mut end = say(&mut write, &[welcome]).await;
    while end.is_none() {
        end = tokio::select! {
            biased;
            message = session.messages.recv() => match message {
                Some(first) => {
                    let mut all = vec![first];
                    while let Ok(next) = session.messages.try_recv() {
                        all.push(next);
                    }
                    say(&mut write, &all).await
                }
                None => Some(End::Closed),
            },
            got = read.read(&mut buffer) => match got {
                Ok(0) | Err(_) => Some(End::Gone),
                Ok(n) => {
                    received.extend_from_slice(&buffer[..n]);
                    match hear(&mut received, &session).await {
                        Ok(()) => None,
                        Err(error) => {
                            say(&mut write, &[Message::Error { error }]).await;
                            Some(End::Closed)
                        }
                    }
                }
            },
        };
    }
    match end {
        Some(End::Gone) => session.gone().await,
        _ => session.closed().await,
    }
    // It has ended, or does not read.
    let _ = timeout(PATIENCE, write.shutdown()).await;
}

async fn say(to: &mut (impl AsyncWrite + Unpin), messages: &[Message]) -> Option<End> {
    let mut text = Vec::new();
    for message in messages {
        // Structures of plain members.
        text.extend(serde_json::to_vec(message).unwrap_or_default());
        text.push(b'\n');
    }
    match timeout(PATIENCE, to.write_all(&text)).await {
        Ok(Ok(())) => None,
        Ok(Err(_)) => Some(End::Gone),
        Err(_) => Some(End::Closed),
    }
}

/// Takes the whole lines. The error: nothing more is heard of it.
async fn hear(received: &mut Vec<u8>, session: &Session) -> Result<(), String> {
    while let Some(end) = received.iter().position(|byte| *byte == b'\n') {
        let rest = received.split_off(end + 1);
        let line = std::mem::replace(received, rest);
        if line.len() > LONGEST_LINE + 1 {
            return Err(format!("a line of {} bytes; allowed are {LONGEST_LINE}", line.len() - 1));
        }
        let line = line.trim_ascii();
        if line.is_empty() {
            continue;
        }
        let value: serde_json::Value =
            serde_json::from_slice(line).map_err(|error| format!("this line is no JSON: {error}"))?;
        match serde_json::from_value::<Request>(value) {
            Ok(request) => session.request(request).await,
            Err(error) => session.refuse(format!("this is no request: {error}")).await,
        }
    }
    match received.len() > LONGEST_LINE {
        true => Err(format!("a line of more than {LONGEST_LINE} bytes; allowed are no more")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_may_is_found_or_it_is_said_who_is_not() {
        let names = |all: &[&str]| all.iter().map(ToString::to_string).collect::<Vec<_>>();
        let allowed = Allowed::find(&names(&["nobody", "@0", "77", "@daemon"])).unwrap();
        assert!(allowed.users.is_superset(&[0, 65534, 77].into()) && allowed.groups.contains(&1));
        let error = Allowed::find(&names(&["no such user"])).unwrap_err().to_string();
        assert!(error.contains("agent.claims: there is no user no such user"), "{error}");
        assert!(Allowed::find(&names(&["@no such group"])).unwrap_err().to_string().contains("no group"));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let caller = |uid| Caller { uid: Some(uid), gid: uid, ..Caller::default() };
            let none = Allowed::find(&[]).unwrap();
            assert!(none.has(&caller(0)).await && !none.has(&caller(33)).await);
            assert!(!none.has(&Caller::default()).await, "of whom nothing is known");
            assert!(
                allowed.has(&caller(77)).await
                    && allowed.has(&caller(1)).await
                    && !allowed.has(&caller(33)).await
            );
            assert!(Allowed::find(&names(&["*"])).unwrap().has(&caller(33)).await);
        });
    }

    /// Each waits in its thread, as for a directory service that does not answer, until the gate is open.
    #[test]
    fn few_look_ups_run_at_once_also_when_whoever_asked_has_gone() {
        use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
        use std::sync::{Mutex, mpsc};

        let (open, gate) = mpsc::channel::<()>();
        let gate = Arc::new(Mutex::new(gate));
        let [running, most] = [(); 2].map(|()| Arc::new(AtomicUsize::new(0)));
        let allowed = Arc::new(Allowed::find(&[]).unwrap());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let ask = |_| {
                let (allowed, gate) = (Arc::clone(&allowed), Arc::clone(&gate));
                let (running, most) = (Arc::clone(&running), Arc::clone(&most));
                tokio::spawn(async move {
                    let look = move || {
                        most.fetch_max(running.fetch_add(1, SeqCst) + 1, SeqCst);
                        assert!(gate.lock().unwrap().recv().is_err(), "it is opened by its end");
                        running.fetch_sub(1, SeqCst);
                    };
                    allowed.look_up(look).await
                })
            };
            let mut all: Vec<_> = (0..3 * LOOK_UPS).map(ask).collect();
            while running.load(SeqCst) < LOOK_UPS {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            for gone in all.drain(..LOOK_UPS) {
                gone.abort();
                assert!(gone.await.unwrap_err().is_cancelled());
            }
            assert_eq!((running.load(SeqCst), allowed.room.available_permits()), (LOOK_UPS, 0));
            drop(open);
            for asked in all {
                assert_eq!(asked.await.unwrap(), Some(()), "whoever waits has its turn");
            }
            assert_eq!(most.load(SeqCst), LOOK_UPS);
        });
    }
}
