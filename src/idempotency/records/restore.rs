//! Restores records from a journal: what the last attempt of each has done.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use tokio::time::Instant;

use super::{Done, Records, State, Table};
use crate::idempotency::fingerprint::{Fingerprint, RecordName};
use crate::idempotency::record::{
    Created, End, Ending, FlowDescription, Order, OrderKind, Progress, Search, UnknownOutcome,
};
use crate::observe::journal::{KeyedAttempt, KeyedEnd, KeyedResolution, Outcome, ResolvedAs};
use crate::primitives::id::{AccountId, ClientId};

/// What was found in a journal.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Restored {
    pub(crate) keys: usize,
    pub(crate) unknown: usize,
}

/// An attempt in a journal, and what the journal knows of its end.
struct FoundAttempt {
    name: RecordName,
    /// The journal's name of it.
    attempt: Box<str>,
    order: Arc<Order>,
    /// When its end was learned. A finished key is remembered from then on.
    ended: Instant,
    /// False: the store could not record its key.
    is_in_store: bool,
    end: End,
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
    // Nothing that was concluded later outweighs CAMS's answer.
    if let (Outcome::Ok, Some(flow_id)) = (outcome, &flow_id) {
        return created(flow_id.clone(), request_id);
    }
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
    match outcome {
        Outcome::Ok | Outcome::Unknown => Last::Unknown {
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
    if let Some(found) = FoundAttempt::of(attempt, now, clock, is_sought) {
        table.remove(&found.name);
        found.insert(table);
    }
}

/// Takes over what another process has written since [`restore`], or beside this process: `attempts`
/// are all those in the journal that this process has not made, in the order of their sending.
/// Returns what has changed.
///
/// What this process knows itself stays, except an unknown outcome of another process's attempt: it was
/// under way when the journal was read. The journal may have dropped such an attempt since, if it has
/// created nothing. `has_made` says whether this process has made an attempt.
pub(super) fn take_over(
    records: &Records,
    attempts: Vec<KeyedAttempt>,
    now: Instant,
    clock: SystemTime,
    is_sought: impl Fn(&Order) -> bool,
    has_made: impl Fn(&str) -> bool,
) -> Restored {
    let mut last = HashMap::new();
    for attempt in attempts {
        if let Some(found) = FoundAttempt::of(attempt, now, clock, &is_sought) {
            last.insert(found.name, found);
        }
    }
    let mut restored = Restored::default();
    for found in last.into_values() {
        let is_unknown = matches!(found.end, End::Unknown(_));
        // The lock is not held for long: calls are being served.
        if found.take_over(&mut records.table.lock(), &has_made) {
            restored.keys += 1;
            restored.unknown += usize::from(is_unknown);
        }
    }
    restored
}

// === impl FoundAttempt ===

impl FoundAttempt {
    fn of(
        attempt: KeyedAttempt,
        now: Instant,
        clock: SystemTime,
        is_sought: impl Fn(&Order) -> bool,
    ) -> Option<Self> {
        let name = RecordName::parse(&attempt.key.name)?;
        let fingerprint = Fingerprint::parse(&attempt.key.fingerprint)?;
        let sent = attempt.time.unwrap_or(clock);
        let instant = |time: SystemTime| {
            let age = clock.duration_since(time).unwrap_or_default();
            now.checked_sub(age).unwrap_or(now)
        };
        let resolved = attempt.resolution.as_ref().and_then(|it| it.time);
        let answered = attempt.end.as_ref().and_then(|it| it.time);
        let ended = instant(resolved.or(answered).unwrap_or(sent));
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
        let attempt_name = Box::<str>::from(attempt.attempt);
        let end = match last(attempt.end, attempt.resolution, own_id) {
            Last::NotCreated => End::Released,
            Last::Created(created) => End::Done(Arc::new(created)),
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
                End::Unknown(Arc::new(UnknownOutcome {
                    reason,
                    request_id,
                    order: order.clone(),
                    attempt: Some(attempt_name.clone()),
                    owner: None,
                    at: sent,
                    ended: instant(sent),
                    // The earlier process may have stamped a request until it ended.
                    stamped_until: now,
                    search,
                }))
            }
        };
        Some(Self {
            name,
            attempt: attempt_name,
            order,
            ended,
            is_in_store: attempt.key.is_in_store,
            end,
        })
    }

    /// Inserts the record, which must not exist, if there is one to be kept.
    fn insert(self, table: &mut Table) {
        let Self {
            name,
            order,
            ended,
            is_in_store,
            end,
            ..
        } = self;
        if let End::Done(created) = &end {
            table.made_here.add(&order, &created.flow_id);
        }
        let state = match end {
            End::Released => return,
            // Whether a caller has got the answer is not in the journal.
            End::Done(_) if order.kind != OrderKind::Keyed => return,
            End::Done(created) => State::Done(Done {
                is_protected: is_in_store,
                is_in_store,
                fingerprint: order.fingerprint,
                created,
                at: ended,
                is_for_one: false,
            }),
            End::Unknown(outcome) => State::unknown(order.clone(), outcome, is_in_store),
        };
        table.insert(name, &order, state);
    }

    /// Inserts or ends a record. Returns whether there was something to do.
    fn take_over(self, table: &mut Table, has_made: impl Fn(&str) -> bool) -> bool {
        let Some(record) = table.records.get(&self.name) else {
            let before = table.records.len();
            self.insert(table);
            return table.records.len() > before;
        };
        let State::Unknown(running, outcome) = &record.state else {
            return false;
        };
        let Some(attempt) = outcome.attempt.as_ref().filter(|it| !has_made(it)) else {
            return false;
        };
        let is_same = *attempt == self.attempt;
        if is_same && matches!(self.end, End::Unknown(_)) {
            return false;
        }
        let running = running.clone();
        // If a later attempt was sent, this one has created nothing.
        let end = if is_same {
            self.end.clone()
        } else {
            End::Released
        };
        table.remove(&self.name);
        self.insert(table);
        running.set(Progress::after(Ending {
            end,
            answer: None,
            is_resolved: true,
        }));
        true
    }
}
