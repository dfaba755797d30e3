//! The source of an account's credentials in words, for `flowgate check`. Like the effective
//! configuration it shows no secret, and of an access key id only the masked form.

use std::borrow::Cow;
use std::path::Path;

use super::{
    Account, AccountCredentials, Config, Credentials, EcsRole, LoadedFrom, SessionSource,
    StsEndpoint,
};

/// Maximum number of accounts with a line of their own.
const MOST: usize = 20;

/// One line for each account, and one for the number of the others if there are many.
pub fn account_lines(config: &Config) -> Vec<String> {
    let mut lines: Vec<_> = config
        .accounts
        .iter()
        .take(MOST)
        .map(|account| format!("account {}: {}", account.id, source(account)))
        .collect();
    if let Some(more @ 1..) = config.accounts.len().checked_sub(MOST) {
        lines.push(format!("and {more} more accounts"));
    }
    lines
}

/// Where the account's credentials come from.
pub(crate) fn source(account: &Account) -> String {
    match &account.credentials {
        None => "no credentials: calls are relayed as their callers sign them".to_owned(),
        Some(AccountCredentials::Loaded(credentials, from)) => loaded(credentials, from),
        Some(AccountCredentials::Session(source)) => {
            let mut text = session(source);
            if let Some(profile) = &account.profile {
                text.push_str(&format!("; profile {}", plain(profile.into())));
            }
            text
        }
    }
}

fn loaded(credentials: &Credentials, from: &LoadedFrom) -> String {
    let kind = match credentials.security_token {
        Some(_) => "temporary key",
        None => "access key",
    };
    let key = format!("the {kind} {}", credentials.access_key_id.masked());
    match from {
        LoadedFrom::Keys => key,
        LoadedFrom::Variables(prefix) => format!("{key} of the variables {prefix}_*"),
        LoadedFrom::File(path) => format!("{key} of the file {}", shown(path)),
        LoadedFrom::Profile(name) => format!("{key} of the profile {}", plain(name.into())),
    }
}

/// The chain of sources, and the endpoints of STS that it asks.
fn session(source: &SessionSource) -> String {
    let mut text = String::new();
    let mut endpoints: Vec<&StsEndpoint> = Vec::new();
    let mut next = source;
    loop {
        text.push_str(&step(next));
        if let Some(sts) = endpoint(next)
            && !endpoints.contains(&sts)
        {
            endpoints.push(sts);
        }
        let SessionSource::AssumeRole(assumed) = next else {
            break;
        };
        text.push_str(", from ");
        match &*assumed.from {
            AccountCredentials::Session(source) => next = source,
            AccountCredentials::Loaded(credentials, from) => {
                text.push_str(&loaded(credentials, from));
                break;
            }
        }
    }
    if !endpoints.is_empty() {
        let endpoints: Vec<_> = endpoints.iter().map(ToString::to_string).collect();
        text.push_str(&format!("; STS at {}", endpoints.join(" and ")));
    }
    text
}

/// One source, without those that it needs.
pub(crate) fn step(source: &SessionSource) -> String {
    match source {
        SessionSource::Oidc(oidc) => format!("AssumeRoleWithOIDC {}", oidc.role.arn),
        SessionSource::AssumeRole(assumed) => format!("AssumeRole {}", assumed.role.arn),
        SessionSource::Uri(uri) => format!("the URI {uri}"),
        SessionSource::EcsRole(EcsRole { role, address, .. }) => {
            let role = match role {
                Some(role) => format!("the ECS role {role}"),
                None => "the role of the ECS instance".to_owned(),
            };
            if *address == EcsRole::METADATA_SERVICE {
                role
            } else {
                format!("{role} at {address}")
            }
        }
    }
}

fn endpoint(source: &SessionSource) -> Option<&StsEndpoint> {
    match source {
        SessionSource::Oidc(oidc) => Some(&oidc.role.sts),
        SessionSource::AssumeRole(assumed) => Some(&assumed.role.sts),
        SessionSource::EcsRole(_) | SessionSource::Uri(_) => None,
    }
}

fn shown(path: &Path) -> String {
    plain(path.display().to_string().into()).into_owned()
}

/// Text without control characters, which could forge lines.
fn plain(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        text.escape_debug().to_string().into()
    } else {
        text
    }
}
