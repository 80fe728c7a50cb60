//! The configuration that is being read: nginx reads one at a time.

use std::sync::Mutex;

use headcount_nginx_conf::Settings;

use crate::nginx::mutex::relock;

/// What its directives and its Lua have said so far.
#[derive(Clone, Default)]
pub(crate) struct Loading {
    /// Those of the directive `headcount`, if it is on.
    pub(crate) settings: Option<Settings>,
    /// Lua's init has asked whether the directive is on.
    pub(crate) is_asked_by_lua: bool,
    pub(crate) is_led_by_lua: bool,
}

static LOADING: Mutex<Option<Loading>> = Mutex::new(None);

pub(crate) fn begins() {
    *relock(&LOADING) = Some(Loading::default());
}

/// It is in force, or has failed. Gives what was said.
pub(crate) fn ends() -> Loading {
    relock(&LOADING).take().unwrap_or_default()
}

/// What was said so far.
pub(crate) fn so_far() -> Loading {
    with(|loading| loading.clone()).unwrap_or_default()
}

/// `None`: no configuration is being read.
pub(crate) fn with<T>(then: impl FnOnce(&mut Loading) -> T) -> Option<T> {
    relock(&LOADING).as_mut().map(then)
}
