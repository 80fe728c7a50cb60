//! Pictures of a node that never was, at sizes and on terminals that are.

use std::time::Duration;

use headcount::{
    Cause, Event, GenerationStatus, Kind, Liveness, Phase, ProcessStatus, Role, SingletonKind,
    SingletonState, SingletonStatus, Snapshot, State,
};
use headcount_report::History;
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use ratatui::style::Color;

use super::super::choices::{Choices, Step};
use super::super::model::Model;
use super::super::theme::Theme;
use super::{Scene, draw};

const SECOND: u64 = 1_000_000_000;
/// Now, in seconds since boot.
const NOW: u64 = 10_000;
const COLOURS: Theme = Theme { unicode: true, colour: true };
const NO_COLOUR: Theme = Theme { unicode: true, colour: false };
const ASCII: Theme = Theme { unicode: false, colour: false };

fn process(pid: u32, worker_id: u32, generation: u64, state: State, age: u64, beat_ms: u64) -> ProcessStatus {
    let mut process = ProcessStatus::new(Role::Worker, pid, state);
    (process.generation, process.worker_id, process.cause) = (generation, Some(worker_id), Cause::Reload);
    (process.age, process.in_state_for) = (Duration::from_secs(age), Duration::from_secs(age.min(30)));
    process.heartbeat_age = Duration::from_millis(beat_ms);
    process
}

/// What happened so many seconds ago to a process, and how many workers its generation had then.
fn event(
    seq: u64,
    ago: u64,
    kind: Kind,
    generation: u64,
    (pid, worker_id): (u32, u32),
    (mine, draining): (u32, u32),
) -> Event {
    let mut event = Event::new(kind, Cause::Reload);
    (event.seq, event.generation, event.pid) = (seq, generation, pid);
    (event.role, event.worker_id) = (Some(Role::Worker), Some(worker_id));
    event.boot_ns = (NOW - ago) * SECOND;
    event.time_ns = 1_700_000_000 * SECOND - ago * SECOND;
    (event.counts.mine, event.counts.draining) = (mine, draining);
    match kind {
        Kind::WorkerDraining | Kind::WorkerExited => event.cause = Cause::Superseded,
        Kind::WorkerDied => (event.cause, event.signal) = (Cause::Signal, Some(9)),
        Kind::WorkerStalled => event.heartbeat_ns = event.boot_ns - 5_100_000_000,
        _ => {}
    }
    event
}

fn generation(id: u64, age: u64, workers: u32, draining: u32) -> GenerationStatus {
    let mut generation = GenerationStatus::new(id, Phase::Committed);
    (generation.cause, generation.age) = (Cause::Reload, Duration::from_secs(age));
    (generation.master, generation.master_alive) = (700, Some(true));
    (generation.expected, generation.counts.mine, generation.counts.draining) = (Some(2), workers, draining);
    generation
}

fn node() -> Snapshot {
    let mut master = ProcessStatus::new(Role::Master, 700, State::Serving);
    (master.age, master.in_state_for) = (Duration::from_secs(900), Duration::from_secs(30));
    let mut snapshot = Snapshot::new("nginx");
    snapshot.path = Some("/run/headcount/nginx.registry".into());
    (snapshot.boot_ns, snapshot.head, snapshot.total) = (NOW * SECOND, 20, 3);
    snapshot.sentinel = Some(803);
    snapshot.generations = vec![generation(6, 900, 1, 1), generation(7, 70, 2, 0)];
    snapshot.processes = vec![
        master,
        process(701, 0, 6, State::Draining, 900, 800),
        process(801, 0, 7, State::Stalled, 69, 25_000),
        process(803, 1, 7, State::Serving, 40, 300),
    ];
    snapshot
}

/// Generation 6, older than the journal, was replaced by 7 by a reload; a worker of 6 drains behind a slow client, one exited;
/// of 7 one died and was replaced, and one stalled for the second time. Another reload failed.
fn events() -> Vec<Event> {
    let mut replacement = event(10, 40, Kind::WorkerStarted, 7, (803, 1), (2, 0));
    replacement.cause = Cause::Respawn;
    let mut again = event(20, 20, Kind::WorkerStalled, 7, (801, 0), (1, 0));
    again.heartbeat_ns = again.boot_ns - 5 * SECOND;
    vec![
        event(1, 70, Kind::GenerationStarted, 7, (700, 0), (0, 0)),
        event(2, 69, Kind::WorkerStarted, 7, (801, 0), (1, 0)),
        event(3, 68, Kind::WorkerStarted, 7, (802, 1), (2, 0)),
        event(4, 65, Kind::WorkerDraining, 6, (701, 0), (2, 1)),
        event(5, 65, Kind::WorkerDraining, 6, (702, 1), (2, 2)),
        event(6, 60, Kind::WorkerStalled, 7, (801, 0), (1, 0)),
        event(7, 50, Kind::WorkerRecovered, 7, (801, 0), (2, 0)),
        event(8, 45, Kind::WorkerExited, 6, (702, 1), (2, 2)),
        event(9, 42, Kind::WorkerDied, 7, (802, 1), (1, 0)),
        replacement,
        event(11, 30, Kind::GenerationAbandoned, 8, (700, 0), (0, 0)),
        again,
    ]
}

/// One worker died, and one took its place.
fn history() -> History {
    History::of(&events(), &node())
}

fn model() -> Model {
    let mut model = Model::new(node());
    model.update(node(), events(), 0, history());
    model
}

struct Picture {
    model: Model,
    choices: Choices,
    theme: Theme,
    node: (usize, usize),
    trouble: Option<&'static str>,
    terminal: Terminal<TestBackend>,
    rows: Vec<u64>,
}

impl Picture {
    fn new(model: Model, theme: Theme, (width, height): (u16, u16)) -> Picture {
        let terminal = Terminal::new(TestBackend::new(width, height)).expect("a buffer has no errors");
        let (choices, node) = (Choices::default(), (1, 1));
        let mut picture = Picture { model, choices, theme, node, trouble: None, terminal, rows: Vec::new() };
        picture.draw();
        picture
    }

    fn draw(&mut self) {
        let scene = Scene {
            live: &self.model,
            choices: &self.choices,
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
        let step = self.choices.key(KeyEvent::new(code, KeyModifiers::NONE), &self.model, &self.rows);
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

/// Who leads, what runs, what failed, and a lock for which others wait; and the one of no generation who has it.
fn with_singletons() -> Model {
    let mut snapshot = node();
    let at = |kind, name: &str, state, seconds| {
        let mut x = SingletonStatus::new(kind, name, state);
        x.since = Duration::from_secs(seconds);
        x
    };
    let mut role = at(SingletonKind::Role, "cron", SingletonState::Held, 39);
    (role.holder, role.worker_id, role.token) = (Some(803), Some(1), 17);
    let mut once = at(SingletonKind::Once, "warm", SingletonState::Running, 3);
    (once.generation, once.holder, once.worker_id, once.attempts) = (7, Some(803), Some(1), 2);
    let failed = at(SingletonKind::Once, "migrate-the-schema", SingletonState::Failed, 600);
    let mut lock = at(SingletonKind::Lock, "keys", SingletonState::Held, 5);
    (lock.holder, lock.waiters, lock.token) = (Some(123_456), 3, 901);
    snapshot.singletons = vec![role, once, failed, lock];
    let mut visitor = ProcessStatus::new(Role::Visitor, 123_456, State::Serving);
    visitor.age = Duration::from_secs(6);
    snapshot.processes.push(visitor);
    let mut model = Model::new(snapshot.clone());
    model.update(snapshot, events(), 0, history());
    model
}

#[test]
fn roles_onces_and_locks_stand_below_the_processes() {
    let picture = Picture::new(with_singletons(), NO_COLOUR, (100, 32));
    insta::assert_snapshot!(picture.text());
    // Where there is little room, as many as fit are shown and the rest is counted; on the smallest screen none.
    let mut many = with_singletons();
    let free = |n: u32| SingletonStatus::new(SingletonKind::Lock, format!("lock{n}"), SingletonState::Free);
    many.snapshot.singletons.extend((0..20).map(free));
    let text = Picture::new(many, NO_COLOUR, (80, 24)).text();
    assert!(text.contains("role cron") && text.contains("and 20 more roles, onces or locks"), "{text}");
    let text = Picture::new(with_singletons(), NO_COLOUR, (40, 10)).text();
    assert!(!text.contains("cron"), "{text}");
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
    assert_eq!(picture.choices.filter, "q80", "q is a letter here");
    picture.press(KeyCode::Esc);
    assert_eq!((picture.choices.filter.as_str(), picture.pids().len()), ("", 6));
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
    assert!(picture.choices.back.is_zero(), "only where the picture stands");
    picture.keys("p");
    let mut later = node();
    later.boot_ns += 12 * SECOND;
    later.processes.retain(|p| p.pid != 803);
    picture.model.update(later, Vec::new(), 0, history());
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
    let mut many = node();
    many.processes.extend((0..100).map(|n| process(1_000 + n, 10 + n, 7, State::Serving, 60, 100)));
    let mut all = Model::new(node());
    all.update(many, events(), 0, history());
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
    let mut bad = node();
    bad.generations[1].master_alive = Some(false);
    bad.processes[3].state = State::Orphaned;
    let mut all = Model::new(node());
    let lives = (0..9).map(|n| {
        let mut started = event(n, 20, Kind::WorkerStarted, 7, (900 + n as u32, 0), (1, 0));
        started.cause = Cause::Respawn;
        [started, event(n, 11 - n, Kind::WorkerDied, 7, (900 + n as u32, 0), (1, 0))]
    });
    let looping = History::of(&lives.flatten().collect::<Vec<_>>(), &node());
    all.update(bad, events(), 12, looping);
    let mut picture = Picture::new(all, COLOURS, (80, 24));
    picture.trouble = Some("cannot read it");
    picture.node = (2, 3);
    picture.draw();
    insta::assert_snapshot!(picture.text());
}

#[test]
fn a_node_that_is_dead_or_stopped_says_which() {
    let text = |look| {
        let mut model = Model::new(node());
        model.update(look, events(), 0, history());
        Picture::new(model, COLOURS, (100, 24)).text()
    };
    let mut dead = node();
    for p in &mut dead.processes {
        (p.state, p.liveness) = (State::Died, Liveness::Gone);
    }
    let mut alone = dead.clone();
    alone.processes.push(ProcessStatus::new(Role::Helper, 804, State::Serving));
    assert!(text(alone).contains("DEAD: only a helper is left: process 804"));
    assert!(text(dead).contains("DEAD: no process of this node is alive"));
    let mut stopped = node();
    stopped.processes.clear();
    assert!(text(stopped).contains("STOPPED: this node has no process"));
}

#[test]
fn keys_that_leave() {
    let mut picture = Picture::new(model(), COLOURS, (80, 24));
    let mut press =
        |code, modifiers| picture.choices.key(KeyEvent::new(code, modifiers), &picture.model, &picture.rows);
    assert_eq!(press(KeyCode::Char('n'), KeyModifiers::NONE), Step::NextNode);
    assert_eq!(press(KeyCode::Tab, KeyModifiers::NONE), Step::NextNode);
    assert_eq!(press(KeyCode::Char('z'), KeyModifiers::CONTROL), Step::Suspend);
    assert_eq!(press(KeyCode::Char('q'), KeyModifiers::NONE), Step::Quit);
    assert_eq!(press(KeyCode::Char('/'), KeyModifiers::NONE), Step::Stay);
    assert_eq!(press(KeyCode::Char('c'), KeyModifiers::CONTROL), Step::Quit, "also while a filter is typed");
}

#[test]
fn a_registry_may_say_anything() {
    let mut wild = node();
    wild.node = "\x1b]0;owned\x07\u{202e}".to_owned();
    wild.total = u32::MAX;
    wild.settings.stall_after = Duration::MAX;
    for (n, p) in wild.processes.iter_mut().enumerate() {
        p.pid = u32::MAX - u32::try_from(n).expect("few");
        p.generation = u64::MAX;
        p.worker_id = Some(u32::MAX);
        (p.age, p.in_state_for, p.heartbeat_age) = (Duration::MAX, Duration::MAX, Duration::MAX);
    }
    for g in &mut wild.generations {
        (g.id, g.age, g.expected, g.counts.mine, g.counts.draining) =
            (u64::MAX, Duration::MAX, Some(u32::MAX), 0, u32::MAX);
    }
    let told = Kind::ALL.iter().flat_map(|&kind| {
        let mut early = event(u64::MAX, 5, kind, u64::MAX, (u32::MAX, u32::MAX), (u32::MAX, u32::MAX));
        early.boot_ns = 0;
        let late = {
            let mut late = early.clone();
            (late.boot_ns, late.time_ns) = (u64::MAX, u64::MAX);
            late
        };
        [late, early]
    });
    let mut all = Model::new(node());
    all.update(wild, told.collect(), u64::MAX, history());
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
