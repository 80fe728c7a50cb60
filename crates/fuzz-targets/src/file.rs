//! Any file at all, of any size, in the place of a registry: as a reader finds it, and as a server that starts there.

use headcount::{ErrorKind, Observer, Options};

use crate::room;

/// More than the smallest registry has.
const MOST: usize = 1 << 16;

/// The bytes are the file; but where they begin with `size:` and a number, it has that size.
pub(crate) fn run(bytes: &[u8]) {
    let path = room::folder().join("file.registry");
    let size = bytes.strip_prefix(b"size:").and_then(|rest| rest.first_chunk::<4>());
    let (content, size) = match size {
        Some(size) => (&bytes[9..], u64::from(u32::from_le_bytes(*size)) & 0x00ff_ffff),
        None => (bytes, bytes.len() as u64),
    };
    std::fs::write(&path, &content[..content.len().min(MOST)]).expect("write");
    let file = std::fs::File::options().write(true).open(&path).expect("open");
    file.set_len(size).expect("set the size");
    match Observer::open(&path) {
        Ok(observer) => {
            let about = observer.registry().expect("it can be read");
            assert_eq!((about.format, about.size), (2, size), "what is opened is of this size");
            assert!(observer.snapshot().is_ok());
        }
        Err(error) => {
            let kinds = [ErrorKind::NotARegistry, ErrorKind::Version, ErrorKind::Corrupt];
            assert!(kinds.contains(&error.kind()), "{error}");
            assert!(error.to_string().contains("file.registry"), "{error} names the file");
        }
    }
    // A server's test of its configuration.
    if let Err(error) = Options::new("file").path(&path).look() {
        assert_eq!(error.kind(), ErrorKind::NotARegistry, "anything else is replaced: {error}");
    }
}
