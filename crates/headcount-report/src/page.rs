//! A node as one self-contained page.

use crate::status::StatusDocument;

/// The content type of an answer in this format.
pub const HTML_CONTENT_TYPE: &str = "text/html; charset=utf-8";

const PAGE: &str = include_str!("page.html");

/// What a browser lets the page do: run its own script and style, known by their hashes, and ask its own server. So even a
/// registry that somebody has filled with markup could do nothing, were it ever to get into the page as such.
pub(crate) const POLICY: &str = "default-src 'none'; \
     script-src 'sha256-+E2MdWvDaG9zyqHIscPXaQDBgSOI08PnjLSw3U80/ro='; \
     style-src 'sha256-Hodj6SK0s8tdUiuAxJhR5cZgJY4PwMyBX7WMU3jBrv0='; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The page about these nodes. It refreshes itself by fetching its own address as JSON, and fetches nothing else.
///
/// # Errors
/// None is known: the document has no maps whose keys could not be written.
pub fn page(document: &StatusDocument) -> serde_json::Result<String> {
    // Only this ends a <script>.
    let data = serde_json::to_string(document)?.replace('<', "\\u003c");
    Ok(PAGE.replacen("@DATA@", &data, 1))
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;

    /// As a browser writes it: base64, of which the standard library knows nothing.
    fn hash(of: &str) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let mut sum = Command::new("sha256sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        sum.stdin.take().unwrap().write_all(of.as_bytes()).unwrap();
        let hex = String::from_utf8(sum.wait_with_output().unwrap().stdout).unwrap();
        let bytes: Vec<u8> =
            (0..32).map(|i| u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).unwrap()).collect();
        let mut text = String::new();
        for three in bytes.chunks(3) {
            let word = (0..3).fold(0, |word, i| word << 8 | u32::from(three.get(i).copied().unwrap_or(0)));
            for digit in 0..4 {
                let index = (word >> (18 - 6 * digit) & 63) as usize;
                text.push(if digit > three.len() { '=' } else { char::from(DIGITS[index]) });
            }
        }
        text
    }

    fn between<'a>(start: &str, end: &str) -> &'a str {
        PAGE.split_once(start).unwrap().1.split_once(end).unwrap().0
    }

    #[test]
    fn the_policy_allows_the_pages_own_script_and_style() {
        for (what, of) in
            [("script-src", between("<script>", "</script>")), ("style-src", between("<style>", "</style>"))]
        {
            let allowed = format!("{what} 'sha256-{}';", hash(of));
            assert!(POLICY.contains(&allowed), "page.html has changed: POLICY needs {allowed}");
        }
        assert!(!PAGE.contains(" style=\""), "an attribute that the policy forbids");
    }
}
