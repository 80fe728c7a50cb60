//! What this process knows: one place, since nginx's hooks share nothing else.

use std::sync::{Mutex, MutexGuard};

use headcount_core::{Generation, Master};
use headcount_nginx_conf::Settings;

use crate::nginx::mutex::relock;

/// What is true of this process.
pub(crate) struct State {
    /// The configuration in force, if it asks for headcount.
    pub(crate) tracked: Option<Tracked>,
    /// Every node that this process or its master has ever opened: a configuration may change the name.
    pub(crate) masters: Vec<Master>,
    /// A worker or helper: it never becomes a master, whatever it forks.
    pub(crate) is_child: bool,
}

/// A configuration that is in force.
#[derive(Clone)]
pub(crate) struct Tracked {
    pub(crate) settings: Settings,
    pub(crate) generation: Generation,
    /// Lua joins, beats, watches, drains and leaves.
    pub(crate) is_led_by_lua: bool,
}

static STATE: Mutex<State> = Mutex::new(State { tracked: None, masters: Vec::new(), is_child: false });

/// The state. nginx has one thread, and none of our code gives control back to it while it holds this.
pub(crate) fn state() -> MutexGuard<'static, State> {
    relock(&STATE)
}

/// The same for a fork handler: a thread of another module may fork while we are at work.
pub(crate) fn state_if_free() -> Option<MutexGuard<'static, State>> {
    STATE.try_lock().ok()
}
