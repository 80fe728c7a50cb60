//! The nodes of this host, and which of them the user means.

mod folders;

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
pub use headcount::is_ours;
use headcount::{ErrorKind, Observer, Snapshot, named_folder};
use headcount_report::{Claim, Life};

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

fn is_own(path: &Path) -> bool {
    owner(path) == Some(rustix::process::geteuid().as_raw())
}

fn owner(path: &Path) -> Option<u32> {
    std::fs::symlink_metadata(path).ok().map(|found| found.uid())
}

/// Those of this user and of root.
pub fn ours(mut registries: Vec<PathBuf>) -> Vec<PathBuf> {
    registries.retain(|path| is_ours(path));
    registries
}

/// The registries of this host that belong to root or to this user, or lie where the user said to look.
pub fn of_root_or(user: Option<u32>) -> Vec<PathBuf> {
    let mut found = registries(&folders());
    found.retain(|path| {
        named_folder().is_some() || owner(path).is_some_and(|uid| uid == 0 || Some(uid) == user)
    });
    found
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

/// The one node for a command that needs one: [`the_one_meant`], open.
pub fn one(selector: &NodeSelector) -> anyhow::Result<(PathBuf, Observer)> {
    let Some(path) = the_one_meant(selector)? else { bail!("{}", no_such_node(selector)) };
    let observer = Observer::open(&path).context("cannot read the node")?;
    Ok((path, observer))
}

/// The one node for a command that needs one, if it exists: the registry that was named, or else the node of the asking user
/// or of root, of this name if one was given. What anybody else has put somewhere is not opened, and does not count.
pub fn the_one_meant(selector: &NodeSelector) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = given(selector)? {
        return Ok(Some(path));
    }
    let registries = ours(registries(&folders()));
    match &selector.node {
        Some(name) => the_one_of_name(registries, name),
        None => {
            let mut meant = preferred(registries);
            if meant.len() > 1 {
                bail!("{}", which_one(meant.iter().map(PathBuf::as_path)));
            }
            Ok(meant.pop())
        }
    }
}

/// What to say if [`the_one_meant`] does not exist.
pub fn no_such_node(selector: &NodeSelector) -> String {
    let there = registries(&folders());
    let of_others = |path: &&PathBuf| {
        !is_ours(path) && selector.node.as_ref().is_none_or(|name| node_name(path) == *name)
    };
    let places: Vec<_> = there.iter().filter(of_others).map(|path| escape_path(path)).collect();
    match (&selector.node, places.is_empty()) {
        (Some(name), true) => no_node_of_name(name, &there),
        (None, true) => no_node(),
        (name, false) => format!(
            "there is no node {}of yours or of root's; of other users there are {}: choose one with --registry",
            name.as_ref().map_or(String::new(), |name| format!("{name} ")),
            places.join(", ")
        ),
    }
}

fn no_node_of_name(name: &str, there: &[PathBuf]) -> String {
    let names: Vec<_> = there.iter().map(|path| node_name(path)).collect();
    match names.is_empty() {
        true => format!("there is no node {name}: {}", no_node()),
        false => format!("there is no node {name}; there are: {}", names.join(", ")),
    }
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

/// The one registry of the node with this name, if it exists.
pub fn the_one_of_name(registries: Vec<PathBuf>, name: &str) -> anyhow::Result<Option<PathBuf>> {
    let mut places = preferred(of_name(registries, name));
    if places.len() > 1 {
        let places: Vec<_> = places.iter().map(|path| escape_path(path)).collect();
        bail!("there are several nodes {name}: choose one with --registry ({})", places.join(", "));
    }
    Ok(places.pop())
}

/// Which of several is meant: the user's own before those of others, and of these the ones that live; so that neither
/// a stopped server stands in the way of one that runs, nor one that is being started.
fn preferred(mut registries: Vec<PathBuf>) -> Vec<PathBuf> {
    if registries.iter().any(|path| is_own(path)) {
        registries.retain(|path| is_own(path));
    }
    if registries.len() < 2 {
        return registries;
    }
    let ranked: Vec<_> = registries.into_iter().map(|path| (life(&path), path)).collect();
    let best = ranked.iter().map(|(life, _)| *life).max();
    ranked.into_iter().filter(|(life, _)| Some(*life) == best).map(|(_, path)| path).collect()
}

/// Of nodes of one name the one that is meant, where there is room for one only, as in metrics: ours before those of others, and of
/// these the one that there is most of.
pub fn meant_of_each_name<T>(nodes: &[T], at: impl Fn(&T) -> (&Path, &Snapshot)) -> Vec<&T> {
    let mut meant = BTreeMap::new();
    for node in nodes {
        let (path, snapshot) = at(node);
        let claim = Claim::of(is_ours(path), snapshot);
        let best = meant.entry(snapshot.node.as_str()).or_insert((claim, node));
        if claim > best.0 {
            *best = (claim, node);
        }
    }
    meant.into_values().map(|(_, node)| node).collect()
}

fn life(path: &Path) -> Life {
    let snapshot = Observer::open(path).and_then(|observer| observer.snapshot());
    snapshot.map_or(Life::Unreadable, |snapshot| Life::of(&snapshot))
}

fn named(selector: &NodeSelector) -> anyhow::Result<Option<PathBuf>> {
    if let Some(path) = given(selector)? {
        return Ok(Some(path));
    }
    let Some(name) = &selector.node else { return Ok(None) };
    let there = registries(&folders());
    match the_one_of_name(there.clone(), name)? {
        Some(path) => Ok(Some(path)),
        None => bail!("{}", no_node_of_name(name, &there)),
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
