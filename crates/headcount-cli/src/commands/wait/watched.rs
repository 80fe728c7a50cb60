//! The node that is meant, also before it is there and after its registry was made anew.

use std::path::PathBuf;

use anyhow::Context;
use headcount::{Cursor, ErrorKind, Event, Observer, Snapshot};

use crate::cli::Which;
use crate::find;
use crate::plain::{plain, plain_path};

/// At most so many events at a time.
const AT_ONCE: usize = 4096;

/// How the node was named.
enum Place {
    Path(PathBuf),
    /// Its file is looked for until there is one.
    Name(String),
}

/// A node that is looked at again and again.
pub struct Watched {
    place: Place,
    observer: Option<Observer>,
    cursor: Cursor,
}

impl Watched {
    /// The node that was named, be it there or not, or the only one of this host. `None`: there is none.
    pub fn find(which: &Which) -> anyhow::Result<Option<Watched>> {
        let place = if let Some(path) = find::given(which)? {
            Place::Path(path)
        } else if let Some(name) = &which.node {
            Place::Name(name.clone())
        } else {
            if find::registries(&find::folders()).is_empty() {
                return Ok(None);
            }
            Place::Path(find::one(which)?.0)
        };
        Ok(Some(Watched { place, observer: None, cursor: Cursor::oldest() }))
    }

    /// The node of this file.
    pub fn at(path: PathBuf) -> Watched {
        Watched { place: Place::Path(path), observer: None, cursor: Cursor::oldest() }
    }

    /// What to call it.
    pub fn name(&self) -> String {
        match &self.place {
            Place::Path(path) => format!("at {}", plain_path(path)),
            Place::Name(name) => plain(name).into_owned(),
        }
    }

    /// Reads the journal only from what happens after this snapshot.
    pub fn skip_to(&mut self, snapshot: &Snapshot) {
        self.cursor = Cursor::at(snapshot.head.saturating_add(1));
    }

    /// The node at this instant. `None`: it is not there.
    ///
    /// A registry whose file was removed is looked at for as long as there is no other one: its processes may live.
    pub fn snapshot(&mut self) -> anyhow::Result<Option<Snapshot>> {
        if self.observer.as_ref().is_none_or(|o| !o.is_current())
            && let Some(path) = self.path()?
        {
            match Observer::open(&path) {
                Ok(observer) => {
                    // Another registry: all that is in it is new.
                    if self.observer.replace(observer).is_some() {
                        self.cursor = Cursor::oldest();
                    }
                }
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                Err(error) => return Err(error).context("cannot read the node"),
            }
        }
        self.observer.as_ref().map(|o| o.snapshot().context("cannot read the node")).transpose()
    }

    /// What has happened since it was asked last.
    pub fn events(&mut self) -> anyhow::Result<Vec<Event>> {
        let Some(observer) = &self.observer else { return Ok(Vec::new()) };
        Ok(observer.events(&mut self.cursor, AT_ONCE).context("cannot read the node")?.events)
    }

    fn path(&self) -> anyhow::Result<Option<PathBuf>> {
        match &self.place {
            Place::Path(path) => Ok(Some(path.clone())),
            Place::Name(name) => find::the_one_of_name(find::registries(&find::folders()), name),
        }
    }
}
