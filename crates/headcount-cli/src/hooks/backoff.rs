//! How long to wait between two attempts.

use std::time::Duration;

use serde::Deserialize;

use crate::args::duration;

/// `--backoff FIRST..LONGEST`: doubles from the one to the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Backoff {
    first: Duration,
    longest: Duration,
}

impl Backoff {
    /// Reads what was given to `--backoff`.
    pub fn parse(text: &str) -> Result<Backoff, String> {
        let (first, longest) = text.split_once("..").unwrap_or((text, text));
        let backoff = Backoff { first: duration(first)?, longest: duration(longest)? };
        if backoff.longest < backoff.first {
            return Err(format!("{text:?}: the second time must be the longer one, as in 1s..60s"));
        }
        Ok(backoff)
    }

    /// The longest wait.
    pub fn longest(&self) -> Duration {
        self.longest
    }

    /// The wait after so many failures. Half of it is random, so that many hosts do not retry at the same moment. `chance` is
    /// from 0 to 1.
    pub fn wait(&self, failures: u32, chance: f64) -> Duration {
        let factor = 2_u32.checked_pow(failures.saturating_sub(1)).unwrap_or(u32::MAX);
        let wait = self.first.saturating_mul(factor).min(self.longest);
        wait.mul_f64(0.5 + chance.clamp(0.0, 1.0) / 2.0)
    }
}

impl TryFrom<String> for Backoff {
    type Error = String;

    fn try_from(text: String) -> Result<Backoff, String> {
        Backoff::parse(&text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_up_to_the_longest_wait() {
        let backoff = Backoff::parse("1s..60s").expect("two times");
        let waits: Vec<_> = (1..9).map(|failures| backoff.wait(failures, 1.0).as_secs()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        assert_eq!(backoff.wait(u32::MAX, 1.0).as_secs(), 60);
    }

    #[test]
    fn half_of_it_is_chance() {
        let backoff = Backoff::parse("4s").expect("one time");
        assert_eq!(backoff.wait(1, 0.0), Duration::from_secs(2));
        assert_eq!(backoff.wait(1, 0.5), Duration::from_secs(3));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, said) in [("60s..1s", "the longer one"), ("1s..", "allowed"), ("x", "allowed")] {
            assert!(Backoff::parse(text).is_err_and(|e| e.contains(said)), "{text}");
        }
    }

    proptest::proptest! {
        #![proptest_config(proptest::test_runner::Config { failure_persistence: None, ..Default::default() })]

        #[test]
        fn any_text_is_two_times_or_is_refused(
            text in "[0-9]{0,17}(ms|s|m|h|d)?(\\.\\.[0-9]{0,17}(ms|s|m|h|d)?)?|[0-9]{18,20}|\\PC*",
            failures in 0u32..,
            chance in 0.0..=1.0,
        ) {
            if let Ok(backoff) = Backoff::parse(&text) {
                proptest::prop_assert!(backoff.wait(failures, chance) <= backoff.longest);
            }
        }
    }
}
