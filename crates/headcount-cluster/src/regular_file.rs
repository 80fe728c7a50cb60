//! Reading a file that somebody else may have put there: opening it must not wait, set anything off, or fill our memory.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::AsRawFd;
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, fstat, open};

/// The first `most` bytes of a regular file.
///
/// # Errors
/// It cannot be read, or is something else.
pub fn read_at_most(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    // Only a look: of a FIFO or a device the opening itself does something.
    let looked_at = open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if FileType::from_raw_mode(fstat(&looked_at)?.st_mode) != FileType::RegularFile {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"));
    }
    // Its owner may be asked to give up a lease on it, and some files of /proc wait for content.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = open(format!("/proc/self/fd/{}", looked_at.as_raw_fd()), flags, Mode::empty())?;
    let mut bytes = Vec::new();
    File::from(file).take(most as u64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// All of a regular file that has no more than `most` bytes.
///
/// # Errors
/// It cannot be read, is something else, or is longer.
pub fn read_whole(path: &Path, most: usize) -> io::Result<Vec<u8>> {
    let bytes = read_at_most(path, most + 1)?;
    if bytes.len() > most {
        let why = format!("it is longer than {} KiB", most >> 10);
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_much_of_a_regular_file_and_nothing_of_others() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::write(at("file"), "0123456789").unwrap();
        std::os::unix::fs::symlink(at("file"), at("link")).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, at("fifo"), FileType::Fifo, Mode::RUSR, 0).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        assert_eq!(read_at_most(&at("file"), 4).unwrap(), b"0123");
        assert_eq!(read_at_most(&at("link"), 40).unwrap(), b"0123456789");
        assert_eq!(read_whole(&at("file"), 10).unwrap(), b"0123456789");
        assert!(read_whole(&at("file"), 9).unwrap_err().to_string().contains("longer"));
        for no_file in [at("fifo"), at("socket"), folder.path().to_owned(), "/dev/zero".into()] {
            let error = read_at_most(&no_file, 4).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{}: {error}", no_file.display());
        }
        assert_eq!(read_at_most(&at("missing"), 4).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
