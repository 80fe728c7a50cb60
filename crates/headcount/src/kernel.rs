//! What this kernel can do for headcount, for those who look for the reason of an `unknown`.

use crate::sys::process;

/// What the kernel offers, found out by trying. Its version says little: distributions carry features back.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KernelFeatures {
    /// Its release, as `uname -r` has it.
    pub release: String,
    /// `pidfd_open` (Linux 5.3): deaths are seen at once. Without it nobody can watch.
    pub pidfd: bool,
    /// The wait status of strangers by `PIDFD_GET_INFO` (Linux 6.15): deaths are reported with signal or exit code,
    /// also where no master passes on what `waitpid` told. `None`: it could not be tried.
    pub exit_info: Option<bool>,
    /// How many descriptors this process may have open.
    pub descriptors: u64,
    /// How far it may raise that itself.
    pub most_descriptors: u64,
}

/// Tries what the kernel offers.
///
/// It forks a child that ends at once, and waits for it: for a program that looks, not for a server that has other
/// children to wait for.
#[must_use]
pub fn kernel_features() -> KernelFeatures {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    KernelFeatures {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        pidfd: process::open_pidfd(process::pid()).is_ok(),
        exit_info: process::tells_exits(),
        // None is "no limit".
        descriptors: limit.current.unwrap_or(u64::MAX),
        most_descriptors: limit.maximum.unwrap_or(u64::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_offers_is_found_out() {
        let found = kernel_features();
        assert!(
            found.pidfd && found.exit_info.is_some() && found.descriptors <= found.most_descriptors,
            "{found:?}"
        );
        let numbers: Vec<u32> = found.release.split(['.', '-']).map_while(|part| part.parse().ok()).collect();
        // It came with 6.15, and has not gone since.
        if numbers >= vec![6, 15] {
            assert_eq!(found.exit_info, Some(true), "{found:?}");
        }
    }
}
