//! The screen: a pure function from what is known and chosen to characters.

#[cfg(test)]
mod tests;

use std::time::Duration;

use headcount_cluster::fleet::HostState;
use headcount_report::plural;
use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::{Color, Modifier, Style};

use super::super::theme::Theme;
use super::super::view::{Page, SMALLEST, clock, first_shown, keys, short, too_small};
use super::choices::{Choices, Mode, Row, RowKey, Sort, urgency};
use super::reader::Picture;

/// All that a picture depends on.
pub struct Scene<'a> {
    /// The cluster as it is, also while the picture is paused.
    pub live: &'a Picture,
    pub choices: &'a Choices,
    pub theme: Theme,
    pub cluster: &'a str,
    /// Seconds since 1970.
    pub now: f64,
}

/// What the state takes.
const STATE: u16 = 11;

/// Which columns stand right of the names, which take what these leave.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// state, generation, age, workers, deaths.
    All,
    /// state, workers.
    Few,
}

impl Columns {
    fn of(width: u16) -> Columns {
        if width >= 60 { Columns::All } else { Columns::Few }
    }

    fn width(self) -> u16 {
        match self {
            Columns::All => STATE + 26,
            Columns::Few => STATE + 8,
        }
    }

    fn figures(self, generation: &str, age: &str, workers: &str, deaths: &str) -> String {
        match self {
            Columns::All => format!("{generation:>5} {age:>6} {workers:>7} {deaths:>4}"),
            Columns::Few => format!("{workers:>7}"),
        }
    }
}

const KEYS: [(&str, &str); 12] = [
    ("q, Ctrl-C", "quit"),
    ("p, space", "pause and resume"),
    ("j k, arrows", "select a node; also PgUp, PgDn, Home, End"),
    ("Esc", "drop the filter, then the selection"),
    ("s", "sort by host, state (worst first), age (newest first)"),
    ("/", "filter: web-1, nginx, lost, g3; all words must match"),
    ("g", "hide or show the hosts that have left"),
    ("Ctrl-Z", "suspend the program; fg resumes it"),
    ("? h", "this help"),
    ("", ""),
    ("", "lost: the lease of a host has run out. What its nodes do is not known,"),
    ("", "and what is shown of them was true before."),
];

/// Draws, and tells what has a row.
pub fn draw(scene: &Scene<'_>, area: Rect, buf: &mut Buffer) -> Vec<RowKey> {
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        too_small(area, buf);
        return Vec::new();
    }
    let mut page = Page { area, buf, theme: scene.theme };
    let (picture, now) = scene.choices.shown(scene.live, scene.now);
    header(scene, picture, now, &mut page);
    let mut top = area.y + 1;
    top += warnings(scene, picture, &mut page, top);
    let bottom = area.bottom() - 1;
    footer(scene, &mut page, bottom);
    let body = Rect { x: area.x, y: top, width: area.width, height: bottom.saturating_sub(top) };
    if scene.choices.mode == Mode::Help {
        keys(&mut page, body, KEYS.into_iter());
        return Vec::new();
    }
    let rows = scene.choices.rows(picture);
    list(scene, picture, now, &rows, &mut page, body);
    rows.iter().map(Row::key).collect()
}

fn header(scene: &Scene<'_>, picture: &Picture, now: f64, page: &mut Page<'_>) {
    let (y, bold) = (page.area.y, Style::new().bold());
    let name = page.theme.cut(scene.cluster, 30);
    let mut x = page.put(page.area.x, y, &name, bold.add_modifier(Modifier::UNDERLINED));
    let hosts = picture.fleet.hosts.values();
    let here = hosts.clone().filter(|host| host.is_here());
    let nodes = || here.clone().flat_map(|host| host.nodes.values());
    let serving = nodes().filter(|value| value.state == "serving").count();
    x = page.put(x, y, &format!("  {}", plural(here.clone().count() as u64, "host")), bold);
    x = page.put(
        x,
        y,
        &format!("  {serving} of {} serving", plural(nodes().count() as u64, "node")),
        Style::new(),
    );
    let lost = hosts.filter(|host| host.is_lost()).count();
    if lost > 0 {
        x = page.put(x, y, &format!("  {lost} lost"), page.theme.warning());
    }
    if scene.choices.paused.is_some() {
        x = page.put(x, y, "  ", Style::new());
        page.put(x, y, &format!(" PAUSED {} ago ", since(scene.now, now)), bold.reversed());
    }
}

/// How many lines they took.
fn warnings(scene: &Scene<'_>, picture: &Picture, page: &mut Page<'_>, y: u16) -> u16 {
    let away = scene.live.trouble.iter().map(|text| format!("AWAY: {text}"));
    let unreadable = &picture.fleet.unreadable;
    let unreadable = unreadable.iter().map(|(key, why)| format!("UNREADABLE: {key}: {why}"));
    let all: Vec<_> = away.chain(unreadable).collect();
    let room = if page.area.height < 20 { 1 } else { 3 };
    for (line, text) in (0..).zip(all.iter().take(room)) {
        let more = all.len().saturating_sub(room);
        let more = if usize::from(line) + 1 == room && more > 0 {
            format!(" (+{more} more)")
        } else {
            String::new()
        };
        let text = page.theme.cut(text, page.width().saturating_sub(more.len() + 2));
        page.put(page.area.x, y + line, &format!("! {text}{more}"), page.theme.warning());
    }
    u16::try_from(all.len().min(room)).unwrap_or(0)
}

fn list(scene: &Scene<'_>, picture: &Picture, now: f64, rows: &[Row<'_>], page: &mut Page<'_>, body: Rect) {
    let wanted = u16::try_from(rows.len()).unwrap_or(u16::MAX).max(4).saturating_add(2);
    let free = body.height.saturating_sub(wanted);
    let latest = if body.height >= 12 { free.max(3).min(body.height / 3) } else { 0 };
    let height = body.height.saturating_sub(1 + latest);
    let sort = match scene.choices.sort {
        Sort::Host => "host",
        Sort::State => "state",
        Sort::Begun => "age",
    };
    let filter = &scene.choices.filter;
    let filter = if filter.is_empty() { String::new() } else { format!(" filter: {filter}") };
    let gone = if scene.choices.show_gone { "" } else { " left hidden" };
    let columns = Columns::of(body.width);
    let numbers = body.right() - columns.width();
    page.put(
        body.x + 1,
        body.y,
        &page.theme.cut(&format!("by {sort}{gone}{filter}"), usize::from(numbers.saturating_sub(body.x + 2))),
        page.theme.dim(),
    );
    page.put(numbers, body.y, "state", page.theme.dim());
    page.put(numbers + STATE, body.y, &columns.figures("gen", "age", "workers", "dead"), page.theme.dim());
    let selected = scene.choices.selected.as_ref();
    let selected = selected.and_then(|selected| rows.iter().position(|row| row.key() == *selected));
    let first = first_shown(rows.len(), usize::from(height), selected);
    let area = Rect { y: body.y + 1, height, ..body };
    for (y, (index, row)) in (area.y..area.bottom()).zip(rows.iter().enumerate().skip(first)) {
        let left = rows.len() - index;
        if y + 1 == area.bottom() && left > 1 && selected != Some(index) {
            page.put(body.x, y, &format!("  and {}", plural(left as u64, "more row")), page.theme.dim());
            break;
        }
        draw_row(row, now, page, (y, numbers), columns);
        if selected == Some(index) {
            page.paint(y, Style::new().reversed());
        }
    }
    if rows.is_empty() {
        let why = match (scene.choices.filter.is_empty(), picture.is_read) {
            (_, false) => "nothing is known yet",
            (true, true) => "no host to show",
            (false, true) => "nothing matches the filter",
        };
        page.put(body.x + 2, area.y, why, page.theme.dim());
    }
    let below = Rect { y: area.bottom(), height: latest, ..body };
    events(scene, picture, page, below);
}

fn draw_row(row: &Row<'_>, now: f64, page: &mut Page<'_>, (y, numbers): (u16, u16), columns: Columns) {
    let known = row.about.is_here();
    let dim = page.theme.dim();
    let room = usize::from(numbers.saturating_sub(page.area.x + 2));
    let name = match row.node {
        Some((node, _)) => format!("{} / {node}", row.host),
        None => row.host.to_owned(),
    };
    page.put(page.area.x + 1, y, &page.theme.cut(&name, room), if known { Style::new() } else { dim });
    let state = row.state();
    let begun = match (row.about.state(), row.node) {
        (HostState::Lost { since }, _) => since,
        (HostState::Left { since }, _) => Some(since),
        (HostState::Here { since }, None) => Some(since),
        (HostState::Here { .. }, Some((_, value))) => value.begun,
    };
    let age = begun.map_or("-".to_owned(), |begun| since(now, begun));
    let (generation, workers, deaths) = match row.node {
        None => (String::new(), String::new(), String::new()),
        Some((_, value)) => (
            value.generation.map_or("-".to_owned(), |id| format!("g{id}")),
            format!("{}{}", value.serving, value.expected.map_or(String::new(), |n| format!("/{n}"))),
            if value.deaths > 0 { value.deaths.to_string() } else { "-".to_owned() },
        ),
    };
    page.put(numbers, y, &page.theme.cut(state, 10), colour(page.theme, state));
    let text = columns.figures(&generation, &age, &workers, &deaths);
    page.put(numbers + STATE, y, &text, if known { Style::new() } else { dim });
}

fn colour(theme: Theme, state: &str) -> Style {
    let colour = match urgency(state) {
        _ if !theme.colour => return if urgency(state) < 6 { Style::new().bold() } else { Style::new() },
        0..=3 => Color::LightRed,
        4..=6 => Color::Yellow,
        8 => Color::Green,
        _ => return theme.dim(),
    };
    Style::new().fg(colour)
}

/// The last that have happened, the newest below.
fn events(scene: &Scene<'_>, picture: &Picture, page: &mut Page<'_>, area: Rect) {
    let wanted = |event: &&headcount_cluster::follower::FleetEvent| {
        scene.choices.node.is_none() || scene.choices.node == event.node
    };
    let newest: Vec<_> = picture.latest.iter().rev().filter(wanted).take(usize::from(area.height)).collect();
    for (y, event) in (area.y..area.bottom()).zip(newest.into_iter().rev()) {
        let seconds = event.value.document.get("time").and_then(serde_json::Value::as_f64).unwrap_or(0.0);
        let x = page.put(area.x + 1, y, &clock((seconds * 1e9) as u64), page.theme.dim());
        let who = event.node.as_ref().map_or(event.host.clone(), |node| format!("{} / {node}", event.host));
        // An event of a host names it itself.
        let text = match event.node {
            Some(_) => format!("  {who}: {}", event.value.text("sentence")),
            None => format!("  {}", event.value.text("sentence")),
        };
        page.put(x, y, &text, Style::new());
    }
}

fn since(now: f64, then: f64) -> String {
    short(Duration::from_secs_f64((now - then).clamp(0.0, 1e9)))
}

fn footer(scene: &Scene<'_>, page: &mut Page<'_>, y: u16) {
    let choices = scene.choices;
    if let Mode::Filter(_) = choices.mode {
        super::super::view::filter_line(
            page,
            y,
            &choices.filter,
            "host, node, state, g3; Enter keeps it, Esc drops it",
        );
        return;
    }
    let pause = if choices.paused.is_some() { "p go on" } else { "p pause" };
    let keys: &[&str] = match choices.mode {
        Mode::Help => &["any key: back", "q quit"],
        _ => &["q quit", "? help", pause, "s sort", "/ filter", "g left"],
    };
    super::super::view::keys_line(page, y, keys);
}
