//! Characters and colours, by what the terminal can show.

use headcount::State;
use ratatui::style::{Color, Modifier, Style};

use super::life::Stretch;
use super::timeline::Mark;

/// What the terminal can show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Theme {
    pub unicode: bool,
    pub colour: bool,
}

/// Neighbouring generations must differ; red and yellow are for what goes wrong.
const GENERATIONS: [Color; 4] = [Color::Cyan, Color::LightBlue, Color::Green, Color::LightMagenta];

/// What our own texts have besides letters, digits and ASCII.
const DRAWN: &str = "…░█▒─";

impl Theme {
    /// By the environment, as every program does it: the first of these that is set counts.
    pub fn of_environment() -> Theme {
        let set = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        let locale = ["LC_ALL", "LC_CTYPE", "LANG"].into_iter().find_map(set);
        let wanted = !matches!(anstream::ColorChoice::global(), anstream::ColorChoice::Never);
        Theme { unicode: is_utf8(locale.as_deref()), colour: wanted && set("NO_COLOR").is_none() }
    }

    /// A cell of a bar. Without colours, the bar carries the last digit of its generation.
    pub fn stretch(self, stretch: Stretch, generation: u64, offset: usize) -> (char, Style) {
        let glyph = match (stretch, self.unicode && self.colour) {
            (Stretch::Starting, true) => '░',
            (Stretch::Starting, false) => '-',
            (Stretch::Serving, true) => '█',
            (Stretch::Serving, false) => '=',
            (Stretch::Draining, true) => '▒',
            (Stretch::Draining, false) => '~',
            (Stretch::Stalled, true) => '─',
            (Stretch::Stalled, false) => '.',
        };
        match (self.colour, offset % 4 == 1 && generation != 0) {
            (true, _) => (glyph, self.generation(generation)),
            (false, true) => (last_digit(generation), Style::new()),
            (false, false) => (glyph, Style::new()),
        }
    }

    /// The colour of a generation; 0 is a master's.
    pub fn generation(self, generation: u64) -> Style {
        if !self.colour {
            return Style::new();
        }
        match generation {
            0 => Style::new().fg(Color::DarkGray),
            _ => Style::new().fg(GENERATIONS[(generation % GENERATIONS.len() as u64) as usize]),
        }
    }

    /// Letters in every theme: they are explained below the time line, and each terminal has them.
    pub fn mark(self, mark: Mark, generation: u64) -> (char, Style) {
        let (glyph, colour) = match mark {
            Mark::Start => ('[', None),
            Mark::Exit => (']', None),
            Mark::Drain => ('v', Some(Color::LightYellow)),
            Mark::Recovery => ('+', Some(Color::LightGreen)),
            Mark::Stall => ('!', Some(Color::LightYellow)),
            Mark::Death => ('X', Some(Color::LightRed)),
            Mark::Gone => ('?', None),
        };
        let style = match colour {
            Some(colour) if self.colour => Style::new().fg(colour),
            _ => self.generation(generation),
        };
        (glyph, style.add_modifier(Modifier::BOLD))
    }

    /// The line that stands in the bars' background where a generation began.
    pub fn rule(self) -> char {
        if self.unicode { '┊' } else { ':' }
    }

    pub fn state(self, state: Option<State>) -> Style {
        let colour = match state {
            _ if !self.colour => return Style::new(),
            Some(State::Serving) => Color::Green,
            Some(State::Starting) => Color::Cyan,
            Some(State::Draining | State::Leaving) => Color::Yellow,
            Some(State::Stalled | State::Orphaned) => Color::LightMagenta,
            Some(State::Died) => Color::LightRed,
            _ => return self.dim(),
        };
        Style::new().fg(colour)
    }

    pub fn warning(self) -> Style {
        if self.colour { Style::new().fg(Color::LightYellow).bold() } else { Style::new().bold() }
    }

    pub fn dim(self) -> Style {
        // Not the terminal's own dimming: some show it as nothing, some as black.
        if self.colour { Style::new().fg(Color::DarkGray) } else { Style::new() }
    }

    /// Shortened text, with a sign that it is.
    pub fn cut(self, text: &str, width: usize) -> String {
        let (dots, length) = if self.unicode { ("…", 1) } else { ("..", 2) };
        let all = text.chars().count();
        if all <= width {
            return self.plain(text);
        }
        let kept: String = text.chars().take(width.saturating_sub(length)).collect();
        self.plain(&kept) + &dots.chars().take(width).collect::<String>()
    }

    /// The same, for what has its most telling part at the end.
    pub fn cut_front(self, text: &str, width: usize) -> String {
        let turned: String = text.chars().rev().collect();
        if turned.chars().count() <= width {
            self.plain(text)
        } else {
            self.cut(&turned, width).chars().rev().collect()
        }
    }

    /// Without what would move the cursor, change colours, or turn the direction of writing: a registry may say anything.
    fn plain(self, text: &str) -> String {
        text.chars().map(|c| if self.shows(c) { c } else { '?' }).collect()
    }

    fn shows(self, c: char) -> bool {
        c == ' ' || c.is_ascii_graphic() || self.unicode && (c.is_alphanumeric() || DRAWN.contains(c))
    }
}

fn is_utf8(locale: Option<&str>) -> bool {
    locale.is_some_and(|name| {
        let name = name.to_ascii_lowercase();
        name.ends_with("utf-8") || name.ends_with("utf8") || name.contains("utf-8@") || name.contains("utf8@")
    })
}

fn last_digit(generation: u64) -> char {
    char::from_digit((generation % 10) as u32, 10).unwrap_or('0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_utf8_locale_gets_more_than_ascii() {
        for yes in ["en_US.UTF-8", "C.utf8", "de_AT.UTF-8@euro"] {
            assert!(is_utf8(Some(yes)), "{yes}");
        }
        for no in [None, Some("C"), Some("POSIX"), Some("de_AT.ISO-8859-1")] {
            assert!(!is_utf8(no), "{no:?}");
        }
    }

    #[test]
    fn neighbouring_generations_differ_in_colour_and_without_it() {
        let colourful = Theme { unicode: true, colour: true };
        let plain = Theme { unicode: true, colour: false };
        for generation in 1..50 {
            assert_ne!(colourful.generation(generation), colourful.generation(generation + 1));
            let digit = |g| plain.stretch(Stretch::Serving, g, 1).0;
            assert_ne!(digit(generation), digit(generation + 1));
        }
    }

    #[test]
    fn a_name_cannot_reach_the_terminal() {
        let unicode = Theme { unicode: true, colour: true };
        assert_eq!(unicode.cut("a\x1b[2Jb\n\u{202e}c é/x", 80), "a?[2Jb??c é/x");
        assert_eq!(unicode.cut_front("\u{202e}\x07/x", 80), "??/x");
    }

    #[test]
    fn cut_text_says_so_and_keeps_its_width() {
        let ascii = Theme { unicode: false, colour: false };
        let unicode = Theme { unicode: true, colour: false };
        assert_eq!((ascii.cut("abcdef", 4), unicode.cut("abcdef", 4)), ("ab..".into(), "abc…".into()));
        assert_eq!(unicode.cut_front("/run/registry", 9), "…registry");
        assert_eq!(
            (ascii.cut("é", 4), ascii.cut("abc", 1), ascii.cut("abc", 0)),
            ("?".into(), ".".into(), "".into())
        );
    }
}
