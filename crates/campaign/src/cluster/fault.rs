//! What can be done to a fleet: faults that a seed determines, and nothing else.

use std::fmt;

use rand::rngs::ChaCha8Rng;
use rand::{RngExt, SeedableRng};

/// The number of a host, or of a member of etcd.
pub type Number = usize;

/// One thing that goes wrong. Much of it lasts until all is made well again, at the end of a round.
#[derive(Clone, Debug, PartialEq)]
#[allow(missing_docs)]
pub enum Fault {
    WorkerKilled(Number),
    /// So many workers, one after the other.
    WorkersKilled(Number, u32),
    Reload(Number),
    MasterKilled(Number),
    ServerKilled(Number),
    ServerStarted(Number),
    AgentKilled(Number),
    /// For so many milliseconds.
    AgentStopped(Number, u64),
    AgentStarted(Number),
    /// Another one goes on in its place.
    AgentReplaced(Number),
    AgentLeaves(Number),
    /// Who stands for the role, whether it leads or not.
    LeaderKilled(Number),
    /// A process that has a role, locks and onces is killed, and another one begins.
    ClaimantKilled(Number),
    ClaimantStopped(Number, u64),
    /// Everything on it stands still.
    HostSuspended(Number, u64),
    /// The same, and when it goes on, `CLOCK_BOOTTIME` is so many seconds ahead, as after the suspend of a machine.
    HostAsleep(Number, u64, u64),
    HostOff(Number),
    HostOn(Number),
    /// Its wall clock is so many seconds off.
    ClockJumps(Number, i64),
    MemberKilled(Number),
    MemberStopped(Number, u64),
    MemberStarted(Number),
    MemberOff(Number),
    /// One hears nobody, or is heard by nobody, or both.
    HostCutOff(Number),
    HostDeaf(Number),
    HostMute(Number),
    HostCutFromOne(Number, Number),
    MemberCutOff(Number),
    MemberDeaf(Number),
    MemberMute(Number),
    /// From the other members, but not from the hosts.
    MemberAlone(Number),
    /// No member hears another.
    AllMembersApart,
    /// This host and this member on one side.
    Island(Number, Number),
    SlowHost(Number, u32),
    SlowMember(Number, u32),
    Healed,
    Full,
    Compacted,
    Defragmented(Number),
    /// The state of etcd is kept, to be set back to.
    Kept,
    SetBack,
}

impl Fault {
    /// Its kind, for the sums.
    pub fn kind(&self) -> &'static str {
        match self {
            Fault::WorkerKilled(_) => "a worker is killed",
            Fault::WorkersKilled(..) => "several workers are killed",
            Fault::Reload(_) => "a server reloads",
            Fault::MasterKilled(_) => "a master is killed",
            Fault::ServerKilled(_) => "a server is killed",
            Fault::ServerStarted(_) => "a server is started",
            Fault::AgentKilled(_) => "an agent is killed",
            Fault::AgentStopped(..) => "an agent stands still",
            Fault::AgentStarted(_) => "an agent is started",
            Fault::AgentReplaced(_) => "an agent is replaced",
            Fault::AgentLeaves(_) => "an agent leaves",
            Fault::LeaderKilled(_) => "who stands for a role is killed",
            Fault::ClaimantKilled(_) => "a claimant is killed",
            Fault::ClaimantStopped(..) => "a claimant stands still",
            Fault::HostSuspended(..) => "a host stands still",
            Fault::HostAsleep(..) => "a host's CLOCK_BOOTTIME jumps",
            Fault::HostOff(_) => "a host loses its power",
            Fault::HostOn(_) => "a host has power again",
            Fault::ClockJumps(..) => "a host's wall clock jumps",
            Fault::MemberKilled(_) => "a member is killed",
            Fault::MemberStopped(..) => "a member stands still",
            Fault::MemberStarted(_) => "a member is started",
            Fault::MemberOff(_) => "a member's machine loses its power",
            Fault::HostCutOff(_) => "a host is cut off",
            Fault::HostDeaf(_) => "a host hears nobody",
            Fault::HostMute(_) => "a host is not heard",
            Fault::HostCutFromOne(..) => "a host is cut from a member",
            Fault::MemberCutOff(_) => "a member is cut off",
            Fault::MemberDeaf(_) => "a member hears nobody",
            Fault::MemberMute(_) => "a member is not heard",
            Fault::MemberAlone(_) => "a member is cut from the others",
            Fault::AllMembersApart => "all members are cut from each other",
            Fault::Island(..) => "a host and a member are cut from the rest",
            Fault::SlowHost(..) => "a host's wire is slow",
            Fault::SlowMember(..) => "a member's wire is slow",
            Fault::Healed => "all wires are well again",
            Fault::Full => "etcd is full",
            Fault::Compacted => "history is compacted",
            Fault::Defragmented(_) => "a member is defragmented",
            Fault::Kept => "etcd's state is kept",
            Fault::SetBack => "etcd is set back",
        }
    }

    /// Whether it keeps this host from being heard by etcd, as far as can be told beforehand.
    pub fn touches(&self, host: Number) -> bool {
        match self {
            Fault::WorkerKilled(_)
            | Fault::WorkersKilled(..)
            | Fault::Reload(_)
            | Fault::MasterKilled(_)
            | Fault::ServerKilled(_)
            | Fault::ServerStarted(_)
            | Fault::ClockJumps(..)
            | Fault::LeaderKilled(_)
            | Fault::ClaimantKilled(_)
            | Fault::ClaimantStopped(..)
            | Fault::Healed
            | Fault::Compacted
            | Fault::Kept => false,
            Fault::AgentKilled(n)
            | Fault::AgentStopped(n, _)
            | Fault::AgentStarted(n)
            | Fault::AgentReplaced(n)
            | Fault::AgentLeaves(n)
            | Fault::HostSuspended(n, _)
            | Fault::HostAsleep(n, ..)
            | Fault::HostOff(n)
            | Fault::HostOn(n)
            | Fault::HostCutOff(n)
            | Fault::HostDeaf(n)
            | Fault::HostMute(n)
            | Fault::HostCutFromOne(n, _)
            | Fault::SlowHost(n, _) => *n == host,
            // What happens to etcd happens to all.
            _ => true,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

/// A fault, and how long nothing more is done after it.
#[derive(Clone, Debug)]
pub struct Step {
    /// What is done.
    pub fault: Fault,
    /// In milliseconds.
    pub pause: u64,
}

/// The faults of a round.
pub fn round(seed: u64, number: u64, length: usize, hosts: usize, members: usize) -> Vec<Step> {
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ number.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    // Some rounds are about one thing, so that it is seen without the noise of all others.
    let theme = random.random_range(0..8_u32);
    (0..length)
        .map(|_| {
            let pause = match random.random_range(0..10_u32) {
                0..6 => random.random_range(0..150),
                6..9 => random.random_range(150..700),
                _ => random.random_range(700..3_500),
            };
            Step { fault: fault(&mut random, theme, hosts, members), pause }
        })
        .collect()
}

fn fault(random: &mut ChaCha8Rng, theme: u32, hosts: usize, members: usize) -> Fault {
    let host = random.random_range(0..hosts);
    let member = random.random_range(0..members);
    let kbit = random.random_range(24..200);
    let still = random.random_range(100..5_000);
    let of_servers = [
        Fault::WorkerKilled(host),
        Fault::WorkerKilled(host),
        Fault::WorkersKilled(host, random.random_range(2..30)),
        Fault::Reload(host),
        Fault::MasterKilled(host),
        Fault::ServerKilled(host),
        Fault::ServerStarted(host),
    ];
    let of_agents = [
        Fault::AgentKilled(host),
        Fault::AgentStopped(host, still),
        Fault::AgentStarted(host),
        Fault::AgentReplaced(host),
        Fault::AgentReplaced(host),
        Fault::AgentLeaves(host),
        Fault::LeaderKilled(host),
        Fault::ClaimantKilled(host),
        Fault::ClaimantStopped(host, still),
        Fault::HostSuspended(host, still),
        Fault::HostAsleep(host, still, random.random_range(2..120)),
        Fault::HostOff(host),
        Fault::HostOn(host),
        Fault::ClockJumps(host, random.random_range(-4_000_000_000..4_000_000_000)),
    ];
    let of_members = [
        Fault::MemberKilled(member),
        Fault::MemberStopped(member, still),
        Fault::MemberStarted(member),
        Fault::MemberStarted(member),
        Fault::MemberOff(member),
        Fault::Defragmented(member),
        Fault::Compacted,
        Fault::Kept,
        Fault::SetBack,
        Fault::Full,
    ];
    let of_wires = [
        Fault::HostCutOff(host),
        Fault::HostDeaf(host),
        Fault::HostMute(host),
        Fault::HostCutFromOne(host, member),
        Fault::MemberCutOff(member),
        Fault::MemberDeaf(member),
        Fault::MemberMute(member),
        Fault::MemberAlone(member),
        Fault::AllMembersApart,
        Fault::Island(host, member),
        Fault::SlowHost(host, kbit),
        Fault::SlowMember(member, kbit),
        Fault::Healed,
        Fault::Healed,
    ];
    let groups: [&[Fault]; 4] = [&of_servers, &of_agents, &of_members, &of_wires];
    // Something always happens on the hosts: otherwise there is nothing to tell.
    let group = match (theme, random.random_range(0..10_u32)) {
        (_, 0..3) => 0,
        (1..4, 3..8) => theme as usize,
        _ => random.random_range(0..4),
    };
    let all = groups[group];
    all[random.random_range(0..all.len())].clone()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_means_the_same_faults_for_ever_and_all_kinds_come() {
        let faults = |seed, number| {
            round(seed, number, 50, 3, 3).into_iter().map(|step| step.fault).collect::<Vec<_>>()
        };
        assert_eq!(faults(7, 1), faults(7, 1));
        assert_ne!(faults(7, 1), faults(7, 2));
        assert_ne!(faults(7, 1), faults(8, 1));
        let kinds: std::collections::BTreeSet<_> =
            (0..100).flat_map(|n| faults(1, n)).map(|fault| fault.kind()).collect();
        assert_eq!(kinds.len(), 41, "{kinds:?}");
    }
}
