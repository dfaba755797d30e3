//! May the lane send at all? A throttle refusal pauses the lane, not the call: nothing is sent before the pause ends, then
//! one probe, then the normal rate. An operator may pause it, too. Only decides; the lane reports what was sent and what
//! came back.
//!
//! Refusals of attempts that were written before the first of them was known are one episode and count once: five calls
//! refused together must not multiply the back-off by five.
//!
//! A single refusal amid accepted attempts is no episode: jitter, or one call of an outsider. The lane waits for a moment
//! and sends no probe. A server's hint always pauses the lane.

use std::time::Duration;

use tokio::time::Instant;

use crate::config::Retry;
use crate::primitives::backoff;

/// The pause of one lane.
#[derive(Debug, Default)]
pub(crate) struct Pause {
    /// Nothing is sent before this.
    until: Option<Instant>,
    probe: Probe,
    /// When the first refusal of the latest episode was known.
    known_at: Option<Instant>,
    /// Episodes in a row without a probe that passed; the exponent of the back-off.
    level: u32,
    /// By an operator: CAMS has no trouble, so no probe follows.
    ordered: Option<Ordered>,
}

/// How long an operator pauses the lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ordered {
    /// Until an operator resumes it.
    Open,
    /// Until then, unless it is resumed before.
    Until(Instant),
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Probe {
    #[default]
    NotNeeded,
    /// The next grant is the probe.
    Due,
    /// It has been under way since then; its end decides.
    Out(Instant),
}

/// How long a lane waits for its probe. A refusal comes at once, so an answer that takes longer is none, and a slow call
/// must not stop all the others.
pub(crate) const PATIENCE: Duration = Duration::from_secs(1);

/// An isolated refusal costs the lane at most this.
const LONGEST_MOMENT: Duration = Duration::from_millis(50);

/// What is forecast of an operator's pause that has no end yet: calls that have less time are refused immediately.
const NO_END_YET: Duration = Duration::from_secs(60);

/// Whether the lane may send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gate {
    /// Yes.
    Open,
    /// Not before this, or before the probe comes back.
    Until(Instant),
}

/// Whether a refusal is news.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Episode {
    /// The first refusal since the lane's last pause.
    New,
    /// Written before the first refusal of the running episode was known.
    Same,
    /// A single refusal amid accepted attempts: the lane waits for a moment and sends no probe.
    Isolated,
}

// === impl Pause ===

impl Pause {
    pub(crate) fn gate(&self, now: Instant) -> Gate {
        let probed = match self.probe {
            Probe::Out(since) => Some(since + PATIENCE),
            Probe::NotNeeded | Probe::Due => None,
        };
        match self.until.max(probed).max(self.ordered_until(now)) {
            Some(until) if until > now => Gate::Until(until),
            _ => Gate::Open,
        }
    }

    /// Whether nothing of an earlier trouble is left to remember: no probe is due or out and the back-off stands at its
    /// base, or the lane has been quiet for longer than any pause of CAMS's may be.
    pub(crate) fn is_forgotten(&self, policy: &Retry, now: Instant) -> bool {
        if self.ordered(now).is_some() {
            return false;
        }
        let Some(until) = self.until else { return true };
        let untroubled = until <= now && self.probe == Probe::NotNeeded && self.level == 0;
        untroubled || until + policy.max_pause <= now
    }

    /// When the lane may send again, if nothing else happens: for forecasts.
    pub(crate) fn open_at(&self, now: Instant) -> Instant {
        self.until
            .max(self.ordered_until(now))
            .map_or(now, |until| until.max(now))
    }

    /// The store keeps the pause and deals the probe: nothing is sent before `open`, nor before the end of a pause that
    /// the store does not know of.
    pub(crate) fn told(&mut self, open: Instant) {
        *self = Self {
            until: self.until.max(Some(open)),
            ordered: self.ordered,
            ..Self::default()
        };
    }

    /// An operator pauses the lane, for so long or until it is resumed.
    pub(crate) fn order(&mut self, time: Option<Duration>, now: Instant) {
        self.ordered = Some(time.map_or(Ordered::Open, |time| Ordered::Until(now + time)));
    }

    /// An operator resumes it. A pause of CAMS's continues.
    pub(crate) fn resume(&mut self) {
        self.ordered = None;
    }

    /// What an operator has ordered that is not over.
    pub(crate) fn ordered(&self, now: Instant) -> Option<Ordered> {
        self.ordered
            .filter(|ordered| !matches!(ordered, Ordered::Until(then) if *then <= now))
    }

    fn ordered_until(&self, now: Instant) -> Option<Instant> {
        self.ordered.map(|ordered| match ordered {
            Ordered::Open => now + NO_END_YET,
            Ordered::Until(then) => then,
        })
    }

    /// What is left of the pause.
    pub(crate) fn remaining(&self, now: Instant) -> Duration {
        self.open_at(now) - now
    }

    /// An attempt may go; true when it is the probe.
    pub(crate) fn granted(&mut self, now: Instant) -> bool {
        let is_probe = self.probe == Probe::Due;
        if is_probe {
            self.probe = Probe::Out(now);
        }
        is_probe
    }

    /// The probe was never sent: the next grant is the probe.
    pub(crate) fn probe_unsent(&mut self) {
        if let Probe::Out(_) = self.probe {
            self.probe = Probe::Due;
        }
    }

    /// The probe has an end that is not a refusal: the lane is open. An unknown end opens it too, for waiting longer
    /// would not make it known.
    pub(crate) fn probe_passed(&mut self) {
        if let Probe::Out(_) = self.probe {
            self.probe = Probe::NotNeeded;
        }
    }

    /// CAMS took an attempt that was written at `written_at`. If that was after the latest refusal, the trouble is over
    /// and the back-off starts from its base again.
    pub(crate) fn answered(&mut self, written_at: Instant) {
        if self.known_at.is_some_and(|known_at| known_at < written_at) {
            self.level = 0;
        }
    }

    /// An attempt came back refused. The lane pauses for the server's hint, at most `policy.max_pause`, or for a back-off
    /// with full jitter, where `random` is in 0..1; after an isolated refusal for a moment.
    pub(crate) fn refused(
        &mut self,
        refusal: &Refused,
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
            self.until = self
                .until
                .max(Some(now + policy.base.min(LONGEST_MOMENT).mul_f64(random)));
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
            // Also when only a late hint of a known episode asks for it: after any pause one probe goes.
            self.probe = Probe::Due;
        }
        self.until = until;
        episode
    }
}

/// A throttle refusal, as the lane needs to know it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Refused {
    /// When it was written: what was on its way when the lane paused is no news after it.
    pub(crate) written_at: Instant,
    /// How long the server asks to stay away.
    pub(crate) hint: Option<Duration>,
    /// Whether it came amid accepted attempts (`Pace::refused`). With a hint the lane pauses all the same.
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
    };

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn refused(
        pause: &mut Pause,
        written_at: Instant,
        now: Instant,
        hint: Option<Duration>,
    ) -> Episode {
        pause.refused(
            &Refused {
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
    fn an_untroubled_lane_is_open_and_needs_no_probe() {
        let mut pause = Pause::default();
        assert_eq!(pause.gate(Instant::now()), Gate::Open);
        assert!(!pause.granted(Instant::now()));
    }

    #[test]
    fn a_refusal_pauses_then_one_probe_then_the_normal_rate() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(
            refused(&mut pause, t, t + ms(10), Some(ms(2000))),
            Episode::New
        );
        assert_eq!(pause.gate(t + ms(2009)), Gate::Until(t + ms(2010)));
        assert_eq!(pause.gate(t + ms(2010)), Gate::Open);
        assert!(pause.granted(t + ms(2010)));
        assert_eq!(
            pause.gate(t + ms(2011)),
            Gate::Until(t + ms(3010)),
            "a second at most"
        );
        assert_eq!(pause.gate(t + ms(3010)), Gate::Open);
        pause.probe_passed();
        assert_eq!(pause.gate(t + ms(2012)), Gate::Open);
        assert!(!pause.granted(t));
    }

    #[test]
    fn refusals_of_one_episode_count_once_and_the_longest_hint_holds() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(refused(&mut pause, t, t + ms(10), None), Episode::New);
        assert_eq!(pause.gate(t + ms(10)), Gate::Until(t + ms(110)));
        assert_eq!(
            refused(&mut pause, t + ms(9), t + ms(20), None),
            Episode::Same
        );
        assert_eq!(pause.gate(t + ms(20)), Gate::Until(t + ms(110)));
        assert_eq!(
            refused(&mut pause, t + ms(10), t + ms(30), Some(ms(500))),
            Episode::Same
        );
        assert_eq!(
            refused(&mut pause, t + ms(10), t + ms(40), Some(ms(100))),
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
            refused(&mut pause, now, now, None);
            now += ms(expected);
            assert_eq!(pause.gate(now - ms(1)), Gate::Until(now));
            assert_eq!(pause.gate(now), Gate::Open);
            assert!(pause.granted(now));
            now += ms(1);
        }
        pause.probe_passed();
        pause.answered(now);
        now += ms(1);
        refused(&mut pause, now, now, None);
        assert_eq!(pause.gate(now), Gate::Until(now + ms(100)));
    }

    #[test]
    fn a_lane_is_forgotten_when_its_trouble_is_over_or_long_ago() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert!(pause.is_forgotten(&POLICY, t));
        refused(&mut pause, t, t, Some(ms(1000)));
        assert!(!pause.is_forgotten(&POLICY, t + ms(1000)), "a probe is due");
        assert!(
            pause.is_forgotten(&POLICY, t + ms(61_000)),
            "no call for a minute"
        );
        assert!(pause.granted(t + ms(1500)));
        assert!(
            !pause.is_forgotten(&POLICY, t + ms(1600)),
            "the probe is out"
        );
        pause.probe_passed();
        assert!(
            !pause.is_forgotten(&POLICY, t + ms(2000)),
            "the back-off is not at its base"
        );
        pause.answered(t + ms(1500));
        assert!(pause.is_forgotten(&POLICY, t + ms(2000)));
    }

    #[test]
    fn an_operators_pause_lasts_until_its_end_or_its_order_and_needs_no_probe() {
        let t = Instant::now();
        let mut pause = Pause::default();
        pause.order(Some(ms(5000)), t);
        assert_eq!(pause.gate(t + ms(4999)), Gate::Until(t + ms(5000)));
        assert_eq!(pause.open_at(t), t + ms(5000));
        assert!(!pause.is_forgotten(&POLICY, t + ms(4999)));
        assert_eq!(
            (pause.gate(t + ms(5000)), pause.ordered(t + ms(5000))),
            (Gate::Open, None)
        );
        assert!(pause.is_forgotten(&POLICY, t + ms(5000)));
        pause.order(None, t);
        for later in [0, 86_400_000] {
            let now = t + ms(later);
            assert_eq!(
                (pause.gate(now), pause.ordered(now)),
                (Gate::Until(now + NO_END_YET), Some(Ordered::Open))
            );
            assert!(!pause.is_forgotten(&POLICY, now));
        }
        pause.resume();
        assert_eq!(pause.gate(t), Gate::Open);
        assert!(!pause.granted(t));
    }

    #[test]
    fn an_operators_pause_and_one_of_cams_end_by_themselves() {
        let t = Instant::now();
        let mut pause = Pause::default();
        pause.order(None, t);
        refused(&mut pause, t, t, Some(ms(3000)));
        pause.resume();
        assert_eq!(pause.gate(t), Gate::Until(t + ms(3000)));
        pause.order(None, t);
        pause.told(t);
        assert_eq!(
            pause.gate(t),
            Gate::Until(t + NO_END_YET),
            "what the store says of CAMS does not end it"
        );
    }

    #[test]
    fn a_hint_is_clamped() {
        let t = Instant::now();
        let mut pause = Pause::default();
        refused(&mut pause, t, t, Some(Duration::from_secs(86_400)));
        assert_eq!(pause.gate(t), Gate::Until(t + Duration::from_secs(60)));
    }

    #[test]
    fn a_probe_that_was_never_sent_is_still_due() {
        let t = Instant::now();
        let mut pause = Pause::default();
        refused(&mut pause, t, t, Some(ms(1)));
        assert!(pause.granted(t));
        pause.probe_unsent();
        assert_eq!(pause.gate(t + ms(2)), Gate::Open);
        assert!(pause.granted(t));
    }

    #[test]
    fn a_probe_without_a_certain_end_opens_the_lane_but_keeps_the_back_off() {
        let t = Instant::now();
        let mut pause = Pause::default();
        refused(&mut pause, t, t, Some(ms(1)));
        assert!(pause.granted(t));
        pause.probe_passed();
        assert_eq!(pause.gate(t + ms(2)), Gate::Open);
        assert_eq!(pause.level, 1);
        pause.answered(t);
        assert_eq!(
            pause.level, 1,
            "that one was written before the refusal was known"
        );
        pause.answered(t + ms(3));
        assert_eq!(pause.level, 0);
    }

    #[test]
    fn a_late_hint_of_a_known_episode_is_followed_by_a_probe_too() {
        let t = Instant::now();
        let mut pause = Pause::default();
        refused(&mut pause, t, t, Some(ms(10)));
        assert!(pause.granted(t));
        pause.probe_passed();
        assert_eq!(
            refused(&mut pause, t, t + ms(30), Some(ms(500))),
            Episode::Same
        );
        assert_eq!(pause.gate(t + ms(30)), Gate::Until(t + ms(530)));
        assert!(pause.granted(t), "the next one is a probe");
    }
    fn isolated(
        pause: &mut Pause,
        written_at: Instant,
        now: Instant,
        hint: Option<Duration>,
    ) -> Episode {
        pause.refused(
            &Refused {
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
    fn an_isolated_refusal_costs_a_moment_and_no_probe() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(isolated(&mut pause, t, t, None), Episode::Isolated);
        assert_eq!(pause.gate(t), Gate::Until(t + ms(25)));
        assert_eq!(pause.gate(t + ms(25)), Gate::Open);
        assert!(!pause.granted(t + ms(25)), "it is no probe");
        assert!(pause.is_forgotten(&POLICY, t + ms(25)));
        assert_eq!(
            isolated(&mut pause, t + ms(1), t + ms(30), None),
            Episode::Isolated,
            "it began no episode"
        );
        assert_eq!(
            refused(&mut pause, t + ms(2), t + ms(40), None),
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
        assert!(pause.granted(t + ms(500)));
    }

    #[test]
    fn in_an_episode_and_for_a_probe_no_refusal_is_isolated() {
        let t = Instant::now();
        let mut pause = Pause::default();
        assert_eq!(refused(&mut pause, t, t + ms(10), None), Episode::New);
        assert_eq!(
            isolated(&mut pause, t + ms(5), t + ms(20), None),
            Episode::Same
        );
        assert_eq!(pause.gate(t + ms(20)), Gate::Until(t + ms(110)));
        assert!(pause.granted(t + ms(110)));
        assert_eq!(
            isolated(&mut pause, t + ms(110), t + ms(130), None),
            Episode::New,
            "the probe"
        );
        assert_eq!(pause.level, 2);
    }
}
