//! One connection to etcd: each call with a time limit, and each failure in words.

use std::net::{TcpStream, ToSocketAddrs};
use std::time::Duration;

use etcd_client::{
    Certificate, Client, ConnectOptions, Error, EventType, GetOptions, GetResponse, Identity, KeyValue,
    LeaseKeepAliveStream, LeaseKeeper, TlsOptions, Txn, TxnResponse, WatchOptions, WatchStream,
};

use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use crate::config::{self, ClusterConfig};
use crate::trouble::Trouble;

/// So many keys are read at once at most; and so many at first, and again where somebody has written values that are much longer than
/// ours: etcd takes up to 1.5 MiB, and so many of these come in time.
const PAGE: i64 = 512;
const FIRST_PAGE: i64 = 8;
/// What is longer than this together is long.
const LONG_PAGE: usize = 1 << 20;
/// An answer is at most so long,
const LONGEST_ANSWER: usize = 64 << 20;
/// and all that is read together: whoever may write below the prefix must not use up the memory of everybody who reads it.
const MOST_BYTES: usize = 512 << 20;

/// A connection. It is cheap to clone.
#[derive(Clone)]
pub(crate) struct Etcd {
    client: Client,
    patience: Duration,
    prefix: String,
    endpoints: Vec<String>,
}

/// Of those that wait for a key to be free, each waits up to so long before it tries to have it.
const MOMENT: Duration = Duration::from_millis(250);
/// So long a write may take for which nobody waits. By then etcd itself has given it up; a second one would only be more to do.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// So long the next member is not asked while the one before may still answer.
const HEAD_START: Duration = Duration::from_millis(300);

impl Etcd {
    /// To one of its members, any that answers. Only to one: of several, the client would go on asking those that are away.
    pub(crate) async fn connect(config: &ClusterConfig, prefix: &str) -> Result<Etcd, Trouble> {
        let patience = (config.ttl / 2).clamp(Duration::from_secs(1), Duration::from_secs(5));
        let options = options(config, patience)?;
        let mut members = config.endpoints.clone();
        // So that not all hosts ask the same one.
        fastrand::shuffle(&mut members);
        let (mut members, mut attempts, mut troubles) = (members.into_iter(), JoinSet::new(), Vec::new());
        loop {
            if let Some(member) = members.next() {
                attempts.spawn(Etcd::connect_to(member, options.clone(), patience, prefix.to_owned()));
            }
            let has_more = members.len() > 0;
            tokio::select! {
                Some(attempt) = attempts.join_next() => match attempt {
                    Ok(Ok(etcd)) => return Ok(etcd),
                    Ok(Err(trouble)) => troubles.push(trouble),
                    Err(error) => troubles.push(Trouble::Other { what: "connect", why: error.to_string() }),
                },
                () = sleep(HEAD_START), if has_more => {}
                else => return Err(worst(troubles)),
            }
        }
    }

    async fn connect_to(
        endpoint: String,
        options: ConnectOptions,
        patience: Duration,
        prefix: String,
    ) -> Result<Etcd, Trouble> {
        let endpoints = vec![endpoint];
        let connecting = Client::connect(&endpoints, Some(options));
        let client = match tokio::time::timeout(patience, connecting).await {
            Ok(Ok(client)) => client,
            Ok(Err(error)) => {
                return Err(explained(Trouble::of(&error, "log in", &prefix), &endpoints).await.at_first());
            }
            Err(_) => return Err(away(&endpoints, None).await),
        };
        let root = prefix.clone();
        let etcd = Etcd { client, patience, prefix, endpoints };
        // It is connected when it has answered, for all of etcd: a member that is cut off from the others cannot.
        etcd.revision(&root).await.map(|_| etcd).map_err(Trouble::at_first)
    }

    async fn call<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Trouble> {
        self.call_within(what, call, self.patience).await
    }

    async fn call_within<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, Error>>,
        time: Duration,
    ) -> Result<T, Trouble> {
        match tokio::time::timeout(time, call).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(explained(self.trouble(&error, what), &self.endpoints).await),
            Err(_) => Err(away(&self.endpoints, None).await),
        }
    }

    pub(crate) async fn grant(&self, ttl: Duration) -> Result<i64, Trouble> {
        let mut client = self.client.lease_client();
        Ok(self.call("get a lease", client.grant(seconds(ttl), None)).await?.id())
    }

    pub(crate) async fn revoke(&self, lease: i64) -> Result<(), Trouble> {
        let mut client = self.client.lease_client();
        self.call("give up the lease", client.revoke(lease)).await.map(drop)
    }

    /// Extends a lease once, and can go on to do so.
    pub(crate) async fn keep_alive(
        &self,
        lease: i64,
    ) -> Result<(LeaseKeeper, LeaseKeepAliveStream), Trouble> {
        self.keep_alive_within(lease, self.patience).await
    }

    /// The same, if it answers in this time.
    pub(crate) async fn keep_alive_within(
        &self,
        lease: i64,
        time: Duration,
    ) -> Result<(LeaseKeeper, LeaseKeepAliveStream), Trouble> {
        let mut client = self.client.lease_client();
        self.call_within("keep the lease", client.keep_alive(lease), time).await
    }

    pub(crate) async fn get(&self, key: &str) -> Result<Option<KeyValue>, Trouble> {
        let mut client = self.client.kv_client();
        let mut answer = self.call("read", client.get(key, None)).await?;
        Ok(answer.take_kvs().pop())
    }

    /// The same as of this revision.
    pub(crate) async fn get_at(&self, key: &[u8], revision: i64) -> Result<Option<KeyValue>, Trouble> {
        let mut client = self.client.kv_client();
        let options = GetOptions::new().with_revision(revision);
        let mut answer = self.call("read", client.get(key, Some(options))).await?;
        Ok(answer.take_kvs().pop())
    }

    /// All keys with this prefix, as of this revision, or as of now; and which revision that is.
    pub(crate) async fn all(
        &self,
        prefix: &str,
        revision: Option<i64>,
    ) -> Result<(Vec<KeyValue>, i64), Trouble> {
        let (mut found, mut held) = (Vec::new(), 0);
        let take = |page: Vec<KeyValue>| {
            held += page.iter().map(size_of_kv).sum::<usize>();
            found.extend(page);
            held
        };
        let revision = self.pages(prefix, std::iter::empty(), revision, take).await?;
        Ok((found, revision))
    }

    /// The same, a page after the other. For each page etcd goes through all the keys from there to the end of what is asked for: of
    /// very many, `parts` says where it can be divided, in order. `take` says how many bytes it holds, of which there is a bound.
    pub(crate) async fn pages(
        &self,
        prefix: &str,
        parts: impl Iterator<Item = String>,
        revision: Option<i64>,
        mut take: impl FnMut(Vec<KeyValue>) -> usize,
    ) -> Result<i64, Trouble> {
        let mut client = self.client.kv_client().max_decoding_message_size(LONGEST_ANSWER);
        let (mut at, mut from) = (revision, prefix.as_bytes().to_vec());
        let mut limit = FIRST_PAGE;
        for end in parts.map(String::into_bytes).chain([end_of(prefix)]) {
            loop {
                let mut options = GetOptions::new().with_range(end.clone()).with_limit(limit);
                if let Some(revision) = at {
                    options = options.with_revision(revision);
                }
                let mut page = match self.call("read", client.get(from.clone(), Some(options))).await {
                    // It has just answered: it is the answer that is too long, for this connection or for the time.
                    Err(Trouble::Away(_) | Trouble::Other { .. }) if limit > FIRST_PAGE => {
                        limit = FIRST_PAGE;
                        continue;
                    }
                    page => page?,
                };
                at.get_or_insert(revision_of(&page));
                let (found, more) = (page.take_kvs(), page.more());
                let of_page = found.iter().map(size_of_kv).sum::<usize>();
                limit = if of_page > LONG_PAGE { FIRST_PAGE } else { (limit * 2).min(PAGE) };
                let last = found.last().map(|last| last.key().to_vec());
                if take(found) > MOST_BYTES {
                    let why = format!("there are more than {} MiB below {prefix}", MOST_BYTES >> 20);
                    return Err(Trouble::Other { what: "read", why });
                }
                match last {
                    Some(last) if more => {
                        from = last;
                        from.push(0);
                    }
                    _ => break,
                }
            }
            from = end;
        }
        Ok(at.unwrap_or_default())
    }

    pub(crate) async fn revision(&self, key: &str) -> Result<i64, Trouble> {
        let mut client = self.client.kv_client();
        self.call("read", client.get(key, Some(GetOptions::new().with_count_only())))
            .await
            .map(|a| revision_of(&a))
    }

    pub(crate) async fn txn(&self, what: &'static str, txn: Txn) -> Result<TxnResponse, Trouble> {
        let mut client = self.client.kv_client();
        self.call(what, client.txn(txn)).await
    }

    /// A write for which nobody waits.
    pub(crate) async fn write(&self, txn: Txn) -> Result<TxnResponse, Trouble> {
        let mut client = self.client.kv_client();
        self.patiently("write", client.txn(txn)).await
    }

    /// A lease for such writes.
    pub(crate) async fn grant_patiently(&self, ttl: Duration) -> Result<i64, Trouble> {
        let mut client = self.client.lease_client();
        Ok(self.patiently("get a lease", client.grant(seconds(ttl), None)).await?.id())
    }

    /// If it takes too long, that is no reason to give up the connection, and with it the lease.
    async fn patiently<T>(
        &self,
        what: &'static str,
        call: impl Future<Output = Result<T, Error>>,
    ) -> Result<T, Trouble> {
        match tokio::time::timeout(WRITE_PATIENCE, call).await {
            Ok(Ok(answer)) => Ok(answer),
            // It has too much to do, or no leader: if so, the keep-alives tell.
            Ok(Err(Error::GRpcStatus(status))) if status.message().contains("request timed out") => {
                Err(Trouble::Slow(status.message().to_owned()))
            }
            Ok(Err(error)) => Err(explained(self.trouble(&error, what), &self.endpoints).await),
            Err(_) => Err(Trouble::Slow(format!("no answer for {WRITE_PATIENCE:?}"))),
        }
    }

    /// What changes under this prefix, or to this key, from this revision on.
    pub(crate) async fn watch(
        &self,
        key: &str,
        is_prefix: bool,
        revision: i64,
    ) -> Result<WatchStream, Trouble> {
        let options = WatchOptions::new();
        self.watch_as(key, if is_prefix { options.with_prefix() } else { options }, revision).await
    }

    /// What changes from the first of these prefixes to the last, and between them.
    pub(crate) async fn watch_between(
        &self,
        (first, last): (&str, &str),
        revision: i64,
    ) -> Result<WatchStream, Trouble> {
        self.watch_as(first, WatchOptions::new().with_range(end_of(last)), revision).await
    }

    async fn watch_as(
        &self,
        key: &str,
        options: WatchOptions,
        revision: i64,
    ) -> Result<WatchStream, Trouble> {
        let mut client = self.client.watch_client().max_decoding_message_size(LONGEST_ANSWER);
        let options = options.with_start_revision(revision).with_progress_notify();
        self.call("watch", client.watch(key, Some(options))).await
    }

    /// Waits until this key is removed, after this revision, and is not there again after a moment that differs from host to host: of
    /// very many that wait for it, only some come to try. It may be there again by then, and the wait may end sooner.
    pub(crate) async fn until_free(&self, key: &str, from: i64) -> Result<(), Trouble> {
        let mut changes = self.watch(key, false, from).await?;
        let mut free_since: Option<Instant> = None;
        let moment = MOMENT.mul_f64(fastrand::f64());
        loop {
            let answer = tokio::select! {
                biased;
                answer = changes.message() => answer.map_err(|e| self.trouble(&e, "watch"))?,
                () = sleep_until(free_since.unwrap_or_else(Instant::now) + moment), if free_since.is_some() => return Ok(()),
            };
            let Some(answer) = answer.filter(|answer| !answer.canceled()) else { return Ok(()) };
            for event in answer.events() {
                free_since = match event.event_type() {
                    EventType::Delete => Some(Instant::now()),
                    EventType::Put => None,
                };
            }
        }
    }

    pub(crate) fn trouble(&self, error: &Error, what: &'static str) -> Trouble {
        Trouble::of(error, what, &self.prefix)
    }
}

/// Of those of all members: one that says what to do before those that do not answer.
fn worst(mut troubles: Vec<Trouble>) -> Trouble {
    if let Some(at) = troubles.iter().position(|trouble| !matches!(trouble, Trouble::Away(_))) {
        return troubles.swap_remove(at);
    }
    let mut reasons: Vec<_> = troubles
        .into_iter()
        .filter_map(|trouble| if let Trouble::Away(why) = trouble { Some(why) } else { None })
        .collect();
    reasons.sort();
    Trouble::Away(reasons.join("; "))
}

async fn explained(trouble: Trouble, endpoints: &[String]) -> Trouble {
    match trouble {
        Trouble::Away(why) => away(endpoints, Some(why)).await,
        trouble => trouble,
    }
}

fn options(config: &ClusterConfig, patience: Duration) -> Result<ConnectOptions, Trouble> {
    // A connection whose other end is gone without a word is noticed, also while nothing is asked. Without a leader, an answer
    // could be old.
    let mut options = ConnectOptions::new()
        .with_connect_timeout(patience)
        .with_keep_alive(Duration::from_secs(10), patience)
        .with_require_leader(true)
        .with_auto_token_refresh(true);
    let wrong = |why| Trouble::Other { what: "read a file", why };
    if let (Some(user), Some(path)) = (&config.user, &config.password_file) {
        options = options.with_user(user, config::password(path).map_err(wrong)?);
    }
    if let Some(ca) = &config.ca {
        let read = |what, path| config::file(what, path).map_err(wrong);
        let mut tls = TlsOptions::new().ca_certificate(Certificate::from_pem(read("ca", ca)?));
        if let (Some(cert), Some(key)) = (&config.cert, &config.key) {
            tls = tls.identity(Identity::from_pem(read("cert", cert)?, read("key", key)?));
        }
        options = options.with_tls(tls);
    }
    Ok(options)
}

fn seconds(ttl: Duration) -> i64 {
    i64::try_from(ttl.as_secs()).unwrap_or(i64::MAX)
}

fn revision_of(answer: &GetResponse) -> i64 {
    answer.header().map_or(0, etcd_client::ResponseHeader::revision)
}

pub(crate) fn size_of_kv(kv: &KeyValue) -> usize {
    kv.key().len() + kv.value().len()
}

/// The first key after those with this prefix.
fn end_of(prefix: &str) -> Vec<u8> {
    let mut end = prefix.as_bytes().to_vec();
    // Our prefixes end with a slash.
    if let Some(last) = end.last_mut() {
        *last += 1;
    }
    end
}

/// The client does not always tell why it cannot connect, or it tells it of one endpoint only: so that is tried once more,
/// plainly. `why`: what it tells.
async fn away(endpoints: &[String], why: Option<String>) -> Trouble {
    let all = endpoints.to_vec();
    let asking = tokio::task::spawn_blocking(move || {
        all.iter().map(|endpoint| (endpoint.clone(), why_not(endpoint))).collect::<Vec<_>>()
    });
    let why =
        why.unwrap_or_else(|| "it does not answer. Is it etcd? Has it a leader? http or https?".to_owned());
    // A name server may take its time.
    let asked = tokio::time::timeout(Duration::from_secs(2), asking).await;
    let Ok(Ok(reasons)) = asked else { return Trouble::Away(format!("{}: {why}", endpoints.join(", "))) };
    let reasons = reasons.into_iter().map(|(endpoint, reason)| match reason {
        Some(reason) => format!("{endpoint}: {reason}"),
        None => format!("{endpoint} takes the connection: {why}"),
    });
    Trouble::Away(reasons.collect::<Vec<_>>().join("; "))
}

/// Why there is no connection; `None` if there is one.
fn why_not(endpoint: &str) -> Option<String> {
    let address = endpoint.split_once("://").map_or(endpoint, |(_, rest)| rest);
    let address = match address.to_socket_addrs() {
        Ok(mut addresses) => addresses.next(),
        Err(error) => return Some(error.to_string()),
    };
    let Some(address) = address else { return Some("it has no address".to_owned()) };
    TcpStream::connect_timeout(&address, Duration::from_secs(1)).err().map(|error| error.to_string())
}

#[cfg(test)]
#[path = "etcd_tests.rs"]
pub(crate) mod tests;
