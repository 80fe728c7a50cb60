//! The keys, and what they do.

use ratatui::layout::Rect;
use ratatui::style::Style;

use super::page::Page;

const KEYS: [(&str, &str); 14] = [
    ("q, Ctrl-C", "quit"),
    ("p, space", "pause and resume"),
    ("+ -", "show less time, more time"),
    ("left right", "back and forth in time, while paused"),
    ("j k, arrows", "select a process; also PgUp, PgDn, Home, End"),
    ("Enter", "show one process: its state and its history"),
    ("Esc", "back; drop the filter, then the selection"),
    ("s", "sort by start, pid, state (worst first), generation"),
    ("/", "filter: 4711, draining, g3, #0, master; all words must match"),
    ("g", "hide or show the processes that are gone"),
    ("n, Tab", "next node of this host"),
    ("Ctrl-Z", "suspend the program; fg resumes it"),
    ("? h", "this help"),
    ("", ""),
];

const MORE: [&str; 4] = [
    "Each bar is a process, from start to end, in the colour of its generation.",
    "Vertical lines: a start, reload or upgrade began a generation.",
    "Without colours, a bar shows the last digit of its generation's number.",
    "beat: the age of its last heartbeat. DIED and DEAD come from the kernel.",
];

pub fn draw(page: &mut Page<'_>, body: Rect) {
    keys(page, body, KEYS.into_iter().chain(MORE.map(|text| ("", text))));
}

/// Keys and what they do, each on a line; texts that belong to no key begin at the left.
pub fn keys<'a>(page: &mut Page<'_>, body: Rect, lines: impl Iterator<Item = (&'a str, &'a str)>) {
    for (y, (key, what)) in (body.y..body.bottom()).zip(lines) {
        page.put(body.x + 1, y, key, Style::new().bold());
        let x = if key.is_empty() { 1 } else { 14 };
        page.put(body.x + x, y, what, Style::new());
    }
}
