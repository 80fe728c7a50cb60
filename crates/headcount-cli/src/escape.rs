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

/// JSON in the same way: as what a program reads it is the same, since it is only within strings that it has such
/// characters, and there an escape says the same.
pub fn escape_json(json: String) -> String {
    if !json.contains(|c| c != '\n' && obeyed(c)) {
        return json;
    }
    let mut clean = String::with_capacity(json.len() + 8);
    for c in json.chars() {
        if c != '\n' && obeyed(c) {
            // None of them needs two. Writing into a `String` does not fail.
            let _ = write!(clean, "\\u{:04x}", u32::from(c));
        } else {
            clean.push(c);
        }
    }
    clean
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
        let text = "a\u{7f}\u{9b}\u{202e}b\u{2069} Ä\n";
        let json = escape_json(serde_json::to_string_pretty(&[text]).unwrap());
        assert_eq!(json, "[\n  \"a\\u007f\\u009b\\u202eb\\u2069 Ä\\n\"\n]");
        assert_eq!(serde_json::from_str::<[String; 1]>(&json).unwrap(), [text]);
        assert_eq!(escape("a\u{1b}[2J\r\n\u{9b}\u{202e}b"), "a\\u{1b}[2J\\u{d}\\u{a}\\u{9b}\\u{202e}b");
    }
}
