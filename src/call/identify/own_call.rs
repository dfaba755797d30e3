//! Calls that Flowgate makes itself, to read what an earlier call has done.

use std::sync::Arc;

use hyper::Method;

use super::caller::{Caller, Principal, Scheme, Verified};
use super::directory::Directory;
use crate::acs::decode::Params;
use crate::acs::{flow_pages, flows};
use crate::primitives::id::{AccessKeyId, AccountId, ActionName, ClientId};

/// A call that Flowgate may make itself. Each only reads.
#[derive(Clone, Copy)]
pub(crate) enum OwnCall<'a> {
    /// ListFlow, the next page of a walk.
    ListFlow(&'a flow_pages::Walk),
    /// GetFlow, of one flow of a space.
    GetFlow { space: &'a str, id: &'a str },
}

// === impl OwnCall ===

impl OwnCall<'_> {
    fn action(self) -> &'static str {
        match self {
            Self::ListFlow(_) => "ListFlow",
            Self::GetFlow { .. } => "GetFlow",
        }
    }

    fn params(self) -> Vec<(String, String)> {
        match self {
            Self::ListFlow(walk) => walk.params(),
            Self::GetFlow { space, id } => flows::detail_params(space, id),
        }
    }
}

// === impl Directory ===

impl Directory {
    /// A call of Flowgate's own. `None`: Flowgate does not sign for the account.
    pub(crate) fn own_call(&self, account: &AccountId, call: OwnCall<'_>) -> Option<Caller> {
        let account = self.managed(account)?.clone();
        // No caller can have this key.
        let principal = Principal::of_account(AccessKeyId::new(""), Vec::new(), account);
        Some(Caller::Verified(Box::new(Verified {
            principal: Arc::new(principal),
            client: ClientId::own(),
            scheme: Scheme::V3,
            method: Method::POST,
            action: ActionName::new(call.action()),
            params: Params::of_query(call.params()),
            json: None,
            format: None,
        })))
    }
}
