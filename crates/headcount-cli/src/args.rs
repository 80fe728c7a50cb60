//! Arguments that several commands share.

use std::path::PathBuf;

use clap::Args;
pub use headcount_report::duration;

/// Which node is meant.
#[derive(Args, Clone, Debug, Default)]
pub struct NodeSelector {
    /// The node with this name
    #[arg(long, global = true, value_name = "NAME")]
    pub node: Option<String>,
    /// The node with this registry file
    #[arg(long, global = true, value_name = "PATH", conflicts_with = "node")]
    pub registry: Option<PathBuf>,
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn times() {
        assert_eq!(duration("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(
            (duration("7"), duration("2m")),
            (Ok(Duration::from_secs(7)), Ok(Duration::from_secs(120)))
        );
        for wrong in
            ["", "s", "-1s", "1.5s", "3 s", "4w", "99999999999999999999s", "18446744073709551615s", "50000d"]
        {
            assert!(duration(wrong).is_err_and(|e| e.contains("allowed")), "{wrong}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_text_is_a_time_that_can_be_waited_for_or_is_refused(text in "[0-9]{0,17}(ms|s|m|h|d|x)?|[0-9]{18,20}(ms|s)?|\\PC*") {
            if let Ok(time) = duration(&text) {
                proptest::prop_assert!(std::time::Instant::now().checked_add(time).is_some());
            }
        }
    }
}
