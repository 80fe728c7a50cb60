//! Everything that is printed while the server plays.

use std::io::{IsTerminal, Write, stdout};

use headcount::{Event, Kind, PreviousRun, Role};

use crate::report::{Level, Report, Said};

/// The widest line, so that it fits a usual terminal.
const WIDTH: usize = 118;

#[derive(Clone, Copy)]
enum Colour {
    Plain,
    Bold,
    Dim,
    Red,
    Green,
    Yellow,
    Blue,
}

impl Colour {
    const fn code(self) -> &'static str {
        match self {
            Self::Plain => "0",
            Self::Bold => "1",
            Self::Dim => "2",
            Self::Red => "31",
            Self::Green => "32",
            Self::Yellow => "33",
            Self::Blue => "34",
        }
    }
}

pub struct Screen {
    coloured: bool,
    acts: usize,
}

impl Screen {
    pub fn new() -> Self {
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { coloured: stdout().is_terminal() && !no_colour, acts: 0 }
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        if self.coloured && !text.trim().is_empty() {
            format!("\x1b[{}m{text}\x1b[0m", colour.code())
        } else {
            text.to_owned()
        }
    }

    fn line(&self, text: &str) {
        let mut out = stdout().lock();
        // A closed pipe ends the display, not the demo: it has a server to stop.
        let _ = writeln!(out, "{}", text.trim_end());
        let _ = out.flush();
    }

    pub fn say(&self, text: &str) {
        self.line(text);
    }

    pub fn title(&self, text: &str) {
        self.line(&self.paint(Colour::Bold, text));
    }

    /// The heads of the columns, and how to read them.
    pub fn legend(&self) {
        self.line("");
        self.line(&self.paint(
            Colour::Dim,
            "ms: since the cause. counts: workers of the previous / this / the next generation; –: there is no such generation.",
        ));
    }

    pub fn act(&mut self, title: &str, how: &str, original: &str) {
        self.acts += 1;
        self.line("");
        let head = format!("{}. {title}", self.acts);
        let space = WIDTH.saturating_sub(head.chars().count() + how.chars().count()).max(2);
        self.line(&format!(
            "{}{}{}",
            self.paint(Colour::Bold, &head),
            " ".repeat(space),
            self.paint(Colour::Dim, how)
        ));
        self.line(&self.paint(Colour::Dim, &format!("   the original library reports: {original}")));
        self.line(&self.paint(
            Colour::Dim,
            &row("ms", "Synopsis callback", "resty.headcount event", "gen", "process", "counts", "why"),
        ));
    }

    pub fn report(&self, report: &Report, began_ns: u64) {
        let time = milliseconds(report.at_ns, began_ns);
        self.line(&match &report.said {
            Said::Callback { callback, pid } => {
                let text = format!("{} ({pid})", callback.text());
                self.paint(Colour::Bold, &row(&time, &text, "", "", "", "", ""))
            }
            Said::Server { level, text } => {
                let colour = if *level >= Level::Error { Colour::Red } else { Colour::Yellow };
                let text = format!("nginx [{}] {text}", level.name());
                let cut: String = text.chars().take(WIDTH - 13).collect();
                self.paint(colour, &format!("{time:>10}   {cut}"))
            }
            Said::Event(event) => {
                let generation =
                    if event.generation == 0 { String::new() } else { event.generation.to_string() };
                let line = row(
                    &time,
                    "",
                    event.kind.name(),
                    &generation,
                    &process(event),
                    &counts(event),
                    &why(event),
                );
                self.paint(colour(event.kind), &line)
            }
        });
    }

    pub fn wrong(&self, what: &[String]) {
        for text in what {
            self.line(&self.paint(Colour::Red, &format!("{:>10}   {text}", "WRONG")));
        }
    }
}

fn row(
    time: &str,
    callback: &str,
    kind: &str,
    generation: &str,
    process: &str,
    counts: &str,
    why: &str,
) -> String {
    format!("{time:>10}   {callback:<22} {kind:<22} {generation:>3}  {process:<16} {counts:<8} {why}")
}

fn milliseconds(at_ns: u64, began_ns: u64) -> String {
    // Signed: a report before its cause would be a fault, and must show.
    let nanoseconds = i128::from(at_ns) - i128::from(began_ns);
    format!("{:+.1}", nanoseconds as f64 / 1e6)
}

fn process(event: &Event) -> String {
    let name = match (event.role, event.worker_id) {
        (Some(Role::Worker), Some(id)) => format!("worker {id}"),
        (Some(role), _) => role.name().to_owned(),
        (None, _) => String::new(),
    };
    if event.pid == 0 { name } else { format!("{name} ({})", event.pid).trim_start().to_owned() }
}

fn counts(event: &Event) -> String {
    if event.generation == 0 {
        return String::new();
    }
    let number = |n: Option<u32>| n.map_or("–".to_owned(), |n| n.to_string());
    let counts = &event.counts;
    format!("{}/{}/{}", number(counts.prev), counts.mine, number(counts.next))
}

fn why(event: &Event) -> String {
    let mut words = match (event.signal, event.exit_code) {
        (Some(signal), _) => format!("signal {signal}{}", signal_name(signal)),
        (None, Some(code)) => format!("exit code {code}"),
        (None, None) if event.cause.code() == 0 => String::new(),
        (None, None) => event.cause.name().to_owned(),
    };
    match event.previous_run {
        Some(PreviousRun::Clean) => words.push_str(", after a clean stop"),
        Some(PreviousRun::Unclean { workers, .. }) => {
            words.push_str(&format!(", after a crash of {workers} workers"));
        }
        _ => {}
    }
    if event.counts.draining > 0 {
        words.push_str(&format!(", {} draining", event.counts.draining));
    }
    words
}

const fn signal_name(signal: i32) -> &'static str {
    match signal {
        6 => " (ABRT)",
        7 => " (BUS)",
        9 => " (KILL)",
        11 => " (SEGV)",
        15 => " (TERM)",
        _ => "",
    }
}

const fn colour(kind: Kind) -> Colour {
    match kind {
        Kind::GenerationStarted | Kind::WorkerStarted | Kind::WorkerRecovered => Colour::Green,
        Kind::GenerationEnded | Kind::WorkerExited => Colour::Blue,
        Kind::WorkerDraining | Kind::GenerationAbandoned => Colour::Yellow,
        Kind::WorkerDied
        | Kind::WorkerStalled
        | Kind::MasterLost
        | Kind::CallbackDied
        | Kind::CallbackFailed => Colour::Red,
        _ => Colour::Plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_signed_milliseconds() {
        assert_eq!(milliseconds(2_450_000, 1_000_000), "+1.4");
        assert_eq!(milliseconds(1_000_000, 2_000_000), "-1.0");
    }

    #[test]
    fn every_row_has_its_columns_in_the_same_place() {
        let head = row("ms", "a", "b", "c", "d", "e", "why");
        let line = row(
            "+1234.5",
            "Worker start (123456)",
            "generation_abandoned",
            "12",
            "worker 3 (123456)",
            "4/4/4",
            "x",
        );
        assert_eq!(head.chars().position(|c| c == 'b'), line.chars().position(|c| c == 'g'));
    }
}
