//! Ends unknown outcomes: by what a look has found, by an operator's word, or because they are too
//! old. Each end is in the records, in the journal and in the log.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::services::CallServices;
use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::looks::FLOW_OF_ANOTHER;
use crate::idempotency::record::{Created, OrderKind, Resolution, UnknownOutcome};
use crate::idempotency::records::NotEnded;
use crate::idempotency::shared::{
    LearnedBy, Settled, SharedEnd, SharedRecords, SharedState, Taken,
};
use crate::observe::journal::{Resolved, ResolvedAs, Written};

/// Why an operator's word is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordRefused {
    #[error(
        "No unknown outcome has this request_id: see /unknown. It has ended, or its call is under way, or \
         another replica knows it, or this is the id of a repetition, or the call has no record: it had no \
         key, and flow_names is not \"unique\"."
    )]
    Ended,
    #[error("Another call has created the flow of this flow_id: a flow belongs to one order.")]
    OtherFlow,
    #[error(
        "The store that replicas share does not answer, has just lost its data, or has the call under \
         way again. The word may not be recorded: say the same again in some seconds. A 404 then means \
         that it has ended: a repetition of its key says how, or flowgate journal --unknown at the replica \
         that has sent it."
    )]
    NoStore,
}

/// Whether an operator's word, which holds, is in the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Recorded {
    /// It is in the journal, or there is nothing to write.
    Yes,
    /// A restart may forget the word.
    NotInJournal,
}

/// What the store makes of a resolution.
enum Shared {
    /// It holds at all replicas.
    Yes,
    /// The store does not know the call: it is for this process to decide.
    Not,
    /// The store had this end before, which holds.
    Ended(Resolution),
    /// The flow is another call's.
    FlowOfAnother,
    /// The store gives no answer, or it is too early: a replica may know more, or the call is under way again.
    TooEarly,
}

/// What looks have found does not hold now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct LookAgain;

/// How long an operator's word waits for the journal's disk.
const RECORD_WITHIN: Duration = Duration::from_secs(2);

/// Ends the unknown outcome that was `judged` by what looks have found: in the store, where the first end
/// holds, then here, then in the journal. Answers the callers that wait for it. Returns what it has ended with;
/// `None`: it had ended before.
///
/// # Errors
/// What has been found does not hold now.
pub(crate) async fn resolve(
    services: &CallServices,
    name: RecordName,
    judged: &UnknownOutcome,
    resolution: Resolution,
) -> Result<Option<Resolution>, LookAgain> {
    // A repetition that is sent at once must find the key free in the store, too.
    let end = match share(services, name, judged, &resolution).await {
        Shared::Yes | Shared::Not => resolution,
        Shared::Ended(end) => {
            drop(resolve_here(services, name, judged, end));
            return Ok(None);
        }
        Shared::FlowOfAnother => Resolution::Ambiguous(FLOW_OF_ANOTHER.into()),
        Shared::TooEarly => return Err(LookAgain),
    };
    match resolve_here(services, name, judged, end.clone()) {
        Ok(_) => Ok(Some(end)),
        Err(NotEnded::NotUnknown) => Ok(None),
        // An operator has said that the flow is another call's.
        Err(NotEnded::FlowOfAnother) => {
            let end = Resolution::Ambiguous(FLOW_OF_ANOTHER.into());
            let ended = resolve_here(services, name, judged, end.clone());
            Ok(ended.ok().map(|_| end))
        }
    }
}

/// Like [`resolve`], of an outcome whose end is in the store already.
pub(crate) fn resolve_here(
    services: &CallServices,
    name: RecordName,
    judged: &UnknownOutcome,
    resolution: Resolution,
) -> Result<Arc<UnknownOutcome>, NotEnded> {
    let now = Instant::now();
    let outcome = services
        .records
        .resolve(name, judged, resolution.clone(), now)?;
    count(services, &outcome, result_of(&resolution));
    if let (Some(journal), Some(attempt)) = (&services.journal, &outcome.attempt) {
        journal.resolved(line_of(attempt, &resolution));
    }
    Ok(outcome)
}

/// Tells the other replicas how an unknown outcome has ended.
async fn share(
    services: &CallServices,
    name: RecordName,
    judged: &UnknownOutcome,
    resolution: &Resolution,
) -> Shared {
    let Some(shared) = store_of(services, name, judged) else {
        return Shared::Not;
    };
    let Some(end) = shared_end(resolution) else {
        return Shared::Not;
    };
    match shared.resolve(name, judged, end).await {
        Ok(Settled::Yes) => Shared::Yes,
        Ok(Settled::FlowOfAnother) => Shared::FlowOfAnother,
        Ok(Settled::Kept(state)) => match state.end_of(judged) {
            Some(end) => Shared::Ended(end),
            None => Shared::TooEarly,
        },
        Err(_logged) => Shared::TooEarly,
    }
}

/// The end that the store is told of. `None`: it stays unknown there, or has ended there.
fn shared_end(resolution: &Resolution) -> Option<SharedEnd> {
    match resolution.clone() {
        Resolution::Created(created) => Some(SharedEnd::Found(created)),
        Resolution::SettledCreated(created) => Some(SharedEnd::SettledCreated(created)),
        Resolution::Absent => Some(SharedEnd::Absent),
        Resolution::SettledNotCreated => Some(SharedEnd::SettledNotCreated),
        Resolution::Ambiguous(_) | Resolution::CreatedElsewhere(_) => None,
    }
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

/// Ends an unknown outcome by an operator's word: in the store, where the first word holds, then here, then
/// in the journal. `flow_id`: of the flow that was created, if the word is that.
///
/// # Errors
/// The word does not hold.
pub(crate) async fn settle(
    services: &CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
    flow_id: Option<&str>,
) -> Result<Recorded, WordRefused> {
    let created = flow_id.map(|flow_id| Created {
        flow_id: flow_id.into(),
        request_id: outcome.known_request_id(),
    });
    let word = match &created {
        Some(created) => Resolution::SettledCreated(created.clone()),
        None => Resolution::SettledNotCreated,
    };
    if !services.records.is_unknown(name, outcome) {
        return Err(WordRefused::Ended);
    }
    if flow_id.is_some_and(|flow_id| services.records.has_flow(flow_id)) {
        return Err(WordRefused::OtherFlow);
    }
    may_be_told(services, name, outcome, flow_id).await?;
    let shared = share(services, name, outcome, &word).await;
    let end = match &shared {
        Shared::Not => word.clone(),
        // The store has checked to which call the flow belongs.
        Shared::Yes => created.map_or(word.clone(), Resolution::CreatedElsewhere),
        Shared::Ended(end) if end.flow_id() == flow_id => end.clone(),
        Shared::Ended(end) => {
            drop(resolve_here(services, name, outcome, end.clone()));
            return Err(WordRefused::Ended);
        }
        Shared::FlowOfAnother => return Err(WordRefused::OtherFlow),
        Shared::TooEarly => return Err(WordRefused::NoStore),
    };
    let resolved = services.records.resolve(name, outcome, end, Instant::now());
    match resolved {
        Ok(outcome) => {
            count(services, &outcome, result_of(&word));
            if let (Shared::Not, Some(flow_id)) = (&shared, flow_id) {
                note_flow(services, name, &outcome, flow_id).await;
            }
            Ok(record(services, &outcome, &word).await)
        }
        // A repetition has just found the word in the store.
        Err(NotEnded::NotUnknown) if matches!(shared, Shared::Yes | Shared::Ended(_)) => {
            Ok(Recorded::Yes)
        }
        Err(NotEnded::NotUnknown) => Err(WordRefused::Ended),
        Err(NotEnded::FlowOfAnother) => Err(WordRefused::OtherFlow),
    }
}

/// Checks that the store can record an operator's word, and that it does not know the flow as that of another
/// call.
async fn may_be_told(
    services: &CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
    flow_id: Option<&str>,
) -> Result<(), WordRefused> {
    if let Some(shared) = store_of(services, name, outcome) {
        // Whether the word holds is decided when it is told.
        return match shared.read(name, &outcome.order).await {
            Err(_) | Ok(SharedState::Gated) => Err(WordRefused::NoStore),
            Ok(_) => Ok(()),
        };
    }
    let (Some(shared), Some(flow_id)) = (&services.shared_records, flow_id) else {
        return Ok(());
    };
    let taken = shared.take_flow(name, &outcome.order, flow_id, LearnedBy::Word);
    match taken.await {
        Ok(Taken::Owned) => Err(WordRefused::OtherFlow),
        Err(_) | Ok(Taken::Gated) => Err(WordRefused::NoStore),
        Ok(Taken::Mine | Taken::OtherOpen | Taken::OtherUnknown) => Ok(()),
    }
}

/// Tells the looks of other replicas to which call the flow belongs. The store does not know the call.
async fn note_flow(
    services: &CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
    flow_id: &str,
) {
    if let Some(shared) = &services.shared_records {
        let taken = shared.take_flow(name, &outcome.order, flow_id, LearnedBy::Answer);
        drop(taken.await);
    }
}

/// Writes an operator's word into the journal, if it has the call.
async fn record(services: &CallServices, outcome: &UnknownOutcome, word: &Resolution) -> Recorded {
    match (&services.journal, &outcome.attempt) {
        (Some(journal), Some(attempt)) => {
            let written = journal.record_resolved(line_of(attempt, word), RECORD_WITHIN);
            if written.await == Written::Yes {
                Recorded::Yes
            } else {
                Recorded::NotInJournal
            }
        }
        _ => Recorded::Yes,
    }
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
        Resolution::Created(_) | Resolution::CreatedElsewhere(_) => ResolvedAs::Created,
        Resolution::Absent => ResolvedAs::Absent,
        Resolution::Ambiguous(_) => ResolvedAs::Ambiguous,
        Resolution::SettledCreated(_) | Resolution::SettledNotCreated => ResolvedAs::Settled,
    }
}
