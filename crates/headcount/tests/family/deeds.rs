//! What a worker does with roles, locks and onces, as it is told. What it does as a leader goes into a file that all append to.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use headcount::{Begun, Leader, LeaderChange, LockGuard, OnceScope, Wait, Worker};

use super::Line;

pub struct Deeds {
    worker: Worker,
    file: Option<PathBuf>,
    leaders: Vec<Leader>,
    guard: Option<LockGuard>,
    /// Does not answer when it is to give a role up.
    is_stubborn: bool,
}

impl Deeds {
    pub fn new(worker: &Worker) -> Deeds {
        let file = worker.node().path().and_then(|path| Some(path.parent()?.join("deeds")));
        Deeds { worker: worker.clone(), file, leaders: Vec::new(), guard: None, is_stubborn: false }
    }

    fn write(&self, what: &str, role: &str, token: u64) {
        let Some(file) = &self.file else { return };
        let line = format!("{what} {role} {} {token}\n", std::process::id());
        let mut file = OpenOptions::new().append(true).create(true).open(file).expect("the file of deeds");
        file.write_all(line.as_bytes()).expect("write to the file of deeds");
    }

    pub fn poll(&mut self) {
        for leader in &self.leaders {
            let token = leader.token();
            match leader.poll() {
                Some(LeaderChange::Elected { token }) => self.write("elected", leader.role(), token),
                Some(LeaderChange::GiveUp) if !self.is_stubborn => {
                    self.write("gives-up", leader.role(), token.unwrap_or(0));
                    leader.give_up();
                }
                Some(LeaderChange::Lost) => self.write("lost", leader.role(), 0),
                _ => {}
            }
            if let Some(token) = leader.token() {
                self.write("works", leader.role(), token);
            }
        }
    }

    pub fn obey(&mut self, order: &str, line: &mut Line) -> String {
        let words: Vec<&str> = order.split(' ').collect();
        let said = |result: headcount::Result<String>| match result {
            Ok(answer) => answer,
            Err(e) => format!("error {}: {e}", e.kind().name()),
        };
        match words[..] {
            ["stand", role] => match self.worker.leader(role) {
                Ok(leader) => {
                    self.leaders.push(leader);
                    "done".to_owned()
                }
                Err(e) => said(Err(e)),
            },
            ["resign", role] => {
                self.leaders.retain(|leader| leader.role() != role);
                "done".to_owned()
            }
            ["leads", role] => {
                let leads = |leader: &&Leader| leader.role() == role && leader.is_leader();
                self.leaders.iter().find(leads).is_some().to_string()
            }
            ["stubborn"] => {
                self.is_stubborn = true;
                "done".to_owned()
            }
            ["hang", ms] => {
                std::thread::sleep(Duration::from_millis(ms.parse().expect("milliseconds")));
                "done".to_owned()
            }
            ["lock", name, ms] => {
                let lock = match self.worker.lock(name) {
                    Ok(lock) => lock,
                    Err(e) => return said(Err(e)),
                };
                let wait = Wait::For(Duration::from_millis(ms.parse().expect("milliseconds")));
                match lock.acquire(wait) {
                    Ok(guard) => {
                        let answer = format!("locked {} after {:?}", guard.token(), guard.abandoned_by());
                        self.guard = Some(guard);
                        answer
                    }
                    Err(e) => said(Err(e)),
                }
            }
            ["unlock"] => {
                self.guard = None;
                "done".to_owned()
            }
            // Does it, fails, or dies in the middle.
            ["once", scope, key, how] => {
                let scope = if scope == "node" { OnceScope::Node } else { OnceScope::Generation };
                match self.worker.begin_once(scope, key, Wait::Timeout) {
                    Ok(Begun::Run(run)) => {
                        let attempt = run.attempt();
                        line.say(&format!(
                            "run {} after {:?} {:?}",
                            attempt.number, attempt.last, attempt.signal
                        ));
                        match how {
                            "do" => said(run.done().map(|()| "did".to_owned())),
                            "fail" => said(run.failed().map(|()| "failed".to_owned())),
                            "die" => std::process::abort(),
                            _ => {
                                std::mem::forget(run);
                                "left".to_owned()
                            }
                        }
                    }
                    Ok(Begun::Done) => "done".to_owned(),
                    Ok(Begun::Running(who)) => format!("running {}", who.pid),
                    Ok(Begun::Failed { attempts }) => format!("failed {attempts}"),
                    Err(e) => said(Err(e)),
                }
            }
            _ => panic!("unknown order {order:?}"),
        }
    }
}
