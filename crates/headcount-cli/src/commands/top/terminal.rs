//! The terminal, which is left as it was found, whatever happens.

use std::io::{self, Stdout, Write, stdout};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, Ordering};

use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::{Hide, Show};
use ratatui::crossterm::terminal::{
    EnterAlternateScreen, LeaveAlternateScreen, disable_raw_mode, enable_raw_mode,
};
use ratatui::crossterm::{execute, queue};
use ratatui::layout::{Position, Rect};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whether the terminal is ours now. Whoever finds it so, and leaves it, sets it to false: once is enough.
static OURS: AtomicBool = AtomicBool::new(false);

/// The screen, as long as this lives.
pub struct Screen {
    terminal: Terminal<CrosstermBackend<Stdout>>,
}

impl Screen {
    /// Takes the terminal.
    pub fn enter() -> io::Result<Screen> {
        static HOOK: Once = Once::new();
        HOOK.call_once(|| {
            let before = std::panic::take_hook();
            std::panic::set_hook(Box::new(move |info| {
                // First, so that the message is to be seen.
                leave();
                before(info);
            }));
        });
        take()?;
        let terminal = Terminal::new(CrosstermBackend::new(stdout())).inspect_err(|_| leave())?;
        Ok(Screen { terminal })
    }

    /// Takes it again, after the process was stopped: others have used it meanwhile.
    pub fn enter_again(&mut self) -> io::Result<()> {
        leave();
        take()?;
        // Not `clear`: that asks the terminal where the cursor is, and the answer comes by the keyboard, which another
        // thread reads.
        let area = self.terminal.size()?;
        self.terminal.resize(Rect::from((Position::ORIGIN, area)))
    }

    pub fn draw(&mut self, mut picture: impl FnMut(Rect, &mut ratatui::buffer::Buffer)) -> io::Result<()> {
        self.terminal.draw(|frame| picture(frame.area(), frame.buffer_mut())).map(drop)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        leave();
    }
}

fn take() -> io::Result<()> {
    enable_raw_mode()?;
    OURS.store(true, Ordering::SeqCst);
    execute!(stdout(), EnterAlternateScreen, Hide).inspect_err(|_| leave())
}

/// Gives the terminal back. There is nobody to tell if that fails: then it is gone, or takes nothing.
pub fn leave() {
    if OURS.swap(false, Ordering::SeqCst) {
        let mut out = stdout();
        let _ = queue!(out, LeaveAlternateScreen, Show).and_then(|()| out.flush());
        let _ = disable_raw_mode();
    }
}

/// The same from another thread, when the one that draws hangs in writing to a terminal that takes nothing (Ctrl-S, a
/// connection that is gone). It may hold standard output: that is passed by.
pub fn leave_by_force() {
    if OURS.swap(false, Ordering::SeqCst) {
        let _ = disable_raw_mode();
        let out = rustix::stdio::stdout();
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut fds = [PollFd::from_borrowed_fd(out, PollFlags::OUT)];
        if poll(&mut fds, Some(&now)).is_ok_and(|ready| ready == 1) && fds[0].revents() == PollFlags::OUT {
            let _ = rustix::io::write(out, b"\x1b[?1049l\x1b[?25h");
        }
    }
}

#[cfg(test)]
#[path = "../../../tests/tmux/mod.rs"]
#[allow(dead_code)]
mod tmux;

#[cfg(test)]
mod tests {
    use super::*;

    use super::tmux::Tmux;

    /// Run by the next test, in a terminal.
    #[test]
    #[ignore = "takes the terminal, and panics"]
    fn a_panic() {
        let _screen = Screen::enter().expect("a terminal");
        assert!(OURS.load(Ordering::SeqCst));
        panic!("this is what it died of");
    }

    #[test]
    fn a_panic_leaves_the_terminal_as_it_was_and_its_message_on_it() {
        let program = std::env::current_exe().expect("the kernel names the running program");
        let script = format!(
            "stty -a > before; '{}' --ignored --exact --nocapture {}::a_panic; stty -a > after; exec sleep 1000",
            program.display(),
            module_path!().split_once("::").expect("a path below the crate").1,
        );
        let terminal = Tmux::run((100, 30), &[], &script);
        let after = terminal.file("after");
        assert_eq!(after, terminal.file("before"));
        assert_eq!((terminal.ask("alternate_on"), terminal.ask("cursor_flag")), ("0".into(), "1".into()));
        terminal.shows("the message", |screen| screen.contains("this is what it died of"));
    }
}
