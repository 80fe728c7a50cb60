//! The directive as an operator may write it.

use std::path::Path;
use std::time::Duration;

use headcount::NodeSettings;

use crate::{Settings, Surroundings, read};

/// Of nginx's times, as many as these tests use.
fn time(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit())?);
    let number = number.parse().ok()?;
    match unit {
        "ms" => Some(Duration::from_millis(number)),
        "s" => Some(Duration::from_secs(number)),
        "d" => Some(Duration::from_secs(number * 86_400)),
        _ => None,
    }
}

fn read_below(prefix: &str, line: &str) -> Result<Option<Settings>, String> {
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    read(&words, &Surroundings { prefix, arguments: &[], folder: b"/", time: &time })
}

fn given(line: &str) -> Settings {
    read_below("/usr/share/nginx/", line).expect(line).expect("it is on")
}

#[track_caller]
fn refused(line: &str, because: &[&str]) {
    let why = read_below("/usr/share/nginx/", line).expect_err(line);
    for part in because {
        assert!(why.contains(part), "`headcount {line};` is refused with {why:?}, which lacks {part:?}");
    }
}

#[test]
fn without_parameters_it_is_on_with_the_documented_defaults() {
    let expected = Settings {
        node: "nginx".to_owned(),
        path: None,
        timings: NodeSettings::default(),
        slots: None,
        singletons: None,
        roles: Vec::new(),
    };
    assert_eq!(given(""), expected);
    assert_eq!(given("on"), expected);
}

#[test]
fn on_and_off_may_be_written_in_any_case_as_nginx_writes_its_flags() {
    for word in ["off", "OFF", "Off"] {
        assert_eq!(read_below("/", word), Ok(None), "{word}");
        assert_eq!(read_below("/", &format!("{word} slots=8")), Ok(None), "{word}");
    }
    for word in ["ON", "On"] {
        assert_eq!(given(word).node, "nginx", "{word}");
    }
    assert_eq!(given("official").node, "official");
}

#[test]
fn a_switch_that_is_off_does_not_hide_a_mistake() {
    refused("off slots=1", &["slots"]);
    refused("off heartbeat=5s stall=1s", &["stall"]);
}

#[test]
fn all_parameters_in_any_order() {
    let all = given("slots=64 lock_timeout=2s path=/run/shop/x heartbeat=100ms stall=400ms");
    assert_eq!(all.node, "nginx");
    assert_eq!(
        given("shop lock_timeout=2s stall=400ms slots=64 path=/run/shop/x heartbeat=100ms").node,
        "shop"
    );
    assert_eq!(all.path.as_deref(), Some(Path::new("/run/shop/x")));
    let ms = Duration::from_millis;
    assert_eq!((all.timings.heartbeat_interval, all.timings.stall_after), (ms(100), ms(400)));
    assert_eq!((all.timings.lock_timeout, all.slots), (ms(2000), Some(64)));
}

#[test]
fn a_slow_heartbeat_moves_the_stall_with_it_up_to_a_day() {
    assert_eq!(given("heartbeat=100ms").timings.stall_after, Duration::from_secs(5));
    assert_eq!(given("heartbeat=10s").timings.stall_after, Duration::from_secs(50));
    assert_eq!(given("heartbeat=86399s").timings.stall_after, Duration::from_secs(86_400));
    refused("heartbeat=1d", &["\"stall\" is 86400s", "more than \"heartbeat\", which is 1d"]);
    refused("heartbeat=2s stall=2s", &["\"stall\" is 2s", "more than \"heartbeat\", which is 2s"]);
}

#[test]
fn times_and_slots_have_bounds() {
    for name in ["heartbeat", "stall", "lock_timeout"] {
        for value in ["", "0ms", "2d", "-1s", "soon", "1"] {
            refused(&format!("{name}={value}"), &[&format!("\"{name}\" is \"{value}\""), "1ms to 1d"]);
        }
    }
    assert_eq!(given("singletons=16").singletons, Some(16));
    refused("singletons=0", &["\"singletons\" is \"0\"", "1 to 65536"]);
    assert_eq!(given("slots=2").slots, Some(2));
    assert_eq!(given("slots=65536").slots, Some(65_536));
    for value in ["", "1", "65537", "-2", "4.5", "many", "99999999999999999999"] {
        refused(&format!("slots={value}"), &[&format!("\"slots\" is \"{value}\""), "2 to 65536"]);
    }
}

#[test]
fn roles_are_names_that_a_variable_can_have() {
    assert_eq!(given("roles=cron").roles, ["cron"]);
    assert_eq!(given("shop roles=cron,nightly_report,2nd slots=8").roles, ["cron", "nightly_report", "2nd"]);
    for (value, name) in
        [("", ""), ("cron,", ""), ("Cron", "Cron"), ("a,b-c", "b-c"), ("a,b.c", "b.c"), ("größe", "größe")]
    {
        refused(
            &format!("roles={value}"),
            &[&format!("with the role \"{name}\""), "1 to 48 small letters, digits and \"_\""],
        );
    }
    refused(&format!("roles={}", "n".repeat(49)), &["1 to 48"]);
    assert_eq!(given(&format!("roles={}", "n".repeat(48))).roles.len(), 1);
    refused("roles=cron,reports,cron", &["names the role \"cron\" twice"]);
    let many = |n: u32| (0..n).map(|i| format!("r{i}")).collect::<Vec<_>>().join(",");
    assert_eq!(given(&format!("roles={}", many(64))).roles.len(), 64);
    refused(&format!("roles={}", many(65)), &["names 65 roles; allowed are 64"]);
    refused("off roles=a.b", &["\"roles\""]);
}

#[test]
fn whatever_role_is_let_through_the_core_takes_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let settings = given(&format!("roles={},a,_ path={}", "n".repeat(48), folder.path().join("x").display()));
    let master = settings.options().open().expect("a node");
    let (generation, transitions) =
        master.begin(headcount::Begin::new().workers(1), headcount::Wait::Timeout).expect("a generation");
    drop(transitions);
    let (worker, transitions) = generation.join(headcount::Join::worker(Some(0))).expect("a worker");
    drop(transitions);
    for role in &settings.roles {
        worker.leader(role).map(drop).expect(role);
    }
}

#[test]
fn a_parameter_that_is_unknown_or_given_twice_is_named() {
    refused("on colour=red", &["\"colour\" is not known", "path=", "slots="]);
    refused("on PATH=/x", &["\"PATH\" is not known"]);
    refused("slots=8 slots=8", &["\"slots\" is given twice"]);
    refused("a path=/run/one path=/run/two", &["\"path\" is given twice"]);
}

#[test]
fn two_names_on_one_path_are_one_too_many() {
    refused("one two path=/run/x", &["\"two\" is not known"]);
    refused("path=/run/x one", &["\"one\" is not known"]);
    refused("on off", &["\"off\" is not known"]);
}

#[test]
fn a_name_is_1_to_48_of_the_allowed_characters() {
    for name in ["a", "api.v2", "_x", "-x", "7", &"n".repeat(48)] {
        assert_eq!(given(name).node, name);
    }
    for name in [".hidden", "..", "a/b", "größe", "a:b", &"n".repeat(49)] {
        refused(name, &[&format!("the node's name is \"{name}\""), "1 to 48"]);
    }
    let empty =
        read(&[String::new()], &Surroundings { prefix: "/", arguments: &[], folder: b"/", time: &time });
    assert!(empty.expect_err("an empty name").contains("the node's name is \"\""));
}

#[test]
fn a_relative_path_begins_at_nginxs_prefix() {
    assert_eq!(given("path=run/x").path.as_deref(), Some(Path::new("/usr/share/nginx/run/x")));
    assert_eq!(given("path=./x").path.as_deref(), Some(Path::new("/usr/share/nginx/x")));
    assert_eq!(given("path=/x=y").path.as_deref(), Some(Path::new("/x=y")));
    let below = Surroundings { prefix: "shop/", arguments: &[], folder: b"/srv", time: &time };
    let given = read(&["path=run/x".to_owned()], &below).expect("it is allowed").expect("it is on");
    assert_eq!(
        given.path.as_deref(),
        Some(Path::new("/srv/shop/run/x")),
        "a prefix is relative to the start"
    );
}

#[test]
fn a_path_that_names_a_folder_is_refused_whether_it_is_there_or_not() {
    for value in ["", "/", "..", ".", "../", "run/", "run/..", "/nowhere/.", "/nowhere/.."] {
        refused(
            &format!("path={value}"),
            &[&format!("\"path\" is \"{value}\"; allowed is the path of a file")],
        );
    }
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("run")).expect("a folder");
    std::fs::write(folder.path().join("file"), "").expect("a file");
    let prefix = folder.path().to_str().expect("text");
    let why = read_below(prefix, "path=run").expect_err("a folder");
    assert!(why.contains("\"path\" is \"run\"; allowed is the path of a file"), "{why}");
    for fine in ["file", "run/x", "nowhere/x"] {
        let settings = read_below(prefix, &format!("path={fine}")).expect(fine).expect("it is on");
        assert_eq!(settings.path, Some(folder.path().join(fine)));
    }
}

#[test]
fn whatever_is_let_through_the_core_takes_too() {
    let folder = tempfile::tempdir().expect("a folder");
    let prefix = folder.path().to_str().expect("text");
    for line in ["slots=2", "heartbeat=1ms stall=2ms lock_timeout=1ms", "heartbeat=86399s"] {
        let line = format!("{line} path={}", line.len());
        let settings = read_below(prefix, &line).expect(&line).expect("it is on");
        let master = settings.options().open().expect(&line);
        let node = master.node();
        assert_eq!(node.path(), settings.path.as_deref(), "{line}: {:?}", node.take_notices());
    }
}
