//! `headcount doctor`: what is wrong on this host, and how to fix it.

mod check;
mod fileless;
mod host;
mod leftovers;
mod registry;
#[cfg(test)]
mod tests;
mod text;

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use headcount::{FilelessNode, fileless_nodes, kernel_features, remove_stale};

use crate::args::NodeSelector;
use crate::escape::escape;
use crate::escape::escape_json;
use crate::find;
use crate::outcome::Outcome;
use check::{Check, FileFacts, Section};
use leftovers::Leftovers;
use registry::RegistryFacts;

const DOCTOR_EXAMPLES: &str = "\
Examples:
  headcount doctor                          the kernel, and all registries of this host
  headcount doctor --clean                  also remove registries with no live process
  headcount doctor --json | jq '.checks[] | select(.level == \"finding\")'

Exit codes: 0 no problems; 1 problems found; 2 usage error; 4 something is missing, or you may not read it.";

#[derive(Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub struct DoctorArgs {
    /// Remove the registries of nodes that certainly have no live process
    #[arg(long)]
    pub clean: bool,
    /// Print JSON, for programs (described in docs/cli.md)
    #[arg(long)]
    pub json: bool,
}

pub fn run(selector: &NodeSelector, args: &DoctorArgs) -> anyhow::Result<Outcome> {
    let kernel = kernel_features();
    let subjects = Subjects::of(selector)?;
    let mut examination =
        Examination { sections: vec![host::kernel(&kernel)], removed: Vec::new(), cannot_look: false };
    for (folder, chosen) in &subjects.folders {
        examination.folder(folder, *chosen);
    }
    for path in &subjects.registries {
        examination.registry(path, args.clean);
    }
    for (path, files) in &subjects.leftovers {
        examination.leftover(path, files, args.clean);
    }
    examination.sections.extend(subjects.fileless.iter().map(fileless::judge));
    let Examination { sections, removed, cannot_look } = examination;
    let mut out = anstream::stdout().lock();
    if args.json {
        let document = text::document(&kernel, &sections, &removed);
        writeln!(out, "{}", escape_json(serde_json::to_string_pretty(&document)?))?;
    } else {
        write!(out, "{}", text::text(&sections, &removed))?;
    }
    out.flush()?;
    Ok(match text::findings(&sections) {
        _ if cannot_look => Outcome::Failed,
        0 => Outcome::Done,
        _ => Outcome::NotReached,
    })
}

/// What there is to look at.
struct Subjects {
    /// With whether this user's servers make their registries there, or the user named it.
    folders: Vec<(PathBuf, bool)>,
    registries: Vec<PathBuf>,
    leftovers: Leftovers,
    fileless: Vec<FilelessNode>,
}

impl Subjects {
    fn of(selector: &NodeSelector) -> anyhow::Result<Subjects> {
        if selector.node.is_none() && selector.registry.is_none() {
            let own = headcount::default_folder();
            let folders = find::folders();
            return Ok(Subjects {
                registries: find::registries(&folders),
                leftovers: folders.iter().flat_map(|folder| leftovers::within(folder)).collect(),
                fileless: fileless_nodes(),
                // Other users' folders only if they exist.
                folders: folders
                    .into_iter()
                    .map(|folder| (folder.clone(), folder == own))
                    .filter(|(folder, own)| *own || std::fs::symlink_metadata(folder).is_ok())
                    .collect(),
            });
        }
        let registries: Vec<_> = find::all(selector)?.into_iter().map(|found| found.path).collect();
        let mut leftovers = Leftovers::new();
        for path in &registries {
            leftovers::of(path, &mut leftovers);
        }
        let folders =
            registries.iter().filter_map(|path| path.parent()).map(|folder| (folder.to_owned(), true));
        Ok(Subjects {
            folders: folders.collect(),
            registries: registries.into_iter().filter(|path| !leftovers.contains_key(path)).collect(),
            leftovers,
            fileless: Vec::new(),
        })
    }
}

/// What has been found so far.
struct Examination {
    sections: Vec<Section>,
    removed: Vec<PathBuf>,
    /// Something is not readable for this user.
    cannot_look: bool,
}

impl Examination {
    fn folder(&mut self, path: &Path, chosen: bool) {
        let found = FileFacts::of(path).and_then(|facts| match std::fs::read_dir(path) {
            Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => Err(e),
            _ => Ok(facts),
        });
        self.cannot_look |= chosen && found.as_ref().is_err_and(|e| e.kind() != std::io::ErrorKind::NotFound);
        self.sections.push(host::folder(path, &found, chosen));
    }

    fn registry(&mut self, path: &Path, clean: bool) {
        let facts = RegistryFacts::read(path.to_owned());
        self.cannot_look |= facts.may_not_look();
        if clean && facts.is_stale() {
            let checks = vec![self.clean(path)];
            return self.sections.push(Section { checks, ..registry::judge(&facts) });
        }
        self.sections.push(registry::judge(&facts));
    }

    fn leftover(&mut self, path: &Path, files: &[PathBuf], clean: bool) {
        let check = if clean { self.clean(path) } else { leftovers::judge(path, files) };
        let subject = format!("registry {}", crate::escape::escape_path(path));
        self.sections.push(Section { subject, checks: vec![check] });
    }

    fn clean(&mut self, path: &Path) -> Check {
        match remove_stale(path) {
            Ok(removed) => {
                let text =
                    format!("no live process: removed {}", headcount_report::plural(count(&removed), "file"));
                self.removed.extend(removed);
                Check::good(text)
            }
            // The error says itself how to fix it.
            Err(e) => {
                let text = format!("not removed: {}", escape(&e.to_string()));
                Check { fix: None, ..Check::finding(text, "") }
            }
        }
    }
}

fn count(files: &[PathBuf]) -> u64 {
    u64::try_from(files.len()).unwrap_or(u64::MAX)
}
