//! Whose key is it? Every access key of the configuration has one owner; what happens to other keys is a setting. Built
//! once and never changed, so a call sees one state of it.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;

use super::caller::{Managed, Principal, Verified};
use crate::acs::limits;
use crate::config::names::{Names, authority, host_name};
use crate::config::{self, Config, UnknownKeys};
use crate::error::{Kind, Refusal};
use crate::primitives::id::{AccessKeyId, AccountId};

/// Everything that identify knows about the outside.
pub(crate) struct Directory {
    owners: HashMap<AccessKeyId, Owner>,
    /// Those that Flowgate signs for.
    accounts: HashMap<AccountId, Arc<Managed>>,
    unknown_keys: UnknownKeys,
    upstream_host: String,
    names: Names,
    /// The exact spelling of each limited action, by its lower-case form.
    actions: HashMap<String, String>,
}

/// Who is behind an access key.
#[derive(Clone)]
pub(super) enum Owner {
    /// An account's own key, or a client's.
    Managed(Arc<Principal>),
    /// An alias, or a key that the configuration does not name.
    Relayed { account: AccountId, is_known: bool },
}

// === impl Owner ===

impl Owner {
    /// The account, if the configuration names it.
    pub(super) fn known_account(&self) -> Option<&AccountId> {
        match self {
            Self::Managed(principal) => Some(&principal.account.id),
            Self::Relayed { account, is_known } => is_known.then_some(account),
        }
    }
}

// === impl Directory ===

impl Directory {
    /// Reads it from the configuration, whose `listen.proxy` should be the address that was in fact bound. The sessions
    /// of accounts that were here `before` stay good for their callers.
    pub(crate) fn new(config: &Config, before: Option<&Self>) -> Self {
        let accounts = accounts(config, before);
        let limited = config.limits.keys().map(|action| action.as_str());
        let actions = limits::DOCUMENTED
            .iter()
            .map(|(action, _)| *action)
            .chain(limited);
        Self {
            owners: owners(config, &accounts),
            accounts,
            unknown_keys: config.unknown_keys,
            upstream_host: config.upstream.host.clone(),
            names: Names::new(
                &config.listen.proxy,
                &config.listen.names,
                config.listen.tls.is_some(),
            ),
            actions: actions
                .map(|action| (action.to_ascii_lowercase(), action.to_owned()))
                .collect(),
        }
    }

    /// The owner of a key.
    pub(super) fn owner(&self, key: &AccessKeyId) -> Result<Owner, Refusal> {
        match (self.owners.get(key), self.unknown_keys) {
            (Some(owner), _) => Ok(owner.clone()),
            // The mark keeps the key out of the names of configured accounts, which cannot hold it.
            (None, UnknownKeys::Relay) => Ok(Owner::Relayed {
                account: AccountId::new(format!("?{key}")),
                is_known: false,
            }),
            (None, UnknownKeys::Refuse) => Err(Refusal::new(
                Kind::UnknownAccessKey,
                "Specified access key is not found: Flowgate's configuration has no account, alias or client with it.",
            )),
        }
    }

    /// Looks at a caller again that was identified with another directory: it may not be who it was. What it is signed
    /// with is what its account has now. An account that is gone drains: who waits is sent with what it had.
    pub(crate) fn renew(&self, call: &mut Verified) -> Result<(), Refusal> {
        let was = &call.principal;
        self.check_account(&was.key, &was.account.id)?;
        let now = match (
            self.owners.get(&was.key),
            self.accounts.get(&was.account.id),
        ) {
            (Some(Owner::Managed(now)), _) if now.account.id == was.account.id => now.clone(),
            _ if was.client.is_some() => {
                return Err(Refusal::new(
                    Kind::Forbidden,
                    "this client has been removed",
                ));
            }
            // Its session is older than the last three.
            (_, Some(account)) => Arc::new(Principal {
                key: was.key.clone(),
                secrets: Vec::new(),
                account: account.clone(),
                client: None,
            }),
            (_, None) => return Ok(()),
        };
        call.principal = now;
        Ok(())
    }

    /// Looks again at a call that goes on under its caller's signature.
    pub(crate) fn check_relayed(&self, account: &AccountId) -> Result<(), Refusal> {
        // Only the account of a key that had no name is its key's.
        account.as_str().strip_prefix('?').map_or(Ok(()), |key| {
            self.check_account(&AccessKeyId::new(key), account)
        })
    }

    /// A key whose account has another name now spends that one's quota: who waits by the old name would spend it twice.
    fn check_account(&self, key: &AccessKeyId, was: &AccountId) -> Result<(), Refusal> {
        match self.owners.get(key).and_then(Owner::known_account) {
            Some(now) if now != was => {
                let message = "The configuration now counts this access key to another account. CAMS has done nothing.";
                Err(Refusal::after(
                    Kind::Flushed,
                    Duration::from_secs(1),
                    message,
                ))
            }
            _ => Ok(()),
        }
    }

    /// The host that is signed and sent upstream.
    pub(super) fn upstream_host(&self) -> &str {
        &self.upstream_host
    }

    /// Refuses what was signed for somebody else: another of Alibaba's products, or another gateway with the same keys.
    /// Whoever listens on a Unix socket has no name of its own, so any but Alibaba's will do.
    pub(super) fn check_host(&self, host: &HeaderValue) -> Result<(), Refusal> {
        let host = String::from_utf8_lossy(host.as_bytes());
        let name = host_name(&host);
        let is_alibaba = name == "aliyuncs.com" || name.ends_with(".aliyuncs.com");
        if is_alibaba && name != host_name(&self.upstream_host) {
            let message = format!(
                "The call is signed for another of Alibaba's hosts than {}.",
                self.upstream_host
            );
            return Err(Refusal::new(Kind::SignedHostMismatch, message));
        }
        if self.names.could_be(&name) || self.is_ours(authority(&host)) {
            return Ok(());
        }
        Err(Refusal::new(
            Kind::SignedHostMismatch,
            "The call is signed for a host that is neither CAMS's nor one that Flowgate knows as its own. If applications \
             reach Flowgate by this name, add it to listen.names.",
        ))
    }

    /// Whether an action is a limited one in a spelling that its lane would not know.
    pub(super) fn is_misspelt(&self, action: &str) -> bool {
        self.actions
            .get(&action.to_ascii_lowercase())
            .is_some_and(|exact| exact != action)
    }

    /// Whether an authority means CAMS or Flowgate itself.
    pub(super) fn is_ours(&self, authority: &str) -> bool {
        authority.eq_ignore_ascii_case(&self.upstream_host) || self.names.contain(authority)
    }
}

/// How many sessions of an account its callers may sign with: the present one, and those that it had before.
const SESSIONS: usize = 3;

fn accounts(config: &Config, before: Option<&Directory>) -> HashMap<AccountId, Arc<Managed>> {
    let managed = |account: &config::Account| {
        let credentials = account.credentials.clone()?;
        let before = before.and_then(|before| before.accounts.get(&account.id));
        let old = before
            .filter(|_| account.credentials_file.is_some())
            .into_iter()
            .flat_map(|before| &before.sessions);
        let old = old
            .filter(|old| old.access_key_id != credentials.access_key_id)
            .take(SESSIONS - 1)
            .cloned();
        let sessions = old.collect::<Vec<_>>();
        let sessions = std::iter::once(Arc::new(credentials))
            .chain(sessions)
            .collect();
        Some((
            account.id.clone(),
            Arc::new(Managed {
                id: account.id.clone(),
                sessions,
            }),
        ))
    };
    config.accounts.iter().filter_map(managed).collect()
}

fn owners(
    config: &Config,
    managed: &HashMap<AccountId, Arc<Managed>>,
) -> HashMap<AccessKeyId, Owner> {
    let mut owners = HashMap::new();
    // The oldest first: a key that stands in the configuration is what it says there.
    for age in (0..SESSIONS).rev() {
        for account in managed.values() {
            let Some(session) = account.sessions.get(age) else {
                continue;
            };
            let (key, secrets) = (session.access_key_id.clone(), vec![session.secret.clone()]);
            let principal = Principal {
                key: key.clone(),
                secrets,
                account: account.clone(),
                client: None,
            };
            owners.insert(key, Owner::Managed(Arc::new(principal)));
        }
    }
    for account in &config.accounts {
        for alias in &account.aliases {
            owners.insert(
                alias.clone(),
                Owner::Relayed {
                    account: account.id.clone(),
                    is_known: true,
                },
            );
        }
    }
    for client in &config.clients {
        let account = managed
            .get(&client.account)
            .expect("a checked configuration gives clients managed accounts");
        let (key, secrets) = (AccessKeyId::new(client.id.as_str()), client.secrets.clone());
        let client = Some(Arc::new(client.clone()));
        let principal = Principal {
            key: key.clone(),
            secrets,
            account: account.clone(),
            client,
        };
        owners.insert(key, Owner::Managed(Arc::new(principal)));
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(listen: &str, name: Option<&str>, host: &str) -> Option<Kind> {
        let mut env = vec![("FLOWGATE_LISTEN__PROXY".into(), listen.into())];
        env.extend(name.map(|name| ("FLOWGATE_LISTEN__NAMES".into(), name.into())));
        let directory = Directory::new(&config::load(None, env).unwrap().config, None);
        directory
            .check_host(&HeaderValue::from_str(host).unwrap())
            .err()
            .map(|refusal| refusal.kind)
    }

    #[test]
    fn a_signed_host_is_cams_or_one_of_our_own() {
        let alien = Some(Kind::SignedHostMismatch);
        let loopback = "127.0.0.1:8080";
        for host in [
            "127.0.0.1:8080",
            "localhost:8080",
            "http://127.0.0.1:8080",
            "127.0.0.1:8080/",
            "cams.ap-southeast-1.aliyuncs.com",
        ] {
            assert_eq!(checked(loopback, None, host), None, "{host}");
        }
        for host in [
            "127.0.0.1:9",
            "gateway:8080",
            "10.0.0.1:8080",
            "ecs.aliyuncs.com",
            "cams.ap-southeast-1.aliyuncs.com.evil.example",
        ] {
            assert_eq!(checked(loopback, None, host), alien, "{host}");
        }
        assert_eq!(checked(loopback, Some("gateway"), "gateway:8080"), None);
        assert_eq!(checked("0.0.0.0:8080", None, "10.0.0.1:30080"), None);
        assert_eq!(checked("0.0.0.0:8080", None, "gateway:8080"), alien);
        assert_eq!(checked("unix:/run/f.sock", None, "whatever"), None);
        assert_eq!(checked("unix:/run/f.sock", None, "ecs.aliyuncs.com"), alien);
    }
}
