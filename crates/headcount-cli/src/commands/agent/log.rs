//! The agent's log: a line for each event.

use std::io::{self, Write};

use tracing::Subscriber;

use crate::escape::escape;

/// Whoever keeps the log notes the time.
pub fn to<W: Write>(to: impl Fn() -> W + Send + Sync + 'static) -> impl Subscriber + Send + Sync {
    let log = tracing_subscriber::fmt().without_time().with_target(false).with_ansi(false);
    log.with_writer(move || PlainLog(to())).finish()
}

/// Others have a say in what is logged: names of nodes, of processes, what etcd holds. Each event stays one line, and none of it is obeyed.
struct PlainLog<W>(W);

impl<W: Write> Write for PlainLog<W> {
    /// The logger gives an event as a whole.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event);
        let line = escape(text.strip_suffix('\n').unwrap_or(&text)).into_owned() + "\n";
        // Whoever read our log may be gone. The logger would panic, and with it whatever had something to say.
        let _ = self.0.write_all(line.as_bytes());
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Kept(Arc<Mutex<Vec<u8>>>);

    impl Write for Kept {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn an_event_is_one_line_whatever_others_have_written_into_it_and_nothing_in_it_is_obeyed() {
        let kept = Kept::default();
        let log = kept.clone();
        tracing::subscriber::with_default(to(move || log.clone()), || {
            tracing::warn!("{} is skipped", "hosts/a\n WARN all is lost\r\u{1b}[2J\u{9b}31m\u{202e}");
            tracing::info!("host {} has joined", "Ä");
        });
        let said = String::from_utf8(kept.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = said.split_terminator('\n').collect();
        assert!(lines.len() == 2 && said.ends_with('\n'), "{said:?}");
        assert!(lines[0].starts_with(" WARN hosts/a\\u{a} WARN all is lost\\u{d}"), "{said:?}");
        assert!(lines[0].ends_with("\\u{202e} is skipped"), "{said:?}");
        assert!(!lines[0].contains(char::is_control), "{said:?}");
        assert_eq!(lines[1], " INFO host Ä has joined");
    }
}
