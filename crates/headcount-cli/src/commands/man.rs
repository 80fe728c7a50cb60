//! `headcount man`: the manual pages that packages install beside the program.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::outcome::Outcome;

#[derive(Args)]
pub struct ManArgs {
    /// Write one page for each command into this folder, instead of printing the main page
    #[arg(long, value_name = "PATH")]
    pub folder: Option<PathBuf>,
}

pub fn run(args: &ManArgs, program: clap::Command) -> anyhow::Result<Outcome> {
    let pages = pages(program)?;
    match &args.folder {
        Some(folder) => {
            for page in pages {
                let path = folder.join(format!("{}.1", page.name));
                std::fs::write(&path, page.text)
                    .with_context(|| format!("cannot write {}", path.display()))?;
            }
        }
        // The program's own is the first.
        None => io::stdout().write_all(&pages[0].text)?,
    }
    Ok(Outcome::Done)
}

pub struct Page {
    /// `headcount-status`
    pub name: String,
    pub text: Vec<u8>,
}

/// A page for the program, and one for each of its commands.
pub fn pages(program: clap::Command) -> io::Result<Vec<Page>> {
    let commands = documented(program);
    let names: Vec<_> = commands.iter().map(|command| name(command).to_owned()).collect();
    let page =
        |command: clap::Command| Ok(Page { name: name(&command).to_owned(), text: text(command, &names)? });
    commands.into_iter().map(page).collect()
}

/// Everything that has a page: the program, and each command that is not hidden.
pub fn documented(program: clap::Command) -> Vec<clap::Command> {
    let mut program = program.disable_help_subcommand(true);
    // Fills in the names of commands within commands.
    program.build();
    let mut commands = vec![program];
    // Those of commands come after them.
    let mut next = 0;
    while let Some(command) = commands.get(next) {
        let below: Vec<_> = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned().collect();
        commands.extend(below);
        next += 1;
    }
    commands
}

fn name(command: &clap::Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// What `--help` says, in the order of a manual page, and what is the same for all commands.
fn text(command: clap::Command, pages: &[String]) -> io::Result<Vec<u8>> {
    let notes = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let has_commands = command.get_subcommands().any(|sub| !sub.is_hide_set());
    let man =
        Man::new(command).manual("User Commands").source(concat!("headcount ", env!("CARGO_PKG_VERSION")));
    let mut page = Vec::new();
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    man.render_options_section(&mut page)?;
    if has_commands {
        man.render_subcommands_section(&mut page)?;
    }
    let mut roff = Roff::new();
    let notes = Notes::of(notes.as_deref().unwrap_or_default());
    if !notes.others.is_empty() {
        roff.control("SH", ["NOTES"]);
        for paragraph in &notes.others {
            roff.control("PP", []).text([roman(paragraph.replace('\n', " "))]);
        }
    }
    if !notes.examples.is_empty() {
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        for line in &notes.examples {
            roff.text([roman(*line)]);
        }
        roff.control("fi", []);
    }
    // The program's own line is shorter than what fits here.
    exit_status(&mut roff, if has_commands { all_codes() } else { notes.codes });
    surroundings(&mut roff, pages);
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// What stands below the options of a `--help`, by its paragraphs.
#[derive(Default)]
struct Notes<'a> {
    /// The lines under `Examples:`.
    examples: Vec<&'a str>,
    /// `Exit codes: 0 as asked; 2 wrong use; …`
    codes: Vec<(String, String)>,
    others: Vec<&'a str>,
}

impl<'a> Notes<'a> {
    fn of(help: &'a str) -> Notes<'a> {
        let mut notes = Notes::default();
        for paragraph in help.split("\n\n").filter(|paragraph| !paragraph.trim().is_empty()) {
            if let Some(lines) = paragraph.strip_prefix("Examples:\n") {
                notes.examples = lines.lines().map(str::trim_start).collect();
            } else if let Some(codes) = paragraph.strip_prefix("Exit codes: ") {
                notes.codes = codes.split("; ").filter_map(code).collect();
            } else {
                notes.others.push(paragraph);
            }
        }
        notes
    }
}

/// `2 wrong use`
fn code(text: &str) -> Option<(String, String)> {
    let (code, meaning) = text.trim_end_matches('.').split_once(' ')?;
    let mut letters = meaning.chars();
    let first = letters.next()?.to_uppercase();
    code.parse::<u8>().ok()?;
    Some((code.to_owned(), format!("{first}{}.", letters.as_str().replace('\n', " "))))
}

fn all_codes() -> Vec<(String, String)> {
    let codes = [
        (Outcome::Done.code(), "Success."),
        (Outcome::NotReached.code(), "wait, reload, lock: timed out. doctor: problems found."),
        (2, "Usage error: see --help."),
        (Outcome::ReloadFailed.code(), "wait, reload: the reload failed."),
        (
            Outcome::Failed.code(),
            "No such node, you may not read it, or the system failed. The message says which.",
        ),
    ];
    codes.map(|(code, meaning)| (code.to_string(), meaning.to_owned())).into()
}

fn exit_status(roff: &mut Roff, codes: Vec<(String, String)>) {
    // A command whose help lists none has the common ones.
    let codes = if codes.is_empty() { all_codes() } else { codes };
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in codes {
        roff.control("TP", []).text([bold(code)]).text([roman(meaning)]);
    }
}

fn surroundings(roff: &mut Roff, pages: &[String]) {
    let variables = [
        (
            "HEADCOUNT_RUNTIME_DIR",
            "The only folder to look for nodes in. If it is not set: /run/headcount, /run/user/*/headcount and \
             /dev/shm/headcount-*.",
        ),
        ("NO_COLOR", "If set to anything, there are no colours unless you give --color=always."),
    ];
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in variables {
        roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
    let pages: Vec<_> = pages.iter().map(|name| format!("{name}(1)")).collect();
    roff.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_is_taken_apart() {
        let notes = Notes::of(
            "First\nof all.\n\nExamples:\n  a --b   c\n  d\n\nExit codes: 0 as asked; 4 no node, or\nno right.",
        );
        assert_eq!((notes.others, notes.examples), (vec!["First\nof all."], vec!["a --b   c", "d"]));
        let codes: Vec<_> = notes.codes.iter().map(|(code, text)| (code.as_str(), text.as_str())).collect();
        assert_eq!(codes, [("0", "As asked."), ("4", "No node, or no right.")]);
    }
}
