//! `headcount reload` on a real nginx: which generation answers, each way to fail, and each exit code.

mod program;
mod scripted;

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;

use program::Run;
use scripted::{run, setup, start};
use testkit::{Folder, Kind, Nginx, Signal, Who, permit, process};

/// The number in `generation 3 serves with 4 workers; it took 150 ms`.
#[track_caller]
fn generation(ended: &Run) -> u64 {
    let number = ended.out.strip_prefix("generation ").and_then(|rest| rest.split(' ').next()?.parse().ok());
    number.unwrap_or_else(|| panic!("no generation in {ended:#?}"))
}

#[test]
fn the_master_is_found_by_the_node_by_its_pid_file_and_by_its_pid() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup());
    let ended = run(&nginx, &["reload"]).ended(0).says("generation 2 serves with 4 workers; it took ");
    assert_eq!(ended.out.lines().count(), 1);
    let file = nginx.at("nginx.pid").display().to_string();
    run(&nginx, &["reload", "--pid-file", &file]).ended(0).says("generation 3 serves");
    let pid = nginx.master().to_string();
    run(&nginx, &["reload", "--pid", &pid]).ended(0).says("generation 4 serves");
    nginx.must_serve();
    nginx.end(Signal::QUIT);
}

#[test]
fn drained_waits_for_the_older_ones_as_well() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let client = nginx.slow_client();
    let row = format!("pid {}: worker ", client.worker);
    let late = run(&nginx, &["reload", "--drained", "--timeout", "3s"]).ended(1).complains(&row);
    assert!(late.err.contains("generation 1 is left: 1 draining"), "{late:#?}");
    let waiting = start(&nginx, &["reload", "--drained"]);
    waiting.says("generation 1 is left");
    client.finish();
    waiting.end().ended(0).says("generation 3 serves with 2 workers; no older generation is left");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_port_that_is_taken_ends_it_with_3() {
    let _permit = permit();
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("it is bound").to_string();
    let nginx = Nginx::start_ready(setup().workers(2));
    nginx.change(|setup| {
        setup.listen(&address).allow(&format!("{address} failed")).allow("still could not bind()")
    });
    let failed =
        run(&nginx, &["reload"]).ended(3).complains("generation 2 was abandoned").complains("error log");
    assert_eq!(failed.out, "");
    nginx.must_serve();
    drop(taken);
    run(&nginx, &["reload"]).ended(0).says("generation 3 serves");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_configuration_that_is_none_ends_it_with_3_before_the_time_is_over() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2).allow("unknown directive"));
    nginx.configure_nonsense();
    run(&nginx, &["reload", "--timeout", "10m"])
        .ended(3)
        .complains("went back to sleep without beginning a generation")
        .complains("nginx -t");
    nginx.must_serve();
    nginx.change(|setup| setup);
    run(&nginx, &["reload"]).ended(0).says("generation 2 serves");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_configuration_that_takes_long_to_be_refused_is_waited_for() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(1).allow("init_by_lua").allow("stack traceback"));
    // It sleeps for longer than a master must rest to be believed, and fails before it has announced anything.
    nginx.change(|setup| setup.before_init("kit.block(3) error('the application failed')"));
    let waiting = start(&nginx, &["reload"]);
    let failed = waiting.end().ended(3).complains("went back to sleep without beginning a generation");
    let complaints = nginx.log().lines().filter(|line| line.contains("the application failed")).count();
    assert_eq!(complaints, 1, "it was not refused yet when that was said: {failed:#?}");
    nginx.end(Signal::QUIT);
}

#[test]
fn a_server_that_no_longer_has_headcount_is_told_apart() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    nginx.change(|setup| setup.who(Who::Nobody));
    run(&nginx, &["reload"])
        .ended(3)
        .complains("its old workers are leaving, but it has begun no generation");
    nginx.must_serve();
    nginx.end(Signal::QUIT);
}

#[test]
fn nobody_but_the_nodes_master_is_signalled() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(1));
    let folder = Folder::new();
    let pid_file = |text: &str| {
        folder.write("x.pid", text);
        let file = folder.at("x.pid").display().to_string();
        run(&nginx, &["reload", "--pid-file", &file]).ended(4)
    };
    // A stranger, whom HUP would kill.
    let mut stranger = Command::new("sleep").arg("600").spawn().expect("sleep can be started");
    let pid = stranger.id();
    pid_file(&format!("{pid}\n"))
        .complains(&format!("process {pid} is not a live master of any node and was not signalled"));
    assert!(stranger.try_wait().expect("our own child").is_none(), "it was signalled");
    stranger.kill().expect("our own child");
    stranger.wait().expect("our own child");
    pid_file(&pid.to_string()).complains(&format!("there is no process {pid}"));
    let worker = nginx.workers()[0];
    pid_file(&worker.to_string()).complains(&format!("process {worker} is not a live master"));
    for wrong in ["", "nginx", "-1", "0", "12 13", "99999999999", "\u{1b}[2J", "root:$y$secret"] {
        let ended = pid_file(wrong).complains("is not a pid file");
        assert!(wrong.len() < 3 || !ended.err.contains(wrong), "what is in it is shown: {ended:#?}");
    }
    let fifo = folder.at("fifo");
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0)
        .expect("our own folder");
    for no_file in [fifo.display().to_string(), "/dev/zero".to_owned(), folder.path().display().to_string()] {
        run(&nginx, &["reload", "--pid-file", &no_file]).ended(4).complains("it is not a regular file");
    }
    let missing = folder.at("missing.pid").display().to_string();
    run(&nginx, &["reload", "--pid-file", &missing])
        .ended(4)
        .complains("there is no pid file")
        .complains("missing.pid");
    run(&nginx, &["reload", "--pid", "1", "--pid-file", &missing]).ended(2);
    run(&nginx, &["reload", "--timeout", "soon"]).ended(2);
    let mut nobody = program::headcount(["reload"]);
    program::run(nobody.env("HEADCOUNT_RUNTIME_DIR", folder.path())).ended(4).complains("no node was found");
    assert_eq!(nginx.reports().of(Kind::GenerationStarted).len(), 1, "no reload came of all that");
    nginx.end(Signal::QUIT);
    run(&nginx, &["reload"]).ended(4).complains("has no live master").complains("start the server");
}

#[test]
fn a_master_that_hangs_is_not_signalled_and_one_that_starts_slowly_is_not_waited_for_longer_than_asked() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let master = nginx.master();
    nginx.freeze(master);
    run(&nginx, &["reload", "--timeout", "300ms"])
        .ended(1)
        .complains("was busy")
        .complains("was not signalled");
    nginx.thaw(master);
    nginx.change(|setup| setup.before_init("kit.block(3)"));
    run(&nginx, &["reload", "--timeout", "1s"])
        .ended(1)
        .complains("took the signal but has begun no generation yet");
    run(&nginx, &["wait", "--reloaded", "--newer-than", "1"]).ended(0).says("generation 2 serves");
    nginx.change(|setup| setup.before_init(""));
    // The first worker's callback goes on for a while, and the others wait for their own.
    nginx.change(|setup| setup.in_callback("on_worker_start", "if kit.once('slow') then kit.block(5) end"));
    run(&nginx, &["reload", "--timeout", "2s"])
        .ended(1)
        .complains("generation 3: 0 of 2 workers serving")
        .complains("starting for ");
    run(&nginx, &["wait", "--reloaded", "--newer-than", "2"]).ended(0).says("generation 3 serves");
    nginx.end(Signal::QUIT);
}

#[test]
fn an_upgraded_node_is_reloaded_by_its_new_master() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(2));
    let (old, _) = nginx.upgrade();
    nginx.ready(2);
    run(&nginx, &["reload", "--pid", &old.to_string()])
        .ended(4)
        .complains(&format!("master {old} was not signalled"))
        .complains("has taken over by a binary upgrade");
    run(&nginx, &["reload"]).ended(0).says("generation 3 serves");
    process::send(old, Signal::QUIT);
    run(&nginx, &["wait", "--reloaded", "--drained"]).ended(0);
    nginx.end(Signal::QUIT);
}

#[test]
fn a_master_that_ends_while_it_reloads_ends_it_with_3() {
    let _permit = permit();
    let nginx = Nginx::start_ready(setup().workers(1).allow_kills());
    nginx.change(|setup| setup.before_init("kit.once('reading') kit.block(5)"));
    let waiting = start(&nginx, &["reload"]);
    nginx.wait_until("the configuration to be read", || nginx.at("markers/reading").exists().then_some(()));
    waiting.says("took the signal");
    scripted::kill_everything(&nginx);
    waiting.end().ended(3).complains("ended during the reload");
}

/// A server whose configuration reads a number from a file, and takes its time.
fn reads_a_number(seconds: f32) -> Nginx {
    let nginx = Nginx::prepare(setup().workers(2).before_init(&format!(
        r#"
        local file = io.open(kit.folder .. "/number")
        kit.note("read", {{ number = tonumber(file:read("*a")) }})
        file:close()
        kit.block({seconds})
        "#
    )));
    write_number(&nginx.at("number"), 0);
    nginx.run();
    nginx.ready(1);
    nginx
}

fn write_number(file: &Path, number: i64) {
    let temporary = file.with_extension("new");
    std::fs::write(&temporary, number.to_string()).expect("our own folder");
    std::fs::rename(&temporary, file).expect("our own folder");
}

/// What each generation has read, in their order: none was abandoned.
fn read(nginx: &Nginx) -> Vec<i64> {
    nginx.reports().notes("read").iter().map(|note| note.int("number").expect("a number")).collect()
}

/// What `nginx -s reload` of somebody else has set going has read the configuration before ours is sent.
#[test]
fn a_reload_that_is_going_on_is_not_taken_for_the_answer() {
    let _permit = permit();
    let nginx = reads_a_number(0.5);
    nginx.reload();
    nginx.wait_until("the other one to have read its number", || (read(&nginx).len() == 2).then_some(()));
    write_number(&nginx.at("number"), 1);
    let ended = run(&nginx, &["reload"]).ended(0);
    assert_eq!(generation(&ended), 3, "{ended:#?}");
    assert_eq!(read(&nginx), [0, 0, 1]);
    nginx.end(Signal::QUIT);
}

/// Each puts its own number where the configuration reads it, and reloads; what answers it must have read that number,
/// or a later one.
#[test]
fn twenty_at_once_are_each_answered_by_a_generation_that_read_its_configuration() {
    let _permit = permit();
    let nginx = reads_a_number(0.1);
    let number = Mutex::new(0);
    let answers = Mutex::new(Vec::new());
    let registry = nginx.registry();
    let file = nginx.at("number");
    std::thread::scope(|scope| {
        for _ in 0..20 {
            // Twice: the second time, whoever was answered first meets the others.
            scope.spawn(|| {
                for _ in 0..2 {
                    let mine = {
                        let mut number = number.lock().expect("no panic while it is held");
                        *number += 1;
                        write_number(&file, *number);
                        *number
                    };
                    let ended = program::run(&mut scripted::headcount(&registry, &["reload"]));
                    answers.lock().expect("no panic while it is held").push((mine, ended));
                }
            });
        }
    });
    let read = read(&nginx);
    let answers = answers.into_inner().expect("no panic while it was held");
    assert_eq!(answers.len(), 40);
    for (mine, ended) in answers {
        let ended = ended.ended(0);
        let index = usize::try_from(generation(&ended)).expect("small") - 1;
        assert!(
            read[index] >= mine,
            "{mine} was answered by one that read {}: {ended:#?}\n{read:?}",
            read[index]
        );
    }
    run(&nginx, &["wait", "--reloaded", "--drained"]).ended(0);
    nginx.end(Signal::QUIT);
}
