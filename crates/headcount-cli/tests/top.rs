//! `headcount top`, driven in a terminal, over a real nginx.

mod svg;
#[allow(dead_code)]
mod tmux;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use testkit::{Integration, Nginx, Setup, Signal, permit, process, wait};

use tmux::{PATIENCE, Tmux};

/// What stands left of the bars at 70 columns and more.
const LEFT: usize = 44;
const UTF8: [(&str, &str); 1] = [("LC_ALL", "C.UTF-8")];

fn setup() -> Setup {
    let setup = Setup::new(Integration::Lua).workers(2).allow_kills();
    setup.option("heartbeat_interval", "0.1").option("stall_after", "1").option("node", "\"shop\"")
}

/// Runs top on this registry. What the terminal was like before and after, and the exit code, are left in files. The first
/// line of stty is the terminal's size, which tests change.
fn top(registry: &Path, size: (u16, u16), environment: &[(&str, &str)]) -> Tmux {
    let script = format!(
        "stty -a | sed 1d > before\n'{}' top --registry '{}'\necho $? > code\nstty -a | sed 1d > after\nexec sleep 1000",
        env!("CARGO_BIN_EXE_headcount"),
        registry.display()
    );
    Tmux::run(size, environment, &script)
}

/// The process in the terminal.
fn program(terminal: &Tmux) -> i32 {
    let shell = terminal.ask("pane_pid").parse().expect("a pid");
    terminal.until("headcount in the terminal", || {
        process::children(shell).into_iter().find(|&pid| process::title(pid).contains("headcount"))
    })
}

/// The row of a process: what stands left of its bar, and its bar with each run of a character shortened to one.
fn row(screen: &str, pid: i32) -> Option<(String, String)> {
    let line = screen.lines().find(|line| {
        line.get(1..)
            .is_some_and(|line| line.trim_start().starts_with(&format!("{pid} ")) && line.contains(" g"))
    })?;
    let left: String = line.chars().take(LEFT).collect();
    let mut bar: Vec<char> = line.chars().skip(LEFT).filter(|&c| c != '┊').collect();
    bar.dedup();
    Some((left, bar.into_iter().collect::<String>().trim().to_owned()))
}

/// Waits until a process is in this state, and its bar holds this.
#[track_caller]
fn shows(terminal: &Tmux, pid: i32, state: &str, bar: &str) {
    terminal.shows(&format!("{pid} {state} {bar}"), |screen| {
        row(screen, pid).is_some_and(|(left, there)| left.contains(state) && there.contains(bar))
    });
}

/// The pids of the rows, from top to bottom.
fn pids(screen: &str) -> Vec<i32> {
    let rows = screen.lines().skip_while(|line| !line.trim_start().starts_with("pid ")).skip(1);
    rows.map_while(|line| line.get(1..)?.split_whitespace().next()?.parse().ok()).collect()
}

/// It has ended with this code, and the terminal is as it was.
#[track_caller]
fn ended(terminal: &Tmux, code: i32, how: &str) {
    assert_eq!(terminal.file("code").trim(), code.to_string(), "{how}:\n{}", terminal.screen());
    assert_eq!(terminal.file("after"), terminal.file("before"), "{how}");
    terminal.until("the screen to be left", || (terminal.ask("alternate_on") == "0").then_some(()));
    assert_eq!(terminal.ask("cursor_flag"), "1", "{how}: the cursor is back");
}

/// Bold, reversed and underlined are none.
fn has_colours(screen: &str) -> bool {
    let styles = screen.split("\x1b[").skip(1).filter_map(|rest| rest.split_once('m'));
    let mut numbers =
        styles.flat_map(|(style, _)| style.split(';')).filter_map(|number| number.parse::<u32>().ok());
    // 39 and 49 are the terminal's own.
    numbers.any(|number| number >= 30 && number != 39 && number != 49)
}

#[track_caller]
fn is_up(terminal: &Tmux) {
    terminal.shows("the rows", |screen| screen.contains("serving"));
    assert_eq!(terminal.ask("alternate_on"), "1");
    assert_eq!(terminal.ask("cursor_flag"), "0");
}

#[test]
fn the_time_line_shows_a_reload_a_drain_a_death_a_stall_and_what_was_before() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    let old = nginx.workers();
    let client = nginx.slow_client();
    let held = client.worker;
    let free = old.iter().copied().find(|&pid| pid != held).expect("two workers");
    // Not watched: top has it from the journal.
    nginx.reload_and_settle(2);
    nginx.wait_gone(free);

    let terminal = top(&nginx.registry(), (120, 30), &UTF8);
    is_up(&terminal);
    terminal.keys(&["+", "+"]);
    shows(&terminal, held, "draining", "v▒");
    shows(&terminal, free, "exited", "]");
    let screen = terminal.shows("both generations", |screen| screen.contains("in 2 generations"));
    let lines: Vec<_> = screen.lines().collect();
    assert!(
        lines[0].starts_with("shop  3 workers in 2 generations") && lines[0].contains("every 250ms"),
        "{screen}"
    );
    assert!(lines[0].trim_end().ends_with(&nginx.registry().display().to_string()), "{screen}");
    assert!(lines[1].starts_with("g2 reload 2/2 ") && lines[1].contains("g1 start 1 draining "), "{screen}");
    assert!(screen.contains(&format!("(pid {held}) of generation 1 drains")), "{screen}");

    let new = nginx.workers();
    // So that there is something of its bar to be seen.
    shows(&terminal, new[0], "serving", "[█");
    process::send(new[0], Signal::KILL);
    shows(&terminal, new[0], "died", "X");
    // Together: a screen that is read while it is drawn may have only one of them.
    terminal.shows("the death and the respawn", |screen| {
        let death = format!("(pid {}) of generation 2 died", new[0]);
        screen.contains("1 death, 1 respawn in 5m") && screen.contains(&death)
    });

    nginx.freeze(new[1]);
    shows(&terminal, new[1], "stalled", "█!─");
    terminal
        .shows("the warning", |screen| screen.contains(&format!("! STALLED: 1 worker, longest {} ", new[1])));
    nginx.thaw(new[1]);
    shows(&terminal, new[1], "serving", "+█");

    nginx.configure_nonsense();
    client.finish();
    shows(&terminal, held, "exited", "▒]");
    terminal.shows("one generation", |screen| screen.contains("in 1 generation "));
    terminal.keys(&["q"]);
    ended(&terminal, 0, "q");
}

#[test]
fn keys_drive_it() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    let old = nginx.workers();
    let terminal = top(&nginx.registry(), (80, 24), &UTF8);
    is_up(&terminal);
    let master = nginx.master();
    nginx.reload_and_settle(2);
    old.iter().for_each(|&pid| nginx.wait_gone(pid));
    let mut new = nginx.workers();
    new.sort_unstable();
    let all = [new.as_slice(), &old, &[master]].concat();
    let mut sorted = all.clone();
    sorted.sort_unstable();
    let has = |screen: &str, wanted: &[i32]| {
        let mut there = pids(screen);
        there.sort_unstable();
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        there == wanted
    };
    terminal.shows("all rows", |screen| has(screen, &all) && screen.contains(" by start"));

    terminal.keys(&["s"]);
    terminal.shows("the rows by pid", |screen| screen.contains(" by pid") && pids(screen) == sorted);
    terminal.keys(&["s"]);
    terminal.shows("those that are gone last", |screen| {
        let rows = pids(screen);
        screen.contains(" by state") && rows.len() == 5 && rows[3..].iter().all(|pid| old.contains(pid))
    });
    terminal.keys(&["s"]);
    terminal.shows("the newest generation first", |screen| {
        let rows = pids(screen);
        screen.contains(" by generation") && rows.len() == 5 && rows[..2].iter().all(|pid| new.contains(pid))
    });

    terminal.keys(&["g"]);
    terminal.shows("only who is there", |screen| has(screen, &[new.as_slice(), &[master]].concat()));
    terminal.keys(&["g", "/"]);
    terminal.text("exited");
    terminal.shows("the filter while it is typed", |screen| {
        screen.contains("filter: exited_") && has(screen, &old)
    });
    terminal.keys(&["Escape"]);
    terminal.shows("all rows again", |screen| has(screen, &all));
    terminal.keys(&["/"]);
    terminal.text(&new[0].to_string());
    terminal.keys(&["Enter"]);
    terminal.shows("one row", |screen| pids(screen) == [new[0]] && screen.contains(" filter: "));

    terminal.keys(&["Enter"]);
    let detail = terminal.shows("its details", |screen| screen.contains("heartbeat "));
    assert!(detail.contains(&format!("pid {} of generation 2  serving", new[0])), "{detail}");
    assert!(
        detail.contains("started by a reload") && detail.contains("stalled when older than 1.0 s"),
        "{detail}"
    );
    terminal.keys(&["Escape"]);
    terminal.shows("the list", |screen| pids(screen) == [new[0]]);
    terminal.keys(&["Escape"]);
    terminal.shows("no filter", |screen| has(screen, &all));

    terminal.keys(&["p"]);
    let stopped = terminal.shows("the pause", |screen| screen.contains(" PAUSED "));
    process::send(new[0], Signal::KILL);
    nginx.wait_gone(new[0]);
    // It lives on in the picture, while the clock of the pause runs.
    let later = terminal.shows("a second of pause", |screen| screen.contains(" PAUSED 1."));
    assert_eq!(stopped.lines().skip(1).collect::<Vec<_>>(), later.lines().skip(1).collect::<Vec<_>>());
    terminal.keys(&["Left"]);
    terminal.shows("what was before", |screen| {
        let axis = screen.lines().find(|line| line.trim_start().starts_with("pid "));
        axis.is_some_and(|axis| axis.contains("-1m") && !axis.contains(" now"))
    });
    terminal.keys(&["space"]);
    shows(&terminal, new[0], "died", "X");

    terminal.keys(&["?"]);
    let help = terminal.shows("the help", |screen| screen.contains("any key: back"));
    // Below the node's own lines, which differ from run to run.
    let help: Vec<_> =
        help.lines().skip_while(|line| !line.contains("q, Ctrl-C")).map(str::trim_end).collect();
    insta::assert_snapshot!("help", help.join("\n"));
    terminal.keys(&["x"]);
    terminal.shows("the list", |screen| pids(screen).len() > 4);

    terminal.resize(40, 10);
    terminal.shows("a small screen", |screen| screen.lines().count() == 10 && screen.contains("serving"));
    terminal.resize(30, 5);
    terminal.shows("that it is too small", |screen| {
        screen.contains("needs 40x10") && screen.contains("this is 30x5")
    });
    terminal.resize(100, 40);
    terminal.shows("a large screen", |screen| screen.lines().count() == 40 && screen.contains("serving"));
    terminal.keys(&["C-c"]);
    ended(&terminal, 0, "Ctrl-C");
}

#[test]
fn whatever_ends_it_the_terminal_is_as_before() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    for (signal, code) in
        [(Signal::TERM, 128 + 15), (Signal::HUP, 128 + 1), (Signal::QUIT, 128 + 3), (Signal::INT, 0)]
    {
        let terminal = top(&nginx.registry(), (80, 24), &UTF8);
        is_up(&terminal);
        // SIGQUIT dumps core otherwise.
        let program = program(&terminal);
        rustix::process::prlimit(
            rustix::process::Pid::from_raw(program),
            rustix::process::Resource::Core,
            rustix::process::Rlimit { current: Some(0), maximum: Some(0) },
        )
        .expect("our own child");
        process::send(program, signal);
        ended(&terminal, code, &format!("{signal:?}"));
    }
}

#[test]
fn ctrl_z_gives_the_terminal_to_the_shell_and_fg_takes_it_back() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    let command =
        format!("'{}' top --registry '{}'", env!("CARGO_BIN_EXE_headcount"), nginx.registry().display());
    let terminal = Tmux::run((80, 24), &UTF8, "exec bash --norc --noprofile -i");
    terminal.shows("a prompt", |screen| screen.contains(['$', '#']));
    terminal.text(&format!("clear; stty -a > before; {command}; echo code $?"));
    terminal.keys(&["Enter"]);
    is_up(&terminal);
    let program = program(&terminal);
    let stands = || process::stat(program).filter(|stat| stat.state == 'T').map(drop);
    for stop in ["C-z", "TSTP"] {
        if stop == "TSTP" {
            process::send(program, Signal::TSTP)
        } else {
            terminal.keys(&["C-z"])
        }
        terminal.until("the program to stand", stands);
        terminal.until("the shell's screen", || (terminal.ask("alternate_on") == "0").then_some(()));
        assert_eq!(terminal.ask("cursor_flag"), "1");
        // The shell reads its own way; a command gets what the shell had.
        terminal.text("stty -a > stopped");
        terminal.keys(&["Enter"]);
        assert_eq!(terminal.file("stopped"), terminal.file("before"), "{stop}");
        fs::remove_file(terminal.at("stopped")).expect("our own file");
        terminal.text("fg");
        terminal.keys(&["Enter"]);
        is_up(&terminal);
    }
    // Stopped without being asked, and continued: it takes the terminal anew.
    process::send(program, Signal::STOP);
    terminal.until("the program to stand", stands);
    terminal.text("fg");
    terminal.keys(&["Enter"]);
    terminal.keys(&["?"]);
    terminal.shows("that it answers", |screen| screen.contains("any key: back"));
    terminal.keys(&["q"]);
    terminal.until("the shell's screen", || (terminal.ask("alternate_on") == "0").then_some(()));
    terminal.text("stty -a > after");
    terminal.keys(&["Enter"]);
    assert_eq!(terminal.file("after"), terminal.file("before"));
}

#[test]
fn a_terminal_that_takes_nothing_keeps_nobody_from_ending_it() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    let terminal = top(&nginx.registry(), (200, 60), &UTF8);
    is_up(&terminal);
    let program = program(&terminal);
    let server: i32 = terminal.ask("pid").parse().expect("tmux's pid");
    // Nobody reads what is drawn any more, and each SIGCONT has all drawn anew: soon it hangs in writing.
    process::send(server, Signal::STOP);
    let hangs = wait::poll(PATIENCE, || {
        process::send(program, Signal::CONT);
        std::thread::sleep(std::time::Duration::from_millis(20));
        let call = fs::read_to_string(format!("/proc/{program}/syscall")).ok()?;
        // write(2) to standard output, by its number on x86-64 and on ARM.
        (call.starts_with("1 0x1 ") || call.starts_with("64 0x1 ")).then_some(())
    });
    process::send(program, Signal::TERM);
    let gone = wait::poll(PATIENCE, || (!process::is_alive(program)).then_some(()));
    process::send(server, Signal::CONT);
    assert!(hangs.is_some(), "it never hung, so that this test has shown nothing");
    assert!(gone.is_some(), "it hangs in writing, and SIGTERM did not end it");
    assert_eq!(terminal.file("after"), terminal.file("before"));
}

#[test]
fn a_node_that_dies_stops_and_comes_back() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    let terminal = top(&nginx.registry(), (80, 24), &UTF8);
    is_up(&terminal);
    let (master, workers) = (nginx.master(), nginx.workers());
    // Not `kill_all`: top has the registry open, and would count as one of its family.
    for &pid in [master].iter().chain(&workers) {
        process::send(pid, Signal::KILL);
    }
    terminal.shows("that all are dead", |screen| screen.contains("! DEAD: no process of this node is alive"));
    shows(&terminal, workers[0], "died", "X");

    nginx.run();
    nginx.ready(2);
    terminal.shows("the new ones", |screen| {
        !screen.contains("DEAD") && nginx.workers().iter().all(|&pid| row(screen, pid).is_some())
    });

    fs::remove_file(nginx.registry()).expect("our own file");
    terminal.shows("that the file is gone", |screen| screen.contains("! UNREADABLE: "));
    let (master, workers) = (nginx.master(), nginx.workers());
    process::send(master, Signal::TERM);
    for &pid in [master].iter().chain(&workers) {
        nginx.wait_gone(pid);
    }
    terminal.shows("that all have left", |screen| screen.contains("! STOPPED: "));
    nginx.forget_reports();
    nginx.run();
    nginx.ready(1);
    terminal.shows("the node of the new file", |screen| {
        !screen.contains("! ") && nginx.workers().iter().all(|&pid| row(screen, pid).is_some())
    });
    terminal.keys(&["q"]);
    ended(&terminal, 0, "q");
}

#[test]
fn without_utf8_and_colours_the_screen_is_ascii_and_says_the_same() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    let terminal = top(&nginx.registry(), (80, 24), &[("LC_ALL", "C"), ("NO_COLOR", "1")]);
    is_up(&terminal);
    nginx.reload_and_settle(2);
    let new = nginx.workers();
    terminal.keys(&["+", "+", "+"]);
    // The digit tells the generation.
    shows(&terminal, new[0], "serving", "[2=2=");
    let screen = terminal.coloured();
    assert!(screen.is_ascii() && !has_colours(&screen), "{screen}");
    terminal.keys(&["q"]);
    ended(&terminal, 0, "q");

    let terminal = top(&nginx.registry(), (80, 24), &UTF8);
    is_up(&terminal);
    terminal.until("a colour", || has_colours(&terminal.coloured()).then_some(()));
}

#[test]
fn n_goes_round_the_nodes_of_the_host() {
    let _permit = permit();
    let one = Nginx::start_ready(setup().option("path", "\"@FOLDER@/run/a.registry\""));
    let other = format!("\"{}\"", one.at("run/b.registry").display());
    let two = Nginx::start_ready(setup().option("path", &other).option("node", "\"other\""));
    let folder = one.at("run");
    fs::write(folder.join("c.registry"), "this is none").expect("our own folder");
    let script = format!("'{}' top\necho $? > code\nexec sleep 1000", env!("CARGO_BIN_EXE_headcount"));
    let folder = folder.to_str().expect("a path that we made");
    let terminal = Tmux::run((80, 24), &[UTF8[0], ("HEADCOUNT_RUNTIME_DIR", folder)], &script);
    let shows_node = |name: &str, place: &str, nginx: &Nginx| {
        terminal.shows(&format!("the node {name}"), |screen| {
            screen.starts_with(&format!("{name} ({place})"))
                && nginx.workers().iter().all(|&pid| row(screen, pid).is_some())
        });
    };
    shows_node("shop", "1 of 3", &one);
    terminal.keys(&["n"]);
    shows_node("other", "2 of 3", &two);
    terminal.keys(&["Tab"]);
    let none = terminal.shows("what is no registry", |screen| screen.contains("! UNREADABLE: "));
    assert!(none.starts_with("c (3 of 3)") && !none.contains("STOPPED"), "{none}");
    terminal.keys(&["n"]);
    shows_node("shop", "1 of 3", &one);
    terminal.keys(&["q"]);
    assert_eq!(terminal.file("code").trim(), "0");
}

#[test]
fn a_failed_reload_an_upgrade_a_lost_master_and_a_crash_loop_stand_out() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().allow("missing/x.sock"));
    let terminal = top(&nginx.registry(), (120, 30), &UTF8);
    is_up(&terminal);
    terminal.keys(&["+", "+"]);
    // The labels of the axis stand in the line above the columns' heads.
    let axis = |screen: &str| {
        let lines: Vec<_> = screen.lines().collect();
        let heads = lines.iter().position(|line| line.trim_start().starts_with("pid ")).unwrap_or(1);
        lines[heads - 1].chars().skip(LEFT).collect::<String>()
    };

    // A socket in a folder that is not there: the configuration is read, and bind fails.
    nginx.reload_with(|setup| setup.listen("unix:@FOLDER@/missing/x.sock"));
    terminal.shows("the failed reload", |screen| {
        axis(screen).contains("g2 failed")
            && screen.contains("generation 2 was abandoned")
            && screen.contains("g1 ")
    });
    nginx.change(Setup::no_other_listen);

    let (old, new) = nginx.upgrade();
    nginx.ready(3);
    terminal.shows("the upgrade", |screen| screen.contains("g3 upgrade 2/2 ") && axis(screen).contains("g3"));
    process::send(old, Signal::QUIT);
    nginx.wait_gone(old);
    terminal.shows("that it took over", |screen| screen.contains("2 workers in 1 generation "));

    for deaths in 1..=3 {
        let worker = nginx.workers_of(new)[0];
        process::send(worker, Signal::KILL);
        shows(&terminal, worker, "died", "X");
        // Two must be there again, or the next victim would be the same.
        terminal.until("the respawn", || {
            let workers = nginx.workers_of(new);
            (workers.len() == 2 && !workers.contains(&worker)).then_some(())
        });
        let looping = |screen: &str| screen.contains("! CRASH LOOP: 3 workers died soon after their start");
        match deaths {
            1 | 2 => assert!(!looping(&terminal.screen()), "{deaths} deaths are no loop yet"),
            _ => drop(terminal.shows("the crash loop", looping)),
        }
    }

    process::send(new, Signal::KILL);
    terminal.shows("the lost master", |screen| {
        screen.contains(&format!("! MASTER LOST: master {new} of generation 3 is gone; 2 workers orphaned"))
            && axis(screen).contains("master lost")
    });
    terminal.keys(&["q"]);
    ended(&terminal, 0, "q");
}

#[test]
fn an_ordinary_user_sees_the_same() {
    if !process::is_root() {
        eprintln!("skipped: only root can become somebody else");
        return;
    }
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    // The target folder may be where nobody else may go.
    let program = nginx.at("headcount");
    fs::copy(env!("CARGO_BIN_EXE_headcount"), &program).expect("our own folder");
    let script = format!(
        "exec setpriv --reuid=65534 --regid=65534 --clear-groups '{}' top --registry '{}'",
        program.display(),
        nginx.registry().display()
    );
    let terminal = Tmux::run((110, 24), &UTF8, &script);
    let workers = nginx.workers();
    for &pid in &workers {
        shows(&terminal, pid, "serving", "█");
    }
    process::send(workers[0], Signal::KILL);
    shows(&terminal, workers[0], "died", "X");
    terminal.shows("nothing unknown", |screen| !screen.contains("UNKNOWN"));
}

/// Makes docs/pictures/top.svg and status.svg anew, from a real run:
/// `cargo test -p headcount-cli --test top -- --ignored the_pictures`.
#[test]
#[ignore = "writes into docs/, and takes its time, for the sake of the pictures"]
fn the_pictures() {
    let _permit = permit();
    let setup = Setup::new(Integration::Lua).workers(4).allow_kills().default_place();
    let setup =
        setup.option("node", "\"nginx\"").option("heartbeat_interval", "0.5").option("stall_after", "2");
    let nginx = Nginx::start_ready(setup);
    let run = nginx.at("run");
    // A short path: the picture has no room for a test's folder.
    let short = Path::new("/tmp/headcount");
    assert!(!short.exists(), "{} is in the way", short.display());
    std::os::unix::fs::symlink(&run, short).expect("a name in /tmp");
    let terminal = top(&short.join("nginx.registry"), (80, 24), &UTF8);
    let begun = std::time::Instant::now();
    let until = |seconds| {
        let left = std::time::Duration::from_secs(seconds).saturating_sub(begun.elapsed());
        std::thread::sleep(left);
    };
    is_up(&terminal);
    terminal.keys(&["+"]);
    until(12);
    let client = nginx.slow_client();
    nginx.reload_and_settle(2);
    until(24);
    let workers = nginx.workers();
    process::send(workers[1], Signal::KILL);
    until(34);
    nginx.freeze(workers[2]);
    until(44);
    nginx.thaw(workers[2]);
    until(50);
    nginx.freeze(workers[0]);
    until(54);
    let top = terminal.coloured();
    let status = Command::new(env!("CARGO_BIN_EXE_headcount"))
        .args(["--color", "always", "--registry", "/tmp/headcount/nginx.registry", "status"])
        .output()
        .expect("it can be started");
    nginx.thaw(workers[0]);
    client.finish();
    fs::remove_file(short).expect("our own link");

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let folder = root.join("docs/pictures");
    fs::create_dir_all(&folder).expect("the repository can be written to");
    let status = String::from_utf8(status.stdout).expect("text");
    for (name, screen) in [("top", &top), ("status", &status)] {
        let title = format!("headcount {name}: a reload, a worker that drains, a death, a stall");
        fs::write(folder.join(name).with_extension("svg"), svg::picture(screen, &title))
            .expect("the repository");
    }
}

#[test]
fn what_it_cannot_do_it_says_and_ends_with_4() {
    let output = |command: &mut Command| {
        let output = command.stdin(Stdio::null()).output().expect("it can be started");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let mut command = Command::new(env!("CARGO_BIN_EXE_headcount"));
    let (code, message) = output(command.args(["top", "--registry", "/nowhere/x.registry"]));
    assert_eq!(code, Some(4));
    assert!(
        message.contains("standard output is not one") && message.contains("`headcount status`"),
        "{message}"
    );

    let terminal = top(Path::new("/nowhere/x.registry"), (80, 24), &UTF8);
    ended(&terminal, 4, "no registry");
    terminal.shows("why", |screen| screen.contains("/nowhere/x.registry"));

    let script =
        format!("TERM=dumb '{}' top\necho $? > code\nexec sleep 1000", env!("CARGO_BIN_EXE_headcount"));
    let terminal = Tmux::run((80, 24), &UTF8, &script);
    assert_eq!(terminal.file("code").trim(), "4");
    terminal.shows("why", |screen| screen.contains("TERM=dumb"));
}
