//! One delivery from the first attempt to the last, and what the state file records meanwhile.

use std::time::Instant;

use headcount_report::{age, plural};
use serde_json::Value;

use super::attempt::Attempt;
use super::command;
use super::log::Log;
use super::notification::Notification;
use super::rules::{Action, Rule};
use super::settings::{IfInterrupted, OnFailure, Settings};
use super::state::{Delivery, InFlight, Record};
use super::stop::Stop;
use super::webhook::Webhook;

/// How a delivery ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It succeeded, or was given up: continue with the next.
    Finished,
    /// `headcount run` is stopping: the next start continues it.
    Stopped,
    /// It failed for good, and `headcount run` ends with it.
    GaveUp,
}

/// Delivers, and records its progress.
pub struct Deliverer<'a, R> {
    settings: &'a Settings,
    pub record: R,
    pub stop: &'a Stop,
    pub log: &'a Log,
    webhook: Webhook,
}

impl<'a, R: Record> Deliverer<'a, R> {
    pub fn new(settings: &'a Settings, record: R, stop: &'a Stop, log: &'a Log) -> Deliverer<'a, R> {
        Deliverer { settings, record, stop, log, webhook: Webhook::new(settings.timeout) }
    }

    /// Continues what was in progress when an earlier `headcount run` ended.
    pub fn resume(&mut self) -> anyhow::Result<Ended> {
        let Some(flight) = self.record.in_flight().clone() else { return Ok(Ended::Finished) };
        let name = describe(&flight.delivery);
        if let Some(process) = flight.process.filter(|_| flight.running) {
            command::outlast(process, self.settings.timeout, self.stop);
        }
        let skip = flight.running && self.settings.if_interrupted == IfInterrupted::Skip;
        let rule = self.settings.on.iter().enumerate().find(|(_, rule)| rule.key() == flight.delivery.rule);
        let Some((number, rule)) = rule.filter(|_| !skip) else {
            self.log.warn(match skip {
                true => format!("{name} was interrupted in attempt {}: skipped", flight.attempt),
                false => format!("{name} was interrupted, and its rule is gone: skipped"),
            });
            self.finish(flight.delivery)?;
            return Ok(Ended::Finished);
        };
        let mut flight = InFlight { process: None, ..flight };
        if std::mem::take(&mut flight.running) {
            flight.interrupted = true;
            self.log.warn(format_args!("{name} was interrupted in attempt {}: trying again", flight.attempt));
        }
        *self.record.in_flight() = Some(flight);
        self.attempts(number, rule, &mut || {})
    }

    /// Delivers to each rule that names the event and has not had it yet.
    pub fn deliver(&mut self, notification: &Notification, tick: &mut dyn FnMut()) -> anyhow::Result<Ended> {
        for (number, rule) in
            self.settings.on.iter().enumerate().filter(|(_, rule)| rule.wants(&notification.event))
        {
            let delivery = Delivery {
                at: notification.at,
                event: notification.event.clone().into_owned(),
                rule: rule.key(),
            };
            if self.record.finished().contains(&delivery) {
                continue;
            }
            if self.stop.is_asked() {
                return Ok(Ended::Stopped);
            }
            let mut document = notification.document.clone();
            document.insert("id".into(), self.record.id(notification).into());
            *self.record.in_flight() = Some(InFlight {
                delivery,
                attempt: 0,
                failures: 0,
                running: false,
                interrupted: false,
                document,
                process: None,
            });
            let ended = self.attempts(number, rule, tick)?;
            if ended != Ended::Finished {
                return Ok(ended);
            }
        }
        Ok(Ended::Finished)
    }

    /// Tries what is in flight until it is finished.
    fn attempts(&mut self, number: usize, rule: &Rule, tick: &mut dyn FnMut()) -> anyhow::Result<Ended> {
        while let Some(flight) = self.record.in_flight() {
            flight.attempt = flight.attempt.saturating_add(1);
            flight.running = true;
            flight.document.insert("attempt".into(), flight.attempt.into());
            flight.document.insert("retry".into(), flight.interrupted.into());
            let flight = flight.clone();
            let start = Instant::now();
            let attempt = self.attempt(rule, &flight, tick)?;
            let name = format!("{} to rule {}", describe(&flight.delivery), number + 1);
            let again =
                if flight.attempt > 1 { format!(", attempt {}", flight.attempt) } else { String::new() };
            let Some(now) = self.record.in_flight() else { break };
            now.running = false;
            now.process = None;
            match attempt {
                Attempt::Done => {
                    self.finish(flight.delivery)?;
                    self.log.note(format_args!("{name}: delivered in {}{again}", age(start.elapsed())));
                    return Ok(Ended::Finished);
                }
                Attempt::CutShort => {
                    now.interrupted = true;
                    self.record.save()?;
                    self.log.warn(format_args!("{name}: stopped before it was delivered{again}"));
                    return Ok(Ended::Stopped);
                }
                Attempt::Failed(why) => {
                    now.failures = now.failures.saturating_add(1);
                    let failures = now.failures;
                    if failures > self.settings.retries {
                        self.log.warn(format_args!(
                            "{name}: failed for good after {}: {why}",
                            plural(failures.into(), "attempt")
                        ));
                        return self.give_up(flight.delivery);
                    }
                    self.record.save()?;
                    let wait = self.settings.backoff.wait(failures, fastrand::f64());
                    self.log
                        .warn(format_args!("{name}: failed{again}: {why}; next attempt in {}", age(wait)));
                    self.stop.wait(wait, tick)?;
                    if self.stop.is_asked() {
                        return Ok(Ended::Stopped);
                    }
                }
            }
        }
        Ok(Ended::Finished)
    }

    /// One attempt. The state file has it before it begins.
    fn attempt(&mut self, rule: &Rule, flight: &InFlight, tick: &mut dyn FnMut()) -> anyhow::Result<Attempt> {
        match &rule.action {
            Action::Command(command) => {
                let mut running = match command::prepare(command, &flight.document) {
                    Ok(running) => running,
                    Err(why) => return Ok(Attempt::Failed(why)),
                };
                if let Some(flight) = self.record.in_flight() {
                    flight.process = running.leader();
                }
                self.record.save()?;
                running.start(&flight.document);
                Ok(running.finish(self.settings.timeout, self.stop, tick))
            }
            Action::Post(url) => {
                self.record.save()?;
                let id = flight.document.get("id").and_then(Value::as_str).unwrap_or_default();
                let body = Value::Object(flight.document.clone()).to_string();
                Ok(self.webhook.post(url, id, body, self.stop, tick))
            }
        }
    }

    fn finish(&mut self, delivery: Delivery) -> anyhow::Result<()> {
        self.record.finished().push(delivery);
        *self.record.in_flight() = None;
        self.record.save()
    }

    fn give_up(&mut self, delivery: Delivery) -> anyhow::Result<Ended> {
        if self.settings.on_failure == OnFailure::Continue {
            self.finish(delivery)?;
            return Ok(Ended::Finished);
        }
        // The next start tries as many times again.
        if let Some(flight) = self.record.in_flight() {
            flight.failures = 0;
        }
        self.record.save()?;
        Ok(Ended::GaveUp)
    }
}

fn describe(delivery: &Delivery) -> String {
    format!("{} at {}", delivery.event, delivery.at)
}
