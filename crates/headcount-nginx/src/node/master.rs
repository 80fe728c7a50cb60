//! What a master does: it begins a generation when a configuration was read, commits it when that is put into force,
//! abandons it otherwise, and leaves.

use std::sync::Once;
use std::time::Duration;

use headcount_core::{Begin, Error, ErrorKind, Generation, Master, Wait};
use headcount_nginx_conf::Settings;

use crate::nginx::border::entry;
use crate::nginx::log::{self, Level};
use crate::node::lua;
use crate::node::report::{log_notices, report, with_lock};
use crate::node::state::{Tracked, state, state_if_free};

/// A generation that was begun for a configuration of which it is not known yet whether it will be in force.
pub(crate) struct Begun {
    master: Master,
    generation: Generation,
    settings: Settings,
    committed: bool,
}

/// The configuration has been read.
pub(crate) fn begin(settings: &Settings, workers: u32) -> Option<Begun> {
    log::keep();
    if lua::has_own_engine() {
        return None;
    }
    match open_and_begin(settings, workers) {
        Ok(begun) => Some(begun),
        Err(error) => {
            log::log(Level::Error, &format!("this server is not tracked: {error}"));
            None
        }
    }
}

/// For the test of a configuration: what would keep a server from having what it asks for. `false`: a mistake in the
/// configuration. What is wrong with the files is none: the server would run all the same.
pub(crate) fn look(settings: &Settings) -> bool {
    match settings.options().look() {
        Ok(()) => true,
        Err(error) if error.kind() == ErrorKind::InUse => {
            log::log(Level::Error, &error.to_string());
            false
        }
        Err(error) => {
            log::log(
                Level::Error,
                &format!("node {} would run on memory of its own: {error}", settings.node),
            );
            true
        }
    }
}

fn open_and_begin(settings: &Settings, workers: u32) -> Result<Begun, Error> {
    let master = settings.options().open()?;
    let node = master.node();
    log_notices(node);
    remember(&master);
    let generation = match master.begin(Begin::new().workers(workers), Wait::Timeout) {
        Ok((generation, transitions)) => {
            report(transitions);
            generation
        }
        Err(error) if error.kind() == ErrorKind::LockTimeout => {
            log::log(
                Level::Error,
                &format!("the new generation will be announced by its first worker: {error}"),
            );
            Generation::of(node, master.reserve())
        }
        Err(error) => return Err(error),
    };
    log_notices(node);
    Ok(Begun { master, generation, settings: settings.clone(), committed: false })
}

fn remember(master: &Master) {
    watch_forks();
    let mut state = state();
    if !state.masters.iter().any(|known| known.node().is_same(master.node())) {
        state.masters.push(master.clone());
    }
}

impl Begun {
    /// The configuration is in force.
    pub(crate) fn commit(&mut self) -> Tracked {
        self.committed = true;
        self.master.commit(self.generation.id());
        Tracked { settings: self.settings.clone(), generation: self.generation.clone(), is_led_by_lua: false }
    }

    fn abandon(&self) {
        self.master.abandon(self.generation.id());
        let state = state();
        let node = self.generation.node();
        match &state.tracked {
            // The timings of the configuration that stays in force.
            Some(tracked) => {
                let back = tracked.settings.options();
                drop(state);
                if let Err(error) = back.open() {
                    log::log(Level::Error, &error.to_string());
                }
            }
            // A server that could not start.
            None => {
                drop(state);
                match self.master.leave(Wait::For(Duration::from_secs(1))) {
                    Ok(transitions) => report(transitions),
                    Err(error) => log::log(Level::Error, &error.to_string()),
                }
            }
        }
        log_notices(node);
    }
}

/// With its cycle's pool, which nginx destroys at once when the configuration could not be put into force.
impl Drop for Begun {
    fn drop(&mut self) {
        if !self.committed {
            entry("abandon", (), || self.abandon());
        }
    }
}

/// What Lua has begun for this configuration, which is in force now.
pub(crate) fn commit_for_lua(settings: &Settings) -> Option<Tracked> {
    // The node that Lua has opened; if it has not, it has said why.
    let master = settings.options().open().ok()?;
    let generation = Generation::of(master.node(), master.node().newest_begun()?);
    remember(&master);
    master.commit(generation.id());
    if !settings.roles.is_empty() {
        let roles = settings.roles.join(", ");
        let text = format!(
            "\"roles\" has no effect where Lua is in charge: let it stand for {roles} by headcount.leader()"
        );
        log::log(Level::Error, &text);
    }
    Some(Tracked { settings: settings.clone(), generation, is_led_by_lua: true })
}

/// The configuration that is in force now does without: the node ends with its workers.
pub(crate) fn goes_on_untracked(masters: &[Master], before: &Tracked) {
    let node = before.generation.node();
    let is_its = |master: &&Master| master.node().is_same(node);
    masters.iter().filter(is_its).for_each(|master| master.abandon(before.generation.id()));
}

/// The master's last word.
pub(crate) fn leave() {
    let mut state = state();
    if state.tracked.as_ref().is_some_and(|tracked| tracked.is_led_by_lua) {
        return;
    }
    let limit = state
        .tracked
        .as_ref()
        .map_or(Duration::from_secs(1), |tracked| tracked.settings.timings.lock_timeout);
    let masters = std::mem::take(&mut state.masters);
    drop(state);
    for master in masters {
        match with_lock(limit, |wait| master.leave(wait)) {
            Ok(transitions) => report(transitions),
            Err(error) => log::log(Level::Error, &format!("this master will be reported as lost: {error}")),
        }
        log_notices(master.node());
    }
}

/// If this process's parent was the master, and has ended: it went into the background, and we are the master now.
pub(crate) fn adopt() {
    let Some(state) = state_if_free().filter(|state| !state.is_child) else { return };
    let masters = state.masters.clone();
    drop(state);
    for master in masters {
        if let Err(error) = master.adopt(Wait::Timeout) {
            let name = master.node().name();
            log::log(Level::Error, &format!("cannot become the master of node {name}: {error}"));
        }
        // By now nginx has set its handlers.
        master.watch_stop_signals();
    }
}

/// A master that went into the background has no hook before it forks its first worker, so the fork is the hook.
fn watch_forks() {
    static ONCE: Once = Once::new();
    extern "C" fn before_fork() {
        entry("before a fork", (), adopt);
    }
    ONCE.call_once(|| {
        // SAFETY: the handler lets no panic out, and stays: the module is linked with -z nodelete.
        if unsafe { pthread_atfork(Some(before_fork), None, None) } != 0 {
            log::log(
                Level::Error,
                "no memory for a fork handler: with `daemon on` the master will be reported as lost",
            );
        }
    });
}

unsafe extern "C" {
    fn pthread_atfork(
        prepare: Option<extern "C" fn()>,
        parent: Option<extern "C" fn()>,
        child: Option<extern "C" fn()>,
    ) -> std::ffi::c_int;
}
