//! A real nginx that belongs to one test.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;

use crate::folder::Folder;
use crate::ledger::Ledger;
use crate::leftovers::Leftovers;
use crate::report::{Kind, Report, Reports};
use crate::setup::{Integration, Setup, Who};
use crate::wait::{self, PATIENCE};
use crate::{artifacts, native, process};

/// What a test's nginx runs, as the Lua module `recorder`.
pub const RECORDER: &str = include_str!("recorder.lua");

/// Never expected in error.log unless a test says so.
const BAD: [&str; 5] = ["[alert]", "[emerg]", "[crit]", "stack traceback", "lua entry thread aborted"];

/// A server with its folder, its configuration and everything that it started.
#[derive(Debug)]
pub struct Nginx {
    pub(crate) folder: Folder,
    setup: RefCell<Setup>,
    commands: RefCell<Vec<String>>,
    /// Every process ever seen of it: pid and start time, which together name one for ever.
    seen: RefCell<BTreeMap<i32, u64>>,
    /// The process that we started ourselves, when it does not daemonise.
    child: RefCell<Option<Child>>,
    leftovers: Leftovers,
    checked: Cell<bool>,
    /// When each report of error.log was first seen.
    seen_at: RefCell<Vec<u64>>,
}

impl Nginx {
    /// Prepares a folder and a configuration; starts nothing.
    pub fn prepare(setup: Setup) -> Self {
        artifacts::require_nginx();
        let nginx = Self {
            folder: Folder::new(),
            setup: RefCell::new(setup),
            commands: RefCell::default(),
            seen: RefCell::default(),
            child: RefCell::default(),
            leftovers: Leftovers::before(),
            checked: Cell::new(false),
            seen_at: RefCell::default(),
        };
        nginx.folder.write("recorder.lua", RECORDER);
        nginx.configure();
        nginx
    }

    /// Prepares and starts; returns when the kernel shows the master and all its workers.
    #[track_caller]
    pub fn start(setup: Setup) -> Self {
        let nginx = Self::prepare(setup);
        nginx.run();
        nginx
    }

    /// Starts and waits until every worker has reported that it is there.
    #[track_caller]
    pub fn start_ready(setup: Setup) -> Self {
        let nginx = Self::start(setup);
        nginx.ready(1);
        nginx
    }

    /// Waits until all workers of a generation have reported their start.
    #[track_caller]
    pub fn ready(&self, generation: u64) {
        let workers = self.setup.borrow().workers as usize;
        self.wait_for(&format!("{workers} workers of generation {generation}"), PATIENCE, |all| {
            all.at_least(workers, Kind::WorkerStarted, generation)
        });
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// How headcount gets into it.
    pub fn integration(&self) -> Integration {
        self.setup.borrow().integration
    }

    /// A path in its folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.at(name)
    }

    /// Where the registry is, unless the test says otherwise.
    pub fn registry(&self) -> PathBuf {
        self.at("run/registry")
    }

    /// Changes the setup and the configuration file; a reload makes it count.
    pub fn change(&self, change: impl FnOnce(Setup) -> Setup) {
        let changed = change(self.setup.borrow().clone());
        *self.setup.borrow_mut() = changed;
        self.configure();
    }

    fn configure(&self) {
        let text = self.setup.borrow().render(self.folder());
        self.folder.write("nginx.conf", &text);
    }

    /// Writes a configuration that is none.
    pub fn configure_nonsense(&self) {
        self.folder.write("nginx.conf", "this is no directive;\n");
    }

    /// For workers that load Lua's modules and the library themselves: where they were built, others may not be allowed to look.
    pub fn copy_library(&self) {
        let copied = Command::new("cp")
            .arg("-r")
            .args([
                artifacts::lua_folder().join("resty"),
                artifacts::library_folder().join("libheadcount.so"),
            ])
            .arg(self.folder())
            .status();
        assert!(copied.is_ok_and(|status| status.success()), "cp failed");
    }

    /// `nginx -p … -c …` with more arguments, its environment set.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let setup = self.setup.borrow();
        let prefix = setup.prefix.clone().unwrap_or_else(|| self.folder().to_owned());
        let nginx = artifacts::nginx(setup.server);
        let mut command = match setup.before.split_first() {
            Some((first, more)) => {
                let mut command = Command::new(first);
                command.args(more).arg(nginx);
                command
            }
            None => Command::new(nginx),
        };
        command
            .arg("-p")
            .arg(prefix)
            .arg("-c")
            .arg(self.at("nginx.conf"))
            .args(arguments)
            .env("HEADCOUNT_RUNTIME_DIR", self.at("run"))
            .envs(
                setup.env.iter().map(|(name, value)| {
                    (name, value.replace("@FOLDER@", &self.folder().display().to_string()))
                }),
            )
            .stdin(Stdio::null());
        self.commands.borrow_mut().push(format!("{command:?}"));
        command
    }

    /// Runs nginx as a command, such as `-t` or `-s reload`, to its end.
    pub fn ask(&self, arguments: &[&str]) -> std::process::Output {
        self.command(arguments).output().expect("nginx can be started")
    }

    /// Starts the server, also again after it has stopped, and waits till master and workers are there.
    #[track_caller]
    pub fn run(&self) {
        self.launch();
        self.settled();
    }

    /// Starts the server and waits for nothing but its pid file.
    #[track_caller]
    pub fn launch(&self) {
        let log = File::create(self.at("stdio.log")).expect("our own folder can be written to");
        let copy = log.try_clone().expect("a descriptor can be copied");
        let mut command = self.command(&[]);
        command.stdout(log).stderr(copy);
        // nginx does not take over the socket file of a server that was killed.
        for stale in ["nginx.pid", "http.sock", "attack.sock"] {
            let _ = fs::remove_file(self.at(stale));
        }
        let mut child = command.spawn().expect("nginx can be started");
        if self.setup.borrow().daemon {
            let status = child.wait().expect("our own child can be waited for");
            if !status.success() {
                self.fail(&format!("nginx did not start: {status}"));
            }
        } else {
            *self.child.borrow_mut() = Some(child);
        }
        self.wait_until("a living master", || self.master_if_any().filter(|&pid| process::is_alive(pid)));
    }

    /// Waits till the kernel shows as many serving workers as the configuration wants.
    #[track_caller]
    pub fn settled(&self) {
        let (single, workers) = {
            let setup = self.setup.borrow();
            (setup.single, setup.workers as usize)
        };
        self.wait_until("all workers to serve", || (single || self.workers().len() == workers).then_some(()));
    }

    /// The master's pid by its pid file.
    #[track_caller]
    pub fn master(&self) -> i32 {
        match self.master_if_any() {
            Some(pid) => pid,
            None => self.fail("there is no pid file"),
        }
    }

    /// The same, when there is a pid file.
    pub fn master_if_any(&self) -> Option<i32> {
        let pid = self.folder.read("nginx.pid").trim().parse().ok()?;
        let pid = match self.setup.borrow().namesake {
            Some(namesake) => process::outer_pid(namesake, pid)?,
            None => pid,
        };
        self.note_seen(pid);
        Some(pid)
    }

    /// The pids of its workers that serve, by the kernel.
    #[track_caller]
    pub fn workers(&self) -> Vec<i32> {
        self.workers_of(self.master())
    }

    /// Those of a certain master.
    pub fn workers_of(&self, master: i32) -> Vec<i32> {
        self.titled(master, |title| title == "nginx: worker process")
    }

    /// Children of a master whose title fits.
    pub fn titled(&self, master: i32, fits: impl Fn(&str) -> bool) -> Vec<i32> {
        let children = process::children(master);
        for &child in &children {
            self.note_seen(child);
        }
        children.into_iter().filter(|&pid| fits(&process::title(pid))).collect()
    }

    pub(crate) fn note_seen(&self, pid: i32) {
        if let Some(stat) = process::stat(pid) {
            self.seen.borrow_mut().insert(pid, stat.started);
        }
    }

    /// Everything that is alive and belongs to this server.
    pub fn family(&self) -> Vec<i32> {
        // A trailing slash: folder 1 is not folder 10.
        let below = format!("{}/", self.folder().display());
        for stat in process::with_files_below(&below) {
            self.seen.borrow_mut().insert(stat.pid, stat.started);
        }
        let seen = self.seen.borrow();
        let mut alive: Vec<i32> = seen
            .iter()
            .filter(|&(&pid, &started)| {
                process::stat(pid).is_some_and(|s| s.started == started && s.state != 'Z')
            })
            .map(|(&pid, _)| pid)
            .collect();
        // Masters first: when they are gone, nobody respawns.
        alive.sort_by_key(|&pid| (!process::title(pid).contains("master"), pid));
        alive
    }

    /// All reports so far.
    pub fn reports(&self) -> Reports {
        match self.setup.borrow().integration {
            Integration::Lua | Integration::Both => Reports::parse(&self.folder.read("reports.jsonl")),
            Integration::Native => self.logged_reports(),
        }
    }

    /// The reports of error.log. It has no clock of use: what tests see counts, and the order is that of the lines.
    pub fn logged_reports(&self) -> Reports {
        let text = self.folder.read("error.log");
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        let now = wait::boot_clock();
        let mut seen_at = self.seen_at.borrow_mut();
        let mut all = Vec::new();
        for line in whole.lines() {
            let last = all.last().map_or(0, |r: &Report| r.at);
            let at = seen_at.get(all.len()).copied().unwrap_or(now.max(last + 1));
            let Some(report) = native::report(line, at) else { continue };
            if seen_at.len() == all.len() {
                seen_at.push(at);
            }
            all.push(report);
        }
        Reports(all)
    }

    /// The file that reports come in.
    fn report_file(&self) -> PathBuf {
        self.at(match self.setup.borrow().integration {
            Integration::Lua | Integration::Both => "reports.jsonl",
            Integration::Native => "error.log",
        })
    }

    /// Begins a new page: what was reported so far is no part of the test.
    pub fn forget_reports(&self) {
        fs::write(self.at("reports.jsonl"), "").expect("our own file");
        fs::write(self.at("error.log"), "").expect("our own file");
        self.seen_at.borrow_mut().clear();
    }

    /// Opens the books over all reports so far.
    #[track_caller]
    pub fn ledger(&self) -> Ledger {
        match self.setup.borrow().who {
            Who::Native => Ledger::new(self.reports()),
            _ => Ledger::unchecked(self.reports()),
        }
    }

    /// Waits until the reports fit, and fails with all that is known when they don't in time.
    #[track_caller]
    pub fn wait_for<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut fits: impl FnMut(&Reports) -> Option<T>,
    ) -> T {
        let mut length = u64::MAX;
        let found = wait::poll(timeout, || {
            let now = fs::metadata(self.report_file()).map_or(0, |meta| meta.len());
            if now == length {
                return None;
            }
            length = now;
            fits(&self.reports())
        });
        match found {
            Some(found) => found,
            None => self.fail(&format!("did not come within {timeout:?}: {what}")),
        }
    }

    /// Waits for anything else.
    #[track_caller]
    pub fn wait_until<T>(&self, what: &str, condition: impl FnMut() -> Option<T>) -> T {
        match wait::poll(PATIENCE, condition) {
            Some(found) => found,
            None => self.fail(&format!("did not come within {PATIENCE:?}: {what}")),
        }
    }

    /// What was logged so far. nginx opens error.log only after it has read its first configuration: what
    /// was said before went to standard error.
    pub fn log(&self) -> String {
        self.folder.read("stdio.log") + &self.folder.read("error.log")
    }

    /// Sends a signal to the master and waits until every process of the server is gone: from then on
    /// nothing can be reported any more, so what was reported is all there is.
    #[track_caller]
    pub fn end(&self, signal: Signal) -> Ledger {
        self.family();
        // A server that was told to stop before may have gone by now.
        if let Some(master) = self.master_if_any() {
            process::send(master, signal);
        }
        self.gone();
        self.checked_log();
        self.ledger()
    }

    /// Waits until every process of the server is gone.
    #[track_caller]
    pub fn gone(&self) {
        let gone = wait::poll(PATIENCE, || {
            self.reap();
            self.family().is_empty().then_some(())
        });
        if gone.is_none() {
            let titles: Vec<String> =
                self.family().into_iter().map(|pid| format!("{pid} {}", process::title(pid))).collect();
            self.fail(&format!("still there after {PATIENCE:?}: {titles:?}"));
        }
    }

    fn reap(&self) {
        if let Some(child) = self.child.borrow_mut().as_mut() {
            let _ = child.try_wait();
        }
    }

    /// Kills whatever is left, by pid. One that is killed in the moment in which its waker's socket has a name leaves that, whether it is
    /// killed here or by the test; a later worker would remove it, and here there is none.
    pub fn kill_all(&self) {
        let dead = wait::poll(PATIENCE, || {
            let family = self.family();
            for &pid in &family {
                process::send(pid, Signal::KILL);
            }
            self.reap();
            family.is_empty().then_some(())
        });
        assert!(dead.is_some(), "processes that cannot be killed: {:?}", self.family());
        let pid_in = |name: &str| name.strip_prefix(".headcount-")?.split('-').next()?.parse().ok();
        let is_of = |name: &str| pid_in(name).is_some_and(process::was_killed);
        for entry in fs::read_dir("/dev/shm").into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(is_of) {
                let _ = fs::remove_file(entry.path());
            }
        }
    }

    /// Lines of error.log that no test expects.
    pub fn bad_lines(&self) -> Vec<String> {
        let setup = self.setup.borrow();
        // Where it was built to log to until it has read its configuration.
        let early = artifacts::openresty().is_some().then_some("could not open error log file");
        self.log()
            .lines()
            .filter(|line| !early.is_some_and(|early| line.contains(early)))
            .filter(|line| BAD.iter().any(|bad| line.contains(bad)))
            .filter(|line| !setup.allowed.iter().any(|text| line.contains(text)))
            .map(str::to_owned)
            .collect()
    }

    #[track_caller]
    fn checked_log(&self) {
        self.checked.set(true);
        let bad = self.bad_lines();
        if !bad.is_empty() {
            self.fail(&format!("error.log has lines that it must not have:\n{}", bad.join("\n")));
        }
    }

    /// Fails the test. Everything that is known is printed when the server is dropped.
    #[track_caller]
    pub fn fail(&self, why: &str) -> ! {
        panic!("{why}\n{}", self.reports())
    }

    fn print_all(&self) {
        eprintln!("---- commands\n{}", self.commands.borrow().join("\n"));
        for file in ["nginx.conf", "stdio.log", "error.log"] {
            eprintln!("---- {}\n{}", self.at(file).display(), self.folder.read(file));
        }
        eprintln!("---- reports\n{}", self.reports());
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.print_all();
            self.kill_all();
            return;
        }
        self.kill_all();
        let pids = self.seen.borrow().keys().copied().collect();
        let left = self.leftovers.found(&pids);
        let bad = if self.checked.get() { Vec::new() } else { self.bad_lines() };
        if !left.is_empty() || !bad.is_empty() {
            self.print_all();
            panic!("left behind: {left:?}; lines that error.log must not have: {bad:#?}");
        }
    }
}
