//! Who is asking, and is it really them? In two steps, because a body must not be read for anybody: [`head`] says all
//! that the head can say, [`Claim::prove`] the rest, and the nonce is taken last. What comes out is a [`Caller`], and
//! nobody else makes one.
//!
//! A managed caller is rebuilt from what its signature covers; whatever can be read in two ways is refused. A relayed
//! one keeps its bytes. A managed key never becomes a relayed one. What the caller may do is classify's question.

mod acs3;
mod caller;
mod directory;
mod names;
mod nonces;
mod passage;
mod refusals;
mod relay;
mod rpc;
mod said;
mod shape;
#[cfg(test)]
mod tests;
mod words;

use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use hyper::Method;
use hyper::header;
use hyper::http::request::Parts;

use self::caller::Principal;
pub(crate) use self::caller::{Caller, Relayed, Scheme, Sendable, Verified};
pub(crate) use self::directory::Directory;
use self::directory::Owner;
use self::nonces::{Holder, Use};
pub(crate) use self::nonces::{Nonce, Nonces, used};
pub(crate) use self::passage::Passage;
use self::refusals::{SUPPORTED, incomplete, wrong_signature};
pub(crate) use self::refusals::{bad, one};
use self::said::{Proof, Said};
use self::shape::Shape;
pub(crate) use self::words::VERSION;
use crate::acs::decode::Params;
use crate::acs::v3::Authorization;
use crate::error::{Claimant, Refusal};
use crate::primitives::id::{AccountId, ClientId};
use crate::primitives::secret::never_shown;

/// The most that is read for a version 1 caller, whose signature is known only with the body.
const MAX_UNPROVEN_BODY: usize = 64 * 1024;
/// A call whose head is in order. Of a managed version 3 caller the signature is already known to be right.
pub(crate) struct Claim {
    said: Said,
    way: Way,
}

/// Who signs for CAMS.
enum Way {
    /// Flowgate.
    Managed(Arc<Principal>),
    /// The caller.
    Relayed {
        account: AccountId,
        is_known: bool,
        passage: Passage,
    },
}

/// Says everything that can be said before the body is read.
pub(crate) fn head(
    parts: &Parts,
    directory: &Directory,
    now: SystemTime,
) -> Result<Claim, Refusal> {
    let mut shape = shape::read(parts, directory)?;
    let signed = authorization(&shape)?;
    let (words, proof) = match &signed {
        Some(signed) => {
            let (words, proof) = acs3::read(&shape, signed)?;
            (words, Proof::V3(proof))
        }
        None => {
            let (words, proof) = rpc::read(&shape)?;
            (words, Proof::V1(proof))
        }
    };
    let mut said = Said::new(words, &shape, proof)?;
    said.params = std::mem::take(&mut shape.params);
    let mut claimant = Claimant {
        key: said.key.clone(),
        account: None,
    };
    let owner = directory
        .owner(&said.key)
        .map_err(|refusal| refusal.of(claimant.clone()))?;
    claimant.account = owner.known_account().cloned();
    let claim = || {
        said.check(directory, now)?;
        let way = match owner {
            Owner::Managed(principal) => Way::Managed(principal),
            Owner::Relayed { account, is_known } => Way::Relayed {
                account,
                is_known,
                passage: relay::passage(&shape, &said.params, signed.as_ref(), directory)?,
            },
        };
        let claim = Claim { said, way };
        claim.check_head(&shape, signed.as_ref(), directory)?;
        Ok(claim)
    };
    claim().map_err(|refusal: Refusal| refusal.of(claimant))
}

never_shown!(
    Authorization<'_>,
    Caller,
    Claim,
    Passage,
    Relayed,
    Said,
    Sendable,
    Verified
);

/// Whether errors are to be XML: only for signature version 1 with `Format=XML`.
pub(crate) fn wants_xml(parts: &Parts) -> bool {
    let query = parts.uri.query().unwrap_or_default();
    // Nobody escapes letters, and nearly nobody asks: the whole query is read for none but those.
    if !query.contains("Format") {
        return false;
    }
    let params = Params::from_query(query).unwrap_or_default();
    let is_xml = params
        .get("Format")
        .is_some_and(|format| format.eq_ignore_ascii_case("xml"));
    is_xml && !parts.headers.contains_key(header::AUTHORIZATION)
}

/// The `Authorization` of a version 3 call; `None` if the call is signed in version 1.
fn authorization<'a>(shape: &Shape<'a>) -> Result<Option<Authorization<'a>>, Refusal> {
    let headers = &shape.parts.headers;
    if let Some(value) = one(headers, &header::AUTHORIZATION)? {
        let value = value
            .to_str()
            .map_err(|_| incomplete("the Authorization header is not ASCII"))?;
        return Authorization::parse(value).map(Some).map_err(incomplete);
    }
    let is_bearer = headers.contains_key("x-acs-bearer-token")
        || headers.contains_key("x-acs-zero-trust-idtoken")
        || shape.params.get("BearerToken").is_some();
    if is_bearer {
        return Err(incomplete(format!(
            "bearer and identity tokens cannot be passed on; {SUPPORTED}"
        )));
    }
    match ["AccessKeyId", "Signature"]
        .iter()
        .any(|name| shape.params.get(name).is_some())
    {
        true => Ok(None),
        false => Err(incomplete(
            "the call is not signed: neither an Authorization header nor an AccessKeyId in the query",
        )),
    }
}

// === impl Claim ===

impl Claim {
    /// Who the caller says that it is.
    pub(crate) fn claimant(&self) -> Claimant {
        let account = match &self.way {
            Way::Managed(principal) => Some(principal.account.id.clone()),
            Way::Relayed {
                account, is_known, ..
            } => is_known.then(|| account.clone()),
        };
        Claimant {
            key: self.said.key.clone(),
            account,
        }
    }

    /// The nonce, for those who share it.
    pub(crate) fn nonce(&self) -> Nonce {
        Nonce::new(&self.said.key, &self.said.nonce, self.said.stamp)
    }

    /// Whether the nonce is new as far as is known before the body is read: nobody's body is kept for a replay.
    pub(crate) fn check_nonce(&self, nonces: &Nonces) -> Result<(), Refusal> {
        nonces.check(&self.usage())
    }

    fn usage(&self) -> Use<'_> {
        let holder = match &self.way {
            Way::Managed(_) => Holder::Key(self.said.key.clone()),
            Way::Relayed {
                account,
                is_known: true,
                ..
            } => Holder::Relayed(account.clone()),
            Way::Relayed {
                is_known: false, ..
            } => Holder::Unknown,
        };
        Use {
            holder,
            key: &self.said.key,
            nonce: &self.said.nonce,
            stamp: self.said.stamp,
        }
    }

    /// Whose part of the memory for bodies its body takes, if its signature is known to be right before that is read.
    pub(crate) fn payer(&self) -> Option<(AccountId, ClientId)> {
        let Way::Managed(principal) = &self.way else {
            return None;
        };
        self.is_verified()
            .then(|| (principal.account.id.clone(), principal.client_id()))
    }

    /// Whether the signature is known to be right before the body is read.
    pub(crate) fn is_verified(&self) -> bool {
        matches!(
            (&self.way, &self.said.proof),
            (Way::Managed(_), Proof::V3(_))
        )
    }

    /// The most bytes of a body that may be read, where the listener's own bound is `max_body`.
    pub(crate) fn max_body(&self, max_body: usize) -> usize {
        match (&self.said.method, &self.said.proof) {
            (&Method::GET, _) => 0,
            (_, Proof::V1(_)) => max_body.min(MAX_UNPROVEN_BODY),
            (_, Proof::V3(_)) => max_body,
        }
    }

    /// Proves the rest with the body, and takes the nonce as the last thing.
    pub(crate) fn prove(
        mut self,
        body: Bytes,
        nonces: &Nonces,
        now: SystemTime,
    ) -> Result<Caller, Refusal> {
        let json = self.said.read_body(&body)?;
        let (said, way) = (&mut self.said, &self.way);
        if let Way::Relayed { .. } = way {
            relay::check_params(said.params.form())?;
        }
        if let (Proof::V1(proof), Way::Managed(principal)) = (&said.proof, way) {
            proof.verify(&principal.secrets, said.method.as_str(), &said.params)?;
        }
        said.keep_own_params()?;
        nonces.take(&self.usage(), now)?;
        let Self { said, way } = self;
        Ok(match way {
            Way::Managed(principal) => Caller::Verified(Box::new(verified(said, principal, json))),
            Way::Relayed {
                account,
                is_known,
                passage,
            } => Caller::Relayed(Relayed {
                account,
                is_known,
                fresh_for: said.fresh_for(now),
                action: said.action,
                params: said.params,
                passage: passage.with(body),
            }),
        })
    }

    /// What a managed caller's head must satisfy.
    fn check_head(
        &self,
        shape: &Shape<'_>,
        signed: Option<&Authorization<'_>>,
        directory: &Directory,
    ) -> Result<(), Refusal> {
        let Way::Managed(principal) = &self.way else {
            return Ok(());
        };
        match (&self.said.proof, signed) {
            (Proof::V3(proof), Some(signed)) => {
                proof.verify(&principal.secrets, (shape, &self.said.params), signed)?;
                directory.check_host(shape.host)
            }
            (Proof::V3(_), None) => Err(wrong_signature()),
            (Proof::V1(proof), _) => proof.check_method(),
        }
    }
}

fn verified(said: Said, principal: Arc<Principal>, json: Option<Bytes>) -> Verified {
    let (scheme, format) = match said.proof {
        Proof::V1(proof) => (Scheme::V1, proof.into_format()),
        Proof::V3(_) => (Scheme::V3, None),
    };
    let client = principal.client_id();
    Verified {
        principal,
        client,
        scheme,
        method: said.method,
        action: said.action,
        params: said.params,
        json,
        format,
    }
}
