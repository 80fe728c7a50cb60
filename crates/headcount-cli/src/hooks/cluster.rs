//! Deliveries for the whole cluster, by whichever agent's turn it is. The record is in etcd, so that the next one goes on where this
//! one has stopped; and nobody can begin a delivery whose turn it is not.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use headcount_cluster::config::ClusterConfig;
use headcount_cluster::follower::{FleetEvent, Follower, News};
use headcount_cluster::turn;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::command;
use super::deliver::{Deliverer, Ended};
use super::log::Log;
use super::notification::Notification;
use super::settings::{Settings, StartFrom};
use super::state::{Delivery, InFlight, Record};
use super::stop::Stop;
use crate::outcome::Outcome;

/// The version of the record. Others are refused: what they say may mean something else.
const VERSION: u32 = 1;
/// How long to wait before a record that could not be written is written again.
const AGAIN: Duration = Duration::from_millis(250);
/// Subjects of warnings that are not repeated.
const ETCD: &str = "etcd";

/// Its key in etcd is not this agent's any more, whoever removed it.
#[derive(Debug)]
struct TurnIsOver;

impl fmt::Display for TurnIsOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("its turn is over: another agent goes on, or this one when its turn comes again")
    }
}

impl std::error::Error for TurnIsOver {}

/// What is in etcd.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Progress {
    v: u32,
    /// Who has written it: a process in flight is one of that host.
    host: String,
    /// In which tenure of the role: so no two write the same.
    tenure: i64,
    /// Up to where all is delivered: a revision, and the number of an event of it, since several may be written at once.
    revision: i64,
    number: u64,
    /// Finished deliveries of the next event.
    finished: Vec<Delivery>,
    /// The delivery in progress.
    in_flight: Option<InFlight>,
}

/// What this agent knows of the record, from one of its turns to the next: how a delivery has ended is true also if that could not
/// be written any more, as long as nobody else has written since.
#[derive(Clone, Debug, Default)]
pub struct Memory(Arc<Mutex<Option<Known>>>);

#[derive(Debug)]
struct Known {
    progress: Progress,
    /// When something was written last, for certain.
    revision: i64,
    /// What was to be written last: nobody knows whether it was.
    tried: Vec<u8>,
}

impl Memory {
    fn with<T>(&self, act: impl FnOnce(&mut Option<Known>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// What is true of what was found.
    fn true_of(&self, bytes: &[u8], written: i64) -> anyhow::Result<Progress> {
        let own = self.with(|known| {
            let known = known.as_ref()?;
            (known.revision == written || known.tried == bytes).then(|| known.progress.clone())
        });
        own.map_or_else(|| parse(bytes), Ok)
    }
}

fn parse(bytes: &[u8]) -> anyhow::Result<Progress> {
    let fix = "remove its key (docs/cluster.md#the-keys) to start over, or give the hook another name";
    let value: serde_json::Value =
        serde_json::from_slice(bytes).with_context(|| format!("its record in etcd cannot be read: {fix}"))?;
    match value.get("v").and_then(serde_json::Value::as_u64) {
        Some(version) if version > u64::from(VERSION) => bail!(
            "its record in etcd has version {version}, this is headcount {} with version {VERSION}: use the version that wrote \
             it, or {fix}",
            env!("CARGO_PKG_VERSION")
        ),
        _ => {
            serde_json::from_value(value).with_context(|| format!("its record in etcd cannot be read: {fix}"))
        }
    }
}

struct ClusterRecord<'a> {
    record: turn::Record,
    handle: &'a Handle,
    progress: Progress,
    saved: Option<Progress>,
    memory: &'a Memory,
    cluster: &'a str,
    /// Which event is delivered.
    event: String,
    stop: &'a Stop,
    log: &'a Log,
}

impl Record for ClusterRecord<'_> {
    fn finished(&mut self) -> &mut Vec<Delivery> {
        &mut self.progress.finished
    }

    fn in_flight(&mut self) -> &mut Option<InFlight> {
        &mut self.progress.in_flight
    }

    fn id(&self, notification: &Notification) -> String {
        format!("{}/{}/{}", self.cluster, self.event, notification.event)
    }

    /// Returns when it is written, also if etcd is away meanwhile. It is not when it is another agent's turn.
    fn save(&mut self) -> anyhow::Result<()> {
        if self.saved.as_ref() == Some(&self.progress) {
            return Ok(());
        }
        let bytes = serde_json::to_vec(&self.progress)?;
        let tried = bytes.clone();
        self.memory.with(|known| {
            let revision = known.as_ref().map_or(0, |known| known.revision);
            *known = Some(Known { progress: self.progress.clone(), revision, tried });
        });
        loop {
            match self.handle.block_on(self.record.write(bytes.clone())) {
                Ok(Some(revision)) => {
                    self.log.is_well(ETCD);
                    self.memory.with(|known| known.iter_mut().for_each(|known| known.revision = revision));
                    self.saved = Some(self.progress.clone());
                    return Ok(());
                }
                Ok(None) => return Err(TurnIsOver.into()),
                Err(trouble) => self.log.warn_once(ETCD, format_args!("{trouble}. Trying again")),
            }
            if self.stop.is_urged() {
                bail!("its record could not be written");
            }
            std::thread::sleep(AGAIN);
        }
    }
}

/// For one turn of a hook.
pub struct Courier<'a> {
    pub settings: &'a Settings,
    pub config: &'a ClusterConfig,
    pub record: turn::Record,
    pub memory: &'a Memory,
    /// Of the runtime that another thread drives.
    pub handle: &'a Handle,
    pub stop: &'a Stop,
    pub log: &'a Log,
}

impl<'a> Courier<'a> {
    /// Delivers until it is to stop, or another agent's turn has come.
    pub fn run(&self) -> anyhow::Result<Outcome> {
        match self.deliver() {
            Err(error) if error.is::<TurnIsOver>() => {
                self.log.warn(error);
                Ok(Outcome::Done)
            }
            other => other,
        }
    }

    fn deliver(&self) -> anyhow::Result<Outcome> {
        let (progress, mut is_new) = self.progress()?;
        let record = ClusterRecord {
            record: self.record.clone(),
            handle: self.handle,
            progress,
            saved: None,
            memory: self.memory,
            cluster: &self.config.name,
            event: String::new(),
            stop: self.stop,
            log: self.log,
        };
        let mut deliverer = Deliverer::new(self.settings, record, self.stop, self.log);
        let mut ended = deliverer.resume()?;
        self.log.note(format_args!(
            "delivers for the cluster {}, after revision {}",
            self.config.name, deliverer.record.progress.revision
        ));
        is_new &= self.settings.from != StartFrom::Oldest;
        let mut follower = Follower::new(self.config.clone(), true);
        while ended == Ended::Finished {
            let Some(news) = self.next(&mut follower) else { break };
            match news {
                News::Event(event) if !is_new => ended = self.event(&event, &mut deliverer)?,
                News::Read => {
                    let (progress, now) = (&mut deliverer.record.progress, follower.revision());
                    if progress.revision > now {
                        self.log.warn("etcd was set back to an older state: continuing with new events");
                    }
                    if std::mem::take(&mut is_new) || progress.revision > now {
                        (progress.revision, progress.number) = (now, u64::MAX);
                        progress.finished.clear();
                    }
                    deliverer.record.save()?;
                }
                News::Missed { after, upto } => self.log.warn(format_args!(
                    "etcd has compacted what happened between the revisions {after} and {upto}: events that were not kept are not \
                     delivered"
                )),
                News::Unreadable(key, why) => {
                    self.log.warn_rarely("unreadable", format_args!("the event {key} is skipped: {why}"));
                }
                News::Away(trouble) => self.log.warn_once(ETCD, format_args!("{trouble}. Trying again")),
                News::Back => self.log.is_well(ETCD),
                News::Event(_) | News::Changed | News::SetBack => {}
            }
        }
        deliverer.record.save()?;
        Ok(if ended == Ended::GaveUp { Outcome::Failed } else { Outcome::Done })
    }

    /// Where to go on, and whether nobody has ever begun.
    fn progress(&self) -> anyhow::Result<(Progress, bool)> {
        let found = self.handle.block_on(self.record.read())?;
        let mut progress = match &found {
            Some((bytes, written)) => self.memory.true_of(bytes, *written)?,
            None => Progress::default(),
        };
        if let Some(flight) = &mut progress.in_flight {
            // It is no process of this host; or any process, that somebody who may write to etcd would have us end.
            let is_here = progress.host == self.config.host;
            flight.process =
                flight.process.filter(|process| is_here && command::is_of(*process, &flight.document));
        }
        let (host, tenure) = (self.config.host.clone(), self.record.tenure());
        Ok((Progress { v: VERSION, host, tenure, ..progress }, found.is_none()))
    }

    fn next(&self, follower: &mut Follower) -> Option<News> {
        self.handle.block_on(async {
            tokio::select! {
                biased;
                () = self.stop.asked() => None,
                news = follower.next() => Some(news),
            }
        })
    }

    fn event(
        &self,
        event: &FleetEvent,
        deliverer: &mut Deliverer<'a, ClusterRecord<'_>>,
    ) -> anyhow::Result<Ended> {
        let at = (event.revision, event.number);
        let progress = &deliverer.record.progress;
        let kind = event.value.text("kind").to_owned();
        // What nobody wants moves nothing: what is finished may be of the one after it.
        let is_wanted = (self.settings.node.is_none() || self.settings.node == event.node)
            && self.settings.on.iter().any(|rule| rule.wants(&kind));
        if at <= (progress.revision, progress.number) || !is_wanted {
            return Ok(Ended::Finished);
        }
        let node = event.node.as_deref().unwrap_or("@host");
        deliverer.record.event = format!("{}/{node}/{}/{}", event.host, event.registry, event.number);
        let mut document = event.value.document.clone();
        document.insert("host".into(), event.host.clone().into());
        document.insert("revision".into(), event.revision.into());
        let at = u64::try_from(event.revision).unwrap_or_default();
        let notification = Notification { event: kind.into(), at, document };
        let ended = deliverer.deliver(&notification, &mut || {})?;
        if ended == Ended::Finished {
            // Written with the next delivery: until then, it is among those that are finished.
            let progress = &mut deliverer.record.progress;
            (progress.revision, progress.number) = (event.revision, event.number);
            progress.finished.clear();
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn progress(revision: i64) -> Progress {
        Progress { v: VERSION, revision, ..Progress::default() }
    }

    #[test]
    fn what_nobody_else_has_written_since_is_as_we_know_it() {
        let memory = Memory::default();
        let there = serde_json::to_vec(&progress(1)).unwrap();
        assert_eq!(memory.true_of(&there, 10).unwrap(), progress(1));
        let tried = serde_json::to_vec(&progress(2)).unwrap();
        memory.with(|known| {
            *known = Some(Known { progress: progress(2), revision: 10, tried: tried.clone() });
        });
        // What we tried to write was not written; it was, and we did not hear of it; somebody else has written.
        assert_eq!(memory.true_of(&there, 10).unwrap(), progress(2));
        assert_eq!(memory.true_of(&tried, 11).unwrap(), progress(2));
        let other = serde_json::to_vec(&progress(3)).unwrap();
        assert_eq!(memory.true_of(&other, 11).unwrap(), progress(3));
    }

    #[test]
    fn a_record_that_cannot_be_read_is_said_with_its_fix() {
        for (text, said) in
            [("{\"v\":2}", "has version 2"), ("{", "cannot be read"), ("{\"v\":1}", "cannot be read")]
        {
            let error = format!("{:#}", parse(text.as_bytes()).unwrap_err());
            assert!(error.contains(said) && error.contains("give the hook another name"), "{error}");
        }
    }
}
