//! Keepers of a source that answers as a test says, in simulated time, for tests of calls.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};

use super::super::error::{FailureKind, FetchError};
use super::super::http::Roots;
use super::super::obtain::Obtain;
use super::super::session::Obtained;
use super::Keepers;
use crate::config::{Config, Credentials, Stamp};
use crate::primitives::id::AccessKeyId;
use crate::primitives::secret::Secret;

/// The source of all accounts.
pub(crate) struct Script {
    behaviour: Mutex<Behaviour>,
    requests: AtomicUsize,
}

/// What the source does from now on. The sessions have the keys `STS.1`, `STS.2` and so on.
#[derive(Clone, Copy)]
pub(crate) struct Behaviour {
    /// The lifetime of a new session, or why there is none.
    pub(crate) result: Result<Duration, FailureKind>,
    /// How long the source takes.
    pub(crate) after: Duration,
}

// === impl Script ===

impl Script {
    pub(crate) fn new(behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            behaviour: Mutex::new(behaviour),
            requests: AtomicUsize::new(0),
        })
    }

    pub(crate) fn set(&self, behaviour: Behaviour) {
        *self.behaviour.lock() = behaviour;
    }

    /// The number of requests so far.
    pub(crate) fn requests(&self) -> usize {
        self.requests.load(Ordering::Relaxed)
    }

    /// The keepers of a configuration, which all ask this source.
    pub(crate) fn keepers(self: &Arc<Self>, config: &Config, before: Option<&Keepers>) -> Keepers {
        let roots = Roots::new(None);
        Keepers::build(config, roots, before, &|_| Box::new(self.clone()))
    }
}

#[async_trait]
impl Obtain for Arc<Script> {
    async fn obtain(
        &self,
        _assuming: Option<&Credentials>,
        _deadline: Instant,
    ) -> Result<Obtained, FetchError> {
        let number = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let Behaviour { result, after } = *self.behaviour.lock();
        sleep(after).await;
        match result {
            Ok(lifetime) => Ok(Obtained {
                credentials: Credentials {
                    access_key_id: AccessKeyId::new(format!("STS.{number}")),
                    secret: Secret::new(format!("session-secret-{number}")),
                    security_token: Some(Secret::new(format!("session-token-{number}"))),
                    expires: None,
                },
                lifetime,
            }),
            Err(kind) => Err(FetchError {
                kind,
                broken_step: None,
                place: "sts.aliyuncs.com".to_owned(),
                reason: "the service refuses".to_owned(),
                status: Some(503),
                code: Some("ServiceUnavailable".to_owned()),
                request_id: Some("STS-REQUEST-1".to_owned()),
            }),
        }
    }

    async fn stamp(&self) -> Option<Stamp> {
        None
    }
}
