//! Delivers by a POST to a URL.

use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use headcount_report::age;
use ureq::Agent;
use ureq::tls::{RootCerts, TlsConfig};

use super::attempt::Attempt;
use super::stop::{Stop, TICK};

/// Posts to the URLs of rules.
pub struct Webhook {
    agent: Agent,
    timeout: Duration,
}

impl Webhook {
    pub fn new(timeout: Duration) -> Webhook {
        // Only one is linked in, and rustls wants it named. Named already: by an earlier webhook of this process.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let tls = TlsConfig::builder().root_certs(RootCerts::PlatformVerifier).build();
        let config = Agent::config_builder()
            .timeout_global(Some(timeout))
            .http_status_as_error(false)
            // A redirected POST may arrive as a GET, so the rule must name the final URL.
            .max_redirects(0)
            .max_redirects_will_error(false)
            // Events are rare: a kept connection would be closed by the other side before the next one.
            .max_idle_connections(0)
            .user_agent(concat!("headcount/", env!("CARGO_PKG_VERSION")))
            .tls_config(tls)
            .build();
        Webhook { agent: config.new_agent(), timeout }
    }

    /// Posts a document, in a thread: the journal is read and signals are heard while it waits for the answer.
    pub fn post(&self, url: &str, id: &str, body: String, stop: &Stop, tick: &mut dyn FnMut()) -> Attempt {
        let request = self
            .agent
            .post(url)
            .header("Content-Type", "application/json")
            // By this the server can drop what comes twice.
            .header("Idempotency-Key", id);
        let (sender, answer) = mpsc::channel();
        let spawned = thread::Builder::new().spawn(move || {
            let status = request.send(body).map(|response| response.status());
            // Nobody waits any longer: the program is ending.
            let _ = sender.send(status);
        });
        if let Err(error) = spawned {
            return Attempt::Failed(format!("cannot start a thread: {error}"));
        }
        // The library has a time-out of its own; this covers what that does not.
        let limit = Instant::now() + self.timeout + Duration::from_secs(5);
        loop {
            match answer.recv_timeout(TICK) {
                Ok(Ok(status)) if status.is_success() => return Attempt::Done,
                Ok(Ok(status)) => return Attempt::Failed(format!("the server answered {}", status.as_u16())),
                Ok(Err(ureq::Error::Timeout(_))) => {
                    return Attempt::Failed(format!("timed out after {}", age(self.timeout)));
                }
                Ok(Err(error)) => return Attempt::Failed(error.to_string()),
                Err(RecvTimeoutError::Disconnected) => return Attempt::Failed("the request panicked".into()),
                Err(RecvTimeoutError::Timeout) if stop.is_urged() => return Attempt::CutShort,
                Err(RecvTimeoutError::Timeout) if Instant::now() > limit => {
                    return Attempt::Failed(format!("timed out after {}", age(self.timeout)));
                }
                Err(RecvTimeoutError::Timeout) => tick(),
            }
        }
    }
}
