//! What tests run: where nginx, the Lua modules and everything that was built lie.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

/// Which nginx.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    /// Debian's, or the OpenResty that the tests are to run with: see [`openresty`].
    Debian,
    /// The current one that `make module NGINX=vendored` builds on the way. It has no Lua.
    Vendored,
}

/// Debian's server.
pub const NGINX: &str = "/usr/sbin/nginx";

/// Folder with nginx's dynamic modules.
pub const MODULES: &str = "/usr/lib/nginx/modules";

/// The nginx of an OpenResty, in place of Debian's, if `HEADCOUNT_OPENRESTY` names one. It has Lua compiled in.
pub fn openresty() -> Option<PathBuf> {
    env::var_os("HEADCOUNT_OPENRESTY").filter(|path| !path.is_empty()).map(PathBuf::from)
}

/// Fails a test early, and says how to fix it, on a machine without the server.
pub fn require_nginx() {
    if let Some(nginx) = openresty() {
        return assert!(nginx.is_file(), "HEADCOUNT_OPENRESTY={} is no file", nginx.display());
    }
    for file in [NGINX, &format!("{MODULES}/ngx_http_lua_module.so")] {
        assert!(Path::new(file).exists(), "{file} is missing: apt-get install nginx libnginx-mod-http-lua");
    }
}

/// Folder with `libheadcount.so`: `HEADCOUNT_LIB_DIR`, or in the target folder of this test, as all that is built.
pub fn library_folder() -> PathBuf {
    if let Some(folder) = env::var_os("HEADCOUNT_LIB_DIR") {
        return PathBuf::from(folder);
    }
    let library = newest(
        "libheadcount.so",
        "run `make test`, or `cargo build -p headcount-ffi`, or set HEADCOUNT_LIB_DIR",
    );
    library.parent().map(Path::to_owned).unwrap_or_default()
}

/// The native module for a server: `HEADCOUNT_MODULE` for Debian's or OpenResty, or what `make module` has left in the target folder.
pub fn module(server: Server) -> PathBuf {
    match (server, env::var_os("HEADCOUNT_MODULE")) {
        (Server::Debian, Some(file)) => PathBuf::from(file),
        (Server::Debian, None) => {
            built(if openresty().is_some() { "source" } else { "debian" }, "ngx_headcount_module.so")
        }
        (Server::Vendored, _) => built("vendored", "ngx_headcount_module.so"),
    }
}

/// The server under test, by its full path: otherwise USR2 cannot start it again.
pub fn nginx(server: Server) -> PathBuf {
    match server {
        Server::Debian => openresty().unwrap_or_else(|| NGINX.into()),
        Server::Vendored => built("vendored", "nginx"),
    }
}

fn built(which: &str, file: &str) -> PathBuf {
    let target = target_folder();
    let path = target.join("module").join(which).join(file);
    let how = format!("run `make module NGINX={which}`");
    assert!(path.exists(), "there is no module/{which}/{file} in {}: {how}", target.display());
    path
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

/// The target folder that this program lies in: a test as target/PROFILE/deps/TEST, a program as target/PROFILE/PROGRAM.
fn target_folder() -> PathBuf {
    let program = env::current_exe().expect("the kernel names the running program");
    let deep = program.parent().is_some_and(|folder| folder.ends_with("deps"));
    let target = program.ancestors().nth(if deep { 3 } else { 2 });
    target.map(Path::to_owned).expect("cargo puts programs two folders deep")
}

/// A file that was built: in the profile that `HEADCOUNT_TEST_PROFILE` names, or the newest of all.
fn newest(name: &str, how: &str) -> PathBuf {
    let target = target_folder();
    let profiles = match env::var("HEADCOUNT_TEST_PROFILE") {
        Ok(profile) => vec![profile],
        Err(_) => vec!["release".to_owned(), "debug".to_owned()],
    };
    let files = profiles.into_iter().map(|profile| target.join(profile).join(name));
    let built = files.filter_map(|file| Some((fs::metadata(&file).ok()?.modified().ok()?, file)));
    let missing = || panic!("there is no {name} in {}: {how}", target.display());
    built.max().map_or_else(missing, |(_, file)| file)
}

/// The program `headcount`.
pub fn program() -> PathBuf {
    newest("headcount", "run `cargo build -p headcount-cli`")
}

/// An example server of the core.
pub fn example(name: &str) -> PathBuf {
    newest(&format!("examples/{name}"), "run `cargo build -p headcount --examples`")
}

/// The program of a local user who means harm.
pub fn attacker() -> PathBuf {
    newest("attacker", "run `cargo build -p testkit`")
}

/// The library of a worker that means harm.
pub fn attackers_library() -> PathBuf {
    newest("deps/libattacker.so", "run `cargo build -p testkit`")
}
