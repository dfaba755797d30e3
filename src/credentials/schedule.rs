//! When a source is asked again: before its session ends, and after a failure.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::error::FailureKind;
use super::session::Session;
use crate::primitives::backoff;

/// The least time between two requests of a source, also if its sessions are shorter.
pub(super) const MIN_INTERVAL: Duration = Duration::from_secs(1);

/// The longest time before its end at which a session is refreshed. It lets a source be down for a
/// quarter of an hour.
const MAX_WINDOW: Duration = Duration::from_secs(15 * 60);

/// The window is at most the lifetime divided by this. A window as long as the lifetime would ask
/// the source all the time.
const WINDOW_DIVISOR: u32 = 3;

/// The largest part of the window by which a refresh is earlier, so that replicas that started
/// together do not ask together.
const WINDOW_JITTER: f64 = 0.1;

/// The step after the first failure. It doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// The largest step, so that calls are sent within this time after the source works again.
const MAX_RETRY: Duration = Duration::from_secs(30);

/// The step after a permanent failure. It has no jitter: requests would
/// be less than a minute apart.
const PERMANENT_RETRY: Duration = Duration::from_secs(60);

/// The largest part of a step by which a retry is earlier.
const RETRY_JITTER: f64 = 0.2;

/// When a session is refreshed. `random` is in 0..1.
pub(super) fn refresh_at(session: &Session, random: f64) -> Instant {
    let window = MAX_WINDOW.min(session.lifetime() / WINDOW_DIVISOR);
    session.ends() - window - window.mul_f64(WINDOW_JITTER * random.clamp(0.0, 1.0))
}

/// `at` of the monotonic clock, or earlier by the time that this host has slept, or by which its
/// clock was set forward, since the session was obtained.
pub(super) fn by_both_clocks(
    at: Instant,
    session: &Session,
    now: Instant,
    clock: SystemTime,
) -> Instant {
    let left = session.ends().saturating_duration_since(now);
    let left_by_clock = session.ends_at().duration_since(clock).unwrap_or_default();
    at.checked_sub(left.saturating_sub(left_by_clock))
        .unwrap_or(now)
}

/// When the source is asked again after `in_a_row` failures, the last of which began at `begun` and
/// ended at `now`. The step counts from the request's begin: a service that does not answer for 10 s
/// is not asked less often.
pub(super) fn retry_at(
    begun: Instant,
    now: Instant,
    kind: FailureKind,
    in_a_row: u32,
    random: f64,
) -> Instant {
    let step = if kind.is_permanent() {
        PERMANENT_RETRY
    } else {
        let step = backoff::doubled(FIRST_RETRY, MAX_RETRY, in_a_row.saturating_sub(1));
        step.mul_f64(1.0 - RETRY_JITTER * random.clamp(0.0, 1.0))
    };
    (begun + step).max(now + MIN_INTERVAL)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::keeper::fake::obtained;
    use super::*;

    /// Seconds from the start of a session until its refresh: the earliest and the latest.
    fn refreshes_between(lifetime: u64) -> [f64; 2] {
        let now = Instant::now();
        let session = Session::new(obtained("key", lifetime), now, SystemTime::UNIX_EPOCH);
        [1.0, 0.0].map(|random| (refresh_at(&session, random) - now).as_secs_f64())
    }

    /// Milliseconds from the begin of the last of these failures to the next request.
    fn retry_after(kind: FailureKind, in_a_row: u32, took: u64, random: f64) -> u128 {
        let begun = Instant::now();
        let now = begun + Duration::from_secs(took);
        (retry_at(begun, now, kind, in_a_row, random) - begun).as_millis()
    }

    #[test]
    fn a_session_is_refreshed_a_quarter_of_an_hour_or_a_third_before_its_end_and_up_to_a_tenth_earlier()
     {
        assert_eq!(refreshes_between(3600), [2610.0, 2700.0]);
        assert_eq!(refreshes_between(900), [570.0, 600.0]);
        assert_eq!(refreshes_between(600), [380.0, 400.0]);
        assert_eq!(refreshes_between(43_200), [42_210.0, 42_300.0]);
        assert_eq!(refreshes_between(21_600), [20_610.0, 20_700.0]);
        assert_eq!(refreshes_between(3), [1.9, 2.0]);
    }

    #[test]
    fn the_back_off_doubles_from_one_second_to_thirty() {
        let steps =
            [1, 2, 3, 4, 5, 6, 7, 99].map(|n| retry_after(FailureKind::ServiceError, n, 0, 0.0));
        assert_eq!(
            steps,
            [1000, 2000, 4000, 8000, 16_000, 30_000, 30_000, 30_000]
        );
    }

    #[test]
    fn a_retry_is_up_to_a_fifth_earlier_but_not_within_a_second() {
        let steps = [1, 2, 3, 6].map(|n| retry_after(FailureKind::Throttled, n, 0, 1.0));
        assert_eq!(steps, [1000, 1600, 3200, 24_000]);
    }

    #[test]
    fn the_time_of_a_slow_failure_counts() {
        assert_eq!(retry_after(FailureKind::Unreachable, 6, 10, 0.0), 30_000);
        assert_eq!(retry_after(FailureKind::Unreachable, 2, 10, 0.0), 11_000);
    }

    #[test]
    fn what_fails_until_a_change_is_asked_once_a_minute() {
        let slow: Vec<_> = FailureKind::ALL
            .into_iter()
            .filter(|kind| retry_after(*kind, 1, 0, 1.0) == 60_000)
            .collect();
        assert_eq!(slow, [FailureKind::Refused, FailureKind::OldToken]);
    }

    #[test]
    fn a_host_that_slept_refreshes_earlier_by_that_time() {
        let (now, clock) = (Instant::now(), SystemTime::UNIX_EPOCH);
        let session = Session::new(obtained("key", 3600), now, clock);
        let refresh = refresh_at(&session, 0.0);
        let later = now + Duration::from_secs(100);
        let due = [0, 600, 2500].map(|slept| {
            let clock = clock + Duration::from_secs(100 + slept);
            (by_both_clocks(refresh, &session, later, clock) - now).as_secs()
        });
        assert_eq!(due, [2700, 2100, 200]);
        // A clock that was set back does not delay the refresh.
        assert_eq!(by_both_clocks(refresh, &session, later, clock), refresh);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn times_stay_within_their_bounds(
            lifetime in 0..200_000_u64,
            random in 0.0..=1.0_f64,
            in_a_row in 1..u32::MAX,
            took in 0..=10_u64,
            kind in proptest::sample::select(&FailureKind::ALL),
        ) {
            let now = Instant::now();
            let session = Session::new(obtained("key", lifetime), now, SystemTime::UNIX_EPOCH);
            let before_end = session.ends() - refresh_at(&session, random);
            let window = (lifetime as f64 / 3.0).min(900.0);
            prop_assert!(before_end.as_secs_f64() >= window - 1e-6);
            prop_assert!(before_end.as_secs_f64() <= window * 1.1 + 1e-6);

            let retry = retry_after(kind, in_a_row, took, random);
            prop_assert!(retry >= 1000 + 1000 * u128::from(took) || retry >= 24_000);
            prop_assert!(retry <= 60_000);
        }
    }
}
