//! The nodes of this host, and which of them the user means.

mod folders;

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use headcount::{ErrorKind, Liveness, Observer};

use crate::args::NodeSelector;
use crate::escape::escape_path;
use folders::children;
pub use folders::{Folders, folders};

/// What every registry's name ends with.
const ENDING: &str = ".registry";

/// A registry's file, and its reader, or why there is none.
pub struct Found {
    pub path: PathBuf,
    pub observer: headcount::Result<Observer>,
}

impl Found {
    fn at(path: PathBuf) -> Found {
        let observer = Observer::open(&path);
        Found { path, observer }
    }
}

/// Whether the file belongs to this user or root, or the user said where to look. Anybody else can create a registry of any
/// name, too.
pub fn is_ours(path: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    std::env::var_os("HEADCOUNT_RUNTIME_DIR").is_some_and(|folder| !folder.is_empty())
        || std::fs::symlink_metadata(path).is_ok_and(|found| found.uid() == me || found.uid() == 0)
}

/// Those of this user and of root.
pub fn ours(mut registries: Vec<PathBuf>) -> Vec<PathBuf> {
    registries.retain(|path| is_ours(path));
    registries
}

/// Those of this name; if any of them are ours, only these: a stranger must not be able to stand in their way.
pub fn of_name(mut registries: Vec<PathBuf>, name: &str) -> Vec<PathBuf> {
    registries.retain(|path| node_name(path) == name);
    if registries.iter().any(|path| is_ours(path)) { ours(registries) } else { registries }
}

/// The registry files in these folders; ours first, so that those get a descriptor however many others there are.
pub fn registries(folders: &[PathBuf]) -> Vec<PathBuf> {
    let mut found: Vec<_> = folders
        .iter()
        .flat_map(children)
        .filter(|path| path.as_os_str().as_encoded_bytes().ends_with(ENDING.as_bytes()))
        .collect();
    found.sort_by_cached_key(|path| (!is_ours(path), path.clone()));
    found
}

/// The registry of the node that was named, or those of all nodes of this host.
pub fn paths(selector: &NodeSelector) -> anyhow::Result<Vec<PathBuf>> {
    Ok(named(selector)?.map_or_else(|| registries(&folders()), |path| vec![path]))
}

/// The node that was named, or all nodes of this host.
pub fn all(selector: &NodeSelector) -> anyhow::Result<Vec<Found>> {
    if let Some(path) = named(selector)? {
        return Ok(vec![Found::at(path)]);
    }
    let found = registries(&folders()).into_iter().map(Found::at);
    // One that has been removed since does not count.
    Ok(found.filter(|f| !matches!(&f.observer, Err(e) if e.kind() == ErrorKind::NotFound)).collect())
}

/// The node that was named, or the only one of this host.
pub fn one(selector: &NodeSelector) -> anyhow::Result<(PathBuf, Observer)> {
    let mut found = all(selector)?;
    if found.len() > 1 {
        bail!("{}", which_one(found.iter().map(|f| f.path.as_path())));
    }
    let Some(Found { path, observer }) = found.pop() else {
        bail!("{}", no_node());
    };
    let observer = observer.context("cannot read the node")?;
    Ok((path, observer))
}

/// What to say if nothing was found.
pub fn no_node() -> String {
    let folders: Vec<_> = folders().iter().map(|f| f.display().to_string()).collect();
    format!(
        "no node was found on this host (looked for *{ENDING} in {}). Is a server with headcount running? If its \
         registry is elsewhere, name it with --registry",
        folders.join(", ")
    )
}

/// What to say if there are several, and one is needed.
pub fn which_one<'a>(paths: impl Iterator<Item = &'a Path>) -> String {
    let names: Vec<_> = paths.map(node_name).collect();
    format!("there are {} nodes on this host: choose one with --node ({})", names.len(), names.join(", "))
}

/// The node's name, from its file's.
pub fn node_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.strip_suffix(ENDING).unwrap_or(&name).to_owned()
}

/// The registry that the user named, whether it exists or not.
pub fn given(selector: &NodeSelector) -> anyhow::Result<Option<PathBuf>> {
    let absolute = |path: &PathBuf| std::path::absolute(path).with_context(|| path.display().to_string());
    selector.registry.as_ref().map(absolute).transpose()
}

/// The one registry of the node with this name, if it exists: this user's own before those of others, and of these the one
/// whose node lives.
pub fn the_one_of_name(registries: Vec<PathBuf>, name: &str) -> anyhow::Result<Option<PathBuf>> {
    let mut places = of_name(registries, name);
    if places.iter().any(|path| is_own(path)) {
        places.retain(|path| is_own(path));
    }
    if places.len() > 1 && places.iter().filter(|path| lives(path)).count() == 1 {
        places.retain(|path| lives(path));
    }
    if places.len() > 1 {
        let places: Vec<_> = places.iter().map(|path| escape_path(path)).collect();
        bail!("there are several nodes {name}: choose one with --registry ({})", places.join(", "));
    }
    Ok(places.pop())
}

fn is_own(path: &Path) -> bool {
    let me = rustix::process::geteuid().as_raw();
    std::fs::symlink_metadata(path).is_ok_and(|found| found.uid() == me)
}

fn lives(path: &Path) -> bool {
    let snapshot = Observer::open(path).and_then(|observer| observer.snapshot());
    snapshot.is_ok_and(|snapshot| snapshot.liveness() == Liveness::Alive)
}

fn named(selector: &NodeSelector) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = given(selector)? {
        return Ok(Some(path));
    }
    let Some(name) = &selector.node else { return Ok(None) };
    let there = registries(&folders());
    let names: Vec<_> = there.iter().map(|path| node_name(path)).collect();
    match the_one_of_name(there, name)? {
        Some(path) => Ok(Some(path)),
        None if names.is_empty() => bail!("there is no node {name}: {}", no_node()),
        None => bail!("there is no node {name}; there are: {}", names.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_system_is_quoted_once() {
        let selector = NodeSelector { node: None, registry: Some(PathBuf::from("/nowhere/x.registry")) };
        let text =
            one(&selector).map(|(path, _)| path).map_err(|e| format!("{e:#}")).expect_err("it is not there");
        assert_eq!(text.matches("os error 2").count(), 1, "{text}");
    }

    #[test]
    fn a_stranger_cannot_stand_in_the_way_of_a_node() {
        if !rustix::process::geteuid().is_root() {
            return eprintln!("skipped: only root can give a file to another user");
        }
        let own = tempfile::tempdir().unwrap();
        let file = |name: &str, owner| {
            let path = own.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            std::os::unix::fs::chown(&path, Some(owner), None).unwrap();
            path
        };
        let theirs = file("a/shop.registry", 65534);
        let mine = file("b/shop.registry", 0);
        let only_theirs = file("a/other.registry", 65534);
        let all = registries(&[own.path().join("a"), own.path().join("b")]);
        assert_eq!(all, [mine.clone(), only_theirs.clone(), theirs], "ours come first");
        assert_eq!(of_name(all.clone(), "shop"), std::slice::from_ref(&mine));
        assert_eq!(of_name(all.clone(), "other"), [only_theirs]);
        assert_eq!(ours(all), [mine]);
    }
}
