//! One event in one sentence.

use headcount::{Cause, Event, Kind, PreviousRun, Role};

use crate::words::{age, plural, signal_name};

/// What happened, for people, without the time: `worker 2 (pid 4711) of generation 3 died by SIGKILL, 2 h 5 m
/// old, draining for 12 s; 3 workers left`.
#[must_use]
pub fn sentence(event: &Event) -> String {
    let generation = event.generation;
    match event.kind {
        Kind::GenerationStarted => {
            let master = event.pid;
            format!(
                "generation {generation} started{}, master {master}{}",
                because(event),
                previous_run(event)
            )
        }
        Kind::GenerationEnded => {
            let rest = match event.cause {
                Cause::Stop => "the node stops".to_owned(),
                _ => others(event),
            };
            format!("generation {generation} ended: {rest}")
        }
        Kind::GenerationAbandoned => format!("generation {generation} was abandoned: it never got a worker"),
        Kind::WorkerStarted => format!("{} started{}; {}", who(event), because(event), now(event)),
        Kind::WorkerDraining => format!("{} drains{}; {}", who(event), because(event), now(event)),
        Kind::WorkerExited => {
            // It is still counted in its own event.
            let left = event.counts.mine.saturating_sub(1);
            format!("{} exited{}; {} left", who(event), because(event), plural(u64::from(left), "worker"))
        }
        Kind::WorkerDied => {
            let left = plural(event.counts.mine.into(), "worker");
            format!("{} died{}{}; {left} left", who(event), how(event), life(event))
        }
        Kind::WorkerStalled => format!("{} stalled{}; {}", who(event), last_beat(event), now(event)),
        Kind::WorkerRecovered => format!("{} recovered; {}", who(event), now(event)),
        Kind::MasterLost => {
            let orphans = plural(event.counts.total.into(), "orphaned worker");
            format!("master {} was lost{}{}; it leaves {orphans}", event.pid, how(event), life(event))
        }
        Kind::HelperStarted => format!("helper {} of generation {generation} started", event.pid),
        Kind::HelperExited => format!("helper {} of generation {generation} exited", event.pid),
        Kind::CallbackDied => {
            format!("process {} ended in the callback about event {}", event.pid, event.detail)
        }
        Kind::CallbackFailed => {
            format!("the callback about event {} failed in process {}", event.detail, event.pid)
        }
        Kind::MasterExited => format!("master {} exited", event.pid),
        Kind::LeaderElected => {
            format!("{} leads {} from now on (token {})", who(event), name(event), event.token)
        }
        Kind::LeaderLost => format!("{} leads {} no more{}", who(event), name(event), why_lost(event)),
        Kind::OnceDone => format!("{} has done {}{}", who_in(event), name(event), scope(event)),
        Kind::OnceFailed => {
            let times = plural(event.attempts.into(), "attempt");
            let last = match event.cause {
                Cause::Failed => "the last one raised an error".to_owned(),
                _ => format!("in the last one its process died{}", how(event)),
            };
            format!("{}{} failed: {times}, {last}", name(event), scope(event))
        }
        Kind::LockAbandoned => {
            format!("{} ended{} while it held the lock {}", who_in(event), how(event), name(event))
        }
        other => format!("{other}: generation {generation}, process {}", event.pid),
    }
}

fn who(event: &Event) -> String {
    // Of none is a visitor.
    if event.generation == 0 && event.worker_id.is_none() {
        return format!("process {}", event.pid);
    }
    let number = event.worker_id.map_or(String::new(), |id| format!(" {id}"));
    format!("worker{number} (pid {}) of generation {}", event.pid, event.generation)
}

/// Where the generation is said otherwise, or does not matter.
fn who_in(event: &Event) -> String {
    match event.worker_id {
        Some(id) => format!("worker {id} (pid {})", event.pid),
        None => format!("process {}", event.pid),
    }
}

fn name(event: &Event) -> &str {
    event.name.as_deref().unwrap_or("?")
}

fn scope(event: &Event) -> String {
    match event.generation {
        0 => " for the node".to_owned(),
        generation => format!(" for generation {generation}"),
    }
}

fn why_lost(event: &Event) -> String {
    match event.cause {
        Cause::Superseded if event.generation == 0 => ": a worker takes it over".to_owned(),
        Cause::Superseded => ": another generation serves".to_owned(),
        Cause::Stop => ": the node stops".to_owned(),
        Cause::Recycled => ": it was told to leave, and is replaced".to_owned(),
        Cause::Overdue => ": it hangs".to_owned(),
        Cause::Resigned => ": it has resigned".to_owned(),
        Cause::Signal | Cause::Exit => format!(": it ended{}", how(event)),
        _ => ": it ended".to_owned(),
    }
}

fn because(event: &Event) -> String {
    match event.cause {
        Cause::Start | Cause::Unknown => String::new(),
        Cause::Reload => " by a reload".to_owned(),
        Cause::Upgrade => " by a binary upgrade".to_owned(),
        Cause::Respawn => " in place of one that is gone".to_owned(),
        Cause::Resume => " again, after it had ended".to_owned(),
        Cause::Stop => ": the node stops".to_owned(),
        Cause::Superseded => ": another generation has taken over".to_owned(),
        Cause::Recycled => ": it alone was told to, and is replaced".to_owned(),
        other => format!(" ({other})"),
    }
}

fn how(event: &Event) -> String {
    match (event.signal, event.exit_code) {
        (Some(signal), _) => format!(" by {}", signal_name(signal)),
        (None, Some(code)) => format!(" with exit code {code}"),
        (None, None) => String::new(),
    }
}

/// Of one that is gone.
fn life(event: &Event) -> String {
    let old = event.age().map_or(String::new(), |old| format!(", {} old", age(old)));
    let was = event.was().filter(|_| event.role != Some(Role::Master));
    let was = was.map_or(String::new(), |(state, time)| format!(", {state} for {}", age(time)));
    old + &was
}

fn now(event: &Event) -> String {
    let counts = &event.counts;
    let draining =
        if counts.draining > 0 { format!(", {} draining", counts.draining) } else { String::new() };
    format!("{}{draining} now", plural(counts.mine.into(), "worker"))
}

fn others(event: &Event) -> String {
    let counts = &event.counts;
    plural(counts.total.into(), "worker") + " of other generations remain"
}

fn last_beat(event: &Event) -> String {
    match event.boot_ns.checked_sub(event.heartbeat_ns).filter(|_| event.heartbeat_ns != 0) {
        Some(ns) => format!(": its last heartbeat is {} old", age(std::time::Duration::from_nanos(ns))),
        None => String::new(),
    }
}

fn previous_run(event: &Event) -> String {
    match event.previous_run {
        Some(PreviousRun::Unclean { generation, workers }) => {
            let workers = plural(workers.into(), "worker");
            format!("; the previous run ended uncleanly, in generation {generation} with {workers}")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_of_no_generation_is_a_process() {
        let mut event = Event::new(Kind::LeaderElected, Cause::Unknown);
        (event.pid, event.name, event.token) = (17, Some("cron".to_owned()), 4);
        assert_eq!(sentence(&event), "process 17 leads cron from now on (token 4)");
        (event.kind, event.cause) = (Kind::LeaderLost, Cause::Superseded);
        assert_eq!(sentence(&event), "process 17 leads cron no more: a worker takes it over");
        (event.generation, event.worker_id) = (2, Some(0));
        let said = "worker 0 (pid 17) of generation 2 leads cron no more: another generation serves";
        assert_eq!(sentence(&event), said);
    }
}
