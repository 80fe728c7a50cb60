//! What packages install beside the program: completions and manual pages.

mod program;

use program::{headcount, run};

#[test]
fn completions_for_each_shell() {
    for (shell, part) in
        [("bash", "complete -F _headcount"), ("zsh", "#compdef headcount"), ("fish", "complete -c headcount")]
    {
        let script = run(&mut headcount(["completions", shell])).ended(0).out;
        assert!(script.contains(part), "{script}");
        for command in ["status", "doctor", "completions"] {
            assert!(script.contains(command), "{shell} does not know {command}");
        }
    }
    run(&mut headcount(["completions", "cmd.exe"])).ended(2).complains("bash");
}

#[test]
fn a_page_for_each_command() {
    let page = run(&mut headcount(["man"])).ended(0).out;
    assert!(page.contains(".TH headcount 1"), "{page}");
    let folder = tempfile::tempdir().expect("a folder");
    run(headcount(["man", "--folder"]).arg(folder.path())).ended(0);
    let entries = std::fs::read_dir(folder.path()).expect("our folder").flatten();
    let mut pages: Vec<_> = entries.map(|e| e.file_name().into_string().expect("text")).collect();
    pages.sort();
    // As `headcount --help` lists them.
    let help = run(&mut headcount(["--help"])).ended(0).out;
    let commands =
        help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What is indented further goes on with the line before.
    let commands = commands.filter_map(|line| line.strip_prefix("  ").filter(|line| !line.starts_with(' ')));
    let commands = commands.filter_map(|line| line.split_whitespace().next());
    let mut expected: Vec<_> =
        commands.filter(|c| *c != "help").map(|c| format!("headcount-{c}.1")).collect();
    expected.push("headcount.1".into());
    expected.extend(
        ["status", "events", "wait", "leader", "reload"].map(|sub| format!("headcount-cluster-{sub}.1")),
    );
    expected.sort();
    assert!(expected.len() > 8, "{help}");
    assert_eq!(pages, expected);
    run(&mut headcount(["man", "--folder", "/nowhere/at/all"]))
        .ended(4)
        .complains("cannot write /nowhere/at/all");
}

#[test]
fn help_has_examples_and_exit_codes() {
    for command in ["status", "doctor", "completions"] {
        let help = run(&mut headcount([command, "--help"])).ended(0).out;
        assert!(help.contains("Examples:\n") && help.contains("Exit codes: 0 "), "{help}");
    }
}
