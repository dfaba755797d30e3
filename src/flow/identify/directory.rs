//! Whose key is it? Every access key of the configuration has one owner; what happens to other keys is a setting. Built
//! once and never changed, so a call sees one state of it.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use hyper::header::HeaderValue;

use super::caller::Managed;
use crate::acs::limits;
use crate::config::{self, Bind, Config, UnknownKeys};
use crate::error::{Kind, Refusal};
use crate::id::{AccessKeyId, AccountId};

/// Everything that identify knows about the outside.
pub(crate) struct Directory {
    owners: HashMap<AccessKeyId, Owner>,
    unknown_keys: UnknownKeys,
    upstream_host: String,
    names: Vec<String>,
    address: Option<SocketAddr>,
    /// The exact spelling of each limited action, by its lower-case form.
    actions: HashMap<String, String>,
}

/// Who is behind an access key.
#[derive(Clone)]
pub(super) enum Owner {
    /// An account's own key, or a client's.
    Managed { account: Arc<Managed>, client: Option<Arc<config::Client>> },
    /// An alias, or a key that the configuration does not name.
    Relayed { account: AccountId, is_known: bool },
}

/// What a `Host` value says between scheme and path.
fn authority(host: &str) -> &str {
    let host = host.split_once("://").map_or(host, |(_, rest)| rest);
    host.split(['/', '?', '#']).next().unwrap_or_default()
}

/// The host of a `Host` value in lower case, without scheme, port and path: some SDKs send their whole endpoint setting.
pub(super) fn host_name(host: &str) -> String {
    let host = authority(host).rsplit('@').next().unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    name.trim_end_matches('.').to_ascii_lowercase()
}

// === impl Owner ===

impl Owner {
    /// The account, if the configuration names it.
    pub(super) fn known_account(&self) -> Option<&AccountId> {
        match self {
            Self::Managed { account, .. } => Some(&account.id),
            Self::Relayed { account, is_known } => is_known.then_some(account),
        }
    }
}

// === impl Directory ===

impl Directory {
    /// Reads it from the configuration, whose `listen.proxy` should be the address that was in fact bound.
    pub(crate) fn new(config: &Config) -> Self {
        let limited = config.limits.keys().map(|action| action.as_str());
        let actions = limits::DOCUMENTED.iter().map(|(action, _)| *action).chain(limited);
        Self {
            owners: owners(config),
            unknown_keys: config.unknown_keys,
            upstream_host: config.upstream.host.clone(),
            names: config.listen.names.iter().map(|name| name.to_ascii_lowercase()).collect(),
            address: match config.listen.proxy {
                Bind::Tcp(address) => Some(address),
                Bind::Unix(_) => None,
            },
            actions: actions.map(|action| (action.to_ascii_lowercase(), action.to_owned())).collect(),
        }
    }

    /// The owner of a key.
    pub(super) fn owner(&self, key: &AccessKeyId) -> Result<Owner, Refusal> {
        match (self.owners.get(key), self.unknown_keys) {
            (Some(owner), _) => Ok(owner.clone()),
            // The mark keeps the key out of the names of configured accounts, which cannot hold it.
            (None, UnknownKeys::Relay) => {
                Ok(Owner::Relayed { account: AccountId::new(format!("?{key}")), is_known: false })
            }
            (None, UnknownKeys::Refuse) => Err(Refusal::new(
                Kind::UnknownAccessKey,
                "Specified access key is not found: Flowgate's configuration has no account, alias or client with it.",
            )),
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
            let message = format!("The call is signed for another of Alibaba's hosts than {}.", self.upstream_host);
            return Err(Refusal::new(Kind::SignedHostMismatch, message));
        }
        let is_own = match self.address {
            None => true,
            // Behind 0.0.0.0 every address of the machine is ours; which these are, nobody tells for sure.
            Some(address) => address.ip().is_unspecified() && name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok(),
        };
        if is_own || self.is_ours(authority(&host)) {
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
        self.actions.get(&action.to_ascii_lowercase()).is_some_and(|exact| exact != action)
    }

    /// Whether an authority means CAMS or Flowgate itself.
    pub(super) fn is_ours(&self, authority: &str) -> bool {
        let authority = authority.to_ascii_lowercase();
        authority.eq_ignore_ascii_case(&self.upstream_host)
            || self.names.iter().any(|name| *name == authority || *name == host_name(&authority))
            || self.address.is_some_and(|address| is_at(address, &authority))
    }
}

/// Whether an authority is the listener's address, or a loopback one where the listener is or takes all.
fn is_at(address: SocketAddr, authority: &str) -> bool {
    let local = [format!("localhost:{}", address.port()), format!("127.0.0.1:{}", address.port())];
    let takes_loopback = address.ip().is_loopback() || address.ip().is_unspecified();
    authority == address.to_string() || (takes_loopback && local.iter().any(|local| local == authority))
}

fn owners(config: &Config) -> HashMap<AccessKeyId, Owner> {
    let mut owners = HashMap::new();
    let mut managed = HashMap::new();
    for account in &config.accounts {
        for alias in &account.aliases {
            owners.insert(alias.clone(), Owner::Relayed { account: account.id.clone(), is_known: true });
        }
        if let Some(credentials) = &account.credentials {
            let entry = Arc::new(Managed { id: account.id.clone(), credentials: Arc::new(credentials.clone()) });
            managed.insert(account.id.clone(), entry.clone());
            owners.insert(credentials.access_key_id.clone(), Owner::Managed { account: entry, client: None });
        }
    }
    for client in &config.clients {
        let account = managed.get(&client.account).expect("a checked configuration gives clients managed accounts");
        let owner = Owner::Managed { account: account.clone(), client: Some(Arc::new(client.clone())) };
        owners.insert(AccessKeyId::new(client.id.as_str()), owner);
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_hosts_have_a_name() {
        for (host, name) in [
            ("Cams.Ap-Southeast-1.aliyuncs.com", "cams.ap-southeast-1.aliyuncs.com"),
            ("http://127.0.0.1:18080", "127.0.0.1"),
            ("h:80/", "h"),
            ("h:80/prefix", "h"),
            ("https://x@ecs.aliyuncs.com.:443/?a#b", "ecs.aliyuncs.com"),
            ("[::1]:8080", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(host_name(host), name, "{host}");
        }
    }

    #[test]
    fn own_addresses() {
        let at = |address: &str, authority| is_at(address.parse().unwrap(), authority);
        assert!(at("127.0.0.1:8080", "127.0.0.1:8080") && at("127.0.0.1:8080", "localhost:8080"));
        assert!(at("0.0.0.0:8080", "localhost:8080") && at("10.0.0.7:80", "10.0.0.7:80") && at("[::1]:1", "[::1]:1"));
        assert!(!at("127.0.0.1:8080", "127.0.0.1") && !at("10.0.0.7:80", "localhost:80"));
        assert!(!at("0.0.0.0:8080", "10.0.0.7:8080"));
    }

    fn checked(listen: &str, name: Option<&str>, host: &str) -> Option<Kind> {
        let mut env = vec![("FLOWGATE_LISTEN__PROXY".into(), listen.into())];
        env.extend(name.map(|name| ("FLOWGATE_LISTEN__NAMES".into(), name.into())));
        let directory = Directory::new(&config::load(None, env).unwrap().config);
        directory.check_host(&HeaderValue::from_str(host).unwrap()).err().map(|refusal| refusal.kind)
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
