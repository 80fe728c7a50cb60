//! What tests do to a server.

use std::path::PathBuf;

use rustix::process::Signal;

use crate::http::{self, Answer, SlowClient};
use crate::process;
use crate::server::Nginx;
use crate::wait::PATIENCE;
use crate::{Integration, Kind};

impl Nginx {
    /// Its socket.
    pub fn socket(&self) -> PathBuf {
        self.at("http.sock")
    }

    /// Asks for a page, which must be answered.
    #[track_caller]
    pub fn get(&self, page: &str) -> Answer {
        match http::get(&self.socket(), page) {
            Ok(answer) => answer,
            Err(error) => self.fail(&format!("no answer from {page}: {error}")),
        }
    }

    /// It serves: the one thing that headcount must never cost.
    #[track_caller]
    pub fn must_serve(&self) {
        let answer = self.get("/ping");
        if (answer.status, answer.body.as_str()) != (200, "pong\n") {
            self.fail(&format!("the server does not serve: {answer:?}"));
        }
    }

    /// A page as JSON. Lua's pages give all that a call returned; the module has one page, the state, where the number of
    /// the newest event stands for the events.
    #[track_caller]
    pub fn json(&self, page: &str) -> serde_json::Value {
        if self.integration() == Integration::Native && page == "/events" {
            return serde_json::json!([self.json("/status")["head"]]);
        }
        let answer = self.get(page);
        if answer.status != 200 {
            self.fail(&format!("{page}: {} {}", answer.status, answer.body));
        }
        match serde_json::from_str(&answer.body) {
            Ok(value) => value,
            Err(error) => self.fail(&format!("{page}: {error}: {}", answer.body)),
        }
    }

    /// Opens a request that keeps its worker from leaving till it is finished.
    #[track_caller]
    pub fn slow_client(&self) -> SlowClient {
        let client = match SlowClient::open(&self.socket()) {
            Ok(client) => client,
            Err(error) => self.fail(&format!("no slow client: {error}")),
        };
        self.note_seen(client.worker);
        client
    }

    /// SIGHUP.
    pub fn reload(&self) {
        process::send(self.master(), Signal::HUP);
    }

    /// Changes the configuration and reloads.
    pub fn reload_with(&self, change: impl FnOnce(crate::Setup) -> crate::Setup) {
        self.change(change);
        self.reload();
    }

    /// Reloads and waits till every worker of generation `new` has started and only they serve, so
    /// that the next signal meets a quiet master.
    #[track_caller]
    pub fn reload_and_settle(&self, new: u64) {
        let old = self.workers();
        self.reload();
        self.ready(new);
        self.wait_until("the old workers to be told to quit", || {
            let serving = self.workers();
            old.iter().all(|pid| !serving.contains(pid)).then_some(())
        });
        // A new worker is named as one only after its start was told.
        self.settled();
    }

    /// Waits till the end of a generation was told. A stop before that is told by those who are still leaving, too.
    #[track_caller]
    pub fn wait_ended(&self, generation: u64) {
        self.wait_for(&format!("the end of generation {generation}"), PATIENCE, |all| {
            all.at_least(1, Kind::GenerationEnded, generation)
        });
    }

    /// USR2: returns the old master and the new one.
    #[track_caller]
    pub fn upgrade(&self) -> (i32, i32) {
        let old = self.master();
        process::send(old, Signal::USR2);
        let new = self.wait_until("a second master after USR2", || {
            self.at("nginx.pid.oldbin").exists().then_some(())?;
            let pid = std::fs::read_to_string(self.at("nginx.pid")).ok()?.trim().parse().ok()?;
            (pid != old && process::is_alive(pid)).then_some(pid)
        });
        self.note_seen(new);
        (old, new)
    }

    /// Waits till one process is gone, reaped or not.
    #[track_caller]
    pub fn wait_gone(&self, pid: i32) {
        self.wait_until(&format!("the end of process {pid}"), || (!process::is_alive(pid)).then_some(()));
    }

    /// Stops a process with SIGSTOP and waits till it stands.
    #[track_caller]
    pub fn freeze(&self, pid: i32) {
        process::send(pid, Signal::STOP);
        self.wait_until(&format!("process {pid} to stand"), || {
            process::stat(pid).filter(|s| s.state == 'T').map(drop)
        });
    }

    /// Lets it run again.
    pub fn thaw(&self, pid: i32) {
        process::send(pid, Signal::CONT);
    }

    /// Waits for a line in error.log.
    #[track_caller]
    pub fn wait_for_log(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        self.wait_until(&format!("a line in error.log: {what}"), || {
            self.log().lines().find(|line| fits(line)).map(str::to_owned)
        })
    }
}
