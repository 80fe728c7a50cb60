//! Row 40: a VM that is not the one in which the node was opened.

use crate::{Integration, Kind, Nginx, Setup, Signal, process};

/// As the default place does: root has another than its workers.
const WHERE: &str = "\"@FOLDER@/run/\" .. require(\"ffi\").C.getuid() .. \".registry\"";

/// With `lua_code_cache off` each request has a VM of its own, which runs `init_by_lua` once more, in a worker without rights.
pub fn code_cache_off(i: Integration) {
    let setup = Setup::new(i)
        .before_init("pcall(require('ffi').cdef, 'int getuid(void);')")
        .option("path", WHERE)
        .http("lua_code_cache off;")
        .allow("lua_code_cache is off");
    let nginx = Nginx::prepare(setup);
    nginx.copy_library();
    nginx.run();
    nginx.ready(1);
    let node = |nginx: &Nginx| {
        let status = nginx.json("/status")[0].clone();
        let listed = status["processes"].as_array().expect("a list").iter();
        let mut pids: Vec<i64> = listed.map(|p| p["pid"].as_i64().expect("a pid")).collect();
        let mut truth: Vec<i64> =
            nginx.workers().into_iter().chain([nginx.master()]).map(i64::from).collect();
        pids.sort_unstable();
        truth.sort_unstable();
        assert_eq!(pids, truth, "{status:#}");
        let path = status["path"].as_str().expect("a registry's file").to_owned();
        assert!(path.starts_with(nginx.at("run").to_str().expect("text")), "{path}");
        path
    };
    let path = node(&nginx);
    nginx.reload_and_settle(2);
    nginx.wait_ended(1);
    assert_eq!(node(&nginx), path);
    process::send(nginx.workers()[0], Signal::TERM);
    nginx.wait_for("a replacement", crate::wait::PATIENCE, |all| all.at_least(5, Kind::WorkerStarted, 2));
    nginx.settled();
    assert_eq!(node(&nginx), path);
    let files: Vec<_> = std::fs::read_dir(nginx.at("run")).expect("our folder").flatten().collect();
    assert_eq!(files.len(), 2, "a registry and its lock file: {files:?}");
    let ledger = nginx.end(Signal::QUIT);
    ledger.holds("both ended", ledger.all().of(Kind::GenerationEnded).len() == 2);
}
