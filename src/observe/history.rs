//! The last 15 minutes, for the operators' page: what was granted, queued, throttled and paused, in
//! total and for the busiest lanes, and how calls ended. One sample is kept for each interval, so
//! the memory is bounded, whatever the number of accounts. Calls do not write here: a task reads the
//! counters of the lanes once per interval.
//!
//! Time is divided into slots of one interval each. A process that was stopped or overloaded for
//! several intervals leaves empty slots, and the sample after them covers the whole time.

use std::cmp::Reverse;
use std::time::Duration;

use parking_lot::Mutex;
use serde::Serialize;
use tokio::time::Instant;

use crate::error::Outcome;
use crate::primitives::fast_map::FastMap;
use crate::primitives::id::{AccountId, ActionName};

/// Time between two samples.
pub(crate) const INTERVAL: Duration = Duration::from_secs(5);
/// Number of samples that are kept: 15 minutes.
pub(crate) const SAMPLES: usize = 180;
/// Maximum number of lanes with a history of their own.
pub(crate) const LANES: usize = 40;

/// The labels of a lane.
type LaneLabels = (AccountId, ActionName);

/// The last 15 minutes.
pub(crate) struct History(Mutex<Slots>);

/// What one lane has done since it was asked last.
pub(crate) struct LaneActivity<'a> {
    pub(crate) labels: &'a LaneLabels,
    pub(crate) limit_per_second: f64,
    pub(crate) granted: u64,
    pub(crate) throttled: u32,
    /// The length of its queue now.
    pub(crate) queued: usize,
    pub(crate) paused: Paused,
}

/// Whether a lane was paused during an interval.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Paused {
    #[default]
    No = 0,
    AfterThrottle = 1,
    ByOperator = 2,
}

/// The number of calls that ended, by `Outcome as usize`.
pub(crate) type Ended = [u64; Outcome::ALL.len()];

struct Slots {
    started: Instant,
    /// The number of the slot that is open.
    open: usize,
    /// The end of the latest sample.
    sampled_at: Instant,
    /// By the number of the slot modulo `SAMPLES`; `None` in a gap.
    totals: Vec<Option<Total>>,
    /// Calls that had ended when the latest sample was taken.
    ended: Ended,
    lanes: FastMap<LaneLabels, LaneHistory>,
    /// Active lanes without a history, in the open slot.
    newcomers: FastMap<LaneLabels, OpenSample>,
    /// The part of the open slot's total that is in neither of these.
    rest: Total,
}

/// All lanes in one slot.
#[derive(Clone, Default)]
struct Total {
    time: Duration,
    granted: u64,
    limit_per_second: f64,
    queued: u64,
    throttled: u64,
    paused_lanes: u32,
    ended: Ended,
}

struct LaneHistory {
    /// By the number of the slot modulo `SAMPLES`.
    samples: Vec<LaneSample>,
    open: OpenSample,
}

/// One lane in one slot.
#[derive(Clone, Copy, Default, PartialEq)]
struct LaneSample {
    granted: u32,
    throttled: u32,
    queued: u32,
    paused: Paused,
}

#[derive(Clone, Copy, Default)]
struct OpenSample {
    sample: LaneSample,
    limit_per_second: f64,
}

/// The history as operators see it. Each list has a value per interval, the oldest first; `null` if
/// there is none.
#[derive(Debug, Serialize)]
pub(crate) struct HistoryView {
    pub(crate) interval_seconds: u64,
    /// Age of the newest sample.
    pub(crate) newest_seconds_ago: f64,
    pub(crate) total: TotalView,
    /// The busiest lanes of this time, in the order of their names.
    pub(crate) lanes: Vec<LaneHistoryView>,
}

/// All lanes.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TotalView {
    pub(crate) granted_per_second: Vec<Option<f64>>,
    /// The limits of the lanes that were active.
    pub(crate) limit_per_second: Vec<Option<f64>>,
    pub(crate) queued: Vec<Option<u64>>,
    pub(crate) throttled: Vec<Option<u64>>,
    /// Number of lanes that were paused.
    pub(crate) paused_lanes: Vec<Option<u32>>,
    /// Number of calls that ended, by outcome.
    pub(crate) ended: std::collections::BTreeMap<&'static str, Vec<Option<u64>>>,
}

/// One lane.
#[derive(Debug, Serialize)]
pub(crate) struct LaneHistoryView {
    pub(crate) account: String,
    pub(crate) action: String,
    /// When it was active last.
    pub(crate) limit_per_second: f64,
    pub(crate) granted_per_second: Vec<Option<f64>>,
    pub(crate) queued: Vec<Option<u32>>,
    pub(crate) throttled: Vec<Option<u32>>,
    /// 0: not paused; 1: paused after a throttle refusal; 2: paused by an operator.
    pub(crate) paused: Vec<Option<u8>>,
}

// === impl History ===

impl History {
    pub(crate) fn new(started: Instant) -> Self {
        Self(Mutex::new(Slots {
            started,
            open: 0,
            sampled_at: started,
            totals: vec![None; SAMPLES],
            ended: Ended::default(),
            lanes: FastMap::default(),
            newcomers: FastMap::default(),
            rest: Total::default(),
        }))
    }

    /// The end of the latest sample.
    pub(crate) fn sampled_at(&self) -> Instant {
        self.0.lock().sampled_at
    }

    /// Adds to the open slot what a lane has done.
    pub(crate) fn add(&self, lane: &LaneActivity<'_>) {
        if lane.is_active() {
            self.0.lock().add(lane);
        }
    }

    /// Ends the open slot, if its time is over. `ended` counts all calls since the start.
    pub(crate) fn close(&self, now: Instant, ended: Ended) {
        self.0.lock().close(now, ended);
    }

    pub(crate) fn view(&self, now: Instant) -> HistoryView {
        self.0.lock().view(now)
    }
}

// === impl LaneActivity ===

impl LaneActivity<'_> {
    fn is_active(&self) -> bool {
        self.granted > 0 || self.throttled > 0 || self.queued > 0 || self.paused != Paused::No
    }
}

// === impl Slots ===

impl Slots {
    fn add(&mut self, lane: &LaneActivity<'_>) {
        if let Some(known) = self.lanes.get_mut(lane.labels) {
            return known.open.add(lane);
        }
        if let Some(known) = self.newcomers.get_mut(lane.labels) {
            return known.add(lane);
        }
        let mut new = OpenSample::default();
        new.add(lane);
        if self.newcomers.len() >= LANES {
            let least = self
                .newcomers
                .iter()
                .min_by_key(|(_, known)| known.sample.weight())
                .map(|(labels, known)| (labels.clone(), known.sample.weight()));
            match least {
                Some((labels, weight)) if weight < new.sample.weight() => {
                    let removed = self.newcomers.remove(&labels);
                    self.rest.add(removed.unwrap_or_default());
                }
                _ => return self.rest.add(new),
            }
        }
        self.newcomers.insert(lane.labels.clone(), new);
    }

    fn close(&mut self, now: Instant, ended: Ended) {
        let slot = now.saturating_duration_since(self.started).as_secs() / INTERVAL.as_secs();
        let slot = usize::try_from(slot).unwrap_or(usize::MAX);
        if slot <= self.open {
            return;
        }
        let closed = slot - 1;
        let first_gap = self.open.max(slot.saturating_sub(SAMPLES));
        self.clear(first_gap..closed);
        let index = closed % SAMPLES;
        self.totals[index] = Some(self.total(now, ended));
        for lane in self.lanes.values_mut() {
            lane.samples[index] = std::mem::take(&mut lane.open.sample);
        }
        self.lanes
            .retain(|_, lane| lane.weight() > 0 || lane.is_paused(index));
        self.admit_newcomers(index);
        self.rest = Total::default();
        self.ended = ended;
        self.sampled_at = now;
        self.open = slot;
    }

    /// Nothing was sampled in these slots.
    fn clear(&mut self, slots: std::ops::Range<usize>) {
        for index in slots.map(|slot| slot % SAMPLES) {
            self.totals[index] = None;
            for lane in self.lanes.values_mut() {
                lane.samples[index] = LaneSample::default();
            }
        }
    }

    fn total(&self, now: Instant, ended: Ended) -> Total {
        let mut total = self.rest.clone();
        let known = self.lanes.values().map(|lane| lane.open);
        for open in known.chain(self.newcomers.values().copied()) {
            if open.sample != LaneSample::default() {
                total.add(open);
            }
        }
        total.time = now.saturating_duration_since(self.sampled_at);
        for (index, count) in total.ended.iter_mut().enumerate() {
            *count = ended[index].saturating_sub(self.ended[index]);
        }
        total
    }

    /// The newcomers get a history while there is room, or if they did more in this one slot than a
    /// known lane in 15 minutes.
    fn admit_newcomers(&mut self, index: usize) {
        let mut newcomers: Vec<_> = self.newcomers.drain().collect();
        newcomers.sort_by_key(|(_, open)| Reverse(open.sample.weight()));
        for (labels, open) in newcomers {
            if self.lanes.len() >= LANES {
                let least = self
                    .lanes
                    .iter()
                    .map(|(labels, lane)| (lane.weight(), labels))
                    .min();
                match least {
                    Some((weight, least)) if weight < open.sample.weight() => {
                        let least = least.clone();
                        self.lanes.remove(&least);
                    }
                    _ => return,
                }
            }
            self.lanes.insert(labels, LaneHistory::new(open, index));
        }
    }

    fn view(&self, now: Instant) -> HistoryView {
        let slots = self.open.saturating_sub(SAMPLES)..self.open;
        let indices: Vec<_> = slots.map(|slot| slot % SAMPLES).collect();
        let totals: Vec<_> = indices
            .iter()
            .map(|index| self.totals[*index].as_ref())
            .collect();
        let mut lanes: Vec<_> = self.lanes.iter().collect();
        lanes.sort_by_key(|(labels, _)| *labels);
        HistoryView {
            interval_seconds: INTERVAL.as_secs(),
            newest_seconds_ago: now.saturating_duration_since(self.sampled_at).as_secs_f64(),
            total: TotalView::of(&totals),
            lanes: lanes
                .into_iter()
                .map(|(labels, lane)| LaneHistoryView::of(labels, lane, &totals, &indices))
                .collect(),
        }
    }
}

// === impl Total ===

impl Total {
    fn add(&mut self, open: OpenSample) {
        let OpenSample {
            sample,
            limit_per_second,
        } = open;
        self.granted += u64::from(sample.granted);
        self.throttled += u64::from(sample.throttled);
        self.queued += u64::from(sample.queued);
        self.paused_lanes += u32::from(sample.paused != Paused::No);
        self.limit_per_second += limit_per_second;
    }
}

// === impl LaneHistory ===

impl LaneHistory {
    fn new(open: OpenSample, index: usize) -> Self {
        let mut samples = vec![LaneSample::default(); SAMPLES];
        samples[index] = open.sample;
        Self {
            samples,
            open: OpenSample {
                sample: LaneSample::default(),
                ..open
            },
        }
    }

    fn weight(&self) -> u64 {
        self.samples.iter().map(LaneSample::weight).sum()
    }

    fn is_paused(&self, index: usize) -> bool {
        self.samples[index].paused != Paused::No
    }
}

// === impl LaneSample ===

impl LaneSample {
    /// How much the lane matters to operators.
    fn weight(&self) -> u64 {
        u64::from(self.granted) + u64::from(self.throttled) + u64::from(self.queued)
    }
}

// === impl OpenSample ===

impl OpenSample {
    /// Several lanes may have the same labels, and a lane may be forgotten and come back.
    fn add(&mut self, lane: &LaneActivity<'_>) {
        let sample = &mut self.sample;
        sample.granted = sample.granted.saturating_add(fit(lane.granted));
        sample.throttled = sample.throttled.saturating_add(lane.throttled);
        sample.queued = sample.queued.saturating_add(fit(lane.queued));
        sample.paused = sample.paused.max(lane.paused);
        self.limit_per_second = lane.limit_per_second;
    }
}

fn fit(count: impl TryInto<u32>) -> u32 {
    count.try_into().unwrap_or(u32::MAX)
}

/// Per second, with two decimals.
fn rate(count: u64, time: Duration) -> f64 {
    (100.0 * count as f64 / time.as_secs_f64()).round() / 100.0
}

// === impl TotalView ===

impl TotalView {
    fn of(totals: &[Option<&Total>]) -> Self {
        fn list<T>(totals: &[Option<&Total>], get: impl Fn(&Total) -> T) -> Vec<Option<T>> {
            totals.iter().map(|total| total.map(&get)).collect()
        }
        Self {
            granted_per_second: list(totals, |total| rate(total.granted, total.time)),
            limit_per_second: list(totals, |total| total.limit_per_second),
            queued: list(totals, |total| total.queued),
            throttled: list(totals, |total| total.throttled),
            paused_lanes: list(totals, |total| total.paused_lanes),
            ended: Outcome::ALL
                .into_iter()
                .map(|outcome| {
                    let counts = list(totals, |total| total.ended[outcome as usize]);
                    (outcome.label(), counts)
                })
                .collect(),
        }
    }
}

// === impl LaneHistoryView ===

impl LaneHistoryView {
    fn of(
        (account, action): &LaneLabels,
        lane: &LaneHistory,
        totals: &[Option<&Total>],
        indices: &[usize],
    ) -> Self {
        let slots = || {
            let samples = indices.iter().map(|index| &lane.samples[*index]);
            totals
                .iter()
                .zip(samples)
                .map(|(total, sample)| total.map(|total| (total.time, sample)))
        };
        Self {
            account: account.to_string(),
            action: action.to_string(),
            limit_per_second: lane.open.limit_per_second,
            granted_per_second: slots()
                .map(|slot| slot.map(|(time, sample)| rate(u64::from(sample.granted), time)))
                .collect(),
            queued: slots()
                .map(|slot| slot.map(|(_, sample)| sample.queued))
                .collect(),
            throttled: slots()
                .map(|slot| slot.map(|(_, sample)| sample.throttled))
                .collect(),
            paused: slots()
                .map(|slot| slot.map(|(_, sample)| sample.paused as u8))
                .collect(),
        }
    }
}

#[cfg(test)]
mod tests;
