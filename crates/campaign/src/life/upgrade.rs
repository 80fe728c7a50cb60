//! A binary upgrade: two masters, one of which is to go.

use std::time::Duration;

use testkit::{Signal, process};

use super::Life;
use crate::checker::Class;
use crate::plan::Interruption;
use crate::server::{begun, is_empty_for};

const PATIENCE: Duration = Duration::from_secs(5);

impl Life<'_> {
    pub(super) fn upgrade(&mut self, back: bool, interruption: Interruption, after_ms: u32) {
        self.undo(usize::MAX);
        let Some(old) = self.server.master() else { return };
        process::send(old, Signal::USR2);
        let came = self.wait(PATIENCE, |life| {
            life.server.master().is_some_and(|pid| pid != old) && life.server.masters(life.kernel).len() > 1
        });
        let Some(new) = self.server.master().filter(|&pid| came && pid != old) else {
            return self.remark("an upgrade that the server refused");
        };
        self.descriptors.clear();
        if let Err(error) = begun(new) {
            return self.violation(Class::Hung, error);
        }
        std::thread::sleep(Duration::from_millis(u64::from(after_ms)));
        let of = |master: i32| -> Vec<i32> {
            let parent = |pid| process::stat(pid).map(|stat| stat.parent);
            let all = self.server.workers(self.kernel).into_iter();
            all.filter(|&pid| parent(pid) == Some(master)).collect()
        };
        let each = |those: Vec<i32>, signal| those.into_iter().for_each(|pid| process::send(pid, signal));
        match interruption {
            Interruption::None => {}
            Interruption::OldWorkers => each(of(old), Signal::KILL),
            Interruption::NewWorkers => each(of(new), Signal::KILL),
            Interruption::OldMaster | Interruption::NewMaster => {
                let gone = if interruption == Interruption::OldMaster { old } else { new };
                process::send(gone, Signal::KILL);
                self.wait(PATIENCE, |_| !process::is_alive(gone));
                std::thread::sleep(Duration::from_millis(u64::from(after_ms)));
                return self.kill_orphans();
            }
        }
        if after_ms > 0 {
            process::send(old, Signal::WINCH);
            std::thread::sleep(Duration::from_millis(u64::from(after_ms)));
        }
        if back {
            if after_ms > 0 {
                process::send(old, Signal::HUP);
            }
            process::send(new, Signal::QUIT);
            self.wait(PATIENCE, |life| life.server.master() == Some(old));
        } else {
            process::send(old, Signal::QUIT);
            self.wait(PATIENCE, |_| !process::is_alive(old));
        }
    }

    /// Until there has been none for a moment: one that was just being forked is called a master still.
    pub(super) fn kill_orphans(&mut self) {
        let known = self.server.master().or_else(|| self.server.masters(self.kernel).first().copied());
        let Some(master) = known else { return };
        let mut since = None;
        self.wait(PATIENCE, |life| {
            let is_orphan =
                |&pid: &i32| pid != master && process::stat(pid).is_some_and(|stat| stat.parent != master);
            let mut orphans = life.server.family(life.kernel);
            orphans.retain(is_orphan);
            orphans.iter().for_each(|&pid| process::send(pid, Signal::KILL));
            is_empty_for(&mut since, orphans.is_empty(), life.kernel.lag() * 10)
        });
    }
}
