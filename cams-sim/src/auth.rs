//! Authenticates a call of CAMS or STS, by a key or by a session that was issued: host, key, STS token, time, signature and nonce, in this order. A nonce is
//! recorded here, before the limit is checked, so a throttled call has spent its nonce.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::Request;
use hyper::header::HeaderMap;
use tokio::time::Instant;

use crate::refusal::Refusal;
use crate::request::{Call, Scheme, header};
use crate::session::{Session, TOKEN_PREFIX};
use crate::{Key, Settings, date, signature, sts};

/// Maximum difference of a time stamp from the current time.
const WINDOW: Duration = Duration::from_secs(15 * 60);

/// How long a nonce is remembered. An Alibaba engineer's answer says 31 minutes.
const NONCE_MEMORY: Duration = Duration::from_secs(31 * 60);

/// Holds the keys, the time of day and the spent nonces.
#[derive(Debug)]
pub(crate) struct Gatekeeper {
    keys: HashMap<String, Key>,
    sessions: HashMap<String, Session>,
    expired: HashSet<String>,
    check: bool,
    strict: bool,
    host: Option<String>,
    sts_host: Option<String>,
    clock: Option<(SystemTime, Instant)>,
    nonces: HashSet<(String, String)>,
    by_age: VecDeque<(Instant, (String, String))>,
}

// === impl Gatekeeper ===

impl Gatekeeper {
    pub(crate) fn new(settings: &Settings, start: Instant) -> Self {
        Self {
            keys: settings
                .keys
                .iter()
                .map(|key| (key.access_key_id.clone(), key.clone()))
                .collect(),
            sessions: HashMap::new(),
            expired: settings.expired.iter().cloned().collect(),
            check: settings.check_signatures,
            strict: settings.strict,
            host: settings.host.clone(),
            sts_host: settings.sts.host.clone(),
            clock: settings.now.map(|now| (now, start)),
            nonces: HashSet::new(),
            by_age: VecDeque::new(),
        }
    }

    /// Sets the time of day at `now`; it then follows tokio's clock. `None` returns to the system's
    /// clock.
    pub(crate) fn set_clock(&mut self, time: Option<SystemTime>, now: Instant) {
        self.clock = time.map(|time| (time, now));
    }

    /// The time of day, if it was set.
    pub(crate) fn set_time(&self, now: Instant) -> Option<SystemTime> {
        self.clock.map(|(time, set)| time + now.duration_since(set))
    }

    /// The time of day.
    pub(crate) fn time(&self, now: Instant) -> SystemTime {
        self.set_time(now).unwrap_or_else(SystemTime::now)
    }

    /// Makes an issued session a caller.
    pub(crate) fn add(&mut self, session: Session) {
        self.sessions
            .insert(session.key.access_key_id.clone(), session);
    }

    /// Ends all sessions.
    pub(crate) fn end_sessions(&mut self, now: Instant) {
        let time = self.time(now);
        for session in self.sessions.values_mut() {
            session.ends = session.ends.min(time);
        }
    }

    /// The secrets and tokens of all issued sessions.
    pub(crate) fn issued_secrets(&self) -> impl Iterator<Item = &String> {
        let keys = self.sessions.values().map(|session| &session.key);
        keys.flat_map(|key| key.security_token.iter().chain([&key.secret]))
    }

    /// The session of a call, if its key is that of one.
    pub(crate) fn session(&self, call: &Call) -> Option<&Session> {
        self.sessions.get(&call.credential.access_key_id)
    }

    /// The account of a key; the signature is not checked.
    pub(crate) fn account(&self, call: &Call) -> String {
        let id = &call.credential.access_key_id;
        let named = if id.is_empty() { "anonymous" } else { id };
        self.key(id).map_or(named, |key| &key.account).to_owned()
    }

    /// Admits a call that carries no key.
    pub(crate) fn admit_anonymous(
        &self,
        call: &Call,
        request: &Request<Bytes>,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.check_target(call, request)?;
        if self.check && !call.timestamp.is_empty() {
            self.check_time(&call.timestamp, now)?;
        }
        Ok(())
    }

    /// Admits a call and records its nonce, or returns the refusal.
    pub(crate) fn admit(
        &mut self,
        call: &Call,
        request: &Request<Bytes>,
        now: Instant,
    ) -> Result<(), Refusal> {
        self.check_target(call, request)?;
        if !self.check {
            return Ok(());
        }
        if call.scheme == Scheme::Unsigned {
            return Err(Refusal::missing("AccessKeyId"));
        }
        let id = &call.credential.access_key_id;
        let key = self
            .key(id)
            .ok_or_else(|| Refusal::new("InvalidAccessKeyId.NotFound"))?;
        if self.expired.contains(id) {
            return Err(Refusal::new("SecurityTokenExpired"));
        }
        self.check_token(call, key, now)?;
        self.check_time(&call.timestamp, now)?;
        match call.scheme {
            Scheme::V3 => check_v3(call, request, &key.secret, self.strict)?,
            _ => check_v1(call, &key.secret)?,
        }
        let account = key.account.clone();
        self.spend_nonce(account, &call.nonce, now)
    }

    fn key(&self, id: &str) -> Option<&Key> {
        self.keys
            .get(id)
            .or_else(|| self.sessions.get(id).map(|session| &session.key))
    }

    fn check_target(&self, call: &Call, request: &Request<Bytes>) -> Result<(), Refusal> {
        let only = if call.version == sts::VERSION {
            &self.sts_host
        } else {
            &self.host
        };
        let host = header(request.headers(), "host");
        if only.as_ref().is_some_and(|only| *only != host) {
            return Err(Refusal::new("InvalidProduct.NotFound"));
        }
        if !["GET", "POST"].contains(&call.method.as_str()) {
            return Err(Refusal::new("UnsupportedHTTPMethod"));
        }
        Ok(())
    }

    /// Whether a call carries the token of its key, and its session has not ended.
    fn check_token(&self, call: &Call, key: &Key, now: Instant) -> Result<(), Refusal> {
        let token = call.credential.security_token.as_deref();
        let session = self.session(call);
        if session.is_some() {
            match token {
                None | Some("") => return Err(Refusal::missing("SecurityToken")),
                Some(token) if !token.starts_with(TOKEN_PREFIX) => {
                    return Err(Refusal::new("InvalidSecurityToken.Malformed"));
                }
                Some(_) => {}
            }
        }
        if token != key.security_token.as_deref() {
            return Err(Refusal::new("InvalidSecurityToken.MismatchWithAccessKey"));
        }
        if session.is_some_and(|session| session.ends <= self.time(now)) {
            return Err(Refusal::new("InvalidSecurityToken.Expired"));
        }
        Ok(())
    }

    fn check_time(&self, timestamp: &str, now: Instant) -> Result<(), Refusal> {
        if timestamp.is_empty() {
            return Err(Refusal::missing("Timestamp"));
        }
        let stamped =
            date::parse(timestamp).ok_or_else(|| Refusal::new("InvalidTimeStamp.Format"))?;
        let off = self
            .time(now)
            .duration_since(stamped)
            .unwrap_or_else(|ahead| ahead.duration());
        if off > WINDOW {
            Err(Refusal::new("InvalidTimeStamp.Expired"))
        } else {
            Ok(())
        }
    }

    fn spend_nonce(&mut self, account: String, nonce: &str, now: Instant) -> Result<(), Refusal> {
        while self
            .by_age
            .front()
            .is_some_and(|(then, _)| now.duration_since(*then) > NONCE_MEMORY)
        {
            let (_, forgotten) = self.by_age.pop_front().expect("a front was just seen");
            self.nonces.remove(&forgotten);
        }
        if nonce.is_empty() {
            return Err(Refusal::missing("SignatureNonce"));
        }
        let spent = (account, nonce.to_owned());
        if !self.nonces.insert(spent.clone()) {
            return Err(Refusal::new("SignatureNonceUsed"));
        }
        self.by_age.push_back((now, spent));
        Ok(())
    }
}

fn check_v1(call: &Call, secret: &str) -> Result<(), Refusal> {
    if call.credential.algorithm != "HMAC-SHA1" {
        return Err(Refusal::new("InvalidSignatureMethod"));
    }
    if call.parameter("SignatureVersion") != Some("1.0") {
        return Err(Refusal::new("IncompleteSignature"));
    }
    let text = signature::v1_string_to_sign(&call.method, &call.parameters());
    compare(
        &signature::v1_signature(secret, &text),
        &call.credential.signature,
        &text,
    )
}

fn check_v3(
    call: &Call,
    request: &Request<Bytes>,
    secret: &str,
    strict: bool,
) -> Result<(), Refusal> {
    if call.credential.algorithm != signature::V3_ALGORITHM {
        return Err(Refusal::new("InvalidSignatureMethod"));
    }
    let headers = request.headers();
    let signed = &call.credential.signed_headers;
    let mandatory = [
        "host",
        "x-acs-action",
        "x-acs-version",
        "x-acs-date",
        "x-acs-signature-nonce",
        "x-acs-content-sha256",
    ];
    let received = headers
        .keys()
        .map(hyper::header::HeaderName::as_str)
        .filter(|name| name.starts_with("x-acs-"));
    for name in received.chain(mandatory) {
        if !signed.iter().any(|other| other == name) {
            return Err(
                Refusal::new("IncompleteSignature").with_message(format!("{name} must be signed."))
            );
        }
    }
    if strict {
        check_v3_strictly(call, headers)?;
    }
    if header(headers, "x-acs-content-sha256") != signature::sha256(request.body()) {
        return Err(Refusal::new("SignatureDoesNotMatch")
            .with_message("x-acs-content-sha256: not the hash of the body.".to_owned()));
    }
    let canonical =
        signature::v3_canonical_request(&call.method, &call.query, headers, signed, request.body());
    let text = signature::v3_string_to_sign(&canonical);
    compare(
        &signature::v3_signature(secret, &text),
        &call.credential.signature,
        &format!("{text}\n{canonical}"),
    )
}

/// Checks of the strict mode that the real gateway may not make.
fn check_v3_strictly(call: &Call, headers: &HeaderMap) -> Result<(), Refusal> {
    let signed = &call.credential.signed_headers;
    if let Some(name) = signed
        .iter()
        .find(|name| !headers.contains_key(name.as_str()))
    {
        return Err(Refusal::strict(
            "SignedButAbsent",
            format!("{name} is named as signed but did not come."),
        ));
    }
    if !signed.is_sorted_by(|a, b| a < b) {
        return Err(Refusal::strict(
            "SignedHeaders",
            "The signed headers are not sorted and unique.".to_owned(),
        ));
    }
    let key = header(headers, "x-acs-accesskey-id");
    if !key.is_empty() && key != call.credential.access_key_id {
        return Err(Refusal::strict(
            "TwoKeys",
            "x-acs-accesskey-id is not the key of the signature.".to_owned(),
        ));
    }
    Ok(())
}

/// Returns the string that the server signed in the refusal, as the real gateway does.
fn compare(expected: &str, given: &str, signed: &str) -> Result<(), Refusal> {
    if expected == given {
        return Ok(());
    }
    let refusal = Refusal::new("SignatureDoesNotMatch");
    let message = format!("{} server string to sign is:{signed}", refusal.message);
    Err(refusal.with_message(message))
}

#[cfg(test)]
mod tests;
