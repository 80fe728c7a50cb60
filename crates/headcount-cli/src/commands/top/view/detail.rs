//! One process: what it is, and its history as sentences.

use headcount::Role;
use headcount_report::{age, sentence};
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::super::life::{Ending, Life, heartbeat_age};
use super::super::model::Model;
use super::list;
use super::page::{Page, Scene, clock};

pub fn draw(scene: &Scene<'_>, page: &mut Page<'_>, body: Rect) -> Vec<u64> {
    let model = scene.model();
    let Some(life) = scene.choices.selected.and_then(|id| model.life(id)) else {
        page.put(body.x + 1, body.y, "no longer kept: it ended long ago (Esc)", page.theme.dim());
        return Vec::new();
    };
    let number = life.number.map_or(String::new(), |n| format!(" {n}"));
    let of = if life.generation == 0 { String::new() } else { format!(" of generation {}", life.generation) };
    let title = format!("{}{number}, pid {}{of}", life.role, life.pid);
    let x = page.put(body.x + 1, body.y, &title, page.theme.generation(life.generation).bold());
    page.put(x + 2, body.y, life.state_name(), page.theme.state(life.state()).bold());

    let window = list::window(scene, body.width.saturating_sub(2));
    let cells = window.bar(life, model.snapshot.boot_ns, model.snapshot.settings.stall_after);
    list::draw_bar(page, (body.y + 1, body.x + 1), life, &cells);

    let mut lines: Vec<(String, String)> = about(life, model);
    lines.push((String::new(), String::new()));
    lines.extend(life.events.iter().map(|event| (clock(event.time_ns), sentence(event))));
    if life.events.is_empty() {
        lines.push((String::new(), "the journal has nothing about it".to_owned()));
    }
    let lines: Vec<_> =
        lines.into_iter().flat_map(|(head, text)| wrapped(head, &text, page.width())).collect();
    let height = usize::from(body.height.saturating_sub(2));
    let first = scene.choices.scrolled.min(lines.len().saturating_sub(height));
    for (y, (head, text)) in (body.y + 2..body.bottom()).zip(&lines[first..]) {
        page.put(body.x + 1, y, head, page.theme.dim());
        page.put(body.x + INDENT, y, text, Style::new());
    }
    vec![life.id]
}

/// Where the sentences begin.
const INDENT: u16 = 12;

/// Breaks at spaces; what goes on has no head.
fn wrapped(head: String, text: &str, width: usize) -> Vec<(String, String)> {
    let room = width.saturating_sub(usize::from(INDENT)).max(10);
    let mut lines = vec![(head, String::new())];
    for word in text.split(' ') {
        let full = lines.last().is_some_and(|(_, line)| {
            !line.is_empty() && line.chars().count() + 1 + word.chars().count() > room
        });
        if full {
            lines.push((String::new(), String::new()));
        }
        if let Some((_, line)) = lines.last_mut() {
            if !line.is_empty() {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

fn about(life: &Life, model: &Model) -> Vec<(String, String)> {
    let snapshot = &model.snapshot;
    let mut lines = Vec::new();
    let mut line = |head: &str, text: String| lines.push((head.to_owned(), text));
    match list::age_of(life, model) {
        Some(lived) if life.is_gone() => line("lived", age(lived)),
        Some(lived) => line("age", age(lived)),
        None => line("age", "unknown: older than the journal".to_owned()),
    }
    line("cause", life.cause.to_string());
    if let Some(end) = life.end {
        let ago = age(std::time::Duration::from_nanos(snapshot.boot_ns.saturating_sub(end.at)));
        match end.how {
            Ending::Exited => line("exited", format!("{ago} ago")),
            Ending::Died => line("died", format!("{ago} ago")),
            Ending::Untold => line("gone", format!("{ago} ago or before: the event was overwritten")),
        }
    }
    let Some(now) = life.now.as_ref().filter(|_| life.end.is_none()) else { return lines };
    if life.is_gone() {
        let ago = age(std::time::Duration::from_nanos(snapshot.boot_ns.saturating_sub(life.last_alive)));
        line("died", format!("not reported yet; it was alive {ago} ago"));
    } else {
        line("state", format!("{} for {}", life.state_name(), age(now.in_state_for)));
    }
    if let Some(beat) = heartbeat_age(now) {
        line(
            "heartbeat",
            format!("{} old; stalled when older than {}", age(beat), age(snapshot.settings.stall_after)),
        );
    }
    if snapshot.sentinel == Some(life.pid) && life.role != Role::Master {
        line("sentinel", "it watches the others".to_owned());
    }
    if let Some(holder) = snapshot.holder.as_ref().filter(|holder| holder.pid == life.pid) {
        let callback =
            holder.callback.map_or(String::new(), |(kind, _)| format!(", in the callback about {kind}"));
        line("node lock", format!("held for {}{callback}", age(holder.held_for)));
    }
    lines
}
