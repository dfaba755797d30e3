//! A source that follows a script, in simulated time, for tests.

use std::collections::HashMap;
use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use parking_lot::Mutex;
use tokio::time::{Instant, sleep};
use tracing::Dispatch;
use tracing::subscriber::DefaultGuard;
use tracing_subscriber::Layer;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;

use super::super::error::{FailureKind, FetchError};
use super::super::obtain::Obtain;
use super::super::session::Obtained;
use crate::config::{
    AccountCredentials, AssumeRole, Credentials, EcsRole, LoadedFrom, Oidc, Role, SessionSource,
    Stamp, StsEndpoint,
};
use crate::primitives::id::AccessKeyId;
use crate::primitives::secret::Secret;

/// What the source does with one request.
#[derive(Clone, Copy, Debug)]
pub(in crate::credentials) enum Behaviour {
    /// A new session with this lifetime in seconds.
    Session(u64),
    /// The session before this one again, with this rest of its lifetime.
    Same(u64),
    Fails(FailureKind),
    Panics,
}

/// Shared by the test and the keepers of one source.
pub(in crate::credentials) struct Fake {
    /// What it answers, after how many milliseconds.
    behaviour: Mutex<(Behaviour, u64)>,
    /// Begins of the requests, in milliseconds from the start.
    pub(in crate::credentials) begun: Mutex<Vec<u64>>,
    /// The keys that the requests were made with.
    pub(in crate::credentials) assuming: Mutex<Vec<Option<String>>>,
    /// What each request is answered, after how many milliseconds.
    pub(in crate::credentials) answers: Mutex<Vec<(Behaviour, u64)>>,
    /// The end of each session, by its key.
    pub(in crate::credentials) ends: Mutex<HashMap<String, (Instant, SystemTime)>>,
    /// Requests under way, and the most at once.
    pub(in crate::credentials) under_way: AtomicUsize,
    pub(in crate::credentials) most: AtomicUsize,
    sessions: AtomicUsize,
    start: Instant,
    /// Seconds by which the host has slept or its clock was set forward.
    pub(in crate::credentials) slept: AtomicU64,
    /// The length of the token's file, if there is one.
    pub(in crate::credentials) file: Mutex<Option<u64>>,
    /// Whether its file system does not respond.
    pub(in crate::credentials) file_hangs: AtomicBool,
    /// The first characters of its keys.
    name: &'static str,
}

/// Ends a request also if it is dropped.
struct UnderWay<'a>(&'a Fake);

pub(in crate::credentials) const ROLE: &str = "acs:ram::123456789012:role/flowgate";

/// The start of the tests: 2026-11-29T04:00:00Z.
pub(in crate::credentials) fn start_of_clock() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_924_800)
}

pub(in crate::credentials) fn credentials(key: &str) -> Credentials {
    Credentials {
        access_key_id: AccessKeyId::new(key),
        secret: Secret::new("fake-session-secret"),
        security_token: Some(Secret::new("fake-token")),
        expires: None,
    }
}

/// A session with this lifetime in seconds.
pub(in crate::credentials) fn obtained(key: &str, lifetime: u64) -> Obtained {
    Obtained {
        credentials: credentials(key),
        lifetime: Duration::from_secs(lifetime),
    }
}

fn role(arn: &str) -> Role {
    Role {
        arn: arn.to_owned(),
        session_name: "flowgate".to_owned(),
        policy: None,
        duration: None,
        sts: StsEndpoint {
            host: "sts.aliyuncs.com".to_owned(),
            port: 443,
        },
    }
}

pub(in crate::credentials) fn oidc() -> SessionSource {
    SessionSource::Oidc(Oidc {
        provider_arn: "acs:ram::123456789012:oidc-provider/ack".to_owned(),
        token_file: "/no/such/token".into(),
        role: role(ROLE),
    })
}

pub(in crate::credentials) fn ecs_role(name: &str) -> SessionSource {
    SessionSource::EcsRole(EcsRole {
        role: Some(name.to_owned()),
        allow_v1: false,
        address: "100.100.100.200:80".parse().unwrap(),
    })
}

pub(in crate::credentials) fn assume_role(from: AccountCredentials, arn: &str) -> SessionSource {
    SessionSource::AssumeRole(AssumeRole {
        from: Box::new(from),
        external_id: None,
        role: role(arn),
    })
}

/// AssumeRole with an access key.
pub(in crate::credentials) fn assumed_with_key(arn: &str) -> SessionSource {
    let from = AccountCredentials::Loaded(credentials("LTAI-test-key-id-1"), LoadedFrom::Keys);
    assume_role(from, arn)
}

/// AssumeRole with the session of another source.
pub(in crate::credentials) fn assumed_from(from: SessionSource, arn: &str) -> SessionSource {
    assume_role(AccountCredentials::Session(from), arn)
}

pub(in crate::credentials) fn error(kind: FailureKind) -> FetchError {
    FetchError {
        kind,
        broken_step: None,
        place: "sts.aliyuncs.com".to_owned(),
        reason: "scripted".to_owned(),
        status: Some(503),
        code: None,
        request_id: None,
    }
}

/// The log of this thread as text, from level INFO.
#[derive(Clone, Default)]
pub(in crate::credentials) struct LogText(Arc<Mutex<Vec<u8>>>);

/// Interested in all that [`captured`] is. While there is only one subscriber, tracing caches for all
/// threads whether an event is enabled on the thread that reaches it first, which may be that of
/// another test.
static SECOND: LazyLock<Dispatch> = LazyLock::new(|| Dispatch::new(subscriber(io::sink)));

/// Captures the log of this thread until the guard is dropped.
pub(in crate::credentials) fn captured() -> (LogText, DefaultGuard) {
    LazyLock::force(&SECOND);
    let log = LogText::default();
    let writer = log.clone();
    let captured = subscriber(move || writer.clone());
    (log, tracing::subscriber::set_default(captured))
}

fn subscriber<W>(writer: W) -> impl tracing::Subscriber + Send + Sync
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = tracing_subscriber::fmt::layer()
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .with_writer(writer);
    tracing_subscriber::registry().with(lines.with_filter(LevelFilter::INFO))
}

// === impl LogText ===

impl LogText {
    pub(in crate::credentials) fn lines(&self) -> Vec<String> {
        let text = String::from_utf8(self.0.lock().clone()).unwrap();
        text.lines().map(|line| line.trim().to_owned()).collect()
    }
}

impl Write for LogText {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

// === impl Fake ===

impl Fake {
    /// Answers at once until something else is set.
    pub(in crate::credentials) fn new(name: &'static str, behaviour: Behaviour) -> Arc<Self> {
        Arc::new(Self {
            behaviour: Mutex::new((behaviour, 0)),
            begun: Mutex::default(),
            assuming: Mutex::default(),
            answers: Mutex::default(),
            ends: Mutex::default(),
            under_way: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            sessions: AtomicUsize::new(0),
            start: Instant::now(),
            slept: AtomicU64::new(0),
            file: Mutex::new(None),
            file_hangs: AtomicBool::new(false),
            name,
        })
    }

    /// Answers this from now on, `after` milliseconds after each request.
    pub(in crate::credentials) fn set(&self, behaviour: Behaviour, after: u64) {
        *self.behaviour.lock() = (behaviour, after);
    }

    /// The number of requests.
    pub(in crate::credentials) fn requests(&self) -> usize {
        self.begun.lock().len()
    }

    /// Milliseconds between the begins of the requests.
    pub(in crate::credentials) fn gaps(&self) -> Vec<u64> {
        self.begun
            .lock()
            .windows(2)
            .map(|pair| pair[1] - pair[0])
            .collect()
    }

    pub(in crate::credentials) fn millis(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_millis()).unwrap()
    }

    /// The clock of the host, which has slept.
    pub(in crate::credentials) fn clock(&self) -> SystemTime {
        let slept = Duration::from_secs(self.slept.load(Ordering::Relaxed));
        start_of_clock() + self.start.elapsed() + slept
    }

    /// The session with the number of the last new one.
    fn session(&self, lifetime: u64) -> Obtained {
        let key = format!("{}{}", self.name, self.sessions.load(Ordering::Relaxed));
        let session = obtained(&key, lifetime);
        let ends = Instant::now() + session.lifetime;
        self.ends
            .lock()
            .insert(key, (ends, self.clock() + session.lifetime));
        session
    }
}

#[async_trait]
impl Obtain for Arc<Fake> {
    async fn obtain(
        &self,
        assuming: Option<&Credentials>,
        _deadline: Instant,
    ) -> Result<Obtained, FetchError> {
        self.begun.lock().push(self.millis());
        self.assuming
            .lock()
            .push(assuming.map(|credentials| credentials.access_key_id.as_str().to_owned()));
        let under_way = self.under_way.fetch_add(1, Ordering::Relaxed) + 1;
        let _under_way = UnderWay(self);
        self.most.fetch_max(under_way, Ordering::Relaxed);
        let (behaviour, after) = *self.behaviour.lock();
        self.answers.lock().push((behaviour, after));
        if after > 0 {
            sleep(Duration::from_millis(after)).await;
        }
        match behaviour {
            Behaviour::Session(lifetime) => {
                self.sessions.fetch_add(1, Ordering::Relaxed);
                Ok(self.session(lifetime))
            }
            Behaviour::Same(lifetime) => Ok(self.session(lifetime)),
            Behaviour::Fails(kind) => Err(error(kind)),
            Behaviour::Panics => panic!("scripted"),
        }
    }

    async fn stamp(&self) -> Option<Stamp> {
        if self.file_hangs.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
        let length = (*self.file.lock())?;
        Some(Stamp::File(SystemTime::UNIX_EPOCH, [0, 0], length, 0, 0))
    }

    fn clock(&self) -> SystemTime {
        Fake::clock(self)
    }
}

// === impl UnderWay ===

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::Relaxed);
    }
}
