//! Ends unknown outcomes: by what a look has found, by an operator's word, or because they are too
//! old. Each end is in the records, in the journal and in the log.

use std::sync::Arc;

use tokio::time::Instant;

use super::services::CallServices;
use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::record::{OrderKind, Resolution, UnknownOutcome};
use crate::idempotency::shared::{LearnedBy, SharedEnd, SharedState, Taken};
use crate::observe::journal::{Resolved, ResolvedAs};

/// Why an operator's word is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum WordRefused {
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

/// Ends an unknown outcome in the store, then here, and answers the callers that wait for it. Returns
/// the outcome that was unknown; `None` if it is not unknown any more.
pub(crate) async fn resolve(
    services: &CallServices,
    name: RecordName,
    resolution: Resolution,
) -> Option<Arc<UnknownOutcome>> {
    // A repetition that is sent at once must find the key free in the store, too.
    match share(services, name, &resolution).await {
        // Another replica was first, and its word holds.
        Some(SharedState::Done(created)) => {
            let is_the_same = resolution.flow_id() == Some(&created.flow_id);
            let outcome = resolve_here(services, name, Resolution::Created(created));
            outcome.filter(|_| is_the_same)
        }
        // Another replica was first: nothing was created. The key's next call may be under way there.
        Some(SharedState::Absent | SharedState::Claimed | SharedState::Open)
            if resolution.flow_id().is_some() =>
        {
            resolve_here(services, name, Resolution::Absent);
            None
        }
        _ => resolve_here(services, name, resolution),
    }
}

/// Like [`resolve`], of an outcome whose end is in the store already.
pub(crate) fn resolve_here(
    services: &CallServices,
    name: RecordName,
    resolution: Resolution,
) -> Option<Arc<UnknownOutcome>> {
    let (result, flow_id, found) = match &resolution {
        Resolution::Created(created) => (ResolvedAs::Created, Some(created.flow_id.clone()), None),
        Resolution::Absent => (ResolvedAs::Absent, None, None),
        Resolution::Ambiguous(found) => (ResolvedAs::Ambiguous, None, Some(found.clone())),
        Resolution::SettledCreated(created) => {
            (ResolvedAs::Settled, Some(created.flow_id.clone()), None)
        }
        Resolution::SettledNotCreated => (ResolvedAs::Settled, None, None),
    };
    let outcome = services.records.resolve(name, resolution, Instant::now())?;
    record(
        services,
        &outcome,
        result,
        flow_id.as_deref(),
        found.as_deref(),
    );
    Some(outcome)
}

/// What the other replicas learn of a resolution. `None`: the outcome stays unknown.
fn shared_end(resolution: &Resolution) -> Option<SharedEnd> {
    match resolution {
        Resolution::Created(created) | Resolution::SettledCreated(created) => {
            Some(SharedEnd::Done(created.clone()))
        }
        Resolution::Absent => Some(SharedEnd::Absent),
        Resolution::SettledNotCreated => Some(SharedEnd::NotCreated),
        Resolution::Ambiguous(_) => None,
    }
}

/// Tells the other replicas, unless the store does not know the call. If the store is down, a key that is
/// free here stays unknown there.
/// Returns the state of the record if it is not unknown in the store.
async fn share(
    services: &CallServices,
    name: RecordName,
    resolution: &Resolution,
) -> Option<SharedState> {
    let shared = services.shared_records.as_ref()?;
    let end = shared_end(resolution)?;
    let outcome = services.records.unknown_outcome(name)?;
    if outcome.order.kind != OrderKind::Keyed || !services.records.is_in_store(name) {
        return None;
    }
    let by = match resolution {
        Resolution::SettledCreated(_) | Resolution::SettledNotCreated => LearnedBy::Word,
        _ => LearnedBy::Look,
    };
    let shared = shared.resolve(name, &outcome.order, end, by);
    shared.await.ok().flatten()
}

/// Checks that an operator's word would hold: here, after a restart, and at all replicas. `flow_id`: of
/// the flow that was created, if the word is that.
///
/// # Errors
/// It would not, and nothing was changed.
pub(crate) async fn check_word(
    services: &CallServices,
    name: RecordName,
    outcome: &UnknownOutcome,
    flow_id: Option<&str>,
) -> Result<(), WordRefused> {
    if flow_id.is_some_and(|id| services.records.has_flow(id)) {
        return Err(WordRefused::OtherFlow);
    }
    if services.journal.as_ref().is_some_and(|it| !it.is_up()) {
        return Err(WordRefused::NoJournal);
    }
    let Some(shared) = &services.shared_records else {
        return Ok(());
    };
    let order = &outcome.order;
    if order.kind == OrderKind::Keyed
        && services.records.is_in_store(name)
        && matches!(
            shared.read(name, order).await,
            Err(_) | Ok(SharedState::Gated)
        )
    {
        return Err(WordRefused::NoStore);
    }
    let Some(flow_id) = flow_id else {
        return Ok(());
    };
    match shared
        .take_flow(name, order, flow_id, LearnedBy::Word)
        .await
    {
        Ok(Taken::Owned) => Err(WordRefused::OtherFlow),
        Err(_) | Ok(Taken::Gated) => Err(WordRefused::NoStore),
        Ok(Taken::Mine | Taken::OtherOpen | Taken::OtherUnknown) => Ok(()),
    }
}

/// Reports that an unknown outcome is not remembered any longer.
pub(crate) fn forgotten(services: &CallServices, outcome: &UnknownOutcome) {
    record(services, outcome, ResolvedAs::Forgotten, None, None);
    tracing::warn!(
        account = outcome.order.account.as_str(),
        request_id = &*outcome.order.request_id,
        "an unknown outcome is not remembered any longer"
    );
}

fn record(
    services: &CallServices,
    outcome: &UnknownOutcome,
    result: ResolvedAs,
    flow_id: Option<&str>,
    found: Option<&str>,
) {
    let account = outcome.order.account.as_str();
    let after = outcome.ended.elapsed();
    services.metrics.resolved(account, result.label(), after);
    if let (Some(journal), Some(attempt)) = (&services.journal, &outcome.attempt) {
        journal.resolved(Resolved {
            attempt,
            result,
            flow_id,
            found,
        });
    }
}
