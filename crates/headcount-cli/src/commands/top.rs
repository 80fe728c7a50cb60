//! `headcount top`: the node, live, in the terminal.
//!
//! `life` and `model` are what snapshots and events add up to, `choices` what the person at the keyboard has chosen, and
//! `view` draws all of it, as a pure function. `reader`, `input` and `terminal` touch the world.

mod choices;
mod input;
mod life;
mod model;
mod nodes;
mod reader;
mod terminal;
mod theme;
mod timeline;
mod view;

use std::io::{IsTerminal, stdout};
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use ratatui::crossterm::event::Event;
use rustix::event::{PollFd, PollFlags};

use crate::args::NodeSelector;
use crate::outcome::Outcome;
use crate::poll::wait;

use choices::{Choices, Step};
use input::Input;
use nodes::Nodes;
use terminal::Screen;
use theme::Theme;
use view::Scene;

#[derive(Args)]
pub struct TopArgs {}

/// How often the screen is redrawn when nothing happens: ages grow and bars move.
const EVERY: Duration = Duration::from_millis(250);
/// Between two redraws at least, however much happens: nobody would see more.
const AT_MOST: Duration = Duration::from_millis(25);

pub fn run(selector: &NodeSelector, _args: &TopArgs) -> anyhow::Result<Outcome> {
    if !stdout().is_terminal() {
        bail!("top needs a terminal, and standard output is not one: use `headcount status`");
    }
    if std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        bail!("top needs a terminal that can move the cursor, and TERM=dumb cannot: use `headcount status`");
    }
    let mut nodes = Nodes::find(selector)?;
    // Before the terminal is ours: a signal in between must find its handler.
    let inputs = input::listen().context("cannot listen for keys and signals")?;
    let mut screen = Screen::enter().context("cannot take the terminal")?;
    let mut top = Top { choices: Choices::default(), theme: Theme::of_environment(), rows: Vec::new() };
    let mut refreshed = Instant::now();
    loop {
        top.draw(&nodes, &mut screen)?;
        let mut drawn = true;
        // Keys and events are answered at once.
        while drawn {
            let age = refreshed.elapsed();
            let mut fds = vec![PollFd::new(&inputs, PollFlags::IN)];
            let limit = if age < AT_MOST {
                AT_MOST - age
            } else {
                fds.push(PollFd::new(&nodes.reader, PollFlags::IN));
                EVERY.saturating_sub(age)
            };
            wait(&mut fds, Some(limit))?;
            loop {
                // All that has come by now needs only one redraw.
                match inputs.next() {
                    Ok(input) => {
                        if top.answer(input, &mut nodes, &mut screen)? {
                            return Ok(Outcome::Done);
                        }
                        drawn = false;
                    }
                    Err(TryRecvError::Empty) => break,
                    Err(TryRecvError::Disconnected) => {
                        bail!("the threads that read keys and signals have ended")
                    }
                }
            }
            if refreshed.elapsed() >= EVERY || refreshed.elapsed() >= AT_MOST && nodes.reader.read() {
                nodes.reader.refresh();
                refreshed = Instant::now();
                drawn = false;
            }
        }
    }
}

struct Top {
    choices: Choices,
    theme: Theme,
    /// The lives that have a row on the screen.
    rows: Vec<u64>,
}

impl Top {
    fn draw(&mut self, nodes: &Nodes, screen: &mut Screen) -> anyhow::Result<()> {
        let scene = Scene {
            live: &nodes.reader.model,
            choices: &self.choices,
            theme: self.theme,
            node: nodes.position,
            trouble: nodes.reader.trouble.as_deref(),
            every: EVERY,
        };
        let rows = &mut self.rows;
        screen.draw(|area, buf| *rows = view::draw(&scene, area, buf)).context("cannot draw on the terminal")
    }

    /// Whether that was the end.
    fn answer(&mut self, input: Input, nodes: &mut Nodes, screen: &mut Screen) -> anyhow::Result<bool> {
        match input {
            Input::Terminal(Event::Key(key)) => {
                match self.choices.key(key, &nodes.reader.model, &self.rows) {
                    Step::Stay => {}
                    Step::Quit => return Ok(true),
                    Step::Suspend => input::stop_job()?,
                    Step::NextNode => {
                        nodes.next()?;
                        self.choices.leave_node();
                    }
                }
            }
            // A new size, and what a terminal says unasked, only need another picture.
            Input::Terminal(_) => {}
            Input::Unreadable(error) => return Err(error).context("cannot read the keyboard"),
            Input::Interrupted => return Ok(true),
            Input::Ends(signal) => {
                terminal::leave();
                return Err(input::end_by(signal).into());
            }
            Input::Stop => {
                terminal::leave();
                input::stop()?;
                screen.enter_again()?;
            }
            Input::Continued => screen.enter_again()?,
        }
        Ok(false)
    }
}
