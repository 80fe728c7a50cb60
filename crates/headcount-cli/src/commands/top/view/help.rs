//! The keys, and what they do.

use ratatui::layout::Rect;
use ratatui::style::Style;

use super::Page;

const KEYS: [(&str, &str); 14] = [
    ("q, Ctrl-C", "quit"),
    ("p, space", "stop the picture, and go on"),
    ("+ -", "show less time, more time"),
    ("left right", "back and forth in time, while the picture stands"),
    ("j k, arrows", "select a row; PgUp, PgDn, Home, End too"),
    ("Enter", "look at one process: its state and its history"),
    ("Esc", "back; drop the filter; select nothing"),
    ("s", "sort by start, pid, state (worst first), generation"),
    ("/", "filter: 4711, draining, g3, #0, master; words must all fit"),
    ("g", "hide and show the processes that are gone"),
    ("n, Tab", "next node of this host"),
    ("Ctrl-Z", "stop the program; fg goes on"),
    ("? h", "this page"),
    ("", ""),
];

const MORE: [&str; 4] = [
    "A bar is a process from its start to its end; its colour is its generation's.",
    "Upright lines: a reload, upgrade or start made a generation.",
    "Without colours, the digit in a bar is the last one of its generation's number.",
    "beat: how old its heartbeat is. DIED and DEAD are by the kernel.",
];

pub fn draw(page: &mut Page<'_>, body: Rect) {
    let keys = KEYS.iter().map(|&(key, what)| (key, what));
    let lines = keys.chain(MORE.iter().map(|&text| ("", text)));
    for (y, (key, what)) in (body.y..body.bottom()).zip(lines) {
        page.put(body.x + 1, y, key, Style::new().bold());
        let x = if key.is_empty() { 1 } else { 14 };
        page.put(body.x + x, y, what, Style::new());
    }
}
