//! What was found, for people and for programs.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anstyle::Style;
use headcount::KernelFeatures;
use headcount_report::{SCHEMA, plural};
use serde::Serialize;

use super::check::{Level, Section};
use crate::escape::escape_path;
use crate::paint;
use crate::table::{item, paragraph};

/// Under the column of levels.
const INDENT: usize = 8;

pub fn text(sections: &[Section], removed: &[PathBuf]) -> String {
    let mut out = String::new();
    for section in sections {
        let bold = paint::HEADING;
        // Writing into a `String` does not fail.
        let _ = writeln!(out, "{bold}{}{bold:#}", section.subject);
        for check in &section.checks {
            let (word, style) = match check.level {
                Level::Good => ("ok", paint::GOOD),
                Level::Note => ("note", paint::WARNING),
                Level::Finding => ("FIX", paint::ERROR),
            };
            item(&mut out, &format!("  {style}{word:<4}{style:#}  "), INDENT + 2, Style::new(), &check.text);
            if let Some(fix) = &check.fix {
                // On one line, however long: it may be a command that people copy.
                let _ = writeln!(out, "{:INDENT$}fix: {bold}{fix}{bold:#}", "");
            }
        }
        out.push('\n');
    }
    for path in removed {
        paragraph(&mut out, 0, Style::new(), &format!("removed {}", escape_path(path)));
    }
    match findings(sections) {
        0 => paragraph(&mut out, 0, paint::GOOD, "no problems found"),
        n => paragraph(&mut out, 0, paint::ERROR, &format!("{} found", plural(n, "problem"))),
    }
    out
}

pub fn findings(sections: &[Section]) -> u64 {
    let all = sections.iter().flat_map(|section| &section.checks);
    u64::try_from(all.filter(|check| check.level == Level::Finding).count()).unwrap_or(u64::MAX)
}

#[derive(Serialize)]
pub struct Document<'a> {
    schema: u32,
    kernel: Kernel<'a>,
    checks: Vec<CheckDocument<'a>>,
    removed: Vec<String>,
    findings: u64,
}

#[derive(Serialize)]
struct Kernel<'a> {
    release: &'a str,
    pidfd: bool,
    exit_info: Option<bool>,
    descriptors: u64,
    most_descriptors: u64,
}

#[derive(Serialize)]
struct CheckDocument<'a> {
    subject: &'a str,
    level: &'static str,
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    fix: Option<&'a str>,
}

pub fn document<'a>(
    kernel: &'a KernelFeatures,
    sections: &'a [Section],
    removed: &[PathBuf],
) -> Document<'a> {
    let checks = sections.iter().flat_map(|section| {
        section.checks.iter().map(|check| CheckDocument {
            subject: &section.subject,
            level: check.level.name(),
            text: &check.text,
            fix: check.fix.as_deref(),
        })
    });
    let shown = |path: &Path| path.to_string_lossy().into_owned();
    Document {
        schema: SCHEMA,
        kernel: Kernel {
            release: &kernel.release,
            pidfd: kernel.pidfd,
            exit_info: kernel.exit_info,
            descriptors: kernel.descriptors,
            most_descriptors: kernel.most_descriptors,
        },
        checks: checks.collect(),
        removed: removed.iter().map(|path| shown(path)).collect(),
        findings: findings(sections),
    }
}
