//! The server: its folder, its processes, and their end.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

use crate::options::Options;

/// The Synopsis, and what it takes for granted.
const CONFIGURATION: &str = include_str!("../../../demo/nginx.conf");

/// Reserved for documentation (RFC 5737): no machine has it, so no socket can be bound to it.
const UNBINDABLE: &str = "192.0.2.1";

/// How long the server may take to stop before it is killed.
const GRACE: Duration = Duration::from_secs(5);

pub struct Server {
    nginx: PathBuf,
    home: PathBuf,
    port: u16,
    keep: bool,
}

impl Server {
    /// Lays out a folder of its own; starts nothing.
    pub fn lay_out(options: &Options) -> io::Result<Self> {
        let home = std::env::temp_dir().join(format!("headcount-demo-{}", std::process::id()));
        // Workers enter it as www-data, whatever the umask of this terminal is.
        let umask = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
        let laid_out = DirBuilder::new().mode(0o755).create(&home).and_then(|()| {
            let home = home.canonicalize()?;
            let port = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?.local_addr()?.port();
            let server = Self { nginx: options.nginx.clone(), home, port, keep: options.keep };
            server.fill(&options.library)?;
            Ok(server)
        });
        rustix::process::umask(umask);
        laid_out
    }

    fn fill(&self, library: &Path) -> io::Result<()> {
        // Copies: the workers, who are nobody's friends, may not be let into the folder of this checkout.
        for part in ["lib/lua/5.1", "share/lua/5.1"] {
            copy_tree(&library.join(part), &self.home.join(part))?;
        }
        fs::write(self.home.join("nginx.conf"), CONFIGURATION)?;
        self.listen_properly()
    }

    pub fn home(&self) -> &Path {
        &self.home
    }

    pub fn log(&self) -> PathBuf {
        self.home.join("error.log")
    }

    pub fn address(&self) -> SocketAddr {
        (Ipv4Addr::LOCALHOST, self.port).into()
    }

    /// What `nginx -v` says.
    pub fn version(&self) -> io::Result<String> {
        let output = Command::new(&self.nginx).arg("-v").output().map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("{}: {error}; scripts/setup demo installs it", self.nginx.display()),
            )
        })?;
        let text = String::from_utf8_lossy(&output.stderr);
        Ok(text.trim().trim_start_matches("nginx version: ").to_owned())
    }

    pub fn listen_properly(&self) -> io::Result<()> {
        self.listen_on("")
    }

    /// Adds an address to the configuration that cannot be bound, and returns it.
    pub fn listen_where_it_cannot(&self) -> io::Result<String> {
        let address = format!("{UNBINDABLE}:{}", self.port);
        self.listen_on(&format!("listen {address};"))?;
        Ok(address)
    }

    fn listen_on(&self, more: &str) -> io::Result<()> {
        let temp: String = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"]
            .iter()
            .map(|what| format!("{what}_temp_path temp_{what};\n"))
            .collect();
        let text = format!(
            "access_log off;\n{temp}server {{\n    listen {}; {more}\n    location / {{ return 200 \"$pid\"; }}\n}}\n",
            self.address()
        );
        fs::write(self.home.join("loopback.conf"), text)
    }

    /// The command line, for people and for `start`.
    pub fn command_line(&self) -> Vec<String> {
        let home = self.home.display();
        vec![
            self.nginx.display().to_string(),
            "-p".into(),
            format!("{home}"),
            "-c".into(),
            format!("{home}/nginx.conf"),
            "-e".into(),
            format!("{home}/error.log"),
        ]
    }

    /// Returns when the process that was started has gone: the server is then a daemon.
    pub fn start(&self) -> io::Result<()> {
        let home = self.home.display();
        let words = self.command_line();
        let status = Command::new(&words[0])
            .args(&words[1..])
            // Its registry is nobody else's and goes with the folder, where a real one keeps its history in /run.
            .env("HEADCOUNT_RUNTIME_DIR", self.home.join("run"))
            .env("LUA_PATH", format!("{home}/share/lua/5.1/?.lua;;"))
            .env("LUA_CPATH", format!("{home}/lib/lua/5.1/?.so;;"))
            // The mark by which every process of this server is found again, see `processes`.
            .current_dir(&self.home)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(self.home.join("stderr"))?)
            .status()?;
        if status.success() {
            return Ok(());
        }
        let words = fs::read_to_string(self.home.join("stderr"))?;
        Err(io::Error::other(format!("{} ended with {status}: {words}", self.nginx.display())))
    }

    /// The process in the pid file.
    pub fn master(&self) -> io::Result<Pid> {
        let path = self.home.join("nginx.pid");
        fs::read_to_string(&path)?
            .trim()
            .parse()
            .ok()
            .and_then(Pid::from_raw)
            .ok_or_else(|| io::Error::other(format!("{} contains no process id", path.display())))
    }

    /// A worker of that master, as the kernel knows it.
    pub fn worker_of(&self, master: Pid) -> io::Result<Pid> {
        let parent = format!(" {} ", master.as_raw_nonzero());
        self.processes()
            .into_iter()
            .find(|&pid| {
                // "PID (NAME) STATE PARENT …": the name holds no bracket here.
                let stat = fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero()));
                stat.ok()
                    .and_then(|text| text.rsplit_once(") ").map(|(_, rest)| rest[1..].starts_with(&parent)))
                    .unwrap_or(false)
            })
            .ok_or_else(|| io::Error::other("the master has no worker"))
    }

    /// The name of the user that a process runs as.
    pub fn user_of(&self, pid: Pid) -> io::Result<String> {
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero()))?;
        let uid = status
            .lines()
            .find_map(|line| line.strip_prefix("Uid:")?.split_ascii_whitespace().nth(1))
            .ok_or_else(|| io::Error::other("cannot tell the user from /proc"))?;
        // NAME:PASSWORD:UID:…
        let users = fs::read_to_string("/etc/passwd")?;
        let named = users.lines().find(|line| line.split(':').nth(2) == Some(uid));
        Ok(named.and_then(|line| line.split(':').next()).map_or(format!("user {uid}"), str::to_owned))
    }

    pub fn signal(&self, pid: Pid, signal: Signal) -> io::Result<()> {
        Ok(kill_process(pid, signal)?)
    }

    /// Asks for a page; the answer is the pid of the worker that served it.
    pub fn ask(&self) -> io::Result<u32> {
        let mut stream = TcpStream::connect_timeout(&self.address(), Duration::from_secs(2))?;
        stream.set_read_timeout(Some(Duration::from_secs(2)))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        body.trim().parse().map_err(|_| io::Error::other(format!("unexpected answer: {answer}")))
    }

    /// Every process of this server, whoever its parent is by now: they all keep the folder that they were
    /// started in. No pid file and no parent says it as surely after an upgrade or a killed master.
    fn processes(&self) -> Vec<Pid> {
        let Ok(entries) = fs::read_dir("/proc") else {
            return Vec::new();
        };
        let myself = rustix::process::getpid();
        entries
            .flatten()
            .filter(|entry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == self.home))
            .filter_map(|entry| Pid::from_raw(entry.file_name().to_str()?.parse().ok()?))
            .filter(|&pid| pid != myself)
            .collect()
    }

    /// Whether every process of the server is gone within `timeout`.
    pub fn wait_gone(&self, timeout: Duration) -> bool {
        wait_gone(&self.hold(), timeout) && self.processes().is_empty()
    }

    fn hold(&self) -> Vec<OwnedFd> {
        // One that is gone in between needs no descriptor.
        self.processes().into_iter().filter_map(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()).collect()
    }
}

fn copy_tree(from: &Path, to: &Path) -> io::Result<()> {
    let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", from.display()));
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from).map_err(named)? {
        let entry = entry?.path();
        let target = to.join(entry.file_name().unwrap_or_default());
        if entry.is_dir() {
            copy_tree(&entry, &target)?;
        } else {
            fs::copy(&entry, &target).map_err(named)?;
        }
    }
    Ok(())
}

fn wait_gone(processes: &[OwnedFd], timeout: Duration) -> bool {
    let end = Instant::now() + timeout;
    processes.iter().all(|process| {
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            match poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        for (signal, patience) in [(Signal::TERM, GRACE), (Signal::KILL, GRACE)] {
            let processes = self.hold();
            for process in &processes {
                // Gone already is what is wanted.
                let _ = pidfd_send_signal(process, signal);
            }
            // After a KILL, a worker that was forked meanwhile has to be looked for once more.
            if wait_gone(&processes, patience) && self.processes().is_empty() {
                break;
            }
        }
        if self.keep {
            eprintln!("headcount-demo: kept {}", self.home.display());
        } else if let Err(error) = fs::remove_dir_all(&self.home) {
            eprintln!("headcount-demo: cannot remove {}: {error}", self.home.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::CONFIGURATION;

    #[test]
    fn the_configuration_is_the_synopsis() {
        let seed = include_str!("../../../demo/seed-synopsis.conf");
        let wanted: Vec<&str> = seed.lines().filter(|line| !line.contains("kong")).collect();
        let http = CONFIGURATION.find("http {").expect("an http block");
        let added = "    include loopback.conf;\n\n";
        assert_eq!(CONFIGURATION.matches(added).count(), 1);
        let ours = CONFIGURATION[http..].replacen(added, "", 1);
        assert_eq!(ours.lines().collect::<Vec<_>>(), wanted);
    }
}
