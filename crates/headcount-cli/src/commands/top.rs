//! `headcount top`: the node, live, in the terminal.
//!
//! `life` and `model` are what snapshots and events add up to, `choices` what the person at the keyboard has chosen, and
//! `view` draws all of it, as a pure function. `reader`, `wake` and `terminal` touch the world.

mod choices;
mod life;
mod model;
mod nodes;
mod reader;
mod terminal;
mod theme;
mod timeline;
mod view;
mod wake;

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
use nodes::Nodes;
use terminal::Screen;
use theme::Theme;
use view::Scene;
use wake::Wake;

#[derive(Args)]
pub struct TopArgs {}

/// How often the picture is drawn anew when nothing happens: ages grow and bars move.
const EVERY: Duration = Duration::from_millis(250);
/// However much happens, it is not drawn sooner after the last time: nobody would see it.
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
    let wakes = wake::listen().context("cannot listen for keys and signals")?;
    let mut screen = Screen::enter().context("cannot take the terminal")?;
    let mut top = Top { choices: Choices::default(), theme: Theme::of_environment(), rows: Vec::new() };
    let mut looked = Instant::now();
    loop {
        top.draw(&nodes, &mut screen)?;
        let mut drawn = true;
        // Keys and events are answered at once.
        while drawn {
            let age = looked.elapsed();
            let mut fds = vec![PollFd::new(&wakes, PollFlags::IN)];
            let limit = if age < AT_MOST {
                AT_MOST - age
            } else {
                fds.push(PollFd::new(&nodes.reader, PollFlags::IN));
                EVERY.saturating_sub(age)
            };
            wait(&mut fds, Some(limit))?;
            loop {
                // All that has come meanwhile is one picture.
                match wakes.next() {
                    Ok(wake) => {
                        if top.answer(wake, &mut nodes, &mut screen)? {
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
            if looked.elapsed() >= EVERY || looked.elapsed() >= AT_MOST && nodes.reader.read() {
                nodes.reader.look();
                looked = Instant::now();
                drawn = false;
            }
        }
    }
}

struct Top {
    choices: Choices,
    theme: Theme,
    /// The lives that have a row in the picture.
    rows: Vec<u64>,
}

impl Top {
    fn draw(&mut self, nodes: &Nodes, screen: &mut Screen) -> anyhow::Result<()> {
        let scene = Scene {
            live: &nodes.reader.model,
            choices: &self.choices,
            theme: self.theme,
            node: nodes.place,
            trouble: nodes.reader.trouble.as_deref(),
            every: EVERY,
        };
        let rows = &mut self.rows;
        screen.draw(|area, buf| *rows = view::draw(&scene, area, buf)).context("cannot draw on the terminal")
    }

    /// Whether that was the end.
    fn answer(&mut self, wake: Wake, nodes: &mut Nodes, screen: &mut Screen) -> anyhow::Result<bool> {
        match wake {
            Wake::Input(Event::Key(key)) => match self.choices.key(key, &nodes.reader.model, &self.rows) {
                Step::Stay => {}
                Step::Quit => return Ok(true),
                Step::Suspend => wake::stop_job()?,
                Step::NextNode => {
                    nodes.next()?;
                    self.choices.leave_node();
                }
            },
            // A new size, and what a terminal says unasked, only need another picture.
            Wake::Input(_) => {}
            Wake::NoInput(error) => return Err(error).context("cannot read the keyboard"),
            Wake::Interrupted => return Ok(true),
            Wake::Ends(signal) => {
                terminal::leave();
                return Err(wake::end_by(signal).into());
            }
            Wake::Stop => {
                terminal::leave();
                wake::stop()?;
                screen.enter_again()?;
            }
            Wake::Continued => screen.enter_again()?,
        }
        Ok(false)
    }
}
