//! Everything that is printed.

use std::io::Write;
use std::time::Duration;

use anstyle::{AnsiColor, Style};
use serde_json::Value;

/// The widest line, so that it fits a usual terminal.
const WIDTH: usize = 118;

pub const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();
const RED: Style = AnsiColor::Red.on_default();
const GREEN: Style = AnsiColor::Green.on_default();
const YELLOW: Style = AnsiColor::Yellow.on_default();
const BLUE: Style = AnsiColor::Blue.on_default();

#[derive(Default)]
pub struct Screen {
    acts: usize,
}

/// What one host was told of something, if it was: how long after the cause.
pub type Heard = Vec<Option<Duration>>;

impl Screen {
    pub fn line(&self, style: Style, text: &str) {
        let text = text.trim_end();
        let cut: String = match text.chars().count() > WIDTH {
            true => text.chars().take(WIDTH - 1).chain(['…']).collect(),
            false => text.to_owned(),
        };
        let mut out = anstream::stdout().lock();
        // A closed pipe ends the display, not the demo: it has hosts to stop.
        let _ = writeln!(out, "{style}{cut}{style:#}");
        let _ = out.flush();
    }

    pub fn legend(&self) {
        self.line(Style::new(), "");
        self.line(
            DIM,
            "ms: since the cause, at which `headcount cluster events --follow` on that host has printed it; –: it has not.",
        );
    }

    pub fn act(&mut self, title: &str, how: &str, hosts: &[&str]) {
        self.acts += 1;
        let head = format!("{}. {title}", self.acts);
        let space = WIDTH.saturating_sub(head.chars().count() + how.chars().count());
        self.line(Style::new(), "");
        match space {
            // It does not fit.
            0..2 => {
                self.line(BOLD, &head);
                self.line(DIM, &format!("   {how}"));
            }
            _ => {
                let how = format!("{DIM}{how}{DIM:#}");
                let mut out = anstream::stdout().lock();
                let _ = writeln!(out, "{BOLD}{head}{BOLD:#}{}{how}", " ".repeat(space));
            }
        }
        let names: String = hosts.iter().map(|name| format!("{name:>8}")).collect();
        self.line(DIM, &format!("{names}   who          what"));
    }

    /// An event, and when which host was told.
    pub fn event(&self, heard: &Heard, event: &Value) {
        let text = |name: &str| event[name].as_str().unwrap_or_default();
        let who = match event["node"].as_str() {
            Some(node) => format!("{}/{node}", text("host")),
            None => text("host").to_owned(),
        };
        let times: String = heard.iter().map(|time| format!("{:>8}", milliseconds(*time))).collect();
        self.line(colour(text("kind")), &format!("{times}   {who:<12} {}", text("sentence")));
    }

    /// What somebody says beside the events.
    pub fn word(&self, who: &str, text: &str) {
        self.line(YELLOW, &format!("{:>24}   {who:<12} {text}", ""));
    }

    pub fn wrong(&self, what: &str) {
        self.line(RED, &format!("{:>24}   {what}", "WRONG"));
    }
}

fn milliseconds(time: Option<Duration>) -> String {
    time.map_or("–".to_owned(), |time| format!("{:+.1}", time.as_secs_f64() * 1e3))
}

fn colour(kind: &str) -> Style {
    match kind {
        "host_joined" | "generation_started" | "worker_started" | "worker_recovered" => GREEN,
        "generation_ended" | "worker_exited" => BLUE,
        "host_left" | "worker_draining" | "generation_abandoned" => YELLOW,
        "host_lost" | "worker_died" | "worker_stalled" | "master_lost" => RED,
        _ => Style::new(),
    }
}
