//! `headcount top --cluster`: all hosts and their nodes, live.

mod choices;
mod reader;
mod view;

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use ratatui::buffer::Buffer;
use ratatui::crossterm::event::KeyEvent;
use ratatui::layout::Rect;

use super::Show;
use super::choices::Step;
use super::theme::Theme;
use crate::clock::wall_ns;
use choices::{Choices, RowKey};
use reader::Reader;
use view::Scene;

pub struct FleetShow {
    reader: Reader,
    choices: Choices,
    theme: Theme,
    /// Those that are shown, in their order.
    rows: Vec<RowKey>,
}

impl FleetShow {
    /// Of the cluster of this configuration, and only nodes of this name, if one is given.
    pub fn begin(config: &Path, node: Option<&str>) -> anyhow::Result<FleetShow> {
        let reader = Reader::begin(crate::commands::cluster::configured(config)?)?;
        let choices = Choices { node: node.map(str::to_owned), ..Choices::default() };
        Ok(FleetShow { reader, choices, theme: Theme::of_environment(), rows: Vec::new() })
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    wall_ns() as f64 / 1e9
}

impl Show for FleetShow {
    fn news(&self) -> BorrowedFd<'_> {
        self.reader.as_fd()
    }

    fn read(&mut self) -> bool {
        self.reader.read()
    }

    fn refresh(&mut self) {}

    fn draw(&mut self, area: Rect, buf: &mut Buffer) {
        let (live, cluster) = (&self.reader.picture, self.reader.cluster.as_str());
        let scene = Scene { live, choices: &self.choices, theme: self.theme, cluster, now: now() };
        self.rows = view::draw(&scene, area, buf);
    }

    fn key(&mut self, key: KeyEvent) -> anyhow::Result<Step> {
        Ok(self.choices.key(key, &self.reader.picture, now(), &self.rows))
    }
}
