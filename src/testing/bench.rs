//! Access for the benchmarks to the steps of a call that do no I/O, each as a function over
//! prepared inputs. This is not part of the public API and may change at any time.

mod attempts;
mod lanes;
mod takes;

use std::ffi::OsString;
use std::hint::black_box;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Request, Response, StatusCode};
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
use crate::credentials::keepers::Keepers;
use crate::error::Outcome;
use crate::idempotency::fingerprint::{fingerprint, record_name};
use crate::idempotency::key;
use crate::idempotency::record::{Answer, Created, FlowDescription, Order, OrderKind};
use crate::idempotency::records::{Bounds, CallEnd, Found, Records};
use crate::limiter::fair::{FairQueue, QueueEntry, Sequence};
use crate::limiter::tokens::Tokens;
use crate::observe::record::CallNotes;
use crate::primitives::id::{ClientId, TenantId};
use crate::primitives::secret::Secret;
use crate::upstream::UpstreamResponse;

/// The key and the secret that sign the call.
const SIGNER: [&str; 2] = ["LTAI-test-key-id-1", "test-secret-1"];
/// An idempotency key as callers are told to make it.
const KEY: HeaderValue = HeaderValue::from_static("0b1c3a52-7d3f-4a44-9a57-3f1c2f6a8f10");
const CREATED: &str = r#"{"RequestId":"90E63D28-E31D-1EB2-8939-A9486641","Code":"OK","Message":"OK","Data":{"FlowId":"1234567890123456"}}"#;
/// Queued calls while one is added and one is removed, with the number of clients and of tenants
/// per client.
const WAITING: usize = 100;
const CLIENTS: usize = 4;
const TENANTS: usize = 5;

/// A step and its name. It can be repeated any number of times.
pub type Step = (&'static str, fn(&mut Steps));

/// All steps, in the order of a call.
pub const STEPS: [Step; 9] = [
    ("canonicalise", Steps::canonicalise),
    ("verify", Steps::verify),
    ("identify", Steps::identify),
    ("classify", Steps::classify),
    ("key", Steps::key),
    ("next", Steps::next),
    ("take_token", Steps::take_token),
    ("sign", Steps::sign),
    ("judge", Steps::judge),
];

/// Drops idle state and nonces that are old at `now`, as a running Flowgate does every two seconds.
pub fn forget_idle(app: &App, now: SystemTime) {
    app.state.calls().forget_idle(now, Instant::now());
}

/// The inputs of the steps.
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
    answer: UpstreamResponse,
    keyed: HeaderMap,
    records: Arc<Records>,
    client: ClientId,
}

fn head(capture: &str) -> Parts {
    let (first, rest) = capture.split_once("\r\n").expect("a request has lines");
    let mut words = first.split(' ');
    let method = words.next().expect("a request line has a method");
    let target = words.next().expect("a request line has a target");
    let mut request = Request::builder().method(method).uri(target);
    for (name, value) in rest.split("\r\n").map_while(|line| line.split_once(": ")) {
        request = request.header(name, value);
    }
    request
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
        .expect("the benchmarks' configuration is valid")
        .config
}

fn entries() -> Vec<QueueEntry> {
    (0..WAITING)
        .map(|index| QueueEntry {
            sequence: Sequence(index as u64),
            client: ClientId::new(format!("client-{}", index % CLIENTS)),
            weight: 1,
            tenant: TenantId::new(format!("cams-{}", index / CLIENTS % TENANTS)),
            arrived: Instant::now(),
        })
        .collect()
}

/// A source with a free token for every repetition; each repetition also reclaims a token of an
/// earlier one.
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

/// What the call of a key has done, and its answer.
fn ending() -> (CallEnd, Answer) {
    let created = Created {
        flow_id: "1234567890123456".into(),
        request_id: Some("90E63D28-E31D-1EB2-8939-A9486641".into()),
    };
    let answer = Answer {
        result: Ok(Response::default()),
        outcome: Outcome::Ok,
        code: "OK".into(),
        attempts: 1,
        waited: Duration::ZERO,
        notes: CallNotes::default(),
        is_protected: true,
    };
    (CallEnd::Created(created), answer)
}

fn signed(head: &Parts) -> Authorization<'_> {
    let value = head.headers[AUTHORIZATION]
        .to_str()
        .expect("a captured signature is ASCII");
    Authorization::parse(value).expect("the captured call has a version 3 signature")
}

fn signable<'a>(head: &'a Parts, params: &'a Params) -> Signable<'a> {
    Signable {
        method: head.method.as_str(),
        query: params.query().collect(),
        headers: signed(head)
            .signed_headers
            .iter()
            .map(|name| (*name, head.headers[*name].as_bytes()))
            .collect(),
        body_hash: head.headers["x-acs-content-sha256"]
            .to_str()
            .expect("a hash is ASCII"),
    }
}

/// The caller of a captured call, identified as if it had just arrived.
fn caller(head: &Parts, directory: &Directory, now: SystemTime) -> Caller {
    let claim = identify::head(head, directory, now)
        .expect("the captured call is valid")
        .expect("the captured call is signed in its head");
    let nonces = Nonces::new(now - Duration::from_secs(60));
    claim
        .prove(Bytes::new(), &nonces, now)
        .expect("the captured call has no body")
}

// === impl Steps ===

impl Steps {
    /// Prepares the inputs from a captured request without a body.
    pub fn new(capture: &str) -> Self {
        let config = config();
        let keepers = Keepers::new(&config, None).expect("no account needs a session");
        let head = head(capture);
        let directory = Directory::new(&config, &keepers, None);
        let date = head.headers["x-acs-date"]
            .to_str()
            .expect("a date is ASCII");
        let now = time::parse(date).expect("the captured call has a date");
        let caller = caller(&head, &directory, now);
        let call = self::caller(&head, &directory, now).into_sendable();
        let params = Params::from_query(head.uri.query().unwrap_or_default())
            .expect("the captured query is valid");
        // On the heap, like all received data: the alignment of static data in the binary affects
        // the timing.
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
            answer: UpstreamResponse {
                status: StatusCode::OK,
                headers: [(CONTENT_TYPE, json)].into_iter().collect(),
                body: Bytes::copy_from_slice(CREATED.as_bytes()),
            },
            keyed: [(HeaderName::from_static("idempotency-key"), KEY)]
                .into_iter()
                .collect(),
            records: Records::new(Bounds {
                keep: Duration::ZERO,
                max: 1,
            }),
            client: ClientId::new(""),
            config,
            head,
            params,
        };
        (0..WAITING).for_each(|_| steps.push());
        steps
    }

    /// Parses a `SignedHeaders` list and writes the canonical request of version 3.
    fn canonicalise(&mut self) {
        black_box(signable(black_box(&self.head), &self.params).canonical_request());
    }

    /// Computes one HMAC and compares it.
    fn verify(&mut self) {
        let signature = signed(&self.head).signature;
        assert!(v3::verify(
            &self.secret,
            black_box(&self.string_to_sign),
            signature
        ));
    }

    /// From the head of a managed version 3 call to a claim; includes the two steps before.
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

    /// From a caller to an operation with its limit and its hold.
    fn classify(&mut self) {
        let operation = classify::classify(
            black_box(&self.caller),
            &self.head.headers,
            &self.config,
            &self.margins,
        );
        assert!(black_box(operation).is_ok());
    }

    /// The life of an idempotency key: it is read, its call is named and compared, claimed, marked
    /// and ended, and its record is forgotten.
    fn key(&mut self) {
        let key = key::read(black_box(&self.keyed), None);
        let key = key.expect("the key is valid").expect("there is a key");
        let call = black_box(&self.caller);
        let order = Order {
            account: call.account().clone(),
            client: self.client.clone(),
            kind: OrderKind::Keyed,
            fingerprint: fingerprint("CreateFlow", call.params().iter(), None),
            request_id: "90E63D28-E31D-1EB2-8939-A94866411234".into(),
            flow: FlowDescription {
                name: call.flow_name().unwrap_or_default().into(),
                ..FlowDescription::default()
            },
        };
        let name = record_name(order.account.as_str(), order.client.as_str(), &key);
        let Found::New(claim, waiter) = self.records.find(name, &Arc::new(order)) else {
            panic!("the key is new");
        };
        let (end, answer) = ending();
        claim.mark(Instant::now()).end(end, answer);
        drop(black_box(waiter));
        assert_eq!(self.records.forget_old(Instant::now()).done, 1);
    }

    /// Adds a call to the queue and removes the next one.
    fn next(&mut self) {
        self.push();
        black_box(self.queue.pop());
    }

    /// Takes and spends one token, and reclaims one.
    fn take_token(&mut self) {
        let now = Instant::now();
        assert!(self.tokens.take(now));
        self.tokens.used(black_box(now));
    }

    /// Builds the request of a managed version 3 attempt.
    fn sign(&mut self) {
        let ready = black_box(&self.call).ready();
        let signed = sign::sign(
            &ready.expect("fixed credentials are always valid"),
            &self.config.upstream.host,
            self.now,
        );
        black_box(signed.expect("the token is short"));
    }

    /// From CAMS's answer to a verdict.
    fn judge(&mut self) {
        black_box(judge::judge(
            black_box(&self.answer),
            Context {
                managed: true,
                limited: true,
                action: "CreateFlow",
            },
            SystemTime::now,
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
