//! Who watches: which worker is the sentinel, and which its deputy.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use super::{Facts, Intent, SlotFacts};
use crate::event::GenerationId;

/// Which workers hear the same bell: those of one master.
pub(crate) struct Families(BTreeMap<GenerationId, u32>);

impl Families {
    pub(crate) fn of(facts: &Facts) -> Families {
        Families(facts.generations.iter().map(|g| (g.id, g.master_slot)).collect())
    }

    fn find(&self, slot: &SlotFacts) -> Option<u32> {
        self.0.get(&slot.generation).copied()
    }
}

impl Facts {
    /// Whether this worker is to be the sentinel in place of `holder`. `may_judge`: it was awake, so the others' heartbeats
    /// prove something.
    pub(crate) fn takes_over(
        &self,
        families: &Families,
        holder: Option<&SlotFacts>,
        me: &SlotFacts,
        may_judge: bool,
    ) -> bool {
        let stall_after = if may_judge { self.stall_after } else { u64::MAX };
        // Where workers start is where the bell is rung.
        let fit = self.slots.iter().filter(|s| s.is_fit(self.now, stall_after));
        let newest = fit.max_by_key(|s| s.generation).map(|s| families.find(s));
        let hears = |s: &SlotFacts| newest.is_none_or(|newest| families.find(s) == newest);
        if holder.is_some_and(|s| s.is_fit(self.now, stall_after) && (hears(s) || !hears(me))) {
            return false;
        }
        // Else somebody does it who has longer to live.
        me.intent == Intent::Serving
            || !self.slots.iter().any(|s| s.index != me.index && s.is_fit(self.now, self.stall_after))
    }

    /// The first who is to take over from the sentinel among the workers of this one's master: of those who are fit, one of the
    /// newest generation, which lives longest.
    pub(crate) fn deputy(&self, families: &Families, sentinel: Option<u32>, me: &SlotFacts) -> Option<u32> {
        let ours = families.find(me);
        let others = self.slots.iter().filter(|s| {
            Some(s.index) != sentinel && families.find(s) == ours && s.is_fit(self.now, self.stall_after)
        });
        others.max_by_key(|s| (s.generation, Reverse(s.index))).map(|s| s.index)
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{SECOND, generation, slot};
    use super::*;

    /// Workers 1 and 2 of generation 1, whose master is in slot 8, and worker 3 of generation 2, of the master in slot 9.
    fn upgraded() -> Facts {
        let worker = |index, generation| SlotFacts {
            generation,
            intent: Intent::Serving,
            heartbeat_ns: 20 * SECOND,
            ..slot(index)
        };
        let mut generations = vec![generation(0, 1), generation(1, 2)];
        (generations[0].master_slot, generations[1].master_slot) = (8, 9);
        Facts {
            slots: vec![worker(1, 1), worker(2, 1), worker(3, 2)],
            generations,
            now: 20 * SECOND,
            stall_after: 5 * SECOND,
            ..Facts::default()
        }
    }

    #[test]
    fn the_sentinel_is_one_of_the_newest_masters_workers() {
        let facts = upgraded();
        let families = Families::of(&facts);
        let [one, two, three] = &facts.slots[..] else { panic!("three") };
        let takes_over = |holder, me| facts.takes_over(&families, holder, me, true);
        assert!(takes_over(Some(one), three), "who hears the bell takes over from who does not");
        assert!(!takes_over(Some(one), two), "neither hears it");
        assert!(!takes_over(Some(three), one));
        assert!(takes_over(None, one), "better than nobody");
    }

    #[test]
    fn who_leaves_leaves_it_to_others_and_a_sleeper_judges_nobody() {
        let mut facts = upgraded();
        let families = Families::of(&facts);
        facts.slots[2].intent = Intent::Draining;
        assert!(!facts.takes_over(&families, None, &facts.slots[2], true));
        facts.slots[0].heartbeat_ns = 0;
        let holder = facts.slots[0].clone();
        assert!(facts.takes_over(&families, Some(&holder), &facts.slots[1], true), "it has stalled");
        assert!(!facts.takes_over(&families, Some(&holder), &facts.slots[1], false), "or we have slept");
    }

    #[test]
    fn where_nobody_is_fit_whoever_is_there_does_it() {
        let mut facts = upgraded();
        facts.slots.iter_mut().for_each(|s| s.intent = Intent::Draining);
        let families = Families::of(&facts);
        assert!(facts.takes_over(&families, None, &facts.slots[2], true));
        facts.slots[0].intent = Intent::Starting;
        assert!(facts.takes_over(&families, None, &facts.slots[0], true), "it alone is fit");
        assert!(!facts.takes_over(&families, None, &facts.slots[2], true));
    }

    #[test]
    fn each_masters_workers_have_a_deputy() {
        let facts = upgraded();
        let families = Families::of(&facts);
        let deputy = |me: usize| facts.deputy(&families, Some(3), &facts.slots[me]);
        assert_eq!((deputy(0), deputy(1)), (Some(1), Some(1)));
        assert_eq!(deputy(2), None, "its only worker is the sentinel");
    }
}
