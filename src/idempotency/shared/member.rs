//! What one replica knows of the store: the epoch, whether it has published its records there, and
//! the other replicas. It builds the operations; it does no I/O.
//!
//! An epoch is the time in which the store has lost nothing. In a new one a missing record proves
//! nothing until every replica has published what it knows.

use std::time::Duration;

use tokio::time::Instant;

use super::protocol::{
    BeatAnswer, Call, ClaimId, KeyClaim, LearnedBy, MarkAnswer, Op, Published, Settlement,
    SharedEnd, offset_ms,
};
use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::record::{Order, OrderKind};

/// One replica.
pub(crate) struct Member {
    /// The prefix of all keys of the records. Its hash tag puts them on one server of a cluster.
    prefix: String,
    replica: String,
    times: Times,
    /// The epoch that the store last reported.
    epoch: Option<Box<str>>,
    /// The epoch in which the records are published.
    published: Option<Box<str>>,
    /// The ids of the server at the last heartbeat.
    server: String,
    /// The other replicas, each with the time of its last heartbeat.
    others: Vec<(Box<str>, Instant)>,
}

/// The durations of the configuration.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    /// How long a finished key is remembered.
    pub(crate) keep: Duration,
    /// How long CAMS may take to answer.
    pub(crate) answer_timeout: Duration,
    /// How long after its last signature CAMS may execute a call.
    pub(crate) settle: Duration,
}

/// How much longer than its hold a claim lasts.
const CLAIM_MARGIN: Duration = Duration::from_secs(10);
/// How much longer than CAMS may take an open record counts as under way.
const OPEN_MARGIN: Duration = Duration::from_secs(30);
/// How long an open or unknown record is remembered.
pub(crate) const KEEP_OPEN: Duration = Duration::from_secs(7 * 24 * 3600);
/// A member that was silent for this time is not waited for.
pub(crate) const LEASE: Duration = Duration::from_secs(10);
/// Under a younger epoch nothing is claimed: every member sees a new epoch within this time.
pub(crate) const LEAST_AGE: Duration = Duration::from_secs(3);

// === impl Member ===

impl Member {
    pub(crate) fn new(store_prefix: &str, replica: &str, times: Times) -> Self {
        Self {
            prefix: format!("{store_prefix}{{once}}:"),
            replica: replica.to_owned(),
            times,
            epoch: None,
            published: None,
            server: String::new(),
            others: Vec::new(),
        }
    }

    pub(crate) fn set_times(&mut self, times: Times) {
        self.times = times;
    }

    /// Whether the store is in this epoch, as far as this replica knows.
    pub(crate) fn is_current(&self, epoch: &str) -> bool {
        self.epoch.as_deref() == Some(epoch)
    }

    /// The epoch in which the records of this replica are not published yet. The records that it
    /// publishes must be read after this.
    pub(crate) fn unpublished(&self) -> Option<Box<str>> {
        self.epoch.clone().filter(|_| self.published != self.epoch)
    }

    /// All records of this replica are in the store.
    pub(crate) fn published(&mut self, epoch: &str) {
        self.published = Some(epoch.into());
    }

    /// This replica has got records that may not be in the store.
    pub(crate) fn unpublish(&mut self) {
        self.published = None;
    }

    /// Claims a key for `hold`; `None`: only reads its record.
    pub(crate) fn claim(&self, claim: &KeyClaim, hold: Option<Duration>) -> Call {
        let lifetime = hold.map_or(Duration::ZERO, |hold| hold + CLAIM_MARGIN);
        let mut args = vec![
            claim.id.to_string(),
            claim.print.hex(),
            ms(lifetime),
            ms(self.times.overdue()),
        ];
        args.extend(self.gate());
        self.call(Op::Claim, vec![self.record_key(claim.name)], args)
    }

    /// Marks a claim open; further attempts may be signed within `remaining`.
    pub(crate) fn mark(&self, claim: &KeyClaim, remaining: Duration) -> Call {
        let args = vec![claim.id.to_string(), ms(remaining), ms(KEEP_OPEN)];
        self.call(Op::Mark, self.keys(claim, ""), args)
    }

    /// Whether a signed attempt may leave after this answer. A mark of an earlier epoch may be lost,
    /// and this replica may have published its records without it.
    pub(crate) fn is_marked(&self, answer: &MarkAnswer) -> bool {
        answer.is_open && self.is_current(&answer.epoch)
    }

    /// Records an end: of a call by its own claim, or of an unknown outcome.
    pub(crate) fn settle(&self, settlement: &Settlement, now: Instant) -> Call {
        let Settlement { claim, end, .. } = settlement;
        let ids = end.ids();
        let mut args = vec![
            claim.id.to_string(),
            claim.print.hex(),
            end.name().to_owned(),
            offset_ms(settlement.signed_until, now).to_string(),
            ms(self.lifetime(end)),
            ids.request_id.to_owned(),
            ids.flow_id.to_owned(),
        ];
        let keys = self.keys(claim, ids.flow_id);
        let Some(by) = end.resolved_by() else {
            return self.call(Op::Settle, keys, args);
        };
        args.extend([
            by.name().to_owned(),
            ms(self.times.overdue()),
            ms(self.times.settle),
        ]);
        args.extend(self.gate());
        self.call(Op::Resolve, keys, args)
    }

    /// Takes a flow for a call: in the name of its record, which all replicas know. A call without a key is
    /// known to those processes only that have read the same journal, by its request.
    pub(crate) fn take_flow(
        &self,
        name: RecordName,
        order: &Order,
        flow_id: &str,
        by: LearnedBy,
    ) -> Call {
        let claim = KeyClaim::of(name, order, ClaimId::of_call(&order.request_id));
        let taken_as = if order.kind == OrderKind::Keyed {
            name.hex()
        } else {
            format!("call:{}", order.request_id)
        };
        let mut args = vec![
            taken_as,
            ms(self.times.keep),
            by.name().to_owned(),
            ms(self.times.overdue()),
        ];
        args.extend(self.gate());
        self.call(Op::TakeFlow, self.keys(&claim, flow_id), args)
    }

    pub(crate) fn publish(&self, records: &[Published], now: Instant) -> Call {
        let keys = records.iter().flat_map(|record| {
            let flow_id = record.end.as_ref().map(|end| end.ids().flow_id);
            self.keys(&record.claim, flow_id.unwrap_or_default())
        });
        let fields = records.iter().flat_map(|record| {
            let ids = record.end.as_ref().map(SharedEnd::ids);
            let (request_id, flow_id) = ids.map_or(("", ""), |ids| (ids.request_id, ids.flow_id));
            [
                record.end.as_ref().map_or("o", SharedEnd::name).to_owned(),
                record.claim.id.to_string(),
                record.claim.print.hex(),
                offset_ms(record.signed_until, now).to_string(),
                ms(record.lifetime),
                request_id.to_owned(),
                flow_id.to_owned(),
            ]
        });
        self.call(Op::Publish, keys.collect(), fields.collect())
    }

    /// A heartbeat. `server` are the ids of the connected server.
    pub(crate) fn beat(&mut self, op: Op, server: &str, now: Instant) -> Call {
        server.clone_into(&mut self.server);
        let mut args = vec![
            op.name().to_owned(),
            self.published.as_deref().unwrap_or_default().to_owned(),
            self.epoch.as_deref().unwrap_or_default().to_owned(),
            ms(LEASE),
        ];
        for (name, seen) in &self.others {
            args.push(name.to_string());
            args.push(ms(now.saturating_duration_since(*seen)));
        }
        self.call(op, Vec::new(), args)
    }

    /// Takes over what the store says of the epoch and the other replicas.
    pub(crate) fn heard_beat(&mut self, answer: BeatAnswer, now: Instant) {
        self.epoch = Some(answer.epoch);
        self.others = answer
            .members
            .into_iter()
            .map(|(name, silent)| (name, now.checked_sub(silent).unwrap_or(now)))
            .collect();
    }

    /// The key of the lease of a look.
    pub(crate) fn look_key(&self, name: RecordName) -> String {
        format!("{}{}:look", self.prefix, name.hex())
    }

    fn lifetime(&self, end: &SharedEnd) -> Duration {
        if end.is_done() {
            self.times.keep
        } else {
            KEEP_OPEN
        }
    }

    /// What a script needs to know whether a replica may know more than the store.
    fn gate(&self) -> [String; 3] {
        let published = self.published.as_deref().unwrap_or_default();
        [published.to_owned(), ms(LEASE), ms(LEAST_AGE)]
    }

    fn record_key(&self, name: RecordName) -> String {
        format!("{}{}", self.prefix, name.hex())
    }

    /// The record, the owner of its flow, and the calls of its flow's name. One that does not apply
    /// is the record, since a cluster takes no empty key.
    fn keys(&self, claim: &KeyClaim, flow_id: &str) -> Vec<String> {
        let record = self.record_key(claim.name);
        let owner = if flow_id.is_empty() {
            record.clone()
        } else {
            format!("{}flow:{flow_id}", self.prefix)
        };
        let calls = match claim.flow_name {
            Some(hash) => format!("{}name:{}", self.prefix, hash.hex()),
            None => record.clone(),
        };
        vec![record, owner, calls]
    }

    fn call(&self, op: Op, of_records: Vec<String>, args: Vec<String>) -> Call {
        let mut keys = vec![
            format!("{}epoch", self.prefix),
            format!("{}members", self.prefix),
        ];
        keys.extend(of_records);
        let fresh = format!("{:016x}", fastrand::u64(..));
        let common = [self.replica.clone(), fresh, self.server.clone()];
        let args = common.into_iter().chain(args).map(String::into_bytes);
        Call {
            op,
            keys,
            args: args.collect(),
        }
    }
}

fn ms(time: Duration) -> String {
    time.as_millis().to_string()
}

// === impl Times ===

impl Times {
    /// How long after its `until` an open record is unknown.
    fn overdue(self) -> Duration {
        self.answer_timeout + OPEN_MARGIN
    }
}
