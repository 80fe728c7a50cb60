//! Arguments that several commands share.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

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

/// More than anybody waits; and a clock can be so much later.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

/// `500ms`, `60s`, `5m`, `2h`, `1d`; a number alone is seconds.
pub fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || {
        format!(
            "{text:?} is not a time; allowed are a number and ms, s, m, h or d, such as 500ms, 60s or 5m, up to 49710d"
        )
    };
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let seconds = |factor: u64| number.checked_mul(factor).map(Duration::from_secs);
    let time = match unit {
        "ms" => Some(Duration::from_millis(number)),
        "" | "s" => seconds(1),
        "m" => seconds(60),
        "h" => seconds(3_600),
        "d" => seconds(86_400),
        _ => None,
    };
    time.filter(|&time| time <= LONGEST).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
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
