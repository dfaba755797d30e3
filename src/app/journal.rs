//! The journal of a process: its start, and what it takes over from it. A later process knows the keys of
//! an earlier one. If both write the journal at the same time, as in a restart with an overlap, the
//! later one takes over the rest when the earlier one has ended.

use std::collections::HashSet;
use std::path::Path;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};

use crate::app::start_error::StartError;
use crate::call::services::CallServices;
use crate::config::{self, Config, FlowNames, Mode};
use crate::idempotency::record::Order;
use crate::idempotency::records::Restored;
use crate::observe::journal::{self, Journal, KeyedAttempts};
use crate::observe::metrics::Metrics;

/// How often a process looks whether the earlier one still writes the journal.
const RETRY: Duration = Duration::from_secs(2);

/// Opens the journal.
pub(super) fn open(
    config: &config::Journal,
    keys: &config::ExactlyOnce,
    metrics: &Arc<Metrics>,
) -> Result<Arc<Journal>, StartError> {
    match Journal::open(config, metrics.clone()) {
        Ok(journal) => {
            journal.keep_keys(keys);
            Ok(Arc::new(journal))
        }
        Err(error) => Err(StartError::Journal {
            path: config.path.clone(),
            error,
        }),
    }
}

/// Takes over the idempotency keys of earlier processes from the journal, if there is one.
pub(super) fn restore_keys(calls: &CallServices) -> Result<(), StartError> {
    let config_snapshot = calls.current_config.load();
    let config = &config_snapshot.config;
    let Some(journal) = config.journal.as_ref().filter(|_| config.exactly_once.keys) else {
        return Ok(());
    };
    let is_shared = calls.journal.as_ref().is_some_and(|it| it.is_shared());
    match journal::keyed(&journal.path, is_shared) {
        Ok(KeyedAttempts { attempts, damaged }) => {
            warn_of_damage(&journal.path, damaged);
            let (now, clock) = (Instant::now(), SystemTime::now());
            let restored = calls
                .records
                .restore(attempts, now, clock, sought_orders(config));
            log_restored(restored);
            Ok(())
        }
        Err(error) => Err(StartError::Journal {
            path: journal.path.clone(),
            error,
        }),
    }
}

/// If an earlier process writes the journal, too: warns of it, waits until it has ended, and takes over
/// what it has written meanwhile.
pub(super) async fn end_sharing(calls: Weak<CallServices>) {
    let mut is_reported = false;
    while let Some(calls) = calls.upgrade() {
        let Some(journal) = calls.journal.clone().filter(|it| it.is_shared()) else {
            return;
        };
        if !std::mem::replace(&mut is_reported, true) {
            warn_of_sharing(&calls);
        }
        // Read back must be what this process itself knows of the other's attempts.
        journal.flushed().await;
        // Reading the journal may take long. A panic is logged where it happens.
        let ended = spawn_blocking(move || journal.end_sharing(|| take_over(&calls, &journal)));
        if ended.await.unwrap_or(true) {
            return;
        }
        sleep(RETRY).await;
    }
}

/// With a store, replicas know each other's keys, and may share a journal.
fn warn_of_sharing(calls: &CallServices) {
    let config_snapshot = calls.current_config.load();
    let config = &config_snapshot.config;
    let Some(journal) = &config.journal else {
        return;
    };
    if calls.shared_records.is_none() && config.mode == Mode::Enforce {
        tracing::warn!(
            path = %journal.path.display(),
            "another process writes the same journal; a key that both get may create two flows"
        );
    }
}

/// Takes over what another process, which has ended, has written into the journal.
fn take_over(calls: &CallServices, journal: &Journal) {
    let config_snapshot = calls.current_config.load();
    let config = &config_snapshot.config;
    let Some(file) = config.journal.as_ref().filter(|_| config.exactly_once.keys) else {
        return;
    };
    match journal::keyed(&file.path, true) {
        Ok(KeyedAttempts {
            mut attempts,
            damaged,
        }) => {
            warn_of_damage(&file.path, damaged);
            let has_made = |attempt: &str| journal.has_made(attempt);
            attempts.retain(|it| !has_made(&it.attempt));
            let (now, clock) = (Instant::now(), SystemTime::now());
            let is_sought = sought_orders(config);
            // The other process may have had another store, or none.
            let _published_then = calls.shared_records.as_ref().map(|it| it.take_over());
            let restored = calls
                .records
                .take_over(attempts, now, clock, is_sought, has_made);
            log_restored(restored);
            tracing::info!("the journal is not shared any longer");
        }
        Err(error) => {
            let path = file.path.display();
            tracing::error!(%path, %error, "the journal cannot be read again; the last keys of the other process are not known");
        }
    }
}

/// Of which orders the flow is looked for if it is not known.
fn sought_orders(config: &Config) -> impl Fn(&Order) -> bool {
    let unique: HashSet<_> = config
        .accounts
        .iter()
        .filter(|account| account.flow_names == FlowNames::Unique)
        .map(|account| &account.id)
        .collect();
    move |order| unique.contains(&order.account)
}

/// A call whose first line cannot be read is sent again when its key is repeated.
fn warn_of_damage(path: &Path, lines: u64) {
    if lines > 0 {
        let path = path.display();
        tracing::warn!(%path, lines, "the journal has lines that cannot be read; keys that only they name are not known");
    }
}

fn log_restored(restored: Restored) {
    if restored.keys > 0 {
        let Restored { keys, unknown } = restored;
        tracing::info!(keys, unknown, "idempotency keys are restored");
    }
}
