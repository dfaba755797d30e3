//! What becomes of any bytes on a connection? They go through hyper's own reader and the steps before the queue, signed
//! anew on the way as a caller with the secret would, because no fuzzer finds an HMAC; what is accepted is signed for
//! CAMS and must say what the caller said.

use std::cell::{Cell, RefCell};
use std::convert::Infallible;
use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::header::{AUTHORIZATION, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::runtime::Runtime;

use super::reading::{self, has_form, pairs, plain};
use super::{SIGNER, first_line};
use crate::acs::decode::Params;
use crate::acs::v3::{self, Authorization, Signable};
use crate::acs::{answer, encode, time, v1};
use crate::call::hold::margin::Margins;
use crate::call::identify::{self, Directory, Nonces, Sendable};
use crate::call::reply::{self, Manner};
use crate::call::{body, classify, sign};
use crate::config::{self, Config};
use crate::error::Refusal;
use crate::primitives::byte_budget::Room;
use crate::primitives::secret::Secret;

/// A Flowgate up to the queue: it has the secret of [`SIGNER`]'s key, and none of `LTAI-alias`.
pub struct Gate {
    config: Config,
    directory: Directory,
    margins: Margins,
    secret: Secret,
    now: SystemTime,
    runtime: Runtime,
}

/// One connection's doings.
struct Visit<'a> {
    gate: &'a Gate,
    nonces: Nonces,
    /// An answer said that nothing is read any more.
    closed: Cell<bool>,
    sent: RefCell<Vec<Request<Bytes>>>,
}

const MAX_BODY: &str = "8KiB";

fn settings() -> Config {
    let env = [
        ("FLOWGATE_ACCOUNTS__0__ID", "acme"),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_ID", SIGNER[0]),
        ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_SECRET__ENV", "SECRET"),
        ("FLOWGATE_ACCOUNTS__1__ID", "partner"),
        ("FLOWGATE_ACCOUNTS__1__ALIASES", "LTAI-alias"),
        (
            "FLOWGATE_LISTEN__NAMES",
            "127.0.0.1,localhost,gate.internal,h",
        ),
        ("FLOWGATE_LISTEN__MAX_BODY", MAX_BODY),
        ("SECRET", SIGNER[1]),
    ];
    let env = env.map(|(name, value)| (OsString::from(name), OsString::from(value)));
    config::load(None, env)
        .expect("the targets' configuration has no mistake")
        .config
}

// === impl Gate ===

impl Default for Gate {
    fn default() -> Self {
        let config = settings();
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        Self {
            directory: Directory::new(&config, None),
            margins: Margins::default(),
            secret: Secret::new(SIGNER[1]),
            now: time::parse(SIGNER[2]).expect("the moment is written as stamps are"),
            runtime: runtime.expect("the system gives a timer"),
            config,
        }
    }
}

impl Gate {
    /// The moment at which all signatures are made.
    pub fn now(&self) -> SystemTime {
        self.now
    }

    /// Reads all that comes on one connection; gives back what goes to CAMS under the account's own signature.
    pub fn connection(&self, input: &[u8]) -> Vec<Request<Bytes>> {
        let nonces = Nonces::new(self.now - Duration::from_secs(3600));
        let visit = Visit {
            gate: self,
            nonces,
            closed: Cell::new(false),
            sent: RefCell::default(),
        };
        let service = service_fn(|request| visit.answer(request));
        let stream = TokioIo::new(tokio::io::join(input, tokio::io::sink()));
        let mut server = http1::Builder::new();
        let served = server
            .half_close(true)
            .max_buf_size(self.config.listen.max_header.max(8192));
        // What is not HTTP ends with an error; nobody is there to read an answer.
        drop(
            self.runtime
                .block_on(served.serve_connection(stream, service)),
        );
        visit.sent.into_inner()
    }

    /// A version 1 call: the query on the first line, the form behind it.
    pub fn rpc(&self, input: &[u8]) -> Vec<Request<Bytes>> {
        let (query, form) = first_line(input);
        let kind = if form.is_empty() {
            ""
        } else {
            "content-type: application/x-www-form-urlencoded\r\n"
        };
        let behind = format!(
            " HTTP/1.1\r\nhost: 127.0.0.1\r\n{kind}content-length: {}\r\n\r\n",
            form.len()
        );
        self.connection(&[b"POST /?Signature=x&", query, behind.as_bytes(), form].concat())
    }

    /// The head as whoever has the secret would have signed it.
    fn signed_anew(&self, head: &Parts, body: &[u8]) -> Option<Parts> {
        let mut head = head.clone();
        match head.headers.get(AUTHORIZATION).cloned() {
            Some(value) => self.sign_v3(&mut head, value.to_str().ok()?, body)?,
            None => self.sign_v1(&mut head, body)?,
        }
        Some(head)
    }

    fn sign_v3(&self, head: &mut Parts, authorization: &str, body: &[u8]) -> Option<()> {
        let signed = Authorization::parse(authorization).ok()?;
        let hash = v3::hash(body);
        if let Some(value) = head.headers.get_mut("x-acs-content-sha256") {
            *value = HeaderValue::from_str(&hash).ok()?;
        }
        let params = Params::from_query(head.uri.query().unwrap_or_default()).ok()?;
        let value = |name: &&str| {
            head.headers
                .get(*name)
                .map(HeaderValue::as_bytes)
                .unwrap_or_default()
        };
        let signable = Signable {
            method: head.method.as_str(),
            query: params.query().collect(),
            headers: signed
                .signed_headers
                .iter()
                .map(|name| (*name, value(name)))
                .collect(),
            body_hash: &hash,
        };
        let authorization = signable.authorization(signed.credential, &self.secret);
        head.headers
            .insert(AUTHORIZATION, HeaderValue::from_str(&authorization).ok()?);
        Some(())
    }

    fn sign_v1(&self, head: &mut Parts, body: &[u8]) -> Option<()> {
        let query = head.uri.query()?.as_bytes();
        let form = if has_form(head) { body } else { b"" };
        let all: Vec<_> = pairs(query).chain(pairs(form)).collect();
        let all = all.iter().map(|(name, value)| {
            Some((
                std::str::from_utf8(name).ok()?,
                std::str::from_utf8(value).ok()?,
            ))
        });
        let all: Option<Vec<_>> = all.collect();
        let signature = v1::sign(
            &self.secret,
            &v1::string_to_sign(head.method.as_str(), all?),
        );
        let is_signature = |pair: &&[u8]| {
            pair.split(|byte| *byte == b'=').next().map(plain) == Some(b"Signature".into())
        };
        let kept: Vec<_> = query
            .split(|byte| *byte == b'&')
            .filter(|pair| !is_signature(pair))
            .collect();
        let target = format!(
            "{}?Signature={}&",
            head.uri.path(),
            encode::encode(&signature)
        );
        let target = [target.as_bytes(), &kept.join(&b'&')].concat();
        let mut uri = head.uri.clone().into_parts();
        uri.path_and_query = Some(PathAndQuery::try_from(target.as_slice()).ok()?);
        head.uri = uri.try_into().ok()?;
        Some(())
    }
}

// === impl Visit ===

impl Visit<'_> {
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        assert!(
            !self.closed.get(),
            "nothing is read behind an answer that closes"
        );
        let (head, body) = request.into_parts();
        let response = match self.steps(&head, body).await {
            Ok(()) => Response::new(Full::new(Bytes::from_static(b"{}"))),
            Err(refusal) => refuse(&head, &refusal).await,
        };
        self.closed.set(response.headers().contains_key(CONNECTION));
        Ok(response)
    }

    async fn steps(&self, head: &Parts, body: Incoming) -> Result<(), Refusal> {
        let Gate {
            config,
            directory,
            now,
            ..
        } = self.gate;
        body::check_head(head, config.listen.max_header)?;
        let as_it_came = identify::head(head, directory, *now);
        let max = as_it_came.as_ref().map_or(config.listen.max_body, |claim| {
            claim.max_body(config.listen.max_body)
        });
        let share = Room::new(max).take(0).expect("nothing always fits");
        let allowance = body::Allowance {
            max,
            within: config.listen.body_timeout,
            shares: vec![share],
        };
        let body = body::read(body, allowance).await?;
        let Some(head) = self.gate.signed_anew(head, &body) else {
            return as_it_came.map(drop);
        };
        let caller =
            identify::head(&head, directory, *now)?.prove(body.clone(), &self.nonces, *now)?;
        let operation = classify::classify(&caller, &head.headers, config, &self.gate.margins)?;
        assert!(!operation.hold.is_zero() && operation.hold <= config.queue.max_hold);
        self.send(&caller.into_sendable(), (&head, &body)).await;
        Ok(())
    }

    /// Signs for CAMS, and compares what that says with what the caller said.
    async fn send(&self, call: &Sendable, (head, body): (&Parts, &Bytes)) {
        let host = &self.gate.config.upstream.host;
        let (sent, sent_body) = sign::sign(call, host, self.gate.now).into_parts();
        let Ok(sent_body) = sent_body.collect().await;
        let sent_body = sent_body.to_bytes();
        assert_eq!(sent.headers["host"], host.as_str());
        match call {
            Sendable::Verified(_) => {
                assert_eq!(
                    reading::read(&sent, &sent_body),
                    reading::read(head, body),
                    "what was authorised is sent"
                );
                self.sent
                    .borrow_mut()
                    .push(Request::from_parts(sent, sent_body));
            }
            Sendable::Relayed(_) => {
                assert_eq!(
                    (sent.uri.path_and_query(), &sent_body),
                    (head.uri.path_and_query(), body),
                    "byte for byte"
                );
                assert!(
                    !sent.headers.contains_key("transfer-encoding")
                        && !sent.headers.contains_key("connection")
                );
            }
        }
    }
}

/// The refusal as its caller reads it: an SDK must find the code, and nobody the secret.
async fn refuse(head: &Parts, refusal: &Refusal) -> Response<Full<Bytes>> {
    let response = reply::refuse(refusal, &Manner::of(head), "1");
    let (parts, body) = response.into_parts();
    let Ok(body) = body.collect().await;
    let body = body.to_bytes();
    let kind = parts.headers[CONTENT_TYPE].to_str().ok();
    let summary = answer::read(kind, &body).expect("an SDK reads what Flowgate answers");
    assert_eq!(summary.code.as_deref(), Some(refusal.kind.code()));
    assert!(parts.status.is_client_error() || parts.status.is_server_error());
    assert!(
        !String::from_utf8_lossy(&body).contains(SIGNER[1]),
        "no answer shows a secret"
    );
    Response::from_parts(parts, Full::new(body))
}
