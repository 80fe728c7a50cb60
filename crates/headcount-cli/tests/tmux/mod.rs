//! A terminal that a test drives and looks at: a tmux server of its own.

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use testkit::{Folder, wait};

/// The machine may be busy with other tests.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A terminal in which one program runs.
pub struct Tmux {
    folder: Folder,
}

impl Tmux {
    /// Opens a terminal of this size, and runs a shell script in it, with these variables set.
    #[track_caller]
    pub fn run(size: (u16, u16), environment: &[(&str, &str)], script: &str) -> Tmux {
        let folder = Folder::new();
        // What stays on the screen after the end is part of what is looked at.
        folder.write("tmux.conf", "set -g status off\nset -g remain-on-exit on\nset -g escape-time 0\n");
        folder.write("script", &format!("cd '{}'\n{script}\n", folder.path().display()));
        let tmux = Tmux { folder };
        let (width, height) = (size.0.to_string(), size.1.to_string());
        // One word: tmux gives it to a shell.
        let script = format!("exec sh '{}'", tmux.folder.at("script").display());
        let mut command = tmux.command();
        command.args(["new-session", "-d", "-x", &width, "-y", &height]);
        for (name, value) in environment {
            command.args(["-e", &format!("{name}={value}")]);
        }
        tmux.checked(command.arg(script));
        tmux
    }

    fn command(&self) -> Command {
        let mut command = Command::new("tmux");
        command.arg("-u").arg("-S").arg(self.folder.at("socket")).arg("-f").arg(self.folder.at("tmux.conf"));
        // tmux insists on a locale; what runs in it gets its own.
        command.env("LC_ALL", "C.UTF-8").env_remove("TMUX").env_remove("NO_COLOR");
        command
    }

    #[track_caller]
    fn checked(&self, command: &mut Command) -> Output {
        let output = match command.output() {
            Ok(output) => output,
            Err(error) => panic!("tmux: {error}: is it installed? scripts/setup test brings it"),
        };
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// A path in the terminal's folder.
    pub fn at(&self, name: &str) -> PathBuf {
        self.folder.at(name)
    }

    /// A file in it, as soon as it is there and not empty.
    #[track_caller]
    pub fn file(&self, name: &str) -> String {
        self.until(&format!("the file {name}"), || {
            Some(self.folder.read(name)).filter(|text| text.ends_with('\n'))
        })
    }

    /// Types: `q`, `C-c`, `Escape`, `Enter` and so on.
    #[track_caller]
    pub fn keys(&self, keys: &[&str]) {
        self.checked(self.command().arg("send-keys").args(keys));
    }

    /// Types text as it is.
    #[track_caller]
    pub fn text(&self, text: &str) {
        self.checked(self.command().args(["send-keys", "-l", text]));
    }

    #[track_caller]
    pub fn resize(&self, width: u16, height: u16) {
        let (width, height) = (width.to_string(), height.to_string());
        self.checked(self.command().args(["resize-window", "-x", &width, "-y", &height]));
    }

    /// The screen as it is now.
    #[track_caller]
    pub fn screen(&self) -> String {
        let output = self.checked(self.command().args(["capture-pane", "-p"]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// The same with its colours, and with the spaces at the lines' ends, which may have one.
    #[track_caller]
    pub fn coloured(&self) -> String {
        let output = self.checked(self.command().args(["capture-pane", "-p", "-e", "-N"]));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// What tmux says of the terminal: `alternate_on`, `cursor_flag`, `pane_pid`.
    #[track_caller]
    pub fn ask(&self, name: &str) -> String {
        let output = self.checked(self.command().args(["display-message", "-p", &format!("#{{{name}}}")]));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// Waits until the screen fits; gives it.
    #[track_caller]
    pub fn shows(&self, what: &str, fits: impl Fn(&str) -> bool) -> String {
        let mut last = String::new();
        let found = wait::poll(PATIENCE, || {
            std::thread::sleep(Duration::from_millis(20));
            last = self.screen();
            fits(&last).then_some(())
        });
        assert!(found.is_some(), "the screen never showed {what}; it is\n{last}");
        last
    }

    /// Waits for anything else.
    #[track_caller]
    pub fn until<T>(&self, what: &str, mut condition: impl FnMut() -> Option<T>) -> T {
        let found = wait::poll(PATIENCE, || {
            std::thread::sleep(Duration::from_millis(20));
            condition()
        });
        match found {
            Some(found) => found,
            None => panic!("never came: {what}; the screen is\n{}", self.screen()),
        }
    }
}

impl Drop for Tmux {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("---- the terminal\n{}", self.screen());
        }
        let _ = self.command().arg("kill-server").output();
    }
}
