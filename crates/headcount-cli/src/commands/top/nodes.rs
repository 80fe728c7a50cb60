//! The nodes of this host, of which one is shown.

use anyhow::{Context, bail};

use super::reader::Reader;
use crate::args::NodeSelector;
use crate::find;

pub struct Nodes {
    selector: NodeSelector,
    pub reader: Reader,
    /// Which of how many, from 1.
    pub position: (usize, usize),
}

impl Nodes {
    /// Begins with the first that can be read.
    pub fn find(selector: &NodeSelector) -> anyhow::Result<Nodes> {
        let mut found = find::all(selector)?;
        if found.is_empty() {
            bail!("{}", find::no_node());
        }
        let of = found.len();
        let readable = found.iter().position(|f| f.observer.is_ok());
        let node = found.swap_remove(readable.unwrap_or(0));
        node.observer.context("cannot read the node")?;
        let reader = Reader::new(&node.path)?;
        Ok(Nodes { selector: selector.clone(), reader, position: (readable.unwrap_or(0) + 1, of) })
    }

    /// Switches to the next of those that exist now.
    pub fn next(&mut self) -> anyhow::Result<()> {
        let mut paths: Vec<_> = find::all(&self.selector)?.into_iter().map(|f| f.path).collect();
        let here = self.reader.path().to_owned();
        // The one that is shown counts even if its file is gone.
        if !paths.contains(&here) {
            paths.push(here.clone());
            paths.sort();
        }
        let at = paths.iter().position(|path| *path == here).unwrap_or(0);
        let next = (at + 1) % paths.len();
        if paths[next] != here {
            self.reader = Reader::new(&paths[next])?;
        }
        self.position = (next + 1, paths.len());
        Ok(())
    }
}
