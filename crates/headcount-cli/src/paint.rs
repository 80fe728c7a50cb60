//! The few colours. Written through anstream, which drops them where no terminal shows them.

use anstyle::{AnsiColor, Style};
use headcount::State;

pub const ERROR: Style = AnsiColor::Red.on_default().bold();
pub const WARNING: Style = AnsiColor::Yellow.on_default().bold();
pub const GOOD: Style = AnsiColor::Green.on_default();
pub const HEADING: Style = Style::new().bold();
pub const DIM: Style = Style::new().dimmed();

/// The colour of a process in this state.
pub fn state(state: State) -> Style {
    match state {
        State::Serving => GOOD,
        State::Starting => AnsiColor::Cyan.on_default(),
        State::Draining | State::Leaving => AnsiColor::Yellow.on_default(),
        State::Stalled | State::Orphaned => AnsiColor::Magenta.on_default().bold(),
        State::Died => ERROR,
        _ => DIM,
    }
}
