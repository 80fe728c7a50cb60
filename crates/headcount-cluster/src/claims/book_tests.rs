//! The book, with processes and an etcd that are pretended.

use std::collections::{BTreeMap, VecDeque};

use proptest::prelude::*;

use super::*;

fn role(name: &str) -> What {
    What::new(Kind::Role, name)
}

/// A book with a lease until 1000, and these processes.
fn book(sessions: &[SessionId]) -> Book {
    let mut book = Book::default();
    sessions.iter().for_each(|session| book.enter(*session));
    book.renewed(1000);
    book
}

fn attempt_in(orders: &[Order]) -> u64 {
    orders
        .iter()
        .find_map(|order| match order {
            Order::Try(_, attempt) => Some(*attempt),
            _ => None,
        })
        .expect("something is tried")
}

fn told(orders: Vec<Order>) -> Vec<(SessionId, Message)> {
    orders
        .into_iter()
        .filter_map(|order| match order {
            Order::Tell(session, message) => Some((session, message)),
            _ => None,
        })
        .collect()
}

fn lead(book: &mut Book, what: &What, token: u64) -> u64 {
    let attempt = attempt_in(&book.orders());
    book.held(what, attempt, token, None, 0);
    attempt
}

/// It hears nothing any more: what it has it has until the last deadline that it was told of, however long the lease goes on.
#[test]
fn what_a_closed_one_has_ends_at_the_deadline_that_it_was_told() {
    let (mut book, cron) = (book(&[1, 2]), role("cron"));
    for session in [1, 2] {
        book.want(session, cron.clone(), 0).unwrap();
    }
    lead(&mut book, &cron, 7);
    book.acked(1);
    book.closed(1);
    book.renewed(2000);
    assert_eq!(told(book.orders()).len(), 1, "that it was elected, and nothing since");
    book.tick(999);
    assert_eq!(book.holder(&cron), Some(1));
    book.tick(1000);
    let attempt = attempt_in(&book.orders());
    book.held(&cron, attempt, 8, None, 1000);
    assert_eq!(book.holder(&cron), Some(2));
}

#[test]
fn one_leads_and_the_next_one_in_order_follows_with_a_key_of_its_own() {
    let (mut book, cron) = (book(&[1, 2, 3]), role("cron"));
    for session in [1, 2, 3] {
        book.want(session, cron.clone(), 0).unwrap();
    }
    let first = lead(&mut book, &cron, 7);
    let elected = |token| Message::Elected { role: "cron".into(), token, deadline: 1000 };
    assert_eq!(told(book.orders()), [(1, elected(7))]);
    book.let_go(1, &cron, How::LetGo).unwrap();
    let orders = book.orders();
    assert_eq!(orders[0], Order::Free(cron.clone(), first, How::LetGo));
    let second = attempt_in(&orders);
    assert_ne!(first, second);
    book.held(&cron, second, 9, None, 1);
    assert_eq!(told(book.orders()), [(2, elected(9))]);
    // What comes late of the first attempt means nothing.
    book.held(&cron, first, 7, None, 1);
    book.key_gone(&cron, first);
    assert_eq!((book.orders(), book.holder(&cron)), (vec![], Some(2)));
    book.gone(2);
    assert_eq!(book.orders()[0], Order::Free(cron.clone(), second, How::Died));
    book.gone(3);
    assert!(!book.is_wanted());
}

#[test]
fn at_the_deadline_all_is_lost_at_once_and_the_lease_is_never_used_again() {
    let (mut book, cron) = (book(&[1]), role("cron"));
    book.want(1, cron.clone(), 0).unwrap();
    lead(&mut book, &cron, 7);
    book.orders();
    book.acked(1);
    book.tick(999);
    assert_eq!(book.orders(), []);
    book.tick(1000);
    let orders = book.orders();
    assert_eq!(orders[0], Order::Abandon);
    assert!(matches!(&told(orders)[..], [(1, Message::Lost { .. })]));
    assert_eq!(book.holder(&cron), None);
    // With another lease it is tried again.
    book.renewed(2000);
    let attempt = attempt_in(&book.orders());
    // But what was got after the deadline is not had.
    book.held(&cron, attempt, 8, None, 2000);
    assert!(told(book.orders()).is_empty());
}

#[test]
fn a_process_that_does_not_answer_keeps_it_until_its_deadline_and_then_another_has_it() {
    let (mut book, cron) = (book(&[1, 2]), role("cron"));
    book.want(1, cron.clone(), 0).unwrap();
    book.want(2, cron.clone(), 0).unwrap();
    let first = lead(&mut book, &cron, 7);
    book.orders();
    // It has not said that it read the first deadline: so it is told no later one.
    book.renewed(1500);
    assert_eq!(book.orders(), []);
    assert_eq!(book.next_tick(), Some(1000));
    book.tick(1000);
    let orders = book.orders();
    assert_eq!(orders[0], Order::Free(cron.clone(), first, How::Stalled));
    let second = attempt_in(&orders);
    book.held(&cron, second, 8, None, 1000);
    assert_eq!(book.holder(&cron), Some(2));
    // It is not elected before it answers, though it stands first.
    book.orders();
    book.gone(2);
    assert!(!book.orders().iter().any(|order| matches!(order, Order::Try(..))));
    book.acked(1);
    attempt_in(&book.orders());
}

#[test]
fn who_reads_is_told_of_each_new_deadline() {
    let (mut book, cron) = (book(&[1]), role("cron"));
    book.want(1, cron.clone(), 0).unwrap();
    lead(&mut book, &cron, 7);
    book.orders();
    for deadline in [1100, 1200] {
        book.acked(1);
        book.renewed(deadline);
        assert_eq!(told(book.orders()), [(1, Message::Renewed { deadline })]);
    }
    // One that came while it was busy is not forgotten.
    book.renewed(1300);
    assert_eq!(book.orders(), []);
    book.acked(1);
    assert_eq!(told(book.orders()), [(1, Message::Renewed { deadline: 1300 })]);
}

#[test]
fn who_was_cut_off_from_here_keeps_what_it_has_until_its_deadline() {
    let (mut book, cron) = (book(&[1, 2]), role("cron"));
    book.want(1, cron.clone(), 0).unwrap();
    lead(&mut book, &cron, 7);
    book.want(2, cron.clone(), 0).unwrap();
    book.orders();
    book.closed(1);
    assert_eq!((book.orders(), book.holder(&cron)), (vec![], Some(1)));
    book.renewed(1500);
    book.tick(1000);
    assert!(matches!(book.orders()[0], Order::Free(_, _, How::Stalled)));
}

#[test]
fn a_lock_is_waited_for_for_so_long_and_passed_on() {
    let (mut book, lock) = (book(&[1, 2]), What::new(Kind::Lock, "keys"));
    book.want(1, lock.clone(), 5).unwrap();
    book.want(1, lock.clone(), 6).unwrap();
    book.want(2, lock.clone(), 5).unwrap();
    assert!(book.want(1, lock.clone(), 6).unwrap_err().contains("a request 6 already"));
    lead(&mut book, &lock, 7);
    assert!(matches!(&told(book.orders())[..], [(1, Message::Locked { id: 5, token: 7, .. })]));
    assert_eq!((book.waits_for(1, 5), book.waits_for(1, 6)), (None, Some(lock.clone())));
    book.time_out(1, 5, "late".into());
    assert_eq!(book.orders(), [], "it has it");
    book.time_out(1, 6, "late".into());
    assert!(matches!(&told(book.orders())[..], [(1, Message::NotLocked { id: 6, .. })]));
    book.unlock(1, 5).unwrap();
    lead(&mut book, &lock, 9);
    assert!(matches!(&told(book.orders())[..], [(2, Message::Locked { id: 5, token: 9, .. })]));
    assert!(book.unlock(1, 5).is_err());
}

#[test]
fn what_runs_once_is_tried_by_others_until_it_is_settled() {
    let (mut book, once) = (book(&[1, 2]), What::new(Kind::Once, "migrate"));
    book.want(1, once.clone(), 0).unwrap();
    book.want(2, once.clone(), 0).unwrap();
    let first = attempt_in(&book.orders());
    book.held(&once, first, 7, Some((1, None)), 0);
    assert!(matches!(&told(book.orders())[..], [(1, Message::Run { attempt: 1, .. })]));
    assert!(book.let_go(2, &once, How::LetGo).unwrap_err().contains("does not run"));
    book.let_go(1, &once, How::Failed).unwrap();
    let second = attempt_in(&book.orders());
    book.held(&once, second, 8, Some((2, Some("failed".into()))), 0);
    assert!(matches!(&told(book.orders())[..], [(2, Message::Run { attempt: 2, .. })]));
    book.let_go(2, &once, How::LetGo).unwrap();
    let third = attempt_in(&book.orders());
    book.settled(&once, third, None);
    assert_eq!(told(book.orders()).len(), 2);
    assert!(!book.is_wanted());
    book.want(1, once.clone(), 0).expect("it may ask again");
}

#[test]
fn what_is_wrong_or_too_much_is_said() {
    let mut book = book(&[1]);
    let error = book.want(1, role("a b"), 0).unwrap_err();
    assert_eq!(error, "\"a b\" is no name of a role; allowed is 1 to 48 letters, digits, `.`, `_` and `-`");
    for n in 0..MOST_OF_ONE {
        book.want(1, role(&n.to_string()), 0).unwrap();
    }
    assert!(book.want(1, role("x"), 0).unwrap_err().contains("allowed are no more"));
    assert!(book.let_go(1, &role("x"), How::LetGo).unwrap_err().contains("has not asked for the role x"));
    book.let_go(1, &role("7"), How::LetGo).unwrap();
    assert!(book.want(1, role("8"), 0).unwrap_err().contains("already"));
    for session in 2..100 {
        book.enter(session);
        for n in 0..MOST_OF_ONE {
            if let Err(error) = book.want(session, role(&n.to_string()), 0) {
                assert!(error.contains("of this host"), "{error}");
                assert_eq!(session, 17);
                return;
            }
        }
    }
    panic!("there is no bound");
}

#[test]
fn at_the_end_who_leads_is_asked_to_stop_and_nobody_gets_anything() {
    let (mut book, cron) = (book(&[1, 2]), role("cron"));
    book.want(1, cron.clone(), 0).unwrap();
    lead(&mut book, &cron, 7);
    book.want(2, cron.clone(), 0).unwrap();
    book.want(2, role("other"), 0).unwrap();
    book.orders();
    book.end();
    let orders = book.orders();
    assert!(orders.contains(&Order::Tell(1, Message::GiveUp { role: "cron".into() })));
    assert!(
        orders
            .iter()
            .any(|order| matches!(order, Order::Free(what, _, How::NotBegun) if what.name == "other"))
    );
    book.let_go(1, &cron, How::LetGo).unwrap();
    assert!(!book.is_held());
    assert!(!book.orders().iter().any(|order| matches!(order, Order::Try(..))));
    assert!(book.want(2, role("more"), 0).is_err());
}

// All of it at random ------------------------------------------------------------------------------------------------------

#[derive(Clone, Debug)]
enum Step {
    Want(u64, usize),
    LetGo(u64, usize),
    /// It reads what it was told, and says so.
    Read(u64),
    Gone(u64),
    Closed(u64),
    Pass(u64),
    /// A keep-alive was confirmed that was sent so long ago.
    Renew(u64),
    Got(usize),
}

/// What a process believes.
#[derive(Default)]
struct Process {
    inbox: VecDeque<Message>,
    has: BTreeMap<String, u64>,
    deadline: u64,
}

impl Process {
    fn read(&mut self) {
        while let Some(message) = self.inbox.pop_front() {
            match message {
                Message::Elected { role, token, deadline } => {
                    self.has.insert(role, token);
                    self.deadline = self.deadline.max(deadline);
                }
                Message::Renewed { deadline } => self.deadline = self.deadline.max(deadline),
                Message::Lost { role, .. } | Message::Left { role } => drop(self.has.remove(&role)),
                _ => {}
            }
        }
    }

    fn believes(&self, name: &str, now: u64) -> bool {
        now < self.deadline && self.has.contains_key(name)
    }
}

const LEASE: u64 = 1000;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 2000, ..ProptestConfig::default() })]

    /// Whoever stands still for however long, is cut off or ends: nobody believes to have what another has, a key is freed only when
    /// nobody believes to have it, and tokens grow.
    #[test]
    fn two_never_believe_to_have_the_same(steps in prop::collection::vec(prop_oneof![
        4 => (1..4_u64, 0..2_usize).prop_map(|(s, w)| Step::Want(s, w)),
        2 => (1..4_u64, 0..2_usize).prop_map(|(s, w)| Step::LetGo(s, w)),
        6 => (1..4_u64).prop_map(Step::Read),
        1 => (1..4_u64).prop_map(Step::Gone),
        1 => (1..4_u64).prop_map(Step::Closed),
        4 => (0..700_u64).prop_map(Step::Pass),
        4 => (0..300_u64).prop_map(Step::Renew),
        6 => (0..2_usize).prop_map(Step::Got),
    ], 1..80)) {
        let roles = [role("a"), role("b")];
        let (mut book, mut now, mut revision) = (Book::default(), 10_000_u64, 0_u64);
        let mut processes: BTreeMap<u64, Process> = BTreeMap::new();
        // Those that were cut off from here: they hear nothing any more, and go on.
        let mut cut_off: Vec<Process> = Vec::new();
        let mut tried: BTreeMap<String, u64> = BTreeMap::new();
        let mut has_lease = false;
        let mut last_token: BTreeMap<String, u64> = BTreeMap::new();
        for session in 1..4 {
            book.enter(session);
            processes.insert(session, Process::default());
        }
        for step in steps {
            // Nobody hears of those that were cut off.
            if let Step::Want(s, _) | Step::LetGo(s, _) | Step::Gone(s) = step && !processes.contains_key(&s) {
                continue;
            }
            match step {
                Step::Want(s, w) => drop(book.want(s, roles[w].clone(), 0)),
                Step::LetGo(s, w) => {
                    // What it does as leader has ended.
                    if book.let_go(s, &roles[w], How::LetGo).is_ok() && let Some(process) = processes.get_mut(&s) {
                        process.read();
                        process.has.remove(&roles[w].name);
                    }
                }
                Step::Read(s) => if let Some(process) = processes.get_mut(&s) {
                    process.read();
                    book.acked(s);
                },
                Step::Gone(s) => {
                    processes.remove(&s);
                    book.gone(s);
                }
                Step::Closed(s) => if let Some(mut process) = processes.remove(&s) {
                    process.read();
                    cut_off.push(process);
                    book.closed(s);
                },
                Step::Pass(ms) => {
                    now += ms;
                    book.tick(now);
                }
                Step::Renew(ago) => {
                    book.tick(now);
                    let deadline = now - ago + LEASE;
                    if deadline > now {
                        has_lease = true;
                        book.renewed(deadline);
                    }
                }
                Step::Got(w) => if let Some(attempt) = tried.remove(&roles[w].name) {
                    revision += 1;
                    book.held(&roles[w], attempt, revision, None, now);
                },
            }
            loop {
                let orders = book.orders();
                if orders.is_empty() {
                    break;
                }
                for order in orders {
                    match order {
                        Order::Try(what, attempt) => {
                            prop_assert!(has_lease);
                            tried.insert(what.name, attempt);
                        }
                        Order::Free(what, attempt, _) => {
                            if tried.get(&what.name) == Some(&attempt) {
                                tried.remove(&what.name);
                            }
                            let all = processes.values().chain(&cut_off);
                            prop_assert_eq!(all.filter(|p| p.believes(&what.name, now)).count(), 0);
                        }
                        Order::Tell(s, message) => {
                            if let Message::Elected { role, token, .. } = &message {
                                prop_assert!(last_token.insert(role.clone(), *token).is_none_or(|last| last < *token));
                            }
                            if let Some(process) = processes.get_mut(&s) {
                                process.inbox.push_back(message);
                            }
                        }
                        Order::Abandon => {
                            has_lease = false;
                            tried.clear();
                        }
                        Order::Sign(..) => {}
                    }
                }
            }
            for what in &roles {
                // One that has something to read may come to believe it at any time.
                let mut believers = 0;
                for process in processes.values_mut().chain(&mut cut_off) {
                    let mut soon = Process { inbox: process.inbox.clone(), has: process.has.clone(), deadline: process.deadline };
                    soon.read();
                    believers += usize::from(process.believes(&what.name, now) || soon.believes(&what.name, now));
                }
                prop_assert!(believers <= 1, "{} believe to have {}", believers, what.name);
            }
        }
    }
}
