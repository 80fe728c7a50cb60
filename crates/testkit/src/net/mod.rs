//! Machines with a network of their own, and wires between them that a test can cut, slow down and take away.
//!
//! A machine is a set of namespaces: its network, its name, its processes, its mounts. A bridge in a network of its own joins
//! them. This machine's network is not touched. Needs root. All of it goes with the thread that made it, whatever ends that.

mod host;
mod member;
mod running;

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::room::Room;

pub use host::Host;
pub use member::{Member, start_members};
pub use running::Running;

/// What each machine has its own of.
const KINDS: [&str; 4] = ["--net", "--uts", "--pid", "--mount"];
/// No machine has this one, so what is sent to it is lost without a word.
const NOBODY: &str = "02:00:00:00:00:ff";

/// The number of a machine in its [`Net`].
pub type Number = usize;

/// All machines, and who hears whom.
#[derive(Debug)]
pub struct Net {
    bridge: Room,
    machines: Vec<Machine>,
    /// Who does not hear whom: what the first sends to the second is lost.
    cuts: BTreeSet<(Number, Number)>,
    /// Each wire has a name that was never used: the kernel takes its time to forget one.
    wires: u32,
}

#[derive(Debug)]
struct Machine {
    name: String,
    /// `None`: its power is off.
    room: Option<Room>,
    wire: String,
}

impl Net {
    /// Without any machine.
    ///
    /// # Errors
    /// Why there is none: no right to make one, or `ip` is missing.
    pub fn new() -> Result<Net, String> {
        let bridge = Room::machine(
            &["--net"],
            "ip link set lo up; ip link add bridge type bridge; ip addr add 10.77.0.254/24 dev bridge; ip link set bridge up",
        )?;
        Ok(Net { bridge, machines: Vec::new(), cuts: BTreeSet::new(), wires: 0 })
    }

    /// One more machine, which is on.
    #[track_caller]
    pub fn add(&mut self, name: &str) -> Number {
        self.machines.push(Machine { name: name.to_owned(), room: None, wire: String::new() });
        let number = self.machines.len() - 1;
        self.power_on(number);
        number
    }

    /// Its name.
    pub fn name(&self, machine: Number) -> &str {
        &self.machines[machine].name
    }

    /// Its address, which it keeps.
    pub fn address(&self, machine: Number) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, 0, u8::try_from(machine + 1).expect("less than 250 machines"))
    }

    /// Whether its power is on.
    pub fn is_on(&self, machine: Number) -> bool {
        self.machines[machine].room.is_some()
    }

    /// Takes away its power: all its processes, and its wire, at once.
    pub fn power_off(&mut self, machine: Number) {
        let Machine { room, wire, .. } = &mut self.machines[machine];
        if let Some(mut room) = room.take() {
            room.end();
            // The kernel takes its time to remove it, or has done so already.
            let mut remove = self.bridge.command("ip");
            let _ = remove.args(["link", "del", wire]).stderr(Stdio::null()).status().expect("ip is there");
        }
    }

    /// Gives it power. Nothing runs on it.
    #[track_caller]
    pub fn power_on(&mut self, machine: Number) {
        if self.is_on(machine) {
            return;
        }
        self.wires += 1;
        let (wire, address) = (format!("wire{}", self.wires), self.address(machine));
        let name = &self.machines[machine].name;
        // What is left in shared memory goes with the machine.
        let furnish = format!(
            "echo {name} > /proc/sys/kernel/hostname; ip link set lo up; mount -t tmpfs tmpfs /dev/shm"
        );
        let room = Room::machine(&KINDS, &furnish).unwrap_or_else(|e| panic!("machine {name}: {e}"));
        let mac = format!("02:00:00:00:00:{:02x}", machine + 1);
        ip(
            self.bridge.command("ip"),
            &format!(
                "link add {wire} type veth peer name eth0 address {mac} netns {}\nlink set {wire} master bridge up\n",
                room.pid()
            ),
        );
        ip(room.command("ip"), &format!("addr add {address}/24 dev eth0\nlink set eth0 up\n"));
        self.machines[machine].room = Some(room);
        self.machines[machine].wire = wire;
        for &(_, to) in self.cuts.iter().filter(|(from, _)| *from == machine) {
            self.cut_off(machine, to);
        }
    }

    /// From now on, what `from` sends to `to` is lost. The other way goes on.
    pub fn cut(&mut self, from: Number, to: Number) {
        if from != to && self.cuts.insert((from, to)) {
            self.cut_off(from, to);
        }
    }

    /// The same both ways, for each of these and each of those.
    pub fn part(&mut self, these: &[Number], those: &[Number]) {
        for &a in these {
            for &b in those {
                self.cut(a, b);
                self.cut(b, a);
            }
        }
    }

    fn cut_off(&self, from: Number, to: Number) {
        let to = self.address(to);
        self.ip(from, &format!("neigh replace {to} lladdr {NOBODY} dev eth0 nud permanent\n"));
    }

    /// All hear all again, as fast as ever.
    pub fn heal(&mut self) {
        let machines: BTreeSet<Number> =
            std::mem::take(&mut self.cuts).into_iter().map(|(from, _)| from).collect();
        for machine in machines {
            self.ip(machine, "neigh flush dev eth0 nud permanent\n");
        }
        for machine in 0..self.machines.len() {
            self.fast(machine);
        }
    }

    /// Makes its wire slow, both ways: so many kbit/s, and what waits for longer than a second is lost. (Not every kernel can
    /// delay packets; each can let them wait.)
    pub fn slow(&self, machine: Number, kbit: u32) {
        let rule = ["root", "tbf", "rate", &format!("{kbit}kbit"), "burst", "2kb", "latency", "1s"];
        let Machine { room: Some(room), wire, .. } = &self.machines[machine] else { return };
        run(room.command("tc").args(["qdisc", "replace", "dev", "eth0"]).args(rule));
        run(self.bridge.command("tc").args(["qdisc", "replace", "dev", wire]).args(rule));
    }

    /// Makes it as fast as it was.
    pub fn fast(&self, machine: Number) {
        let Machine { room: Some(room), wire, .. } = &self.machines[machine] else { return };
        // There may be nothing to take away.
        for mut command in [tc(room.command("tc"), "eth0"), tc(self.bridge.command("tc"), wire)] {
            let _ = command.stderr(Stdio::null()).status().expect("tc is there");
        }
    }

    /// A command on this machine.
    #[track_caller]
    pub fn command(&self, machine: Number, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let Machine { name, room, .. } = &self.machines[machine];
        room.as_ref().unwrap_or_else(|| panic!("machine {name} is off")).command(program)
    }

    /// A command from where all machines are heard, whatever is cut.
    pub fn beside(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.bridge.command(program)
    }

    /// Does something there.
    pub fn inside<T: Send>(&self, act: impl FnOnce() -> T + Send) -> T {
        within(&self.place(), act)
    }

    /// Does something in the network of this machine. What it opens there stays there.
    #[track_caller]
    pub fn on<T: Send>(&self, machine: Number, act: impl FnOnce() -> T + Send) -> T {
        let Machine { name, room, .. } = &self.machines[machine];
        within(&network(room.as_ref().unwrap_or_else(|| panic!("machine {name} is off"))), act)
    }

    /// The network of [`Net::beside`], for a thread that moves there.
    pub fn place(&self) -> File {
        network(&self.bridge)
    }

    /// All processes of this machine, by their numbers outside, but the one that holds it.
    pub fn processes(&self, machine: Number) -> Vec<i32> {
        let Some(room) = &self.machines[machine].room else { return Vec::new() };
        let space = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let Some(ours) = space(room.pid()) else { return Vec::new() };
        let all = crate::process::all().into_iter();
        all.map(|stat| stat.pid)
            .filter(|&pid| pid != room.pid() && space(pid).as_ref() == Some(&ours))
            .collect()
    }

    fn ip(&self, machine: Number, commands: &str) {
        if let Some(room) = &self.machines[machine].room {
            ip(room.command("ip"), commands);
        }
    }
}

fn network(room: &Room) -> File {
    File::open(format!("/proc/{}/ns/net", room.pid())).expect("it is held open")
}

/// Moves this thread into a network.
pub fn move_to(network: &File) {
    move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network)).expect("only root has one");
}

fn within<T: Send>(network: &File, act: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_to(network);
            act()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

fn tc(mut command: Command, device: &str) -> Command {
    command.args(["qdisc", "del", "dev", device, "root"]);
    command
}

#[track_caller]
fn run(command: &mut Command) {
    let done = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    assert!(done.status.success(), "{command:?}: {}", String::from_utf8_lossy(&done.stderr));
}

#[track_caller]
fn ip(mut command: Command, commands: &str) {
    command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap_or_else(|e| panic!("ip: {e}"));
    let sent = child.stdin.take().expect("it was asked for").write_all(commands.as_bytes());
    let done = child.wait_with_output().expect("our own child");
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(sent.is_ok() && done.status.success(), "ip: {commands}{said}");
}
