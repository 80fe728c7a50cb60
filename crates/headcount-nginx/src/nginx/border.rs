//! The border to nginx: no panic crosses it.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::nginx::log::{Level, log};

/// Runs the inside of a function that nginx calls. After a panic, which is a bug of ours, the answer is the one that
/// keeps nginx serving.
pub(crate) fn entry<T>(name: &str, otherwise: T, inside: impl FnOnce() -> T) -> T {
    match catch_unwind(AssertUnwindSafe(inside)) {
        Ok(answer) => answer,
        Err(panic) => {
            let complain =
                || log(Level::Error, &format!("a bug in headcount ({name}): {}", text_of(&*panic)));
            // There is nobody left to tell.
            let _ = catch_unwind(AssertUnwindSafe(complain));
            otherwise
        }
    }
}

fn text_of(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}
