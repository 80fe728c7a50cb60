//! What a test's nginx is to be like, and its configuration file.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use crate::artifacts::{self, Server};
use crate::native;
use crate::process;
use crate::room::Room;

/// How headcount gets into the server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Integration {
    /// `resty.headcount` over the C library.
    Lua,
    /// The module of crates/headcount-nginx. What it reports is what it writes to error.log; Lua only serves the
    /// tests' pages.
    Native,
    /// Both: the module is on, and `resty.headcount` finds it and is in charge. Its callbacks are the reports.
    Both,
}

/// Who registers what.
#[derive(Clone, Debug)]
pub enum Who {
    /// The native interface, all callbacks recorded.
    Native,
    /// `resty.worker.manager`, its four callbacks recorded.
    Seed,
    /// Directives of the test's own, in place of ours.
    Own(String),
    /// Plain nginx.
    Nobody,
}

/// A server to be; every method returns it changed.
#[derive(Clone, Debug)]
pub struct Setup {
    pub(crate) integration: Integration,
    pub(crate) who: Who,
    pub(crate) workers: u32,
    pub(crate) daemon: bool,
    pub(crate) single: bool,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) allowed: Vec<String>,
    pub(crate) prefix: Option<PathBuf>,
    pub(crate) server: Server,
    /// Words before the command that starts it: the namespaces that it is to live in.
    pub(crate) before: Vec<String>,
    /// A process of its pid namespace, where that is not the test's.
    pub(crate) namesake: Option<i32>,
    lua: bool,
    has_http: bool,
    directive: Option<String>,
    pub(crate) options: Vec<(String, String)>,
    hooks: Vec<(String, String)>,
    on_event: bool,
    before_init: String,
    after_init: String,
    exit_worker: bool,
    main: String,
    http: String,
    locations: String,
    listens: Vec<String>,
}

impl Setup {
    /// Four workers under a daemonised master, all callbacks recorded, the registry in the test's folder.
    pub fn new(integration: Integration) -> Self {
        Self {
            integration,
            who: Who::Native,
            workers: 4,
            daemon: true,
            single: false,
            env: Vec::new(),
            allowed: Vec::new(),
            prefix: None,
            server: Server::Debian,
            before: Vec::new(),
            namesake: None,
            lua: true,
            has_http: true,
            directive: None,
            options: vec![("path".into(), "\"@FOLDER@/run/registry\"".into())],
            hooks: Vec::new(),
            on_event: false,
            before_init: String::new(),
            after_init: String::new(),
            exit_worker: false,
            main: String::new(),
            http: String::new(),
            locations: String::new(),
            listens: Vec::new(),
        }
    }

    /// The same server with another integration.
    pub fn by(mut self, integration: Integration) -> Self {
        self.integration = integration;
        self
    }

    /// No Lua in the server, and so none of the pages that need it.
    pub fn without_lua(mut self) -> Self {
        self.lua = false;
        self
    }

    /// No `http` block, as in a server for streams or mail only.
    pub fn without_http(mut self) -> Self {
        self.has_http = false;
        self.without_lua()
    }

    /// Another nginx. Without Lua.
    pub fn server(mut self, server: Server) -> Self {
        self.server = server;
        // Where it was built to log to until it has read its configuration.
        self.without_lua().allow("could not open error log file")
    }

    /// The module's directives, in place of the one that the options make.
    pub fn directive(mut self, conf: &str) -> Self {
        self.directive = Some(conf.to_owned());
        self
    }

    /// `worker_processes`.
    pub fn workers(mut self, n: u32) -> Self {
        self.workers = n;
        self
    }

    /// `daemon off`: the process that reads the configuration is the master.
    pub fn foreground(mut self) -> Self {
        self.daemon = false;
        self
    }

    /// `master_process off`.
    pub fn single_process(mut self) -> Self {
        self.single = true;
        self.daemon = false;
        self.workers = 1;
        self
    }

    /// Who registers the callbacks.
    pub fn who(mut self, who: Who) -> Self {
        self.who = who;
        self
    }

    /// An option of `init`, as a Lua expression; `@FOLDER@` stands for the test's folder.
    pub fn option(mut self, name: &str, lua: &str) -> Self {
        self.options.retain(|(known, _)| known != name);
        self.options.push((name.to_owned(), lua.to_owned()));
        self
    }

    /// No `path`: the default place, which is this test's `run` folder by `HEADCOUNT_RUNTIME_DIR`.
    pub fn default_place(mut self) -> Self {
        self.options.retain(|(known, _)| known != "path");
        self
    }

    /// Lua that a callback runs after it has reported. It has the event `e` and the recorder `kit`.
    pub fn in_callback(mut self, callback: &str, lua: &str) -> Self {
        self.hooks.push((callback.to_owned(), lua.to_owned()));
        self
    }

    /// Records `on_event` too.
    pub fn with_on_event(mut self) -> Self {
        self.on_event = true;
        self
    }

    /// Calls `exit_worker()` in `exit_worker_by_lua_block`.
    pub fn with_exit_worker(mut self) -> Self {
        self.exit_worker = true;
        self
    }

    /// Lua at the start of `init_by_lua_block`.
    pub fn before_init(mut self, lua: &str) -> Self {
        lua.clone_into(&mut self.before_init);
        self
    }

    /// Lua at the end of `init_by_lua_block`.
    pub fn after_init(mut self, lua: &str) -> Self {
        lua.clone_into(&mut self.after_init);
        self
    }

    /// Directives of the main context.
    pub fn main(mut self, conf: &str) -> Self {
        let _ = writeln!(self.main, "{conf}");
        self
    }

    /// Directives of the http block.
    pub fn http(mut self, conf: &str) -> Self {
        let _ = writeln!(self.http, "{conf}");
        self
    }

    /// One more page: its location, and Lua that answers.
    pub fn page(mut self, location: &str, lua: &str) -> Self {
        let _ =
            writeln!(self.locations, "        location = {location} {{ content_by_lua_block {{ {lua} }} }}");
        self
    }

    /// One more `listen`.
    pub fn listen(mut self, address: &str) -> Self {
        self.listens.push(address.to_owned());
        self
    }

    /// No `listen` but the usual one.
    pub fn no_other_listen(mut self) -> Self {
        self.listens.clear();
        self
    }

    /// A variable of the environment that nginx gets, and keeps for its workers and for USR2.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// nginx's `-p`; the test's folder otherwise.
    pub fn prefix(mut self, folder: &Path) -> Self {
        self.prefix = Some(folder.to_owned());
        self
    }

    /// In these namespaces.
    pub fn inside(mut self, room: &Room) -> Self {
        self.before = room.enter();
        self.namesake = Some(room.pid());
        self
    }

    /// With more words before the command that starts it.
    pub fn started_by(mut self, words: &[&str]) -> Self {
        self.before.extend(words.iter().map(|&word| word.to_owned()));
        self
    }

    /// A worker of it attacks when it is asked for `/attack?kind=NAME` at the socket `attack.sock`; the answer is the
    /// attacker's pid. The library must lie in the test's folder.
    pub fn with_a_traitor(self) -> Self {
        self.http(TRAITOR)
    }

    /// A line of error.log that holds this text is expected, whatever its level.
    pub fn allow(mut self, text: &str) -> Self {
        self.allowed.push(text.to_owned());
        self
    }

    /// Workers will be killed: nginx calls that an alert.
    pub fn allow_kills(self) -> Self {
        self.allow("exited on signal 9")
    }

    /// The configuration file.
    pub fn render(&self, folder: &Path) -> String {
        let modules = artifacts::MODULES;
        let on = |yes| if yes { "on" } else { "off" };
        let user = if process::is_root() && !self.single { "user www-data;" } else { "" };
        let mut keep = String::from("env HEADCOUNT_RUNTIME_DIR;\n");
        for (name, _) in &self.env {
            let _ = writeln!(keep, "env {name};");
        }
        let lua_modules = if self.lua && artifacts::openresty().is_none() {
            format!(
                "load_module {modules}/ndk_http_module.so;\nload_module {modules}/ngx_http_lua_module.so;\n"
            )
        } else {
            String::new()
        };
        let native = self.integration != Integration::Lua && matches!(self.who, Who::Native);
        let (module, status) = if native {
            (native::load(self.server, &self.options, self.directive.as_deref()), self.status_page())
        } else if self.lua {
            (String::new(), LUA_STATUS)
        } else {
            (String::new(), "")
        };
        let http = if self.has_http { self.http_block(status) } else { String::new() };
        let text = format!(
            r#"{lua_modules}{module}daemon {daemon};
master_process {master};
worker_processes {workers};
{user}
pid @FOLDER@/nginx.pid;
lock_file @FOLDER@/nginx.lock;
error_log @FOLDER@/error.log info;
worker_rlimit_core 0;
{keep}{main}
events {{ worker_connections 256; }}
{http}"#,
            daemon = on(self.daemon),
            master = on(!self.single),
            workers = self.workers,
            main = self.main,
        );
        text.replace("@FOLDER@", &folder.display().to_string())
    }

    fn status_page(&self) -> &'static str {
        if self.integration == Integration::Both { LUA_STATUS } else { native::STATUS }
    }

    fn http_block(&self, status: &str) -> String {
        let listens: String =
            self.listens.iter().map(|address| format!("        listen {address};\n")).collect();
        format!(
            r#"
http {{
    access_log off;
    client_body_temp_path @FOLDER@/temp/body;
    proxy_temp_path @FOLDER@/temp/proxy;
    fastcgi_temp_path @FOLDER@/temp/fastcgi;
    uwsgi_temp_path @FOLDER@/temp/uwsgi;
    scgi_temp_path @FOLDER@/temp/scgi;
    client_body_timeout 1h;
    {integration}
    {http}
    server {{
        listen unix:@FOLDER@/http.sock;
{listens}{locations}{pages}{status}
    }}
}}
"#,
            http = self.http,
            integration = if self.lua { self.integration_conf() } else { String::new() },
            locations = if self.lua { LOCATIONS } else { PING },
            pages = self.locations,
        )
    }

    fn integration_conf(&self) -> String {
        match self.integration {
            Integration::Lua | Integration::Both => self.lua_conf(),
            Integration::Native => native::pages(&self.before_init, &self.after_init),
        }
    }

    fn lua_conf(&self) -> String {
        let mut paths = String::from("lua_package_path \"@FOLDER@/?.lua;");
        // Plain nginx is tested without the library being there.
        if !matches!(self.who, Who::Nobody) {
            let _ = writeln!(paths, "{}/?.lua;;\";", artifacts::lua_folder().display());
            let _ = writeln!(
                paths,
                "    lua_package_cpath \"@FOLDER@/?.so;{}/?.so;;\";",
                artifacts::library_folder().display()
            );
        } else {
            paths.push_str(";\";\n");
        }
        let hooks: String = self
            .hooks
            .iter()
            .map(|(callback, lua)| {
                format!("        kit.hooks.{callback} = function(e, kit)\n{lua}\n        end\n")
            })
            .collect();
        let options: String = self.options.iter().map(|(name, lua)| format!("{name} = {lua}, ")).collect();
        let init = |call: &str| {
            format!(
                r#"{paths}
    init_by_lua_block {{
        local kit = require "recorder"
        kit.folder = "@FOLDER@"
{before}
{hooks}{call}
{after}
    }}
"#,
                before = self.before_init,
                after = self.after_init,
            )
        };
        let exit = if self.exit_worker {
            "    exit_worker_by_lua_block { require(\"recorder\").exit_worker() }\n"
        } else {
            ""
        };
        match &self.who {
            Who::Native => {
                let call = format!("        kit.init({{ {options} }}, {})", self.on_event);
                init(&call) + "    init_worker_by_lua_block { require(\"recorder\").init_worker() }\n" + exit
            }
            Who::Seed => {
                let call = format!("        kit.init_seed({{ {options} }})");
                "lua_shared_dict my_shm 5m;\n    ".to_owned()
                    + &init(&call)
                    + "    init_worker_by_lua_block { require(\"recorder\").init_worker_seed() }\n"
            }
            Who::Own(conf) => paths + conf,
            Who::Nobody => init(""),
        }
    }
}

const PING: &str = "        location = /ping { return 200 \"pong\\n\"; }\n";

const LOCATIONS: &str = r#"        location = /ping { return 200 "pong\n"; }
        location = /pid { content_by_lua_block { ngx.say(ngx.worker.pid()) } }
        location = /hold { lua_http10_buffering off; content_by_lua_block { require("recorder").hold() } }
        location = /spin { content_by_lua_block { require("recorder").spin(tonumber(ngx.var.arg_s)) ngx.say("done") } }
        location = /block { content_by_lua_block { require("recorder").block(tonumber(ngx.var.arg_s)) ngx.say("done") } }
        location = /exit { content_by_lua_block { os.exit(tonumber(ngx.var.arg_code)) } }
        location = /clock { content_by_lua_block { ngx.say(require("recorder").wall_clock()) } }
"#;

const TRAITOR: &str = r#"server {
        listen unix:@FOLDER@/attack.sock;
        location = /attack { content_by_lua_block {
            local ffi = require "ffi"
            pcall(ffi.cdef, "int attacker_begin(const char *attack, const char *folder, const char *strangers);")
            local library = ffi.load("@FOLDER@/libattacker.so")
            ngx.say(library.attacker_begin(ngx.var.arg_kind, "@FOLDER@/markers", ngx.var.arg_strangers))
        } }
    }"#;

const LUA_STATUS: &str = r#"        location = /status { content_by_lua_block { require("recorder").answer(function() return require("resty.headcount").status() end) } }
        location = /events { content_by_lua_block { require("recorder").answer(function() return require("resty.headcount").events(tonumber(ngx.var.arg_from or 0)) end) } }
        location = /counts { content_by_lua_block { require("recorder").answer(function() return require("resty.headcount").counts() end) } }
"#;
