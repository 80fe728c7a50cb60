//! What can be wrong with etcd, in words that say what to do.

/// Why something could not be done with etcd.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// It does not answer, or has no leader.
    #[error("etcd does not answer: {0}")]
    Away(String),
    /// User or password are wrong, or it wants some.
    #[error("etcd does not accept this user: {0}. See cluster.user and cluster.password_file")]
    Stranger(String),
    /// The user may not do this.
    #[error("etcd does not allow it: {what}: {why}. Its user's role needs readwrite on the prefix {prefix}")]
    Denied {
        /// What was to be done.
        what: &'static str,
        /// etcd's own words.
        why: String,
        /// The keys that are needed.
        prefix: String,
    },
    /// Its disk, or its quota.
    #[error("etcd takes no writes: {0}. Compact and defragment it, raise its quota, then disarm the alarm")]
    Full(String),
    /// All hosts together ask for more than it can do.
    #[error("etcd has too much to do: {0}")]
    Busy(String),
    /// It is behind with its writes. One that it has not confirmed in time may be made all the same.
    #[error("etcd writes too slowly: {0}")]
    Slow(String),
    /// The lease is gone: for the others, this host is lost.
    #[error("the lease has run out: to the others this host is lost")]
    LeaseGone,
    /// What was to be read is compacted.
    #[error("etcd has compacted its history")]
    Compacted,
    /// There is another host of this name.
    #[error("{0}")]
    Taken(String),
    /// Something else.
    #[error("etcd: {what}: {why}")]
    Other {
        /// What was to be done.
        what: &'static str,
        /// etcd's own words.
        why: String,
    },
}

impl Trouble {
    /// Whether it takes no writes, and is there all the same: so leases can be kept.
    pub(crate) fn refuses_writes(&self) -> bool {
        matches!(self, Trouble::Full(_) | Trouble::Busy(_) | Trouble::Slow(_))
    }

    pub(crate) fn of(error: &etcd_client::Error, what: &'static str, prefix: &str) -> Trouble {
        let etcd_client::Error::GRpcStatus(status) = error else {
            return match error {
                etcd_client::Error::LeaseKeepAliveError(why) if why.contains("not found") => {
                    Trouble::LeaseGone
                }
                etcd_client::Error::LeaseKeepAliveError(_) | etcd_client::Error::WatchError(_) => {
                    Trouble::Away(error.to_string())
                }
                etcd_client::Error::TransportError(transport) => Trouble::Other {
                    what: "connect",
                    why: with_cause("no connection can be made", transport),
                },
                _ => Trouble::Other { what, why: error.to_string() },
            };
        };
        let why = with_cause(status.message(), status);
        // The numbers are gRPC's. Of some failures, older versions tell only the text.
        match i32::from(status.code()) {
            _ if why.contains("too many requests") => Trouble::Busy(why),
            _ if why.contains("waiting for the applied index") => Trouble::Slow(why),
            7 => Trouble::Denied { what, why, prefix: prefix.to_owned() },
            16 => Trouble::Stranger(why),
            3 if why.contains("auth") || why.contains("user name is empty") => Trouble::Stranger(why),
            9 if why.contains("authentication is not enabled") => {
                Trouble::Stranger(format!("{why}: it has no users, so leave out cluster.user"))
            }
            5 if why.contains("lease") => Trouble::LeaseGone,
            8 if why.contains("space") => Trouble::Full(why),
            8 => Trouble::Busy(why),
            11 if why.contains("compacted") => Trouble::Compacted,
            1 | 4 | 14 => Trouble::Away(why),
            // tonic's own, of a connection that broke.
            2 if why.contains("transport") || why.contains("h2") || why.contains("error reading") => {
                Trouble::Away(why)
            }
            _ => Trouble::Other { what, why },
        }
    }
}

impl Trouble {
    /// Of a first connection, with what to look at: libraries name only what they have seen.
    pub(crate) fn at_first(self) -> Trouble {
        match self {
            Trouble::Away(why) => Trouble::Away(with_advice(why)),
            Trouble::Other { what, why } => Trouble::Other { what, why: with_advice(why) },
            other => other,
        }
    }
}

/// What the words of TLS, HTTP/2 and gRPC mean for whoever has written the configuration.
const ADVICE: [(&str, &str); 2] = [
    ("received fatal alert: ", WANTS_CERTIFICATE),
    ("invalid peer certificate: ", "see cluster.ca, and by which name cluster.endpoints has it"),
];
const WANTS_CERTIFICATE: &str = "etcd wants a certificate, or not this one: see cluster.cert and cluster.key";
/// Whoever speaks something else is noticed by one of these.
const OTHERS: [&str; 8] = [
    "broken pipe",
    "connection closed",
    "unexpected end of file",
    "h2 protocol error",
    "handshake eof",
    "corrupt message",
    "compression flag",
    "connection reset",
];

fn with_advice(why: String) -> String {
    let is_other = OTHERS.iter().any(|words| why.contains(words));
    match ADVICE.iter().find(|(words, _)| why.contains(words)) {
        Some((_, advice)) => format!("{why} ({advice})"),
        // Whoever wants a certificate may have closed the connection before that can be read.
        None if is_other && why.contains("https://") => {
            format!("{why} (is it etcd? If so, {WANTS_CERTIFICATE})")
        }
        None if is_other => format!("{why} (is it etcd? http or https?)"),
        None => why,
    }
}

/// What etcd or the connection says, and what is at the bottom of it: "transport error" alone helps nobody.
fn with_cause(text: &str, error: &dyn std::error::Error) -> String {
    let mut bottom = error.source();
    while let Some(below) = bottom.and_then(std::error::Error::source) {
        bottom = Some(below);
    }
    match bottom.map(ToString::to_string).filter(|cause| !text.contains(cause.as_str())) {
        Some(cause) => format!("{text}: {cause}"),
        None => text.to_owned(),
    }
}
