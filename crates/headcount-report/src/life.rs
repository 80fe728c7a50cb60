//! How much there is of a node, and whose it is: what decides which of several is meant.

use headcount::{Liveness, Snapshot};

/// How much there is of a node, from nothing up. Of several nodes of one name the one with the most of it is meant: a server that was
/// stopped does not stand in the way of one that runs, nor does one that is being started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Life {
    /// Nothing is known of it.
    Unreadable,
    /// All of its processes are gone.
    Gone,
    /// A master without a generation in force: it is being started, or cannot start.
    Announced,
    /// It serves, as far as is known.
    Serving,
}

impl Life {
    /// Of this node.
    #[must_use]
    pub fn of(snapshot: &Snapshot) -> Life {
        match (snapshot.liveness(), snapshot.newest_committed()) {
            (Liveness::Gone, _) => Life::Gone,
            (_, None) => Life::Announced,
            (_, Some(_)) => Life::Serving,
        }
    }
}

/// How much a node is the one that its name means on its host. The greatest is meant: one that is ours ([`headcount::is_ours`]) before those of others,
/// who could take a name from it, and of these the one that there is most of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Claim {
    // Compared in this order.
    is_ours: bool,
    life: Life,
}

impl Claim {
    /// Of this node.
    #[must_use]
    pub fn of(is_ours: bool, snapshot: &Snapshot) -> Claim {
        Claim { is_ours, life: Life::of(snapshot) }
    }

    /// Whether there is anything of it that somebody could miss.
    #[must_use]
    pub fn lives(self) -> bool {
        self.life > Life::Gone
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_is_meant_before_those_of_others_and_of_these_the_one_that_lives() {
        let claim = |is_ours, life| Claim { is_ours, life };
        let order = [
            claim(false, Life::Unreadable),
            claim(false, Life::Gone),
            claim(false, Life::Serving),
            claim(true, Life::Gone),
            claim(true, Life::Announced),
            claim(true, Life::Serving),
        ];
        assert!(order.is_sorted() && order.windows(2).all(|pair| pair[0] != pair[1]), "{order:?}");
        assert_eq!(order.map(Claim::lives), [false, false, true, false, true, true]);
    }
}
