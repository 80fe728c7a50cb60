//! `headcount completions` and `headcount man`: what packages install beside the program.

use std::io::{self, Write};
use std::path::Path;

use anyhow::Context;
use clap_mangen::Man;
use clap_mangen::roff::{Roff, bold, roman};

use crate::cli::{CompletionsArgs, ManArgs, command};
use crate::outcome::Outcome;

pub fn completions(args: &CompletionsArgs) -> anyhow::Result<Outcome> {
    // Into memory first: clap_complete panics where it cannot write.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut command(), "headcount", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Outcome::Done)
}

pub fn man(args: &ManArgs) -> anyhow::Result<Outcome> {
    let Some(folder) = &args.folder else {
        io::stdout().write_all(&page(built())?)?;
        return Ok(Outcome::Done);
    };
    for command in pages() {
        write(&folder.join(format!("{}.1", name(&command))), &page(command)?)?;
    }
    Ok(Outcome::Done)
}

fn write(path: &Path, text: &[u8]) -> anyhow::Result<()> {
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// The command line with all names of commands within commands filled in.
fn built() -> clap::Command {
    let mut command = command().disable_help_subcommand(true);
    command.build();
    command
}

/// Everything that has a page: the program, and each command that is no secret.
fn pages() -> Vec<clap::Command> {
    let program = built();
    let commands =
        program.get_subcommands().filter(|command| !command.is_hide_set()).cloned().collect::<Vec<_>>();
    [program].into_iter().chain(commands).collect()
}

/// The name of its page: `headcount-status`.
fn name(command: &clap::Command) -> &str {
    command.get_display_name().unwrap_or(command.get_name())
}

/// What `--help` says, in the order of a manual page, and what is the same for all commands.
fn page(command: clap::Command) -> io::Result<Vec<u8>> {
    let notes = command.get_after_long_help().or(command.get_after_help()).map(ToString::to_string);
    let has_commands = command.get_subcommands().any(|sub| !sub.is_hide_set());
    let man = Man::new(command).manual("User Commands");
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
    if let Some(examples) = notes.as_deref().and_then(examples) {
        roff.control("SH", ["EXAMPLES"]).control("nf", []);
        examples.for_each(|line| {
            roff.text([roman(line)]);
        });
        roff.control("fi", []);
    }
    exit_status(&mut roff);
    surroundings(&mut roff);
    roff.to_writer(&mut page)?;
    Ok(page)
}

/// The lines under `Examples:`, up to the next blank one.
fn examples(help: &str) -> Option<impl Iterator<Item = &str>> {
    let mut lines = help.lines().skip_while(|line| line.trim() != "Examples:");
    lines.next()?;
    Some(lines.take_while(|line| !line.trim().is_empty()).map(str::trim_start))
}

fn exit_status(roff: &mut Roff) {
    let codes = [
        (Outcome::Done.code(), "As asked."),
        (
            Outcome::NotReached.code(),
            "wait, reload: not reached within the time. doctor: something is to be mended.",
        ),
        (2, "Wrong use: see --help."),
        (Outcome::ReloadFailed.code(), "wait, reload: the reload failed; the new generation was abandoned."),
        (
            Outcome::Failed.code(),
            "There is no such node, it may not be read, or the system failed; the message says which.",
        ),
    ];
    roff.control("SH", ["EXIT STATUS"]);
    for (code, meaning) in codes {
        roff.control("TP", []).text([bold(code.to_string())]).text([roman(meaning)]);
    }
}

fn surroundings(roff: &mut Roff) {
    let variables = [
        (
            "HEADCOUNT_RUNTIME_DIR",
            "Where nodes are looked for, and nowhere else. Otherwise in /run/headcount, /run/user/*/headcount and \
             /dev/shm/headcount-*.",
        ),
        ("NO_COLOR", "If it is set to anything, nothing is coloured unless --color=always is given."),
    ];
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in variables {
        roff.control("TP", []).text([bold(name)]).text([roman(meaning)]);
    }
    let pages: Vec<_> = pages().iter().map(|command| format!("{}(1)", name(command))).collect();
    roff.control("SH", ["SEE ALSO"]).text([roman(pages.join(", "))]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_a_page_for_each_command_that_help_lists() {
        let names: Vec<_> = pages().iter().map(|command| name(command).to_owned()).collect();
        for expected in ["headcount", "headcount-status", "headcount-doctor", "headcount-completions"] {
            assert!(names.iter().any(|name| name == expected), "{expected}: {names:?}");
        }
        assert!(!names.iter().any(|name| name == "headcount-man"), "{names:?}");
    }

    #[test]
    fn a_page_tells_the_exit_codes_and_the_examples() {
        let text = String::from_utf8(page(built()).expect("a page")).expect("text");
        for part in
            [".SH \"EXIT STATUS\"", ".SH EXAMPLES", "headcount reload \\-\\-pid\\-file", ".SH ENVIRONMENT"]
        {
            assert!(text.contains(part), "{part}:\n{text}");
        }
        for command in pages() {
            let text = String::from_utf8(page(command).expect("a page")).expect("text");
            let sections: Vec<_> = text.lines().filter(|line| line.starts_with(".SH")).collect();
            assert!(sections.len() >= 6 && text.contains(".TH "), "{sections:?}");
        }
    }
}
