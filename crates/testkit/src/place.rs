//! Where the library, the Lua modules and nginx are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use crate::setup::Server;

/// Debian's server.
pub const NGINX: &str = "/usr/sbin/nginx";

/// Folder with nginx's dynamic modules.
pub const MODULES: &str = "/usr/lib/nginx/modules";

/// Fails a test early, and with the mend, on a machine without the server.
pub fn require_nginx() {
    for file in [NGINX, &format!("{MODULES}/ngx_http_lua_module.so")] {
        assert!(Path::new(file).exists(), "{file} is missing: apt-get install nginx libnginx-mod-http-lua");
    }
}

/// Folder with `libheadcount.so`: `HEADCOUNT_LIB_DIR`, or in the target folder that this test program
/// lies in. The newest of all profiles: `make test` builds the optimised one for tests that are not.
pub fn library_folder() -> PathBuf {
    if let Some(folder) = env::var_os("HEADCOUNT_LIB_DIR") {
        return PathBuf::from(folder);
    }
    // target/PROFILE/deps/TEST
    let program = env::current_exe().expect("the kernel names the running program");
    program
        .ancestors()
        .nth(3)
        .into_iter()
        .flat_map(|target| ["release", "debug"].map(|profile| target.join(profile)))
        .filter_map(|folder| {
            let built = fs::metadata(folder.join("libheadcount.so")).ok()?.modified().ok()?;
            Some((built, folder))
        })
        .max()
        .map(|(_, folder)| folder)
        .unwrap_or_else(|| {
            panic!(
                "there is no libheadcount.so in the target folder of {}: run `make test`, or \
                 `cargo build -p headcount-ffi`, or set HEADCOUNT_LIB_DIR",
                program.display()
            )
        })
}

/// The native module for a server: `HEADCOUNT_MODULE` for Debian's, or what `make module` has left in the target folder.
pub fn module(server: Server) -> PathBuf {
    match (server, env::var_os("HEADCOUNT_MODULE")) {
        (Server::Debian, Some(file)) => PathBuf::from(file),
        (Server::Debian, None) => built("debian", "ngx_headcount_module.so"),
        (Server::Vendored, _) => built("vendored", "ngx_headcount_module.so"),
    }
}

/// The server under test, by its full path: otherwise USR2 cannot start it again.
pub fn nginx(server: Server) -> PathBuf {
    match server {
        Server::Debian => NGINX.into(),
        Server::Vendored => built("vendored", "nginx"),
    }
}

fn built(which: &str, file: &str) -> PathBuf {
    let program = env::current_exe().expect("the kernel names the running program");
    // target/PROFILE/deps/TEST
    let path = program.ancestors().nth(3).map(|target| target.join("module").join(which).join(file));
    path.filter(|path| path.exists()).unwrap_or_else(|| {
        panic!(
            "there is no module/{which}/{file} in the target folder of {}: run `make module NGINX={which}`",
            program.display()
        )
    })
}

/// Folder with `resty/headcount.lua`: `HEADCOUNT_LUA_DIR`, or the repository's.
pub fn lua_folder() -> PathBuf {
    if let Some(folder) = env::var_os("HEADCOUNT_LUA_DIR") {
        return PathBuf::from(folder);
    }
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lua");
    assert!(folder.join("resty/headcount.lua").exists(), "{} has no resty/headcount.lua", folder.display());
    folder.canonicalize().expect("the folder was there a moment ago")
}

/// A file of this name in the target folder of the test, beside its program, or one of another profile.
fn beside(name: &str, how: &str) -> PathBuf {
    let program = env::current_exe().expect("the kernel names the running program");
    // target/PROFILE/deps/TEST
    let found = program
        .ancestors()
        .nth(3)
        .into_iter()
        .flat_map(|target| ["release", "debug"].map(|profile| target.join(profile).join(name)))
        .filter_map(|file| Some((fs::metadata(&file).ok()?.modified().ok()?, file)))
        .max();
    let missing = || panic!("there is no {name} in the target folder of {}: {how}", program.display());
    found.map_or_else(missing, |(_, file)| file)
}

/// The program `headcount`, the newest of all profiles.
pub fn program() -> PathBuf {
    beside("headcount", "run `cargo build -p headcount-cli`")
}

/// The program of a local user who means harm.
pub fn attacker() -> PathBuf {
    beside("attacker", "run `cargo build -p testkit`")
}

/// The library of a worker that means harm.
pub fn attackers_library() -> PathBuf {
    beside("deps/libattacker.so", "run `cargo build -p testkit`")
}
