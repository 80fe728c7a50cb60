//! What all views draw from and on, and how they write times.

use std::time::Duration;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::super::choices::Choices;
use super::super::model::Model;
use super::super::theme::Theme;

/// All that a picture depends on.
pub struct Scene<'a> {
    /// The node as it is, also while the picture is paused.
    pub live: &'a Model,
    pub choices: &'a Choices,
    pub theme: Theme,
    /// Which of how many nodes.
    pub node: (usize, usize),
    /// Why the node cannot be read now.
    pub trouble: Option<&'a str>,
    /// How often the picture is redrawn.
    pub every: Duration,
}

impl Scene<'_> {
    /// The node as it is shown.
    pub fn model(&self) -> &Model {
        self.choices.shown(self.live)
    }
}

/// What is drawn on; knows its edges.
pub struct Page<'a> {
    pub area: Rect,
    pub buf: &'a mut Buffer,
    pub theme: Theme,
}

impl Page<'_> {
    pub fn width(&self) -> usize {
        usize::from(self.area.width)
    }

    /// Writes from column `x`, cut at the right edge; gives the column after it.
    pub fn put(&mut self, x: u16, y: u16, text: &str, style: Style) -> u16 {
        if y >= self.area.bottom() || x >= self.area.right() {
            return x;
        }
        let room = usize::from(self.area.right() - x);
        let text = self.theme.cut(text, room);
        self.buf.set_stringn(x, y, text, room, style).0
    }

    /// Writes flush right, in at most `room` columns.
    pub fn put_right(&mut self, y: u16, text: &str, room: usize, style: Style) {
        let text = self.theme.cut_front(text, room);
        let length = u16::try_from(text.chars().count()).unwrap_or(0);
        let x = self.area.right().saturating_sub(length);
        self.put(x, y, &text, style);
    }

    pub fn put_char(&mut self, x: u16, y: u16, character: char, style: Style) {
        if let Some(cell) = self.buf.cell_mut((x, y)) {
            cell.set_char(character).set_style(style);
        }
    }

    /// Gives a whole line a style.
    pub fn paint(&mut self, y: u16, style: Style) {
        self.buf.set_style(Rect { y, height: 1, ..self.area }, style);
    }
}

/// A duration in six characters at most: `350ms`, `4.2s`, `42s`, `3m12s`, `2h05m`, `3d04h`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0 => format!("{}ms", duration.as_millis()),
        1..10 => format!("{seconds}.{}s", duration.subsec_millis() / 100),
        10..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{:02}m", seconds / 3_600, seconds % 3_600 / 60),
        86_400..8_640_000 => format!("{}d{:02}h", seconds / 86_400, seconds % 86_400 / 3_600),
        _ => format!("{}d", (seconds / 86_400).min(99_999)),
    }
}

/// The time of day of a moment, in UTC.
pub fn clock(time_ns: u64) -> String {
    let stamp = headcount_report::timestamp(time_ns);
    stamp.get(11..19).unwrap_or(&stamp).to_owned()
}
