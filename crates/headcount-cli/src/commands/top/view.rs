//! The screen: a pure function from what is known and chosen to characters.

mod detail;
mod frame;
mod help;
mod list;
mod page;
mod singletons;
#[cfg(test)]
mod tests;

use ratatui::buffer::Buffer;
use ratatui::layout::Rect;
use ratatui::style::Style;

use super::choices::Mode;
pub use frame::{filter_line, keys_line};
pub use help::keys;
pub use list::first_shown;
pub use page::{Page, Scene, clock, short};

/// Below this nothing useful fits.
pub const SMALLEST: (u16, u16) = (40, 10);

/// Draws, and tells which lives have a row.
pub fn draw(scene: &Scene<'_>, area: Rect, buf: &mut Buffer) -> Vec<u64> {
    if area.width < SMALLEST.0 || area.height < SMALLEST.1 {
        too_small(area, buf);
        return Vec::new();
    }
    let mut page = Page { area, buf, theme: scene.theme };
    let body = frame::draw(scene, &mut page);
    match scene.choices.mode {
        Mode::Help => {
            help::draw(&mut page, body);
            Vec::new()
        }
        Mode::Detail => detail::draw(scene, &mut page, body),
        Mode::List | Mode::Filter(_) => list::draw(scene, &mut page, body),
    }
}

pub fn too_small(area: Rect, buf: &mut Buffer) {
    let (width, height) = SMALLEST;
    let lines = [
        "headcount top".to_owned(),
        format!("needs {width}x{height}"),
        format!("this is {}x{}", area.width, area.height),
        "q quits".to_owned(),
    ];
    for (y, line) in (area.top()..area.bottom()).zip(lines) {
        buf.set_stringn(area.x, y, line, usize::from(area.width), Style::new());
    }
}
