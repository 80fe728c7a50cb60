//! A real etcd of a test's own, on loopback, at ports that the kernel has chosen: one member, or several.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Folder, wait};

/// One that starts beside many others on a loaded machine, and recovers what is on disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// A member, which is its own cluster unless it was started with others. It is killed, and its data removed, with this.
#[derive(Debug)]
pub struct Etcd {
    folder: Folder,
    client: u16,
    /// Where the others find it, if there are any.
    peer: Option<u16>,
    arguments: Vec<String>,
    child: Option<Child>,
}

impl Etcd {
    /// Starts one, and waits until it answers.
    pub fn start() -> Etcd {
        Etcd::start_with(&[])
    }

    /// The same with further arguments.
    pub fn start_with(arguments: &[&str]) -> Etcd {
        let etcd = ["/usr/bin/etcd", "/usr/local/bin/etcd"].iter().any(|path| Path::new(path).exists());
        assert!(etcd, "etcd is missing: run `scripts/setup test`, or apt-get install etcd-server");
        let mut etcd = Etcd {
            folder: Folder::new(),
            client: 0,
            peer: None,
            arguments: arguments.iter().map(ToString::to_string).collect(),
            child: None,
        };
        // Somebody else may take a port between the kernel's choice and etcd.
        for _ in 0..5 {
            etcd.client = free_port();
            if etcd.launch() {
                return etcd;
            }
        }
        panic!("etcd does not start:\n{}", etcd.log());
    }

    /// Starts several that are one cluster, and waits until all answer.
    pub fn start_members(number: usize) -> Vec<Etcd> {
        // Somebody else may take a port between the kernel's choice and etcd.
        for _ in 0..5 {
            let peers: Vec<u16> = (0..number).map(|_| free_port()).collect();
            let all: Vec<_> = peers.iter().map(|peer| format!("m{peer}=http://127.0.0.1:{peer}")).collect();
            let mut members: Vec<Etcd> = peers
                .iter()
                .map(|peer| Etcd {
                    folder: Folder::new(),
                    client: free_port(),
                    peer: Some(*peer),
                    arguments: vec![
                        format!("--name=m{peer}"),
                        format!("--initial-cluster={}", all.join(",")),
                        format!("--initial-advertise-peer-urls=http://127.0.0.1:{peer}"),
                    ],
                    child: None,
                })
                .collect();
            members.iter_mut().for_each(Etcd::spawn);
            if members.iter_mut().all(Etcd::comes_to_answer) {
                return members;
            }
        }
        panic!("etcd does not start with {number} members");
    }

    /// Whether it is the one that the others follow.
    pub fn is_leader(&self) -> bool {
        // Its own metrics: no client is needed to read them.
        self.ask("/metrics").is_some_and(|text| text.contains("\netcd_server_is_leader 1\n"))
    }

    /// Where clients find it.
    pub fn url(&self) -> String {
        format!("{}://127.0.0.1:{}", self.scheme(), self.client)
    }

    /// Its process.
    pub fn pid(&self) -> i32 {
        self.child.as_ref().map_or(0, |child| child.id() as i32)
    }

    /// Ends it, as when its machine loses power. Its data stays.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().expect("our own child");
            child.wait().expect("our own child");
        }
    }

    /// Starts it again, at the same address, with what is on its disk.
    pub fn restart(&mut self) {
        self.kill();
        assert!(self.launch(), "etcd does not start again:\n{}", self.log());
    }

    /// The same, without waiting until it answers: one of several may not do so before others are back.
    pub fn respawn(&mut self) {
        self.kill();
        self.spawn();
    }

    /// A file in its folder.
    pub fn at(&self, name: &str) -> std::path::PathBuf {
        self.folder.at(name)
    }

    fn scheme(&self) -> &'static str {
        if self.arguments.iter().any(|argument| argument.starts_with("--cert-file")) {
            "https"
        } else {
            "http"
        }
    }

    fn log(&self) -> String {
        self.folder.read("etcd.log")
    }

    /// Whether it came to answer.
    fn launch(&mut self) -> bool {
        self.spawn();
        self.comes_to_answer()
    }

    fn spawn(&mut self) {
        let peer = format!("http://127.0.0.1:{}", self.peer.unwrap_or_else(free_port));
        let log =
            File::options().create(true).append(true).open(self.folder.at("etcd.log")).expect("our folder");
        let mut command = Command::new("etcd");
        command.args(["--data-dir", "data", "--logger", "zap", "--log-level", "warn"]);
        command.args(["--listen-client-urls", &self.url(), "--advertise-client-urls", &self.url()]);
        command.args(["--listen-peer-urls", &peer]);
        command.args(&self.arguments).current_dir(self.folder.path());
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log).spawn();
        self.child = Some(child.expect("etcd can be started"));
    }

    fn comes_to_answer(&mut self) -> bool {
        let answered = wait::poll(PATIENCE, || {
            let ended =
                self.child.as_mut().is_none_or(|child| child.try_wait().expect("our own child").is_some());
            match ended {
                true => Some(false),
                false => self.answers().then_some(true),
            }
        });
        let answered = answered.unwrap_or(false);
        if !answered {
            self.kill();
        }
        answered
    }

    /// With TLS it is enough that it takes connections: who asks has no certificate here.
    fn answers(&self) -> bool {
        match self.scheme() {
            "https" => TcpStream::connect(("127.0.0.1", self.client)).is_ok(),
            _ => self.ask("/health").is_some_and(|text| text.contains("\"true\"")),
        }
    }

    fn ask(&self, path: &str) -> Option<String> {
        ask((Ipv4Addr::LOCALHOST, self.client).into(), path)
    }
}

/// What a member says at this path.
pub(crate) fn ask(member: SocketAddr, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect_timeout(&member, Duration::from_secs(5)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

impl Drop for Etcd {
    fn drop(&mut self) {
        self.kill();
    }
}

fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    listener.local_addr().expect("it is bound").port()
}
