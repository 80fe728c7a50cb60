//! The agent's configuration: one file, of which nothing is guessed and nothing skipped.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::de::{self, IgnoredAny};
use serde::{Deserialize, Deserializer};

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
    pub listen: Option<std::net::SocketAddr>,
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
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
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

impl Config {
    /// Reads the file, and looks at the files that it names.
    ///
    /// # Errors
    /// What cannot be read, is not known or is not allowed, with the line.
    pub fn read(path: &Path) -> Result<Config, ConfigError> {
        let wrong = |why: String| ConfigError { path: path.to_owned(), why };
        let text = fs::read_to_string(path).map_err(|e| wrong(e.to_string()))?;
        let config: Config = toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
        config.check().map_err(wrong)?;
        Ok(config)
    }

    /// Where the agent of this host answers, for those who may not read what the file names, or have none.
    ///
    /// # Errors
    /// A file that is there cannot be understood.
    pub fn socket(path: &Path) -> Result<PathBuf, ConfigError> {
        let wrong = |why: String| ConfigError { path: path.to_owned(), why };
        match fs::read_to_string(path) {
            Ok(text) => {
                let config: Config =
                    toml::from_str(&text).map_err(|e| wrong(e.to_string().trim_end().to_owned()))?;
                Ok(config.agent.socket)
            }
            Err(_) if path == Path::new(DEFAULT_FILE) => Ok(DEFAULT_SOCKET.into()),
            Err(error) => Err(wrong(error.to_string())),
        }
    }

    fn check(&self) -> Result<(), String> {
        if !self.agent.socket.is_absolute() {
            return Err(format!("agent.socket: {} is not an absolute path", self.agent.socket.display()));
        }
        if let Some(path) = self.agent.registries.iter().find(|path| !path.is_absolute()) {
            return Err(format!("agent.registries: {} is not an absolute path", path.display()));
        }
        self.cluster.as_ref().map_or(Ok(()), ClusterConfig::check)
    }
}

impl ClusterConfig {
    fn check(&self) -> Result<(), String> {
        for (what, name) in [("name", &self.name), ("host", &self.host)] {
            let fits =
                (1..=128).contains(&name.len()) && !name.contains(|c: char| c == '/' || c.is_control());
            if !fits {
                return Err(format!(
                    "cluster.{what}: {name:?} is not a name: 1 to 128 bytes, without / and control characters"
                ));
            }
        }
        if !self.prefix.starts_with('/') || self.prefix.ends_with('/') || self.prefix.len() > 128 {
            return Err(format!(
                "cluster.prefix: {:?} must begin with /, and not end with it, such as \"/headcount\"",
                self.prefix
            ));
        }
        if self.endpoints.is_empty() {
            return Err(
                "cluster.endpoints: name at least one, such as [\"http://127.0.0.1:2379\"]".to_owned()
            );
        }
        for endpoint in &self.endpoints {
            let rest = endpoint.strip_prefix("http://").or(endpoint.strip_prefix("https://"));
            let port =
                rest.and_then(|rest| rest.rsplit_once(':')).and_then(|(_, port)| port.parse::<u16>().ok());
            if port.is_none() {
                return Err(format!(
                    "cluster.endpoints: {endpoint:?} is not http://HOST:PORT or https://HOST:PORT, such as \"http://127.0.0.1:2379\""
                ));
            }
        }
        let https = self.endpoints.iter().filter(|endpoint| endpoint.starts_with("https://")).count();
        if https > 0 && https < self.endpoints.len() {
            return Err("cluster.endpoints: all must be http://, or all https://".to_owned());
        }
        let has_tls = self.ca.is_some() || self.cert.is_some() || self.key.is_some();
        match (https > 0, has_tls) {
            (false, true) => return Err("cluster.ca, cert and key need https:// endpoints".to_owned()),
            (true, _) if self.ca.is_none() => {
                return Err("cluster.ca: https:// needs the certificate of the authority that etcd's is by"
                    .to_owned());
            }
            _ => {}
        }
        if self.cert.is_some() != self.key.is_some() {
            return Err("cluster.cert and cluster.key go together".to_owned());
        }
        if self.user.is_some() != self.password_file.is_some() {
            return Err("cluster.user and cluster.password_file go together".to_owned());
        }
        let bounds = [
            ("ttl", self.ttl, 2, 300),
            ("events_for", self.events_for, 60, 30 * 86_400),
            ("forget_after", self.forget_after, 60, 365 * 86_400),
        ];
        for (what, value, least, most) in bounds {
            if !(Duration::from_secs(least)..=Duration::from_secs(most)).contains(&value)
                || value.subsec_nanos() != 0
            {
                return Err(format!("cluster.{what}: whole seconds, from {least}s to {most}s"));
            }
        }
        if !(1..=1000).contains(&self.writes_per_second) {
            return Err("cluster.writes_per_second: 1 to 1000".to_owned());
        }
        for (what, secret, path) in [
            ("password_file", true, &self.password_file),
            ("key", true, &self.key),
            ("ca", false, &self.ca),
            ("cert", false, &self.cert),
        ] {
            let Some(path) = path else { continue };
            let found = fs::read(path).and_then(|_| fs::metadata(path));
            let found = found.map_err(|e| format!("cluster.{what}: {}: {e}", path.display()))?;
            if secret && found.mode() & 0o004 != 0 {
                return Err(format!("cluster.{what}: everybody may read {0}: chmod o= {0}", path.display()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Config, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("agent.toml");
        fs::write(&path, text).unwrap();
        Config::read(&path).map_err(|error| {
            let text = error.to_string();
            assert!(text.starts_with(&path.display().to_string()), "{text}");
            text
        })
    }

    const CLUSTER: &str = "[cluster]\nname = \"shop\"\nendpoints = [\"http://127.0.0.1:2379\"]\n";

    #[test]
    fn an_empty_file_is_an_exporter() {
        let config = read("").unwrap();
        assert_eq!(config, Config::default());
        assert_eq!((config.cluster, config.agent.listen), (None, None));
    }

    #[test]
    fn nothing_is_reloaded_for_others_unless_it_is_said() {
        for (text, nginx, other) in [
            ("", false, false),
            ("reload = false", false, false),
            ("reload = true", true, true),
            ("reload = [\"nginx\"]", true, false),
            ("reload = []", false, false),
        ] {
            let reload = read(&format!("[agent]\n{text}\n")).unwrap().agent.reload;
            assert_eq!((reload.allows("nginx"), reload.allows("other")), (nginx, other), "{text}");
            assert_eq!(reload.is_off(), !nginx, "{text}");
        }
    }

    #[test]
    fn what_is_not_said_has_its_default() {
        let cluster = read(CLUSTER).unwrap().cluster.unwrap();
        assert_eq!((cluster.ttl, &*cluster.prefix), (Duration::from_secs(5), "/headcount"));
        assert_eq!(cluster.host, machine_name());
    }

    #[test]
    fn the_example_that_is_installed_is_valid() {
        let text = include_str!("../../../packaging/examples/agent.toml");
        assert_eq!(read(text).unwrap().cluster, None, "nothing is sent anywhere unless it is asked for");
        let all: String =
            text.lines().map(|line| line.strip_prefix("#: ").unwrap_or(line).to_owned() + "\n").collect();
        // It names files that are not here.
        let error = read(&all).unwrap_err();
        assert!(
            error.contains("cluster.password_file: /etc/headcount/etcd-password: No such file"),
            "{error}"
        );
    }

    #[test]
    fn what_is_wrong_is_said_with_its_place() {
        for (text, said) in [
            ("[agnet]\n", "unknown field `agnet`"),
            ("[agent]\nsokcet = \"/x\"\n", "unknown field `sokcet`"),
            ("[agent]\nsocket = \"x\"\n", "agent.socket: x is not an absolute path"),
            ("[agent]\nlisten = \"9100\"\n", "listen"),
            ("[agent\n", "line 1"),
            ("[agent]\nreload = \"yes\"\n", "true, false or a list of nodes' names was expected"),
            ("[cluster]\nname = \"shop\"\n", "missing field `endpoints`"),
            (&format!("{CLUSTER}ttl = 5\n"), "line 4"),
            (&format!("{CLUSTER}ttl = \"5 lightyears\"\n"), "is not a time"),
            (&format!("{CLUSTER}ttl = \"1s\"\n"), "cluster.ttl: whole seconds, from 2s"),
            (&format!("{CLUSTER}host = \"a/b\"\n"), "cluster.host: \"a/b\" is not a name"),
            (&format!("{CLUSTER}prefix = \"x/\"\n"), "cluster.prefix: \"x/\" must begin with /"),
            (&format!("{CLUSTER}ca = \"/x\"\n"), "need https://"),
            (&format!("{CLUSTER}user = \"x\"\n"), "go together"),
            (&CLUSTER.replace("http:", "https:"), "cluster.ca: https:// needs"),
            (&CLUSTER.replace("http://", ""), "\"127.0.0.1:2379\" is not http://HOST:PORT"),
            (&CLUSTER.replace("\"http://127.0.0.1:2379\"", ""), "name at least one"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(said), "{text}\n{error}");
        }
    }

    #[test]
    fn a_secret_that_everybody_may_read_is_refused() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let secret = folder.path().join("password");
        fs::write(&secret, "x").unwrap();
        let text = format!("{CLUSTER}user = \"u\"\npassword_file = {secret:?}\n");
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(read(&text).unwrap_err().contains("everybody may read"));
        fs::set_permissions(&secret, fs::Permissions::from_mode(0o640)).unwrap();
        read(&text).unwrap();
    }
}
