//! Roles and locks in Lua, in a real nginx, beside lua-resty-lock in the same one.
//!
//! `RESTY_LOCK` names a checkout of lua-resty-lock; without it, ours is measured alone.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use headcount_bench::{Sample, heading, line};
use testkit::{Integration, Nginx, Setup, Signal, process};

fn main() {
    let only = std::env::var("ONLY").unwrap_or_default();
    let parts: [(&str, fn()); 3] = [("lua-calls", calls), ("lua-lock", contended), ("election", elections)];
    for (name, part) in parts {
        if only.is_empty() || only.split(',').any(|o| o == name) {
            part();
        }
    }
}

/// The folder to put into `package.path`; `None`: not compared.
fn resty_lock() -> Option<PathBuf> {
    let folder = PathBuf::from(std::env::var_os("HEADCOUNT_RESTY_LOCK").filter(|f| !f.is_empty())?);
    let folder = folder.join("lib");
    assert!(
        folder.join("resty/lock.lua").exists(),
        "{} has no resty/lock.lua: RESTY_LOCK names a checkout of lua-resty-lock",
        folder.display()
    );
    Some(folder)
}

/// What all of it needs: a dictionary, a clock in seconds, and the other library as `theirs`, if it is there.
fn prelude() -> String {
    let theirs = match resty_lock() {
        Some(folder) => format!(
            r#"package.path = "{}/?.lua;" .. package.path
            theirs = assert(require("resty.lock"):new("bench", {{ timeout = 20, exptime = 30 }}))"#,
            folder.display()
        ),
        None => String::new(),
    };
    format!(
        r#"
        local theirs
        {theirs}
        local headcount = require "resty.headcount"
        local ffi = require "ffi"
        pcall(ffi.cdef, "typedef struct {{ long sec; long nsec; }} testkit_timespec; int clock_gettime(int clock, testkit_timespec *out);")
        local ts = ffi.new("testkit_timespec")
        local function seconds()
            ffi.C.clock_gettime(7, ts)
            return tonumber(ts.sec) + tonumber(ts.nsec) / 1e9
        end
        "#
    )
}

fn figures(nginx: &Nginx, path: &str) -> Vec<f64> {
    let answer = testkit::http::get(&nginx.socket(), path).expect("an answer").body;
    answer
        .split_whitespace()
        .map(|n| n.parse().unwrap_or_else(|_| panic!("the worker said {answer:?}")))
        .collect()
}

fn calls() {
    heading("roles and locks in Lua, ns a call, nobody else wants them");
    let page = prelude()
        + r#"
        local function ns(calls, f)
            for i = 1, calls / 10 do f() end
            local begun = seconds()
            for i = 1, calls do f() end
            return (seconds() - begun) / calls * 1e9
        end
        local function nothing() end
        local leads, ours, other, kept = {}, {}, {}, {}
        for round = 1, 21 do
            leads[round] = ns(1000000, function() return headcount.is_leader("bench") end)
            ours[round] = ns(50000, function() return headcount.with_lock("bench", nothing) end)
            if theirs then
                local function section(lock)
                    assert(lock:lock("bench"))
                    nothing()
                    return lock:unlock()
                end
                other[round] = ns(50000, function() return section(require("resty.lock"):new("bench")) end)
                kept[round] = ns(50000, function() return section(theirs) end)
            end
        end
        assert(headcount.is_leader("bench"))
        for _, all in ipairs { leads, ours, other, kept } do
            table.sort(all)
            ngx.say(all[11] or "")
        end
    "#;
    let stands = r#"kit.after_join = function() require("resty.headcount").leader("bench", {}) end"#;
    let setup = Setup::new(Integration::Lua)
        .workers(1)
        .http("lua_shared_dict bench 1m;")
        .after_init(stands)
        .page("/leads", "ngx.say(require('resty.headcount').is_leader('bench') and 1 or 0)")
        .page("/costs", &page);
    let nginx = Nginx::start_ready(setup);
    nginx.wait_until("a leader", || (figures(&nginx, "/leads") == [1.0]).then_some(()));
    let all = figures(&nginx, "/costs");
    line("is_leader", &format!("{:.1} ns", all[0]), "under 20 ns");
    match all[2..] {
        // One object holds one lock at a time, so its documentation makes one for each request.
        [each, kept] => line(
            "with_lock",
            &format!(
                "{:.0} ns; lua-resty-lock {each:.0} ns, ratio {:.2}; with one object for all {kept:.0} ns",
                all[1],
                each / all[1]
            ),
            "at least 2 times faster",
        ),
        _ => {
            line("with_lock", &format!("{:.0} ns, not compared (make bench RESTY_LOCK=folder)", all[1]), "-")
        }
    }
}

/// What all workers have used of a processor.
fn processor_time(nginx: &Nginx) -> Duration {
    let ticks = |pid: i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a worker that lives");
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or("").split_whitespace().collect();
        fields[11].parse::<u64>().expect("utime") + fields[12].parse::<u64>().expect("stime")
    };
    // 100 ticks a second, as everywhere on Linux.
    Duration::from_millis(nginx.workers().into_iter().map(ticks).sum::<u64>() * 10)
}

fn contended() {
    heading("one lock among 8 workers, in Lua: from a release to the next holder");
    let run = |ours: bool| {
        let section = match ours {
            true => r#"assert(headcount.with_lock("ring", section, { timeout = 20 }))"#,
            false => r#"assert(theirs:lock("ring")) section() theirs:unlock()"#,
        };
        let body = format!(
            r#"
            kit.after_join = function()
                {}
                local shared, took = ngx.shared.bench, {{}}
                local function section()
                    local last = shared:get("released")
                    if last then took[#took + 1] = (seconds() - last) * 1e6 end
                    ngx.sleep(0.001)
                    shared:set("released", seconds())
                end
                local function work(premature)
                    if premature then return end
                    if not shared:get("go") then return ngx.timer.at(0.01, work) end
                    for i = 1, 200 do {section} end
                    kit.note("took", {{ all = table.concat(took, " ") }})
                end
                ngx.timer.at(0.01, work)
            end
            "#,
            prelude()
        );
        let setup = Setup::new(Integration::Lua)
            .workers(8)
            .http("lua_shared_dict bench 1m;")
            .after_init(&body)
            .page("/go", "ngx.shared.bench:set('go', true) ngx.say('1')");
        let nginx = Nginx::start_ready(setup);
        // The start is over.
        std::thread::sleep(Duration::from_secs(1));
        let (begun, before) = (Instant::now(), processor_time(&nginx));
        figures(&nginx, "/go");
        let all = nginx.wait_for("all tenures", Duration::from_secs(120), |all| {
            let notes = all.notes("took");
            let text = |n: &&testkit::Report| n.event["all"].as_str().unwrap_or_default().to_owned();
            (notes.len() == 8).then(|| notes.iter().map(text).collect::<Vec<_>>().join(" "))
        });
        let (wall, worked) = (begun.elapsed(), processor_time(&nginx) - before);
        let micros = all.split_whitespace().map(|n| n.parse::<f64>().expect("a number") / 1e6);
        let sample = Sample::new(micros.map(|s| Duration::from_secs_f64(s.max(0.0))).collect());
        let name = if ours { "headcount" } else { "lua-resty-lock" };
        line(name, &sample.to_string(), if ours { "p50 under 100 µs" } else { "-" });
        line("", &format!("{wall:.2?}, of which {worked:.2?} of a processor"), "waiters cost nothing");
    };
    run(true);
    if resty_lock().is_some() {
        run(false);
    }
}

fn elections() {
    heading("SIGKILL to the leader to the election of the next, 4 workers");
    let stands = r#"
        kit.after_join = function()
            require("resty.headcount").leader("bench", { on_elected = function() kit.note("elected") end })
        end
    "#;
    let nginx = Nginx::start_ready(Setup::new(Integration::Lua).after_init(stands).allow_kills());
    let observer = headcount::Observer::open(&nginx.registry()).expect("the server's registry");
    let (mut elected, mut told) = (Vec::new(), Vec::new());
    let mut cursor = headcount::Cursor::oldest();
    let mut leader = None;
    for n in 1..=200 {
        let (pid, at) = nginx.wait_until("a leader", || {
            let batch = observer.events(&mut cursor, 1000).ok()?;
            let election = |e: &&headcount::Event| e.kind == headcount::Kind::LeaderElected;
            batch.events.iter().rfind(election).map(|e| (e.pid as i32, Duration::from_nanos(e.boot_ns)))
        });
        let heard = nginx.wait_for("on_elected", Duration::from_secs(10), |all| {
            let notes = all.notes("elected");
            (notes.len() == n).then(|| Duration::from_nanos(notes[n - 1].at))
        });
        if let Some(killed) = leader {
            elected.push(at.saturating_sub(killed));
            told.push(heard.saturating_sub(killed));
        }
        // All are there again, and at rest.
        nginx.wait_until("four workers that serve", || {
            let all = observer.snapshot().ok()?.processes.into_iter();
            let serving =
                all.filter(|p| p.role == headcount::Role::Worker && p.state == headcount::State::Serving);
            (serving.count() == 4).then_some(())
        });
        leader = Some(now());
        process::send(pid, Signal::KILL);
    }
    line("to the event", &Sample::new(elected).to_string(), "p50 under 1 ms, p99 under 5 ms");
    line("to on_elected in Lua", &Sample::new(told).to_string(), "-");
}

fn now() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(t.tv_sec as u64, t.tv_nsec as u32)
}
