//! The node's journal, read from beside, as any operator's tool could.

use std::fs;
use std::path::Path;

use headcount::{Cursor, Observer};

use crate::failure::Failure;
use crate::report::{Report, Said};

pub struct Journal {
    observer: Observer,
    cursor: Cursor,
}

impl Journal {
    /// The journal of the node whose master this is; `None` as long as it has opened none.
    ///
    /// Which file that is, the kernel tells: the master has it mapped. Its name depends on how the server was started.
    pub fn of_master(master: i32) -> Result<Option<Self>, Failure> {
        let maps = fs::read_to_string(format!("/proc/{master}/maps")).unwrap_or_default();
        let mut mapped = maps.lines().filter_map(|line| line.split_ascii_whitespace().nth(5));
        let Some(path) = mapped.find(|path| path.ends_with(".registry")) else {
            return Ok(None);
        };
        let observer = Observer::open(Path::new(path))
            .map_err(|error| Failure::Other(format!("cannot read the journal: {error}")))?;
        Ok(Some(Self { observer, cursor: Cursor::oldest() }))
    }

    /// The events since the last call.
    pub fn read(&mut self) -> Result<Vec<Report>, Failure> {
        let batch = self
            .observer
            .events(&mut self.cursor, usize::MAX)
            .map_err(|error| Failure::Other(format!("cannot read the journal: {error}")))?;
        if batch.lost > 0 {
            return Err(Failure::Other(format!(
                "{} events were overwritten before they were read",
                batch.lost
            )));
        }
        let report =
            |event: headcount::Event| Report { at_ns: event.boot_ns, said: Said::Event(Box::new(event)) };
        Ok(batch.events.into_iter().map(report).collect())
    }
}
