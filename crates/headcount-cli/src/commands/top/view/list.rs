//! The time line: one row for each process, its bar on an axis that all share.

use std::time::Duration;

use headcount::Role;
use headcount_report::{plural, sentence};
use ratatui::layout::Rect;
use ratatui::style::{Modifier, Style};

use super::super::life::{Life, Stretch, heartbeat_age};
use super::super::model::{Model, What};
use super::super::theme::Theme;
use super::super::timeline::{Ink, Mark, Window};
use super::frame;
use super::page::{Page, Scene, clock, short};
use super::singletons;

/// Which columns stand left of the bars.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Columns {
    /// pid, number, generation, state, age, heartbeat.
    All,
    /// pid, generation, state.
    Few,
}

impl Columns {
    fn of(width: u16) -> Columns {
        if width >= 70 { Columns::All } else { Columns::Few }
    }

    fn width(self) -> u16 {
        match self {
            Columns::All => 44,
            Columns::Few => 23,
        }
    }

    fn line(self, pid: &str, number: &str, generation: &str, state: &str, age: &str, beat: &str) -> String {
        match self {
            Columns::All => {
                let who = format!("{pid} {number:>6}");
                format!("{who:>14.14} {generation:>4} {state:<8} {age:>6} {beat:>6} ")
            }
            Columns::Few => format!("{pid:>7} {generation:>4} {state:<8} "),
        }
    }
}

pub fn draw(scene: &Scene<'_>, page: &mut Page<'_>, body: Rect) -> Vec<u64> {
    let model = scene.model();
    let columns = Columns::of(body.width);
    let window = window(scene, body.width - columns.width());
    let rows = scene.choices.rows(model, window.start(), window.end());

    let legend = u16::from(body.height >= 10);
    // Half of what is not needed for the rows, so that a worker that comes finds room.
    let wanted = u16::try_from(rows.len()).unwrap_or(u16::MAX).max(6).saturating_add(1);
    let held = &model.snapshot.singletons;
    let singletons = singletons::height(held, body.height);
    let free = body.height.saturating_sub(2 + legend + singletons).saturating_sub(wanted);
    let latest = if body.height >= 14 { free.max(3).min(body.height / 3) } else { 0 };
    let height = body.height.saturating_sub(2 + legend + singletons + latest);

    let bars = body.x + columns.width();
    let area = Rect { y: body.y + 2, height, ..body };
    let rules = Rules::of(model, window, page.theme);
    axis(scene, page, (body.y, bars), columns, window);
    let selected = scene.choices.selected.and_then(|id| rows.iter().position(|row| row.id == id));
    let first = first_shown(rows.len(), usize::from(height), selected);
    for (y, (index, life)) in (area.y..area.bottom()).zip(rows.iter().enumerate().skip(first)) {
        let left = rows.len() - index;
        if y + 1 == area.bottom() && left > 1 && selected != Some(index) {
            page.put(body.x, y, &format!("  and {}", plural(left as u64, "more row")), page.theme.dim());
            rules.draw(page, (y, bars), &[]);
            break;
        }
        let cells = window.bar(life, model.snapshot.boot_ns, model.snapshot.settings.stall_after);
        rules.draw(page, (y, bars), &cells);
        row(scene, page, (y, bars), columns, life, &cells);
    }
    if rows.is_empty() {
        let why =
            if scene.choices.filter.is_empty() { "no process to show" } else { "nothing matches the filter" };
        page.put(body.x + 2, area.y, why, page.theme.dim());
    }
    singletons::draw(page, held, Rect { y: area.bottom(), height: singletons, ..body });
    let below = area.bottom() + singletons;
    self::latest(page, model, Rect { y: below, height: latest, ..body });
    if legend == 1 {
        self::legend(page, body.bottom() - 1);
    }
    rows.iter().map(|life| life.id).collect()
}

/// The time that is shown, in so many columns.
pub fn window(scene: &Scene<'_>, width: u16) -> Window {
    Window::new(scene.choices.window_end(scene.model()), scene.choices.span(), width)
}

/// The first row that is shown: the selected one is in sight, in the middle if it can be.
pub fn first_shown(rows: usize, height: usize, selected: Option<usize>) -> usize {
    selected.unwrap_or(0).saturating_sub(height / 2).min(rows.saturating_sub(height))
}

fn axis(scene: &Scene<'_>, page: &mut Page<'_>, (y, bars): (u16, u16), columns: Columns, window: Window) {
    let model = scene.model();
    let theme = page.theme;
    let arrangement = theme.cut(&frame::arrangement(scene), usize::from(columns.width()) - 2);
    page.put(page.area.x + 1, y, &arrangement, theme.dim());
    // The newest is written first, and what would cover it is left out.
    let mut free = page.area.right();
    for moment in model.moments.iter().rev() {
        let Some(column) = window.column(moment.at) else { continue };
        let generation = moment.generation;
        let (label, style) = match moment.what {
            What::GenerationStarted => (format!("g{generation}"), theme.generation(generation)),
            What::GenerationAbandoned if columns == Columns::All => {
                (format!("g{generation} failed"), theme.warning())
            }
            What::GenerationAbandoned => (format!("g{generation}!"), theme.warning()),
            What::MasterLost if columns == Columns::All => ("master lost".to_owned(), theme.warning()),
            What::MasterLost => ("M!".to_owned(), theme.warning()),
        };
        let length = u16::try_from(label.len()).unwrap_or(u16::MAX);
        // At the right edge it ends at its moment rather than to begin there.
        let at = (bars + column).min(page.area.right().saturating_sub(length));
        if at >= bars && at.saturating_add(length) < free.saturating_add(u16::from(free == page.area.right()))
        {
            page.put(at, y, &label, style.add_modifier(Modifier::BOLD));
            free = at;
        }
    }
    let heads = columns.line("pid", "no", "gen", "state", "age", "beat");
    page.put(page.area.x + 1, y + 1, &heads, theme.dim().add_modifier(Modifier::UNDERLINED));
    for (column, label) in window.ticks(model.snapshot.boot_ns) {
        let at = (bars + column).saturating_sub(u16::try_from(label.len()).unwrap_or(0) - 1);
        if at >= bars {
            page.put(at, y + 1, &label, theme.dim());
        }
    }
}

fn row(
    scene: &Scene<'_>,
    page: &mut Page<'_>,
    (y, bars): (u16, u16),
    columns: Columns,
    life: &Life,
    cells: &[Option<Ink>],
) {
    let (model, theme) = (scene.model(), page.theme);
    let snapshot = &model.snapshot;
    let number = match life.role {
        Role::Worker => life.number.map_or("-".to_owned(), |n| format!("#{n}")),
        Role::Master => "master".to_owned(),
        other => other.name().to_owned(),
    };
    let generation = if life.generation == 0 { "-".to_owned() } else { format!("g{}", life.generation) };
    let age = age_of(life, model).map_or("-".to_owned(), short);
    let beat = life.now.as_ref().filter(|_| !life.is_gone()).and_then(heartbeat_age);
    let beat = beat.map_or("-".to_owned(), short);
    let pid = life.pid.to_string();
    let watcher = if snapshot.sentinel == Some(life.pid) && !life.is_gone() { "*" } else { " " };
    let text = columns.line(&pid, &number, &theme.cut(&generation, 4), life.state_name(), &age, &beat);
    let style = if life.is_gone() { theme.dim() } else { Style::new() };
    page.put(page.area.x, y, watcher, theme.dim());
    page.put(page.area.x + 1, y, &text, style);
    let (generation_at, state_at) = if columns == Columns::All { (16, 21) } else { (9, 14) };
    let generation = format!("{:>4}", theme.cut(&generation, 4));
    page.put(page.area.x + generation_at, y, &generation, theme.generation(life.generation));
    page.put(page.area.x + state_at, y, life.state_name(), theme.state(life.state()));
    draw_bar(page, (y, bars), life, cells);
    if scene.choices.selected == Some(life.id) {
        // Not the bar: its colours say something.
        let names = Rect { x: page.area.x, y, width: columns.width() - 1, height: 1 };
        page.buf.set_style(names, Style::new().reversed());
        page.put(page.area.x, y, ">", Style::new().reversed());
    }
}

/// How old it is, or became.
pub fn age_of(life: &Life, model: &Model) -> Option<Duration> {
    let until = life.until(model.snapshot.boot_ns);
    life.began_known.then(|| Duration::from_nanos(until.saturating_sub(life.began)))
}

/// Draws the cells of a bar.
pub fn draw_bar(page: &mut Page<'_>, (y, bars): (u16, u16), life: &Life, cells: &[Option<Ink>]) {
    let first = cells.iter().position(Option::is_some).unwrap_or(0);
    for (index, ink) in cells.iter().enumerate() {
        let Some(ink) = *ink else { continue };
        let (glyph, style) = match ink {
            Ink::Stretch(stretch) => page.theme.stretch(stretch, life.generation, index - first),
            Ink::Mark(mark) => page.theme.mark(mark, life.generation),
        };
        page.put_char(bars + u16::try_from(index).unwrap_or(0), y, glyph, style);
    }
}

/// The upright lines where generations began.
struct Rules(Vec<(u16, Style)>);

impl Rules {
    fn of(model: &Model, window: Window, theme: Theme) -> Rules {
        let mut rules: Vec<(u16, Style)> = Vec::new();
        // The newest is seen where several fall together.
        for moment in model.moments.iter().rev() {
            let Some(column) = window.column(moment.at) else { continue };
            let style = match moment.what {
                What::GenerationStarted => theme.generation(moment.generation),
                What::GenerationAbandoned | What::MasterLost => theme.warning(),
            };
            if rules.last().is_none_or(|&(there, _)| there != column) {
                rules.push((column, style));
            }
        }
        Rules(rules)
    }

    /// In the cells that no bar covers.
    fn draw(&self, page: &mut Page<'_>, (y, bars): (u16, u16), cells: &[Option<Ink>]) {
        let rule = page.theme.rule();
        for &(column, style) in &self.0 {
            if !cells.get(usize::from(column)).is_some_and(Option::is_some) {
                page.put_char(bars + column, y, rule, style);
            }
        }
    }
}

fn latest(page: &mut Page<'_>, model: &Model, area: Rect) {
    let events = model.latest.iter().rev().take(usize::from(area.height)).rev();
    for (y, event) in (area.y..area.bottom()).zip(events) {
        let x = page.put(area.x + 1, y, &clock(event.time_ns), page.theme.dim());
        page.put(x + 1, y, &sentence(event), page.theme.generation(event.generation));
    }
}

fn legend(page: &mut Page<'_>, y: u16) {
    let theme = page.theme;
    let stretch = |stretch| theme.stretch(stretch, 0, 0).0;
    let mark = |kind| theme.mark(kind, 0).0;
    let entries = [
        (mark(Mark::Start), "start"),
        (stretch(Stretch::Serving), "serves"),
        (mark(Mark::Drain), ""),
        (stretch(Stretch::Draining), "drains"),
        (mark(Mark::Stall), ""),
        (stretch(Stretch::Stalled), "stalled"),
        (mark(Mark::Recovery), "recovers"),
        (mark(Mark::Exit), "exit"),
        (mark(Mark::Death), "death"),
        ('*', "sentinel"),
    ];
    let mut line = String::new();
    for (glyph, word) in entries {
        let gap = if line.is_empty() || line.ends_with(['v', '!']) { "" } else { "  " };
        let space = if word.is_empty() { "" } else { " " };
        if line.chars().count() + gap.len() + 1 + space.len() + word.len() + 1 > page.width() {
            break;
        }
        line += &format!("{gap}{glyph}{space}{word}");
    }
    page.put(page.area.x + 1, y, &line, theme.dim());
}
