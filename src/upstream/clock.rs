//! How far CAMS's clock is from this host's, by the `Date` of its answers. CAMS refuses a request
//! whose time stamp is more than 15 minutes off, so stamps are corrected by a significant offset.
//!
//! An answer's `Date` has whole seconds and was written at some moment between the request and the
//! answer, so one answer gives an interval of offsets. Intervals that overlap narrow each other.
//! One that does not overlap (a clock was set) counts only after a second one confirms it, or if
//! CAMS has refused the stamp that it corrects.
//!
//! CAMS refuses a stamp that is more than 15 minutes from its clock, which is evidence as well: a
//! `Date` that is further than that from an accepted stamp is wrong and is ignored, and a correction
//! ends if CAMS refuses a stamp that it made and the refusal's `Date` does not explain why.
//!
//! A wrong `Date` cannot do harm: only complete answers of CAMS count, which come over verified TLS
//! unless the operator permits plaintext, where an attacker could change the calls as well. Stamps
//! move by at most a day, so that no stamp is of use long after its time. If the correction is
//! wrong, CAMS refuses the stamps, and its refusal carries the right time.

use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hyper::header::{DATE, HeaderMap};
use parking_lot::Mutex;
use tokio::time::Instant;

/// Offset in milliseconds from which stamps are corrected. `Date` and the network explain one or
/// two seconds.
const SIGNIFICANT: i64 = 10_000;

/// Offset in milliseconds below which stamps are no longer corrected. Less than `SIGNIFICANT`, so
/// that an offset near it is not logged again and again.
const NEGLIGIBLE: i64 = 5_000;

/// Largest correction in milliseconds: a wrong time zone is within a day.
const MAX_CORRECTION: i64 = 24 * 3600 * 1000;

/// How far a stamp may be from CAMS's clock, in milliseconds.
const ACCEPTED: i64 = 15 * 60 * 1000;

/// Time in milliseconds between two answers whose `Date` is read. Reading more of them would cost
/// each call and would not make stamps of whole seconds better.
const INTERVAL: u64 = 1_000;

/// CAMS's clock relative to this host's.
pub(crate) struct UpstreamClock {
    /// The upstream's name in logs.
    url: Box<str>,
    /// Whether stamps are corrected.
    correct: bool,
    start: Instant,
    /// When the next answer is read, in milliseconds after `start`.
    next: AtomicU64,
    /// What is added to stamps, in milliseconds.
    correction: AtomicI64,
    state: Mutex<State>,
}

/// What is added to this host's time for a stamp, in milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Correction(i64);

#[derive(Default)]
struct State {
    filter: OffsetFilter,
    /// Whether the offset is significant.
    is_off: bool,
}

/// The offsets that are possible after one or more answers: CAMS's time minus this host's, in
/// milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Offsets {
    low: i64,
    high: i64,
}

/// The offsets that the recent answers agree on.
#[derive(Default)]
struct OffsetFilter {
    agreed: Option<Offsets>,
    /// From the last answer, if it does not fit.
    unconfirmed: Option<Offsets>,
}

// === impl UpstreamClock ===

impl UpstreamClock {
    /// `correct`: whether stamps are corrected.
    pub(crate) fn new(url: &str, correct: bool, now: Instant) -> Self {
        Self {
            url: url.into(),
            correct,
            start: now,
            next: AtomicU64::new(0),
            correction: AtomicI64::new(0),
            state: Mutex::default(),
        }
    }

    /// The correction of stamps now.
    pub(crate) fn correction(&self) -> Correction {
        Correction(self.correction.load(Ordering::Relaxed))
    }

    /// CAMS's time minus this host's, in seconds. `None` until enough answers agree.
    pub(crate) fn offset(&self) -> Option<f64> {
        let agreed = self.state.lock().filter.agreed;
        agreed.map(|offsets| seconds(offsets.middle()))
    }

    /// Whether the `Date` of an answer that arrives now is to be read. True about once a second.
    pub(crate) fn is_due(&self, now: Instant) -> bool {
        let now = u64::try_from((now - self.start).as_millis()).unwrap_or(u64::MAX);
        let next = self.next.load(Ordering::Relaxed);
        now >= next
            && self
                .next
                .compare_exchange(next, now + INTERVAL, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    /// CAMS has accepted a stamp with this correction. Its answer has these headers and arrived at
    /// `now`, this long after the request.
    pub(crate) fn answered(
        &self,
        headers: &HeaderMap,
        took: Duration,
        now: SystemTime,
        correction: Correction,
    ) {
        let offsets = Offsets::of(headers, took, now);
        if let Some(offsets) = offsets.filter(|offsets| offsets.accept(correction)) {
            let mut state = self.state.lock();
            state.filter.add(offsets);
            self.apply(&mut state);
        }
    }

    /// CAMS has refused a stamp with this correction by such an answer. The answer's time counts at
    /// once.
    pub(crate) fn stamp_refused(
        &self,
        headers: &HeaderMap,
        took: Duration,
        now: SystemTime,
        correction: Correction,
    ) {
        let mut state = self.state.lock();
        let is_corrected = correction.0 != 0;
        match Offsets::of(headers, took, now) {
            Some(offsets) if !(is_corrected && offsets.accept(correction)) => {
                state.filter.replace(offsets);
                self.apply(&mut state);
            }
            _ if is_corrected && correction == self.correction() => {
                *state = State::default();
                self.correction.store(0, Ordering::Relaxed);
                tracing::warn!(
                    upstream = &*self.url,
                    "CAMS rejected a corrected time stamp: stamps are not corrected until its clock is known again"
                );
            }
            _ => {}
        }
    }

    fn apply(&self, state: &mut State) {
        let Some(offsets) = state.filter.agreed else {
            return;
        };
        let offset = offsets.middle();
        let offset_seconds = seconds(offset);
        let threshold = if state.is_off {
            NEGLIGIBLE
        } else {
            SIGNIFICANT
        };
        let is_off = offsets.distance() >= threshold;
        let was_off = std::mem::replace(&mut state.is_off, is_off);
        let corrects = is_off && self.correct && offset.abs() <= MAX_CORRECTION;
        let correction = if corrects { offset } else { 0 };
        self.correction.store(correction, Ordering::Relaxed);
        if is_off && !was_off {
            tracing::warn!(
                upstream = &*self.url,
                offset_seconds,
                corrected = corrects,
                "the clock of this host differs from CAMS's"
            );
        } else if was_off && !is_off {
            tracing::info!(
                upstream = &*self.url,
                offset_seconds,
                "the clock of this host agrees with CAMS's"
            );
        }
    }
}

/// The time of an answer, if its `Date` is one.
pub(crate) fn date(headers: &HeaderMap) -> Option<SystemTime> {
    let date = headers.get(DATE)?.to_str().ok()?;
    httpdate::parse_http_date(date).ok()
}

fn shifted(time: SystemTime, millis: i64) -> SystemTime {
    let by = Duration::from_millis(millis.unsigned_abs());
    let shifted = if millis < 0 {
        time.checked_sub(by)
    } else {
        time.checked_add(by)
    };
    shifted.unwrap_or(time)
}

/// Milliseconds since 1970; negative before.
fn millis(time: SystemTime) -> i64 {
    // Within this bound sums and differences of such times cannot overflow.
    let bound = i64::MAX / 4;
    match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_millis()).map_or(bound, |millis| millis.min(bound)),
        Err(before) => {
            i64::try_from(before.duration().as_millis()).map_or(-bound, |millis| -millis.min(bound))
        }
    }
}

#[expect(clippy::cast_precision_loss, reason = "exact for 285,000 years")]
fn seconds(millis: i64) -> f64 {
    millis as f64 / 1000.0
}

// === impl Correction ===

impl Correction {
    /// The time for a stamp. `now` is this host's time.
    pub(crate) fn apply(self, now: SystemTime) -> SystemTime {
        shifted(now, self.0)
    }
}

// === impl Offsets ===

impl Offsets {
    fn of(headers: &HeaderMap, took: Duration, now: SystemTime) -> Option<Self> {
        let date = millis(date(headers)?);
        let received = millis(now);
        let sent = millis(now.checked_sub(took)?);
        Some(Self {
            low: date - received,
            // The fraction of the second is cut off.
            high: date + 1000 - sent,
        })
    }

    /// The offsets that both have.
    fn shared_with(self, other: Self) -> Option<Self> {
        let shared = Self {
            low: self.low.max(other.low),
            high: self.high.min(other.high),
        };
        (shared.low <= shared.high).then_some(shared)
    }

    /// Whether CAMS can accept a stamp with this correction.
    fn accept(self, correction: Correction) -> bool {
        let least = self.low.saturating_sub(ACCEPTED);
        let most = self.high.saturating_add(ACCEPTED);
        (least..=most).contains(&correction.0)
    }

    fn middle(self) -> i64 {
        i64::midpoint(self.low, self.high)
    }

    /// The distance from zero of the nearest of them.
    fn distance(self) -> i64 {
        self.low.max(-self.high).max(0)
    }
}

// === impl OffsetFilter ===

impl OffsetFilter {
    fn add(&mut self, offsets: Offsets) {
        let mut known = [self.agreed, self.unconfirmed].into_iter().flatten();
        match known.find_map(|known| known.shared_with(offsets)) {
            Some(shared) => self.replace(shared),
            None => self.unconfirmed = Some(offsets),
        }
    }

    fn replace(&mut self, offsets: Offsets) {
        self.agreed = Some(offsets);
        self.unconfirmed = None;
    }
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    const TOOK: Duration = Duration::from_millis(40);

    fn clock(correct: bool) -> UpstreamClock {
        UpstreamClock::new("https://cams.example:443", correct, Instant::now())
    }

    /// This host's time: 300 ms after a full second.
    fn now() -> SystemTime {
        UNIX_EPOCH + Duration::from_millis(1_795_488_846_300)
    }

    /// The headers of an answer that CAMS gives now, if its clock is this many seconds ahead.
    fn ahead(seconds: i64) -> HeaderMap {
        let date = httpdate::fmt_http_date(shifted(now(), seconds * 1000));
        HeaderMap::from_iter([(DATE, HeaderValue::from_str(&date).unwrap())])
    }

    /// The correction in whole seconds.
    fn correction(clock: &UpstreamClock) -> i64 {
        (millis(clock.correction().apply(now())) - millis(now())).div_euclid(1000)
    }

    #[test]
    fn two_answers_that_agree_correct_stamps() {
        for off in [-890, -600, -15, 15, 600, 890] {
            let clock = clock(true);
            clock.answered(&ahead(off), TOOK, now(), clock.correction());
            assert_eq!((correction(&clock), clock.offset()), (0, None), "{off}");
            clock.answered(&ahead(off), TOOK, now(), clock.correction());
            assert_eq!(correction(&clock), off);
            let offset = clock.offset().unwrap();
            assert!(
                (offset - seconds(off * 1000)).abs() <= 1.0,
                "{off}: {offset}"
            );
        }
    }

    #[test]
    fn an_insignificant_offset_is_shown_and_not_corrected() {
        let clock = clock(true);
        for _ in 0..2 {
            clock.answered(&ahead(8), TOOK, now(), clock.correction());
        }
        assert_eq!(correction(&clock), 0);
        assert!((clock.offset().unwrap() - 8.0).abs() <= 1.0);
        // An answer that took 30 s may have been written at any moment of them.
        for _ in 0..2 {
            clock.stamp_refused(
                &ahead(-20),
                Duration::from_secs(30),
                now(),
                clock.correction(),
            );
        }
        assert_eq!(correction(&clock), 0);
    }

    #[test]
    fn the_correction_ends_below_the_offset_at_which_it_begins() {
        let clock = clock(true);
        for (off, corrected) in [(8, 0), (12, 12), (8, 8), (3, 0), (8, 0)] {
            for _ in 0..2 {
                clock.answered(&ahead(off), TOOK, now(), clock.correction());
            }
            assert_eq!(correction(&clock), corrected, "{off}");
        }
    }

    #[test]
    fn one_odd_answer_changes_nothing() {
        let clock = clock(true);
        for off in [60, 60, 7200, 60, -7200, 60] {
            clock.answered(&ahead(off), TOOK, now(), clock.correction());
        }
        assert_eq!(correction(&clock), 60);
        clock.answered(&HeaderMap::new(), TOOK, now(), clock.correction());
        let odd = HeaderMap::from_iter([(DATE, HeaderValue::from_static("yesterday"))]);
        clock.answered(&odd, TOOK, now(), clock.correction());
        assert_eq!(correction(&clock), 60);
    }

    #[test]
    fn an_answer_that_refuses_the_stamp_counts_at_once() {
        let clock = clock(true);
        clock.stamp_refused(&ahead(-1200), TOOK, now(), clock.correction());
        assert_ne!(clock.correction(), Correction(0));
        assert_eq!(correction(&clock), -1200);
        // This host's clock was set: the correction is what is wrong now.
        clock.stamp_refused(&ahead(0), TOOK, now(), clock.correction());
        assert_eq!(clock.correction(), Correction(0));
    }

    #[test]
    fn a_date_that_contradicts_an_accepted_stamp_is_ignored() {
        let clock = clock(true);
        for off in [1200, 1200, -28_800, -28_800] {
            clock.answered(&ahead(off), TOOK, now(), clock.correction());
        }
        assert_eq!((correction(&clock), clock.offset()), (0, None));
        // With a correction, what is accepted is near the corrected time.
        clock.stamp_refused(&ahead(1200), TOOK, now(), clock.correction());
        for off in [0, 0] {
            clock.answered(&ahead(off), TOOK, now(), clock.correction());
        }
        assert_eq!(correction(&clock), 1200);
    }

    #[test]
    fn a_refused_correction_ends_unless_the_refusal_has_another_time() {
        let without_date = HeaderMap::new();
        for refusal in [&ahead(1200), &without_date] {
            let clock = clock(true);
            clock.stamp_refused(&ahead(1200), TOOK, now(), clock.correction());
            let refuted = clock.correction();
            assert_ne!(refuted, Correction(0));
            clock.stamp_refused(refusal, TOOK, now(), refuted);
            assert_eq!(clock.correction(), Correction(0));
            // One that was sent before does not end a later correction.
            clock.stamp_refused(&ahead(-1200), TOOK, now(), clock.correction());
            clock.stamp_refused(refusal, TOOK, now(), Correction(0));
            assert_eq!(
                correction(&clock),
                if refusal.is_empty() { -1200 } else { 1200 }
            );
        }
        let clock = clock(true);
        clock.stamp_refused(&ahead(1200), TOOK, now(), clock.correction());
        clock.stamp_refused(&ahead(-1200), TOOK, now(), clock.correction());
        assert_eq!(correction(&clock), -1200);
    }

    #[test]
    fn a_correction_is_at_most_a_day() {
        let clock = clock(true);
        for (off, corrected) in [
            (86_000, 86_000),
            (87_000, 0),
            (-86_000, -86_000),
            (-87_000, 0),
            // 1970 and the year 7500.
            (-1_795_000_000, 0),
            (172_800_000_000, 0),
        ] {
            clock.stamp_refused(&ahead(off), TOOK, now(), clock.correction());
            assert_eq!(correction(&clock), corrected, "{off}");
        }
        let before_1970 = UNIX_EPOCH - Duration::from_secs(5);
        clock.stamp_refused(&ahead(0), TOOK, before_1970, clock.correction());
        assert_eq!(clock.correction().apply(before_1970), before_1970);
    }

    #[test]
    fn nothing_is_corrected_unless_configured() {
        let clock = clock(false);
        clock.stamp_refused(&ahead(1200), TOOK, now(), clock.correction());
        assert_eq!(correction(&clock), 0);
        assert!((clock.offset().unwrap() - 1200.0).abs() <= 1.0);
    }

    #[test]
    fn intervals_narrow_each_other() {
        let mut filter = OffsetFilter::default();
        let all = [(0, 1000), (-300, 700), (400, 1400), (-900, 500)];
        for (low, high) in all {
            filter.add(Offsets { low, high });
        }
        let narrowed = Offsets {
            low: 400,
            high: 500,
        };
        assert_eq!(filter.agreed, Some(narrowed));
        assert_eq!((narrowed.middle(), narrowed.distance()), (450, 400));
    }

    #[tokio::test(start_paused = true)]
    async fn about_one_answer_a_second_is_read() {
        let clock = clock(true);
        let mut read = 0;
        for _ in 0..100 {
            read += u32::from(clock.is_due(Instant::now()));
            tokio::time::advance(Duration::from_millis(50)).await;
        }
        assert_eq!(read, 5);
    }
}
