//! Rows 39 and 47: what runs while a worker goes.

use std::fs;
use std::process::Command;

use crate::wait::PATIENCE;
use crate::{Integration, Kind, Nginx, Setup, Signal, Who, process};

/// A C module of Lua's: `require "late"` gives a function that gives 42.
const LATE: &str = "
typedef struct lua_State lua_State;
extern void lua_pushcclosure(lua_State *, int (*)(lua_State *), int);
extern void lua_pushnumber(lua_State *, double);
static int answer(lua_State *L) { lua_pushnumber(L, 42); return 1; }
int luaopen_late(lua_State *L) { lua_pushcclosure(L, answer, 0); return 1; }
";

/// Uses what a VM that is being closed has no more: a C module's code, what `ffi.gc` looks after, a compiled regex.
const USE: &str = "kit.note('used', {
  answer = require('late')(), kept = kit.kept[0], matched = ngx.re.match('a 1234', '[0-9]+', 'jo')[0],
})";

const LOAD: &str = "do
  local kit, ffi = require 'recorder', require 'ffi'
  package.cpath = '@FOLDER@/?.so;' .. package.cpath
  pcall(ffi.cdef, 'void *malloc(size_t size); void free(void *what);')
  kit.kept = ffi.gc(ffi.cast('int *', ffi.C.malloc(4096)), function(kept) kept[0] = -1 ffi.C.free(kept) end)
  kit.kept[0] = 77
  require 'late'
  ngx.re.match('a 1', '[0-9]+', 'jo')
end";

fn build_late(nginx: &Nginx) {
    let (source, module) = (nginx.at("late.c"), nginx.at("late.so"));
    fs::write(&source, LATE).expect("our own folder");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&module).arg(&source).status();
    assert!(
        built.is_ok_and(|status| status.success()),
        "cc, which links Rust's programs too, makes {module:?}"
    );
}

/// Every exit callback used it all, and got what it should.
fn all_was_whole(nginx: &Nginx, callbacks: usize) {
    let all = nginx.reports();
    let used = all.notes("used");
    assert_eq!(used.len(), callbacks, "{all}\n{}", nginx.log());
    for note in used {
        assert_eq!(
            (note.int("answer"), note.int("kept"), note.text("matched")),
            (Some(42), Some(77), "1234")
        );
    }
}

const ENDS: [Signal; 3] = [Signal::TERM, Signal::INT, Signal::QUIT];

/// Row 39: whatever was loaded after `init()`, in the master or in the worker.
pub fn c_modules(i: Integration) {
    for signal in ENDS {
        for in_worker in [false, true] {
            let setup =
                Setup::new(i).in_callback("on_worker_exit", USE).in_callback("on_generation_exit", USE);
            let setup = match in_worker {
                true => setup.in_callback("on_worker_start", LOAD),
                false => setup.after_init(LOAD),
            };
            let nginx = Nginx::prepare(setup);
            build_late(&nginx);
            nginx.run();
            nginx.ready(1);
            nginx.reload();
            nginx.wait_for("the old generation's end", PATIENCE, |all| {
                all.at_least(1, Kind::GenerationEnded, 1)?;
                all.at_least(4, Kind::WorkerStarted, 2)
            });
            nginx.settled();
            all_was_whole(&nginx, 5);
            let mut ledger = nginx.end(signal);
            all_was_whole(&nginx, 10);
            ledger.cold_start(4);
            ledger.reloaded(2, 4, 4);
            ledger.graceful_end(1, 4, true);
            match signal {
                Signal::QUIT => ledger.graceful_end(2, 4, false),
                _ => ledger.fast_end(2, 4, false),
            };
            ledger.nothing_else();
        }
    }
}

/// Row 39 for those who are told to leave their configuration as it is.
pub fn c_modules_of_the_seeds_users(i: Integration) {
    for signal in ENDS {
        let setup = Setup::new(i)
            .workers(2)
            .who(Who::Seed)
            .option("shm", "\"my_shm\"")
            .in_callback("worker_exit", USE)
            .in_callback("master_exit", USE)
            .after_init(LOAD);
        let nginx = Nginx::prepare(setup);
        build_late(&nginx);
        nginx.run();
        nginx.wait_for("both workers", PATIENCE, |all| (all.called("worker_start").len() == 2).then_some(()));
        nginx.end(signal);
        all_was_whole(&nginx, 3);
    }
}

/// Row 47: TERM does not wait for a callback that yields, so another worker runs it; QUIT does.
pub fn told_to_leave_in_a_callback(i: Integration) {
    const YIELD: &str = "kit.note('begun', { retry = e.retry }) ngx.sleep(1) kit.note('ended', {})";
    for signal in [Signal::TERM, Signal::INT, Signal::QUIT] {
        let nginx = Nginx::start_ready(Setup::new(i).allow_kills().in_callback("on_worker_died", YIELD));
        process::send(nginx.workers()[0], Signal::KILL);
        let runner = nginx.wait_for("the callback", PATIENCE, |all| Some(all.notes("begun").first()?.runner));
        process::send(runner, signal);
        nginx.wait_gone(runner);
        nginx.wait_for("its end", PATIENCE, |all| all.notes("ended").first().map(drop));
        nginx.wait_for("two replacements", PATIENCE, |all| all.at_least(6, Kind::WorkerStarted, 1));
        let events = nginx.json("/events").to_string();
        let all = nginx.end(Signal::QUIT).all().clone();
        let (begun, ended) = (all.notes("begun"), all.notes("ended"));
        assert_eq!(ended.len(), 1, "{all}");
        if signal == Signal::QUIT {
            assert_eq!((begun.len(), ended[0].runner), (1, runner), "{all}");
            continue;
        }
        assert_eq!((begun.len(), begun[0].flag("retry"), begun[1].flag("retry")), (2, false, true), "{all}");
        assert!(ended[0].runner == begun[1].runner && ended[0].runner != runner, "{all}");
        assert!(events.contains("callback_died") && !events.contains("callback_failed"), "{events}");
        let line =
            nginx.wait_for_log("what became of it", |line| line.contains("another process runs it again"));
        assert!(line.contains("[error]") && line.contains("worker_died"), "{line}");
    }
}

/// Row 2 where memory that is given back is overwritten, as a busy server's is: nobody uses what belonged to the old
/// configuration.
pub fn nothing_of_the_old_configuration_is_used(i: Integration) {
    let nginx = Nginx::start_ready(Setup::new(i).env("MALLOC_PERTURB_", "90"));
    for generation in [2, 3] {
        nginx.reload_and_settle(generation);
        nginx.wait_ended(generation - 1);
    }
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    ledger.reloaded(2, 4, 4);
    ledger.reloaded(3, 4, 4);
    ledger.graceful_end(1, 4, true);
    ledger.graceful_end(2, 4, true);
    ledger.graceful_end(3, 4, false);
    ledger.nothing_else();
}
