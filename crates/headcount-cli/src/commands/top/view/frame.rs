//! What stands above and below everything: the node, its generations, warnings, and the keys.

use headcount::{GenerationStatus, Phase};
use headcount_report::plural;
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

use super::super::choices::{Mode, Sort};
use super::page::{Page, Scene, short};

/// Draws the frame, and gives what is left inside of it.
pub fn draw(scene: &Scene<'_>, page: &mut Page<'_>) -> Rect {
    let area = page.area;
    let mut top = area.y;
    header(scene, page, top);
    top += 1;
    if area.height >= 14 {
        generations(scene, page, top);
        top += 1;
    }
    top += warnings(scene, page, top);
    let bottom = area.bottom() - 1;
    footer(scene, page, bottom);
    Rect { x: area.x, y: top, width: area.width, height: bottom.saturating_sub(top) }
}

fn header(scene: &Scene<'_>, page: &mut Page<'_>, y: u16) {
    let model = scene.model();
    let snapshot = &model.snapshot;
    let bold = Style::new().bold();
    let mut x = page.put(
        page.area.x,
        y,
        &page.theme.cut(&snapshot.node, 30),
        bold.add_modifier(Modifier::UNDERLINED),
    );
    let (at, of) = scene.node;
    if of > 1 {
        x = page.put(x, y, &format!(" ({at} of {of})"), Style::new());
    }
    x = page.put(x, y, &format!("  {}", plural(snapshot.total.into(), "worker")), bold);
    let generations = snapshot.generations.iter().filter(|g| g.phase != Phase::Abandoned).count();
    x = page.put(x, y, &format!(" in {}", plural(generations as u64, "generation")), Style::new());
    x = match &scene.choices.paused {
        Some(stopped) => {
            let ns = scene.live.snapshot.boot_ns.saturating_sub(stopped.snapshot.boot_ns);
            let since = short(std::time::Duration::from_nanos(ns));
            x = page.put(x, y, "  ", Style::new());
            page.put(x, y, &format!(" PAUSED {since} ago "), bold.reversed())
        }
        // The least of it all: left out where it does not fit.
        None if page.width() < 60 => x,
        None => page.put(x, y, &format!("  every {}", short(scene.every)), page.theme.dim()),
    };
    let room = usize::from(page.area.right().saturating_sub(x + 2));
    if room >= 12 {
        let path = snapshot.path.as_ref().map_or(String::new(), |path| path.to_string_lossy().into_owned());
        page.put_right(y, &path, room, page.theme.dim());
    }
}

fn generations(scene: &Scene<'_>, page: &mut Page<'_>, y: u16) {
    let snapshot = &scene.model().snapshot;
    let mut x = page.area.x;
    for g in snapshot.generations.iter().rev() {
        if x > page.area.x {
            x = page.put(x, y, "   ", Style::new());
        }
        x = page.put(x, y, &format!("g{}", g.id), page.theme.generation(g.id).bold());
        x = page.put(x, y, &format!(" {}", about(g)), Style::new());
    }
    let history = &scene.model().history;
    let minutes = headcount_report::History::WINDOW.as_secs() / 60;
    let text = match (history.deaths.len() as u64, history.respawns) {
        (0, 0) => return,
        (deaths, respawns) => {
            let (deaths, respawns) = (plural(deaths, "death"), plural(respawns.into(), "respawn"));
            format!("{deaths}, {respawns} in {minutes}m")
        }
    };
    let room = usize::from(page.area.right().saturating_sub(x + 2));
    if room >= text.len() {
        page.put_right(y, &text, room, page.theme.dim());
    }
}

fn about(g: &GenerationStatus) -> String {
    let workers = match g.phase {
        Phase::Announced => "announced".to_owned(),
        Phase::Abandoned => "abandoned".to_owned(),
        Phase::Committed => {
            let serving = g.counts.mine.saturating_sub(g.counts.draining);
            let of = g.expected.map_or(String::new(), |n| format!("/{n}"));
            match (serving, g.counts.draining) {
                (0, 1..) => format!("{} draining", g.counts.draining),
                (_, 0) => format!("{serving}{of}"),
                _ => format!("{serving}{of}, {} draining", g.counts.draining),
            }
        }
    };
    format!("{} {workers} {}", g.cause, short(g.age))
}

/// How many lines they took.
fn warnings(scene: &Scene<'_>, page: &mut Page<'_>, y: u16) -> u16 {
    let mut all: Vec<String> = scene.trouble.iter().map(|text| format!("UNREADABLE: {text}")).collect();
    all.extend(scene.model().warnings());
    let room = if page.area.height < 20 { 1 } else { 3 };
    let more = all.len().saturating_sub(room);
    for (line, text) in (0..).zip(all.iter().take(room)) {
        let last = usize::from(line) + 1 == room;
        let more = if last && more > 0 { format!(" (+{more} more)") } else { String::new() };
        let text = page.theme.cut(text, page.width().saturating_sub(more.len() + 2));
        page.put(page.area.x, y + line, &format!("! {text}{more}"), page.theme.warning());
    }
    u16::try_from(all.len().min(room)).unwrap_or(0)
}

fn footer(scene: &Scene<'_>, page: &mut Page<'_>, y: u16) {
    let choices = scene.choices;
    if let Mode::Filter(_) = choices.mode {
        return filter_line(page, y, &choices.filter, "pid, state, g3, #0; Enter keeps it, Esc drops it");
    }
    let pause = if choices.paused.is_some() { "p go on" } else { "p pause" };
    let keys: &[&str] = match choices.mode {
        Mode::Help => &["any key: back", "q quit"],
        Mode::Detail => &["q quit", "Esc back", pause, "j/k scroll", "+/- zoom"],
        _ if choices.paused.is_some() => {
            &["q quit", "? help", pause, "left/right in time", "+/- zoom", "s sort", "/ filter", "g gone"]
        }
        _ if scene.node.1 > 1 => &[
            "q quit",
            "? help",
            "n next node",
            pause,
            "s sort",
            "/ filter",
            "g gone",
            "+/- zoom",
            "Enter show",
        ],
        _ => &["q quit", "? help", pause, "s sort", "/ filter", "g gone", "+/- zoom", "Enter show"],
    };
    keys_line(page, y, keys);
}

/// A filter that is being typed, and what it may be.
pub fn filter_line(page: &mut Page<'_>, y: u16, filter: &str, what: &str) {
    let x = page.put(page.area.x, y, &format!("filter: {filter}"), Style::new().bold());
    let x = page.put(x, y, "_", Style::new().add_modifier(Modifier::SLOW_BLINK));
    page.put(x, y, &format!("   {what}"), page.theme.dim());
}

/// The keys that there are.
pub fn keys_line(page: &mut Page<'_>, y: u16, keys: &[&str]) {
    // A key that does not fit is left out whole: half a word helps nobody.
    let mut line = String::new();
    for key in keys {
        let gap = if line.is_empty() { "" } else { "  " };
        if line.len() + gap.len() + key.len() > page.width() {
            break;
        }
        line = line + gap + key;
    }
    page.put(page.area.x, y, &line, Style::new());
    page.paint(y, Style::new().reversed());
}

/// What the list is ordered by, and how much of it is shown.
pub fn arrangement(scene: &Scene<'_>) -> String {
    let choices = scene.choices;
    let sort = match choices.sort {
        Sort::Start => "start",
        Sort::Pid => "pid",
        Sort::State => "state",
        Sort::Generation => "generation",
    };
    let filter =
        if choices.filter.is_empty() { String::new() } else { format!(" filter: {}", choices.filter) };
    let gone = if choices.show_gone { "" } else { " gone hidden" };
    format!("by {sort}{gone}{filter}")
}
