//! Pictures of a cluster that never was.

use std::collections::BTreeMap;

use headcount_cluster::fleet::{Fleet, Host};
use headcount_cluster::follower::FleetEvent;
use headcount_cluster::value::{EventValue, HostValue, KnownValue, NodeValue, Presence, Unreadable};
use ratatui::Terminal;
use ratatui::backend::TestBackend;
use ratatui::crossterm::event::{KeyCode, KeyEvent, KeyModifiers};
use serde_json::json;

use super::super::super::choices::Step;
use super::*;

const NOW: f64 = 1_700_000_000.0;
const ASCII: Theme = Theme { unicode: false, colour: false };
const COLOURS: Theme = Theme { unicode: true, colour: true };

fn here() -> HostValue {
    let text = String::new;
    HostValue { v: 1, agent: text(), place: text(), machine: text(), pid: 7, birth: 9, since: NOW - 4000.0 }
}

fn known(presence: Presence) -> Option<KnownValue> {
    Some(KnownValue { v: 1, presence, since: NOW - 95.0, lease: 1 })
}

fn node(state: &str, serving: u32, generation: u64, age: f64, deaths: u32) -> NodeValue {
    NodeValue {
        state: state.to_owned(),
        generation: Some(generation),
        begun: Some(NOW - age),
        expected: Some(4),
        serving,
        deaths,
        ..NodeValue::default()
    }
}

fn picture() -> Picture {
    let nodes = |list: &[(&str, NodeValue)]| -> BTreeMap<String, NodeValue> {
        list.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
    };
    let mut fleet = Fleet::default();
    for (name, is_here, presence, of) in [
        (
            "web-1",
            true,
            None,
            nodes(&[("api", node("serving", 4, 2, 7.0, 0)), ("nginx", node("serving", 4, 7, 192.0, 1))]),
        ),
        ("web-2", true, None, nodes(&[("nginx", node("crash_loop", 2, 12, 30.0, 9))])),
        ("web-3", false, known(Presence::Lost), nodes(&[("nginx", node("serving", 4, 6, 90_000.0, 0))])),
        ("web-4", false, known(Presence::Left), nodes(&[])),
        ("web-5", true, None, nodes(&[])),
    ] {
        let host = Host { here: is_here.then(here), known: presence, nodes: of };
        fleet.hosts.insert(name.to_owned(), host);
    }
    let event = |host: &str, node: Option<&str>, ago: f64, sentence: &str| {
        let document = json!({ "kind": "x", "time": NOW - ago, "sentence": sentence });
        let document = document.as_object().expect("an object").clone();
        FleetEvent {
            host: host.to_owned(),
            node: node.map(str::to_owned),
            registry: String::new(),
            number: 1,
            revision: 1,
            value: EventValue { v: 1, document },
        }
    };
    let latest = [
        event("web-3", None, 95.0, "host web-3 is lost"),
        event("web-2", Some("nginx"), 3.0, "worker 1 (pid 17) of generation 12 died by SIGSEGV"),
    ];
    Picture { fleet, is_read: true, trouble: None, latest: latest.into() }
}

struct Screen {
    picture: Picture,
    choices: Choices,
    theme: Theme,
    size: (u16, u16),
}

impl Screen {
    fn new() -> Screen {
        Screen { picture: picture(), choices: Choices::default(), theme: ASCII, size: (80, 16) }
    }

    fn draw(&self) -> (Vec<RowKey>, Terminal<TestBackend>) {
        let mut terminal = Terminal::new(TestBackend::new(self.size.0, self.size.1)).expect("a terminal");
        let mut rows = Vec::new();
        let scene = Scene {
            live: &self.picture,
            choices: &self.choices,
            theme: self.theme,
            cluster: "shop",
            now: NOW,
        };
        terminal.draw(|frame| rows = draw(&scene, frame.area(), frame.buffer_mut())).expect("it draws");
        (rows, terminal)
    }

    fn text(&self) -> String {
        self.draw().1.backend().to_string()
    }

    fn key(&mut self, code: KeyCode) -> Step {
        let rows = self.draw().0;
        let key = KeyEvent::new(code, KeyModifiers::NONE);
        self.choices.key(key, &self.picture, NOW, &rows)
    }

    fn keys(&mut self, text: &str) {
        for c in text.chars() {
            self.key(KeyCode::Char(c));
        }
    }
}

#[test]
fn hosts_and_their_nodes() {
    insta::assert_snapshot!(Screen::new().text());
}

#[test]
fn what_needs_attention_comes_first_if_it_is_asked_for() {
    let mut screen = Screen::new();
    screen.keys("s");
    let hosts: Vec<_> = screen.draw().0.into_iter().map(|(host, _)| host).collect();
    assert_eq!(hosts, ["web-3", "web-2", "web-1", "web-1", "web-5", "web-4"]);
    screen.keys("s");
    assert_eq!(screen.draw().0[0], ("web-1".to_owned(), Some("api".to_owned())), "the newest");
    screen.keys("s");
    assert_eq!(screen.choices.sort, Sort::Host);
}

#[test]
fn filter_selection_and_pause() {
    let mut screen = Screen::new();
    screen.keys("/nginx");
    screen.key(KeyCode::Enter);
    assert_eq!(screen.draw().0.len(), 3);
    screen.keys("j");
    screen.keys("j");
    assert_eq!(screen.choices.selected.as_ref().map(|(host, _)| host.as_str()), Some("web-2"));
    screen.keys("p");
    screen.picture.fleet.hosts.clear();
    assert!(screen.text().contains("web-2 / nginx") && screen.text().contains("PAUSED"), "{}", screen.text());
    screen.keys("p");
    assert!(screen.text().contains("nothing matches the filter"), "{}", screen.text());
    screen.key(KeyCode::Esc);
    assert!(screen.text().contains("no host to show"), "{}", screen.text());
    assert_eq!(screen.key(KeyCode::Char('q')), Step::Quit);
}

#[test]
fn what_has_left_can_be_hidden_and_a_node_can_be_meant() {
    let mut screen = Screen::new();
    screen.keys("g");
    assert!(!screen.text().contains("web-4"));
    screen.choices.node = Some("api".to_owned());
    let shown: Vec<_> = screen.draw().0.into_iter().filter_map(|(_, node)| node).collect();
    assert_eq!(shown, ["api"]);
    assert!(!screen.text().contains("SIGSEGV"), "of another node");
}

#[test]
fn what_is_wrong_is_said_above() {
    let mut screen = Screen::new();
    screen.picture.trouble = Some("etcd does not answer: refused".to_owned());
    screen.picture.fleet.unreadable.insert("/headcount/v1/shop/hosts/x".to_owned(), Unreadable::Newer(2));
    let text = screen.text();
    assert!(text.contains("! AWAY: etcd does not answer: refused (+1 more)"), "{text}");
    screen.size = (100, 24);
    assert!(screen.text().contains("! UNREADABLE: /headcount/v1/shop/hosts/x"), "{}", screen.text());
    screen.picture = Picture::default();
    assert!(screen.text().contains("nothing is known yet"), "{}", screen.text());
}

#[test]
fn the_help_and_small_screens() {
    let mut screen = Screen::new();
    screen.keys("?");
    insta::assert_snapshot!("fleet_help", screen.text());
    screen.keys("x");
    screen.size = (30, 5);
    assert!(screen.text().contains("needs 40x10"), "{}", screen.text());
    screen.size = (40, 10);
    screen.keys("s");
    insta::assert_snapshot!("fleet_small", screen.text());
}

#[test]
fn anything_may_be_a_name() {
    for theme in [ASCII, COLOURS] {
        let mut screen = Screen { theme, ..Screen::new() };
        let host = screen.picture.fleet.hosts["web-1"].clone();
        screen.picture.fleet.hosts.insert("\u{1b}[2J\n\u{202e}".repeat(40), host);
        for width in [40, 41, 79, 200] {
            screen.size = (width, 12);
            assert!(!screen.text().contains('\u{1b}'));
        }
    }
}
