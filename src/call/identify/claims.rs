//! The fields that a call states about itself, in both signature versions, and its body. They are
//! parsed strictly here; `acs3.rs` and `rpc.rs` verify the signature.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::Method;

use super::acs3::Acs3;
use super::checked_head::{BodyType, CheckedHead};
use super::directory::Directory;
use super::names::{LIKE_ACS_HEADER, TWO_SCHEMES, is_acs_header, is_common, is_foreign};
use super::refusals::{bad, incomplete};
use super::rpc::Rpc;
use super::signature_fields::{SignatureFields, VERSION, WINDOW};
use crate::acs::decode::Params;
use crate::acs::{encode, json, time};
use crate::error::{Kind, Refusal};
use crate::primitives::id::{AccessKeyId, ActionName};

/// How old a relayed call may be when it is sent. Flowgate cannot renew its timestamp, so this is
/// one minute less than the window.
const RELAYED_WINDOW: Duration = Duration::from_secs(14 * 60);
const MAX_NONCE: usize = 256;
/// Largest rebuilt query in bytes: with the path it must fit an HTTP target (64 KiB).
const MAX_QUERY: usize = u16::MAX as usize - "/?".len() - 1;
/// The same in version 1, which adds the parameters of the signature.
const MAX_QUERY_V1: usize = 56 * 1024;

/// The fields that a call states about itself.
pub(super) struct RequestClaims {
    pub(super) key: AccessKeyId,
    pub(super) method: Method,
    pub(super) action: ActionName,
    pub(super) nonce: String,
    pub(super) stamp: SystemTime,
    pub(super) params: Params,
    pub(super) body: BodyType,
    pub(super) proof: Proof,
}

/// The signature, by version.
pub(super) enum Proof {
    V1(Rpc),
    V3(Acs3),
}

fn malformed_stamp() -> Refusal {
    Refusal::new(
        Kind::TimestampFormat,
        "Specified time stamp or date value is not well formatted: it is not of the form \
         2026-11-24T02:54:06Z, in UTC.",
    )
}

// === impl RequestClaims ===

impl RequestClaims {
    /// Checks the form of each field. `params` stays empty: `fields` borrows the parameters of the
    /// head, so the caller moves them in later.
    pub(super) fn new(
        fields: SignatureFields<'_>,
        head: &CheckedHead<'_>,
        proof: Proof,
    ) -> Result<Self, Refusal> {
        let is_action = (1..=64).contains(&fields.action.len())
            && fields.action.bytes().all(|b| b.is_ascii_alphanumeric());
        if fields.action.is_empty() {
            return Err(bad("the mandatory Action is missing"));
        }
        if !is_action {
            return Err(bad("the action is not 1 to 64 ASCII letters and digits"));
        }
        if fields.version != VERSION {
            return Err(bad(format!("the API version is not {VERSION}")));
        }
        let is_nonce = (1..=MAX_NONCE).contains(&fields.nonce.len())
            && fields.nonce.bytes().all(|b| b.is_ascii_graphic());
        if !is_nonce {
            return Err(incomplete(
                "the signature nonce is not 1 to 256 visible ASCII characters",
            ));
        }
        let stamp = time::parse(fields.stamp).ok_or_else(malformed_stamp)?;
        Ok(Self {
            key: AccessKeyId::new(fields.key),
            method: head.parts.method.clone(),
            action: ActionName::new(fields.action),
            nonce: fields.nonce.to_owned(),
            stamp,
            params: Params::default(),
            body: head.body,
            proof,
        })
    }

    /// Checks the spelling of the action and the age of the timestamp.
    pub(super) fn check(&self, directory: &Directory, now: SystemTime) -> Result<(), Refusal> {
        if directory.is_misspelt(self.action.as_str()) {
            return Err(bad(
                "the name of the action is spelt in another case than Alibaba's",
            ));
        }
        let (off, side) = match now.duration_since(self.stamp) {
            Ok(off) => (off, "behind"),
            Err(error) => (error.duration(), "ahead of"),
        };
        if off > WINDOW {
            let seconds = off.as_secs();
            return Err(Refusal::new(
                Kind::TimestampExpired,
                format!(
                    "Specified time stamp or date value is expired: it is {seconds} seconds {side} \
                     Flowgate's clock, and at most 15 minutes are accepted. Correct the clock \
                     that is wrong: the caller's, or that of Flowgate's host."
                ),
            ));
        }
        Ok(())
    }

    /// How long the timestamp is still recent enough to be relayed.
    pub(super) fn fresh_for(&self, now: SystemTime) -> Duration {
        (self.stamp + RELAYED_WINDOW)
            .duration_since(now)
            .unwrap_or_default()
    }

    /// Checks the body and reads a form into the parameters. Returns a JSON body.
    pub(super) fn read_body(&mut self, body: &Bytes) -> Result<Option<Bytes>, Refusal> {
        if let Proof::V3(proof) = &self.proof {
            proof.check_body(body)?;
        }
        if body.is_empty() {
            return Ok(None);
        }
        if self.method == Method::GET {
            return Err(bad("a GET request must not have a body"));
        }
        match (self.body, &self.proof) {
            (BodyType::Form, _) => self.read_form(body).map(|()| None),
            (BodyType::Read, _) => Ok(None),
            (BodyType::Json, Proof::V3(_)) => match json::check(body) {
                Ok(()) => Ok(Some(body.clone())),
                Err(error) => Err(bad(error)),
            },
            (_, Proof::V1(_)) => Err(bad(
                "the body is not a form of type application/x-www-form-urlencoded in UTF-8, and \
                 signature version 1 covers only such forms",
            )),
            (_, Proof::V3(_)) => Err(bad("the body is neither a form nor JSON in UTF-8")),
        }
    }

    fn read_form(&mut self, body: &[u8]) -> Result<(), Refusal> {
        self.params.add_form(body).map_err(bad)?;
        if self.params.form().any(|(name, _)| is_common(name)) {
            match &mut self.proof {
                // The query has what identifies the caller, so these are optional ones such as
                // `Format`.
                Proof::V1(proof) => *proof = Rpc::new(&self.params)?,
                Proof::V3(_) => return Err(bad(TWO_SCHEMES)),
            }
        }
        if self.params.form().any(|(name, _)| is_acs_header(name)) {
            return Err(bad(LIKE_ACS_HEADER));
        }
        Ok(())
    }

    /// Drops the parameters of the signature, which Flowgate writes itself, and those that state
    /// properties of another caller.
    pub(super) fn keep_own_params(&mut self) -> Result<(), Refusal> {
        self.params
            .retain(|name| !is_common(name) && !is_foreign(name));
        // An upper bound that is cheap to compute: an encoded byte takes at most three.
        let most: usize = self
            .params
            .query()
            .map(|(name, value)| 3 * (name.len() + value.len()) + 2)
            .sum();
        let (max, shown) = match &self.proof {
            Proof::V1(_) => (MAX_QUERY_V1, "56 KiB"),
            Proof::V3(_) => (MAX_QUERY, "64 KiB"),
        };
        if most <= max || encode::pairs(self.params.query()).len() <= max {
            return Ok(());
        }
        Err(Refusal::new(
            Kind::TooLarge,
            format!(
                "The query is longer than {shown} after encoding. Send long parameters in the \
                 body, or sign with version 3."
            ),
        ))
    }
}
