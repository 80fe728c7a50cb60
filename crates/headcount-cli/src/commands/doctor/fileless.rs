//! Nodes that run on memory of their own.

use headcount::FilelessNode;

use super::check::{Check, Section};
use crate::escape::escape;

/// The verdict on one: its server did not get what its configuration asks for.
pub fn judge(node: &FilelessNode) -> Section {
    let one = node.pids.first().map_or_else(String::new, |pid| format!(", process {pid} among them"));
    let processes = match node.pids.len() {
        1 => "1 process".to_owned(),
        n => format!("{n} processes"),
    };
    let check = Check::finding(
        format!(
            "runs on memory of its own ({processes}{one}): no program can see it, and a restart or binary upgrade will not \
             know of it"
        ),
        "see its server's error log, which names the file and what is wrong with it; then restart the server",
    );
    Section { subject: format!("node {}", escape(&node.name)), checks: vec![check] }
}
