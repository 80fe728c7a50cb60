//! What a member does when. Pure: it is given the time and what came of each attempt, and reads no clock.
//!
//! One timer is enough: the heartbeat. Whatever else is to be looked at is looked at when it comes, unless that would be
//! too late.

use std::time::Duration;

const MS: u64 = 1_000_000;
/// Between two attempts to join.
const JOIN_PAUSES: (u64, u64) = (10 * MS, 250 * MS);
/// Between two attempts to say that it drains: it keeps its process from ending meanwhile.
const DRAIN_PAUSES: (u64, u64) = (MS, 20 * MS);
/// Until another process ends, asking is in vain.
const FULL_PAUSE: u64 = 1_000 * MS;
/// The first two workers are sentinel and deputy; the others look after them a little later, since where many start at
/// once each would delay the rest of them.
const LOOK_LATER: u64 = 250 * MS;
const DAY: u64 = 86_400_000 * MS;

/// How far a worker has come in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberState {
    /// It serves, and could not join yet: it is not counted.
    Waiting,
    /// It has joined.
    Serving,
    /// It takes no new work.
    Draining,
    /// It has left, or will never join.
    Left,
}

/// Why an attempt came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// A later attempt may succeed.
    Passing,
    /// So may one after another process has ended.
    Full,
    Lasting,
}

/// What is to be done now, in this order, but no more than one thing that needs the node lock.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) join: bool,
    pub(super) drain: bool,
    pub(super) look: bool,
    pub(super) beat: bool,
}

/// A worker's intentions. All times are nanoseconds on one clock, which is expected to be CLOCK_BOOTTIME.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    state: MemberState,
    heartbeat: u64,
    lock_timeout: u64,
    next_beat: u64,
    /// Before this it does not look by itself.
    first_look: u64,
    /// Till then it takes itself for one of those who look after the others, whatever a look says: who else does may
    /// not have found out yet.
    on_duty_until: u64,
    /// The next attempt to join, or to say that it drains, and how long to wait after that.
    attempt: u64,
    pause: u64,
    /// It is to say that it drains, and could not yet: until when to try.
    unsaid_until: Option<u64>,
}

impl Plan {
    pub(super) fn new(now: u64, heartbeat: Duration, lock_timeout: Duration) -> Plan {
        let ns = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(DAY).min(DAY);
        Plan {
            state: MemberState::Waiting,
            heartbeat: ns(heartbeat),
            lock_timeout: ns(lock_timeout),
            next_beat: 0,
            first_look: 0,
            on_duty_until: 0,
            attempt: now,
            pause: JOIN_PAUSES.0,
            unsaid_until: None,
        }
    }

    pub(super) fn state(&self) -> MemberState {
        self.state
    }

    /// `at_once`: it is likely to be the one who looks after the others.
    pub(super) fn joined(&mut self, now: u64, at_once: bool) {
        self.state = MemberState::Serving;
        let later = now.saturating_add(LOOK_LATER);
        (self.first_look, self.on_duty_until) =
            if at_once { (now, later.saturating_add(self.heartbeat)) } else { (later, now) };
        // At the first turn of its loop, which proves that there is one.
        self.next_beat = now;
    }

    pub(super) fn not_joined(&mut self, now: u64, obstacle: Obstacle) {
        match obstacle {
            Obstacle::Passing => self.try_again(now, JOIN_PAUSES.1, 2),
            Obstacle::Full => self.attempt = now.saturating_add(FULL_PAUSE),
            Obstacle::Lasting => self.state = MemberState::Left,
        }
    }

    pub(super) fn begin_drain(&mut self, now: u64) {
        match self.state {
            // One that is told to go does not come any more.
            MemberState::Waiting => self.state = MemberState::Left,
            MemberState::Serving if self.unsaid_until.is_none() => {
                self.unsaid_until = Some(now.saturating_add(self.lock_timeout));
                (self.attempt, self.pause) = (now, DRAIN_PAUSES.0);
            }
            _ => {}
        }
    }

    /// From the first heartbeat after this it is judged by them again: so that comes at once.
    pub(super) fn drained(&mut self, now: u64) {
        self.unsaid_until = None;
        self.state = MemberState::Draining;
        self.next_beat = now;
    }

    /// `true`: it has given up, and drains without anybody's knowing.
    pub(super) fn not_drained(&mut self, now: u64, obstacle: Obstacle) -> bool {
        let over = self.unsaid_until.is_none_or(|until| now >= until);
        if over || obstacle == Obstacle::Lasting {
            self.drained(now);
            return true;
        }
        self.try_again(now, DRAIN_PAUSES.1, 1);
        false
    }

    /// It is to say that it drains, and could not yet: it would be out of order to leave before that.
    pub(super) fn is_unsaid(&self) -> bool {
        self.unsaid_until.is_some()
    }

    pub(super) fn may_be_on_duty(&self, now: u64) -> bool {
        self.is_member() && now < self.on_duty_until
    }

    pub(super) fn left(&mut self) {
        self.state = MemberState::Left;
        self.unsaid_until = None;
    }

    pub(super) fn beaten(&mut self, now: u64) {
        self.next_beat = now.saturating_add(self.heartbeat);
    }

    /// Something made it look earlier than it meant to: from now on it looks whenever there is something to see.
    pub(super) fn looked(&mut self, now: u64) {
        self.first_look = self.first_look.min(now);
    }

    pub(super) fn next_beat(&self) -> u64 {
        self.next_beat
    }

    pub(super) fn is_member(&self) -> bool {
        matches!(self.state, MemberState::Serving | MemberState::Draining)
    }

    /// `look`: when to look after the others at the latest.
    pub(super) fn due(&self, now: u64, look: u64, readable: bool) -> Due {
        if !self.is_member() {
            return Due { join: self.state == MemberState::Waiting && now >= self.attempt, ..Due::default() };
        }
        // One that is awake shortly before its time need not wake again; and a clock that was set back is no reason to
        // be silent till it has caught up.
        let beat = now.saturating_add(self.heartbeat / 4) >= self.next_beat
            || self.next_beat > now.saturating_add(self.heartbeat);
        // What would come due before the next heartbeat is done with this one, so that the two stay together.
        let by = if beat { now.saturating_add(self.heartbeat) } else { now };
        let drain = self.is_unsaid() && now >= self.attempt;
        Due { join: false, drain, look: readable || now >= self.first_look && by >= look, beat }
    }

    /// How long nothing is to be done, unless the descriptor is readable.
    pub(super) fn next(&self, now: u64, look: u64) -> Duration {
        let at = match self.state {
            MemberState::Left => now.saturating_add(DAY),
            MemberState::Waiting => self.attempt,
            MemberState::Serving | MemberState::Draining => {
                let attempt = if self.is_unsaid() { self.attempt } else { u64::MAX };
                self.next_beat.min(look.max(self.first_look)).min(attempt)
            }
        };
        Duration::from_nanos(at.saturating_sub(now).clamp(MS, DAY))
    }

    fn try_again(&mut self, now: u64, longest: u64, divisor: u64) {
        self.attempt = now.saturating_add(self.pause);
        self.pause = (self.pause + self.pause / divisor).min(longest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGUN: u64 = 1_000_000 * MS;
    const FAR: u64 = u64::MAX;

    fn plan() -> Plan {
        Plan::new(BEGUN, Duration::from_secs(1), Duration::from_secs(30))
    }

    fn serving() -> Plan {
        let mut plan = plan();
        plan.joined(BEGUN, true);
        assert!(plan.due(BEGUN + MS, FAR, false).beat, "at the first turn of its loop");
        plan.beaten(BEGUN);
        plan
    }

    #[test]
    fn a_late_join_is_tried_ever_more_seldom() {
        let (mut plan, mut now, mut waits) = (plan(), BEGUN, Vec::new());
        for _ in 0..12 {
            assert!(plan.due(now, FAR, false).join);
            plan.not_joined(now, Obstacle::Passing);
            assert_eq!(plan.due(now, FAR, true), Due::default(), "not before the pause is over");
            let wait = plan.next(now, FAR);
            waits.push(wait.as_millis());
            now += u64::try_from(wait.as_nanos()).unwrap();
        }
        assert_eq!(waits, [10, 15, 22, 33, 50, 75, 113, 170, 250, 250, 250, 250]);
        plan.joined(now, true);
        assert_eq!((plan.state(), plan.next(now, FAR)), (MemberState::Serving, Duration::from_millis(1)));
    }

    #[test]
    fn a_full_table_is_asked_once_a_second_and_a_lasting_obstacle_never_again() {
        let mut plan = plan();
        plan.not_joined(BEGUN, Obstacle::Full);
        assert_eq!(plan.next(BEGUN, FAR), Duration::from_secs(1));
        assert!(!plan.due(BEGUN + 999 * MS, FAR, false).join);
        plan.not_joined(BEGUN + 1_000 * MS, Obstacle::Lasting);
        assert_eq!(plan.state(), MemberState::Left);
        assert_eq!(plan.due(BEGUN + 2_000 * MS, 0, true), Due::default());
    }

    #[test]
    fn one_that_waits_and_is_told_to_go_does_not_come_any_more() {
        let mut plan = plan();
        plan.not_joined(BEGUN, Obstacle::Passing);
        plan.begin_drain(BEGUN + MS);
        assert_eq!(plan.state(), MemberState::Left);
        assert!(!plan.due(BEGUN + 60_000 * MS, FAR, false).join);
    }

    #[test]
    fn a_quiet_worker_wakes_once_for_each_heartbeat() {
        // Told now and then in between, and woken a little late each time: the look stays with the heartbeat.
        let (mut plan, mut now, mut look, mut wakes) = (serving(), BEGUN, BEGUN, 0);
        let end = BEGUN + 60_000 * MS;
        for round in 0.. {
            let due = plan.due(now, look, round == 7);
            assert!(!due.drain && !due.join);
            if due.look {
                look = now + 1_000 * MS + 17 * MS;
            }
            if due.beat {
                plan.beaten(now);
            }
            now += u64::try_from(plan.next(now, look).as_nanos()).unwrap() + 2 * MS;
            if round == 6 {
                now -= 600 * MS;
            }
            if now > end {
                break;
            }
            wakes += 1;
        }
        assert!((58..=62).contains(&wakes), "{wakes} in a minute");
    }

    #[test]
    fn what_cannot_wait_for_the_heartbeat_does_not() {
        let mut plan = serving();
        let retry = BEGUN + 5 * MS;
        assert_eq!(plan.next(BEGUN, retry), Duration::from_millis(5));
        assert_eq!(plan.due(retry, retry, false), Due { look: true, ..Due::default() });
        // A moment before the heartbeat, it beats as well.
        let late = BEGUN + 900 * MS;
        assert_eq!(plan.due(late, late, false), Due { look: true, beat: true, ..Due::default() });
        plan.beaten(late);
        assert_eq!(plan.next(late, FAR), Duration::from_secs(1));
    }

    #[test]
    fn the_first_ones_are_on_duty_till_everybody_has_looked() {
        let plan = serving();
        assert!(plan.may_be_on_duty(BEGUN + 1_200 * MS) && !plan.may_be_on_duty(BEGUN + 1_300 * MS));
    }

    #[test]
    fn the_third_worker_looks_later_unless_there_is_something_to_see() {
        let mut plan = plan();
        plan.joined(BEGUN, false);
        assert_eq!(plan.due(BEGUN + MS, BEGUN, false), Due { beat: true, ..Due::default() });
        plan.beaten(BEGUN);
        assert_eq!(plan.next(BEGUN, BEGUN), Duration::from_millis(250));
        assert!(!plan.due(BEGUN + 100 * MS, BEGUN, false).look);
        assert!(plan.due(BEGUN + 100 * MS, BEGUN, true).look);
        assert!(plan.due(BEGUN + 250 * MS, BEGUN, false).look && !plan.may_be_on_duty(BEGUN));
        plan.looked(BEGUN + 100 * MS);
        let soon = BEGUN + 110 * MS;
        assert_eq!(plan.next(BEGUN + 100 * MS, soon), Duration::from_millis(10), "what it saw cannot wait");
    }

    #[test]
    fn draining_is_tried_again_while_the_lock_is_held_until_the_time_is_up() {
        let (mut plan, mut now) = (serving(), BEGUN + 100 * MS);
        plan.begin_drain(now);
        let begun = now;
        let mut tries = 0;
        loop {
            assert!(plan.due(now, FAR, false).drain && plan.is_unsaid());
            tries += 1;
            if plan.not_drained(now, Obstacle::Passing) {
                break;
            }
            assert!(plan.due(now, FAR, true).look && !plan.due(now, FAR, true).drain);
            let wait = plan.next(now, FAR);
            assert!(wait <= Duration::from_millis(20), "{wait:?}");
            // A worker that waits for the lock is no worker that hangs.
            if plan.due(now, FAR, false).beat {
                plan.beaten(now);
            }
            plan.begin_drain(now);
            now += u64::try_from(wait.as_nanos()).unwrap();
        }
        let took = Duration::from_nanos(now - begun);
        assert!(took >= Duration::from_secs(30) && took < Duration::from_millis(30_100), "{took:?}");
        assert!(tries > 1_000 && !plan.is_unsaid());
        assert_eq!(plan.state(), MemberState::Draining);
        // Whatever keeps it: it beats on, and is judged by that.
        assert_eq!(plan.next(now, FAR), Duration::from_millis(1));
        assert!(plan.due(now + MS, FAR, false).beat);
    }

    #[test]
    fn a_clock_that_jumps_costs_one_heartbeat_and_no_silence() {
        let hours = 5 * 3_600_000 * MS;
        let mut plan = serving();
        let now = BEGUN + hours;
        assert!(plan.due(now, FAR, false).beat);
        plan.beaten(now);
        assert!(!plan.due(now + MS, FAR, false).beat, "those that were missed are not made up for");
        let back = now - hours;
        assert!(plan.due(back, FAR, false).beat);
        plan.beaten(back);
        assert_eq!(plan.next(back, FAR), Duration::from_secs(1));
    }
}
