//! What does a call say of itself? The same few things in both signature versions, read strictly, and the body that
//! belongs to them. Whether it is true is proven by `acs3.rs` and `rpc.rs`.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::Method;

use super::acs3::Acs3;
use super::directory::Directory;
use super::names::{LIKE_ACS_HEADER, is_acs_header, is_common, is_foreign};
use super::refusals::{bad, incomplete};
use super::rpc::Rpc;
use super::shape::{BodyType, Shape};
use super::words::{VERSION, WINDOW, Words};
use crate::acs::decode::Params;
use crate::acs::{encode, json, time};
use crate::error::{Kind, Refusal};
use crate::primitives::id::{AccessKeyId, ActionName};

/// How old a relayed call may be when it is sent, which Flowgate cannot stamp anew: a minute less than CAMS takes.
const RELAYED_WINDOW: Duration = Duration::from_secs(14 * 60);
const MAX_NONCE: usize = 256;
/// The rebuilt query must leave room for the signature's parameters in what an HTTP target may hold (64 KiB).
const MAX_QUERY: usize = 56 * 1024;

/// A call's own words.
pub(super) struct Said {
    pub(super) key: AccessKeyId,
    pub(super) method: Method,
    pub(super) action: ActionName,
    pub(super) nonce: String,
    pub(super) stamp: SystemTime,
    pub(super) params: Params,
    pub(super) body: BodyType,
    pub(super) proof: Proof,
}

/// What the signature is and covers.
pub(super) enum Proof {
    V1(Rpc),
    V3(Acs3),
}

// === impl Said ===

impl Said {
    /// Checks each word's form. The parameters are moved in when nobody reads the words any more.
    pub(super) fn new(words: Words<'_>, shape: &Shape<'_>, proof: Proof) -> Result<Self, Refusal> {
        let is_action = (1..=64).contains(&words.action.len())
            && words.action.bytes().all(|b| b.is_ascii_alphanumeric());
        if words.action.is_empty() {
            return Err(bad("the mandatory Action is missing"));
        }
        if !is_action {
            return Err(bad("the action is not 1 to 64 letters and digits"));
        }
        if words.version != VERSION {
            return Err(bad(format!("the API version is not {VERSION}")));
        }
        let is_nonce = (1..=MAX_NONCE).contains(&words.nonce.len())
            && words.nonce.bytes().all(|b| b.is_ascii_graphic());
        if !is_nonce {
            return Err(incomplete(
                "the signature nonce is not 1 to 256 visible ASCII characters",
            ));
        }
        let stamp = time::parse(words.stamp)
            .ok_or_else(|| bad("the timestamp is not of the form 2026-11-24T02:54:06Z"))?;
        Ok(Self {
            key: AccessKeyId::new(words.key),
            method: shape.parts.method.clone(),
            action: ActionName::new(words.action),
            nonce: words.nonce.to_owned(),
            stamp,
            params: Params::default(),
            body: shape.body,
            proof,
        })
    }

    /// Whether the words fit the time and what is known of the API.
    pub(super) fn check(&self, directory: &Directory, now: SystemTime) -> Result<(), Refusal> {
        if directory.is_misspelt(self.action.as_str()) {
            return Err(bad("the action's name is spelt in another case"));
        }
        let off = now
            .duration_since(self.stamp)
            .unwrap_or_else(|error| error.duration());
        match off <= WINDOW {
            true => Ok(()),
            false => Err(Refusal::new(
                Kind::TimestampExpired,
                "Specified time stamp or date value is expired: it differs from Flowgate's clock by more than 15 minutes.",
            )),
        }
    }

    /// How long its stamp is still fresh enough to be relayed.
    pub(super) fn fresh_for(&self, now: SystemTime) -> Duration {
        (self.stamp + RELAYED_WINDOW)
            .duration_since(now)
            .unwrap_or_default()
    }

    /// Reads the body by what the head says of it; gives back a JSON body.
    pub(super) fn read_body(&mut self, body: &Bytes) -> Result<Option<Bytes>, Refusal> {
        if let Proof::V3(proof) = &self.proof {
            proof.check_body(body)?;
        }
        if body.is_empty() {
            return Ok(None);
        }
        if self.method == Method::GET {
            return Err(bad("a GET request has a body"));
        }
        match (self.body, &self.proof) {
            (BodyType::Form, _) => self.read_form(body).map(|()| None),
            (BodyType::Json, Proof::V3(_)) => match json::check(body) {
                Ok(()) => Ok(Some(body.clone())),
                Err(error) => Err(bad(error)),
            },
            (_, Proof::V1(_)) => Err(bad(
                "the body is not a form, and signature version 1 covers nothing else",
            )),
            (_, Proof::V3(_)) => Err(bad("the body is neither a form nor JSON in UTF-8")),
        }
    }

    fn read_form(&mut self, body: &[u8]) -> Result<(), Refusal> {
        self.params.add_form(body).map_err(bad)?;
        if self.params.form().any(|(name, _)| is_common(name)) {
            return Err(bad(
                "a parameter of signature version 1 stands in the form: it belongs into the query",
            ));
        }
        match self.params.form().any(|(name, _)| is_acs_header(name)) {
            true => Err(bad(LIKE_ACS_HEADER)),
            false => Ok(()),
        }
    }

    /// Drops the parameters that sign or speak for somebody else: Flowgate writes the former itself.
    pub(super) fn keep_own_params(&mut self) -> Result<(), Refusal> {
        self.params
            .retain(|name| !is_common(name) && !is_foreign(name));
        // An encoded byte takes three at most.
        let most: usize = self
            .params
            .query()
            .map(|(name, value)| 3 * (name.len() + value.len()) + 2)
            .sum();
        match most <= MAX_QUERY || encode::pairs(self.params.query()).len() <= MAX_QUERY {
            true => Ok(()),
            false => Err(Refusal::new(
                Kind::TooLarge,
                "the query is longer than 56 KiB once it is encoded",
            )),
        }
    }
}
