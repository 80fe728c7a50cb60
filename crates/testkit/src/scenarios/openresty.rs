//! What only OpenResty's nginx has.

use rustix::process::Signal;

use crate::{Integration, Nginx, Setup, artifacts, process};

/// Whether the tests run with OpenResty; says so where they do not.
fn there() -> bool {
    let there = artifacts::openresty().is_some();
    if !there {
        eprintln!(
            "skipped: Debian's nginx has none; no OpenResty was named (make test OPENRESTY=/path/to/nginx)"
        );
    }
    there
}

/// Row 25: the privileged agent runs `init_worker` as workers do, and is none.
pub fn privileged_agent(i: Integration) {
    if !there() {
        return;
    }
    let enable = "assert(require(\"ngx.process\").enable_privileged_agent(16))";
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).before_init(enable).allow_kills());
    let is_agent = |title: &str| title.contains("privileged agent");
    let agent = nginx.wait_until("the agent", || nginx.titled(nginx.master(), is_agent).first().copied());
    let shown = |pid: i32| {
        nginx.wait_until(&format!("the agent {pid} as a helper in the status"), || {
            let status = nginx.json("/status");
            super::identity::processes(&status)
                .into_iter()
                .any(|p| p["pid"] == pid && p["role"] == "helper")
                .then_some(())
        });
    };
    shown(agent);
    // Its death is no worker's death, and its successor is a helper again.
    process::send(agent, Signal::KILL);
    let next = nginx.wait_until("another agent", || {
        nginx.titled(nginx.master(), is_agent).into_iter().find(|&pid| pid != agent)
    });
    shown(next);
    nginx.reload_and_settle(2);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

/// Lua in stream beside Lua in http does not make a second generation, nor keep anybody.
pub fn lua_in_stream(i: Integration) {
    if !there() {
        return;
    }
    let stream = r#"stream {
        lua_shared_dict streamed 1m;
        init_by_lua_block { streamed = true }
        init_worker_by_lua_block { assert(streamed) }
        server { listen unix:@FOLDER@/stream.sock; content_by_lua_block { ngx.say("streamed") } }
    }"#;
    let nginx = Nginx::start_ready(Setup::new(i).workers(2).main(stream));
    nginx.reload_and_settle(2);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}

/// Row 40: each request has a Lua VM of its own, which is no second server.
pub fn code_cache_off(i: Integration) {
    if !there() {
        return;
    }
    let setup = Setup::new(i).workers(2).http("lua_code_cache off;").allow("lua_code_cache is off");
    let nginx = Nginx::start_ready(setup);
    for _ in 0..3 {
        let status = nginx.json("/status");
        let workers = super::identity::processes(&status).into_iter().filter(|p| p["role"] == "worker");
        assert_eq!(workers.count(), 2, "a request's status is not about the server: {status}");
    }
    nginx.reload_and_settle(2);
    nginx.wait_ended(1);
    let mut ledger = nginx.end(Signal::QUIT);
    ledger.cold_start(2);
    ledger.reloaded(2, 2, 2);
    ledger.graceful_end(1, 2, true);
    ledger.graceful_end(2, 2, false);
    ledger.nothing_else();
}
