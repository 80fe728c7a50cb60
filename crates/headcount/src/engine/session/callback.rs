//! A callback runs while the node lock is held: the note of it that outlives its runner, and what becomes of one that fails, or
//! whose runner dies or is told to end.

use super::Session;
use crate::engine::process::NoticeLevel;
use crate::event::{Cause, Event, Kind};
use crate::lifecycle::MOST_TRIES;
use crate::sys::atomic::Ordering::{Acquire, Relaxed, Release};
use crate::sys::{clock, process};

impl Session {
    /// Notes that a callback about this event is about to run. Should this process die in it, the next
    /// holder of the lock finds the note.
    pub(crate) fn callback_begins(&mut self, event: &Event) {
        self.paused = clock::boot_ns();
        let header = self.inner.header();
        header.callback_kind.store(event.kind.code(), Relaxed);
        header.callback_since.store(self.paused, Relaxed);
        header.callback_seq.store(event.seq, Release);
    }

    pub(crate) fn callback_ends(&mut self) {
        self.inner.header().callback_seq.store(0, Release);
        self.until = self.until.saturating_add(clock::boot_ns().saturating_sub(self.paused));
        self.is_stale = true;
    }

    /// Notes that the callback about an event failed. It counts as run.
    pub(crate) fn callback_failed(&mut self, about: &Event) {
        let mut failed = Event::new(Kind::CallbackFailed, about.cause);
        failed.generation = about.generation;
        failed.pid = process::pid();
        failed.worker_id = about.worker_id;
        failed.detail = about.seq;
        self.report(failed, None);
    }

    /// This process is to end in the middle of the callback about an event. Says so, and whether the callback is left to
    /// others.
    pub(crate) fn hand_callback_on(&mut self, about: &Event) -> bool {
        let is_about_others = !self.facts.died_in_callback(about).is_empty();
        let then = if is_about_others { "another process runs it again" } else { "it counts as run" };
        let text = format!(
            "{}: this process was told to end in the callback for {} (event {}): {then}",
            self.inner.place(),
            about.kind,
            about.seq
        );
        self.inner.notice(NoticeLevel::Error, text);
        if is_about_others {
            // However often that happens, it is no callback that kills.
            let is_one_more = self.facts.tries_of(about) + 1 < MOST_TRIES;
            self.callback_was_interrupted(process::pid(), about.seq, is_one_more);
            self.is_stale = true;
        } else {
            self.callback_failed(about);
        }
        is_about_others
    }

    /// If a holder died in a callback: reports that, and has it run again where it must be.
    pub(super) fn repair_callback(&mut self, dead: u32) {
        let seq = self.inner.header().callback_seq.load(Acquire);
        if seq != 0 {
            self.callback_was_interrupted(dead, seq, true);
        }
    }

    fn callback_was_interrupted(&mut self, dead: u32, seq: u64, is_one_more: bool) {
        let header = self.inner.header();
        let about = self.inner.journal().read(seq);
        // If our predecessor in this repair died after reporting it, it is reported already.
        let newest = self.inner.journal().read(header.head.load(Relaxed));
        if !newest.is_some_and(|e| e.kind == Kind::CallbackDied && e.detail == seq && e.pid == dead) {
            let mut event =
                Event::new(Kind::CallbackDied, about.as_ref().map_or(Cause::Unknown, |e| e.cause));
            event.generation = about.as_ref().map_or(0, |e| e.generation);
            event.worker_id = about.as_ref().and_then(|e| e.worker_id);
            event.pid = dead;
            event.detail = seq;
            self.report(event, None);
        }
        if let Some(about) = about.filter(|_| is_one_more) {
            self.facts.died_in_callback(&about).into_iter().for_each(|change| self.apply(change));
            if self.facts.tries_of(&about) >= MOST_TRIES {
                let text = format!(
                    "{}: {MOST_TRIES} processes died in the callback for {} (event {seq}); it is not run again",
                    self.inner.place(),
                    about.kind
                );
                self.inner.notice(NoticeLevel::Error, text);
            }
        }
        self.inner.header().callback_seq.store(0, Release);
    }
}
