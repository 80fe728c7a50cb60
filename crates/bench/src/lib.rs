//! Measuring in pairs: on a noisy machine a time says little, and the ratio of two that were taken in turn
//! says much. No benchmark library at hand takes two functions in turn and prints their ratio, so this does.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// The quantiles of a set of measurements.
#[derive(Clone, Debug)]
pub struct Sample(Vec<Duration>);

impl Sample {
    /// Takes the measurements in any order.
    #[must_use]
    pub fn new(mut values: Vec<Duration>) -> Sample {
        assert!(!values.is_empty(), "nothing was measured");
        values.sort_unstable();
        Sample(values)
    }

    /// The value below which the given part (0 to 1) of the measurements lies.
    #[must_use]
    pub fn quantile(&self, part: f64) -> Duration {
        let at = (part * (self.0.len() - 1) as f64).round() as usize;
        self.0[at.min(self.0.len() - 1)]
    }

    /// The middle one.
    #[must_use]
    pub fn median(&self) -> Duration {
        self.quantile(0.5)
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Never: an empty one cannot be made.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl std::fmt::Display for Sample {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "p50 {:>9.3?}  p99 {:>9.3?}  max {:>9.3?}  (n = {})",
            self.median(),
            self.quantile(0.99),
            self.quantile(1.0),
            self.len()
        )
    }
}

/// Runs `a` and `b` in turn, `rounds` times `per_round` calls each; gives the time of one call of each, and
/// the median of the ratios a/b round by round.
pub fn in_turn<A, B>(
    rounds: usize,
    per_round: u32,
    mut a: impl FnMut() -> A,
    mut b: impl FnMut() -> B,
) -> (Duration, Duration, f64) {
    let mut timed = |which: bool| {
        let begun = Instant::now();
        for _ in 0..per_round {
            if which {
                black_box(a());
            } else {
                black_box(b());
            }
        }
        begun.elapsed() / per_round.max(1)
    };
    // Warm caches and the branch predictor; not counted.
    timed(true);
    timed(false);
    let (mut of_a, mut of_b, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        // Each goes first as often as the other.
        let (x, y) = if round % 2 == 0 {
            let x = timed(true);
            (x, timed(false))
        } else {
            let y = timed(false);
            (timed(true), y)
        };
        ratios.push(x.as_secs_f64() / y.as_secs_f64().max(1e-12));
        of_a.push(x);
        of_b.push(y);
    }
    ratios.sort_by(f64::total_cmp);
    (Sample::new(of_a).median(), Sample::new(of_b).median(), ratios[ratios.len() / 2])
}

/// A heading of the printed report.
pub fn heading(text: &str) {
    println!("\n{text}\n{}", "-".repeat(text.len()));
}

/// A line of the printed report: what, the figures, and the goal it is held against.
pub fn line(what: &str, figures: &str, goal: &str) {
    println!("  {what:<46} {figures:<58} goal: {goal}");
}
