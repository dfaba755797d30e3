//! Decides whether the lane may send at all. A throttle refusal pauses the lane, not the call:
//! nothing is sent before the pause ends, then one probe, then the normal rate. An operator may
//! pause the lane, too. Only decides; the lane reports what was sent and how it ended.
//!
//! Refusals of attempts that were written before the first of them was known are one episode and
//! count once: five attempts that are throttled together must not multiply the back-off by five.
//!
//! A single refusal among accepted attempts is not an episode. Its cause may be jitter, or one call
//! of an outsider. The lane pauses briefly and sends no probe. A server's hint always pauses the
//! lane.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Retry;
use crate::primitives::backoff;

/// The pause state of one lane.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    /// Nothing is sent before this.
    until: Option<Instant>,
    probe: Probe,
    /// When the first refusal of the latest episode was known.
    known_at: Option<Instant>,
    /// Episodes in a row without a probe that passed; the exponent of the back-off.
    level: u32,
    /// An operator's pause. No probe follows it, because CAMS has not throttled.
    operator: Option<OperatorPause>,
}

/// The length of an operator's pause.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperatorPause {
    /// Until an operator resumes it.
    Indefinite,
    /// Until then, unless an operator resumes the lane earlier.
    Until(Instant),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Probe {
    #[default]
    NotNeeded,
    /// The next grant is the probe.
    Due,
    /// The probe has been in progress since then. Its end decides.
    InFlight(Instant),
}

/// How long a lane waits for its probe. A refusal arrives immediately, so a slower answer is not
/// one, and a slow call must not stop all the others.
pub(crate) const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// The longest pause after an isolated refusal.
const MAX_ISOLATED_PAUSE: Duration = Duration::from_millis(50);

/// The forecast length of an indefinite pause. Calls with less time left are refused immediately.
const INDEFINITE_PAUSE_FORECAST: Duration = Duration::from_secs(60);

/// Whether the lane may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// It may send.
    Open,
    /// It may not send before this time, or before the probe has ended.
    Until(Instant),
}

/// How a refusal relates to the earlier ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Episode {
    /// The first refusal since the lane's last pause.
    New,
    /// The attempt was written before the first refusal of the current episode was known.
    Same,
    /// A single refusal among accepted attempts: a brief pause and no probe.
    Isolated,
}

// === impl Pause ===

impl Pause {
    pub(crate) fn gate(&self, now: Instant) -> Gate {
        let probed = match self.probe {
            Probe::InFlight(since) => Some(since + PROBE_TIMEOUT),
            Probe::NotNeeded | Probe::Due => None,
        };
        match self.until.max(probed).max(self.operator_pause_end(now)) {
            Some(until) if until > now => Gate::Until(until),
            _ => Gate::Open,
        }
    }

    /// Whether a new state would do as well: no pause is in force, no probe is due or in progress
    /// and the back-off is at its base, or the lane has been quiet for longer than the longest
    /// pause.
    pub(crate) fn is_at_rest(&self, policy: &Retry, now: Instant) -> bool {
        if self.operator_pause(now).is_some() {
            return false;
        }
        let Some(until) = self.until else {
            return true;
        };
        let has_recovered = until <= now && self.probe == Probe::NotNeeded && self.level == 0;
        has_recovered || until + policy.max_pause <= now
    }

    /// When the lane may send again if nothing else happens. For forecasts.
    pub(crate) fn open_at(&self, now: Instant) -> Instant {
        self.until
            .max(self.operator_pause_end(now))
            .map_or(now, |until| until.max(now))
    }

    /// Adopts the store's pause: nothing is sent before `open`, nor before the end of a pause that
    /// this process started itself. The store deals the probe.
    pub(crate) fn adopt_store_pause(&mut self, open: Instant) {
        *self = Self {
            until: self.until.max(Some(open)),
            operator: self.operator,
            ..Self::default()
        };
    }

    /// An operator pauses the lane for `time`, or until it is resumed.
    pub(crate) fn pause_by_operator(&mut self, time: Option<Duration>, now: Instant) {
        self.operator = Some(match time {
            Some(time) => OperatorPause::Until(now + time),
            None => OperatorPause::Indefinite,
        });
    }

    /// An operator resumes the lane. A pause after a throttle refusal continues.
    pub(crate) fn resume(&mut self) {
        self.operator = None;
    }

    /// The operator's pause, if one is in force.
    pub(crate) fn operator_pause(&self, now: Instant) -> Option<OperatorPause> {
        self.operator
            .filter(|pause| !matches!(pause, OperatorPause::Until(end) if *end <= now))
    }

    fn operator_pause_end(&self, now: Instant) -> Option<Instant> {
        self.operator.map(|pause| match pause {
            OperatorPause::Indefinite => now + INDEFINITE_PAUSE_FORECAST,
            OperatorPause::Until(end) => end,
        })
    }

    /// Whether a pause after a throttle refusal was in force at any time after `then`.
    pub(crate) fn was_throttled_since(&self, then: Instant) -> bool {
        self.until.is_some_and(|until| until > then)
    }

    /// The rest of the pause.
    pub(crate) fn remaining(&self, now: Instant) -> Duration {
        self.open_at(now) - now
    }

    /// Notes that an attempt is granted. Returns true if it is the probe.
    pub(crate) fn begin_attempt(&mut self, now: Instant) -> bool {
        let is_probe = self.probe == Probe::Due;
        if is_probe {
            self.probe = Probe::InFlight(now);
        }
        is_probe
    }

    /// The probe was never sent, so the next grant is the probe.
    pub(crate) fn probe_unsent(&mut self) {
        if let Probe::InFlight(_) = self.probe {
            self.probe = Probe::Due;
        }
    }

    /// The probe was not throttled: the lane opens. An unknown end opens it, too, because waiting
    /// longer would not reveal it.
    pub(crate) fn probe_passed(&mut self) {
        if let Probe::InFlight(_) = self.probe {
            self.probe = Probe::NotNeeded;
        }
    }

    /// CAMS accepted an attempt that was written at `written_at`. If that was after the latest
    /// refusal, the back-off starts from its base again.
    pub(crate) fn accepted(&mut self, written_at: Instant) {
        if self.known_at.is_some_and(|known_at| known_at < written_at) {
            self.level = 0;
        }
    }

    /// CAMS throttled an attempt. The lane pauses for the server's hint, at most
    /// `policy.max_pause`, or for a back-off with full jitter. `random` is in 0..1. After an
    /// isolated refusal the pause is brief.
    pub(crate) fn throttled(
        &mut self,
        refusal: &ThrottleRefusal,
        policy: &Retry,
        now: Instant,
        random: f64,
    ) -> Episode {
        let episode = match self.known_at {
            Some(known_at) if refusal.written_at <= known_at => Episode::Same,
            _ if refusal.isolated && refusal.hint.is_none() && self.probe == Probe::NotNeeded => {
                Episode::Isolated
            }
            _ => Episode::New,
        };
        if episode == Episode::Isolated {
            self.until = self.until.max(Some(
                now + policy.base.min(MAX_ISOLATED_PAUSE).mul_f64(random),
            ));
            return episode;
        }
        if episode == Episode::New {
            self.known_at = Some(now);
            self.level = self.level.saturating_add(1);
        }
        let wait = match (refusal.hint, episode) {
            (Some(hint), _) => hint.min(policy.max_pause),
            (None, Episode::New) => {
                backoff::full_jitter(policy.base, policy.max, self.level, random)
            }
            (None, _) => return episode,
        };
        let until = self.until.max(Some(now + wait));
        if episode == Episode::New || until > self.until {
            // Also after a late hint of a known episode: one probe follows every pause.
            self.probe = Probe::Due;
        }
        self.until = until;
        episode
    }
}

/// A throttle refusal.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ThrottleRefusal {
    /// When the attempt was written. Attempts in flight when the lane paused belong to the same
    /// episode.
    pub(crate) written_at: Instant,
    /// How long the server asks to wait.
    pub(crate) hint: Option<Duration>,
    /// Whether it came among accepted attempts (`Pace::throttled`). With a hint the lane pauses all
    /// the same.
    pub(crate) isolated: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    const POLICY: Retry = Retry {
        max_attempts: 10,
        base: Duration::from_millis(200),
        max: Duration::from_secs(8),
        max_pause: Duration::from_secs(60),
        reads: false,
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn throttled(
        pause: &mut Pause,
        written_at: Instant,
        now: Instant,
        hint: Option<Duration>,
    ) -> Episode {
        pause.throttled(
            &ThrottleRefusal {
                written_at,
                hint,
                isolated: false,
            },
            &POLICY,
            now,
            0.5,
        )
    }

    #[test]
    fn a_new_lane_is_open_and_needs_no_probe() {
        let mut pause = Pause::default();
        assert_eq!(pause.gate(Instant::now()), Gate::Open);
        assert!(!pause.begin_attempt(Instant::now()));
    }

    #[test]
    fn a_throttle_is_followed_by_a_pause_one_probe_and_the_normal_rate() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(
            throttled(&mut pause, t, t + ms(10), Some(ms(2000))),
            Episode::New
        );
        assert_eq!(pause.gate(t + ms(2009)), Gate::Until(t + ms(2010)));
        assert_eq!(pause.gate(t + ms(2010)), Gate::Open);
        assert!(pause.begin_attempt(t + ms(2010)));
        assert_eq!(
            pause.gate(t + ms(2011)),
            Gate::Until(t + ms(3010)),
            "a second at most"
        );
        assert_eq!(pause.gate(t + ms(3010)), Gate::Open);
        pause.probe_passed();
        assert_eq!(pause.gate(t + ms(2012)), Gate::Open);
        assert!(!pause.begin_attempt(t));
    }

    #[test]
    fn refusals_of_one_episode_count_once_and_the_longest_hint_applies() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(throttled(&mut pause, t, t + ms(10), None), Episode::New);
        assert_eq!(pause.gate(t + ms(10)), Gate::Until(t + ms(110)));
        assert_eq!(
            throttled(&mut pause, t + ms(9), t + ms(20), None),
            Episode::Same
        );
        assert_eq!(pause.gate(t + ms(20)), Gate::Until(t + ms(110)));
        assert_eq!(
            throttled(&mut pause, t + ms(10), t + ms(30), Some(ms(500))),
            Episode::Same
        );
        assert_eq!(
            throttled(&mut pause, t + ms(10), t + ms(40), Some(ms(100))),
            Episode::Same
        );
        assert_eq!(pause.gate(t + ms(40)), Gate::Until(t + ms(530)));
        assert_eq!(pause.level, 1);
    }

    #[test]
    fn a_refused_probe_doubles_the_back_off_and_a_passed_one_resets_it() {
        let t = Instant::now();
        let mut pause = Pause::default();
        let mut now = t;
        for expected in [100, 200, 400, 800, 1600, 3200, 4000, 4000] {
            throttled(&mut pause, now, now, None);
            now += ms(expected);
            assert_eq!(pause.gate(now - ms(1)), Gate::Until(now));
            assert_eq!(pause.gate(now), Gate::Open);
            assert!(pause.begin_attempt(now));
            now += ms(1);
        }
        pause.probe_passed();
        pause.accepted(now);
        now += ms(1);
        throttled(&mut pause, now, now, None);
        assert_eq!(pause.gate(now), Gate::Until(now + ms(100)));
    }

    #[test]
    fn a_pause_is_at_rest_after_recovery_or_a_long_quiet_time() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert!(pause.is_at_rest(&POLICY, t));
        throttled(&mut pause, t, t, Some(ms(1000)));
        assert!(!pause.is_at_rest(&POLICY, t + ms(1000)), "a probe is due");
        assert!(
            pause.is_at_rest(&POLICY, t + ms(61_000)),
            "no call for a minute"
        );
        assert!(pause.begin_attempt(t + ms(1500)));
        assert!(!pause.is_at_rest(&POLICY, t + ms(1600)), "the probe is out");
        pause.probe_passed();
        assert!(
            !pause.is_at_rest(&POLICY, t + ms(2000)),
            "the back-off is not at its base"
        );
        pause.accepted(t + ms(1500));
        assert!(pause.is_at_rest(&POLICY, t + ms(2000)));
    }

    #[test]
    fn an_operators_pause_lasts_until_its_end_or_a_resume_and_needs_no_probe() {
        let t = Instant::now();
        let mut pause = Pause::default();
        pause.pause_by_operator(Some(ms(5000)), t);
        assert_eq!(pause.gate(t + ms(4999)), Gate::Until(t + ms(5000)));
        assert_eq!(pause.open_at(t), t + ms(5000));
        assert!(!pause.is_at_rest(&POLICY, t + ms(4999)));
        assert_eq!(
            (pause.gate(t + ms(5000)), pause.operator_pause(t + ms(5000))),
            (Gate::Open, None)
        );
        assert!(pause.is_at_rest(&POLICY, t + ms(5000)));
        pause.pause_by_operator(None, t);
        for later in [0, 86_400_000] {
            let now = t + ms(later);
            assert_eq!(
                (pause.gate(now), pause.operator_pause(now)),
                (
                    Gate::Until(now + INDEFINITE_PAUSE_FORECAST),
                    Some(OperatorPause::Indefinite)
                )
            );
            assert!(!pause.is_at_rest(&POLICY, now));
        }
        pause.resume();
        assert_eq!(pause.gate(t), Gate::Open);
        assert!(!pause.begin_attempt(t));
    }

    #[test]
    fn an_operators_pause_and_a_throttle_pause_end_independently() {
        let t = Instant::now();
        let mut pause = Pause::default();
        pause.pause_by_operator(None, t);
        throttled(&mut pause, t, t, Some(ms(3000)));
        pause.resume();
        assert_eq!(pause.gate(t), Gate::Until(t + ms(3000)));
        pause.pause_by_operator(None, t);
        pause.adopt_store_pause(t);
        assert_eq!(
            pause.gate(t),
            Gate::Until(t + INDEFINITE_PAUSE_FORECAST),
            "what the store says of CAMS does not end it"
        );
    }

    #[test]
    fn a_hint_is_clamped() {
        let t = Instant::now();
        let mut pause = Pause::default();
        throttled(&mut pause, t, t, Some(Duration::from_secs(86_400)));
        assert_eq!(pause.gate(t), Gate::Until(t + Duration::from_secs(60)));
    }

    #[test]
    fn a_probe_that_was_never_sent_is_still_due() {
        let t = Instant::now();
        let mut pause = Pause::default();
        throttled(&mut pause, t, t, Some(ms(1)));
        assert!(pause.begin_attempt(t));
        pause.probe_unsent();
        assert_eq!(pause.gate(t + ms(2)), Gate::Open);
        assert!(pause.begin_attempt(t));
    }

    #[test]
    fn a_probe_with_an_unknown_end_opens_the_lane_but_keeps_the_back_off() {
        let t = Instant::now();
        let mut pause = Pause::default();
        throttled(&mut pause, t, t, Some(ms(1)));
        assert!(pause.begin_attempt(t));
        pause.probe_passed();
        assert_eq!(pause.gate(t + ms(2)), Gate::Open);
        assert_eq!(pause.level, 1);
        pause.accepted(t);
        assert_eq!(
            pause.level, 1,
            "that one was written before the refusal was known"
        );
        pause.accepted(t + ms(3));
        assert_eq!(pause.level, 0);
    }

    #[test]
    fn a_late_hint_of_a_known_episode_is_followed_by_a_probe_too() {
        let t = Instant::now();
        let mut pause = Pause::default();
        throttled(&mut pause, t, t, Some(ms(10)));
        assert!(pause.begin_attempt(t));
        pause.probe_passed();
        assert_eq!(
            throttled(&mut pause, t, t + ms(30), Some(ms(500))),
            Episode::Same
        );
        assert_eq!(pause.gate(t + ms(30)), Gate::Until(t + ms(530)));
        assert!(pause.begin_attempt(t), "the next one is a probe");
    }
    fn isolated(
        pause: &mut Pause,
        written_at: Instant,
        now: Instant,
        hint: Option<Duration>,
    ) -> Episode {
        pause.throttled(
            &ThrottleRefusal {
                written_at,
                hint,
                isolated: true,
            },
            &POLICY,
            now,
            0.5,
        )
    }

    #[test]
    fn an_isolated_refusal_causes_a_brief_pause_and_no_probe() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(isolated(&mut pause, t, t, None), Episode::Isolated);
        assert_eq!(pause.gate(t), Gate::Until(t + ms(25)));
        assert_eq!(pause.gate(t + ms(25)), Gate::Open);
        assert!(!pause.begin_attempt(t + ms(25)), "it is no probe");
        assert!(pause.is_at_rest(&POLICY, t + ms(25)));
        assert_eq!(
            isolated(&mut pause, t + ms(1), t + ms(30), None),
            Episode::Isolated,
            "it began no episode"
        );
        assert_eq!(
            throttled(&mut pause, t + ms(2), t + ms(40), None),
            Episode::New
        );
        assert_eq!(pause.level, 1);
    }

    #[test]
    fn an_isolated_refusal_with_a_hint_pauses_the_lane() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(isolated(&mut pause, t, t, Some(ms(500))), Episode::New);
        assert_eq!(pause.gate(t), Gate::Until(t + ms(500)));
        assert!(pause.begin_attempt(t + ms(500)));
    }

    #[test]
    fn no_refusal_is_isolated_in_an_episode_or_for_a_probe() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(throttled(&mut pause, t, t + ms(10), None), Episode::New);
        assert_eq!(
            isolated(&mut pause, t + ms(5), t + ms(20), None),
            Episode::Same
        );
        assert_eq!(pause.gate(t + ms(20)), Gate::Until(t + ms(110)));
        assert!(pause.begin_attempt(t + ms(110)));
        assert_eq!(
            isolated(&mut pause, t + ms(110), t + ms(130), None),
            Episode::New,
            "the probe"
        );
        assert_eq!(pause.level, 2);
    }
}
