//! `headcount top`: the node, or with `--cluster` all hosts, live, in the terminal.
//!
//! For a node, `life` and `model` are what snapshots and events add up to, `choices` what the person at the keyboard has chosen, and
//! `view` draws all of it, as a pure function. `reader`, `input` and `terminal` touch the world. `fleet` is
//! the same for a cluster.

mod choices;
mod fleet;
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
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;
use std::sync::mpsc::TryRecvError;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use headcount_cluster::config::DEFAULT_FILE;
use ratatui::buffer::Buffer;
use ratatui::crossterm::event::{Event, KeyEvent};
use ratatui::layout::Rect;
use rustix::event::{PollFd, PollFlags};

use crate::args::NodeSelector;
use crate::outcome::{Outcome, UsageError};
use crate::poll::wait;

use choices::{Choices, Step};
use fleet::FleetShow;
use input::Input;
use nodes::Nodes;
use terminal::Screen;
use theme::Theme;
use view::Scene;

#[derive(Args)]
pub struct TopArgs {
    /// Show all hosts of the cluster and their nodes, in place of the processes of a node
    #[arg(long)]
    pub cluster: bool,
    /// With --cluster: the agent's configuration, whose [cluster] says where etcd is
    #[arg(long, value_name = "FILE", default_value = DEFAULT_FILE)]
    pub config: PathBuf,
}

impl TopArgs {
    /// What shows the same without a terminal.
    fn instead(&self) -> &'static str {
        if self.cluster { "cluster status" } else { "status" }
    }
}

/// How often the screen is redrawn when nothing happens: ages grow and bars move.
const EVERY: Duration = Duration::from_millis(250);
/// Between two redraws at least, however much happens: nobody would see more.
const AT_MOST: Duration = Duration::from_millis(25);

/// What is on the screen: a node, or a cluster.
trait Show {
    /// Readable when there is news.
    fn news(&self) -> BorrowedFd<'_>;
    /// Takes in the news. Whether there was any.
    fn read(&mut self) -> bool;
    /// Brings what is shown up to this moment.
    fn refresh(&mut self);
    fn draw(&mut self, area: Rect, buf: &mut Buffer);
    fn key(&mut self, key: KeyEvent) -> anyhow::Result<Step>;
}

pub fn run(selector: &NodeSelector, args: &TopArgs) -> anyhow::Result<Outcome> {
    if !stdout().is_terminal() {
        bail!("top needs a terminal, and standard output is not one: use `headcount {}`", args.instead());
    }
    if std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        bail!(
            "top needs a terminal that can move the cursor, and TERM=dumb cannot: use `headcount {}`",
            args.instead()
        );
    }
    if !args.cluster {
        return show(&mut NodeShow::begin(selector)?);
    }
    if selector.registry.is_some() {
        let text = "--registry names a file of this host: with --cluster, use --node";
        return Err(UsageError(text.to_owned()).into());
    }
    show(&mut FleetShow::begin(&args.config, selector.node.as_deref())?)
}

fn show(what: &mut dyn Show) -> anyhow::Result<Outcome> {
    // Before the terminal is ours: a signal in between must find its handler.
    let inputs = input::listen().context("cannot listen for keys and signals")?;
    let mut screen = Screen::enter().context("cannot take the terminal")?;
    let mut refreshed = Instant::now();
    loop {
        screen.draw(|area, buf| what.draw(area, buf)).context("cannot draw on the terminal")?;
        let mut drawn = true;
        // Keys and events are answered at once.
        while drawn {
            let age = refreshed.elapsed();
            let news = what.news();
            let mut fds = vec![PollFd::new(&inputs, PollFlags::IN)];
            let limit = if age < AT_MOST {
                AT_MOST - age
            } else {
                fds.push(PollFd::new(&news, PollFlags::IN));
                EVERY.saturating_sub(age)
            };
            wait(&mut fds, Some(limit))?;
            loop {
                // All that has come by now needs only one redraw.
                match inputs.next() {
                    Ok(input) => {
                        if answer(input, what, &mut screen)? {
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
            if refreshed.elapsed() >= EVERY || refreshed.elapsed() >= AT_MOST && what.read() {
                what.refresh();
                refreshed = Instant::now();
                drawn = false;
            }
        }
    }
}

/// Whether that was the end.
fn answer(input: Input, what: &mut dyn Show, screen: &mut Screen) -> anyhow::Result<bool> {
    match input {
        Input::Terminal(Event::Key(key)) => match what.key(key)? {
            Step::Stay | Step::NextNode => {}
            Step::Quit => return Ok(true),
            Step::Suspend => input::stop_job()?,
        },
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

/// The nodes of this host, one at a time.
struct NodeShow {
    nodes: Nodes,
    choices: Choices,
    theme: Theme,
    /// The lives that have a row on the screen.
    rows: Vec<u64>,
}

impl NodeShow {
    fn begin(selector: &NodeSelector) -> anyhow::Result<NodeShow> {
        let nodes = Nodes::find(selector)?;
        Ok(NodeShow { nodes, choices: Choices::default(), theme: Theme::of_environment(), rows: Vec::new() })
    }
}

impl Show for NodeShow {
    fn news(&self) -> BorrowedFd<'_> {
        self.nodes.reader.as_fd()
    }

    fn read(&mut self) -> bool {
        self.nodes.reader.read()
    }

    fn refresh(&mut self) {
        self.nodes.reader.refresh();
    }

    fn draw(&mut self, area: Rect, buf: &mut Buffer) {
        let scene = Scene {
            live: &self.nodes.reader.model,
            choices: &self.choices,
            theme: self.theme,
            node: self.nodes.position,
            trouble: self.nodes.reader.trouble.as_deref(),
            every: EVERY,
        };
        self.rows = view::draw(&scene, area, buf);
    }

    fn key(&mut self, key: KeyEvent) -> anyhow::Result<Step> {
        let step = self.choices.key(key, &self.nodes.reader.model, &self.rows);
        if step == Step::NextNode {
            self.nodes.next()?;
            self.choices.leave_node();
        }
        Ok(step)
    }
}
