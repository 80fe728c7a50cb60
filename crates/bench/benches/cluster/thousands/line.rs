//! Connections that carry the keep-alives of many leases, and watch what agents watch. An agent has a connection for its one lease; a
//! client of etcd for each would leave no processor for etcd. To etcd it is the same request either way, and how many connections
//! there are, is chosen.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use super::pace::pause;
use super::{key, ttl};

/// etcd's messages, as far as they are needed here.
#[derive(Clone, PartialEq, prost::Message)]
struct KeepAlive {
    #[prost(int64, tag = "1")]
    id: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Kept {
    #[prost(int64, tag = "2")]
    id: i64,
    #[prost(int64, tag = "3")]
    ttl: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchRequest {
    #[prost(message, optional, tag = "1")]
    create: Option<WatchCreate>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct WatchCreate {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    range_end: Vec<u8>,
}

/// What a watch tells is not looked at.
#[derive(Clone, PartialEq, prost::Message)]
struct Told {}

/// What became of the keep-alives.
#[derive(Default)]
pub struct Counts {
    pub answers: AtomicU64,
    /// The lease had run out, or would have.
    pub late: AtomicU64,
    /// In microseconds.
    slowest: AtomicU64,
    /// How late this process was itself to send one: then it is not etcd that was measured.
    own: AtomicU64,
    /// etcd has ended a stream, which was opened again.
    pub broken: AtomicU64,
    /// Leases that have run out although they were to be kept.
    pub gone: Mutex<HashSet<i64>>,
}

impl Counts {
    /// Since when these are counted.
    pub fn reset(&self) {
        for count in [&self.answers, &self.late, &self.slowest, &self.own, &self.broken] {
            count.store(0, Relaxed);
        }
    }

    pub fn slowest(&self) -> Duration {
        Duration::from_micros(self.slowest.load(Relaxed))
    }

    pub fn own(&self) -> Duration {
        Duration::from_micros(self.own.load(Relaxed))
    }
}

enum Order {
    Keep(i64),
    LetGo(i64),
}

/// All of them. The connections end with this.
pub struct Lines {
    orders: Vec<UnboundedSender<Order>>,
    pub counts: Arc<Counts>,
    tasks: Mutex<JoinSet<Result<(), Status>>>,
}

impl Lines {
    /// `watched`: each has these watches as well, in a stream each, as an agent has.
    pub async fn connect(url: &str, number: usize, watched: bool) -> Lines {
        let counts = Arc::new(Counts::default());
        let mut lines = Lines { orders: Vec::new(), counts, tasks: Mutex::default() };
        for n in 0..number {
            let endpoint = Endpoint::from_shared(url.to_owned()).expect("an address");
            let channel = endpoint.connect().await.expect("etcd takes connections");
            let (orders, ordered) = unbounded_channel();
            lines.orders.push(orders);
            let watches =
                if watched { vec![key("roles/@teller"), key(&format!("tasks/web-{n:05}/"))] } else { vec![] };
            let line = Line::run(channel, ordered, watches, Arc::clone(&lines.counts));
            lines.tasks.get_mut().expect("nobody panicked").spawn(line);
        }
        lines
    }

    /// Keeps the lease of this host from now on.
    pub fn keep(&self, host: usize, lease: i64) {
        self.order(host, Order::Keep(lease));
    }

    /// Keeps it no more, as when its host has lost power.
    pub fn let_go(&self, host: usize, lease: i64) {
        self.order(host, Order::LetGo(lease));
    }

    fn order(&self, host: usize, order: Order) {
        let sent = self.orders[host % self.orders.len()].send(order);
        assert!(sent.is_ok(), "a connection has ended");
    }

    /// None of them has ended.
    pub fn check(&self) {
        let ended = self.tasks.lock().expect("nobody panicked").try_join_next();
        assert!(ended.is_none(), "a connection has ended: {ended:?}");
    }
}

struct Lease {
    /// When it is to be asked for next.
    next: Instant,
    /// Since when an answer is awaited. Only one is awaited at a time.
    asked: Option<Instant>,
    /// It is to be asked for again as soon as the answer has come.
    is_due: bool,
}

struct Line {
    leases: HashMap<i64, Lease>,
    /// When which is to be asked for.
    due: BinaryHeap<Reverse<(Instant, i64)>>,
    counts: Arc<Counts>,
}

impl Line {
    async fn run(
        channel: Channel,
        mut orders: UnboundedReceiver<Order>,
        watches: Vec<String>,
        counts: Arc<Counts>,
    ) -> Result<(), Status> {
        let mut watching = Vec::new();
        for key in watches {
            let (asks, asked) = unbounded_channel();
            let mut end = key.clone().into_bytes();
            let range_end = match end.last_mut() {
                Some(last) if *last == b'/' => {
                    *last += 1;
                    end
                }
                _ => Vec::new(),
            };
            let create = Some(WatchCreate { key: key.into_bytes(), range_end });
            asks.send(WatchRequest { create }).expect("its other end is here");
            let mut told: Streaming<Told> = stream(&channel, "/etcdserverpb.Watch/Watch", asked).await?;
            let mut tasks = JoinSet::new();
            tasks.spawn(async move { while let Ok(Some(_)) = told.message().await {} });
            watching.push((asks, tasks));
        }
        // etcd opens its side of the stream with its first answer.
        let open = |pause: Duration| {
            let (asks, asked) = unbounded_channel();
            let channel = channel.clone();
            let opening = async move {
                sleep(pause).await;
                stream(&channel, "/etcdserverpb.Lease/LeaseKeepAlive", asked).await
            };
            (asks, Box::pin(opening))
        };
        let (mut asks, mut opening) = open(Duration::ZERO);
        let mut failures = 0;
        let mut answers: Option<Streaming<Kept>> = None;
        let mut line = Line { leases: HashMap::new(), due: BinaryHeap::new(), counts };
        loop {
            let next = line.due.peek().map(|Reverse((due, _))| *due);
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Keep(lease)) => line.keep(lease),
                    Some(Order::LetGo(lease)) => drop(line.leases.remove(&lease)),
                    None => return Ok(()),
                },
                answer = heard(&mut opening, &mut answers) => match answer {
                    Ok(answer) => {
                        failures = 0;
                        if let Some(id) = line.heard(&answer) {
                            let _ = asks.send(KeepAlive { id });
                        }
                    }
                    // It is behind with its writes. An agent asks again when it would have done so anyway.
                    Err(_) => {
                        line.counts.broken.fetch_add(1, Relaxed);
                        answers = None;
                        (asks, opening) = open(pause(&mut failures).min(ttl() / 6));
                        line.nothing_is_awaited();
                    }
                },
                () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => {
                    for id in line.asked() {
                        // If it has just ended, that is told next.
                        let _ = asks.send(KeepAlive { id });
                    }
                }
            }
        }
    }

    /// Not all at the same moment.
    fn keep(&mut self, lease: i64) {
        let next = Instant::now() + (ttl() / 3).mul_f64(fastrand::f64());
        self.leases.insert(lease, Lease { next, asked: None, is_due: false });
        self.due.push(Reverse((next, lease)));
    }

    /// What was asked is not answered any more.
    fn nothing_is_awaited(&mut self) {
        self.leases.values_mut().for_each(|lease| (lease.asked, lease.is_due) = (None, false));
    }

    /// Those that are due now.
    fn asked(&mut self) -> Vec<i64> {
        let (now, mut all) = (Instant::now(), Vec::new());
        while let Some(Reverse((due, id))) = self.due.peek().copied().filter(|Reverse((due, _))| *due <= now)
        {
            self.due.pop();
            let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.next == due) else { continue };
            self.counts.own.fetch_max((now - due).as_micros() as u64, Relaxed);
            lease.next = now + ttl() / 3;
            self.due.push(Reverse((lease.next, id)));
            if lease.asked.is_some() {
                lease.is_due = true;
                continue;
            }
            lease.asked = Some(now);
            all.push(id);
        }
        all
    }

    /// The lease that is to be asked for again at once, if any.
    fn heard(&mut self, answer: &Kept) -> Option<i64> {
        let lease = self.leases.get_mut(&answer.id)?;
        let asked = lease.asked.take()?;
        let again = std::mem::take(&mut lease.is_due);
        let time = asked.elapsed();
        self.counts.answers.fetch_add(1, Relaxed);
        self.counts.slowest.fetch_max(time.as_micros() as u64, Relaxed);
        // It was asked for when a third of it was over.
        if answer.ttl <= 0 || time > ttl() * 2 / 3 {
            self.counts.late.fetch_add(1, Relaxed);
        }
        if answer.ttl <= 0 {
            self.leases.remove(&answer.id);
            self.counts.gone.lock().expect("nobody panicked").insert(answer.id);
            return None;
        }
        if again {
            lease.asked = Some(Instant::now());
        }
        again.then_some(answer.id)
    }
}

/// The next answer, of a stream that may have to be opened first.
async fn heard(
    opening: &mut (impl Future<Output = Result<Streaming<Kept>, Status>> + Unpin),
    answers: &mut Option<Streaming<Kept>>,
) -> Result<Kept, Status> {
    let answers = match answers {
        Some(answers) => answers,
        None => answers.insert(opening.await?),
    };
    answers.message().await?.ok_or_else(|| Status::aborted("etcd has ended the stream"))
}

async fn stream<Q, A>(
    channel: &Channel,
    path: &'static str,
    requests: UnboundedReceiver<Q>,
) -> Result<Streaming<A>, Status>
where
    Q: prost::Message + Send + Sync + 'static,
    A: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = Grpc::new(channel.clone());
    client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let requests = Request::new(UnboundedReceiverStream::new(requests));
    let answers = client.streaming(requests, PathAndQuery::from_static(path), ProstCodec::<Q, A>::default());
    Ok(answers.await?.into_inner())
}
