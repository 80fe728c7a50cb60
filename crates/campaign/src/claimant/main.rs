//! An application on a host of the cluster's campaign: it stands for a role, takes a lock again and again, and runs what is to be run
//! once. Of all that it does under a token it writes a line, so that others can judge whether it was its to do. Each line has the time
//! *before* the token was looked at.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::Parser;
use headcount_cluster_client::{Client, Event};
use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};
use rustix::time::{ClockId, clock_gettime};

/// Has a role, a lock and onces of the cluster, and writes down what it did with them.
#[derive(Parser, Debug)]
struct Arguments {
    /// The socket of the agent.
    #[arg(long, required_unless_present = "clock")]
    socket: Option<PathBuf>,
    /// Where the lines go, of all hosts.
    #[arg(long, required_unless_present = "clock")]
    folder: Option<PathBuf>,
    /// What it is called.
    #[arg(long, default_value = "")]
    host: String,
    /// Only tells its clock, each time that it reads a line.
    #[arg(long)]
    clock: bool,
}

/// So often it looks, and writes.
const STEP: Duration = Duration::from_millis(20);
/// So long it waits for the lock.
const LIMIT: Duration = Duration::from_secs(3);
/// In seconds: so often there is something else to be run once.
const SLOT: f64 = 2.0;
/// The role and the lock.
const NAME: &str = "claimant";

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if arguments.clock {
        return tell_the_clock();
    }
    let (Some(socket), Some(folder)) = (&arguments.socket, &arguments.folder) else {
        return ExitCode::FAILURE;
    };
    match Claimant::new(socket, folder, &arguments.host).and_then(Claimant::run) {
        Ok(never) => match never {},
        Err(error) => {
            eprintln!("headcount-campaign-claimant: {error}");
            ExitCode::FAILURE
        }
    }
}

fn tell_the_clock() -> ExitCode {
    for line in std::io::stdin().lock().lines() {
        if line.is_err() {
            break;
        }
        println!("{}", boot());
    }
    ExitCode::SUCCESS
}

/// Seconds since the boot, suspend included.
fn boot() -> f64 {
    let now = clock_gettime(ClockId::Boottime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Seconds since 1970. Nobody sets this clock.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO).as_secs_f64()
}

enum Lock {
    /// Until then it does something else.
    Rests(f64),
    Waits(u64),
    /// Until then it does what the lock guards.
    Has(u64, f64),
}

struct Run {
    key: String,
    token: u64,
    /// `attempt` and how the one before has ended.
    mark: String,
    until: f64,
}

struct Claimant {
    client: Client,
    host: String,
    roles: File,
    locks: File,
    onces: File,
    random: ChaCha8Rng,
    lock: Lock,
    /// What it has asked to run, and is not settled.
    asked: Option<String>,
    last_slot: u64,
    run: Option<Run>,
}

impl Claimant {
    fn new(socket: &Path, folder: &Path, host: &str) -> std::io::Result<Claimant> {
        let open = |name: &str| OpenOptions::new().create(true).append(true).open(folder.join(name));
        let mut client = Client::new(socket);
        client.stand(NAME)?;
        Ok(Claimant {
            client,
            host: format!("{host}/{}", std::process::id()),
            roles: open("claims.roles")?,
            locks: open("claims.locks")?,
            onces: open("claims.onces")?,
            random: ChaCha8Rng::seed_from_u64((now() * 1e6) as u64 ^ u64::from(std::process::id())),
            lock: Lock::Rests(0.0),
            asked: None,
            last_slot: 0,
            run: None,
        })
    }

    fn run(mut self) -> std::io::Result<std::convert::Infallible> {
        loop {
            self.client.process();
            while let Some(event) = self.client.next_event() {
                self.take(event)?;
            }
            self.lead()?;
            self.use_lock()?;
            self.go_on()?;
            // What was asked for just now goes.
            self.client.process();
            self.client.wait(Some(STEP))?;
        }
    }

    fn take(&mut self, event: Event) -> std::io::Result<()> {
        match event {
            Event::Locked { id, .. } => {
                if matches!(self.lock, Lock::Waits(of) if of == id) {
                    self.lock = Lock::Has(id, now() + self.random.random_range(0.05..0.4));
                }
            }
            Event::NotLocked { id, .. } | Event::LockLost { id, .. } => {
                if matches!(self.lock, Lock::Waits(of) | Lock::Has(of, _) if of == id) {
                    self.lock = Lock::Rests(now() + self.random.random_range(0.0..0.2));
                }
            }
            Event::Run { key, attempt, last, token } => {
                let mark = format!("{attempt} {}", last.as_deref().unwrap_or("-"));
                let until = now() + self.random.random_range(0.06..0.6);
                self.once("begins", &key, token, &mark)?;
                self.run = Some(Run { key, token, mark, until });
            }
            Event::RunLost { .. } => self.lost()?,
            Event::Done { key } => self.settled(&key, "done")?,
            Event::Failed { key, attempts, last } => {
                self.settled(&key, &format!("failed {attempts} {last}"))?
            }
            Event::Error { error } => eprintln!("{} {error}", now()),
            _ => {}
        }
        Ok(())
    }

    /// A line each time that it leads.
    fn lead(&mut self) -> std::io::Result<()> {
        let (time, boot) = (now(), boot());
        let Some(token) = self.client.token(NAME) else { return Ok(()) };
        self.roles.write_all(format!("{token} {} {time:.6} {boot:.6}\n", self.host).as_bytes())
    }

    fn use_lock(&mut self) -> std::io::Result<()> {
        let (time, boot) = (now(), boot());
        match self.lock {
            Lock::Rests(until) if time >= until => {
                self.lock = Lock::Waits(self.client.lock(NAME, Some(LIMIT))?);
            }
            Lock::Has(id, until) => {
                // If it has it no more, that will be said.
                if let Some(token) = self.client.lock_token(id) {
                    self.locks
                        .write_all(format!("{token} {} {time:.6} {boot:.6}\n", self.host).as_bytes())?;
                }
                if time >= until {
                    self.client.unlock(id);
                    self.lock = Lock::Rests(time + self.random.random_range(0.0..0.2));
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn go_on(&mut self) -> std::io::Result<()> {
        let time = now();
        if let Some(run) = &self.run {
            if self.client.run_token(&run.key) != Some(run.token) {
                return self.lost();
            }
            if time < run.until {
                return Ok(());
            }
            let Some(Run { key, token, mark, .. }) = self.run.take() else { return Ok(()) };
            let is_well = self.random.random_bool(0.8);
            self.once(if is_well { "succeeds" } else { "fails" }, &key, token, &mark)?;
            self.client.end(&key, token, is_well);
        }
        let slot = (time / SLOT) as u64;
        if self.asked.is_none() && slot != self.last_slot {
            let key = format!("slot-{slot}");
            self.client.once(&key)?;
            (self.asked, self.last_slot) = (Some(key), slot);
        }
        Ok(())
    }

    fn lost(&mut self) -> std::io::Result<()> {
        let Some(Run { key, token, mark, .. }) = self.run.take() else { return Ok(()) };
        self.once("loses", &key, token, &mark)
    }

    fn settled(&mut self, key: &str, how: &str) -> std::io::Result<()> {
        if self.asked.as_deref() == Some(key) {
            self.asked = None;
        }
        self.once("hears", key, 0, how)
    }

    fn once(&mut self, what: &str, key: &str, token: u64, mark: &str) -> std::io::Result<()> {
        let line = format!("{what} {key} {token} {} {:.6} {mark}\n", self.host, now());
        self.onces.write_all(line.as_bytes())
    }
}
