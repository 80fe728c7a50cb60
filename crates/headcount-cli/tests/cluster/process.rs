//! A process that uses the client.

use std::time::{Duration, Instant};

use headcount_cluster_client::{Client, Event};

use super::fleet::Host;
use crate::scripted::LONG;

/// It has or wants something, by the agent of its host.
pub struct Process {
    pub client: Client,
}

impl Process {
    pub fn of(host: &Host) -> Process {
        Process { client: Client::new(host.socket()) }
    }

    #[track_caller]
    pub fn until<T>(&mut self, mut fits: impl FnMut(Event) -> Option<T>) -> T {
        let (began, mut seen) = (Instant::now(), Vec::new());
        while began.elapsed() < LONG {
            self.client.process();
            while let Some(event) = self.client.next_event() {
                seen.push(event.clone());
                if let Some(found) = fits(event) {
                    return found;
                }
            }
            self.client.wait(Some(Duration::from_millis(50))).expect("it can be waited for");
        }
        panic!("it did not come; there was {seen:?}");
    }

    #[track_caller]
    pub fn runs(&mut self) -> (u64, u32, Option<String>) {
        self.until(|event| match event {
            Event::Run { token, attempt, last, .. } => Some((token, attempt, last)),
            _ => None,
        })
    }

    #[track_caller]
    pub fn is_done(&mut self) {
        self.until(|event| matches!(event, Event::Done { .. }).then_some(()));
    }

    #[track_caller]
    pub fn locks(&mut self) -> (u64, u64) {
        self.until(|event| match event {
            Event::Locked { id, token } => Some((id, token)),
            _ => None,
        })
    }
}
