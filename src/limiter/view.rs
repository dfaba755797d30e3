//! The lane as operators see it: a snapshot of its state, for `/lanes`, `/metrics` and the status
//! page.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use crate::config::Limit;
use crate::limiter::fair::FairQueue;
use crate::limiter::lane::{Lane, Waiting};
use crate::limiter::pause::OperatorPause;
use crate::limiter::shadow::Shadow;
use crate::observe::metrics::LaneSample;
use crate::primitives::id::{ClientId, TenantId};

/// A snapshot of one lane, or of all lanes with the same labels.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(crate) struct LaneView {
    /// The account's label.
    pub(crate) account: String,
    /// The action's label.
    pub(crate) action: String,
    /// Calls per second that the limit allows.
    pub(crate) limit_per_second: f64,
    /// Calls per second that the lane sends outside pauses, as learned.
    pub(crate) effective_per_second: f64,
    /// The learned addition to the window before a token is back.
    pub(crate) gap_seconds: f64,
    pub(crate) queued: usize,
    pub(crate) oldest_wait_seconds: f64,
    /// The predicted wait of a call that arrives now.
    pub(crate) predicted_wait_seconds: f64,
    /// The largest part of its hold that a queued call has used, from 0 to 1.
    pub(crate) hold_used: f64,
    pub(crate) pause_remaining_seconds: f64,
    /// Present while an operator pauses the lane.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) operator_pause: Option<OperatorPauseView>,
    /// Grants since the lane was created.
    pub(crate) granted: u64,
    pub(crate) tokens_free: u32,
    pub(crate) tokens_held: u32,
    /// Tokens that may be in use at once, as learned.
    pub(crate) tokens_usable: u32,
    pub(crate) tokens: u32,
    /// The tenants with queued calls, longest queue first, at most twenty.
    pub(crate) tenants: Vec<TenantView>,
    /// Present in observe mode.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) shadow: Option<ShadowView>,
}

/// The queue that the limit would build up.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(crate) struct ShadowView {
    /// Calls that would be queued.
    pub(crate) queued: usize,
    /// How long a call that arrives now would wait.
    pub(crate) predicted_wait_seconds: f64,
}

/// An operator's pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(crate) struct OperatorPauseView {
    /// None for a pause until an operator resumes the lane.
    pub(crate) remaining_seconds: Option<f64>,
}

/// One tenant inside a lane.
#[derive(Clone, Debug, Default, serde::Deserialize, serde::Serialize)]
#[serde(default)]
pub(crate) struct TenantView {
    pub(crate) client: String,
    pub(crate) tenant: String,
    pub(crate) queued: usize,
    /// Its share of the lane's grants among the tenants that are queued now, from 0 to 1.
    pub(crate) share: f64,
    pub(crate) oldest_wait_seconds: f64,
}

/// The most tenants of a lane that are listed.
const MAX_TENANTS: usize = 20;

// === impl LaneView ===

impl LaneView {
    /// `labels`: of account and action.
    pub(super) fn new<W>(
        labels: [&str; 2],
        lane: &Lane<W>,
        shadow: Option<ShadowView>,
        now: Instant,
    ) -> Self {
        let [account, action] = labels;
        let limit = lane.limit();
        let rate = lane.rate(now);
        let queue = lane.queue();
        let predicted_wait = if shadow.is_some() {
            Duration::ZERO
        } else {
            lane.predicted_wait(queue.len(), now)
        };
        let oldest_wait = queue.oldest().map_or(Duration::ZERO, |arrived| {
            now.saturating_duration_since(arrived)
        });
        let operator_pause = lane
            .pause()
            .operator_pause(now)
            .map(|pause| OperatorPauseView::new(pause, now));
        Self {
            account: account.to_owned(),
            action: action.to_owned(),
            limit_per_second: per_second(limit),
            effective_per_second: rate.per_second(),
            gap_seconds: rate.gap.as_secs_f64(),
            queued: queue.len(),
            oldest_wait_seconds: oldest_wait.as_secs_f64(),
            predicted_wait_seconds: predicted_wait.as_secs_f64(),
            hold_used: hold_used(queue, now),
            pause_remaining_seconds: lane.pause().remaining(now).as_secs_f64(),
            operator_pause,
            granted: lane.granted(),
            tokens_free: lane.source().unused(now),
            tokens_held: lane.source().held(),
            tokens_usable: rate.tokens,
            tokens: limit.count.get(),
            tenants: tenants(queue, now),
            shadow,
        }
    }

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

    /// Merges another lane into this view: the sum of counts, the longest of waits, the lowest of
    /// rates.
    pub(super) fn merge(&mut self, other: Self) {
        self.oldest_wait_seconds = self.oldest_wait_seconds.max(other.oldest_wait_seconds);
        self.predicted_wait_seconds = self
            .predicted_wait_seconds
            .max(other.predicted_wait_seconds);
        self.hold_used = self.hold_used.max(other.hold_used);
        self.pause_remaining_seconds = self
            .pause_remaining_seconds
            .max(other.pause_remaining_seconds);
        self.gap_seconds = self.gap_seconds.max(other.gap_seconds);
        self.effective_per_second = self.effective_per_second.min(other.effective_per_second);
        self.operator_pause = self.operator_pause.or(other.operator_pause);
        self.queued += other.queued;
        self.granted += other.granted;
        self.tokens_free += other.tokens_free;
        self.tokens_held += other.tokens_held;
        self.tokens_usable += other.tokens_usable;
        self.tokens += other.tokens;
        merge_longest(&mut self.tenants, other.tenants);
        if let (Some(shadow), Some(other)) = (&mut self.shadow, other.shadow) {
            shadow.queued += other.queued;
            shadow.predicted_wait_seconds = shadow
                .predicted_wait_seconds
                .max(other.predicted_wait_seconds);
        }
    }
}

// === impl OperatorPauseView ===

impl OperatorPauseView {
    fn new(pause: OperatorPause, now: Instant) -> Self {
        let remaining_seconds = match pause {
            OperatorPause::Indefinite => None,
            OperatorPause::Until(end) => Some((end - now).as_secs_f64()),
        };
        Self { remaining_seconds }
    }
}

// === impl ShadowView ===

impl ShadowView {
    pub(super) fn new(shadow: &mut Shadow, now: Instant) -> Self {
        Self {
            queued: shadow.waiting(now),
            predicted_wait_seconds: shadow.wait(now).as_secs_f64(),
        }
    }
}

/// The rate of a limit.
pub(super) fn per_second(limit: Limit) -> f64 {
    f64::from(limit.count.get()) / limit.window.as_secs_f64()
}

/// Describes the five tenants with the longest queues, for the log.
pub(super) fn describe_tenants<W>(queue: &FairQueue<W>, now: Instant) -> String {
    let descriptions: Vec<_> = tenants(queue, now)
        .iter()
        .take(5)
        .map(|tenant| {
            format!(
                "{}/{}: {} queued, share {:.2}, oldest {:.1} s",
                tenant.client,
                tenant.tenant,
                tenant.queued,
                tenant.share,
                tenant.oldest_wait_seconds
            )
        })
        .collect();
    descriptions.join("; ")
}

fn hold_used<W>(queue: &FairQueue<Waiting<W>>, now: Instant) -> f64 {
    queue
        .waiting()
        .map(|(entry, waiting)| {
            let hold = waiting.send_by - entry.arrived;
            if hold.is_zero() {
                return 1.0;
            }
            let waited = now - entry.arrived;
            (waited.as_secs_f64() / hold.as_secs_f64()).min(1.0)
        })
        .fold(0.0, f64::max)
}

/// The queued calls of one tenant.
struct TenantQueue {
    queued: usize,
    oldest: Instant,
}

fn tenants<W>(queue: &FairQueue<W>, now: Instant) -> Vec<TenantView> {
    let mut by_tenant = HashMap::<(&ClientId, &TenantId), TenantQueue>::new();
    let mut weights = HashMap::<&ClientId, f64>::new();
    for (entry, _) in queue.waiting() {
        weights.insert(&entry.client, f64::from(entry.weight));
        let tenant = by_tenant
            .entry((&entry.client, &entry.tenant))
            .or_insert(TenantQueue {
                queued: 0,
                oldest: entry.arrived,
            });
        tenant.queued += 1;
        tenant.oldest = tenant.oldest.min(entry.arrived);
    }
    let total_weight: f64 = weights.values().sum();
    let mut tenants_per_client = HashMap::<&ClientId, u32>::new();
    for (client, _) in by_tenant.keys() {
        *tenants_per_client.entry(client).or_default() += 1;
    }
    let views = by_tenant
        .into_iter()
        .map(|((client, tenant), calls)| TenantView {
            client: client.to_string(),
            tenant: tenant.to_string(),
            queued: calls.queued,
            share: weights[client] / total_weight / f64::from(tenants_per_client[client]),
            oldest_wait_seconds: (now - calls.oldest).as_secs_f64(),
        });
    let mut longest = Vec::new();
    merge_longest(&mut longest, views);
    longest
}

/// Adds `more` to `views` and keeps the longest queues, in order.
fn merge_longest(views: &mut Vec<TenantView>, more: impl IntoIterator<Item = TenantView>) {
    views.extend(more);
    views.sort_by(|a, b| {
        b.queued
            .cmp(&a.queued)
            .then_with(|| (&a.client, &a.tenant).cmp(&(&b.client, &b.tenant)))
    });
    views.truncate(MAX_TENANTS);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limiter::fair::{QueueEntry, Sequence};

    #[test]
    fn the_log_describes_the_longest_queues_with_their_shares_and_oldest_calls() {
        let start = Instant::now();
        let mut queue = FairQueue::new();
        let calls = [("a", 3, "x"), ("a", 3, "y"), ("a", 3, "y"), ("b", 1, "z")];
        for (number, (client, weight, tenant)) in (0..).zip(calls) {
            let entry = QueueEntry {
                sequence: Sequence(number),
                client: ClientId::new(client),
                weight,
                tenant: TenantId::new(tenant),
                arrived: start + Duration::from_millis(100 * number),
            };
            queue.push(entry, ());
        }
        assert_eq!(
            describe_tenants(&queue, start + Duration::from_secs(2)),
            "a/y: 2 queued, share 0.38, oldest 1.9 s; a/x: 1 queued, share 0.38, oldest 2.0 s; b/z: 1 queued, share 0.25, oldest 1.7 s"
        );
    }
}
