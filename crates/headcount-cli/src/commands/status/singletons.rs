//! Roles, onces and locks for people.

use anstyle::Style;
use headcount::{SingletonKind, SingletonState, SingletonStatus};
use headcount_report::age;

use crate::escape::escape;
use crate::paint;
use crate::table::{Cell, Side, Table};

/// A line for each.
pub fn write(all: &[SingletonStatus], out: &mut String) {
    if all.is_empty() {
        return;
    }
    let mut table = Table::new(&[
        ("WHAT", Side::Left),
        ("NAME", Side::Left),
        ("STATE", Side::Left),
        ("BY", Side::Left),
        ("FOR", Side::Left),
        ("TOKEN", Side::Right),
        ("", Side::Left),
    ]);
    for x in all {
        let what = match (x.kind, x.generation) {
            (SingletonKind::Once, 0) => "once, node".to_owned(),
            (SingletonKind::Once, generation) => format!("once, gen. {generation}"),
            (kind, _) => kind.name().to_owned(),
        };
        let style = match x.state {
            SingletonState::Held | SingletonState::Running | SingletonState::Done => paint::GOOD,
            SingletonState::Failed => paint::ERROR,
            SingletonState::Free if x.kind == SingletonKind::Lock => Style::new(),
            _ => paint::WARNING,
        };
        let by = match (x.holder, x.worker_id) {
            (None, _) => Cell::none(),
            (Some(pid), Some(id)) => Cell::new(format!("worker {id} ({pid})")),
            (Some(pid), None) => Cell::new(pid.to_string()),
        };
        let more = match (x.kind, x.waiters, x.attempts) {
            (SingletonKind::Lock, 0, _) | (SingletonKind::Role, ..) => Cell::none(),
            (SingletonKind::Lock, n, _) => Cell::new(format!("{n} waiting")).style(paint::WARNING),
            (_, _, 0 | 1) => Cell::none(),
            (_, _, n) => Cell::new(format!("{n} attempts")),
        };
        let state = x.state.name().replace('_', " ");
        table.row(vec![
            Cell::new(what),
            Cell::new(escape(&x.name)),
            Cell::new(state).style(style),
            by,
            Cell::new(age(x.since)),
            if x.token == 0 { Cell::none() } else { Cell::new(x.token.to_string()) },
            more,
        ]);
    }
    out.push('\n');
    table.write(out);
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn who_leads_what_runs_and_who_waits() {
        let at = |kind, name: &str, state, seconds| {
            let mut x = SingletonStatus::new(kind, name, state);
            x.since = Duration::from_secs(seconds);
            x
        };
        let mut role = at(SingletonKind::Role, "cron", SingletonState::Held, 70);
        (role.holder, role.worker_id, role.token) = (Some(4711), Some(2), 17);
        let mut once = at(SingletonKind::Once, "warm", SingletonState::Running, 3);
        (once.generation, once.holder, once.attempts) = (4, Some(4712), 2);
        let failed = at(SingletonKind::Once, "migrate", SingletonState::Failed, 90_000);
        let mut lock = at(SingletonKind::Lock, "keys", SingletonState::Held, 1);
        (lock.holder, lock.waiters, lock.token) = (Some(4711), 3, 901);
        let mut out = String::new();
        write(&[role, once, failed, lock], &mut out);
        insta::assert_snapshot!(anstream::adapter::strip_str(&out).to_string());
    }
}
