//! Arbitrary bytes on a connection. They pass through hyper's parser and the steps before the
//! queue. On the way they are signed with the right secret, because a fuzzer cannot find an HMAC.
//! An accepted call is signed for CAMS, and that request must have the same meaning as the
//! caller's.

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
use crate::call::identify::{self, Claim, Directory, Nonces, Sendable};
use crate::call::reply::{self, ErrorFormat};
use crate::call::{body, classify, sign};
use crate::config::{self, Config};
use crate::credentials::keepers::Keepers;
use crate::error::Refusal;
use crate::primitives::byte_budget::ByteBudget;
use crate::primitives::secret::Secret;

/// The steps of Flowgate up to the queue. It has the secret of [`SIGNER`]'s key and no secret of
/// `LTAI-alias`.
pub struct Gate {
    config: Config,
    directory: Directory,
    margins: Margins,
    secret: Secret,
    now: SystemTime,
    runtime: Runtime,
}

/// The state of one connection.
struct Visit<'a> {
    gate: &'a Gate,
    nonces: Nonces,
    /// Whether an answer has closed the connection.
    closed: Cell<bool>,
    sent: RefCell<Vec<Request<Bytes>>>,
}

const MAX_BODY: &str = "8KiB";
const SIGNATURE: &[u8] = b"Signature";

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
        .expect("the targets' configuration is valid")
        .config
}

// === impl Gate ===

impl Default for Gate {
    fn default() -> Self {
        let config = settings();
        let keepers = Keepers::new(&config, None).expect("no account needs a session");
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build();
        Self {
            directory: Directory::new(&config, &keepers, None),
            margins: Margins::default(),
            secret: Secret::new(SIGNER[1]),
            now: time::parse(SIGNER[2]).expect("the time has the form of a timestamp"),
            runtime: runtime.expect("the runtime can be built"),
            config,
        }
    }
}

impl Gate {
    /// The time of all signatures.
    pub fn now(&self) -> SystemTime {
        self.now
    }

    /// Reads all bytes of one connection. Returns the requests to CAMS that Flowgate signed.
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
        // Input that is not HTTP ends with an error, which does not matter here.
        drop(
            self.runtime
                .block_on(served.serve_connection(stream, service)),
        );
        visit.sent.into_inner()
    }

    /// A version 1 call: the first line is the query, the rest the form. The signature is in the
    /// form if the form has a place for it.
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
        let start: &[u8] = if pairs(form).any(|(name, _)| name == SIGNATURE) {
            b"POST /?"
        } else {
            b"POST /?Signature=x&"
        };
        self.connection(&[start, query, behind.as_bytes(), form].concat())
    }

    /// The request with a signature by the right secret.
    fn signed_again(&self, head: &Parts, body: &Bytes) -> Option<(Parts, Bytes)> {
        let mut head = head.clone();
        let mut body = body.clone();
        match head.headers.get(AUTHORIZATION).cloned() {
            Some(value) => self.sign_v3(&mut head, value.to_str().ok()?, &body)?,
            None => self.sign_v1(&mut head, &mut body)?,
        }
        Some((head, body))
    }

    /// The first step, with the body if the signature is in it.
    fn claim(&self, head: &Parts, body: &[u8]) -> Result<Claim, Refusal> {
        match identify::head(head, &self.directory, self.now)? {
            Some(claim) => Ok(claim),
            None => identify::form(head, body, &self.directory, self.now),
        }
    }

    fn sign_v3(&self, head: &mut Parts, authorization: &str, body: &[u8]) -> Option<()> {
        let signed = Authorization::parse(authorization).ok()?;
        let hash = v3::hash(body);
        if let Some(value) = head.headers.get_mut("x-acs-content-sha256") {
            *value = HeaderValue::from_str(&hash).ok()?;
        }
        let params = Params::from_query(head.uri.query().unwrap_or_default()).ok()?;
        let signable = Signable {
            method: head.method.as_str(),
            query: params.query().collect(),
            headers: signed
                .signed_headers
                .iter()
                .map(|name| (*name, header_bytes(head, name)))
                .collect(),
            body_hash: &hash,
        };
        let authorization = signable.authorization(signed.credential, &self.secret);
        head.headers
            .insert(AUTHORIZATION, HeaderValue::from_str(&authorization).ok()?);
        Some(())
    }

    fn sign_v1(&self, head: &mut Parts, body: &mut Bytes) -> Option<()> {
        let query = head.uri.query().unwrap_or_default().as_bytes();
        let form = if has_form(head) {
            body.clone()
        } else {
            Bytes::new()
        };
        let raw: Vec<_> = pairs(query).chain(pairs(&form)).collect();
        let mut all = Vec::new();
        for (name, value) in &raw {
            let name = std::str::from_utf8(name).ok()?;
            let value = std::str::from_utf8(value).ok()?;
            all.push((name, value));
        }
        let string_to_sign = v1::string_to_sign(head.method.as_str(), all);
        let signature = v1::sign(&self.secret, &string_to_sign);
        if pairs(&form).any(|(name, _)| name == SIGNATURE) {
            let signature = format!("Signature={}", encode::encode(&signature));
            let signed = form.split(|byte| *byte == b'&').map(|pair| {
                if is_signature(pair) {
                    signature.as_bytes()
                } else {
                    pair
                }
            });
            *body = signed.collect::<Vec<_>>().join(&b'&').into();
            return Some(());
        }
        head.uri.query()?;
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

fn header_bytes<'a>(head: &'a Parts, name: &str) -> &'a [u8] {
    head.headers
        .get(name)
        .map(HeaderValue::as_bytes)
        .unwrap_or_default()
}

/// The host name in a `Host` header, in lower case.
fn without_port(host: &HeaderValue) -> String {
    let host = String::from_utf8_lossy(host.as_bytes()).to_ascii_lowercase();
    let name = host.split(':').next().unwrap_or_default();
    name.trim_end_matches('.').to_owned()
}

/// Whether a raw pair of a query is the parameter `Signature`.
fn is_signature(pair: &[u8]) -> bool {
    let name = pair.split(|byte| *byte == b'=').next();
    name.map(plain) == Some(SIGNATURE.into())
}

// === impl Visit ===

impl Visit<'_> {
    async fn answer(
        &self,
        request: Request<Incoming>,
    ) -> Result<Response<Full<Bytes>>, Infallible> {
        assert!(
            !self.closed.get(),
            "nothing is read after an answer that closes the connection"
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
        let max = match &as_it_came {
            Ok(Some(claim)) => claim.max_body(config.listen.max_body),
            Ok(None) => identify::max_unproven_body(config.listen.max_body),
            Err(_) => config.listen.max_body,
        };
        let reservation = ByteBudget::new(max)
            .take(0)
            .expect("a zero-byte reservation cannot fail");
        let bounds = body::BodyBounds {
            max,
            within: config.listen.body_timeout,
            reservations: vec![reservation],
        };
        let body = body::read(body, bounds).await?;
        let Some((head, body)) = self.gate.signed_again(head, &body) else {
            return as_it_came.map(drop);
        };
        let claim = self.gate.claim(&head, &body)?;
        let caller = claim.prove(body.clone(), &self.nonces, *now)?;
        let operation = classify::classify(&caller, &head.headers, config, &self.gate.margins)?;
        assert!(!operation.hold.is_zero() && operation.hold <= config.queue.max_hold);
        self.send(&caller.into_sendable(), &head, &body).await;
        Ok(())
    }

    /// Signs for CAMS, and compares the meaning of that request with the caller's.
    async fn send(&self, call: &Sendable, head: &Parts, body: &Bytes) {
        let host = &self.gate.config.upstream.host;
        let ready = call.ready().expect("fixed credentials are always valid");
        let (sent, sent_body) = sign::sign(&ready, host, self.gate.now)
            .expect("the token is short")
            .into_parts();
        let Ok(sent_body) = sent_body.collect().await;
        let sent_body = sent_body.to_bytes();
        let sent_host = &sent.headers["host"];
        match call {
            Sendable::Verified(_) => {
                assert_eq!(sent_host, host.as_str());
                assert_eq!(
                    reading::read(&sent, &sent_body),
                    reading::read(head, body),
                    "the sent request has the meaning of the authorised one"
                );
                self.sent
                    .borrow_mut()
                    .push(Request::from_parts(sent, sent_body));
            }
            Sendable::Relayed(_) => {
                if head.headers.contains_key(AUTHORIZATION) {
                    assert_eq!(sent_host, &head.headers["host"], "the host is signed");
                }
                assert_eq!(without_port(sent_host), *host, "only CAMS gets a call");
                assert_eq!(
                    (sent.uri.path_and_query(), &sent_body),
                    (head.uri.path_and_query(), body),
                    "a relayed call is forwarded byte for byte"
                );
                assert!(
                    !sent.headers.contains_key("transfer-encoding")
                        && !sent.headers.contains_key("connection")
                );
            }
        }
    }
}

/// The answer for a refusal: an SDK must find the code, and it must not contain the secret.
async fn refuse(head: &Parts, refusal: &Refusal) -> Response<Full<Bytes>> {
    let response = reply::refuse(refusal, &ErrorFormat::of(head), "1");
    let (parts, body) = response.into_parts();
    let Ok(body) = body.collect().await;
    let body = body.to_bytes();
    let kind = parts.headers[CONTENT_TYPE].to_str().ok();
    let summary = answer::read(kind, &body).expect("an SDK can parse the refusal");
    assert_eq!(summary.code.as_deref(), Some(refusal.kind.code()));
    assert!(parts.status.is_client_error() || parts.status.is_server_error());
    assert!(
        !String::from_utf8_lossy(&body).contains(SIGNER[1]),
        "no answer contains a secret"
    );
    Response::from_parts(parts, Full::new(body))
}
