//! The native module in a test's configuration, and its lines of error.log as reports.

use std::fmt::Write as _;

use serde_json::{Map, Value};

use crate::artifacts::{self, Server};
use crate::report::{Kind, Report};

/// What shows the state, as the other integration's page does.
pub(crate) const STATUS: &str = "        location = /status { headcount_status json; }\n";

/// The module and its directive. An option of `init` is a Lua expression; here it becomes a parameter.
pub(crate) fn load(server: Server, options: &[(String, String)], directive: Option<&str>) -> String {
    let module = format!("load_module {};\n", artifacts::module(server).display());
    if let Some(directive) = directive {
        return format!("{module}{directive}\n");
    }
    let mut name = "on".to_owned();
    let mut parameters = String::new();
    for (option, lua) in options {
        let text = lua.trim_matches('"');
        let seconds =
            || text.parse::<f64>().map_or_else(|_| text.to_owned(), |s| format!("{}ms", s * 1000.0));
        let (parameter, value) = match option.as_str() {
            "node" => {
                text.clone_into(&mut name);
                continue;
            }
            "heartbeat_interval" => ("heartbeat", seconds()),
            "stall_after" => ("stall", seconds()),
            "lock_timeout" => ("lock_timeout", seconds()),
            // What only Lua has, where both are there.
            "journal_records" => continue,
            other => (other, text.to_owned()),
        };
        let _ = write!(parameters, " {parameter}={value}");
    }
    format!("{module}headcount {name}{parameters};\n")
}

/// Lua for the tests' pages alone.
pub(crate) fn pages(before: &str, after: &str) -> String {
    format!(
        "lua_package_path \"@FOLDER@/?.lua;;\";\n    init_by_lua_block {{\n        \
         require(\"recorder\").folder = \"@FOLDER@\"\n{before}\n{after}\n    }}\n"
    )
}

/// The facts of a line that are not called as Lua calls them.
fn fact(name: &str) -> &str {
    match name {
        "event" => "seq",
        "worker" => "worker_id",
        other => other,
    }
}

/// A line of error.log, if it is a report. `at` is when it was seen.
pub fn report(line: &str, at: u64) -> Option<Report> {
    let (head, told) = line.split_once(": [headcount] ")?;
    let (kind, rest) = told.split_once(": ")?;
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind)?;
    let (_, facts) = rest.rsplit_once("; ")?;
    let mut event = Map::new();
    event.insert("kind".into(), kind.name().into());
    for (name, value) in facts.split(' ').filter_map(|fact| fact.split_once('=')) {
        let value = match value.parse::<i64>() {
            Ok(number) => Value::from(number),
            // There is no such generation.
            Err(_) if value == "-" => continue,
            Err(_) => Value::from(value),
        };
        event.insert(fact(name).into(), value);
    }
    // 2026/11/25 01:59:37 [notice] 24526#24526
    let runner = head.rsplit(' ').next()?.split('#').next()?.parse().ok()?;
    Some(Report { callback: kind.callback().into(), runner, at, phase: "log".into(), event: event.into() })
}
