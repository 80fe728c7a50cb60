//! Writes that reach etcd long after the agent has given them up.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use testkit::{permit, wait};

use super::fleet::{Fleet, Server, key};
use crate::scripted::LONG;

/// On the way to etcd: what is sent on the connections that there are can be held up, and arrives later, whoever has gone meanwhile.
struct Way {
    address: SocketAddr,
    connections: Arc<AtomicU64>,
    held: Arc<Mutex<Held>>,
    /// What etcd has answered, in bytes.
    answered: Arc<AtomicU64>,
}

#[derive(Default)]
struct Held {
    /// Connections up to this number are, since then.
    upto: u64,
    since: Option<Instant>,
    bytes: Vec<(TcpStream, Vec<u8>)>,
}

/// So long is collected what is sent: the agent waits longer for an answer. That it gives up is never told.
const COLLECTED: Duration = Duration::from_secs(1);

impl Way {
    fn to(etcd: &str) -> Way {
        let etcd = etcd.trim_start_matches("http://").to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let way =
            Way { address, connections: Arc::default(), held: Arc::default(), answered: Arc::default() };
        let (connections, held, answered) =
            (Arc::clone(&way.connections), Arc::clone(&way.held), Arc::clone(&way.answered));
        std::thread::spawn(move || {
            for agent in listener.incoming().map_while(Result::ok) {
                let number = connections.fetch_add(1, Ordering::SeqCst) + 1;
                let Ok(server) = TcpStream::connect(&etcd) else { continue };
                let [from, to] = [&agent, &server].map(|stream| stream.try_clone().expect("a socket"));
                let (held, answered) = (Arc::clone(&held), Arc::clone(&answered));
                std::thread::spawn(move || ask(from, to, number, &held));
                std::thread::spawn(move || answer(server, agent, &answered));
            }
        });
        way
    }

    /// From now on, nothing that is sent on the connections that there are arrives.
    fn hold(&self) {
        let mut held = self.held.lock().expect("no panic");
        (held.upto, held.since) = (self.connections.load(Ordering::SeqCst), Some(Instant::now()));
    }

    /// What was held up arrives.
    fn let_go(&self) {
        for (mut to, bytes) in self.held.lock().expect("no panic").bytes.drain(..) {
            to.write_all(&bytes).expect("etcd is still there");
        }
    }
}

fn ask(mut from: TcpStream, mut to: TcpStream, number: u64, held: &Mutex<Held>) {
    let mut bytes = [0; 65536];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        let mut held = held.lock().expect("no panic");
        if number > held.upto {
            to.write_all(&bytes[..read]).expect("etcd is there");
        } else if held.since.is_some_and(|since| since.elapsed() < COLLECTED) {
            held.bytes.push((to.try_clone().expect("a socket"), bytes[..read].to_vec()));
        }
    }
    if number > held.lock().expect("no panic").upto {
        let _ = to.shutdown(Shutdown::Write);
    }
}

fn answer(mut from: TcpStream, mut to: TcpStream, answered: &AtomicU64) {
    let mut bytes = [0; 65536];
    while let Ok(read @ 1..) = from.read(&mut bytes) {
        answered.fetch_add(read as u64, Ordering::SeqCst);
        // Whoever has asked may be gone.
        let _ = to.write_all(&bytes[..read]);
    }
}

#[test]
fn a_write_that_was_given_up_and_arrives_late_changes_nothing() {
    let _permit = permit();
    let fleet = Fleet::new();
    let mut a = fleet.host("a");
    let way = Way::to(&fleet.etcd.url());
    a.configure(&format!(
        "[cluster]\nname = \"shop\"\nendpoints = [\"http://{}\"]\nhost = \"a\"\nttl = \"4s\"\n",
        way.address
    ));
    let server = Server::start(&a, 2);
    a.join();
    a.sees_node("a", "serving");
    way.hold();
    let first = server.lose_one();
    a.agent().says("etcd does not answer");
    a.agent().says("is there again");
    a.sees("the death", |_| (a.events_of("worker_died").len() == 1).then_some(()));
    let second = server.lose_one();
    let told = || {
        fleet.client(async |mut etcd| {
            let options = etcd_client::GetOptions::new().with_prefix();
            let events = etcd.get(key("events/a/"), Some(options.clone())).await?;
            let node = etcd.get(key("nodes/a/"), Some(options)).await?;
            let node: serde_json::Value = serde_json::from_slice(node.kvs()[0].value()).expect("JSON");
            let again = events.kvs().iter().filter(|kv| kv.version() > 1).count();
            Ok((node["head"].as_u64().expect("a number"), again))
        })
    };
    a.sees("the other death", |_| (a.events_of("worker_died").len() == 2).then_some(()));
    let newest = || {
        let observer = headcount::Observer::open(&a.folder.join("web.registry")).expect("it is there");
        observer.newest_seq().expect("it can be read")
    };
    wait::poll(LONG, || (told().0 == newest()).then_some(())).expect("all is told");
    let answered = way.answered.load(Ordering::SeqCst);
    way.let_go();
    // Each answer on the other connection is small: the one to what was held up comes with them.
    wait::poll(LONG, || (way.answered.load(Ordering::SeqCst) > answered + 256).then_some(()))
        .expect("etcd answers");
    assert_eq!(told(), (newest(), 0));
    let died: Vec<_> = a.events_of("worker_died").iter().map(|e| e["pid"].as_i64()).collect();
    assert_eq!(died, [first, second].map(|pid| Some(i64::from(pid))));
    // It goes on from there.
    server.lose_one();
    a.sees("one more", |_| (a.events_of("worker_died").len() == 3).then_some(()));
    assert_eq!(told().1, 0);
}
