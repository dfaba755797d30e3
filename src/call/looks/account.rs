//! The looks of one account.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::ask::{self, LookError};
use super::{Forbidden, Sought, may_look, sought};
use crate::acs::flow_pages::{LARGE_PAGE, Listing, Next, Walk};
use crate::call::services::CallServices;
use crate::call::unknown::{self, LookAgain};
use crate::idempotency::fingerprint::RecordName;
use crate::idempotency::looks::{
    Evidence, FlowStatus, Look, LookKind, Others, Schedule, Verdict, Wanted, Watch, candidate_id,
    decide,
};
use crate::idempotency::record::{
    Created, FlowDescription, Order, OrderKind, Resolution, Search, UnknownOutcome,
};
use crate::idempotency::shared::{LearnedBy, SharedRecords, Taken};
use crate::primitives::id::AccountId;
use crate::primitives::text::{capped, millis};

/// The least time between two pages of ListFlow.
const PACE: Duration = Duration::from_secs(1);

/// The wait after CAMS has stated that the account's key may not look.
const FORBIDDEN_FOR: Duration = Duration::from_secs(3600);

/// More names than this in one space are looked for together.
const MAX_BY_NAME: usize = 20;

/// The looks of one account.
pub(super) struct AccountLooks {
    services: Weak<CallServices>,
    account: AccountId,
    /// Notified after a change of one of its unknown outcomes.
    changed: Arc<Notify>,
    watches: HashMap<RecordName, Watched>,
    /// Flows per page; CAMS may have refused large ones.
    page_size: u32,
    /// The earliest time of the next page.
    next_page: Instant,
    /// No look before this.
    pause_until: Instant,
}

/// The looks so far for one call. A later call of the same key has none yet.
#[derive(Clone)]
struct Watched {
    order: Arc<Order>,
    watch: Watch,
}

/// The unknown outcomes that one list of flows is for.
struct Batch {
    kind: LookKind,
    sought: Vec<Sought>,
}

// === impl AccountLooks ===

impl AccountLooks {
    pub(super) fn new(
        services: &Weak<CallServices>,
        account: AccountId,
        changed: Arc<Notify>,
    ) -> Self {
        let now = Instant::now();
        Self {
            services: services.clone(),
            account,
            changed,
            watches: HashMap::new(),
            page_size: LARGE_PAGE,
            next_page: now,
            pause_until: now,
        }
    }

    pub(super) async fn run(mut self) {
        let changed = self.changed.clone();
        loop {
            let Some(services) = self.services.upgrade() else {
                return;
            };
            let sought = self.refresh(&services);
            let next = self.next(&sought);
            if next.is_some_and(|next| next <= Instant::now()) {
                if let Some(batch) = self.due(sought) {
                    self.look(&services, batch).await;
                }
                continue;
            }
            drop(services);
            let wait = async {
                match next {
                    Some(next) => sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = wait => {}
                () = changed.notified() => {}
            }
        }
    }

    /// The account's unknown outcomes. Forgets the looks for those that have ended.
    fn refresh(&mut self, services: &CallServices) -> Vec<Sought> {
        let own = sought(services, &self.account);
        let mut watches = HashMap::new();
        let mut next = services.looks.next.lock();
        for name in self.watches.keys() {
            next.remove(name);
        }
        for sought in &own {
            let order = sought.outcome.order.clone();
            let watch = self.watch_of(sought);
            watches.insert(sought.name, Watched { order, watch });
        }
        self.watches = watches;
        let settle = settle(services);
        for sought in &own {
            next.insert(
                sought.name,
                self.look_of(sought, settle).at.max(self.pause_until),
            );
        }
        drop(next);
        own
    }

    fn look_of(&self, sought: &Sought, settle: Duration) -> Look {
        schedule(sought, settle).next(&self.watch_of(sought), Instant::now())
    }

    fn watch_of(&self, sought: &Sought) -> Watch {
        let watched = self.watches.get(&sought.name);
        let own =
            watched.filter(|watched| watched.order.request_id == sought.outcome.order.request_id);
        own.map(|watched| watched.watch).unwrap_or_default()
    }

    /// Notes a look, which has ended now.
    fn note(&mut self, sought: &Sought, note: impl FnOnce(&mut Watch, Instant)) {
        let mut watch = self.watch_of(sought);
        note(&mut watch, Instant::now());
        let order = sought.outcome.order.clone();
        self.watches.insert(sought.name, Watched { order, watch });
    }

    /// The time of the next look.
    fn next(&self, sought: &[Sought]) -> Option<Instant> {
        let settle = settle(&*self.services.upgrade()?);
        let looks = sought.iter().map(|sought| self.look_of(sought, settle).at);
        looks.min().map(|at| at.max(self.pause_until))
    }

    /// The outcomes to look for now: one of them, or those of a space whose flows are all listed.
    fn due(&self, sought: Vec<Sought>) -> Option<Batch> {
        let settle = settle(&*self.services.upgrade()?);
        let now = Instant::now();
        let mut due: Vec<_> = sought
            .into_iter()
            .map(|sought| (self.look_of(&sought, settle), sought))
            .filter(|(look, _)| look.at <= now)
            .collect();
        due.sort_by_key(|(look, _)| look.at);
        let (look, first) = due.first()?;
        let space = first.outcome.order.flow.space.clone();
        let kind = look.kind;
        let mut sought: Vec<_> = due
            .into_iter()
            .map(|(_, sought)| sought)
            .filter(|sought| sought.outcome.order.flow.space == space)
            .collect();
        if kind == LookKind::Name && sought.len() <= MAX_BY_NAME {
            sought.truncate(1);
            return Some(Batch { kind, sought });
        }
        let kind = LookKind::Sweep;
        Some(Batch { kind, sought })
    }

    async fn look(&mut self, services: &Arc<CallServices>, batch: Batch) {
        if !may_look(services, &self.account) {
            for Sought { name, outcome } in sought(services, &self.account) {
                services.records.set_search(name, &outcome, Search::None);
            }
            return;
        }
        let batch = self.leased(services, batch).await;
        if batch.sought.is_empty() {
            return;
        }
        let began = Instant::now();
        let listing = match self.list(services, &batch).await {
            Ok(listing) => listing,
            Err(error) => {
                for sought in &batch.sought {
                    self.failed(services, sought, &error);
                }
                return;
            }
        };
        for sought in &batch.sought {
            match self.verdict(services, sought, &listing, began).await {
                Ok(verdict) => self.conclude(services, sought, &verdict).await,
                Err(error) => self.failed(services, sought, &error),
            }
        }
    }

    /// Leaves out what another replica has resolved or looks for now.
    async fn leased(&mut self, services: &CallServices, batch: Batch) -> Batch {
        let Some(shared) = &services.shared_records else {
            return batch;
        };
        let Batch { kind, sought } = batch;
        let mut leased = Vec::new();
        for sought in sought {
            let is_in_store = services.records.is_in_store(sought.name);
            match lease(shared, &sought, is_in_store).await {
                Lease::Mine => leased.push(sought),
                Lease::Ended(end) => {
                    let Sought { name, outcome } = &sought;
                    drop(unknown::resolve_here(services, *name, outcome, end));
                }
                Lease::Elsewhere => self.note(&sought, Watch::failed),
            }
        }
        let sought = leased;
        Batch { kind, sought }
    }

    /// Asks for all pages of the list.
    async fn list(
        &mut self,
        services: &Arc<CallServices>,
        batch: &Batch,
    ) -> Result<Listing, LookError> {
        let Some(Sought { outcome, .. }) = batch.sought.first() else {
            return Ok(Listing::default());
        };
        let FlowDescription { name, space, .. } = &outcome.order.flow;
        let name = (batch.kind == LookKind::Name).then_some(&**name);
        let mut walk = Walk::new(space, name, self.page_size);
        loop {
            sleep_until(self.next_page).await;
            let page = ask::page(services, &self.account, &mut walk).await;
            self.next_page = Instant::now() + PACE;
            if let Next::End(listing) = page? {
                return Ok(listing);
            }
            self.page_size = walk.accepted_size();
        }
    }

    /// What the list of flows proves about one outcome.
    async fn verdict(
        &self,
        services: &Arc<CallServices>,
        sought: &Sought,
        listing: &Listing,
        began: Instant,
    ) -> Result<Verdict, LookError> {
        let order = &sought.outcome.order;
        let FlowDescription {
            name,
            space,
            categories,
        } = &order.flow;
        let wanted = Wanted { name, categories };
        let candidate = candidate_id(wanted, listing);
        let made_here = services.records.made_here(&self.account, space);
        let evidence = |status| Evidence {
            wanted,
            listing,
            status,
            // A walk through all records, which a list without the flow does not need.
            others: if candidate.is_some() || listing.is_unfiltered {
                services.records.others(sought.name, order, candidate)
            } else {
                Others::default()
            },
            made_here: &made_here,
            began,
            settled_at: schedule(sought, settle(services)).settled_at,
            earlier_sweep: self.watch_of(sought).absent_at(),
        };
        let verdict = decide(&evidence(FlowStatus::NotAsked));
        let Verdict::Found(id) = &verdict else {
            return Ok(verdict);
        };
        let status = ask::status(services, &self.account, space, id).await?;
        let evidence = evidence(status);
        let verdict = decide(&evidence);
        match (&verdict, &services.shared_records) {
            (Verdict::Created(id), Some(shared)) => {
                let taken = shared.take_flow(sought.name, order, id, LearnedBy::Look);
                Ok(match others_of(taken.await?)? {
                    Some(others) => decide(&Evidence { others, ..evidence }),
                    None => verdict,
                })
            }
            _ => Ok(verdict),
        }
    }

    /// Ends an outcome if the look has proved something.
    async fn conclude(&mut self, services: &CallServices, sought: &Sought, verdict: &Verdict) {
        let Sought { name, outcome } = sought;
        services.looks.forbidden.lock().remove(&self.account);
        let (result, resolution) = match verdict {
            Verdict::Created(flow_id) => {
                let created = Created {
                    flow_id: flow_id.clone(),
                    // The answer with CAMS's own id was lost.
                    request_id: outcome.known_request_id(),
                };
                ("found", Some(Resolution::Created(created)))
            }
            Verdict::Ambiguous(why) => ("ambiguous", Some(Resolution::Ambiguous((*why).into()))),
            Verdict::Absent => ("missing", Some(Resolution::Absent)),
            Verdict::Found(_) | Verdict::Missing { .. } => ("missing", None),
        };
        services.metrics.looked(self.account.as_str(), result);
        let ended = match resolution {
            Some(resolution) => unknown::resolve(services, *name, outcome, resolution).await,
            None => Ok(None),
        };
        match ended {
            Ok(end) => {
                self.note(sought, |watch, now| watch.looked(verdict, now));
                if let Some(end) = end {
                    log(outcome, &end, self.watch_of(sought).looks());
                }
            }
            // What was seen is to be seen again soon.
            Err(LookAgain) => self.note(sought, Watch::failed),
        }
    }

    fn failed(&mut self, services: &CallServices, sought: &Sought, error: &LookError) {
        self.note(sought, Watch::failed);
        services
            .metrics
            .looked(self.account.as_str(), error.label());
        if let LookError::Forbidden(code) = error {
            self.forbidden(services, code);
        }
        tracing::debug!(
            account = self.account.as_str(),
            request_id = &*sought.outcome.order.request_id,
            cause = %error,
            "a look has failed"
        );
    }

    /// No look of the account for an hour.
    fn forbidden(&mut self, services: &CallServices, code: &str) {
        let until = Instant::now() + FORBIDDEN_FOR;
        self.pause_until = until;
        let code: Box<str> = code.into();
        let forbidden = Forbidden { code, until };
        let before = services
            .looks
            .forbidden
            .lock()
            .insert(self.account.clone(), forbidden.clone());
        if before.is_none() {
            tracing::warn!(
                account = self.account.as_str(),
                code = &*forbidden.code,
                "CAMS does not permit this account to look for flows"
            );
        }
    }
}

/// Who looks for a flow.
enum Lease {
    /// This replica.
    Mine,
    /// Another one.
    Elsewhere,
    /// No replica: the call has ended.
    Ended(Resolution),
}

/// Asks the store who looks for the flow of a key. While the store is down, each replica looks, and
/// later for the flows of the calls that it has sent meanwhile.
async fn lease(shared: &SharedRecords, sought: &Sought, is_in_store: bool) -> Lease {
    let Sought { name, outcome } = sought;
    if outcome.order.kind != OrderKind::Keyed || !is_in_store {
        return Lease::Mine;
    }
    let Ok(state) = shared.read(*name, &outcome.order).await else {
        return Lease::Mine;
    };
    if let Some(end) = state.end_of(outcome) {
        return Lease::Ended(end);
    }
    match shared.lease_look(*name).await {
        Ok(false) => Lease::Elsewhere,
        Ok(true) | Err(_) => Lease::Mine,
    }
}

/// What the calls of all replicas say of a flow that was found; `None`: it is the flow of the call.
///
/// # Errors
/// The store cannot say it yet.
fn others_of(taken: Taken) -> Result<Option<Others>, LookError> {
    let mut others = Others::default();
    match taken {
        Taken::Mine => return Ok(None),
        Taken::Owned => others.have_flow = true,
        Taken::OtherOpen => others.are_open = true,
        Taken::OtherUnknown => others.are_unknown = true,
        Taken::Gated => return Err(LookError::Failed("the store has just lost its data".into())),
    }
    Ok(Some(others))
}

/// Logs what the looks for a flow have ended with.
fn log(outcome: &UnknownOutcome, resolution: &Resolution, looks: u32) {
    let account = outcome.order.account.as_str();
    let request_id = &*outcome.order.request_id;
    let after_ms = millis(outcome.ended.elapsed());
    match resolution {
        Resolution::Ambiguous(found) => tracing::warn!(
            account,
            request_id,
            looks,
            after_ms,
            found = &**found,
            "the names of an account's flows are not unique"
        ),
        Resolution::Created(created) => tracing::info!(
            account,
            request_id,
            looks,
            after_ms,
            flow_id = capped(&created.flow_id),
            "a lost call has created its flow"
        ),
        _ => tracing::info!(
            account,
            request_id,
            looks,
            after_ms,
            "a lost call has created no flow"
        ),
    }
}

/// How long after its last stamp a request may still be executed.
fn settle(services: &CallServices) -> Duration {
    services.current_config.load().config.exactly_once.settle
}

fn schedule(sought: &Sought, settle: Duration) -> Schedule {
    Schedule {
        ended: sought.outcome.ended,
        settled_at: sought.outcome.stamped_until + settle,
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::idempotency::fingerprint::{fingerprint, record_name};
    use crate::idempotency::key;
    use crate::idempotency::record::Search;
    use crate::primitives::id::ClientId;

    /// A lost call of the key `k`.
    fn lost(request_id: &str) -> Sought {
        let key = key::read(&hyper::HeaderMap::new(), Some("k"))
            .unwrap()
            .unwrap();
        let now = Instant::now();
        let order = Arc::new(Order {
            account: AccountId::new("acme"),
            client: ClientId::new("team-a"),
            kind: OrderKind::Keyed,
            fingerprint: fingerprint("CreateFlow", [], None),
            request_id: request_id.into(),
            flow: FlowDescription::default(),
        });
        let outcome = UnknownOutcome {
            reason: "lost".into(),
            request_id: None,
            order,
            attempt: None,
            at: SystemTime::now(),
            ended: now,
            stamped_until: now,
            search: Search::Active,
        };
        Sought {
            name: record_name("acme", "team-a", &key),
            outcome: Arc::new(outcome),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_later_call_of_a_key_does_not_inherit_the_looks_for_the_first_one() {
        let account = AccountId::new("acme");
        let mut looks = AccountLooks::new(&Weak::new(), account, Arc::default());
        let (first, second) = (lost("R-1"), lost("R-2"));
        for _ in 0..5 {
            looks.note(&first, Watch::failed);
        }
        assert_eq!(looks.watch_of(&first).looks(), 5);
        assert_eq!(looks.watch_of(&second).looks(), 0);
        looks.note(&second, Watch::failed);
        assert_eq!(looks.watch_of(&second).looks(), 1);
    }
}
