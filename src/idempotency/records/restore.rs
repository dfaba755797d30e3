//! Restores records from a journal: what the last attempt of each has done.

use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::{Done, State, Table};
use crate::idempotency::fingerprint::{Fingerprint, RecordName};
use crate::idempotency::record::{
    Created, FlowDescription, Order, OrderKind, Search, UnknownOutcome,
};
use crate::observe::journal::{KeyedAttempt, KeyedEnd, KeyedResolution, Outcome, ResolvedAs};
use crate::primitives::id::{AccountId, ClientId};

/// What was found in a journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Restored {
    pub(crate) keys: usize,
    pub(crate) unknown: usize,
}

/// What the last attempt of a record has done.
enum Last {
    Created(Created),
    NotCreated,
    Unknown {
        reason: Box<str>,
        request_id: Option<Box<str>>,
        /// What looks have found that only an operator can judge.
        found: Option<Box<str>>,
    },
}

/// What an attempt has done, with its end and its resolution as far as the journal has them. `own_id`
/// is Flowgate's request id, for a flow of which CAMS's is not known.
fn last(end: Option<KeyedEnd>, resolution: Option<KeyedResolution>, own_id: Box<str>) -> Last {
    let created = |flow_id: String, request_id: Option<String>| {
        Last::Created(Created {
            flow_id: flow_id.into(),
            request_id: Some(request_id.map_or(own_id, Into::into)),
        })
    };
    let (outcome, reason, flow_id, request_id) = match end {
        None => {
            let reason = "Flowgate ended before the answer came".to_owned();
            (Outcome::Unknown, Some(reason), None, None)
        }
        Some(end) => (end.outcome, end.reason, end.flow_id, end.request_id),
    };
    let found = match resolution {
        None
        | Some(KeyedResolution {
            result: ResolvedAs::Forgotten,
            ..
        }) => None,
        Some(KeyedResolution {
            result: ResolvedAs::Ambiguous,
            found,
            ..
        }) => Some(found.unwrap_or_default().into()),
        Some(KeyedResolution {
            flow_id: Some(flow_id),
            ..
        }) => return created(flow_id, request_id),
        Some(KeyedResolution { flow_id: None, .. }) => return Last::NotCreated,
    };
    match (outcome, flow_id) {
        (Outcome::Ok, Some(flow_id)) => created(flow_id, request_id),
        (Outcome::Ok | Outcome::Unknown, _) => Last::Unknown {
            reason: reason.map_or_else(|| "no certain answer".into(), Into::into),
            request_id: request_id.map(Into::into),
            found,
        },
        _ => Last::NotCreated,
    }
}

/// Sets the states of the records after these attempts, which are in the order of their sending. An
/// attempt without an end may have reached CAMS.
pub(super) fn restore(
    table: &mut Table,
    attempts: Vec<KeyedAttempt>,
    now: Instant,
    clock: SystemTime,
    is_sought: impl Fn(&Order) -> bool,
) -> Restored {
    for attempt in attempts {
        restore_one(table, attempt, now, clock, &is_sought);
    }
    let unknown = |state: &State| matches!(state, State::Unknown(..));
    Restored {
        keys: table.records.len(),
        unknown: table
            .records
            .values()
            .filter(|record| unknown(&record.state))
            .count(),
    }
}

fn restore_one(
    table: &mut Table,
    attempt: KeyedAttempt,
    now: Instant,
    clock: SystemTime,
    is_sought: impl Fn(&Order) -> bool,
) {
    let name = RecordName::parse(&attempt.key.name);
    let fingerprint = Fingerprint::parse(&attempt.key.fingerprint);
    let (Some(name), Some(fingerprint)) = (name, fingerprint) else {
        return;
    };
    table.remove(&name);
    let sent = attempt.time.unwrap_or(clock);
    let age = clock.duration_since(sent).unwrap_or_default();
    let at = now.checked_sub(age).unwrap_or(now);
    let order = Arc::new(Order {
        kind: attempt.key.kind,
        account: AccountId::new(attempt.account),
        client: ClientId::new(attempt.client),
        fingerprint,
        request_id: attempt.request_id.into(),
        flow: FlowDescription {
            name: attempt.key.flow_name.into(),
            space: attempt.key.space.into(),
            categories: attempt.key.categories,
        },
    });
    let own_id = order.request_id.clone();
    let last = last(attempt.end, attempt.resolution, own_id);
    if let Last::Created(created) = &last {
        table.made_here.add(&order, &created.flow_id);
    }
    let state = match last {
        Last::NotCreated => return,
        // Whether a caller has got the answer is not in the journal.
        Last::Created(_) if order.kind != OrderKind::Keyed => return,
        Last::Created(created) => State::Done(Done {
            fingerprint,
            created: Arc::new(created),
            at,
            is_for_one: false,
        }),
        Last::Unknown {
            reason,
            request_id,
            found,
        } => {
            let search = match found {
                Some(found) => Search::Ambiguous(found),
                None if order.flow.can_be_sought() && is_sought(&order) => Search::Active,
                None => Search::None,
            };
            let outcome = UnknownOutcome {
                reason,
                request_id,
                order: order.clone(),
                attempt: Some(attempt.attempt.into()),
                at: sent,
                ended: at,
                // The earlier process may have stamped a request until it ended.
                stamped_until: now,
                search,
            };
            State::unknown(order.clone(), Arc::new(outcome))
        }
    };
    table.insert(name, &order, state);
}
