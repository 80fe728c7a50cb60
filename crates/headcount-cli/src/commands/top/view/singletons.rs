//! Roles, onces and locks: a line for each.

use headcount::{SingletonKind, SingletonState, SingletonStatus};
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::super::theme::Theme;
use super::page::{Page, short};

/// How many lines they get in a body of this height. On a small screen the processes need it.
pub fn height(all: &[SingletonStatus], body: u16) -> u16 {
    let wanted = u16::try_from(all.len()).unwrap_or(u16::MAX);
    if body >= 14 { wanted.min(body / 4) } else { 0 }
}

pub fn draw(page: &mut Page<'_>, all: &[SingletonStatus], area: Rect) {
    let room = usize::from(area.height);
    let shown = if all.len() > room { room.saturating_sub(1) } else { all.len() };
    for (y, x) in (area.y..).zip(&all[..shown]) {
        let name = page.theme.cut(&x.name, 16);
        let state = x.state.name().replace('_', " ");
        let at = page.put(area.x + 1, y, &format!("{:<4} {name:<16} ", x.kind.name()), Style::new());
        let at = page.put(at, y, &format!("{state:<8} "), style(x, page.theme));
        page.put(at, y, &rest(x), Style::new());
    }
    if shown < all.len() && room > 0 {
        let more = format!(" and {} more roles, onces or locks", all.len() - shown);
        page.put(area.x + 1, area.y + area.height - 1, &more, page.theme.dim());
    }
}

fn rest(x: &SingletonStatus) -> String {
    let by = match (x.holder, x.worker_id) {
        (None, _) => "-".to_owned(),
        (Some(pid), None) => pid.to_string(),
        (Some(pid), Some(id)) => format!("{pid} #{id}"),
    };
    let more = match x.kind {
        SingletonKind::Once => {
            let scope =
                if x.generation == 0 { "for the node".to_owned() } else { format!("for g{}", x.generation) };
            let tries = if x.attempts > 1 { format!(", {} attempts", x.attempts) } else { String::new() };
            format!("{scope}{tries}")
        }
        _ if x.waiters > 0 => format!("token {}, {} waiting", x.token, x.waiters),
        _ => format!("token {}", x.token),
    };
    format!("{by:<11} {:>6}  {more}", short(x.since))
}

fn style(x: &SingletonStatus, theme: Theme) -> Style {
    match x.state {
        SingletonState::Held | SingletonState::Running | SingletonState::Done => Style::new(),
        SingletonState::Free if x.kind == SingletonKind::Lock => theme.dim(),
        _ => theme.warning(),
    }
}
