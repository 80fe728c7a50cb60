//! When generations and masters are over, at the edges.

use super::edge_tests::{UNKNOWN, facts, master, node, serving, worker};
use super::tests::{SECOND, generation};
use super::*;

#[test]
fn who_was_forked_gets_ten_seconds_and_no_more() {
    let mut node =
        facts(vec![master(0), worker(1, 2, 20 * SECOND)], vec![serving(0, 1, 1), serving(1, 2, 1)]);
    node.generations[0].expected = 2;
    node.generations[0].begun_ns = node.now - JOIN_GRACE_NS;
    assert_eq!(node.next_step(Scope::Everything), None);
    node.generations[0].begun_ns -= 1;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportEnded(0)));
    node.generations[0].joining = true;
    assert_eq!(node.next_step(Scope::Everything), None, "one is about to");
    assert_eq!(node.next_step(Scope::LastWord), Some(Step::ReportEnded(0)));
}

#[test]
fn an_announced_generation_is_abandoned_when_its_master_has_not_come_back() {
    let mut node = facts(vec![worker(1, 2, 20 * SECOND)], vec![serving(0, 2, 1)]);
    node.generations[0].master_slot = 9;
    node.slots.push(master(9));
    node.generations.push(GenerationFacts { phase: Phase::Announced, ..serving(1, 3, 1) });
    node.generations[1].begun_ns = node.now - ADOPTION_GRACE_NS;
    assert_eq!(node.next_step(Scope::Everything), None);
    node.generations[1].begun_ns -= 1;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportAbandoned(1)));
    node.generations[1].started_seq = 0;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReleaseGeneration(1)), "nobody heard of it");
    node.slots.push(master(0));
    assert_eq!(node.next_step(Scope::Everything), None, "it is there");
    node.generations[1].started_seq = 1;
    assert_eq!(node.next_step(Scope::LastWord), Some(Step::ReportAbandoned(1)), "it comes no more");
    node.generations[1].phase = Phase::Abandoned;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportAbandoned(1)));
}

#[test]
fn a_generation_whose_master_is_gone_has_ended_when_its_workers_have() {
    let mut node = facts(vec![], vec![serving(0, 1, 2)]);
    (node.generations[0].joined, node.generations[0].begun_ns) = (1, node.now);
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportEnded(0)));
    node.generations[0].joined = 0;
    assert_eq!(node.next_step(Scope::Everything), None, "they may be on their way");
    node.generations[0].nobody_comes = true;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportEnded(0)));
}

#[test]
fn the_last_of_a_generation_settles_what_is_its_own() {
    let mut node = node();
    node.generations[0].expected = 2;
    node.slots[1].liveness = Liveness::Gone;
    assert_eq!(node.next_step(Scope::Generation(1)), Some(Step::ReportDied(1)));
    assert_eq!(node.next_step(Scope::Generation(2)), None);
    assert_eq!(node.next_step(Scope::Tidy), None);
    node.slots.push(worker(2, 1, node.now));
    assert_eq!(node.next_step(Scope::Generation(1)), None, "another one lives, who has more time");
    node.slots[2].started_seq = 0;
    assert_eq!(node.next_step(Scope::Generation(1)), Some(Step::ReportDied(1)), "one that is joining asks");
    (node.slots[2].started_seq, node.slots[2].liveness) = (1, UNKNOWN);
    assert_eq!(node.next_step(Scope::Generation(1)), None, "or may live");
    node.slots.truncate(1);
    assert_eq!(node.next_step(Scope::Generation(1)), None, "one has not come yet");
    node.generations[0].expected = 1;
    assert_eq!(node.next_step(Scope::Generation(1)), Some(Step::ReportEnded(0)));
}

#[test]
fn a_master_that_vanished_is_news_for_its_own_workers() {
    let mut node = node();
    node.slots[0].liveness = Liveness::Gone;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::ReportMasterLost(0)));
    node.slots[1].generation = 2;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::Release(0)), "another master's");
    node.slots[1].generation = 1;
    node.slots[1].role = Role::Helper;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::Release(0)));
    node.slots[1].role = Role::Worker;
    node.slots[1].liveness = UNKNOWN;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::Release(0)));
    node.slots[1].liveness = Liveness::Alive;
    node.generations[0].master_version = 4;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::Release(0)), "another one's in its slot");
    node.generations[0].master_version = 2;
    node.slots[0].died_seq = 7;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::DeliverMasterLost(0)));
    node.slots[0].exited_seq = 8;
    assert_eq!(node.next_step(Scope::Everything), Some(Step::Release(0)), "it left");
}

#[test]
fn a_master_that_announced_a_moment_ago_may_be_going_into_the_background() {
    let mut node = facts(vec![master(0)], vec![generation(0, 1)]);
    node.slots[0].liveness = Liveness::Gone;
    node.generations[0].begun_ns = node.now - ADOPTION_GRACE_NS;
    assert_eq!(node.next_step(Scope::Tidy), None);
    node.generations[0].begun_ns -= 1;
    assert_eq!(node.next_step(Scope::Tidy), Some(Step::Release(0)));
    node.generations[0] = GenerationFacts { begun_ns: node.now, ..serving(0, 1, 1) };
    assert_eq!(node.next_step(Scope::Tidy), Some(Step::Release(0)), "its workers came, and are gone");
    node.generations[0].joined = 0;
    assert_eq!(node.next_step(Scope::Tidy), None, "they may be on their way");
    node.generations[0].ended_seq = 1;
    assert_eq!(node.next_step(Scope::Tidy), Some(Step::Release(0)));
}

#[test]
fn an_end_that_is_told_is_not_told_again_while_its_callback_waits() {
    let mut node = node();
    node.slots.clear();
    node.generations[0].phase = Phase::Abandoned;
    assert_eq!(node.report(Scope::Everything), Some(Step::ReportAbandoned(0)));
    for (ended, abandoned) in [(5, 0), (0, 5)] {
        (node.generations[0].ended_seq, node.generations[0].abandoned_seq) = (ended, abandoned);
        assert_eq!(node.report(Scope::Everything), None);
    }
}

#[test]
fn only_a_generation_of_the_future_loses_its_beginning() {
    let mut node = node();
    for (begun, kept) in [(node.now, node.now), (node.now + 1, 0)] {
        node.generations[0].begun_ns = begun;
        node.forget_the_future();
        assert_eq!(node.generations[0].begun_ns, kept);
    }
}
