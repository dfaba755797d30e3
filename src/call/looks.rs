//! Looks for the flows of calls whose outcome is unknown, for accounts whose flow names are unique.
//! `idempotency/looks.rs` says when to look and what the flows prove; here the looks are made, and
//! end unknown outcomes.
//!
//! A look is a call of Flowgate's own: it waits in the lane of its action as the client `flowgate`,
//! so limits, pauses and reserves hold for it, and it is signed with the account's current
//! credentials. Each account has one look at a time, and asks for one page of ListFlow in a second.

mod account;
mod ask;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;

use self::account::AccountLooks;
use super::services::CallServices;
use crate::config::{FlowNames, Mode};
use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::record::{Search, UnknownOutcome};
use crate::primitives::id::AccountId;
use crate::process::shutdown::Phase;

/// What callers and operators see of the looks.
#[derive(Default)]
pub(crate) struct Looks {
    /// When the flow of each unknown outcome is looked for next.
    next: Mutex<HashMap<RecordName, Instant>>,
    /// The accounts whose flows CAMS does not show.
    forbidden: Mutex<HashMap<AccountId, Forbidden>>,
}

/// CAMS does not permit an account's key to look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Forbidden {
    /// CAMS's code.
    pub(crate) code: Box<str>,
    /// The account's next look.
    pub(crate) until: Instant,
}

/// An unknown outcome whose flow is looked for.
#[derive(Clone)]
struct Sought {
    name: RecordName,
    outcome: Arc<UnknownOutcome>,
}

/// When a caller whose flow is looked for should repeat its call.
const REPEAT_AFTER: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_secs(60);

/// Looks for flows until a drain begins.
pub(crate) async fn run(services: Weak<CallServices>) {
    let Some(mut phases) = services.upgrade().map(|services| services.phases.clone()) else {
        return;
    };
    tokio::select! {
        biased;
        () = phases.reached(Phase::Draining) => {}
        () = serve(services) => {}
    }
}

/// Keeps one task for each account that has ever had an unknown outcome.
async fn serve(services: Weak<CallServices>) {
    let Some(records) = services.upgrade().map(|all| all.records.clone()) else {
        return;
    };
    let mut served: HashMap<AccountId, Arc<Notify>> = HashMap::new();
    // Dropped with this future, which ends the tasks.
    let mut tasks = JoinSet::new();
    loop {
        for account in records.unknown_changes().await {
            let changed = served.entry(account.clone()).or_insert_with(|| {
                let changed = Arc::new(Notify::new());
                let looks = AccountLooks::new(&services, account, changed.clone());
                tasks.spawn(looks.run());
                changed
            });
            changed.notify_one();
        }
    }
}

/// The unknown outcomes of an account whose flows are looked for, the oldest first.
fn sought(services: &CallServices, account: &AccountId) -> Vec<Sought> {
    let unknown = services.records.unknown_of(account).into_iter();
    unknown
        .filter(|(_, outcome)| outcome.search == Search::Active)
        .map(|(name, outcome)| Sought { name, outcome })
        .collect()
}

/// Begins and ends searches as the current configuration says, after a reload.
pub(crate) fn reconfigure(services: &CallServices) {
    for (name, outcome) in services.records.unknown() {
        let order = &outcome.order;
        let is_wanted = may_look(services, &order.account) && order.flow.can_be_sought();
        match (&outcome.search, is_wanted) {
            (Search::Active, false) => services.records.set_search(name, &outcome, Search::None),
            (Search::None, true) => services.records.set_search(name, &outcome, Search::Active),
            _ => {}
        }
    }
}

/// Whether the flows of an account are looked for in the current configuration.
fn may_look(services: &CallServices, account: &AccountId) -> bool {
    let config_snapshot = services.current_config.load();
    let names = config_snapshot.directory.flow_names(account);
    names == FlowNames::Unique && config_snapshot.config.mode == Mode::Enforce
}

// === impl Looks ===

impl Looks {
    /// When a caller should repeat the call of a record whose flow is looked for: 1 to 60 seconds.
    pub(crate) fn repeat_after(&self, name: RecordName, now: Instant) -> Duration {
        let next = self.next_look(name);
        let left = next.map_or(Duration::ZERO, |next| next.saturating_duration_since(now));
        left.clamp(*REPEAT_AFTER.start(), *REPEAT_AFTER.end())
    }

    /// When the flow of an unknown outcome is looked for next.
    pub(crate) fn next_look(&self, name: RecordName) -> Option<Instant> {
        self.next.lock().get(&name).copied()
    }

    /// The accounts that CAMS does not permit to look.
    pub(crate) fn forbidden(&self) -> Vec<(AccountId, Forbidden)> {
        let forbidden = self.forbidden.lock();
        let mut all: Vec<_> = forbidden
            .iter()
            .map(|(account, why)| (account.clone(), why.clone()))
            .collect();
        all.sort_by(|(one, _), (other, _)| one.cmp(other));
        all
    }
}
