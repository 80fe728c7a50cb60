//! What a call returns: a code for each kind of error, one to one.

use headcount_core::ErrorKind;

/// Done; nothing to report, and the node lock is not held.
pub const HEADCOUNT_OK: i32 = 0;
/// An event was filled in, and THE NODE LOCK IS HELD: act on it, then call `headcount_next` until it
/// returns something else.
pub const HEADCOUNT_EVENT: i32 = 1;

/// An option or argument has a value that is not allowed; the message names it and what is.
pub const HEADCOUNT_ERR_INVALID_OPTION: i32 = -1;
/// The call does not fit the state of the process: not joined, joined already, left.
pub const HEADCOUNT_ERR_WRONG_STATE: i32 = -2;
/// The node lock is held by somebody else, and the call was not to wait.
pub const HEADCOUNT_ERR_BUSY: i32 = -3;
/// Waiting for the node lock timed out; nothing was done.
pub const HEADCOUNT_ERR_LOCK_TIMEOUT: i32 = -4;
/// The registry has no free slot.
pub const HEADCOUNT_ERR_FULL: i32 = -5;
/// There is no such node, generation, process or message.
pub const HEADCOUNT_ERR_NOT_FOUND: i32 = -6;
/// The operating system does not let us read or make the file.
pub const HEADCOUNT_ERR_PERMISSION: i32 = -7;
/// The file is no registry, or only the beginning of one.
pub const HEADCOUNT_ERR_NOT_A_REGISTRY: i32 = -8;
/// The file is a registry with impossible contents.
pub const HEADCOUNT_ERR_CORRUPT: i32 = -9;
/// The registry was made by another version of headcount.
pub const HEADCOUNT_ERR_VERSION: i32 = -10;
/// File or folder belong to, or may be written by, somebody who must not.
pub const HEADCOUNT_ERR_WRONG_OWNER: i32 = -11;
/// The path leads over a symbolic link, or to something that is no regular file.
pub const HEADCOUNT_ERR_SYMBOLIC_LINK: i32 = -12;
/// No room for the registry on its file system.
pub const HEADCOUNT_ERR_NO_SPACE: i32 = -13;
/// Another live server uses the registry.
pub const HEADCOUNT_ERR_IN_USE: i32 = -14;
/// Any other failure of the operating system.
pub const HEADCOUNT_ERR_IO: i32 = -15;
/// The kernel lacks something that is needed.
pub const HEADCOUNT_ERR_UNSUPPORTED: i32 = -16;
/// A bug in headcount: please report it, with the message.
pub const HEADCOUNT_ERR_PANIC: i32 = -100;
/// The caller's structure has another size than the library's: they are of different versions.
pub const HEADCOUNT_ERR_ABI_MISMATCH: i32 = -101;

/// Every failure that C can see: the core's, and two of the border's own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Code {
    Core(ErrorKind),
    Panic,
    AbiMismatch,
}

impl Code {
    pub(crate) fn all() -> impl Iterator<Item = Code> {
        ErrorKind::ALL.into_iter().map(Code::Core).chain([Code::Panic, Code::AbiMismatch])
    }

    pub(crate) fn number(self) -> i32 {
        match self {
            // The position in `ALL` is the contract; a kind that is not in it would be a fault of ours.
            Code::Core(kind) => {
                (1..).zip(ErrorKind::ALL).find(|(_, k)| *k == kind).map_or(HEADCOUNT_ERR_PANIC, |(n, _)| -n)
            }
            Code::Panic => HEADCOUNT_ERR_PANIC,
            Code::AbiMismatch => HEADCOUNT_ERR_ABI_MISMATCH,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Code::Core(kind) => kind.name(),
            Code::Panic => "panic",
            Code::AbiMismatch => "abi_mismatch",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Code {
        fn from_number(number: i32) -> Option<Code> {
            match number {
                HEADCOUNT_ERR_INVALID_OPTION => Some(Code::Core(ErrorKind::InvalidOption)),
                HEADCOUNT_ERR_WRONG_STATE => Some(Code::Core(ErrorKind::WrongState)),
                HEADCOUNT_ERR_BUSY => Some(Code::Core(ErrorKind::Busy)),
                HEADCOUNT_ERR_LOCK_TIMEOUT => Some(Code::Core(ErrorKind::LockTimeout)),
                HEADCOUNT_ERR_FULL => Some(Code::Core(ErrorKind::Full)),
                HEADCOUNT_ERR_NOT_FOUND => Some(Code::Core(ErrorKind::NotFound)),
                HEADCOUNT_ERR_PERMISSION => Some(Code::Core(ErrorKind::Permission)),
                HEADCOUNT_ERR_NOT_A_REGISTRY => Some(Code::Core(ErrorKind::NotARegistry)),
                HEADCOUNT_ERR_CORRUPT => Some(Code::Core(ErrorKind::Corrupt)),
                HEADCOUNT_ERR_VERSION => Some(Code::Core(ErrorKind::Version)),
                HEADCOUNT_ERR_WRONG_OWNER => Some(Code::Core(ErrorKind::WrongOwner)),
                HEADCOUNT_ERR_SYMBOLIC_LINK => Some(Code::Core(ErrorKind::SymbolicLink)),
                HEADCOUNT_ERR_NO_SPACE => Some(Code::Core(ErrorKind::NoSpace)),
                HEADCOUNT_ERR_IN_USE => Some(Code::Core(ErrorKind::InUse)),
                HEADCOUNT_ERR_IO => Some(Code::Core(ErrorKind::Io)),
                HEADCOUNT_ERR_UNSUPPORTED => Some(Code::Core(ErrorKind::Unsupported)),
                HEADCOUNT_ERR_PANIC => Some(Code::Panic),
                HEADCOUNT_ERR_ABI_MISMATCH => Some(Code::AbiMismatch),
                _ => None,
            }
        }
    }

    #[test]
    fn every_kind_has_a_code_and_every_code_its_kind() {
        let mut numbers = std::collections::HashSet::new();
        for code in Code::all() {
            let number = code.number();
            assert!(number < 0, "{code:?} has {number}");
            assert!(numbers.insert(number), "{number} stands for two kinds");
            assert_eq!(Code::from_number(number), Some(code), "there and back by way of {number}");
        }
        assert_eq!(numbers.len(), ErrorKind::ALL.len() + 2);
        let strays = (-200..=200).filter(|n| Code::from_number(*n).is_some() && !numbers.contains(n));
        assert_eq!(strays.count(), 0);
    }
}
