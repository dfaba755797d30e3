//! How does a lane look to an operator? A copy of its state at one moment, for `/lanes`, `/metrics` and the page.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::limiter::fair::{FairQueue, QueueEntry};
use crate::limiter::handle::LaneHandle;
use crate::limiter::lane::Waiting;
use crate::limiter::pause::Ordered;
use crate::limiter::shadow::Shadow;
use crate::limiter::{Connector, Limiter};
use crate::observe::metrics::LaneSample;
use crate::primitives::id::TenantId;

/// One lane as operators see it.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct LaneView {
    /// The account's label.
    pub(crate) account: String,
    /// The action's label.
    pub(crate) action: String,
    /// Calls per second that the limit allows.
    pub(crate) limit_per_second: f64,
    /// Calls per second that the lane has learned to send, outside pauses.
    pub(crate) effective_per_second: f64,
    /// What is added to the window before a token comes back, as learned.
    pub(crate) gap_seconds: f64,
    pub(crate) queued: usize,
    pub(crate) oldest_wait_seconds: f64,
    /// What a call that came now would wait.
    pub(crate) predicted_wait_seconds: f64,
    /// The largest part that a waiting call has used of the time that it may wait.
    pub(crate) hold_used: f64,
    pub(crate) pause_remaining_seconds: f64,
    /// While an operator has the lane pause.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operator_pause: Option<OperatorPause>,
    /// Turns since the lane was made.
    pub(crate) granted: u64,
    pub(crate) tokens_free: u32,
    pub(crate) tokens_held: u32,
    /// Tokens that may be in use, as learned.
    pub(crate) tokens_usable: u32,
    pub(crate) tokens: u32,
    /// The tenants that wait, longest queue first, at most twenty.
    pub(crate) tenants: Vec<TenantView>,
    /// While Flowgate only observes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shadow: Option<ShadowView>,
}

/// The queue that a lane would have.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct ShadowView {
    /// Calls that would wait.
    pub(crate) queued: usize,
    /// What a call that came now would wait.
    pub(crate) predicted_wait_seconds: f64,
}

/// A pause that an operator has ordered.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
pub(crate) struct OperatorPause {
    /// None: until an operator resumes the lane.
    pub(crate) remaining_seconds: Option<f64>,
}

/// One tenant inside a lane.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct TenantView {
    pub(crate) client: String,
    pub(crate) tenant: String,
    pub(crate) queued: usize,
    /// Its part of the lane's turns while all that wait now wait, from 0 to 1.
    pub(crate) share: f64,
    pub(crate) oldest_wait_seconds: f64,
}

/// So many tenants of a lane are told.
const TENANTS: usize = 20;

// === impl Limiter ===

impl<K: Connector> Limiter<K> {
    /// The lanes by what metrics and operators call them: those of all keys that the configuration does not name are one. No
    /// more than one view at a time is in memory beside these.
    pub(crate) fn lanes_by_label(&self) -> Vec<LaneView> {
        let mut views = BTreeMap::<(String, String), LaneView>::new();
        for lane in self.all() {
            let view = lane.view();
            let label = (view.account.clone(), view.action.clone());
            match views.get_mut(&label) {
                Some(known) => known.add(view),
                None => drop(views.insert(label, view)),
            }
        }
        views.into_values().collect()
    }
}

// === impl LaneHandle ===

impl<K: Connector> LaneHandle<K> {
    pub(super) fn view(self: &Arc<Self>) -> LaneView {
        let mut locked = self.lock();
        locked.refresh();
        let (now, lane) = (locked.now, &locked.state.lane);
        let (limit, rate, queue) = (lane.limit(), lane.rate(now), lane.queue());
        let shadow = self
            .shadow
            .as_ref()
            .map(|shadow| ShadowView::of(&mut shadow.lock(), now));
        let wait = if shadow.is_some() {
            Duration::ZERO
        } else {
            lane.predicted_wait(queue.len(), now)
        };
        let [account, action] = self.metrics.labels();
        let oldest = queue.oldest().map_or(Duration::ZERO, |arrived| {
            now.saturating_duration_since(arrived)
        });
        LaneView {
            account: account.to_owned(),
            action: action.to_owned(),
            limit_per_second: f64::from(limit.count.get()) / limit.window.as_secs_f64(),
            effective_per_second: rate.per_second(),
            gap_seconds: rate.gap.as_secs_f64(),
            queued: queue.len(),
            oldest_wait_seconds: oldest.as_secs_f64(),
            predicted_wait_seconds: wait.as_secs_f64(),
            hold_used: hold_used(queue, now),
            pause_remaining_seconds: lane.pause().remaining(now).as_secs_f64(),
            operator_pause: lane
                .pause()
                .ordered(now)
                .map(|ordered| OperatorPause::of(ordered, now)),
            granted: lane.granted(),
            tokens_free: lane.source().free(now),
            tokens_held: lane.source().held(),
            tokens_usable: rate.tokens,
            tokens: limit.count.get(),
            tenants: tenants(queue, now),
            shadow,
        }
    }
}

// === impl LaneView ===

impl LaneView {
    /// The part that metrics show.
    pub(crate) fn sample(&self) -> LaneSample<'_> {
        LaneSample {
            account: &self.account,
            action: &self.action,
            queued: self.queued,
            tokens_held: self.tokens_held,
            oldest_wait_seconds: self.oldest_wait_seconds,
            predicted_wait_seconds: self.predicted_wait_seconds,
            hold_used: self.hold_used,
            pause_remaining_seconds: self.pause_remaining_seconds,
            limit_per_second: self.limit_per_second,
            effective_per_second: self.effective_per_second,
        }
    }

    /// Counts are added up, waits are the longest, the rate is the lowest.
    fn add(&mut self, other: Self) {
        let longest = |mine: &mut f64, other: f64| *mine = mine.max(other);
        longest(&mut self.oldest_wait_seconds, other.oldest_wait_seconds);
        longest(
            &mut self.predicted_wait_seconds,
            other.predicted_wait_seconds,
        );
        longest(&mut self.hold_used, other.hold_used);
        longest(
            &mut self.pause_remaining_seconds,
            other.pause_remaining_seconds,
        );
        longest(&mut self.gap_seconds, other.gap_seconds);
        self.effective_per_second = self.effective_per_second.min(other.effective_per_second);
        self.operator_pause = self.operator_pause.or(other.operator_pause);
        self.queued += other.queued;
        self.granted += other.granted;
        self.tokens_free += other.tokens_free;
        self.tokens_held += other.tokens_held;
        self.tokens_usable += other.tokens_usable;
        self.tokens += other.tokens;
        longest_first(&mut self.tenants, other.tenants);
        if let (Some(shadow), Some(other)) = (&mut self.shadow, other.shadow) {
            shadow.queued += other.queued;
            longest(
                &mut shadow.predicted_wait_seconds,
                other.predicted_wait_seconds,
            );
        }
    }
}

// === impl OperatorPause ===

impl OperatorPause {
    fn of(ordered: Ordered, now: Instant) -> Self {
        match ordered {
            Ordered::Open => Self {
                remaining_seconds: None,
            },
            Ordered::Until(then) => Self {
                remaining_seconds: Some((then - now).as_secs_f64()),
            },
        }
    }
}

// === impl ShadowView ===

impl ShadowView {
    fn of(shadow: &mut Shadow, now: Instant) -> Self {
        let predicted_wait_seconds = shadow.wait(now).as_secs_f64();
        Self {
            queued: shadow.waiting(now),
            predicted_wait_seconds,
        }
    }
}

/// The five tenants with the longest queues, for a log line.
pub(super) fn tenants_in_words<W>(line: &FairQueue<W>, now: Instant) -> String {
    let words = |view: &TenantView| {
        let TenantView {
            client,
            tenant,
            queued,
            share,
            oldest_wait_seconds,
        } = view;
        format!(
            "{client}/{tenant}: {queued} queued, share {share:.2}, oldest {oldest_wait_seconds:.1} s"
        )
    };
    tenants(line, now)
        .iter()
        .take(5)
        .map(words)
        .collect::<Vec<_>>()
        .join("; ")
}

fn hold_used<W>(line: &FairQueue<Waiting<W>>, now: Instant) -> f64 {
    let used = |(entry, waiting): &(QueueEntry, Waiting<W>)| {
        let may = waiting.send_by - entry.arrived;
        if may.is_zero() {
            1.0
        } else {
            ((now - entry.arrived).as_secs_f64() / may.as_secs_f64()).min(1.0)
        }
    };
    line.waiting().map(used).fold(0.0, f64::max)
}

fn tenants<W>(line: &FairQueue<W>, now: Instant) -> Vec<TenantView> {
    let mut by_tenant = HashMap::<(_, &TenantId), (usize, Instant)>::new();
    let mut weights = HashMap::new();
    for (entry, _) in line.waiting() {
        weights.insert(&entry.client, f64::from(entry.weight));
        let tenant = by_tenant
            .entry((&entry.client, &entry.tenant))
            .or_insert((0, entry.arrived));
        tenant.0 += 1;
        tenant.1 = tenant.1.min(entry.arrived);
    }
    let all: f64 = weights.values().sum();
    let mut tenants_of = HashMap::<_, u32>::new();
    by_tenant
        .keys()
        .for_each(|(client, _)| *tenants_of.entry(*client).or_default() += 1);
    let share = |client| weights[client] / all / f64::from(tenants_of[client]);
    let views = by_tenant
        .into_iter()
        .map(|((client, tenant), (queued, oldest))| TenantView {
            client: client.to_string(),
            tenant: tenant.to_string(),
            queued,
            share: share(client),
            oldest_wait_seconds: (now - oldest).as_secs_f64(),
        });
    let mut longest = Vec::new();
    longest_first(&mut longest, views);
    longest
}

fn longest_first(views: &mut Vec<TenantView>, more: impl IntoIterator<Item = TenantView>) {
    views.extend(more);
    views.sort_by(|a, b| {
        b.queued
            .cmp(&a.queued)
            .then_with(|| (&a.client, &a.tenant).cmp(&(&b.client, &b.tenant)))
    });
    views.truncate(TENANTS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::fair::Place;
    use crate::primitives::id::ClientId;

    #[test]
    fn a_log_line_names_the_longest_queues_their_shares_and_their_oldest() {
        let start = Instant::now();
        let mut line = FairQueue::new();
        for (place, (client, weight, tenant)) in
            [("a", 3, "x"), ("a", 3, "y"), ("a", 3, "y"), ("b", 1, "z")]
                .into_iter()
                .enumerate()
        {
            let (client, tenant) = (ClientId::new(client), TenantId::new(tenant));
            let arrived = start + Duration::from_millis(100 * place as u64);
            line.push(
                QueueEntry {
                    place: Place(place as u64),
                    client,
                    weight,
                    tenant,
                    arrived,
                },
                (),
            );
        }
        let words = tenants_in_words(&line, start + Duration::from_secs(2));
        assert_eq!(
            words,
            "a/y: 2 queued, share 0.38, oldest 1.9 s; a/x: 1 queued, share 0.38, oldest 2.0 s; b/z: 1 queued, share 0.25, oldest 1.7 s"
        );
    }
}
