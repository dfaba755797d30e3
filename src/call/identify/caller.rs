//! The result of identify: a verified caller, or a relayed one. Only identify creates them. Sign
//! and classify see only what has an accessor here. After classify, only the parts that will be
//! sent are kept.

use std::borrow::Cow;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use hyper::Method;
use serde::Deserialize;

use super::relayed_request::RelayedRequest;
use crate::acs::decode::Params;
use crate::config::{self, Credentials, FlowNames, UpstreamIndex};
use crate::credentials::keeper::Keeper;
use crate::primitives::id::{AccessKeyId, AccountId, ActionName, ClientId};
use crate::primitives::secret::Secret;

/// Alibaba's two signature versions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Scheme {
    /// RPC signature, version 1.0, with all fields in parameters of query or form.
    V1,
    /// `ACS3-…`, with all fields in headers.
    V3,
}

/// An identified caller and its call.
#[expect(
    clippy::large_enum_variant,
    reason = "it lives only until the call is classified; a box would cost an allocation"
)]
pub(crate) enum Caller {
    /// The signature is verified; Flowgate signs the request to CAMS.
    Verified(Box<Verified>),
    /// Flowgate has no secret for the key; the caller's own signature is forwarded.
    Relayed(Relayed),
}

/// The parts of a call that are needed to send it, which is all that is kept while it is queued.
pub(crate) enum Sendable {
    /// Flowgate signs it.
    Verified(Box<Verified>),
    /// The request is forwarded unchanged.
    Relayed(RelayedRequest),
}

/// A call whose request to CAMS can be built now.
pub(crate) enum ReadyCall<'a> {
    /// Flowgate signs it with these credentials.
    Verified {
        call: &'a Verified,
        credentials: Arc<Credentials>,
    },
    /// The request is forwarded unchanged.
    Relayed(&'a RelayedRequest),
}

/// An account that Flowgate signs for.
pub(super) struct Managed {
    pub(super) id: AccountId,
    pub(super) upstream: UpstreamIndex,
    pub(super) credentials: SigningCredentials,
    pub(super) flow_names: FlowNames,
    /// Whether a CreateFlow without an idempotency key is a repetition of an equal one.
    pub(super) adopts_repeats: bool,
}

/// What an account's requests are signed with.
pub(super) enum SigningCredentials {
    /// The current credentials, then earlier ones, newest first. Applications that read the same
    /// temporary credentials may pick up new ones later than Flowgate.
    Loaded(Vec<Arc<Credentials>>),
    /// Flowgate obtains them itself. No caller knows them.
    Kept(Arc<Keeper>),
}

/// The owner of a key of a managed account: the account itself, or a client.
pub(super) struct Principal {
    pub(super) key: AccessKeyId,
    /// The client's id in logs and on the operators' page. The key of an account is masked.
    pub(super) client_id: ClientId,
    /// A signature with any of them is valid.
    pub(super) secrets: Vec<Secret>,
    pub(super) account: Arc<Managed>,
    pub(super) client: Option<Arc<config::Client>>,
    /// When the key expires, if it is that of an earlier session and the time is known.
    pub(super) expires: Option<SystemTime>,
}

/// A verified call. It contains only what the signature covers, and nothing of the caller's
/// signature, nonce or time stamp.
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

/// A call that is forwarded with its own signature, which only CAMS can verify.
pub(crate) struct Relayed {
    pub(super) account: AccountId,
    pub(super) is_known: bool,
    pub(super) upstream: UpstreamIndex,
    pub(super) fresh_for: Duration,
    pub(super) action: ActionName,
    pub(super) params: Params,
    pub(super) relayed_request: RelayedRequest,
}

/// The name of a flow in a JSON body.
#[derive(Deserialize)]
struct FlowNameBody {
    #[serde(rename = "FlowName")]
    flow_name: String,
}

// === impl Principal ===

impl Principal {
    /// An account itself, by one of its keys.
    pub(super) fn of_account(
        key: AccessKeyId,
        secrets: Vec<Secret>,
        account: Arc<Managed>,
    ) -> Self {
        Self {
            client_id: ClientId::new(key.masked()),
            key,
            secrets,
            account,
            client: None,
            expires: None,
        }
    }

    /// A client of an account.
    pub(super) fn of_client(client: &config::Client, account: Arc<Managed>) -> Self {
        Self {
            key: AccessKeyId::new(client.id.as_str()),
            client_id: client.id.clone(),
            secrets: client.secrets.clone(),
            account,
            client: Some(Arc::new(client.clone())),
            expires: None,
        }
    }
}

// === impl SigningCredentials ===

impl SigningCredentials {
    /// The credentials to sign with now. `None` if there is no valid session.
    fn current(&self) -> Option<Arc<Credentials>> {
        match self {
            Self::Loaded(credentials) => credentials.first().cloned(),
            Self::Kept(keeper) => keeper.current(),
        }
    }

    /// The credentials that callers may sign with, the current ones first.
    pub(super) fn of_callers(&self) -> &[Arc<Credentials>] {
        match self {
            Self::Loaded(credentials) => credentials,
            Self::Kept(_) => &[],
        }
    }
}

// === impl Caller ===

impl Caller {
    /// The account whose quota the call uses.
    pub(crate) fn account(&self) -> &AccountId {
        match self {
            Self::Verified(call) => &call.principal.account.id,
            Self::Relayed(call) => &call.account,
        }
    }

    /// Whether the account is configured.
    pub(crate) fn is_known(&self) -> bool {
        match self {
            Self::Verified(_) => true,
            Self::Relayed(call) => call.is_known,
        }
    }

    /// The client. All unverified callers of an account count as one client.
    pub(crate) fn client(&self) -> ClientId {
        match self {
            Self::Verified(call) => call.client.clone(),
            Self::Relayed(_) => ClientId::unverified(),
        }
    }

    /// The client's entry in the configuration; `None` for the key of an account and for unverified
    /// callers.
    pub(crate) fn client_config(&self) -> Option<&config::Client> {
        match self {
            Self::Verified(call) => call.client_config(),
            Self::Relayed(_) => None,
        }
    }

    /// The upstream of its account, in the configuration with which it was identified.
    pub(crate) fn upstream(&self) -> UpstreamIndex {
        match self {
            Self::Verified(call) => call.principal.account.upstream,
            Self::Relayed(call) => call.upstream,
        }
    }

    /// The called action.
    pub(crate) fn action(&self) -> &ActionName {
        match self {
            Self::Verified(call) => &call.action,
            Self::Relayed(call) => &call.action,
        }
    }

    /// The parameters of query and form, without those of the signature.
    pub(crate) fn params(&self) -> &Params {
        match self {
            Self::Verified(call) => &call.params,
            Self::Relayed(call) => &call.params,
        }
    }

    /// Removes a parameter, which is then not sent to CAMS.
    pub(crate) fn remove_param(&mut self, name: &str) {
        if let Self::Verified(call) = self {
            call.params.retain(|other| other != name);
        }
    }

    /// The name of the flow: the parameter `FlowName`, or that field of a `CreateFlow` body in
    /// JSON.
    pub(crate) fn flow_name(&self) -> Option<Cow<'_, str>> {
        if let Some(name) = self.params().get("FlowName") {
            return Some(name.into());
        }
        if self.action().as_str() != "CreateFlow" {
            return None;
        }
        let body = match self {
            Self::Verified(call) => call.json()?,
            Self::Relayed(call) => call.relayed_request.body(),
        };
        serde_json::from_slice(body)
            .ok()
            .map(|FlowNameBody { flow_name }| flow_name.into())
    }

    /// Bytes that the call holds while it is queued.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Verified(call) => {
                let params: usize = call
                    .params
                    .iter()
                    .map(|(name, value)| name.len() + value.len())
                    .sum();
                params + call.json.as_ref().map_or(0, Bytes::len)
            }
            Self::Relayed(call) => {
                call.relayed_request.target().as_str().len() + call.relayed_request.body().len()
            }
        }
    }

    /// Keeps only what is needed to send the call.
    pub(crate) fn into_sendable(self) -> Sendable {
        match self {
            Self::Verified(call) => Sendable::Verified(call),
            Self::Relayed(call) => Sendable::Relayed(call.relayed_request),
        }
    }
}

// === impl Sendable ===

impl Sendable {
    /// The call with the credentials that are valid now. `None` if its account has none.
    pub(crate) fn ready(&self) -> Option<ReadyCall<'_>> {
        match self {
            Self::Verified(call) => Some(ReadyCall::Verified {
                call,
                credentials: call.principal.account.credentials.current()?,
            }),
            Self::Relayed(relayed) => Some(ReadyCall::Relayed(relayed)),
        }
    }

    /// What keeps the session that the call needs and that is not there now.
    pub(crate) fn missing_session(&self) -> Option<&Arc<Keeper>> {
        let Self::Verified(call) = self else {
            return None;
        };
        match &call.principal.account.credentials {
            SigningCredentials::Loaded(_) => None,
            SigningCredentials::Kept(keeper) => keeper.current().is_none().then_some(keeper),
        }
    }
}

// === impl ReadyCall ===

impl ReadyCall<'_> {
    /// The credentials that Flowgate signs with.
    pub(crate) fn into_credentials(self) -> Option<Arc<Credentials>> {
        match self {
            Self::Verified { credentials, .. } => Some(credentials),
            Self::Relayed(_) => None,
        }
    }
}

// === impl Verified ===

impl Verified {
    /// The client's entry in the configuration; `None` for the key of an account.
    pub(crate) fn client_config(&self) -> Option<&config::Client> {
        self.principal.client.as_deref()
    }

    /// What is known of the names of the account's flows.
    pub(crate) fn flow_names(&self) -> FlowNames {
        self.principal.account.flow_names
    }

    /// Whether a CreateFlow without an idempotency key is a repetition of an equal one.
    pub(crate) fn adopts_repeats(&self) -> bool {
        self.principal.account.adopts_repeats
    }

    /// The signature version of the caller, which is also used towards CAMS: the format of the
    /// answer depends on it.
    pub(crate) fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// GET or POST.
    pub(crate) fn method(&self) -> &Method {
        &self.method
    }

    /// The called action.
    pub(crate) fn action(&self) -> &ActionName {
        &self.action
    }

    /// The call's parameters.
    pub(crate) fn params(&self) -> &Params {
        &self.params
    }

    /// The JSON body; a call with one has no form parameters.
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
    /// How long it may be queued, from its arrival, before its timestamp is too old for CAMS.
    pub(crate) fn fresh_for(&self) -> Duration {
        self.fresh_for
    }
}
