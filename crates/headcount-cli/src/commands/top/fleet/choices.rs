//! What the person at the keyboard has chosen, and what each key does. The keys are those of the node's screen.

use headcount_cluster::fleet::{Host, HostState};
use headcount_cluster::value::NodeValue;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyEventKind, KeyModifiers};

use super::super::choices::Step;
use super::reader::Picture;

const LONGEST_FILTER: usize = 60;

/// A host, and one of its nodes, if it has one.
pub type RowKey = (String, Option<String>);

/// The state of the screen that does not come from the cluster.
#[derive(Clone, Debug)]
pub struct Choices {
    /// Only nodes of this name.
    pub node: Option<String>,
    pub mode: Mode,
    pub sort: Sort,
    pub filter: String,
    pub show_gone: bool,
    /// The cluster as it was when the picture was stopped, and when that was.
    pub paused: Option<Box<(Picture, f64)>>,
    pub selected: Option<RowKey>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mode {
    List,
    /// A filter is typed; what it was before.
    Filter(String),
    Help,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    Host,
    /// What needs attention on top.
    State,
    /// The newest on top.
    Begun,
}

/// A line of the list.
pub struct Row<'a> {
    pub host: &'a str,
    pub about: &'a Host,
    pub node: Option<(&'a str, &'a NodeValue)>,
}

impl Row<'_> {
    pub fn key(&self) -> RowKey {
        (self.host.to_owned(), self.node.map(|(name, _)| name.to_owned()))
    }

    /// In one word.
    pub fn state(&self) -> &str {
        match (self.about.state(), self.node) {
            (HostState::Lost { .. }, _) => "lost",
            (HostState::Left { .. }, _) => "left",
            (HostState::Here { .. }, None) => "no node",
            (HostState::Here { .. }, Some((_, value))) => &value.state,
        }
    }
}

impl Default for Choices {
    fn default() -> Choices {
        Choices {
            node: None,
            mode: Mode::List,
            sort: Sort::Host,
            filter: String::new(),
            show_gone: true,
            paused: None,
            selected: None,
        }
    }
}

impl Choices {
    /// The cluster as it is to be shown, and the time at which it was so.
    pub fn shown<'a>(&'a self, live: &'a Picture, now: f64) -> (&'a Picture, f64) {
        self.paused.as_deref().map_or((live, now), |(picture, then)| (picture, *then))
    }

    /// What is to be shown, in its order.
    pub fn rows<'a>(&self, picture: &'a Picture) -> Vec<Row<'a>> {
        let words: Vec<_> = self.filter.to_lowercase().split_whitespace().map(str::to_owned).collect();
        let mut rows = Vec::new();
        for (host, about) in &picture.fleet.hosts {
            if !self.show_gone && matches!(about.state(), HostState::Left { .. }) {
                continue;
            }
            let before = rows.len();
            let wanted = |name: &String| self.node.as_ref().is_none_or(|node| node == name);
            let nodes = about.nodes.iter().filter(|(name, _)| wanted(name));
            rows.extend(nodes.map(|(name, value)| Row { host, about, node: Some((name, value)) }));
            if rows.len() == before {
                rows.push(Row { host, about, node: None });
            }
        }
        rows.retain(|row| words.iter().all(|word| fits(row, word)));
        match self.sort {
            Sort::Host => {}
            Sort::State => rows.sort_by_key(|row| urgency(row.state())),
            Sort::Begun => rows.sort_by(|a, b| {
                let begun = |row: &Row<'_>| row.node.and_then(|(_, value)| value.begun).unwrap_or(0.0);
                begun(b).total_cmp(&begun(a))
            }),
        }
        rows
    }

    /// What a key does. `rows` are those that are shown.
    pub fn key(&mut self, key: KeyEvent, live: &Picture, now: f64, rows: &[RowKey]) -> Step {
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
            }
            Mode::Help => {
                self.mode = Mode::List;
                if key.code == KeyCode::Char('q') {
                    return Step::Quit;
                }
            }
            Mode::List => return self.list_key(key.code, live, now, rows),
        }
        Step::Stay
    }

    fn type_filter(&mut self, code: KeyCode, before: String) {
        match code {
            KeyCode::Enter => self.mode = Mode::List,
            KeyCode::Esc => {
                self.filter = before;
                self.mode = Mode::List;
            }
            KeyCode::Backspace => drop(self.filter.pop()),
            KeyCode::Char(c) if !c.is_control() && self.filter.chars().count() < LONGEST_FILTER => {
                self.filter.push(c);
            }
            _ => {}
        }
    }

    fn list_key(&mut self, code: KeyCode, live: &Picture, now: f64, rows: &[RowKey]) -> Step {
        match code {
            KeyCode::Char('q') => return Step::Quit,
            KeyCode::Char('p' | ' ') => {
                self.paused = if self.paused.is_some() { None } else { Some(Box::new((live.clone(), now))) };
            }
            KeyCode::Char('s') => {
                self.sort = match self.sort {
                    Sort::Host => Sort::State,
                    Sort::State => Sort::Begun,
                    Sort::Begun => Sort::Host,
                }
            }
            KeyCode::Char('/') => self.mode = Mode::Filter(self.filter.clone()),
            KeyCode::Char('g') => self.show_gone = !self.show_gone,
            KeyCode::Char('?' | 'h') => self.mode = Mode::Help,
            KeyCode::Down | KeyCode::Char('j') => self.select(rows, 1),
            KeyCode::Up | KeyCode::Char('k') => self.select(rows, -1),
            KeyCode::PageDown => self.select(rows, 10),
            KeyCode::PageUp => self.select(rows, -10),
            KeyCode::Home => self.selected = rows.first().cloned(),
            KeyCode::End => self.selected = rows.last().cloned(),
            // One after the other, so that the last Esc leaves the screen as it was at first.
            KeyCode::Esc if !self.filter.is_empty() => self.filter.clear(),
            KeyCode::Esc => self.selected = None,
            _ => {}
        }
        Step::Stay
    }

    fn select(&mut self, rows: &[RowKey], by: isize) {
        let at = self.selected.as_ref().and_then(|selected| rows.iter().position(|row| row == selected));
        let last = rows.len().saturating_sub(1);
        let next = match at {
            Some(at) => at.saturating_add_signed(by).min(last),
            None if by > 0 => 0,
            None => last,
        };
        self.selected = rows.get(next).cloned();
    }
}

fn fits(row: &Row<'_>, word: &str) -> bool {
    let generation = row.node.and_then(|(_, value)| value.generation);
    let number = generation.map_or(String::new(), |id| format!("g{id}"));
    let name = row.node.map_or("", |(name, _)| name);
    let text = |text: &str| text.to_lowercase().contains(word);
    // `g1` is not generation 12.
    number == word || text(row.host) || text(name) || text(row.state())
}

/// The smaller, the sooner somebody should look at it.
pub fn urgency(state: &str) -> u8 {
    match state {
        "lost" => 0,
        "crash_loop" => 1,
        "orphaned" => 2,
        "stopped" => 3,
        "short" => 4,
        "unknown" => 5,
        "starting" => 6,
        "serving" => 8,
        "no node" => 9,
        "left" => 10,
        // Of a later version.
        _ => 7,
    }
}
