//! Small things in words.

use std::time::Duration;

use jiff::Timestamp;

/// A duration as people say it, in at most two units: `350 ms`, `4.2 s`, `3 m 12 s`, `2 h 5 m`, `3 d 4 h`.
#[must_use]
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |major: u64, a: &str, minor: u64, b: &str| match minor {
        0 => format!("{major} {a}"),
        _ => format!("{major} {a} {minor} {b}"),
    };
    match seconds {
        0 => format!("{} ms", duration.as_millis()),
        1..10 => format!("{seconds}.{} s", duration.subsec_millis() / 100),
        10..60 => format!("{seconds} s"),
        60..3_600 => two(seconds / 60, "m", seconds % 60, "s"),
        3_600..86_400 => two(seconds / 3_600, "h", seconds % 3_600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3_600, "h"),
    }
}

/// `1 worker`, `2 workers`.
#[must_use]
pub fn plural(number: u64, of: &str) -> String {
    if number == 1 { format!("1 {of}") } else { format!("{number} {of}s") }
}

/// `SIGKILL`, or `signal 77` where it has no name.
#[must_use]
pub fn signal_name(signal: i32) -> String {
    signal_hook::low_level::signal_name(signal).map_or_else(|| format!("signal {signal}"), str::to_owned)
}

/// Nanoseconds since 1970 as RFC 3339 in UTC, to the microsecond. Years end at 9999: a registry may say anything.
#[must_use]
pub fn timestamp(time_ns: u64) -> String {
    let stamp = Timestamp::from_nanosecond(i128::from(time_ns)).unwrap_or(Timestamp::MAX);
    format!("{stamp:.6}")
}

/// More than anybody waits; and a clock can be so much later.
const LONGEST: Duration = Duration::from_secs(u32::MAX as u64);

/// The time that is meant by `500ms`, `60s`, `5m`, `2h`, `1d`; a number alone is seconds.
///
/// # Errors
/// What is no such time, with what is allowed.
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
    fn durations_as_people_say_them() {
        for (ms, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1_000, "1.0 s"),
            (4_260, "4.2 s"),
            (59_999, "59 s"),
            (60_000, "1 m"),
            (192_000, "3 m 12 s"),
            (7_500_000, "2 h 5 m"),
            (273_600_000, "3 d 4 h"),
        ] {
            assert_eq!(age(Duration::from_millis(ms)), text);
        }
    }

    #[test]
    fn time_stamps_are_utc_to_the_microsecond() {
        assert_eq!(timestamp(1_700_000_000_123_456_789), "2023-11-14T22:13:20.123456Z");
        assert!(timestamp(u64::MAX).starts_with("2554-"));
    }

    #[test]
    fn signals_have_names() {
        assert_eq!((signal_name(9).as_str(), signal_name(77).as_str()), ("SIGKILL", "signal 77"));
    }
}
