//! What the person at the keyboard has chosen, and what each key does.

use std::time::Duration;

use headcount::State;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::life::{Life, before};
use super::model::Model;

/// How much time the window spans; the first is the one to begin with.
const ZOOM: [u64; 11] = [10, 20, 30, 60, 120, 300, 900, 3_600, 10_800, 43_200, 86_400];
const ZOOM_AT_FIRST: usize = 4;
const LONGEST_FILTER: usize = 60;

/// The state of the screen that does not come from the node.
#[derive(Clone, Debug)]
pub struct Choices {
    pub mode: Mode,
    pub sort: Sort,
    pub filter: String,
    pub show_gone: bool,
    /// The node as it was when the picture was stopped.
    pub paused: Option<Box<Model>>,
    zoom: usize,
    /// How far the window lies in the past, while the picture stands.
    pub back: Duration,
    /// The life that is selected.
    pub selected: Option<u64>,
    /// The first line of a detail view that is shown.
    pub scrolled: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    List,
    /// A filter is typed; what it was before.
    Filter(String),
    Detail,
    Help,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// The newest on top.
    Start,
    Pid,
    /// What needs attention on top.
    State,
    /// The newest on top, then by number.
    Generation,
}

/// What is to be done beyond choosing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Stay,
    Quit,
    Suspend,
    NextNode,
}

impl Default for Choices {
    fn default() -> Choices {
        Choices {
            mode: Mode::List,
            sort: Sort::Start,
            filter: String::new(),
            show_gone: true,
            paused: None,
            zoom: ZOOM_AT_FIRST,
            back: Duration::ZERO,
            selected: None,
            scrolled: 0,
        }
    }
}

impl Choices {
    pub fn span(&self) -> Duration {
        Duration::from_secs(ZOOM[self.zoom.min(ZOOM.len() - 1)])
    }

    /// The node as it is to be shown.
    pub fn shown<'a>(&'a self, live: &'a Model) -> &'a Model {
        self.paused.as_deref().unwrap_or(live)
    }

    /// The lives to be shown, in their order, for a window between these instants.
    pub fn rows<'a>(&self, model: &'a Model, start: u64, end: u64) -> Vec<&'a Life> {
        let now = model.snapshot.boot_ns;
        let words: Vec<_> = self.filter.to_lowercase().split_whitespace().map(str::to_owned).collect();
        let mut rows: Vec<_> = model
            .lives()
            .filter(|life| !life.is_gone() || (self.show_gone && life.until(now) >= start))
            .filter(|life| self.back.is_zero() || life.began < end)
            .filter(|life| words.iter().all(|word| fits(life, word)))
            .collect();
        let newest_first = |life: &Life| std::cmp::Reverse((life.began, life.id));
        match self.sort {
            Sort::Start => rows.sort_by_key(|life| newest_first(life)),
            Sort::Pid => rows.sort_by_key(|life| (life.pid, life.id)),
            Sort::State => rows.sort_by_key(|life| (urgency(life), newest_first(life))),
            Sort::Generation => rows.sort_by_key(|life| {
                let number = life.number.map_or(u64::MAX, u64::from);
                (std::cmp::Reverse(life.generation), number, newest_first(life))
            }),
        }
        rows
    }

    /// What a key does. `rows` are those that are shown.
    pub fn key(&mut self, key: KeyEvent, live: &Model, rows: &[u64]) -> Step {
        if key.kind == KeyEventKind::Release {
            return Step::Stay;
        }
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            return match key.code {
                KeyCode::Char('c') => Step::Quit,
                KeyCode::Char('z') => Step::Suspend,
                _ => Step::Stay,
            };
        }
        match &self.mode {
            Mode::Filter(before) => {
                let before = before.clone();
                self.type_filter(key.code, before);
                Step::Stay
            }
            Mode::Help => {
                self.mode = Mode::List;
                if key.code == KeyCode::Char('q') { Step::Quit } else { Step::Stay }
            }
            Mode::Detail => self.detail_key(key.code, live, rows),
            Mode::List => self.list_key(key.code, live, rows),
        }
    }

    fn type_filter(&mut self, code: KeyCode, before: String) {
        match code {
            KeyCode::Enter => self.mode = Mode::List,
            KeyCode::Esc => {
                self.filter = before;
                self.mode = Mode::List;
            }
            KeyCode::Backspace => {
                self.filter.pop();
            }
            KeyCode::Char(c) if !c.is_control() && self.filter.chars().count() < LONGEST_FILTER => {
                self.filter.push(c);
            }
            _ => {}
        }
    }

    fn detail_key(&mut self, code: KeyCode, live: &Model, rows: &[u64]) -> Step {
        match code {
            KeyCode::Esc | KeyCode::Enter | KeyCode::Backspace => self.mode = Mode::List,
            KeyCode::Down | KeyCode::Char('j') => self.scrolled = self.scrolled.saturating_add(1),
            KeyCode::Up | KeyCode::Char('k') => self.scrolled = self.scrolled.saturating_sub(1),
            KeyCode::PageDown => self.scrolled = self.scrolled.saturating_add(10),
            KeyCode::PageUp => self.scrolled = self.scrolled.saturating_sub(10),
            KeyCode::Home => self.scrolled = 0,
            // The rest works as in the list, but what would choose another row.
            KeyCode::Char('q' | 'p' | ' ' | '+' | '=' | '-' | '?') | KeyCode::Left | KeyCode::Right => {
                return self.list_key(code, live, rows);
            }
            _ => {}
        }
        Step::Stay
    }

    fn list_key(&mut self, code: KeyCode, live: &Model, rows: &[u64]) -> Step {
        match code {
            KeyCode::Char('q') => return Step::Quit,
            KeyCode::Char('n') | KeyCode::Tab => return Step::NextNode,
            KeyCode::Char('p' | ' ') => self.pause(live),
            KeyCode::Char('s') => {
                self.sort = match self.sort {
                    Sort::Start => Sort::Pid,
                    Sort::Pid => Sort::State,
                    Sort::State => Sort::Generation,
                    Sort::Generation => Sort::Start,
                }
            }
            KeyCode::Char('/') => self.mode = Mode::Filter(self.filter.clone()),
            KeyCode::Char('g') => self.show_gone = !self.show_gone,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Char('+' | '=') => self.zoom = self.zoom.saturating_sub(1),
            KeyCode::Char('-') => self.zoom = (self.zoom + 1).min(ZOOM.len() - 1),
            KeyCode::Left => self.scroll_back(),
            KeyCode::Right => self.back = self.back.saturating_sub(self.span() / 4),
            KeyCode::Down | KeyCode::Char('j') => self.select(rows, 1),
            KeyCode::Up | KeyCode::Char('k') => self.select(rows, -1),
            KeyCode::PageDown => self.select(rows, 10),
            KeyCode::PageUp => self.select(rows, -10),
            KeyCode::Home => self.selected = rows.first().copied(),
            KeyCode::End => self.selected = rows.last().copied(),
            KeyCode::Enter => {
                if !self.selected.is_some_and(|id| rows.contains(&id)) {
                    self.selected = rows.first().copied();
                }
                if self.selected.is_some() {
                    self.mode = Mode::Detail;
                    self.scrolled = 0;
                }
            }
            // One after the other, so that the last Esc leaves the screen as it was at first.
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => self.selected = None,
            _ => {}
        }
        Step::Stay
    }

    fn pause(&mut self, live: &Model) {
        self.back = Duration::ZERO;
        self.paused = if self.paused.is_some() { None } else { Some(Box::new(live.clone())) };
    }

    fn scroll_back(&mut self) {
        let Some(model) = &self.paused else { return };
        let all = Duration::from_nanos(model.snapshot.boot_ns);
        self.back = self.back.saturating_add(self.span() / 4).min(all);
    }

    fn select(&mut self, rows: &[u64], by: isize) {
        let at = self.selected.and_then(|id| rows.iter().position(|&row| row == id));
        let last = rows.len().saturating_sub(1);
        let next = match at {
            Some(at) => at.saturating_add_signed(by).min(last),
            None if by > 0 => 0,
            None => last,
        };
        self.selected = rows.get(next).copied();
    }

    /// For another node: what was selected or stopped belongs to the one before.
    pub fn leave_node(&mut self) {
        self.paused = None;
        self.back = Duration::ZERO;
        self.selected = None;
        self.mode = Mode::List;
    }

    /// The end of the window.
    pub fn window_end(&self, model: &Model) -> u64 {
        before(model.snapshot.boot_ns, self.back)
    }
}

fn fits(life: &Life, word: &str) -> bool {
    let number = life.number.map_or(String::new(), |n| format!("#{n}"));
    let role = life.role.name();
    [life.pid.to_string().as_str(), life.state_name(), &format!("g{}", life.generation), &number, role]
        .iter()
        .any(|field| match *field {
            // `g1` is not generation 12, and `#1` not worker 12.
            exact
                if exact.starts_with(['g', '#'])
                    && exact.len() > 1
                    && exact.as_bytes()[1].is_ascii_digit() =>
            {
                exact == word
            }
            text => text.contains(word),
        })
}

/// The smaller, the sooner somebody should look at it.
fn urgency(life: &Life) -> u8 {
    if life.end.is_some() {
        return 9;
    }
    match life.state() {
        Some(State::Died) => 0,
        Some(State::Stalled) => 1,
        Some(State::Orphaned) => 2,
        Some(State::Unknown) | None => 3,
        Some(State::Leaving) => 4,
        Some(State::Draining) => 5,
        Some(State::Starting) => 6,
        Some(State::Serving) => 7,
        _ => 8,
    }
}
