//! Identifies and verifies the caller, in two steps, so that the body is read only for a valid
//! head: [`head`] checks the head, and [`Claim::prove`] checks the rest with the body and takes the
//! nonce last. The result is a [`Caller`]; only this module creates one. `identify/own_call.rs` makes
//! those of the calls that Flowgate makes itself.
//!
//! A version 1 call may have its signature in its form. Then the head names no key, and [`form`]
//! takes the place of [`head`] after the body was read within the bounds of an unverified caller.
//!
//! The call of a managed key is rebuilt from the parts that its signature covers, and every
//! ambiguous request is refused. The call of a relayed key is forwarded byte for byte. A managed
//! key is never relayed. `classify` checks permissions.

mod acs3;
mod caller;
mod checked_head;
mod claims;
mod directory;
mod key_prefixes;
mod known_headers;
mod names;
mod nonces;
mod own_call;
mod refusals;
mod relay;
mod relayed_request;
mod response_format;
mod rpc;
mod signature_fields;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use hyper::Method;
use hyper::http::request::Parts;

use self::acs3::SignedHead;
use self::caller::Principal;
pub(crate) use self::caller::{Caller, ReadyCall, Relayed, Scheme, Sendable, Verified};
use self::checked_head::CheckedHead;
use self::claims::{Proof, RequestClaims};
pub(crate) use self::directory::Directory;
use self::directory::Owner;
use self::known_headers::Known;
pub(crate) use self::nonces::{Nonce, Nonces, used};
use self::nonces::{NonceScope, NonceUse};
pub(crate) use self::own_call::OwnCall;
pub(crate) use self::refusals::{bad, one};
use self::refusals::{incomplete, wrong_signature};
pub(crate) use self::relayed_request::RelayedRequest;
pub(crate) use self::response_format::wants_xml;
pub(crate) use self::signature_fields::VERSION;
use crate::acs::v3::Authorization;
use crate::config::UpstreamIndex;
use crate::error::{ClaimedIdentity, Refusal};
use crate::primitives::id::{AccountId, ClientId};
use crate::primitives::secret::never_shown;

/// Largest body of a version 1 call in bytes. Its signature can be verified only with the body.
const MAX_UNPROVEN_BODY: usize = 64 * 1024;

/// A call whose head is valid. The signature of a managed version 3 call is already verified.
pub(crate) struct Claim {
    claims: RequestClaims,
    signing_mode: SigningMode,
}

/// Which party signs the request to CAMS.
enum SigningMode {
    /// Flowgate.
    Managed(Arc<Principal>),
    /// The caller.
    Relayed {
        account: AccountId,
        is_known: bool,
        upstream: UpstreamIndex,
        relayed_request: RelayedRequest,
    },
}

/// Checks everything that can be checked before the body is read. `None` if the signature is in the
/// form, so that [`form`] must check the head again with the body.
pub(crate) fn head(
    parts: &Parts,
    directory: &Directory,
    now: SystemTime,
) -> Result<Option<Claim>, Refusal> {
    let head = checked_head::read(parts, directory)?;
    if rpc::is_in_form(&head) {
        return Ok(None);
    }
    claim(head, directory, now).map(Some)
}

/// Checks the head of a call whose signature is in its form. `body` is that form.
pub(crate) fn form(
    parts: &Parts,
    body: &[u8],
    directory: &Directory,
    now: SystemTime,
) -> Result<Claim, Refusal> {
    let mut head = checked_head::read(parts, directory)?;
    head.add_form(body)?;
    claim(head, directory, now)
}

/// Largest body in bytes that may be read before the signature can be verified. `max_body` is the
/// limit of the listener.
pub(crate) fn max_unproven_body(max_body: usize) -> usize {
    max_body.min(MAX_UNPROVEN_BODY)
}

fn claim(
    mut head: CheckedHead<'_>,
    directory: &Directory,
    now: SystemTime,
) -> Result<Claim, Refusal> {
    let signed = authorization(&head)?;
    let (fields, proof, signed) = match &signed {
        Some(signed) => {
            let (fields, proof, signed) = acs3::read(&head, signed)?;
            (fields, Proof::V3(proof), Some(signed))
        }
        None => {
            let (fields, proof) = rpc::read(&head)?;
            (fields, Proof::V1(proof), None)
        }
    };
    let mut claims = RequestClaims::new(fields, &head, proof)?;
    claims.params = std::mem::take(&mut head.params);
    let mut claimed_identity = ClaimedIdentity {
        key: claims.key.clone(),
        account: None,
    };
    let owner = directory
        .owner(&claims.key)
        .map_err(|refusal| refusal.of(claimed_identity.clone()))?;
    claimed_identity.account = owner.known_account().cloned();
    claims
        .check(directory, now)
        .and_then(|()| Claim::new(claims, owner, &head, signed, directory))
        .map_err(|refusal| refusal.of(claimed_identity))
}

never_shown!(
    Authorization<'_>,
    Caller,
    Claim,
    ReadyCall<'_>,
    RelayedRequest,
    Relayed,
    RequestClaims,
    Sendable,
    SignedHead<'_>,
    Verified
);

/// The `Authorization` of a version 3 call; `None` for a call with a version 1 signature.
fn authorization<'a>(head: &CheckedHead<'a>) -> Result<Option<Authorization<'a>>, Refusal> {
    if let Some(value) = head.headers.one(Known::Authorization)? {
        let value = value
            .to_str()
            .map_err(|_| incomplete("the Authorization header is not ASCII"))?;
        return Authorization::parse(value).map(Some).map_err(incomplete);
    }
    let is_version_1 = ["AccessKeyId", "Signature"]
        .iter()
        .any(|name| head.params.get(name).is_some());
    if is_version_1 {
        // Version 1 does not cover headers, so no token in a header is part of the call.
        return Ok(None);
    }
    let headers = &head.parts.headers;
    let is_bearer = headers.contains_key("x-acs-bearer-token")
        || headers.contains_key("x-acs-zero-trust-idtoken")
        || head.params.get("BearerToken").is_some();
    if is_bearer {
        return Err(refusals::bearer());
    }
    Err(incomplete(
        "the call is not signed, it has neither an Authorization header nor an AccessKeyId in the \
         query or in an application/x-www-form-urlencoded form",
    ))
}

// === impl Claim ===

impl Claim {
    fn new(
        claims: RequestClaims,
        owner: Owner,
        head: &CheckedHead<'_>,
        signed: Option<SignedHead<'_>>,
        directory: &Directory,
    ) -> Result<Self, Refusal> {
        let signing_mode = match owner {
            Owner::Managed(principal) => SigningMode::Managed(principal),
            Owner::Relayed {
                account,
                is_known,
                upstream,
            } => SigningMode::Relayed {
                account,
                is_known,
                upstream,
                relayed_request: relay::relayed_request(
                    head,
                    &claims.params,
                    signed.as_ref().map(|signed| signed.authorization),
                    directory,
                    upstream,
                )?,
            },
        };
        let claim = Self {
            claims,
            signing_mode,
        };
        claim.check_head(head, signed, directory)?;
        Ok(claim)
    }

    /// The identity that the caller claims.
    pub(crate) fn claimed_identity(&self) -> ClaimedIdentity {
        let account = match &self.signing_mode {
            SigningMode::Managed(principal) => Some(principal.account.id.clone()),
            SigningMode::Relayed {
                account, is_known, ..
            } => is_known.then(|| account.clone()),
        };
        ClaimedIdentity {
            key: self.claims.key.clone(),
            account,
        }
    }

    /// The nonce in the form that replicas share.
    pub(crate) fn nonce(&self) -> Nonce {
        Nonce::new(&self.claims.key, &self.claims.nonce, self.claims.stamp)
    }

    /// Checks that the nonce is not known yet, without taking it, so that no body is read for a
    /// replay.
    pub(crate) fn check_nonce(&self, nonces: &Nonces) -> Result<(), Refusal> {
        nonces.check(&self.nonce_use())
    }

    fn nonce_use(&self) -> NonceUse<'_> {
        let scope = match &self.signing_mode {
            SigningMode::Managed(_) => NonceScope::Key(self.claims.key.clone()),
            SigningMode::Relayed {
                account,
                is_known: true,
                ..
            } => NonceScope::Relayed(account.clone()),
            SigningMode::Relayed {
                is_known: false, ..
            } => NonceScope::Unknown,
        };
        NonceUse {
            scope,
            key: &self.claims.key,
            nonce: &self.claims.nonce,
            stamp: self.claims.stamp,
        }
    }

    /// The account and client whose byte budget the body is charged to; `None` if the signature is
    /// not verified yet.
    pub(crate) fn budget_owner(&self) -> Option<(AccountId, ClientId)> {
        let SigningMode::Managed(principal) = &self.signing_mode else {
            return None;
        };
        self.is_verified()
            .then(|| (principal.account.id.clone(), principal.client_id.clone()))
    }

    /// Whether the signature was verified with the head alone.
    pub(crate) fn is_verified(&self) -> bool {
        matches!(
            (&self.signing_mode, &self.claims.proof),
            (SigningMode::Managed(_), Proof::V3(_))
        )
    }

    /// Largest body in bytes that may be read. `max_body` is the limit of the listener.
    pub(crate) fn max_body(&self, max_body: usize) -> usize {
        match (&self.claims.method, &self.claims.proof) {
            (&Method::GET, _) => 0,
            (_, Proof::V1(_)) => max_unproven_body(max_body),
            (_, Proof::V3(_)) => max_body,
        }
    }

    /// Checks the rest with the body, then takes the nonce. A refused call does not use up its
    /// nonce.
    pub(crate) fn prove(
        mut self,
        body: Bytes,
        nonces: &Nonces,
        now: SystemTime,
    ) -> Result<Caller, Refusal> {
        let json = self.claims.read_body(&body)?;
        let claims = &mut self.claims;
        match &self.signing_mode {
            SigningMode::Relayed { .. } => relay::check_params(claims.params.form())?,
            SigningMode::Managed(principal) => {
                if let Proof::V1(proof) = &claims.proof {
                    proof.verify(&principal.secrets, claims.method.as_str(), &claims.params)?;
                }
            }
        }
        claims.keep_own_params()?;
        nonces.take(&self.nonce_use(), now)?;
        let Self {
            claims,
            signing_mode,
        } = self;
        Ok(match signing_mode {
            SigningMode::Managed(principal) => {
                Caller::Verified(Box::new(verified(claims, principal, json)))
            }
            SigningMode::Relayed {
                account,
                is_known,
                upstream,
                relayed_request,
            } => Caller::Relayed(Relayed {
                account,
                is_known,
                upstream,
                fresh_for: claims.fresh_for(now),
                action: claims.action,
                params: claims.params,
                relayed_request: relayed_request.with(body),
            }),
        })
    }

    /// Verifies the head of a managed caller.
    fn check_head(
        &self,
        head: &CheckedHead<'_>,
        signed: Option<SignedHead<'_>>,
        directory: &Directory,
    ) -> Result<(), Refusal> {
        let SigningMode::Managed(principal) = &self.signing_mode else {
            return Ok(());
        };
        match (&self.claims.proof, signed) {
            (Proof::V3(proof), Some(signed)) => {
                proof.verify(&principal.secrets, head, &self.claims.params, signed)?;
                directory.check_host(head.host, principal.account.upstream)
            }
            (Proof::V3(_), None) => Err(wrong_signature()),
            (Proof::V1(proof), _) => {
                directory.check_unsigned_host(head.host, principal.account.upstream)?;
                proof.check_method()
            }
        }
    }
}

fn verified(claims: RequestClaims, principal: Arc<Principal>, json: Option<Bytes>) -> Verified {
    let (scheme, format) = match claims.proof {
        Proof::V1(proof) => (Scheme::V1, proof.into_format()),
        Proof::V3(_) => (Scheme::V3, None),
    };
    let client = principal.client_id.clone();
    Verified {
        principal,
        client,
        scheme,
        method: claims.method,
        action: claims.action,
        params: claims.params,
        json,
        format,
    }
}
