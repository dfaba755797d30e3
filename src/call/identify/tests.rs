//! Identify, classify and sign together: from a caller's request to the request that CAMS would
//! get.

mod call;
mod capture;
mod clients;
mod in_form;
mod mutations;
mod relayed;
mod renewal;
mod rules;
mod sending;
mod vectors;

use std::ffi::OsString;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;

use self::capture::Capture;
use super::*;
use crate::acs::time;
use crate::call::classify;
use crate::call::hold::margin::Margins;
use crate::call::sign;
use crate::config::Config;
use crate::credentials::keepers::Keepers;
use crate::error::Kind;
use crate::operation::Operation;
use crate::primitives::secret::Secret;

const KEY: &str = "LTAI-test-key-id-1";
const SECRET: &str = "test-secret-1";
const UPSTREAM: &str = "cams.ap-southeast-1.aliyuncs.com";
/// All captures were taken within 15 minutes of it.
const NOW: &str = "2026-11-24T02:59:00Z";

/// A gate with one managed account, whose key signed the captures, and the settings of a test.
struct Gate {
    config: Config,
    directory: Directory,
    nonces: Nonces,
    now: SystemTime,
}

impl Gate {
    fn new() -> Self {
        Self::with(&[])
    }

    fn with(settings: &[(&str, &str)]) -> Self {
        let account = [
            ("FLOWGATE_ACCOUNTS__0__ID", "acme"),
            ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_ID", KEY),
            ("FLOWGATE_ACCOUNTS__0__ACCESS_KEY_SECRET__ENV", "SECRET"),
            ("SECRET", SECRET),
        ];
        Self::bare(&[&account, settings].concat())
    }

    /// Only the settings of the test.
    fn bare(settings: &[(&str, &str)]) -> Self {
        // The captures were taken on several ports.
        let names = [(
            "FLOWGATE_LISTEN__NAMES",
            "127.0.0.1,localhost,gate.internal,h,xaliyuncs.com",
        )];
        let is_named = settings.iter().any(|(name, _)| *name == names[0].0);
        let env = names.iter().filter(|_| !is_named).chain(settings);
        let env = env.map(|(name, value)| (OsString::from(name), OsString::from(value)));
        let config = crate::config::load(None, env).unwrap().config;
        let now = time::parse(NOW).unwrap();
        let nonces = Nonces::new(now - Duration::from_secs(3600));
        Self {
            directory: Directory::new(&config, &Keepers::new(&config, None).unwrap(), None),
            config,
            nonces,
            now,
        }
    }

    fn claim(&self, capture: &Capture) -> Result<Claim, Refusal> {
        let request = Request::try_from(capture).map_err(|_| bad("this is not HTTP"))?;
        let parts = request.into_parts().0;
        if let Some(claim) = head(&parts, &self.directory, self.now)? {
            return Ok(claim);
        }
        if capture.body.len() > max_unproven_body(self.config.listen.max_body) {
            return Err(Refusal::new(Kind::TooLarge, "the body is too large"));
        }
        form(&parts, &capture.body, &self.directory, self.now)
    }

    /// Whether the caller is identified with the head alone.
    fn is_in_head(&self, capture: &Capture) -> bool {
        let parts = Request::try_from(capture).unwrap().into_parts().0;
        head(&parts, &self.directory, self.now).unwrap().is_some()
    }

    fn ask(&self, capture: &Capture) -> Result<Caller, Refusal> {
        let claim = self.claim(capture)?;
        if capture.body.len() > claim.max_body(self.config.listen.max_body) {
            return Err(Refusal::new(Kind::TooLarge, "the body is too large"));
        }
        claim.prove(Bytes::from(capture.body.clone()), &self.nonces, self.now)
    }

    fn refuses(&self, capture: &Capture) -> (Kind, String) {
        let refusal = self.ask(capture).err().expect("the call must be refused");
        (refusal.kind, refusal.message)
    }

    fn classify(&self, capture: &Capture) -> Result<Operation, Refusal> {
        let headers = Request::try_from(capture).unwrap().into_parts().0.headers;
        classify::classify(
            &self.ask(capture)?,
            &headers,
            &self.config,
            &Margins::default(),
        )
    }

    /// The request that CAMS gets.
    fn send(&self, caller: Caller) -> Capture {
        signed(&caller.into_sendable(), self.now).into()
    }
}

/// The request that CAMS gets for a call of an account with fixed credentials.
fn signed(call: &Sendable, now: SystemTime) -> Request<Full<Bytes>> {
    sign::sign(&call.ready().unwrap(), UPSTREAM, now).unwrap()
}
