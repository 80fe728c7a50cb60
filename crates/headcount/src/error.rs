//! One opaque error that says who is to blame and how to fix it.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

/// What went wrong, as far as a program can act on it.
///
/// The C library's codes are these, in this order, counted down from -1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// An option has a value that is not allowed; the message names it and what is.
    InvalidOption,
    /// The call does not fit the state of the process: not joined, joined already, left.
    WrongState,
    /// The node lock is held by somebody else, and the call was not to wait.
    Busy,
    /// Waiting for the node lock timed out; nothing was done.
    LockTimeout,
    /// The registry has no free slot.
    Full,
    /// There is no such node, generation or process.
    NotFound,
    /// The operating system does not let us read or make the file.
    Permission,
    /// The file is no registry, or only the beginning of one.
    NotARegistry,
    /// The file is a registry with impossible contents.
    Corrupt,
    /// The registry was made by another version of headcount.
    Version,
    /// File or folder belong to, or may be written by, somebody who must not.
    WrongOwner,
    /// The path leads over a symbolic link, or to something that is no regular file.
    SymbolicLink,
    /// No room for the registry on its file system.
    NoSpace,
    /// Another live server uses the registry.
    InUse,
    /// Any other failure of the operating system.
    Io,
    /// The kernel lacks something that is needed.
    Unsupported,
}

impl ErrorKind {
    /// Every kind, in the order of the C library's codes.
    pub const ALL: [ErrorKind; 16] = [
        ErrorKind::InvalidOption,
        ErrorKind::WrongState,
        ErrorKind::Busy,
        ErrorKind::LockTimeout,
        ErrorKind::Full,
        ErrorKind::NotFound,
        ErrorKind::Permission,
        ErrorKind::NotARegistry,
        ErrorKind::Corrupt,
        ErrorKind::Version,
        ErrorKind::WrongOwner,
        ErrorKind::SymbolicLink,
        ErrorKind::NoSpace,
        ErrorKind::InUse,
        ErrorKind::Io,
        ErrorKind::Unsupported,
    ];

    /// The kind's name, as documented for C and Lua: `lock_timeout`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            ErrorKind::InvalidOption => "invalid_option",
            ErrorKind::WrongState => "wrong_state",
            ErrorKind::Busy => "busy",
            ErrorKind::LockTimeout => "lock_timeout",
            ErrorKind::Full => "full",
            ErrorKind::NotFound => "not_found",
            ErrorKind::Permission => "permission",
            ErrorKind::NotARegistry => "not_a_registry",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Version => "version",
            ErrorKind::WrongOwner => "wrong_owner",
            ErrorKind::SymbolicLink => "symbolic_link",
            ErrorKind::NoSpace => "no_space",
            ErrorKind::InUse => "in_use",
            ErrorKind::Io => "io",
            ErrorKind::Unsupported => "unsupported",
        }
    }
}

/// An option whose value is not allowed, for a front that has names and units of its own.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct WrongOption {
    /// Its name, which is that of the method of [`crate::Options`], or `node`.
    pub option: &'static str,
    /// The value, as the error's text shows it.
    pub value: String,
    /// What is allowed.
    pub allowed: Allowed,
}

/// What an option may be.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Allowed {
    /// The name of a node.
    Name,
    /// The name of a role, a once or a lock.
    SingletonName,
    /// The absolute path of a file.
    File,
    /// A time, both ends included.
    Time {
        /// The shortest.
        from: Duration,
        /// The longest.
        to: Duration,
    },
    /// A time that is longer than another option's.
    LongerThan {
        /// That option.
        option: &'static str,
        /// Its value.
        time: Duration,
    },
    /// A whole number, both ends included.
    Number {
        /// The smallest.
        from: u32,
        /// The largest.
        to: u32,
    },
}

impl fmt::Display for Allowed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Allowed::Name => f.write_str("1 to 48 letters, digits, `.`, `_` and `-`, not beginning with `.`"),
            Allowed::SingletonName => f.write_str("1 to 48 letters, digits, `.`, `_` and `-`"),
            Allowed::File => f.write_str("the absolute path of a file, not of a folder"),
            Allowed::Time { from, to } => write!(f, "a time from {from:?} to {to:?}"),
            Allowed::LongerThan { option, time } => {
                write!(f, "a time longer than `{option}`, which is {time:?}")
            }
            Allowed::Number { from, to } => write!(f, "a whole number from {from} to {to}"),
        }
    }
}

/// Any failure of headcount. Its text names the file or process concerned and says how to fix it.
///
/// It repeats what the operating system said, because most texts end up in a log on their own; so there is no
/// [`source`](std::error::Error::source), which whoever prints the whole chain would print a second time.
pub struct Error {
    inner: Box<Inner>,
}

struct Inner {
    kind: ErrorKind,
    message: String,
    wrong_option: Option<WrongOption>,
}

/// The result of most calls.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    pub(crate) fn new(kind: ErrorKind, message: impl Into<String>) -> Error {
        Error { inner: Box::new(Inner { kind, message: message.into(), wrong_option: None }) }
    }

    pub(crate) fn option(option: &'static str, value: impl Into<String>, allowed: Allowed) -> Error {
        let value = value.into();
        let message = format!("option `{option}` is {value}; allowed is {allowed}");
        let wrong_option = Some(WrongOption { option, value, allowed });
        Error { inner: Box::new(Inner { kind: ErrorKind::InvalidOption, message, wrong_option }) }
    }

    /// A failed system call on a file of a server's own node.
    pub(crate) fn file(action: &str, path: &Path, source: io::Error) -> Error {
        let kind = kind_of(&source);
        let fix = match kind {
            _ if source.raw_os_error() == Some(libc::EROFS) => {
                "the file system is read-only: mount a tmpfs there, or set another `path`"
            }
            ErrorKind::Permission => "run the master as the owner of that folder, or set another `path`",
            ErrorKind::SymbolicLink => {
                "a registry must not be a symbolic link: remove it, or set another `path`"
            }
            ErrorKind::NoSpace => "free some room there, or set a `path` on another file system",
            ErrorKind::NotFound => "make that folder, or set another `path`",
            _ => "see the system's message; another `path` may help",
        };
        Error::new(kind, format!("cannot {action} {}: {source} ({fix})", path.display()))
    }

    /// A failed system call on a file of somebody else's node: whoever reads it has no say in its `path`.
    pub(crate) fn of_reader(action: &str, path: &Path, source: io::Error) -> Error {
        let kind = kind_of(&source);
        let fix = match kind {
            ErrorKind::Permission => "run it as the node's owner or root",
            ErrorKind::SymbolicLink => "give the registry itself, not a symbolic link to it",
            ErrorKind::NotFound => "start its server, or give another registry",
            _ if source.kind() == io::ErrorKind::UnexpectedEof => {
                "it was cut short while it was read: start its server again"
            }
            _ => "see the system's message",
        };
        Error::new(kind, format!("cannot {action} {}: {source} ({fix})", path.display()))
    }

    pub(crate) fn io(action: &str, source: io::Error) -> Error {
        Error::new(ErrorKind::Io, format!("cannot {action}: {source}"))
    }

    /// What went wrong, as far as a program can act on it.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.inner.kind
    }

    /// The option that is not allowed, if that is what is wrong.
    #[must_use]
    pub fn wrong_option(&self) -> Option<&WrongOption> {
        self.inner.wrong_option.as_ref()
    }

    /// The lock was held by somebody else: trying again later may succeed.
    #[must_use]
    pub fn is_busy(&self) -> bool {
        matches!(self.kind(), ErrorKind::Busy | ErrorKind::LockTimeout)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.inner.kind.name(), self.inner.message)
    }
}

impl std::error::Error for Error {}

fn kind_of(source: &io::Error) -> ErrorKind {
    match source.raw_os_error() {
        Some(libc::EACCES | libc::EPERM | libc::EROFS) => ErrorKind::Permission,
        Some(libc::ELOOP) => ErrorKind::SymbolicLink,
        Some(libc::ENOSPC | libc::EDQUOT) => ErrorKind::NoSpace,
        Some(libc::ENOENT | libc::ENOTDIR) => ErrorKind::NotFound,
        _ => ErrorKind::Io,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_a_name_of_its_own() {
        let names: std::collections::HashSet<_> = ErrorKind::ALL.iter().map(|k| k.name()).collect();
        assert_eq!(names.len(), ErrorKind::ALL.len());
    }

    #[test]
    fn a_full_disk_is_called_one() {
        let error = Error::file("make", Path::new("/x/y"), io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(error.kind(), ErrorKind::NoSpace);
        assert!(error.to_string().contains("/x/y"));
    }
    #[test]
    fn a_fix_is_for_whoever_reads_it() {
        let missing = || io::Error::from_raw_os_error(libc::ENOENT);
        let path = Path::new("/x/y");
        assert!(Error::file("make", path, missing()).to_string().contains("another `path`"));
        let reader = Error::of_reader("open", path, missing());
        assert_eq!(reader.kind(), ErrorKind::NotFound);
        assert!(reader.to_string().ends_with("(start its server, or give another registry)"), "{reader}");
    }
}
