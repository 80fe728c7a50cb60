//! How often a process looks at the others.

use std::time::Duration;

/// The last looks: who is woken in vain again and again (many workers join at once, or somebody means harm) rests a
/// little before the next one.
#[derive(Default)]
pub(crate) struct Looks {
    last: u64,
    /// In a row, each soon after the one before.
    in_vain: u32,
}

impl Looks {
    const SHORTEST_REST: u64 = 5_000_000;
    const LONGEST_REST: u64 = 20_000_000;
    const MOST_IN_VAIN: u32 = 4;

    /// How long to rest now: longer, the longer it has been in vain.
    pub(crate) fn rest(&self, now: u64) -> Option<Duration> {
        let doubled = self.in_vain.checked_sub(Looks::MOST_IN_VAIN)?;
        let rest = Looks::LONGEST_REST.min(Looks::SHORTEST_REST << doubled.min(8));
        let until = self.last.saturating_add(rest);
        (now < until).then(|| Duration::from_nanos(until - now))
    }

    pub(crate) fn note(&mut self, now: u64, in_vain: bool) {
        let soon = now < self.last.saturating_add(2 * Looks::LONGEST_REST);
        self.in_vain = match (in_vain, soon) {
            (false, _) => 0,
            (true, true) => self.in_vain.saturating_add(1),
            (true, false) => 1,
        };
        self.last = now;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_woken_in_vain_again_and_again_rests() {
        const MS: u64 = 1_000_000;
        let mut looks = Looks::default();
        let mut now = 1_000 * MS;
        let mut rests = Vec::new();
        for _ in 0..8 {
            rests.push(looks.rest(now).map_or(0, |rest| rest.as_millis()));
            now += MS;
            looks.note(now, true);
        }
        assert_eq!(rests, [0, 0, 0, 0, 5, 10, 20, 20]);
        assert_eq!(looks.rest(now + 20 * MS), None, "rested");
        looks.note(now, false);
        assert_eq!(looks.rest(now), None, "there is something to do");
        for _ in 0..8 {
            now += 1_000 * MS;
            looks.note(now, true);
        }
        assert_eq!(looks.rest(now), None, "once in a while is not again and again");
    }
}
