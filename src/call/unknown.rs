//! Ends unknown outcomes: by what a look has found, by an operator's word, or because they are too
//! old. Each end is in the records, in the journal and in the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::services::CallServices;
use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::record::{Created, OrderKind, Resolution, UnknownOutcome};
use crate::idempotency::shared::{LearnedBy, Owner, SharedEnd, SharedRecords, SharedState, Taken};
use crate::observe::journal::{Resolved, ResolvedAs, Written};

/// Why an operator's word is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordRefused {
    #[error("No unknown outcome has this request_id: see /unknown. It may have ended.")]
    Ended,
    #[error("Another call has created the flow of this flow_id: a flow belongs to one order.")]
    OtherFlow,
    #[error(
        "The journal cannot be written, so a restart would forget this. Nothing was changed: say it \
         again when the journal is up."
    )]
    NoJournal,
    #[error(
        "The store that replicas share does not answer, or has just lost its data, so the other \
         replicas would not learn this. Nothing was changed: say it again in some seconds."
    )]
    NoStore,
}

/// Where an operator's word is recorded. It holds in this process in any case.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Recorded {
    /// False: the journal's disk has not answered yet, and a restart may forget the word.
    pub(crate) in_journal: bool,
    /// False: the store has not answered, and the first word that it gets will hold there.
    pub(crate) in_store: bool,
}

/// How long an operator's word waits for the journal's disk.
const RECORD_WITHIN: Duration = Duration::from_secs(2);

/// Ends the unknown outcome that was `judged` by what looks have found, in the store, then here, and answers
/// the callers that wait for it. Returns what was unknown; `None` if it is not unknown any more.
pub(crate) async fn resolve(
    services: &CallServices,
    name: RecordName,
    judged: &UnknownOutcome,
    resolution: Resolution,
) -> Option<Arc<UnknownOutcome>> {
    // A repetition that is sent at once must find the key free in the store, too.
    match share(services, name, judged, &resolution).await {
        // Another replica was first, and its word holds.
        Some(SharedState::Done(created)) => {
            let is_the_same = resolution.flow_id() == Some(&created.flow_id);
            let outcome = resolve_here(services, name, judged, Resolution::Created(created));
            outcome.filter(|_| is_the_same)
        }
        // Another replica was first: nothing was created. The key's next call may be under way there.
        Some(SharedState::Absent | SharedState::Claimed | SharedState::Open)
            if resolution.flow_id().is_some() =>
        {
            resolve_here(services, name, judged, Resolution::Absent);
            None
        }
        _ => resolve_here(services, name, judged, resolution),
    }
}

/// Like [`resolve`], of an outcome whose end is in the store already.
pub(crate) fn resolve_here(
    services: &CallServices,
    name: RecordName,
    judged: &UnknownOutcome,
    resolution: Resolution,
) -> Option<Arc<UnknownOutcome>> {
    let outcome = services
        .records
        .resolve(name, judged, resolution.clone(), Instant::now())?;
    count(services, &outcome, result_of(&resolution));
    record(services, &outcome, &resolution);
    Some(outcome)
}

/// Tells the other replicas what looks have found, unless the store does not know the call. If the store
/// is down, a key that is free here stays unknown there. Returns the state of the record if it is not
/// unknown in the store.
async fn share(
    services: &CallServices,
    name: RecordName,
    judged: &UnknownOutcome,
    resolution: &Resolution,
) -> Option<SharedState> {
    if !services.records.is_unknown(name, judged) {
        return None;
    }
    let shared = store_of(services, name, judged)?;
    let end = match resolution {
        Resolution::Created(created) | Resolution::SettledCreated(created) => {
            SharedEnd::Done(created.clone())
        }
        Resolution::Absent => SharedEnd::Absent,
        Resolution::SettledNotCreated => SharedEnd::NotCreated,
        // It stays unknown.
        Resolution::Ambiguous(_) => return None,
    };
    let shared = shared.resolve(name, &judged.order, end);
    shared.await.ok().flatten()
}

/// The store, if it knows the call.
fn store_of<'a>(
    services: &'a CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
) -> Option<&'a Arc<SharedRecords>> {
    let shared = services.shared_records.as_ref()?;
    let is_known = outcome.order.kind == OrderKind::Keyed && services.records.is_in_store(name);
    is_known.then_some(shared)
}

/// Ends an unknown outcome by an operator's word: first in the journal, then in the store, where the first
/// word holds, then here. `flow_id`: of the flow that was created, if the word is that.
///
/// # Errors
/// The word does not hold.
pub(crate) async fn settle(
    services: &CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
    flow_id: Option<&str>,
) -> Result<Recorded, WordRefused> {
    let word = match flow_id {
        Some(flow_id) => Resolution::SettledCreated(Created {
            flow_id: flow_id.into(),
            request_id: outcome.known_request_id(),
        }),
        None => Resolution::SettledNotCreated,
    };
    // Two words at the same time could give one flow to two calls.
    let _one = services.words.acquire().await;
    if !services.records.is_unknown(name, outcome) {
        return Err(WordRefused::Ended);
    }
    let seen = may_be_said(services, name, outcome, &word).await?;
    let in_journal = match (&services.journal, &outcome.attempt) {
        (Some(journal), Some(attempt)) => {
            let written = journal.record_resolved(line_of(attempt, &word), RECORD_WITHIN);
            match written.await {
                Written::Yes => true,
                Written::NotYet => false,
                Written::Lost => return Err(WordRefused::NoJournal),
            }
        }
        _ => true,
    };
    // Another call may have created the flow while the journal was written.
    let records = &services.records;
    let is_taken = word.flow_id().is_some_and(|id| records.has_flow(id));
    if is_taken && records.is_unknown(name, outcome) {
        restate(services, name, outcome).await;
        return Err(WordRefused::OtherFlow);
    }
    let said = match seen {
        Some(SharedState::Unknown(record)) => {
            match say(services, name, outcome, &word, record.owner).await {
                Ok(said) => said,
                Err(refused) => {
                    restate(services, name, outcome).await;
                    return Err(refused);
                }
            }
        }
        // It has ended there, as the word says.
        ended => ended,
    };
    let in_store = said != Some(SharedState::Gated);
    let end = match said {
        Some(SharedState::Done(created)) => Resolution::Created(created),
        _ => word.clone(),
    };
    if let Some(outcome) = records.resolve(name, outcome, end, Instant::now()) {
        count(services, &outcome, result_of(&word));
        return Ok(Recorded {
            in_journal,
            in_store,
        });
    }
    restate(services, name, outcome).await;
    Err(WordRefused::Ended)
}

/// The journal has a word that does not hold, because the outcome had another end, or another call got the
/// flow, while the word was written. The last line of an attempt counts, so it waits for room in the queue.
async fn restate(services: &CallServices, name: RecordName, outcome: &UnknownOutcome) {
    let (Some(journal), Some(attempt)) = (&services.journal, &outcome.attempt) else {
        return;
    };
    let end = match services.records.created(name) {
        Some(created) => Resolution::Created((*created).clone()),
        None if outcome.order.kind == OrderKind::Keyed
            && !services.records.is_unknown(name, outcome) =>
        {
            Resolution::Absent
        }
        // It is still unknown; or it has ended, and the records do not say how: those of calls without a key
        // are not kept.
        None => Resolution::Ambiguous("the word of an operator did not hold".into()),
    };
    // Also a line that the disk does not take in time is written later.
    let written = journal.record_resolved(line_of(attempt, &end), RECORD_WITHIN);
    written.await;
}

/// Says a word to the store, whose record is unknown and of this owner. Returns the state there afterwards, if
/// the store has it already or gives no answer.
async fn say(
    services: &CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
    word: &Resolution,
    owner: Owner,
) -> Result<Option<SharedState>, WordRefused> {
    let Some(shared) = store_of(services, name, outcome) else {
        return Ok(None);
    };
    let end = match word {
        Resolution::SettledCreated(created) => SharedEnd::SettledCreated(created.clone()),
        _ => SharedEnd::NotCreated,
    };
    let said = shared.resolve_of(name, &outcome.order, owner.clone(), end);
    let state = said.await.unwrap_or(Some(SharedState::Gated));
    if let Some(state) = &state {
        agrees(services, name, outcome, word, state)?;
    }
    match &state {
        Some(SharedState::Unknown(record)) if record.owner == owner => Err(WordRefused::OtherFlow),
        // The outcome that the word was said of has ended there.
        Some(SharedState::Unknown(_)) => Err(WordRefused::Ended),
        _ => Ok(state),
    }
}

/// Checks that an operator's word would hold at all replicas. Returns what the store says of the call, if
/// it knows it.
async fn may_be_said(
    services: &CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
    word: &Resolution,
) -> Result<Option<SharedState>, WordRefused> {
    let flow_id = word.flow_id();
    if flow_id.is_some_and(|id| services.records.has_flow(id)) {
        return Err(WordRefused::OtherFlow);
    }
    let order = &outcome.order;
    let seen = match store_of(services, name, outcome) {
        Some(shared) => match shared.read(name, order).await {
            Err(_) | Ok(SharedState::Gated) => return Err(WordRefused::NoStore),
            Ok(state) => Some(state),
        },
        None => None,
    };
    if let (Some(shared), Some(flow_id)) = (&services.shared_records, flow_id) {
        let taken = shared.take_flow(name, order, flow_id, LearnedBy::Word);
        match taken.await {
            Ok(Taken::Owned) => return Err(WordRefused::OtherFlow),
            Err(_) | Ok(Taken::Gated) => return Err(WordRefused::NoStore),
            Ok(Taken::Mine | Taken::OtherOpen | Taken::OtherUnknown) => {}
        }
    }
    if let Some(state) = &seen {
        agrees(services, name, outcome, word, state)?;
    }
    Ok(seen)
}

/// Checks that a word agrees with what the store says. If it does not, what another replica has recorded
/// first holds here, too.
fn agrees(
    services: &CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
    word: &Resolution,
    state: &SharedState,
) -> Result<(), WordRefused> {
    let end = match state {
        SharedState::Done(created) if word.flow_id() != Some(&*created.flow_id) => {
            Resolution::Created(created.clone())
        }
        // Nothing was created. The key's next call may be under way there.
        SharedState::Absent | SharedState::Claimed | SharedState::Open
            if word.flow_id().is_some() =>
        {
            Resolution::Absent
        }
        // Nothing was created. The key's next call is unknown, too.
        SharedState::Unknown(record) if !record.may_be_of(outcome.owner.as_ref()) => {
            Resolution::Absent
        }
        _ => return Ok(()),
    };
    resolve_here(services, name, outcome, end);
    Err(WordRefused::Ended)
}

/// Reports that an unknown outcome is not remembered any longer.
pub(crate) fn forgotten(services: &CallServices, outcome: &UnknownOutcome) {
    count(services, outcome, ResolvedAs::Forgotten);
    if let (Some(journal), Some(attempt)) = (&services.journal, &outcome.attempt) {
        journal.resolved(Resolved {
            attempt,
            result: ResolvedAs::Forgotten,
            flow_id: None,
            found: None,
        });
    }
    tracing::warn!(
        account = outcome.order.account.as_str(),
        request_id = &*outcome.order.request_id,
        "an unknown outcome is not remembered any longer"
    );
}

fn count(services: &CallServices, outcome: &UnknownOutcome, result: ResolvedAs) {
    let account = outcome.order.account.as_str();
    let after = outcome.ended.elapsed();
    services.metrics.resolved(account, result.label(), after);
}

/// Queues the journal's line.
fn record(services: &CallServices, outcome: &UnknownOutcome, resolution: &Resolution) {
    if let (Some(journal), Some(attempt)) = (&services.journal, &outcome.attempt) {
        journal.resolved(line_of(attempt, resolution));
    }
}

/// What the journal's line says.
fn line_of<'a>(attempt: &'a str, resolution: &'a Resolution) -> Resolved<'a> {
    let found = match resolution {
        Resolution::Ambiguous(found) => Some(&**found),
        _ => None,
    };
    Resolved {
        attempt,
        result: result_of(resolution),
        flow_id: resolution.flow_id(),
        found,
    }
}

fn result_of(resolution: &Resolution) -> ResolvedAs {
    match resolution {
        Resolution::Created(_) => ResolvedAs::Created,
        Resolution::Absent => ResolvedAs::Absent,
        Resolution::Ambiguous(_) => ResolvedAs::Ambiguous,
        Resolution::SettledCreated(_) | Resolution::SettledNotCreated => ResolvedAs::Settled,
    }
}
