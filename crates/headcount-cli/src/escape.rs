//! Text that others have a say in (file names, what a registry says), made fit for a terminal.

use std::borrow::Cow;
use std::fmt::Write;
use std::path::Path;

/// The text without anything that a terminal would obey: control characters, and those that turn the direction of
/// writing, are written out.
pub fn escape(text: &str) -> Cow<'_, str> {
    if !text.contains(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut clean = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if obeyed(c) {
            // Writing into a `String` does not fail.
            let _ = write!(clean, "{}", c.escape_unicode());
        } else {
            clean.push(c);
        }
    }
    Cow::Owned(clean)
}

/// A path, in the same way.
pub fn escape_path(path: &Path) -> String {
    escape(&path.to_string_lossy()).into_owned()
}

fn obeyed(c: char) -> bool {
    c.is_control() || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_obeyed() {
        assert!(matches!(escape("nginx Ä 7 %"), Cow::Borrowed("nginx Ä 7 %")));
        assert_eq!(escape("a\u{1b}[2J\r\n\u{9b}\u{202e}b"), "a\\u{1b}[2J\\u{d}\\u{a}\\u{9b}\\u{202e}b");
    }
}
