//! A node of this process, whose registry is overwritten: master and worker in one, as with `master_process off`.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::time::Duration;

use attacker::format::format;
use headcount::{Master, Options};

use crate::{image, room};

/// The node, opened once: what a process has opened it keeps until it ends.
pub(crate) struct Node {
    options: Options,
    file: File,
    /// As it was before anybody came.
    empty: Vec<u8>,
    pub(crate) lock_tag: u32,
}

impl Node {
    pub(crate) fn get() -> &'static Node {
        static NODE: OnceLock<Node> = OnceLock::new();
        NODE.get_or_init(|| {
            let path = room::folder().join("member.registry");
            let options = Options::new("member")
                .path(&path)
                .slots(image::SLOTS)
                .journal_records(image::RECORDS)
                // Longer than a word of the lock is believed that names nobody's process.
                .lock_timeout(Duration::from_millis(100));
            let master = options.open().expect("open");
            let bytes = std::fs::read(&path).expect("read");
            let field = format().table("Slot").field("lock_tag");
            let at = format().table("Header").size + field.offset;
            let tag = bytes[at..].first_chunk().map_or(0, |tag| u32::from_ne_bytes(*tag));
            assert_ne!(tag, 0, "the master's slot is the first, and it has a lock file");
            master.leave(headcount::Wait::Timeout).expect("leave").run(|_| ());
            let mut empty = std::fs::read(&path).expect("read");
            empty.truncate(format().table("Header").size);
            let file = File::options().write(true).open(&path).expect("open");
            Node { options, file, empty, lock_tag: tag }
        })
    }

    /// As the master of a server does at each load of its configuration.
    pub(crate) fn open(&self) -> headcount::Result<Master> {
        self.options.open()
    }

    pub(crate) fn overwrite(&self, bytes: &[u8]) {
        self.overwrite_at(bytes, 0);
    }

    pub(crate) fn overwrite_at(&self, bytes: &[u8], at: u64) {
        self.file.write_all_at(bytes, at).expect("write");
    }

    /// Whoever overwrote it is gone, and the registry is as good as new.
    pub(crate) fn renew(&self, len: usize) {
        let mut bytes = self.empty.clone();
        bytes.resize(len, 0);
        self.overwrite(&bytes);
    }
}
