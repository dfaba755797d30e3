//! Exponential back-off with full jitter, for when the server gives no hint: uniformly distributed
//! between zero and a doubling step, so that callers and replicas that were refused together do not
//! retry together.

use std::time::Duration;

/// The wait after the `level`th refusal in a row (starting at 1), at least 1 ms: a random part of a
/// step that doubles from `base` up to `max`. `random` is in 0..1.
pub(crate) fn full_jitter(base: Duration, max: Duration, level: u32, random: f64) -> Duration {
    let step = doubled(base, max, level.saturating_sub(1));
    step.mul_f64(random.clamp(0.0, 1.0))
        .max(Duration::from_millis(1))
}

/// `base`, doubled this many times, at most `max`.
pub(crate) fn doubled(base: Duration, max: Duration, times: u32) -> Duration {
    base.saturating_mul(2_u32.saturating_pow(times)).min(max)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: Duration = Duration::from_millis(200);
    const MAX: Duration = Duration::from_secs(8);

    #[test]
    fn the_step_doubles_up_to_its_maximum() {
        let steps = [1, 2, 3, 6, 7, 40].map(|level| full_jitter(BASE, MAX, level, 1.0).as_millis());
        assert_eq!(steps, [200, 400, 800, 6400, 8000, 8000]);
    }

    #[test]
    fn the_wait_is_spread_from_1_ms_to_the_step() {
        let spread = [0.0, 0.25, 0.5].map(|random| full_jitter(BASE, MAX, 3, random).as_millis());
        assert_eq!(spread, [1, 200, 400]);
    }
}
