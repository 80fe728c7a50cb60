//! How agents spare an etcd that has a lot to do.

use std::time::Duration;

pub const SLOW: Duration = Duration::from_millis(100);
const SPARED: u32 = 4;
const LONGEST: Duration = Duration::from_secs(10);
/// So many failures count as one for which etcd has too much to do.
pub const BUSY: u32 = 3;

/// How long nothing is written after something that took so long.
pub fn spared(time: Duration) -> Duration {
    if time > SLOW { (time * SPARED).min(LONGEST) } else { Duration::ZERO }
}

/// How long an agent waits after so many failures.
pub fn pause(failures: &mut u32) -> Duration {
    let whole = (Duration::from_millis(250) * 2_u32.pow((*failures).min(10))).min(LONGEST);
    *failures += 1;
    whole.mul_f64(0.5 + fastrand::f64() / 2.0)
}
