//! A real etcd of a test's own: one member on loopback, at ports that the kernel has chosen.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::{Folder, wait};

/// One that starts beside many others on a loaded machine, and recovers what is on disk.
const PATIENCE: Duration = Duration::from_secs(60);

/// A member that is its own cluster. It is killed, and its data removed, with this.
#[derive(Debug)]
pub struct Etcd {
    folder: Folder,
    client: u16,
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
        let peer = format!("http://127.0.0.1:{}", free_port());
        let log =
            File::options().create(true).append(true).open(self.folder.at("etcd.log")).expect("our folder");
        let mut command = Command::new("etcd");
        command.args(["--data-dir", "data", "--logger", "zap", "--log-level", "warn"]);
        command.args(["--listen-client-urls", &self.url(), "--advertise-client-urls", &self.url()]);
        // Only of its first start: later, what is on its disk counts. Nobody else is there to be talked to.
        command.args(["--listen-peer-urls", &peer]);
        command.args(&self.arguments).current_dir(self.folder.path());
        let child =
            command.stdin(Stdio::null()).stdout(log.try_clone().expect("a descriptor")).stderr(log).spawn();
        self.child = Some(child.expect("etcd can be started"));
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
        let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.client)) else { return false };
        if self.scheme() == "https" {
            return true;
        }
        let mut text = String::new();
        let limit = Some(Duration::from_secs(5));
        let asked =
            stream.set_read_timeout(limit).and_then(|()| stream.write_all(b"GET /health HTTP/1.0\r\n\r\n"));
        asked.and_then(|()| stream.read_to_string(&mut text)).is_ok() && text.contains("\"true\"")
    }
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
