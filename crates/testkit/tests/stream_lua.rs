//! Row 40 with the other ngx_lua, that of `stream`. Debian has no package of it: HEADCOUNT_STREAM_LUA names a folder with
//! ngx_stream_module.so and ngx_stream_lua_module.so for Debian's nginx.

use std::path::Path;

use testkit::{Integration, Kind, Nginx, Setup, Signal, permit};

/// A `stream` block whose Lua calls `init` and `init_worker`, or `None` where there is no such module.
fn stream(dictionary: &str) -> Option<String> {
    let folder =
        std::env::var("HEADCOUNT_STREAM_LUA").unwrap_or_else(|_| testkit::artifacts::MODULES.to_owned());
    if !Path::new(&folder).join("ngx_stream_lua_module.so").exists() {
        eprintln!(
            "skipped: {folder} has no ngx_stream_lua_module.so; HEADCOUNT_STREAM_LUA names another folder"
        );
        return None;
    }
    let (lua, library) = (testkit::artifacts::lua_folder(), testkit::artifacts::library_folder());
    Some(format!(
        "load_module {folder}/ngx_stream_module.so;
load_module {folder}/ngx_stream_lua_module.so;
stream {{
    lua_package_path \"{}/?.lua;;\";
    lua_package_cpath \"{}/?.so;;\";
    {dictionary}
    init_by_lua_block {{ require('resty.headcount').init {{ path = '@FOLDER@/run/registry' }} }}
    init_worker_by_lua_block {{ require('resty.headcount').init_worker() }}
    server {{ listen unix:@FOLDER@/stream.sock; content_by_lua_block {{ ngx.say('x') }} }}
}}",
        lua.display(),
        library.display()
    ))
}

#[test]
fn a_second_init_is_refused_with_one_line() {
    let _permit = permit();
    let Some(stream) = stream("") else { return };
    // The stream block comes first, so its Lua is the first: the node is its own, and the callbacks of http's never run.
    let nginx = Nginx::start(Setup::new(Integration::Lua).main(&stream));
    nginx.reload();
    nginx.wait_until("two loads refused", || {
        let log = nginx.log();
        let lines =
            log.lines().filter(|line| !line.starts_with("nginx: ") && line.contains("in the other Lua"));
        (lines.count() == 2).then_some(())
    });
    let begin = std::time::Instant::now();
    nginx.end(Signal::QUIT);
    assert!(begin.elapsed().as_secs() < 5, "the workers were kept");
}

#[test]
fn one_generation_for_each_load_beside_the_module() {
    let _permit = permit();
    let Some(stream) = stream("lua_shared_dict streams 1m;") else { return };
    let nginx = Nginx::start_ready(Setup::new(Integration::Native).main(&stream));
    nginx.reload_and_settle(2);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(4);
    ledger.reloaded(2, 4, 4);
    ledger.graceful_end(1, 4, true);
    ledger.graceful_end(2, 4, false);
    ledger.holds("no ghost", ledger.all().of(Kind::GenerationAbandoned).is_empty());
    ledger.nothing_else();
}
