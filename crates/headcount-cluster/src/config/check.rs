//! What a configuration may say. Nothing of a secret is in what is wrong with it.

use std::fs;
use std::net::Ipv6Addr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use super::{ClusterConfig, Config, file, password};

/// What the kernel takes.
const LONGEST_SOCKET: usize = 107;

/// Whether it is `http://HOST:PORT` or `https://HOST:PORT`, and nothing besides.
pub(super) fn is_endpoint(text: &str) -> bool {
    let rest = text.strip_prefix("http://").or(text.strip_prefix("https://"));
    let Some((host, port)) = rest.and_then(|rest| rest.rsplit_once(':')) else { return false };
    let is_host = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b".-_".contains(&byte))
        }
    };
    is_host
        && port.bytes().all(|byte| byte.is_ascii_digit())
        && port.parse::<u16>().is_ok_and(|port| port > 0)
}

impl Config {
    pub(super) fn check(&self) -> Result<(), String> {
        if !self.agent.socket.is_absolute() {
            return Err(format!("agent.socket: {} is not an absolute path", self.agent.socket.display()));
        }
        let length = self.agent.socket.as_os_str().as_bytes().len();
        if length > LONGEST_SOCKET {
            return Err(format!(
                "agent.socket: {} has {length} bytes, and a socket's path {LONGEST_SOCKET} at most",
                self.agent.socket.display()
            ));
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
        let is_path = self.prefix.starts_with('/') && !self.prefix.ends_with('/');
        if !is_path || self.prefix.len() > 128 || self.prefix.contains(char::is_control) {
            return Err(format!(
                "cluster.prefix: {:?} must begin with /, and not end with it, such as \"/headcount\"; up to 128 bytes, without \
                 control characters",
                self.prefix
            ));
        }
        if self.endpoints.is_empty() {
            return Err(
                "cluster.endpoints: name at least one, such as [\"http://127.0.0.1:2379\"]".to_owned()
            );
        }
        for endpoint in &self.endpoints {
            // With a password in it, perhaps: that is not said.
            if endpoint.contains('@') {
                return Err("cluster.endpoints: there is an @ in one: a user and password belong in cluster.user and \
                            cluster.password_file"
                    .to_owned());
            }
            if !is_endpoint(endpoint) {
                return Err(format!(
                    "cluster.endpoints: {endpoint:?} is not http://HOST:PORT or https://HOST:PORT, such as \"http://127.0.0.1:2379\" or \
                     \"http://[::1]:2379\""
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
        for (what, path) in [("password_file", &self.password_file), ("key", &self.key)] {
            let Some(path) = path else { continue };
            file(what, path)?;
            let found = fs::metadata(path).map_err(|e| format!("cluster.{what}: {}: {e}", path.display()))?;
            if found.mode() & 0o004 != 0 {
                return Err(format!("cluster.{what}: everybody may read {0}: chmod o= {0}", path.display()));
            }
        }
        if let Some(path) = &self.password_file {
            password(path)?;
        }
        for (what, path, mark) in [
            ("ca", &self.ca, "-----BEGIN CERTIFICATE-----"),
            ("cert", &self.cert, "-----BEGIN CERTIFICATE-----"),
            ("key", &self.key, "PRIVATE KEY-----"),
        ] {
            let Some(path) = path else { continue };
            let bytes = file(what, path)?;
            let text = String::from_utf8_lossy(&bytes);
            if !text.contains(mark) {
                let mark = mark.trim_matches('-');
                return Err(format!("cluster.{what}: {}: there is no {mark} in it (PEM)", path.display()));
            }
            if what == "key" && text.contains("ENCRYPTED") {
                return Err(format!(
                    "cluster.key: {0} is encrypted, and nobody is there to type its passphrase: openssl pkey -in {0}",
                    path.display()
                ));
            }
        }
        Ok(())
    }
}
