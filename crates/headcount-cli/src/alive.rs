//! A node that is not alive, in words.

use headcount::{Liveness, ProcessStatus, Role, Snapshot};
use headcount_report::plural;

/// Alive, or not known: such a process must not be taken for gone.
pub fn may_be_alive(process: &ProcessStatus) -> bool {
    process.liveness != Liveness::Gone
}

/// The helpers and visitors that are still there, or may be.
pub fn helpers(snapshot: &Snapshot) -> impl Iterator<Item = &ProcessStatus> {
    let serves_nobody = |p: &&ProcessStatus| !matches!(p.role, Role::Master | Role::Worker);
    snapshot.processes.iter().filter(serves_nobody).filter(|p| may_be_alive(p))
}

/// `only a helper is left: process 17`, if that is so.
pub fn only_helpers(snapshot: &Snapshot) -> Option<String> {
    if snapshot.liveness() != Liveness::Gone {
        return None;
    }
    let what = match helpers(snapshot).all(|p| p.role == Role::Visitor) {
        true => "visitor",
        false => "helper",
    };
    let pids: Vec<_> = helpers(snapshot).map(|p| p.pid.to_string()).collect();
    match pids.as_slice() {
        [] => None,
        [pid] => Some(format!("only a {what} is left: process {pid}")),
        several => {
            let number = plural(u64::try_from(several.len()).unwrap_or(u64::MAX), what);
            Some(format!("only {number} are left: processes {}", several.join(", ")))
        }
    }
}

/// `no master or worker of the node is alive; only a helper is left: process 17`.
pub fn not_alive(snapshot: &Snapshot) -> String {
    let helpers = only_helpers(snapshot).map_or(String::new(), |helpers| format!("; {helpers}"));
    format!("no master or worker of the node is alive{helpers}")
}

/// `2 processes may be alive, which is not known: they run in …`, a sentence for each reason.
pub fn doubts(snapshot: &Snapshot) -> Vec<String> {
    let mut reasons: Vec<(&str, u64)> = Vec::new();
    for process in &snapshot.processes {
        let Liveness::Unknown(doubt) = process.liveness else { continue };
        match reasons.iter_mut().find(|(reason, _)| *reason == doubt.reason()) {
            Some((_, n)) => *n += 1,
            None => reasons.push((doubt.reason(), 1)),
        }
    }
    let sentence = |(reason, n): &(&str, u64)| match n {
        1 => format!("it is not known whether 1 process is alive: {reason}"),
        n => format!("it is not known whether {n} processes are alive: {reason}"),
    };
    reasons.iter().map(sentence).collect()
}

#[cfg(test)]
mod tests {
    use headcount::State;

    use super::*;

    #[test]
    fn helpers_are_named_where_nobody_else_is_left() {
        let process = ProcessStatus::new;
        let mut snapshot = Snapshot::new("x");
        assert_eq!(not_alive(&snapshot), "no master or worker of the node is alive");
        snapshot.processes =
            vec![process(Role::Master, 10, State::Died), process(Role::Helper, 17, State::Serving)];
        assert_eq!(
            not_alive(&snapshot),
            "no master or worker of the node is alive; only a helper is left: process 17"
        );
        // One that may be alive is named, one that is gone is not.
        snapshot.processes.push(process(Role::Helper, 18, State::Unknown));
        snapshot.processes.push(process(Role::Helper, 19, State::Died));
        assert_eq!(
            not_alive(&snapshot),
            "no master or worker of the node is alive; only 2 helpers are left: processes 17, 18"
        );
        snapshot.processes = vec![process(Role::Visitor, 20, State::Serving)];
        assert_eq!(only_helpers(&snapshot).as_deref(), Some("only a visitor is left: process 20"));
        snapshot.processes.push(process(Role::Worker, 11, State::Serving));
        assert_eq!(only_helpers(&snapshot), None);
    }
}
