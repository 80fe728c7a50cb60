//! Does faults at random to a fleet of real hosts and a real etcd of three members, each in a network of its own, and checks the
//! history that etcd has of it. `--help` tells the options; docs/reliability.md tells what was found.

mod asleep;
mod checker;
mod claims;
mod clearing;
mod fault;
mod fleet;
mod follower;
mod judge;
mod onces;
mod operator;
mod recorder;
mod rest;
mod revoked;
mod sections;
mod stalls;
mod tenures;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use checker::{Checker, Tally};
use fault::Fault;
use fleet::{Fleet, TTL};
use follower::Follower;
use onces::Onces;
use recorder::Recorder;
use revoked::Members;
use sections::Sections;
use stalls::Stalls;
use tenures::{Blind, Tenures};

/// Does faults at random to hosts that share an etcd, and checks what etcd has of them.
#[derive(Parser, Debug)]
struct Arguments {
    /// Determines all faults; one is chosen and printed if none is given.
    #[arg(long)]
    seed: Option<u64>,
    /// Ends after so many faults.
    #[arg(long, default_value_t = 2_000)]
    faults: u64,
    /// Ends after so many seconds.
    #[arg(long, default_value_t = 120)]
    seconds: u64,
    /// How many faults come before all is made well.
    #[arg(long, default_value_t = 30)]
    length: usize,
    /// How many hosts.
    #[arg(long, default_value_t = 3)]
    hosts: usize,
    /// Begins with the round of this number.
    #[arg(long, default_value_t = 0)]
    round: u64,
    /// Where what belongs to a violation is kept.
    #[arg(long, default_value = "target/campaign")]
    keep: PathBuf,
}

/// What is not so by then, when nothing goes wrong any more, is wrong. On a loaded machine, etcd takes its time.
const LIMIT: Duration = Duration::from_secs(90);
/// etcd looks for leases that have ended twice a second, and this machine does much else.
const MARGIN: Duration = Duration::from_secs(2);

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if !clearing::is_child() {
        return clearing::watch().unwrap_or_else(|error| {
            eprintln!("headcount-campaign-cluster: {error}");
            ExitCode::FAILURE
        });
    }
    let seed = arguments.seed.unwrap_or_else(|| testkit::wait::boot_clock() % 1_000_000_007);
    println!("seed {seed}");
    let fleet = match Fleet::start(arguments.hosts) {
        Ok(fleet) => fleet,
        Err(why) => {
            eprintln!("headcount-campaign-cluster: there is no network of our own: {why}");
            return ExitCode::FAILURE;
        }
    };
    let mut campaign = Campaign::begin(fleet);
    let (began, until) = (Instant::now(), Instant::now() + Duration::from_secs(arguments.seconds));
    for number in arguments.round.. {
        if Instant::now() >= until || campaign.faults.values().sum::<u64>() >= arguments.faults {
            break;
        }
        campaign.round(seed, number, arguments.length);
        if !campaign.violations.is_empty() {
            campaign.keep(&arguments.keep.join(format!("cluster-{seed}-{number}")));
            println!(
                "again: headcount-campaign-cluster --seed {seed} --round {number} --length {}",
                arguments.length
            );
            break;
        }
    }
    campaign.print(seed, began.elapsed());
    if campaign.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

struct Campaign {
    // Before the fleet, whose networks they are in.
    recorder: Recorder,
    follower: Follower,
    checker: Checker,
    fleet: Fleet,
    stalls: Stalls,
    begun: Instant,
    faults: BTreeMap<&'static str, u64>,
    log: String,
    tally: Tally,
    losses: Vec<Duration>,
    tenures: Tenures,
    /// Of the claimants: what they do under their role, and under their lock.
    sections: [Sections; 2],
    onces: Onces,
    blind: Vec<Blind>,
    /// What the members of etcd have in their own logs.
    members: Members,
    /// Leases that etcd has ended too early, as is proved.
    known: Vec<String>,
    /// What etcd's revision was when its state was kept.
    kept: i64,
    /// The follower has seen what etcd has forgotten.
    must_say_set_back: bool,
    violations: Vec<String>,
}

impl Campaign {
    fn begin(fleet: Fleet) -> Campaign {
        let recorder = Recorder::start(fleet.net.place(), fleet.endpoints.clone());
        let begun = testkit::wait::poll(LIMIT, || Some(recorder.history().begun).filter(|begun| *begun > 0));
        let mut campaign = Campaign {
            follower: Follower::start(&fleet, begun.expect("etcd answers")),
            recorder,
            checker: Checker::new(TTL),
            stalls: Stalls::look(fleet.net.place(), fleet.endpoints.clone()),
            fleet,
            begun: Instant::now(),
            faults: BTreeMap::new(),
            log: String::new(),
            tally: Tally::default(),
            losses: Vec::new(),
            tenures: Tenures::default(),
            sections: [Sections::new("role", TTL), Sections::new("lock", TTL)],
            onces: Onces::default(),
            known: Vec::new(),
            members: Members::default(),
            blind: Vec::new(),
            kept: i64::MAX,
            must_say_set_back: false,
            violations: Vec::new(),
        };
        campaign.rest();
        campaign
    }

    fn note(&mut self, what: &str) {
        // Into a text: it cannot fail.
        let _ = writeln!(self.log, "{:9.3}  {what}", self.begun.elapsed().as_secs_f64());
    }

    fn round(&mut self, seed: u64, number: u64, length: usize) {
        let steps = fault::round(seed, number, length, self.fleet.hosts.len(), self.fleet.members.len());
        let began = Instant::now();
        for step in steps {
            self.suffer(&step.fault);
            let until = Instant::now() + Duration::from_millis(step.pause);
            loop {
                let next = self.go_on();
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                std::thread::sleep(
                    next.map_or(left, |next| next.saturating_duration_since(Instant::now()).min(left)),
                );
            }
        }
        self.rest();
        self.fleet.start_servers();
        if number % 3 == 2 && self.violations.is_empty() {
            self.rest();
            self.lose_one(number);
            self.rest();
        }
        println!(
            "round {number}: {length} faults in {:.0} s, {} in all, {} events, {} violations",
            began.elapsed().as_secs_f64(),
            self.faults.values().sum::<u64>(),
            self.checker.tally.counts.get("events").copied().unwrap_or(0)
                + self.tally.counts.get("events").copied().unwrap_or(0),
            self.violations.len()
        );
    }

    /// Lets those go on whose time has come. When the next one goes on.
    fn go_on(&mut self) -> Option<Instant> {
        let next = self.fleet.go_on(false);
        if next.is_none() {
            let soon = tenures::now() + MARGIN.as_secs_f64();
            self.blind.iter_mut().filter(|blind| blind.to.is_infinite()).for_each(|blind| blind.to = soon);
        }
        next
    }

    fn suffer(&mut self, fault: &Fault) {
        *self.faults.entry(fault.kind()).or_default() += 1;
        self.note(&fault.to_string());
        let from = tenures::now();
        if *fault == Fault::SetBack && self.kept < i64::MAX {
            // What has happened up to here is another history than what follows.
            self.take();
            self.take_tenures();
        }
        let before = self.fleet.set_back;
        self.fleet.suffer(fault, self.recorder.seen());
        if *fault == Fault::Kept {
            let now = operator::with(&self.fleet.net, &self.fleet.endpoints, async |client| {
                let answer = client.kv_client().get("x", None).await?;
                Ok(answer.header().map_or(i64::MAX, etcd_client::ResponseHeader::revision))
            });
            self.kept = now.unwrap_or(i64::MAX);
        }
        if let Fault::HostSuspended(host, _) | Fault::HostAsleep(host, ..) = *fault {
            // Whoever leads there does not know yet that it has led for too long. That is what tokens are for.
            let host = Some(self.fleet.name(host).to_owned());
            self.blind.push(Blind { host, from, to: f64::INFINITY, is_anew: false });
        }
        if self.fleet.set_back > before {
            // What a leader had is not known any more, or is again; until it is told, or its deadline is over.
            let to = tenures::now() + (TTL + MARGIN).as_secs_f64();
            self.blind.push(Blind { host: None, from, to, is_anew: true });
            self.must_say_set_back |= self.follower.revision() > self.kept;
            self.begin_anew();
            self.sections.iter_mut().for_each(|sections| sections.begin_anew(to));
            self.onces.begin_anew(to);
        }
    }

    /// Of a cluster that was set back, nothing that was seen before need hold.
    fn begin_anew(&mut self) {
        self.recorder = Recorder::start(self.fleet.net.place(), self.fleet.endpoints.clone());
        let old = std::mem::replace(&mut self.checker, Checker::new(TTL));
        for (what, number) in old.tally.counts.into_iter().chain(old.claims.counts) {
            self.tally.add(what, number);
        }
        self.violations.extend(old.violations);
    }

    /// Makes all well, and waits until what etcd has is the truth.
    fn rest(&mut self) {
        self.note("all is made well");
        if let Err(why) = self.fleet.make_well(self.recorder.seen()) {
            return self.violations.push(why);
        }
        self.go_on();
        let mut last = Vec::new();
        let well = testkit::wait::poll(LIMIT, || {
            self.take();
            last = rest::differences(&mut self.fleet, &self.checker);
            std::thread::sleep(Duration::from_millis(50));
            (last.is_empty() || !self.violations.is_empty()).then_some(())
        });
        self.fleet.undisturbed();
        self.take_tenures();
        self.somebody_leads();
        self.take();
        self.compare_claims();
        if well.is_none() {
            self.violations.extend(last.into_iter().map(|what| format!("at rest: {what}")));
        }
        if !self.violations.is_empty() {
            return;
        }
        let mut tally = Tally::default();
        // What is being told while it is compared differs for a moment.
        let mut wrong = Vec::new();
        let same = testkit::wait::poll(LIMIT, || {
            self.take();
            tally = Tally::default();
            wrong = rest::journals(&self.fleet, &self.checker, &mut tally);
            wrong.is_empty().then_some(())
        });
        if same.is_none() {
            self.violations.append(&mut wrong);
        }
        for (what, number) in tally.counts {
            self.tally.add(what, number);
        }
        self.compare_follower();
        self.tally.add("rests", 1);
        self.note("all is well");
    }

    /// At rest, somebody does.
    fn somebody_leads(&mut self) {
        let lines = |campaign: &Campaign| {
            let [roles, locks] = &campaign.sections;
            [campaign.tenures.lines, roles.lines, locks.lines]
        };
        let before = lines(self);
        let leads = testkit::wait::poll(LIMIT, || {
            self.take_tenures();
            std::thread::sleep(Duration::from_millis(20));
            lines(self).iter().zip(before).all(|(now, before)| *now > before).then_some(())
        });
        if leads.is_none() {
            self.violations.push(format!(
                "at rest, nobody has a role or the lock: {before:?} lines, then {:?}",
                lines(self)
            ));
        }
    }

    fn compare_follower(&mut self) {
        let mark = match operator::mark(&self.fleet.net, &self.fleet.endpoints) {
            Ok(mark) => mark,
            Err(why) => return self.violations.push(format!("etcd takes no writes at rest: {why}")),
        };
        if self.fleet.set_back > 0 {
            let said = testkit::wait::poll(LIMIT, || {
                (!self.must_say_set_back || self.follower.has_said_set_back()).then_some(())
            });
            if said.is_none() {
                self.violations.push("the follower has not noticed that etcd was set back".to_owned());
            }
            self.tally.add("times etcd was set back", self.fleet.set_back as u64);
            self.tally.add("times that had to be noticed, and was", u64::from(self.must_say_set_back));
            (self.fleet.set_back, self.must_say_set_back) = (0, false);
            self.follower = Follower::start(&self.fleet, mark);
            return;
        }
        let mut wrong = None;
        let same = testkit::wait::poll(LIMIT, || {
            wrong = self.follower.compare(&self.recorder.history());
            std::thread::sleep(Duration::from_millis(20));
            wrong.is_none().then_some(())
        });
        if same.is_none() {
            self.violations.extend(wrong);
        }
        self.tally.add("times a follower was compared", 1);
    }

    /// One host, of which nothing is heard from one moment on, while all else is well: it is lost in time.
    fn lose_one(&mut self, number: u64) {
        let host = (number / 3) as usize % self.fleet.hosts.len();
        let kinds = [
            Fault::AgentKilled(host),
            Fault::HostOff(host),
            Fault::HostCutOff(host),
            Fault::AgentStopped(host, 60_000),
            Fault::HostMute(host),
            Fault::HostSuspended(host, 60_000),
        ];
        let fault = &kinds[(number / 3) as usize % kinds.len()];
        let began = Instant::now();
        self.suffer(fault);
        let name = self.fleet.name(host).to_owned();
        let lost = testkit::wait::poll(LIMIT, || {
            self.take();
            let known = self.checker.now.get(&format!("known/{name}"))?;
            known.contains("\"presence\":\"lost\"").then_some(began.elapsed())
        });
        match lost {
            Some(time) if time <= TTL + Duration::from_secs(1) + MARGIN => self.losses.push(time),
            // It was this machine that stood still.
            Some(_) if self.stalls.all().iter().any(|stall| stall.to >= Some(began)) => {}
            _ => self.violations.push(format!("{name} was lost {lost:?} after {fault}")),
        }
    }

    fn keep(&self, folder: &std::path::Path) {
        let history = self.recorder.history();
        let mut text = String::new();
        for record in history.before.iter().chain(&history.records) {
            let _ = writeln!(
                text,
                "{:9.3}  {} {} {:x} {} {}",
                record.at.saturating_duration_since(self.begun).as_secs_f64(),
                record.revision,
                record.version,
                record.lease,
                record.key,
                record.value.as_deref().unwrap_or("-")
            );
        }
        let kept = std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(folder.join("faults"), &self.log))
            .and_then(|()| std::fs::write(folder.join("history"), text))
            .and_then(|()| {
                let logs = "cp follower.* \"$1\"; cp tenures claims.* \"$1\"; for log in */agent.log */leader.log */claimant.log */etcd.log */server.log; do cp \"$log\" \"$1/${log%/*}-${log#*/}\"; done";
                let mut copy = std::process::Command::new("sh");
                let folder = folder.canonicalize()?;
                copy.args(["-c", logs, "sh"]).arg(folder).current_dir(self.fleet.folder()).status()
            });
        match kept {
            Ok(_) => println!("kept in {}", folder.display()),
            Err(error) => println!("cannot be kept in {}: {error}", folder.display()),
        }
    }

    fn print(&mut self, seed: u64, took: Duration) {
        self.begin_anew();
        for (sections, [lines, tokens, late]) in self.sections.iter().zip([
            [
                "lines of the claimants' role",
                "tenures of the claimants' role",
                "lines of the role that came late, as their tokens say",
            ],
            [
                "lines of the claimants' lock",
                "times the lock was had",
                "lines of the lock that came late, as their tokens say",
            ],
        ]) {
            self.tally.add(lines, sections.lines);
            self.tally.add(tokens, sections.tokens);
            self.tally.add(late, sections.late);
        }
        for (what, number) in &self.onces.counts {
            self.tally.add(what, *number);
        }
        self.tally.add("lines of leaders", self.tenures.lines);
        self.tally.add("tenures", self.tenures.tokens.len() as u64);
        println!("\n{} faults, {:.0} s, seed {seed}", self.faults.values().sum::<u64>(), took.as_secs_f64());
        for (kind, number) in &self.faults {
            println!("{number:>9}  {kind}");
        }
        println!("checked:");
        for (what, number) in &self.tally.counts {
            println!("{number:>9}  {what}");
        }
        self.losses.sort();
        if let (Some(first), Some(last)) = (self.losses.first(), self.losses.last()) {
            println!(
                "lost {:.1?} to {last:.1?} after nothing more was heard, with a ttl of {TTL:?}, {} times",
                first,
                self.losses.len()
            );
        }
        for known in &self.known {
            println!("KNOWN, etcd 15247: {known}");
        }
        for violation in self.violations.iter().take(20) {
            println!("VIOLATION: {violation}");
        }
        println!("this machine stood still {} times", self.stalls.of_machine());
        if self.violations.is_empty() {
            println!("no violation");
        }
    }
}
