//! The server that a campaign does its faults to: a real one, in a folder of its own.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use testkit::{Folder, RECORDER, Setup, Signal, artifacts, process, wait};

use crate::front::Front;
use crate::kernel::Kernel;
use crate::plan::{Bad, CALLBACKS};

/// Short enough for many faults in a minute, long enough for a machine that stands still for a moment.
pub const STALL_AFTER: Duration = Duration::from_millis(1500);

/// A trap is a file: the first process that removes it does what it says.
const TRAP: &str = r#"
    local path = kit.folder .. "/markers/CALLBACK"
    local file = io.open(path)
    if file then
        local what = file:read("*a")
        file:close()
        if os.remove(path) then
            if what == "die" then kit.die() end
            kit.block(tonumber(what) / 1000)
        end
    end"#;

/// What only one worker does; each line of it is what `deeds.rs` reads.
const SINGLETONS: &str = r#"
    local headcount = require "resty.headcount"
    local tenure
    local function jobs(premature, token)
        if premature or tenure ~= token then return end
        local from = kit.now()
        if headcount.is_leader("scheduler") then kit.note("jobs", { token = token, from = from }) end
        ngx.timer.at(0.05, jobs, token)
    end
    headcount.leader("scheduler", {
        on_elected = function(token)
            tenure = token
            kit.note("elected", { token = token })
            ngx.timer.at(0, jobs, token)
        end,
        on_lost = function()
            local token = tenure
            tenure = nil
            if ngx.get_phase() == "timer" then ngx.sleep(0.005) end
            kit.note("stopped", { token = token })
        end,
    })
    kit.note("stands")
    for scope, key in pairs { node = "migration-7", generation = "warm-up" } do
        headcount.once(scope, key, function(attempt)
            kit.note("begun", { once = key, attempt = attempt.number })
            ngx.sleep(0.02)
            kit.note("finished", { once = key, attempt = attempt.number })
        end)
    end
"#;

const REPORT: &str = r#"
    local kit = require "recorder"
    local _, err = require("resty.headcount").with_lock("report", function(lock)
        kit.note("entered", { token = lock.token, abandoned_by = lock.abandoned_by })
        ngx.sleep(0.005)
        kit.note("left", { token = lock.token })
    end, { timeout = 0.2 })
    ngx.say(tostring(err))
"#;

/// While this file is there, who has joined dies.
const CRASH: &str = r#"local file = io.open("@FOLDER@/markers/crash") if file then file:close() require("recorder").die() end"#;

/// One server.
pub struct Server {
    front: Front,
    folder: Folder,
    registry: PathBuf,
    /// How many workers it is configured to have.
    pub workers: u32,
    /// The example server, which is our child.
    child: Option<Child>,
}

impl Server {
    /// Prepares a folder; starts nothing.
    pub fn prepare(front: Front, workers: u32) -> Self {
        let folder = Folder::new();
        let registry = folder.at("run/registry");
        Self::with(front, workers, folder, registry)
    }

    /// Another one that is given the same registry.
    pub fn twin(front: Front, workers: u32, registry: &Path) -> Self {
        Self::with(front, workers, Folder::new(), registry.to_owned())
    }

    fn with(front: Front, workers: u32, folder: Folder, registry: PathBuf) -> Self {
        let server = Self { front, folder, registry, workers, child: None };
        if front.is_nginx() {
            server.folder.write("recorder.lua", RECORDER);
            server.configure(None);
        }
        server
    }

    /// Its folder.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// Its registry.
    pub fn registry(&self) -> PathBuf {
        self.registry.clone()
    }

    /// Writes the configuration, perhaps one that cannot be loaded.
    pub fn configure(&self, bad: Option<Bad>) {
        let mut setup = Setup::new(self.front.integration())
            .workers(self.workers)
            .option("node", "\"campaign\"")
            .option("path", &format!("\"{}\"", self.registry.display()))
            .option("heartbeat_interval", "0.25")
            .option("stall_after", &STALL_AFTER.as_secs_f64().to_string());
        if self.front.has_own_callbacks() {
            for callback in CALLBACKS {
                setup = setup.in_callback(callback, &TRAP.replace("CALLBACK", callback));
            }
            setup = setup
                .before_init(&format!("kit.after_join = function() {CRASH}\n{SINGLETONS} end"))
                .page("/report", REPORT);
        } else {
            setup = setup.http(&format!("init_worker_by_lua_block {{ {CRASH} }}"));
        }
        setup = match bad {
            // Belongs to nobody here, so that nginx cannot have it, and does not try again.
            Some(Bad::Address) => setup.listen("192.0.2.1:80"),
            Some(Bad::Permission) => setup.http("access_log @FOLDER@/nginx.pid/access.log;"),
            _ => setup,
        };
        let text = match bad {
            Some(Bad::Syntax) => "this is no directive;\n".to_owned(),
            _ => setup.render(self.folder.path()),
        };
        // At once: a master that was told to reload before may be reading it.
        self.folder.write("nginx.conf.new", &text);
        let at = |name: &str| self.folder.at(name);
        if let Err(error) = fs::rename(at("nginx.conf.new"), at("nginx.conf")) {
            eprintln!("nginx.conf: {error}");
        }
    }

    /// Starts it, and waits until its master lives.
    pub fn start(&mut self) -> Result<(), String> {
        let at = |name: &str| self.folder.at(name);
        let log =
            File::options().create(true).append(true).open(at("stdio.log")).map_err(|e| e.to_string())?;
        let copy = log.try_clone().map_err(|e| e.to_string())?;
        if !self.front.is_nginx() {
            let child = Command::new(artifacts::example("scheduler"))
                .arg("127.0.0.1:0")
                .arg(self.registry())
                .arg(self.workers.to_string())
                .stdin(Stdio::null())
                .stdout(log)
                .stderr(copy)
                .process_group(0)
                .spawn()
                .map_err(|e| format!("the example server: {e}"))?;
            let master = child.id() as i32;
            self.child = Some(child);
            return begun(master);
        }
        // nginx does not take over the files of a server that was killed.
        for stale in ["nginx.pid", "nginx.pid.oldbin", "http.sock"] {
            let _ = fs::remove_file(at(stale));
        }
        let mut child = Command::new(artifacts::nginx(artifacts::Server::Debian))
            .arg("-p")
            .arg(self.folder.path())
            .arg("-c")
            .arg(at("nginx.conf"))
            .env("HEADCOUNT_RUNTIME_DIR", at("run"))
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(copy)
            .spawn()
            .map_err(|e| format!("nginx: {e}"))?;
        let status = wait::poll(Duration::from_secs(30), || child.try_wait().ok().flatten());
        match status {
            Some(status) if status.success() => {}
            Some(status) => return Err(format!("nginx did not start: {status}")),
            None => {
                let _ = child.kill();
                let _ = child.wait();
                return Err("nginx did not go into the background within 30 s".into());
            }
        }
        let alive = wait::poll(Duration::from_secs(10), || self.master());
        alive.ok_or_else(|| "no master within 10 s of the start".into()).and_then(begun)
    }

    /// Its master, if one lives: the one that the pid file names.
    pub fn master(&self) -> Option<i32> {
        let pid = if self.front.is_nginx() {
            self.folder.read("nginx.pid").trim().parse().ok()?
        } else {
            self.child.as_ref()?.id() as i32
        };
        process::is_alive(pid).then_some(pid)
    }

    /// All masters that live, the eldest first.
    pub fn masters(&self, kernel: &Kernel) -> Vec<i32> {
        if !self.front.is_nginx() {
            return self.master().into_iter().collect();
        }
        titled(kernel, |title| title.starts_with("nginx: master"))
    }

    /// All its workers that live, the eldest first; also those that drain, and those whose master is gone.
    pub fn workers(&self, kernel: &Kernel) -> Vec<i32> {
        if self.front.is_nginx() {
            return titled(kernel, |title| title.starts_with("nginx: worker"));
        }
        let example = artifacts::example("scheduler");
        let name = example.display().to_string();
        let masters = self.child.as_ref().map(|child| child.id() as i32);
        titled(kernel, |title| title.starts_with(&name))
            .into_iter()
            .filter(|&pid| Some(pid) != masters)
            .collect()
    }

    /// Workers that are to stay: not told to leave.
    pub fn serving(&self, kernel: &Kernel) -> Vec<i32> {
        let master = self.master();
        let parent = |pid| process::stat(pid).map(|stat| stat.parent);
        self.workers(kernel)
            .into_iter()
            .filter(|&pid| !process::title(pid).contains("shutting down") && parent(pid) == master)
            .collect()
    }

    /// All of it that lives.
    pub fn family(&self, kernel: &Kernel) -> Vec<i32> {
        let mut all = self.masters(kernel);
        all.extend(self.workers(kernel));
        if self.front.is_nginx() {
            // Between fork and the setting of its title, or before it is a master.
            all.extend(titled(kernel, |title| title.starts_with(artifacts::NGINX)));
        }
        all
    }

    /// Reaps the example server's master, whose parent we are.
    pub fn reap(&mut self) {
        if let Some(child) = self.child.as_mut() {
            let _ = child.try_wait();
        }
    }

    /// Waits until its master is gone, as far as that takes a parent.
    pub fn reap_until_gone(&mut self) {
        wait::poll(Duration::from_secs(20), || {
            self.reap();
            self.master().is_none().then_some(())
        });
    }

    /// Kills all of it.
    pub fn kill_all(&mut self, kernel: &Kernel) -> Result<(), String> {
        let mut empty_since = None;
        let dead = wait::poll(Duration::from_secs(15), || {
            self.reap();
            let family = self.family(kernel);
            family.iter().for_each(|&pid| process::send(pid, Signal::KILL));
            // Of who was just being forked, we hear a moment later.
            is_empty_for(&mut empty_since, family.is_empty(), kernel.lag()).then_some(())
        });
        dead.ok_or_else(|| format!("processes that cannot be killed: {:?}", self.family(kernel)))
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.folder.read("stdio.log") + &self.folder.read("error.log")
    }

    /// Where it is asked for pages.
    pub fn socket(&self) -> PathBuf {
        self.folder.at("http.sock")
    }

    /// Keeps its folder for somebody who wants to know.
    pub fn keep(&self, where_to: &Path) -> Result<(), String> {
        fs::create_dir_all(where_to).map_err(|e| format!("{}: {e}", where_to.display()))?;
        let done = Command::new("cp").arg("-a").arg(self.folder.at(".")).arg(where_to).status();
        match done {
            // Sockets are copied as well as they can be.
            Ok(_) => Ok(()),
            Err(error) => Err(format!("cp: {error}")),
        }
    }
}

impl Drop for Server {
    /// Nothing is left behind, also by a campaign that broke.
    fn drop(&mut self) {
        let Some(master) = self.master() else { return };
        let workers = process::descendants(master);
        // First, or it would start others.
        process::send(master, Signal::KILL);
        workers.into_iter().for_each(|pid| process::send(pid, Signal::KILL));
    }
}

/// Whether it has been so for that long.
pub fn is_empty_for(since: &mut Option<Instant>, is: bool, long: Duration) -> bool {
    *since = is.then(|| since.unwrap_or_else(Instant::now));
    since.is_some_and(|since| since.elapsed() >= long)
}

/// Waits until a master has forked. Before, both servers may take a signal and think of it only at the next one.
pub fn begun(master: i32) -> Result<(), String> {
    let forks = wait::poll(Duration::from_secs(10), || {
        (!process::children(master).is_empty() || !process::is_alive(master)).then_some(())
    });
    forks.ok_or_else(|| format!("master {master} has no worker within 10 s"))
}

fn titled(kernel: &Kernel, fits: impl Fn(&str) -> bool) -> Vec<i32> {
    let mut alive = kernel.alive();
    alive.sort_by_key(|process| process.began);
    alive
        .into_iter()
        .map(|process| process.pid)
        .filter(|&pid| process::is_alive(pid) && fits(&process::title(pid)))
        .collect()
}
