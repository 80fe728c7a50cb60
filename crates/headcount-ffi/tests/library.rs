//! `libheadcount.so` as C programs see it. What they check stands in `tests/c`.

mod support;

use std::process::{Command, Output, Stdio};

/// Runs a C test with a registry of its own, and whatever else it is told. Gives its pid as well.
fn run(name: &str, arguments: &[&str]) -> (u32, Output) {
    let folder = support::Folder::new(&format!("c-{name}{}", arguments.concat()));
    let program = support::compile(&format!("tests/c/{name}.c"), folder.path());
    let child = Command::new(program)
        .arg(folder.path().join("node.registry"))
        .args(arguments)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let pid = child.id();
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{name}: {}\n{said}", output.status);
    (pid, output)
}

fn tool(name: &str, arguments: &[&str]) -> String {
    let library = support::library_folder().join("libheadcount.so");
    let output =
        Command::new(name).args(arguments).arg(library).output().unwrap_or_else(|e| panic!("{name}: {e}"));
    assert!(output.status.success());
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_is_never_unloaded_and_has_a_name() {
    let dynamic = tool("readelf", &["-d"]);
    let flags = dynamic.lines().find(|l| l.contains("FLAGS_1")).unwrap_or_default();
    assert!(flags.contains("NODELETE"), "{dynamic}");
    assert!(dynamic.contains("Library soname: [libheadcount.so]"), "{dynamic}");
}

#[test]
fn it_exports_what_the_header_declares_and_nothing_else() {
    let symbols = tool("nm", &["-D", "--defined-only"]);
    let mut exported: Vec<_> = symbols.lines().filter_map(|l| l.split_whitespace().last()).collect();
    exported.sort_unstable();
    let header = std::fs::read_to_string(support::root().join("include/headcount.h")).unwrap();
    let code = header.lines().filter(|l| !l.starts_with("//") && !l.starts_with(" *"));
    let mut declared: Vec<_> = code
        .filter_map(|line| line.split_once('(')?.0.split([' ', '*']).next_back())
        .filter(|name| name.starts_with("headcount_"))
        .collect();
    declared.sort_unstable();
    assert_eq!(exported, declared);
}

#[test]
fn the_compiler_and_the_library_agree_on_every_structure() {
    run("sizes", &[]);
}

#[test]
fn bad_arguments_are_named_and_do_no_harm() {
    run("misuse", &[]);
}

#[test]
fn one_process_lives_through_two_generations() {
    run("life", &[]);
}

#[test]
fn the_waker_wakes_its_own_process_only_and_ends() {
    let (pid, _) = run("waker", &[]);
    let mine = format!(".headcount-{pid}-");
    for folder in ["/dev/shm", "/tmp"] {
        let names = std::fs::read_dir(folder).unwrap().filter_map(|e| e.ok()?.file_name().into_string().ok());
        assert_eq!(names.filter(|n| n.starts_with(&mine)).count(), 0, "a socket was left behind in {folder}");
    }
}

#[test]
fn a_host_with_an_event_loop_hears_when_to_try_a_lock() {
    run("lock_watch", &[]);
}

#[test]
fn a_forked_child_speaks_for_itself_alone() {
    run("forks", &["foreground"]);
}

#[test]
fn a_server_that_goes_into_the_background_is_the_master_at_its_first_fork() {
    // `output()` waits for the end of the pipe, which the process in the background holds.
    let (_, output) = run("forks", &["background"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "background ok\n", "{said}");
}

#[test]
fn the_program_in_the_documentation_works() {
    let text = std::fs::read_to_string(support::root().join("../../docs/c.md")).unwrap();
    let (_, rest) = text.split_once("```c\n").unwrap();
    let (program, _) = rest.split_once("```").unwrap();
    // A node of its own, and rounds that do not take seconds.
    let folder = support::Folder::new("c-documentation");
    let registry = folder.path().join("node.registry");
    let changed = program
        .replace(
            ".node = \"my-server\"",
            &format!(".node = \"my-server\", .path = \"{}\"", registry.display()),
        )
        .replace("poll(&loop, 1, 500)", "poll(&loop, 1, 20)");
    let source = folder.path().join("server.c");
    std::fs::write(&source, changed).unwrap();
    let output = Command::new(support::compile(source.to_str().unwrap(), folder.path())).output().unwrap();
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(registry.exists(), "the program did not take its path from the options");
    assert!(said.contains("worker_exited of") && said.ends_with(", 0 workers now\n"), "{said}");
}

#[test]
fn the_patterns_in_the_documentation_are_those_of_the_example() {
    let read = |path| std::fs::read_to_string(support::root().join(path)).unwrap();
    let (page, example) = (read("../../docs/c.md"), read("examples/prefork.c"));
    let section =
        page.split("\n## What one process does\n").nth(1).and_then(|rest| rest.split("\n## ").next());
    let blocks: Vec<&str> =
        section.unwrap().split("```c\n").skip(1).filter_map(|block| block.split("```").next()).collect();
    assert_eq!(blocks.len(), 2);
    assert!(blocks.iter().all(|block| example.contains(block)), "docs/c.md and examples/prefork.c differ");
}

#[test]
fn a_member_lives_by_its_steps() {
    run("member", &[]);
}

#[test]
fn the_look_at_a_node_in_the_documentation_works() {
    let text = std::fs::read_to_string(support::root().join("../../docs/c.md")).unwrap();
    let lines = text.split("```c\n").find(|block| block.starts_with("headcount_snapshot")).unwrap();
    let lines = lines.split("```").next().unwrap();
    let folder = support::Folder::new("c-documented-look");
    let source = folder.path().join("look.c");
    let program = format!(
        "#include <headcount.h>\n#include <stdio.h>\nint main(void) {{\n\
         headcount_options options = {{.struct_size = sizeof options, .node = \"x\", .path = \"{}\"}};\n\
         headcount_node *node;\nif (headcount_open(&options, &node) < 0) return 1;\n\
         uint64_t generation;\nheadcount_event event = {{.struct_size = sizeof event}};\n\
         headcount_begin(node, 0, 1, &generation, &event);\nheadcount_next(node, 0, &event);\n{lines}return 0;\n}}\n",
        folder.path().join("node.registry").display()
    );
    std::fs::write(&source, program).unwrap();
    let child = Command::new(support::compile(source.to_str().unwrap(), folder.path()))
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let expected = format!("master {}: serving\n", child.id());
    assert_eq!(String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap(), expected);
}

#[test]
fn threads_share_a_node() {
    run("threads", &[]);
}

#[test]
fn threads_that_take_a_lock_for_the_first_time_at_once_share_it() {
    run("lock_threads", &[]);
}

#[test]
fn a_child_that_is_forked_while_threads_are_inside_never_hangs() {
    run("forks_in_threads", &[]);
}
