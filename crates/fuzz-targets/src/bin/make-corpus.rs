//! Makes the part of the corpus that is no finding: registries of a real node at moments of its life, and what operators and
//! browsers write. `make-corpus FOLDER`.

use std::fs;
use std::path::PathBuf;

use attacker::format::format;
use fuzz_targets::image::{RECORDS, SLOTS, pack};
use headcount::{Begin, Generation, Join, Master, Options, Wait, Worker};
use nix::sys::signal::{Signal, kill, raise};
use nix::sys::wait::waitpid;
use nix::unistd::{ForkResult, Pid, fork};

const DIRECTIVES: [&str; 8] = [
    "on",
    "off slots=8",
    "shop path=run/shop.registry heartbeat=1s stall=5s lock_timeout=30s slots=64",
    "stall=1 heartbeat=2",
    "path=/run/x\n/usr/share/nginx/\n/root\n-c\n/etc/nginx/other.conf",
    "on\nprefix\n/srv/a folder\n-p\nprefix/\n-qc\nconf/../x.conf\n-g\ndaemon off;",
    "on\n/opt/x\n/\n-p/opt/x//./y\n-c/etc/nginx.conf",
    "slots=1 slots=2",
];

const ACCEPTS: [&str; 5] = [
    "text/html,application/xhtml+xml,application/xml;q=0.9,image/webp,*/*;q=0.8",
    "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1",
    "application/json;q=\"0.5\";x=\"\\\"\"",
    "text/html;q=x, ;;, ,text/plain;Q=1e9",
    "prometheus",
];

fn main() {
    let Some(folder) = std::env::args_os().nth(1).map(PathBuf::from) else {
        panic!("make-corpus FOLDER");
    };
    let corpus = Corpus { folder, node: tempfile::tempdir_in("/dev/shm").expect("a folder") };
    for (index, text) in DIRECTIVES.iter().enumerate() {
        corpus.write("directive", &index.to_string(), text.as_bytes());
    }
    for (index, text) in ACCEPTS.iter().enumerate() {
        corpus.write("accept", &index.to_string(), text.as_bytes());
    }
    corpus.file();
    corpus.life();
}

struct Corpus {
    folder: PathBuf,
    node: tempfile::TempDir,
}

impl Corpus {
    fn write(&self, target: &str, name: &str, bytes: &[u8]) {
        let folder = self.folder.join(target);
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(folder.join(format!("real-{name}")), bytes).expect("write");
    }

    /// Files that are registries, and some that are nearly.
    fn file(&self) {
        for (name, slots, records) in [("smallest", 2, 64), ("small", 64, 64), ("default", 1024, 4096)] {
            let path = self.node.path().join(format!("{name}.registry"));
            let master =
                Options::new("file").path(&path).slots(slots).journal_records(records).open().expect("open");
            let (_, transitions) = master.begin(Begin::new(), Wait::Timeout).expect("begin");
            transitions.run(|_| ());
            let bytes = fs::read(&path).expect("read");
            let sized = |size: usize| {
                [b"size:", &u32::try_from(size).expect("small").to_le_bytes()[..], &bytes[..800]].concat()
            };
            self.write("file", name, &sized(bytes.len()));
            self.write("file", &format!("{name}-short"), &sized(bytes.len() - 4096));
        }
        self.write("file", "cut", b"HEADCNT\n\x02\0\0\0");
        self.write("file", "text", b"127.0.0.1 localhost\n");
    }

    /// A node from its start to its stop, with two workers in each of two generations, of which some die.
    fn life(&self) {
        let path = self.node.path().join("life.registry");
        let master =
            Options::new("life").path(&path).slots(SLOTS).journal_records(RECORDS).open().expect("open");
        let mut living = vec![std::process::id(), std::os::unix::process::parent_id()];
        let note = |name: &str, living: &[u32]| {
            let registry = fs::read(&path).expect("read");
            let packed = pack(&registry, living);
            self.write("reader", name, &packed);
            self.write("opening", &format!("{name}-at-its-end"), &pack(&at_its_end(registry), living));
            // Without a lock file, and with one.
            self.write("opening", name, &packed);
            self.write("opening", &format!("{name}-locked"), &[&packed[..], &[1]].concat());
            for seed in 0..3u8 {
                let choices = (0..96u8).map(|i| i.wrapping_mul(i).wrapping_mul(31).wrapping_add(seed * 71));
                self.write(
                    "member",
                    &format!("{name}-{seed}"),
                    &[packed.clone(), choices.collect()].concat(),
                );
            }
        };
        note("opened", &living);
        let first = begin(&master, 2);
        note("announced", &living);
        master.commit(first.id());
        let (one, two) = (worker(&first, 0), worker(&first, 1));
        living.push(one.as_raw().unsigned_abs());
        note("serving", &living);
        let second = begin(&master, 2);
        master.commit(second.id());
        let (three, four) = (worker(&second, 0), worker(&second, 1));
        note("reloaded", &living);
        end(two, Signal::SIGTERM);
        note("drained", &living);
        end(three, Signal::SIGKILL);
        note("unreported-death", &living);
        let (watching, transitions) = second.join(Join::worker(None).respawned(true)).expect("join");
        let mut is_first = true;
        transitions.run(|_| {
            if std::mem::take(&mut is_first) {
                note("in-a-callback", &living);
            }
        });
        watch(&watching);
        note("reported-death", &living);
        end(one, Signal::SIGTERM);
        end(four, Signal::SIGKILL);
        watching.drain(Wait::Timeout).expect("drain").run(|_| ());
        note("draining-alone", &living);
        watching.leave(Wait::Timeout).expect("leave").run(|_| ());
        let abandoned = begin(&master, 1);
        master.abandon(abandoned.id());
        note("abandoned", &living);
        master.leave(Wait::Timeout).expect("leave").run(|_| ());
        note("stopped", &living);
    }
}

fn begin(master: &Master, workers: u32) -> Generation {
    let (generation, transitions) =
        master.begin(Begin::new().workers(workers), Wait::Timeout).expect("begin");
    transitions.run(|_| ());
    generation
}

/// The journal says that it has had as many events as there are numbers.
fn at_its_end(mut registry: Vec<u8>) -> Vec<u8> {
    let head = format().table("Header").field("head");
    registry[head.offset..][..head.bytes].fill(0xff);
    registry
}

fn watch(worker: &Worker) {
    worker.watch().expect("watch").process().expect("look").run(|_| ());
}

/// A process that serves until it is told to go.
fn worker(generation: &Generation, number: u32) -> Pid {
    // SAFETY: this process has one thread.
    match unsafe { fork() }.expect("fork") {
        ForkResult::Parent { child } => {
            let flags = nix::sys::wait::WaitPidFlag::WUNTRACED;
            waitpid(child, Some(flags)).expect("it stops when it serves");
            kill(child, Signal::SIGCONT).expect("go on");
            child
        }
        ForkResult::Child => {
            let signals = nix::sys::signal::SigSet::from(Signal::SIGTERM);
            signals.thread_block().expect("block");
            let (worker, transitions) = generation.join(Join::worker(Some(number))).expect("join");
            transitions.run(|_| ());
            raise(Signal::SIGSTOP).expect("stop");
            signals.wait().expect("wait");
            worker.drain(Wait::Timeout).expect("drain").run(|_| ());
            worker.leave(Wait::Timeout).expect("leave").run(|_| ());
            std::process::exit(0)
        }
    }
}

fn end(worker: Pid, signal: Signal) {
    kill(worker, signal).expect("kill");
    waitpid(worker, None).expect("wait");
}
