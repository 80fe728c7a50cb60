//! Pictures of a node that never was, at sizes and on terminals that are.

use std::time::Duration;

use headcount::{Cause, Kind, Phase, Role, State};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::super::desk::{Desk, Step};
use super::super::model::Model;
use super::super::seen::{Fact, Generation, Look, Process, Recent};
use super::super::theme::Theme;
use super::{Scene, draw};

const SECOND: u64 = 1_000_000_000;
/// Now, in seconds since boot.
const NOW: u64 = 10_000;
const COLOURS: Theme = Theme { unicode: true, colour: true };
const NO_COLOUR: Theme = Theme { unicode: true, colour: false };
const ASCII: Theme = Theme { unicode: false, colour: false };

fn process(pid: u32, number: u32, generation: u64, state: State, age: u64, beat_ms: u64) -> Process {
    Process {
        pid,
        role: Role::Worker,
        generation,
        number: Some(number),
        state,
        cause: Cause::Reload,
        age: Duration::from_secs(age),
        in_state_for: Duration::from_secs(age.min(30)),
        heartbeat_age: Some(Duration::from_millis(beat_ms)),
    }
}

fn fact(seq: u64, ago: u64, kind: Kind, generation: u64, (pid, number): (u32, u32), sentence: &str) -> Fact {
    Fact {
        seq,
        kind,
        cause: Cause::Reload,
        generation,
        pid,
        role: Some(Role::Worker),
        number: Some(number),
        boot_ns: (NOW - ago) * SECOND,
        time_ns: 1_700_000_000 * SECOND - ago * SECOND,
        sentence: sentence.to_owned(),
    }
}

fn generation(id: u64, age: u64, workers: u32, draining: u32) -> Generation {
    Generation {
        id,
        phase: Phase::Committed,
        cause: Cause::Reload,
        master: 700,
        master_alive: Some(true),
        age: Duration::from_secs(age),
        expected: Some(2),
        workers,
        draining,
    }
}

fn look() -> Look {
    let master = Process {
        role: Role::Master,
        number: None,
        generation: 0,
        heartbeat_age: None,
        ..process(700, 0, 0, State::Serving, 900, 0)
    };
    Look {
        node: "nginx".to_owned(),
        path: "/run/headcount/nginx.registry".to_owned(),
        boot_ns: NOW * SECOND,
        head: 20,
        total: 3,
        stall_after: Duration::from_secs(5),
        sentinel: Some(803),
        generations: vec![generation(6, 900, 1, 1), generation(7, 70, 2, 0)],
        processes: vec![
            master,
            process(701, 0, 6, State::Draining, 900, 800),
            process(801, 0, 7, State::Stalled, 69, 25_000),
            process(803, 1, 7, State::Serving, 40, 300),
        ],
        ..Look::default()
    }
}

/// Generation 6, older than the journal, was replaced by 7 by a reload; a worker of 6 drains behind a slow client, one exited;
/// of 7 one died and was replaced, and one stalled for the second time. Another reload failed.
fn facts() -> Vec<Fact> {
    vec![
        fact(1, 70, Kind::GenerationStarted, 7, (700, 0), "generation 7 started by a reload, master 700"),
        fact(
            2,
            69,
            Kind::WorkerStarted,
            7,
            (801, 0),
            "worker 0 (pid 801) of generation 7 started by a reload; 1 worker now",
        ),
        fact(
            3,
            68,
            Kind::WorkerStarted,
            7,
            (802, 1),
            "worker 1 (pid 802) of generation 7 started by a reload; 2 workers now",
        ),
        fact(
            4,
            65,
            Kind::WorkerDraining,
            6,
            (701, 0),
            "worker 0 (pid 701) of generation 6 drains: another generation has taken over; 2 workers, 1 draining now",
        ),
        fact(
            5,
            65,
            Kind::WorkerDraining,
            6,
            (702, 1),
            "worker 1 (pid 702) of generation 6 drains: another generation has taken over; 2 workers, 2 draining now",
        ),
        fact(
            6,
            60,
            Kind::WorkerStalled,
            7,
            (801, 0),
            "worker 0 (pid 801) of generation 7 stalled: its last heartbeat is 5.1 s old; 1 worker now",
        ),
        fact(
            7,
            50,
            Kind::WorkerRecovered,
            7,
            (801, 0),
            "worker 0 (pid 801) of generation 7 recovered; 2 workers now",
        ),
        fact(
            8,
            45,
            Kind::WorkerExited,
            6,
            (702, 1),
            "worker 1 (pid 702) of generation 6 exited: another generation has taken over; 1 worker left",
        ),
        fact(
            9,
            42,
            Kind::WorkerDied,
            7,
            (802, 1),
            "worker 1 (pid 802) of generation 7 died by SIGKILL; 1 worker left",
        ),
        fact(
            10,
            40,
            Kind::WorkerStarted,
            7,
            (803, 1),
            "worker 1 (pid 803) of generation 7 started in place of one that is gone; 2 workers now",
        ),
        fact(
            11,
            30,
            Kind::GenerationAbandoned,
            8,
            (700, 0),
            "generation 8 was abandoned: it never got a worker",
        ),
        fact(
            20,
            20,
            Kind::WorkerStalled,
            7,
            (801, 0),
            "worker 0 (pid 801) of generation 7 stalled: its last heartbeat is 5.0 s old; 1 worker now",
        ),
    ]
}

fn recent() -> Recent {
    Recent { deaths: 1, respawns: 1, crash_loop: None }
}

fn model() -> Model {
    let mut model = Model::default();
    model.update(look(), facts(), 0, recent());
    model
}

struct Picture {
    model: Model,
    desk: Desk,
    theme: Theme,
    node: (usize, usize),
    trouble: Option<&'static str>,
    terminal: Terminal<TestBackend>,
    rows: Vec<u64>,
}

impl Picture {
    fn new(model: Model, theme: Theme, (width, height): (u16, u16)) -> Picture {
        let terminal = Terminal::new(TestBackend::new(width, height)).expect("a buffer has no errors");
        let (desk, node) = (Desk::default(), (1, 1));
        let mut picture = Picture { model, desk, theme, node, trouble: None, terminal, rows: Vec::new() };
        picture.draw();
        picture
    }

    fn draw(&mut self) {
        let scene = Scene {
            live: &self.model,
            desk: &self.desk,
            theme: self.theme,
            node: self.node,
            trouble: self.trouble,
            every: Duration::from_millis(250),
        };
        let rows = &mut self.rows;
        let drawn = self.terminal.draw(|frame| *rows = draw(&scene, frame.area(), frame.buffer_mut()));
        drawn.expect("a buffer has no errors");
    }

    fn press(&mut self, code: KeyCode) -> Step {
        let step = self.desk.key(KeyEvent::new(code, KeyModifiers::NONE), &self.model, &self.rows);
        self.draw();
        step
    }

    fn keys(&mut self, keys: &str) -> &mut Picture {
        for key in keys.chars() {
            self.press(KeyCode::Char(key));
        }
        self
    }

    fn text(&self) -> String {
        self.terminal.backend().to_string()
    }

    /// The pids, from top to bottom.
    fn pids(&self) -> Vec<u32> {
        self.rows.iter().filter_map(|&id| self.model.life(id)).map(|life| life.pid).collect()
    }

    /// The colour of the bar in the row that holds this text.
    fn bar_colours(&self, row: &str) -> Vec<(String, Color)> {
        let buffer = self.terminal.backend().buffer();
        let width = buffer.area.width;
        let line = |y| (0..width).map(|x| buffer[(x, y)].symbol()).collect::<String>();
        let y = (0..buffer.area.height).find(|&y| line(y).contains(row)).expect("there is such a row");
        let mut all: Vec<_> =
            (44..width).map(|x| (buffer[(x, y)].symbol().to_owned(), buffer[(x, y)].fg)).collect();
        all.dedup();
        all.retain(|(symbol, _)| symbol != " ");
        all
    }
}

#[test]
fn at_80x24() {
    insta::assert_snapshot!(Picture::new(model(), COLOURS, (80, 24)).text());
}

#[test]
fn at_120x40() {
    insta::assert_snapshot!(Picture::new(model(), COLOURS, (120, 40)).text());
}

#[test]
fn at_40x10() {
    insta::assert_snapshot!(Picture::new(model(), COLOURS, (40, 10)).text());
}

#[test]
fn without_colours_the_bars_carry_their_generation() {
    insta::assert_snapshot!(Picture::new(model(), NO_COLOUR, (80, 24)).text());
}

#[test]
fn in_ascii_nothing_else_is_drawn() {
    let mut picture = Picture::new(model(), ASCII, (80, 24));
    insta::assert_snapshot!(picture.text());
    for key in ['?', 'q', 'j', 's', 'p', '-', '/'] {
        picture.keys(&key.to_string());
        // TestBackend's own frame is quotation marks.
        assert!(picture.text().is_ascii(), "after {key}:\n{}", picture.text());
    }
}

#[test]
fn every_size_is_drawn_and_a_small_one_says_so() {
    for theme in [COLOURS, ASCII] {
        for (width, height) in [(1, 1), (39, 10), (40, 9), (40, 10), (69, 13), (70, 14), (500, 200)] {
            let mut picture = Picture::new(model(), theme, (width, height));
            let small = width < 40 || height < 10;
            assert_eq!(picture.rows.is_empty(), small, "{width}x{height}");
            picture.keys("j");
            picture.press(KeyCode::Enter);
            picture.press(KeyCode::Esc);
            picture.keys("?");
        }
    }
    assert!(Picture::new(model(), ASCII, (39, 10)).text().contains("needs 40x10"));
}

#[test]
fn generations_have_their_colours_and_deaths_are_red() {
    let picture = Picture::new(model(), COLOURS, (120, 24));
    let seven = COLOURS.generation(7).fg.expect("a colour");
    let six = COLOURS.generation(6).fg.expect("a colour");
    let died = picture.bar_colours("    802 ");
    let of_it = |symbol: &str, colour| (symbol.to_owned(), colour);
    assert!(died.contains(&of_it("█", seven)) && died.contains(&of_it("X", Color::LightRed)), "{died:?}");
    let drains = picture.bar_colours("    701 ");
    assert!(
        drains.contains(&of_it("▒", six)) && drains.contains(&of_it("v", Color::LightYellow)),
        "{drains:?}"
    );
}

#[test]
fn a_look_at_one_worker() {
    let mut picture = Picture::new(model(), COLOURS, (80, 24));
    picture.keys("/801");
    picture.press(KeyCode::Enter);
    picture.press(KeyCode::Enter);
    insta::assert_snapshot!(picture.text());
    picture.press(KeyCode::Esc);
    assert!(picture.text().contains("filter: 801") && picture.pids() == [801], "{}", picture.text());
    picture.press(KeyCode::Esc);
    assert_eq!(picture.pids().len(), 6, "the second Esc drops the filter");
}

#[test]
fn the_help() {
    insta::assert_snapshot!(Picture::new(model(), COLOURS, (80, 24)).keys("?").text());
}

#[test]
fn sorting_goes_round() {
    let mut picture = Picture::new(model(), COLOURS, (80, 24));
    // Those that were there before the journal begins are the oldest, the newest of them first.
    let by_start = [803, 802, 801, 701, 700, 702];
    assert_eq!(picture.pids(), by_start);
    assert_eq!(picture.keys("s").pids(), [700, 701, 702, 801, 802, 803]);
    // Stalled, draining, serving, gone.
    assert_eq!(picture.keys("s").pids(), [801, 701, 803, 700, 802, 702]);
    assert_eq!(picture.keys("s").pids(), [801, 803, 802, 701, 702, 700]);
    assert_eq!(picture.keys("s").pids(), by_start);
}

#[test]
fn filtering_by_pid_state_generation_number_and_role() {
    for (filter, pids) in [
        ("80", vec![803, 802, 801]),
        ("stal", vec![801]),
        ("g6", vec![701, 702]),
        ("g7 #1", vec![803, 802]),
        ("MASTER", vec![700]),
        ("g70", vec![]),
    ] {
        let mut picture = Picture::new(model(), COLOURS, (80, 24));
        picture.keys("/").keys(filter);
        assert_eq!(picture.pids(), pids, "{filter}, while it is typed");
        picture.press(KeyCode::Enter);
        assert_eq!(picture.pids(), pids, "{filter}");
    }
    let mut picture = Picture::new(model(), COLOURS, (80, 24));
    picture.keys("/q802");
    picture.press(KeyCode::Backspace);
    assert_eq!(picture.desk.filter, "q80", "q is a letter here");
    picture.press(KeyCode::Esc);
    assert_eq!((picture.desk.filter.as_str(), picture.pids().len()), ("", 6));
}

#[test]
fn who_is_gone_can_be_hidden_and_leaves_with_its_bar() {
    let mut picture = Picture::new(model(), COLOURS, (80, 24));
    assert_eq!(picture.keys("g").pids(), [803, 801, 701, 700]);
    // 30 seconds: nobody who is gone was there within them.
    assert_eq!(picture.keys("g++").pids(), [803, 801, 701, 700]);
    // A minute: those that went 42 and 45 seconds ago were.
    assert_eq!(picture.keys("-").pids().len(), 6);
}

#[test]
fn a_stopped_picture_stays_and_can_be_moved_in_time() {
    let mut picture = Picture::new(model(), COLOURS, (80, 24));
    picture.press(KeyCode::Left);
    assert!(picture.desk.back.is_zero(), "only where the picture stands");
    picture.keys("p");
    let mut later = look();
    later.boot_ns += 12 * SECOND;
    later.processes.retain(|p| p.pid != 803);
    picture.model.update(later, Vec::new(), 0, recent());
    picture.draw();
    assert!(picture.text().contains(" PAUSED 12s ago "), "{}", picture.text());
    assert_eq!(picture.pids(), [803, 802, 801, 701, 700, 702]);
    picture.press(KeyCode::Left);
    picture.press(KeyCode::Left);
    insta::assert_snapshot!(picture.text());
    picture.keys("p");
    assert!(!picture.text().contains("PAUSED") && picture.text().contains("gone"), "{}", picture.text());
}

#[test]
fn more_rows_than_lines() {
    let mut many = look();
    many.processes.extend((0..100).map(|n| process(1_000 + n, 10 + n, 7, State::Serving, 60, 100)));
    let mut all = Model::default();
    all.update(many, facts(), 0, recent());
    let mut picture = Picture::new(all, COLOURS, (80, 24));
    assert!(picture.text().contains("more rows"), "{}", picture.text());
    for _ in 0..200 {
        picture.press(KeyCode::Down);
    }
    let last = picture.pids().last().copied().expect("a row").to_string();
    assert!(picture.text().contains(&format!("> {last:>6}")), "the last is in sight:\n{}", picture.text());
    picture.press(KeyCode::Home);
    let first = picture.pids()[0];
    assert!(
        picture.text().contains(&format!(">{first:>8}")) || picture.text().contains(&format!("> {first:>6}"))
    );
}

#[test]
fn what_goes_wrong_is_said() {
    let mut bad = look();
    bad.generations[1].master_alive = Some(false);
    bad.processes[3].state = State::Orphaned;
    let mut all = Model::default();
    let looping = Recent { deaths: 9, respawns: 9, crash_loop: Some((9, Duration::from_secs(3))) };
    all.update(bad, facts(), 12, looping);
    let mut picture = Picture::new(all, COLOURS, (80, 24));
    picture.trouble = Some("cannot read it");
    picture.node = (2, 3);
    picture.draw();
    insta::assert_snapshot!(picture.text());
}

#[test]
fn a_node_that_is_dead_or_stopped_says_which() {
    let text = |look| {
        let mut model = Model::default();
        model.update(look, facts(), 0, recent());
        Picture::new(model, COLOURS, (100, 24)).text()
    };
    let mut dead = look();
    dead.processes.iter_mut().for_each(|p| p.state = State::Died);
    assert!(text(dead).contains("DEAD: no process of this node is alive"));
    let mut stopped = look();
    stopped.processes.clear();
    assert!(text(stopped).contains("STOPPED: no process of this node is there"));
}

#[test]
fn keys_that_leave() {
    let mut picture = Picture::new(model(), COLOURS, (80, 24));
    let mut press =
        |code, modifiers| picture.desk.key(KeyEvent::new(code, modifiers), &picture.model, &picture.rows);
    assert_eq!(press(KeyCode::Char('n'), KeyModifiers::NONE), Step::NextNode);
    assert_eq!(press(KeyCode::Tab, KeyModifiers::NONE), Step::NextNode);
    assert_eq!(press(KeyCode::Char('z'), KeyModifiers::CONTROL), Step::Suspend);
    assert_eq!(press(KeyCode::Char('q'), KeyModifiers::NONE), Step::Quit);
    assert_eq!(press(KeyCode::Char('/'), KeyModifiers::NONE), Step::Stay);
    assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Step::Quit, "also while a filter is typed");
}

#[test]
fn a_registry_may_say_anything() {
    let mut wild = look();
    wild.node = super::super::seen::printable("\x1b]0;owned\x07\u{202e}");
    wild.total = u32::MAX;
    wild.stall_after = Duration::MAX;
    for (n, p) in wild.processes.iter_mut().enumerate() {
        p.pid = u32::MAX - u32::try_from(n).expect("few");
        p.generation = u64::MAX;
        p.number = Some(u32::MAX);
        (p.age, p.in_state_for, p.heartbeat_age) = (Duration::MAX, Duration::MAX, Some(Duration::MAX));
    }
    for g in &mut wild.generations {
        (g.id, g.age, g.expected, g.workers, g.draining) =
            (u64::MAX, Duration::MAX, Some(u32::MAX), 0, u32::MAX);
    }
    let told = Kind::ALL.iter().flat_map(|&kind| {
        let mut early = fact(u64::MAX, 5, kind, u64::MAX, (u32::MAX, u32::MAX), "a sentence");
        early.boot_ns = 0;
        let late = Fact { boot_ns: u64::MAX, time_ns: u64::MAX, ..early.clone() };
        [late, early]
    });
    let mut all = Model::default();
    all.update(wild, told.collect(), u64::MAX, recent());
    for size in [(40, 10), (80, 24), (300, 100)] {
        let mut picture = Picture::new(all.clone(), COLOURS, size);
        for key in "ss+++++----------gp".chars() {
            picture.keys(&key.to_string());
            for code in [KeyCode::Left, KeyCode::Down, KeyCode::Enter, KeyCode::PageDown, KeyCode::Esc] {
                picture.press(code);
                assert!(!picture.text().contains(['\x1b', '\x07', '\u{202e}']));
            }
        }
    }
}
