//! Restores records from a journal: what the calls of each have done.

use std::collections::HashMap;
use std::collections::hash_map::Entry as MapEntry;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use super::{Done, Records, State, Table};
use crate::idempotency::fingerprint::{Fingerprint, RecordName};
use crate::idempotency::record::{
    Created, End, Ending, FlowDescription, Order, OrderKind, Progress, Search, UnknownOutcome,
};
use crate::observe::journal::{KeyedAttempt, KeyedEnd, KeyedResolution, Known, Outcome};
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
    order: Arc<Order>,
    sent: SystemTime,
    /// When its end was learned. A finished key is remembered from then on.
    ended: SystemTime,
    ended_at: Instant,
    /// False: the store could not record its key.
    is_in_store: bool,
    end: End,
}

/// A flow, and the order that has created it.
type Flow = (Arc<Order>, Arc<Created>);

/// Sets the states of the records after these attempts, which are in the order of their sending. An
/// attempt without an end may have reached CAMS.
pub(super) fn restore(
    table: &mut Table,
    attempts: Vec<KeyedAttempt>,
    now: Instant,
    clock: SystemTime,
    is_sought: impl Fn(&Order) -> bool,
) -> Restored {
    let keep = table.bounds.keep;
    let (decisive, flows) = decisive(attempts, keep, now, clock, is_sought);
    table.note_earlier(&flows);
    for found in decisive {
        found.insert(table);
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

/// Takes over what another process has written since [`restore`], or beside this process: `attempts`
/// are all those in the journal that this process has not made, in the order of their sending.
/// Returns what has changed.
///
/// What this process knows itself stays, except an unknown outcome: of another process's call it was
/// under way when the journal was read, and one of its own is void if another process has got the flow of
/// the key. The journal may have dropped an attempt since, if it has created nothing. `has_made` says
/// whether this process has made an attempt.
pub(super) fn take_over(
    records: &Records,
    attempts: Vec<KeyedAttempt>,
    now: Instant,
    clock: SystemTime,
    is_sought: impl Fn(&Order) -> bool,
    has_made: impl Fn(&str) -> bool,
) -> Restored {
    let keep = records.table.lock().bounds.keep;
    let mut restored = Restored::default();
    let (decisive, flows) = decisive(attempts, keep, now, clock, &is_sought);
    records.table.lock().note_earlier(&flows);
    for found in decisive {
        let is_unknown = matches!(found.end, End::Unknown(_));
        // The lock is not held for long: calls are being served.
        if found.take_over(&mut records.table.lock(), &has_made) {
            restored.keys += 1;
            restored.unknown += usize::from(is_unknown);
        }
    }
    restored
}

/// The one attempt of each record that says what the record is: the last one, unless an earlier one has
/// created the flow. Then all flows that the attempts have created. `keep`: how long a finished key is
/// remembered.
fn decisive(
    attempts: Vec<KeyedAttempt>,
    keep: Duration,
    now: Instant,
    clock: SystemTime,
    is_sought: impl Fn(&Order) -> bool,
) -> (impl Iterator<Item = FoundAttempt>, Vec<Flow>) {
    let mut flows = Vec::new();
    let mut decisive: HashMap<RecordName, usize> = HashMap::new();
    let mut found: Vec<Option<FoundAttempt>> = Vec::new();
    for attempt in attempts {
        let Some(attempt) = FoundAttempt::of(attempt, now, clock, &is_sought) else {
            continue;
        };
        if let End::Done(created) = &attempt.end {
            flows.push((attempt.order.clone(), created.clone()));
        }
        let at = found.len();
        match decisive.entry(attempt.name) {
            MapEntry::Vacant(entry) => {
                entry.insert(at);
            }
            MapEntry::Occupied(mut entry) => {
                let earlier = &mut found[*entry.get()];
                let has_flow = matches!(attempt.end, End::Done(_)) && attempt.is_in_store;
                let outlasts = |it: &FoundAttempt| it.outlasts(&attempt.order, attempt.sent, keep);
                if !has_flow && earlier.as_ref().is_some_and(outlasts) {
                    continue;
                }
                *earlier = None;
                entry.insert(at);
            }
        }
        found.push(Some(attempt));
    }
    (found.into_iter().flatten(), flows)
}

// === impl Table ===

impl Table {
    fn note_earlier(&mut self, flows: &[Flow]) {
        for (order, created) in flows {
            self.made_before.add(order, &created.flow_id);
        }
    }
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
        let ended = resolved.or(answered).unwrap_or(sent);
        let known = attempt.known();
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
        let name_of_attempt = Box::<str>::from(attempt.attempt);
        let end = match known {
            Known::NotCreated => End::Released,
            Known::Created => End::Done(Arc::new(created(
                attempt.end,
                attempt.resolution,
                &order.request_id,
            )?)),
            Known::Unknown => {
                let (reason, request_id) = match attempt.end {
                    None => ("Flowgate ended before the answer came".into(), None),
                    Some(end) => (
                        end.reason.unwrap_or_else(|| "no certain answer".into()),
                        end.request_id,
                    ),
                };
                let search = match attempt.resolution {
                    Some(ambiguous) => {
                        Search::Ambiguous(ambiguous.found.unwrap_or_default().into())
                    }
                    None if order.flow.can_be_sought() && is_sought(&order) => Search::Active,
                    None => Search::None,
                };
                End::Unknown(Arc::new(UnknownOutcome {
                    reason: reason.into(),
                    request_id: request_id.map(Into::into),
                    order: order.clone(),
                    attempt: Some(name_of_attempt),
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
            order,
            sent,
            ended,
            ended_at: instant(ended),
            is_in_store: attempt.key.is_in_store,
            end,
        })
    }

    /// Whether this attempt, and not a later one that was sent at `sent` and has created nothing that is
    /// known, says what the record is. Within the time in which its key is remembered, a later call of the
    /// key is of a process that did not know the flow.
    fn outlasts(&self, later: &Order, sent: SystemTime, keep: Duration) -> bool {
        let is_created = matches!(self.end, End::Done(_)) && self.order.kind == OrderKind::Keyed;
        let is_same = self.order.fingerprint == later.fingerprint;
        let forgotten = self.ended.checked_add(keep);
        is_created && is_same && forgotten.is_none_or(|forgotten| sent < forgotten)
    }

    /// Inserts the record, which must not exist, if there is one to be kept.
    fn insert(self, table: &mut Table) {
        let Self {
            name,
            order,
            ended_at,
            is_in_store,
            end,
            ..
        } = self;
        let state = match end {
            End::Released => return,
            // Whether a caller has got the answer is not in the journal.
            End::Done(_) if order.kind != OrderKind::Keyed => return,
            End::Done(created) => State::Done(Done {
                is_protected: is_in_store,
                is_in_store,
                fingerprint: order.fingerprint,
                created,
                at: ended_at,
                is_for_one: false,
            }),
            End::Unknown(outcome) => State::unknown(order.clone(), outcome, is_in_store),
        };
        table.insert(name, &order, state);
    }

    /// Inserts or ends a record. Returns whether there was something to do.
    fn take_over(self, table: &mut Table, has_made: impl Fn(&str) -> bool) -> bool {
        let keep = table.bounds.keep;
        let Some(record) = table.records.get(&self.name) else {
            let before = table.records.len();
            self.insert(table);
            return table.records.len() > before;
        };
        let State::Unknown(running, outcome) = &record.state else {
            return false;
        };
        let is_own = outcome.attempt.as_ref().is_none_or(|it| has_made(it));
        let is_same = outcome.order.request_id == self.order.request_id;
        let running = running.clone();
        match &self.end {
            End::Unknown(later) if is_same && outcome.attempt.is_none() => {
                // Known from the store until now, without the name of its attempt.
                let named = End::Unknown(Arc::new(UnknownOutcome {
                    attempt: later.attempt.clone(),
                    ..(**outcome).clone()
                }));
                let ended_at = outcome.ended;
                table.end(self.name, &running, &named, ended_at);
                return true;
            }
            End::Unknown(later) if is_same => {
                let is_later = later.attempt != outcome.attempt;
                if is_later {
                    table.end(self.name, &running, &self.end, self.ended_at);
                }
                return is_later;
            }
            End::Done(_)
                if is_own && !is_same && !self.outlasts(&running.order, outcome.at, keep) =>
            {
                return false;
            }
            End::Done(_) => {}
            End::Released | End::Unknown(_) if is_own => return false,
            End::Released | End::Unknown(_) => {}
        }
        let end = match &self.end {
            End::Done(created) => End::Done(created.clone()),
            // If a later call was sent, this one has created nothing.
            End::Unknown(_) | End::Released => End::Released,
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

/// The flow that an attempt has created, by CAMS's answer or as it was learned later. `own_id` is Flowgate's
/// request id, for a flow of which CAMS's is not known.
fn created(
    end: Option<KeyedEnd>,
    resolution: Option<KeyedResolution>,
    own_id: &str,
) -> Option<Created> {
    let (outcome, flow_id, request_id) = match end {
        Some(end) => (end.outcome, end.flow_id, end.request_id),
        None => (Outcome::Unknown, None, None),
    };
    let answered = flow_id.filter(|_| outcome == Outcome::Ok);
    let flow_id = answered.or_else(|| resolution?.flow_id)?;
    Some(Created {
        flow_id: flow_id.into(),
        request_id: Some(request_id.map_or_else(|| own_id.into(), Into::into)),
    })
}
