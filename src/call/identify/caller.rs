//! What was identified: a caller whose every word is proven, or one that is passed on as it came. Only identify makes
//! them, and what sign and classify may see of them is what has an accessor here. Once it is known what is called, only
//! what will be sent is kept.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;

use super::passage::Passage;
use crate::acs::decode::Params;
use crate::config::{self, Credentials};
use crate::primitives::id::{AccessKeyId, AccountId, ActionName, ClientId};
use crate::primitives::secret::Secret;

/// Alibaba's two signatures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// RPC signature, version 1.0: all in the query.
    V1,
    /// `ACS3-…`: all in the headers.
    V3,
}

/// Whoever calls.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives until the call is classified, and a box would be one more piece"
)]
pub(crate) enum Caller {
    /// Its signature is right; Flowgate signs for it.
    Verified(Box<Verified>),
    /// Flowgate has no secret of it; its own signature goes on.
    Relayed(Relayed),
}

/// What a call is sent from, and all that is kept of its caller while it waits.
pub(crate) enum Sendable {
    /// Flowgate signs it.
    Verified(Box<Verified>),
    /// It goes as it came.
    Relayed(Passage),
}

/// An account that Flowgate signs for.
pub(super) struct Managed {
    pub(super) id: AccountId,
    /// What it signs with, and before that, newest first, what it has signed with of late: applications that read the same
    /// temporary keys are not all as quick.
    pub(super) sessions: Vec<Arc<Credentials>>,
}

/// Whoever may sign for a managed account: the account itself, or a client.
pub(super) struct Principal {
    pub(super) key: AccessKeyId,
    /// Any of them will do.
    pub(super) secrets: Vec<Secret>,
    pub(super) account: Arc<Managed>,
    pub(super) client: Option<Arc<config::Client>>,
}

/// A call as its verified signature states it. What the signature did not cover is not in here, and of the caller's
/// credentials nothing is.
pub(crate) struct Verified {
    pub(super) principal: Arc<Principal>,
    pub(super) client: ClientId,
    pub(super) scheme: Scheme,
    pub(super) method: Method,
    pub(super) action: ActionName,
    pub(super) params: Params,
    pub(super) json: Option<Bytes>,
    pub(super) format: Option<String>,
}

/// A call that goes on under its own signature, which only CAMS can check.
pub(crate) struct Relayed {
    pub(super) account: AccountId,
    pub(super) is_known: bool,
    pub(super) fresh_for: Duration,
    pub(super) action: ActionName,
    pub(super) params: Params,
    pub(super) passage: Passage,
}

/// A JSON body, as far as it says how a flow is to be called.
#[derive(Deserialize)]
struct Named {
    #[serde(rename = "FlowName")]
    flow_name: String,
}

// === impl Principal ===

impl Principal {
    /// An account's own key is masked: a client's name stands in logs and on operators' pages.
    pub(super) fn client_id(&self) -> ClientId {
        self.client.as_ref().map_or_else(
            || ClientId::new(self.key.masked()),
            |client| client.id.clone(),
        )
    }
}

// === impl Managed ===

impl Managed {
    /// What it signs with.
    pub(super) fn credentials(&self) -> &Arc<Credentials> {
        self.sessions
            .first()
            .expect("a managed account is made with credentials")
    }
}

// === impl Caller ===

impl Caller {
    /// The account whose quota the call spends.
    pub(crate) fn account(&self) -> &AccountId {
        match self {
            Self::Verified(call) => &call.principal.account.id,
            Self::Relayed(call) => &call.account,
        }
    }

    /// Whether the configuration names the account.
    pub(crate) fn is_known(&self) -> bool {
        match self {
            Self::Verified(_) => true,
            Self::Relayed(call) => call.is_known,
        }
    }

    /// Who calls; all callers of an account that cannot be verified are one.
    pub(crate) fn client(&self) -> ClientId {
        match self {
            Self::Verified(call) => call.client.clone(),
            Self::Relayed(_) => ClientId::unverified(),
        }
    }

    /// What the configuration says of the client; nothing of an account's own key, or of who cannot be verified.
    pub(crate) fn settings(&self) -> Option<&config::Client> {
        match self {
            Self::Verified(call) => call.settings(),
            Self::Relayed(_) => None,
        }
    }

    /// What is called.
    pub(crate) fn action(&self) -> &ActionName {
        match self {
            Self::Verified(call) => &call.action,
            Self::Relayed(call) => &call.action,
        }
    }

    /// The parameters of query and form, without those that only sign.
    pub(crate) fn params(&self) -> &Params {
        match self {
            Self::Verified(call) => &call.params,
            Self::Relayed(call) => &call.params,
        }
    }

    /// How the flow is to be called that the call makes or is about, if it says so in a place that is known.
    pub(crate) fn flow_name(&self) -> Option<Cow<'_, str>> {
        if let Some(name) = self.params().get("FlowName") {
            return Some(name.into());
        }
        if self.action().as_str() != "CreateFlow" {
            return None;
        }
        let body = match self {
            Self::Verified(call) => call.json()?,
            Self::Relayed(call) => call.passage.body(),
        };
        serde_json::from_slice(body)
            .ok()
            .map(|Named { flow_name }| flow_name.into())
    }

    /// How many bytes wait with the call: its body, or what its parameters take.
    pub(crate) fn bytes(&self) -> usize {
        let params = |params: &Params| {
            params
                .iter()
                .map(|(name, value)| name.len() + value.len())
                .sum::<usize>()
        };
        match self {
            Self::Verified(call) => params(&call.params) + call.json.as_ref().map_or(0, Bytes::len),
            Self::Relayed(call) => call.passage.target().as_str().len() + call.passage.body().len(),
        }
    }

    /// What the call is sent from. A relayed one's parameters are in what goes as it came.
    pub(crate) fn into_sendable(self) -> Sendable {
        match self {
            Self::Verified(call) => Sendable::Verified(call),
            Self::Relayed(call) => Sendable::Relayed(call.passage),
        }
    }
}

// === impl Verified ===

impl Verified {
    /// What the configuration says of the client; nothing of an account's own key.
    pub(crate) fn settings(&self) -> Option<&config::Client> {
        self.principal.client.as_deref()
    }

    /// What Flowgate signs with.
    pub(crate) fn credentials(&self) -> &Credentials {
        self.principal.account.credentials()
    }

    /// The signature that the caller used, and that CAMS gets: the answer's shape depends on it.
    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// GET or POST.
    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// What is called.
    pub(crate) fn action(&self) -> &ActionName {
        &self.action
    }

    /// The call's parameters.
    pub(crate) fn params(&self) -> &Params {
        &self.params
    }

    /// A JSON body, which no form parameters stand beside.
    pub(crate) fn json(&self) -> Option<&Bytes> {
        self.json.as_ref()
    }

    /// `Format` of signature version 1, as the caller wrote it.
    pub(crate) fn format(&self) -> Option<&str> {
        self.format.as_deref()
    }
}

// === impl Relayed ===

impl Relayed {
    /// How long from its arrival it may wait: later, CAMS would refuse its stamp.
    pub(crate) fn fresh_for(&self) -> Duration {
        self.fresh_for
    }
}
