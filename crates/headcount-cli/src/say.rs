//! What commands say on standard error. Whoever reads it may be gone, as in `headcount cluster wait --serving 2>&1 | head -1`: that
//! must neither end what is under way nor change how it ended.

use std::io::Write;

use crate::escape::escape;
use crate::paint;

/// What is no answer.
pub fn say(what: &str) {
    let _ = writeln!(anstream::stderr().lock(), "headcount: {}", escape(what));
}

/// Why it did not end as it was wanted: text that is fit for a terminal, perhaps of several lines.
pub fn complain(why: &str) {
    let _ = writeln!(anstream::stderr().lock(), "{}headcount:{} {why}", paint::ERROR, anstyle::Reset);
}
