//! The agent's configuration: one file, of which nothing is guessed and nothing skipped.

mod check;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use crate::regular_file;

/// Where it is, unless another one is named.
pub const DEFAULT_FILE: &str = "/etc/headcount/agent.toml";
/// The folder of the socket is made by whoever starts the agent.
pub use headcount_cluster_client::SOCKET as DEFAULT_SOCKET;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// What the agent does on its host.
    pub agent: AgentConfig,
    /// Where the hosts find each other. Without it the agent is one exporter for its host.
    pub cluster: Option<ClusterConfig>,
    /// What is to be done on events: the program's business, which reads them from the same file.
    hook: Vec<IgnoredAny>,
}

/// `[agent]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AgentConfig {
    /// Where it answers on this host.
    pub socket: PathBuf,
    /// Where it answers on the network, if anywhere.
    #[serde(deserialize_with = "address")]
    pub listen: Option<SocketAddr>,
    /// Nodes beside those of root and of the agent's user.
    pub registries: Vec<PathBuf>,
    /// Which nodes it reloads when the cluster asks for it.
    pub reload: Reload,
    /// Who may have roles, locks and onces of the cluster, beside root and the agent's own user: users, `@groups`, `*` for everybody.
    pub claims: Vec<String>,
}

impl Default for AgentConfig {
    fn default() -> AgentConfig {
        AgentConfig {
            socket: DEFAULT_SOCKET.into(),
            listen: None,
            registries: Vec::new(),
            reload: Reload::default(),
            claims: Vec::new(),
        }
    }
}

/// Which nodes may be reloaded on request: none unless it is said.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(untagged, expecting = "true, false or a list of nodes' names was expected")]
pub enum Reload {
    /// All, or none.
    All(bool),
    /// Those of these names.
    Nodes(Vec<String>),
}

impl Default for Reload {
    fn default() -> Reload {
        Reload::All(false)
    }
}

impl Reload {
    /// Whether the node of this name may be reloaded.
    #[must_use]
    pub fn allows(&self, node: &str) -> bool {
        match self {
            Reload::All(all) => *all,
            Reload::Nodes(names) => names.iter().any(|name| name == node),
        }
    }

    /// Whether none may.
    #[must_use]
    pub fn is_off(&self) -> bool {
        match self {
            Reload::All(all) => !all,
            Reload::Nodes(names) => names.is_empty(),
        }
    }
}

/// `[cluster]`.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// The cluster's name: whoever shares it and an etcd belongs to it.
    pub name: String,
    /// `http://host:port` or `https://host:port`, of each member.
    pub endpoints: Vec<String>,
    /// This host's name in the cluster; the machine's if none is given.
    #[serde(default = "machine_name")]
    pub host: String,
    /// What all keys begin with.
    #[serde(default = "default_prefix")]
    pub prefix: String,
    /// So long after its last sign of life a host is lost.
    #[serde(default = "default_ttl", deserialize_with = "time")]
    pub ttl: Duration,
    /// So long is known of a host that is lost, or has left.
    #[serde(default = "default_forget_after", deserialize_with = "time")]
    pub forget_after: Duration,
    /// So long are events kept.
    #[serde(default = "default_events_for", deserialize_with = "time")]
    pub events_for: Duration,
    /// How often a host writes, at most, when it has a lot to tell for long. The first ten writes are free.
    #[serde(default = "default_writes")]
    pub writes_per_second: u32,
    /// Who it is for etcd.
    pub user: Option<String>,
    /// The file with the password, so that this one need not be secret.
    pub password_file: Option<PathBuf>,
    /// The certificates of the authorities that etcd's own is by.
    pub ca: Option<PathBuf>,
    /// The agent's own certificate, and its key.
    pub cert: Option<PathBuf>,
    /// The key to `cert`.
    pub key: Option<PathBuf>,
}

fn machine_name() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

fn default_prefix() -> String {
    "/headcount".to_owned()
}

const fn default_ttl() -> Duration {
    Duration::from_secs(5)
}

const fn default_forget_after() -> Duration {
    Duration::from_secs(24 * 3600)
}

const fn default_events_for() -> Duration {
    Duration::from_secs(3600)
}

const fn default_writes() -> u32 {
    5
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SocketAddr>, D::Error> {
    let text = String::deserialize(from)?;
    let wrong =
        |_| format!("{text:?} is not an address and a port, such as \"127.0.0.1:9469\" or \"[::1]:9469\"");
    text.parse().map(Some).map_err(wrong).map_err(de::Error::custom)
}

/// A time such as `5s`, of a setting.
///
/// # Errors
/// What is no such time.
pub fn time<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
    headcount_report::duration(&String::deserialize(from)?).map_err(de::Error::custom)
}

/// The file cannot be used: which, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct ConfigError {
    path: PathBuf,
    why: String,
}

/// No configuration, password or certificate is longer.
const LONGEST_FILE: usize = 1 << 20;

/// The text of a configuration.
///
/// # Errors
/// It cannot be read, or is no file of text.
pub fn text(path: &Path) -> Result<String, ConfigError> {
    let wrong = |why: String| ConfigError { path: path.to_owned(), why };
    // The one device that is a file of text.
    if path == Path::new("/dev/null") {
        return Ok(String::new());
    }
    let bytes = regular_file::read_whole(path, LONGEST_FILE).map_err(|error| wrong(error.to_string()))?;
    String::from_utf8(bytes).map_err(|_| wrong("it is not text in UTF-8".to_owned()))
}

/// What the text of a configuration says.
///
/// # Errors
/// What it says is not allowed, with the line.
pub fn parse<T: DeserializeOwned>(path: &Path, text: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        // One line, and nothing of what stands in the file: somebody may have written a password there.
        let why = match error.span() {
            Some(span) => {
                let (line, column) = position(text, span.start);
                let why = without_text(error.message());
                let key = setting(text, line).filter(|key| !why.contains(&format!("`{key}`")));
                let key = key.map_or(String::new(), |key| format!("{key}: "));
                format!("line {line}, column {column}: {key}{why}")
            }
            None => error.to_string(),
        };
        ConfigError { path: path.to_owned(), why: why.trim_end().replace('\n', " ") }
    })
}

/// From 1 on.
fn position(text: &str, at: usize) -> (usize, usize) {
    let before = text.get(..at).unwrap_or(text);
    let line = before.rsplit('\n').next().unwrap_or_default();
    (before.matches('\n').count() + 1, line.chars().count() + 1)
}

/// Where something else was expected, serde says the text that stands there.
fn without_text(message: &str) -> String {
    match (message.split_once(": string \""), message.rsplit_once("\", expected ")) {
        (Some((what, _)), Some((_, expected))) => format!("{what}: a text, expected {expected}"),
        _ => message.to_owned(),
    }
}

/// What is set in this line, if that is known.
fn setting(text: &str, line: usize) -> Option<&str> {
    let (key, _) = text.lines().nth(line - 1)?.split_once('=')?;
    // What is no TOML may be anything.
    toml::from_str::<IgnoredAny>(text).ok().map(|_| key.trim())
}

/// A password, a key or a certificate: what is wrong with it, in words.
pub(crate) fn file(what: &str, path: &Path) -> Result<Vec<u8>, String> {
    regular_file::read_whole(path, LONGEST_FILE)
        .map_err(|error| format!("cluster.{what}: {}: {error}", path.display()))
}

/// The password itself.
pub(crate) fn password(path: &Path) -> Result<String, String> {
    let text = String::from_utf8(file("password_file", path)?)
        .map_err(|_| format!("cluster.password_file: {}: it is not text in UTF-8", path.display()))?;
    match text.trim_end_matches(['\r', '\n']) {
        "" => Err(format!("cluster.password_file: {}: there is no password in it", path.display())),
        password => Ok(password.to_owned()),
    }
}

impl Config {
    /// Reads the file, and looks at the files that it names.
    ///
    /// # Errors
    /// What cannot be read, is not known or is not allowed, with the line.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        Config::of(path, &text(path)?)
    }

    /// The same of what was read there.
    ///
    /// # Errors
    /// The same.
    pub fn of(path: &Path, text: &str) -> Result<Config, ConfigError> {
        let config: Config = parse(path, text)?;
        config.check().map_err(|why| ConfigError { path: path.to_owned(), why })?;
        Ok(config)
    }

    /// Where the agent of this host answers, for those who may not read what the file names, or have none.
    ///
    /// # Errors
    /// A file that is there cannot be understood.
    pub fn socket(path: &Path) -> Result<PathBuf, ConfigError> {
        match text(path) {
            Ok(text) => Ok(parse::<Config>(path, &text)?.agent.socket),
            Err(_) if path == Path::new(DEFAULT_FILE) => Ok(DEFAULT_SOCKET.into()),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
#[path = "config_tests.rs"]
mod tests;
