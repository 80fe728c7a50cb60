//! A registry that is overwritten while a process of the node has it in memory: all that master and worker do, on whatever
//! stands there. They come to no harm, and are well again as soon as the registry is.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use arbitrary::{Result, Unstructured};
use headcount::{Begin, Cause, Generation, Join, Master, Member, Moment, Transitions, Wait, Watch, Worker};

use crate::node::Node;
use crate::reader::{read_all, show};
use crate::{image, people};

/// No call may take longer. Waiting for the lock ends after 0.1 s, a hold after a second; the machine is busy.
const LONGEST: Duration = Duration::from_secs(8);

/// What this process is in the node.
struct Life {
    master: Master,
    generation: Option<Generation>,
    worker: Option<Worker>,
    watch: Option<Watch>,
    member: Option<Member>,
}

pub(crate) fn run(bytes: &[u8]) {
    let node = Node::get();
    let (registry, rest) = image::unpack(bytes, node.lock_tag);
    node.overwrite(&registry);
    let begun = Instant::now();
    // Refused, say, because a living stranger stands there as its master.
    if let Ok(master) = node.open() {
        let mut life = Life { master, generation: None, worker: None, watch: None, member: None };
        let mut choices = Unstructured::new(rest);
        for _ in 0..16 {
            let step = Instant::now();
            let done = life.step(&mut choices, node, registry.len());
            assert!(step.elapsed() < LONGEST, "a call took {:?}", step.elapsed());
            if done.is_err() || choices.is_empty() || begun.elapsed() > LONGEST {
                break;
            }
        }
        node.renew(registry.len());
        life.end();
    }
    node.renew(registry.len());
    is_well(node);
}

fn finish(transitions: headcount::Result<Transitions>) {
    if let Ok(transitions) = transitions {
        transitions.run(|transition| assert!(transition.event.seq > 0));
    }
}

impl Life {
    /// One thing that a process of the node does, whatever comes of it.
    fn step(&mut self, choices: &mut Unstructured<'_>, vandal: &Node, len: usize) -> Result<()> {
        let node = self.master.node();
        let wait = if choices.ratio(1, 4)? { Wait::Timeout } else { Wait::Try };
        match choices.int_in_range(0..=17)? {
            0 => {
                let begin = match choices.int_in_range(0..=2)? {
                    0 => Begin::new().because(Cause::Start),
                    1 => Begin::new().workers(choices.arbitrary()?),
                    _ => Begin::new(),
                };
                if let Ok((generation, transitions)) = self.master.begin(begin, wait) {
                    finish(Ok(transitions));
                    self.generation = Some(generation);
                }
            }
            1 => self.generation = Some(Generation::of(node, self.some_id(choices)?)),
            2 => self.master.commit(self.some_id(choices)?),
            3 => self.master.abandon(self.some_id(choices)?),
            4 => {
                let join = match choices.int_in_range(0..=2)? {
                    0 => Join::helper(),
                    1 => Join::worker(Some(choices.int_in_range(0..=70)?)),
                    _ => Join::worker(None).respawned(true),
                };
                let joined = self.generation.as_ref().map(|generation| generation.join(join.wait(wait)));
                if let Some(Ok((worker, transitions))) = joined {
                    finish(Ok(transitions));
                    self.worker = Some(worker);
                }
            }
            5 => self.watch = self.worker.as_ref().and_then(|worker| worker.watch().ok()),
            6 => {
                if let Some(watch) = &mut self.watch {
                    finish(watch.process());
                }
            }
            7 => self.worker.iter().for_each(Worker::beat),
            8 => self.worker.iter().for_each(|worker| finish(worker.drain(wait))),
            9 => self.worker.iter().for_each(|worker| finish(worker.leave(wait))),
            10 => {
                let snapshot = node.snapshot();
                let start = choices.arbitrary()?;
                show(&snapshot, &read_all(start, |cursor, limit| node.events(cursor, limit)));
            }
            11 => {
                let pid = people::FIRST_STAND_IN + choices.int_in_range(0..=4)?;
                let pid = people::behind(pid).map_or(pid, |person| person.pid);
                node.child_exited(pid, ExitStatus::from_raw(choices.arbitrary()?));
            }
            12 => {
                let within = Duration::from_nanos(choices.arbitrary()?);
                let _ = node.recent_deaths(self.some_id(choices)?, within);
            }
            13 => drop(self.master.adopt(wait)),
            14 => {
                if let Some(generation) = &self.generation {
                    // It fails where the registry is spoiled.
                    let _ = generation.mark(choices.arbitrary()?);
                }
            }
            15 => {
                if let Some(generation) = &self.generation {
                    let mut member = Member::new(generation.clone(), Join::worker(Some(0)), Moment::now());
                    if let Ok(step) = member.join(Moment::now(), wait) {
                        finish(Ok(step.transitions));
                    }
                    self.member = Some(member);
                }
            }
            16 => {
                if let Some(member) = &mut self.member {
                    let now = Moment::now();
                    let step = match choices.int_in_range(0..=3)? {
                        0 => member.on_time(now),
                        1 => member.on_readable(now),
                        2 => member.begin_drain(now),
                        _ => member.only_beat(now),
                    };
                    finish(Ok(step.transitions));
                }
            }
            _ => {
                // Overwritten once more, in the middle of it.
                let at = usize::from(choices.arbitrary::<u16>()?) * 8 % len;
                let word: u64 = choices.arbitrary()?;
                vandal.overwrite_at(&word.to_ne_bytes(), at as u64);
            }
        }
        Ok(())
    }

    fn some_id(&self, choices: &mut Unstructured<'_>) -> Result<u64> {
        Ok(match &self.generation {
            Some(generation) if choices.ratio(2, 3)? => generation.id(),
            _ => choices.arbitrary()?,
        })
    }

    /// It ends, as it may.
    fn end(mut self) {
        self.watch = None;
        if let Some(member) = &mut self.member {
            finish(member.leave(Wait::Timeout));
        }
        self.worker.iter().for_each(|worker| finish(worker.leave(Wait::Timeout)));
        finish(self.master.leave(Wait::Timeout));
        drop(self.master.node().take_notices());
    }
}

/// What the process has in memory of its own has not suffered.
fn is_well(node: &Node) {
    let master = node.open().expect("it opens again");
    let (generation, transitions) = master.begin(Begin::new().workers(1), Wait::Timeout).expect("it begins");
    transitions.run(|_| ());
    master.commit(generation.id());
    let (worker, transitions) = generation.join(Join::worker(Some(0))).expect("it joins");
    transitions.run(|_| ());
    let snapshot = master.node().snapshot();
    assert_eq!((snapshot.total, snapshot.generations.len()), (1, 1), "{snapshot:#?}");
    worker.leave(Wait::Timeout).expect("it leaves").run(|_| ());
    master.leave(Wait::Timeout).expect("it leaves").run(|_| ());
    assert!(master.node().snapshot().processes.is_empty(), "{:#?}", master.node().snapshot());
    drop(master.node().take_notices());
}
