//! The keepers of a configuration by the role that their sessions have, for a reload that changes
//! how a session is asked for, but not what it may do.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::super::keeper::Keeper;
use crate::config::{AccountCredentials, LoadedFrom, SessionSource, StsEndpoint};
use crate::primitives::id::AccessKeyId;
use crate::primitives::secret::Secret;

/// The keepers by [`role_of`] of their source.
pub(super) struct ByRole<'a>(HashMap<SessionSource, Vec<&'a Arc<Keeper>>>);

/// The source without what does not change the rights of its session: who assumes the role, which
/// role, and a policy remain.
fn role_of(source: &SessionSource) -> SessionSource {
    let mut role = source.clone();
    match &mut role {
        SessionSource::Oidc(source) => {
            source.token_file = PathBuf::new();
            forget_request(&mut source.role);
        }
        SessionSource::AssumeRole(source) => {
            source.external_id = None;
            forget_request(&mut source.role);
            match &mut *source.from {
                AccountCredentials::Session(from) => *from = role_of(from),
                AccountCredentials::Loaded(credentials, from) => {
                    credentials.secret = Secret::new("");
                    credentials.security_token = None;
                    credentials.expires = None;
                    // The same file, profile or variables contain another key of the same identity.
                    if *from != LoadedFrom::Keys {
                        credentials.access_key_id = AccessKeyId::new("");
                    }
                }
            }
        }
        SessionSource::EcsRole(source) => source.allow_v1 = false,
        SessionSource::Uri(_) => {}
    }
    role
}

/// Removes what is said about the request for the session.
fn forget_request(role: &mut crate::config::Role) {
    role.session_name = String::new();
    role.duration = None;
    role.sts = StsEndpoint {
        host: String::new(),
        port: 0,
    };
}

/// The name of a session in ActionTrail.
fn session_name(source: &SessionSource) -> Option<&str> {
    match source {
        SessionSource::Oidc(source) => Some(&source.role.session_name),
        SessionSource::AssumeRole(source) => Some(&source.role.session_name),
        SessionSource::EcsRole(_) | SessionSource::Uri(_) => None,
    }
}

// === impl ByRole ===

impl<'a> ByRole<'a> {
    pub(super) fn of(keepers: impl Iterator<Item = &'a Arc<Keeper>>) -> Self {
        let mut by_role: HashMap<_, Vec<_>> = HashMap::new();
        for keeper in keepers {
            by_role
                .entry(role_of(keeper.source()))
                .or_default()
                .push(keeper);
        }
        Self(by_role)
    }

    /// The keeper whose session has the role of this source: if there are several, one with the same
    /// name, and of these the one that ends last.
    pub(super) fn get(&self, source: &SessionSource) -> Option<&'a Keeper> {
        let name = session_name(source);
        let same = self.0.get(&role_of(source))?.iter();
        same.max_by_key(|keeper| (session_name(keeper.source()) == name, keeper.view().ends_at))
            .map(|keeper| &***keeper)
    }
}
