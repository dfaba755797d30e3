//! What does each pure step of a call cost? The benchmarks' door to steps that nobody else outside may call: each as a
//! plain function over inputs that were prepared before. No part of the public surface; it may change at any time.

mod attempts;
mod lanes;
mod takes;

use std::ffi::OsString;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, StatusCode};
use tokio::time::Instant;

pub use self::attempts::Attempts;
pub use self::lanes::Lanes;
pub use self::takes::{TAKE, dealt, take_args};
use crate::App;
use crate::acs::decode::Params;
use crate::acs::time;
use crate::acs::v3::{self, Authorization, Signable};
use crate::call::classify;
use crate::call::hold::margin::Margins;
use crate::call::identify::{self, Caller, Directory, Nonces, Sendable};
use crate::call::judge::{self, Context};
use crate::call::sign;
use crate::config::{self, Config, Limit};
use crate::limiter::fair::{FairQueue, QueueEntry, Sequence};
use crate::limiter::tokens::Tokens;
use crate::primitives::id::{ClientId, TenantId};
use crate::primitives::secret::Secret;
use crate::upstream::Answer;

/// The key and the secret that the call is signed with.
const SIGNER: [&str; 2] = ["LTAI-test-key-id-1", "test-secret-1"];
const CREATED: &str = r#"{"RequestId":"90E63D28-E31D-1EB2-8939-A9486641","Code":"OK","Message":"OK","Data":{"FlowId":"1234567890123456"}}"#;
/// Calls that wait while one comes and one goes, of so many clients with so many tenants each.
const WAITING: usize = 100;
const CLIENTS: usize = 4;
const TENANTS: usize = 5;

/// A pure step, by name; it can be repeated without end.
pub type Step = (&'static str, fn(&mut Steps));

/// Every pure step, in the order of a call's life.
pub const STEPS: [Step; 8] = [
    ("canonicalise", Steps::canonicalise),
    ("verify", Steps::verify),
    ("identify", Steps::identify),
    ("classify", Steps::classify),
    ("next", Steps::next),
    ("take_token", Steps::take_token),
    ("sign", Steps::sign),
    ("judge", Steps::judge),
];

/// Forgets what is idle, as a running Flowgate does every two seconds; of nonces, what is old at `now`.
pub fn forget_idle(app: &App, now: SystemTime) {
    app.state.calls().forget_idle(now);
}

/// What the steps work on.
pub struct Steps {
    config: Config,
    directory: Directory,
    margins: Margins,
    now: SystemTime,
    head: Parts,
    params: Params,
    secret: Secret,
    string_to_sign: String,
    caller: Caller,
    call: Sendable,
    queue: FairQueue<usize>,
    entries: Vec<QueueEntry>,
    next: usize,
    tokens: Tokens,
    answer: Answer,
}

fn head(capture: &str) -> Parts {
    let (first, rest) = capture.split_once("\r\n").expect("a request has lines");
    let mut words = first.split(' ').map(str::to_owned);
    let mut word = || {
        words
            .next()
            .expect("a request line has a method and a target")
    };
    let (method, target) = (word(), word());
    let headers = rest.split("\r\n").map_while(|line| line.split_once(": "));
    let request = headers.fold(Request::builder(), |request, (name, value)| {
        request.header(name, value)
    });
    request
        .method(&*method)
        .uri(target)
        .body(())
        .expect("a captured request is HTTP")
        .into_parts()
        .0
}

fn config() -> Config {
    let [key, secret] = SIGNER;
    let env = [
        ("FLOWGATE_ACCOUNTS__0__ID", "acme"),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_ID", key),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_SECRET__ENV", "SECRET"),
        ("FLOWGATE_LISTEN__NAMES", "127.0.0.1"),
        ("SECRET", secret),
    ];
    let env = env.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    config::load(None, env)
        .expect("the benchmarks' configuration has no mistake")
        .config
}

fn entries() -> Vec<QueueEntry> {
    let entry = |index: usize| QueueEntry {
        sequence: Sequence(index as u64),
        client: ClientId::new(format!("client-{}", index % CLIENTS)),
        weight: 1,
        tenant: TenantId::new(format!("cams-{}", index / CLIENTS % TENANTS)),
        arrived: Instant::now(),
    };
    (0..WAITING).map(entry).collect()
}

/// So many that one is always free, back so soon that each repetition collects what one before it spent.
fn tokens() -> Tokens {
    let limit = Limit {
        count: NonZeroU32::MAX,
        window: Duration::from_millis(1),
    };
    Tokens::new(
        limit,
        Duration::ZERO,
        Instant::now() - Duration::from_secs(1),
        Instant::now(),
    )
}

fn signed(head: &Parts) -> Authorization<'_> {
    let value = head.headers[AUTHORIZATION]
        .to_str()
        .expect("a captured signature is ASCII");
    Authorization::parse(value).expect("the captured call is signed in version 3")
}

fn signable<'a>(head: &'a Parts, params: &'a Params) -> Signable<'a> {
    let value = |name| head.headers[name].as_bytes();
    Signable {
        method: head.method.as_str(),
        query: params.query().collect(),
        headers: signed(head)
            .signed_headers
            .iter()
            .map(|name| (*name, value(*name)))
            .collect(),
        body_hash: head.headers["x-acs-content-sha256"]
            .to_str()
            .expect("a hash is ASCII"),
    }
}

// === impl Steps ===

impl Steps {
    /// Prepares a captured call without a body, as it came over the wire.
    pub fn new(capture: &str) -> Self {
        let (config, head) = (config(), head(capture));
        let directory = Directory::new(&config, None);
        let date = head.headers["x-acs-date"]
            .to_str()
            .expect("a date is ASCII");
        let now = time::parse(date).expect("the captured call is dated");
        let ask = || {
            let claim =
                identify::head(&head, &directory, now).expect("the captured call is in order");
            let caller = claim.prove(
                Bytes::new(),
                &Nonces::new(now - Duration::from_secs(60)),
                now,
            );
            caller.expect("the captured call has no body")
        };
        let (caller, call) = (ask(), ask().into_sendable());
        let params = Params::from_query(head.uri.query().unwrap_or_default())
            .expect("the captured query is in order");
        // On the heap, as all that comes over a wire: where a binary keeps its own words decides how they are read.
        let json = HeaderValue::from_bytes(b"application/json;charset=utf-8")
            .expect("a media type is a value");
        let mut steps = Self {
            directory,
            margins: Margins::default(),
            now,
            secret: Secret::new(SIGNER[1]),
            string_to_sign: signable(&head, &params).string_to_sign(),
            caller,
            call,
            queue: FairQueue::new(),
            entries: entries(),
            next: 0,
            tokens: tokens(),
            answer: Answer {
                status: StatusCode::OK,
                headers: [(CONTENT_TYPE, json)].into_iter().collect(),
                body: Bytes::copy_from_slice(CREATED.as_bytes()),
            },
            config,
            head,
            params,
        };
        (0..WAITING).for_each(|_| steps.push());
        steps
    }

    /// Reads a `SignedHeaders` list and writes the canonical request of version 3.
    fn canonicalise(&mut self) {
        black_box(signable(black_box(&self.head), &self.params).canonical_request());
    }

    /// One HMAC, compared.
    fn verify(&mut self) {
        let signature = signed(&self.head).signature;
        assert!(v3::verify(
            &self.secret,
            black_box(&self.string_to_sign),
            signature
        ));
    }

    /// From a managed version 3 call's head to a claim; holds the two before.
    fn identify(&mut self) {
        assert!(
            black_box(identify::head(
                black_box(&self.head),
                &self.directory,
                self.now
            ))
            .is_ok()
        );
    }

    /// From a caller to an operation, its limit and its hold.
    fn classify(&mut self) {
        let operation = classify::classify(
            black_box(&self.caller),
            &self.head.headers,
            &self.config,
            &self.margins,
        );
        assert!(black_box(operation).is_ok());
    }

    /// One joins the line, and one is served.
    fn next(&mut self) {
        self.push();
        black_box(self.queue.pop());
    }

    /// One token is taken and spent, and one is back.
    fn take_token(&mut self) {
        let now = Instant::now();
        assert!(self.tokens.take(now));
        self.tokens.used(black_box(now));
    }

    /// Makes the request of a managed version 3 attempt.
    fn sign(&mut self) {
        black_box(sign::sign(
            black_box(&self.call),
            &self.config.upstream.host,
            self.now,
        ));
    }

    /// From CAMS's answer to a verdict.
    fn judge(&mut self) {
        black_box(judge::judge(
            black_box(&self.answer),
            Context {
                managed: true,
                limited: true,
            },
        ));
    }

    fn push(&mut self) {
        let entry = &self.entries[self.next % WAITING];
        self.queue.push(
            QueueEntry {
                sequence: Sequence(self.next as u64),
                ..entry.clone()
            },
            self.next,
        );
        self.next += 1;
    }
}
