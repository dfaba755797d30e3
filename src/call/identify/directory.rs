//! The owners of access keys. Every configured access key has one owner. The longest prefix in
//! `aliases` decides about the others, and `unknown_keys` about the rest. A directory is immutable,
//! so a call sees one state of it; a reload builds a new one.

use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use hyper::header::HeaderValue;

use super::caller::{Managed, Principal, SigningCredentials, Verified};
use super::key_prefixes::KeyPrefixes;
use super::relayed_request::RelayedRequest;
use crate::acs::limits;
use crate::config::names::{Authority, Names, authority, host_name};
use crate::config::{
    self, AccountCredentials, Config, Credentials, FlowNames, UnknownKeys, UpstreamIndex,
};
use crate::credentials::keeper::Keeper;
use crate::credentials::keepers::Keepers;
use crate::error::{Kind, Refusal};
use crate::primitives::fast_map::FastMap;
use crate::primitives::id::{AccessKeyId, AccountId};

/// The configuration that identify needs.
pub(crate) struct Directory {
    owners: FastMap<AccessKeyId, Owner>,
    /// The owners of keys that are not in `owners`.
    prefixes: KeyPrefixes,
    /// The accounts that Flowgate signs for.
    accounts: FastMap<AccountId, Arc<Managed>>,
    unknown_keys: UnknownKeys,
    hosts: Vec<UpstreamHost>,
    names: Names,
    /// The exact spelling of each limited action, by its lower-case form.
    actions: FastMap<String, String>,
}

/// The owner of an access key.
#[derive(Clone)]
pub(super) enum Owner {
    /// An account's own key that is read with the configuration, or a client's.
    Managed(Arc<Principal>),
    /// An alias of an account, in full or by a prefix, or a key that is not configured.
    Relayed {
        account: AccountId,
        is_known: bool,
        upstream: UpstreamIndex,
    },
}

/// The host that is signed and sent to an upstream.
struct UpstreamHost {
    text: String,
    /// `None` if the text is not a host.
    authority: Option<Authority>,
    /// The first signed host of a call for it that was accepted. Nearly all callers send the same
    /// one, and parsing it costs more than everything else that is done with it.
    accepted: OnceLock<HeaderValue>,
}

// === impl UpstreamHost ===

impl UpstreamHost {
    fn new(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            authority: Authority::parse(text),
            accepted: OnceLock::new(),
        }
    }

    /// Whether it is written in the same way. Callers that reach Flowgate as an HTTP proxy do so.
    fn is_text(&self, host: &HeaderValue) -> bool {
        self.authority.is_some() && self.text == *host
    }

    fn is_exactly(&self, authority: &Authority) -> bool {
        self.authority.as_ref() == Some(authority)
    }

    fn covers(&self, authority: &Authority) -> bool {
        let own = self.authority.as_ref();
        own.is_some_and(|own| own.covers(authority))
    }
}

// === impl Owner ===

impl Owner {
    /// Whether it is the owner of an earlier session that has expired.
    fn has_expired(&self) -> bool {
        match self {
            Self::Managed(principal) => principal
                .expires
                .is_some_and(|expires| expires <= SystemTime::now()),
            Self::Relayed { .. } => false,
        }
    }

    /// The owner of an account's aliases.
    pub(super) fn alias_of(account: &config::Account) -> Self {
        Self::Relayed {
            account: account.id.clone(),
            is_known: true,
            upstream: account.upstream_index(),
        }
    }

    /// The account, if it is configured.
    pub(super) fn known_account(&self) -> Option<&AccountId> {
        match self {
            Self::Managed(principal) => Some(&principal.account.id),
            Self::Relayed {
                account, is_known, ..
            } => is_known.then_some(account),
        }
    }
}

// === impl Directory ===

impl Directory {
    /// Builds the directory. `listen.proxy` must be the address that was bound. Callers may still
    /// sign with the latest sessions of accounts that were in the directory `before`. `keepers` are
    /// those of the configuration.
    pub(crate) fn new(config: &Config, keepers: &Keepers, before: Option<&Self>) -> Self {
        let accounts = accounts(config, keepers, before);
        let limited = config.limits.keys().map(|action| action.as_str());
        let actions = limits::DOCUMENTED
            .iter()
            .map(|(action, _)| *action)
            .chain(limited);
        Self {
            owners: owners(config, &accounts),
            prefixes: KeyPrefixes::new(config),
            accounts,
            unknown_keys: config.unknown_keys,
            hosts: config
                .upstreams()
                .map(|upstream| UpstreamHost::new(&upstream.host))
                .collect(),
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
        match (self.configured_owner(key), self.unknown_keys) {
            (Some(owner), _) => Ok(owner),
            // Ids of configured accounts cannot contain `?`, so the key cannot collide with one.
            (None, UnknownKeys::Relay) => Ok(Owner::Relayed {
                account: AccountId::new(["?", key.as_str()].concat()),
                is_known: false,
                upstream: UpstreamIndex::default(),
            }),
            (None, UnknownKeys::Refuse) => Err(unknown_key()),
        }
    }

    /// The owner of a key that the configuration names, in full or by its first characters.
    fn configured_owner(&self, key: &AccessKeyId) -> Option<Owner> {
        let known = self.owners.get(key);
        if let Some(owner) = known.filter(|owner| !owner.has_expired()) {
            return Some(owner.clone());
        }
        self.prefixes.owner(key).cloned()
    }

    /// Updates a caller that was identified with an earlier directory. Its call is signed with the
    /// current credentials of its account. If the account was removed, its queued calls are sent
    /// with the credentials that it had.
    ///
    /// Refuses the call if its client was removed or its key now belongs to another account.
    pub(crate) fn renew(&self, call: &mut Verified) -> Result<(), Refusal> {
        let was = &call.principal;
        // A prefix does not apply: the account of a verified key is certain.
        check_account(self.owners.get(&was.key), &was.account.id)?;
        let now = match (
            self.owners.get(&was.key),
            self.accounts.get(&was.account.id),
        ) {
            (Some(Owner::Managed(now)), _) if now.account.id == was.account.id => now.clone(),
            _ if was.client.is_some() => {
                return Err(Refusal::new(
                    Kind::Forbidden,
                    "This client was removed from Flowgate's configuration while its call was \
                     queued.",
                ));
            }
            // The caller's session is older than those that are kept.
            (_, Some(account)) => Arc::new(Principal::of_account(
                was.key.clone(),
                Vec::new(),
                account.clone(),
            )),
            (_, None) => return Ok(()),
        };
        call.principal = now;
        Ok(())
    }

    /// An account that Flowgate signs for.
    pub(super) fn managed(&self, account: &AccountId) -> Option<&Arc<Managed>> {
        self.accounts.get(account)
    }

    /// What keeps the session of an account; `None` if its credentials are read with the
    /// configuration.
    pub(crate) fn keeper(&self, account: &AccountId) -> Option<&Arc<Keeper>> {
        match &self.accounts.get(account)?.credentials {
            SigningCredentials::Loaded(_) => None,
            SigningCredentials::Kept(keeper) => Some(keeper),
        }
    }

    /// What is known of the names of an account's flows.
    pub(crate) fn flow_names(&self, account: &AccountId) -> FlowNames {
        let account = self.accounts.get(account);
        account.map_or(FlowNames::Any, |account| account.flow_names)
    }

    /// Checks a relayed call again that was identified with an earlier directory. `was` is its
    /// account in that one.
    pub(crate) fn check_relayed(
        &self,
        call: &RelayedRequest,
        was: &AccountId,
    ) -> Result<(), Refusal> {
        let Some(key) = call.key() else {
            return Ok(());
        };
        let now = self.configured_owner(&key);
        if now.is_none() && self.unknown_keys == UnknownKeys::Refuse {
            return Err(unknown_key());
        }
        check_account(now.as_ref(), was)
    }

    /// The host that is signed and sent to an upstream.
    pub(super) fn upstream_host(&self, upstream: UpstreamIndex) -> &str {
        &self.hosts[upstream.index()].text
    }

    /// Refuses a call that names the host of another upstream than its account's: it would reach
    /// another region, or production instead of a test. Of signature version 1, which does not
    /// cover the host.
    pub(super) fn check_unsigned_host(
        &self,
        host: &HeaderValue,
        upstream: UpstreamIndex,
    ) -> Result<(), Refusal> {
        if self.hosts[upstream.index()].is_text(host) {
            return Ok(());
        }
        let host = String::from_utf8_lossy(host.as_bytes());
        let is_of_another = Authority::parse(authority(&host))
            .is_some_and(|authority| self.is_of_another(&authority, upstream));
        if !is_of_another {
            return Ok(());
        }
        let own = self.upstream_host(upstream);
        let message = format!(
            "The call is for another upstream than its account's, which is {own} \
             (accounts[].upstream)."
        );
        Err(Refusal::new(Kind::SignedHostMismatch, message))
    }

    /// Refuses a call that is signed for another of Alibaba's products, or for another gateway with
    /// the same keys. CAMS's own name is accepted with any port: applications reach Flowgate by it
    /// through a hosts file. A Unix socket has no host name, so on one any host except Alibaba's is
    /// accepted.
    pub(super) fn check_host(
        &self,
        host: &HeaderValue,
        upstream: UpstreamIndex,
    ) -> Result<(), Refusal> {
        let accepted = &self.hosts[upstream.index()].accepted;
        if accepted.get() == Some(host) {
            return Ok(());
        }
        self.check_new_host(host, upstream)?;
        // A copy of its own: the value may be a part of a larger buffer.
        accepted.get_or_init(|| HeaderValue::from_bytes(host.as_bytes()).expect("it is a value"));
        Ok(())
    }

    fn check_new_host(&self, host: &HeaderValue, upstream: UpstreamIndex) -> Result<(), Refusal> {
        self.check_unsigned_host(host, upstream)?;
        let upstream_host = self.upstream_host(upstream);
        let host = String::from_utf8_lossy(host.as_bytes());
        let authority = Authority::parse(authority(&host));
        if authority
            .as_ref()
            .is_some_and(|authority| self.is_of_upstream(authority, upstream))
        {
            return Ok(());
        }
        let name = host_name(&host);
        if name == "aliyuncs.com" || name.ends_with(".aliyuncs.com") {
            let message = format!(
                "The call is signed for another of Alibaba's hosts. Flowgate forwards only calls \
                 for {upstream_host}.",
            );
            return Err(Refusal::new(Kind::SignedHostMismatch, message));
        }
        let is_own = authority.is_some_and(|authority| self.names.contains(&authority))
            // User information hides the host from a reader.
            || self.names.could_be(&name) && !host.contains('@');
        if is_own {
            return Ok(());
        }
        Err(Refusal::new(
            Kind::SignedHostMismatch,
            "The call is signed for a host that is neither CAMS's nor one of Flowgate's own \
             names. If applications reach Flowgate by this name, add it to listen.names.",
        ))
    }

    /// Whether an action is a limited one in another case, which would bypass its lane.
    pub(super) fn is_misspelt(&self, action: &str) -> bool {
        self.actions
            .get(&action.to_ascii_lowercase())
            .is_some_and(|exact| exact != action)
    }

    /// Whether an authority is an upstream or Flowgate itself.
    pub(super) fn is_ours(&self, authority: &Authority) -> bool {
        self.hosts.iter().any(|host| host.covers(authority)) || self.names.contains(authority)
    }

    /// Whether an authority is this upstream: by its name, any port; by an address with a port,
    /// only that.
    pub(super) fn is_of_upstream(&self, authority: &Authority, upstream: UpstreamIndex) -> bool {
        self.hosts[upstream.index()].covers(authority)
    }

    /// Whether an authority has the host of another upstream than this one. Where several have the
    /// same host, the port decides.
    fn is_of_another(&self, authority: &Authority, upstream: UpstreamIndex) -> bool {
        let own = &self.hosts[upstream.index()];
        if own.is_exactly(authority) || self.names.contains(authority) {
            return false;
        }
        let is_exactly_another = self.hosts.iter().any(|host| host.is_exactly(authority));
        let is_covered_by_another = self.hosts.iter().any(|host| host.covers(authority));
        is_exactly_another || (is_covered_by_another && !own.covers(authority))
    }
}

fn unknown_key() -> Refusal {
    Refusal::new(
        Kind::UnknownAccessKey,
        "Specified access key is not found: no account, alias or client in Flowgate's \
         configuration has it.",
    )
}

/// Refuses a queued call whose key now belongs to another account: it would use the quota of that
/// account twice.
fn check_account(now: Option<&Owner>, was: &AccountId) -> Result<(), Refusal> {
    match now.and_then(Owner::known_account) {
        Some(now) if now != was => {
            let message = "A reload of Flowgate's configuration moved this access key to another \
                           account. CAMS has done nothing.";
            Err(Refusal::after(
                Kind::Flushed,
                Duration::from_secs(1),
                message,
            ))
        }
        _ => Ok(()),
    }
}

/// How many credentials of an account its callers may sign with: the current ones and the latest
/// sessions before them.
const SESSIONS: usize = 3;

fn accounts(
    config: &Config,
    keepers: &Keepers,
    before: Option<&Directory>,
) -> FastMap<AccountId, Arc<Managed>> {
    let mut accounts = FastMap::default();
    for account in &config.accounts {
        let before = before.and_then(|before| before.accounts.get(&account.id));
        if let Some(credentials) = signing_credentials(account, keepers, before) {
            let managed = Managed {
                id: account.id.clone(),
                upstream: account.upstream_index(),
                credentials,
                flow_names: account.flow_names,
                adopts_repeats: account.adopt_repeats,
            };
            accounts.insert(account.id.clone(), Arc::new(managed));
        }
    }
    accounts
}

/// What an account's requests are signed with; `None` if Flowgate has no secret of it, or if the
/// account needs a session that no client uses.
fn signing_credentials(
    account: &config::Account,
    keepers: &Keepers,
    before: Option<&Arc<Managed>>,
) -> Option<SigningCredentials> {
    match account.credentials.as_ref()? {
        AccountCredentials::Session(source) => {
            Some(SigningCredentials::Kept(keepers.get(source)?.clone()))
        }
        credentials @ AccountCredentials::Loaded(current, _) => {
            let before = before.filter(|_| credentials.are_replaced());
            Some(SigningCredentials::Loaded(loaded(current, before)))
        }
    }
}

/// The credentials of an account that are read with the configuration: the current ones first, then
/// the sessions before, which its callers may still sign with until they expire. A long-lived key
/// that was replaced may have leaked: it is not among them.
fn loaded(current: &Credentials, before: Option<&Arc<Managed>>) -> Vec<Arc<Credentials>> {
    let earlier: Vec<_> = before
        .into_iter()
        .flat_map(|before| before.credentials.of_callers())
        .filter(|session| session.access_key_id != current.access_key_id)
        .filter(|session| session.is_unexpired_session(SystemTime::now()))
        .take(SESSIONS - 1)
        .cloned()
        .collect();
    let mut sessions = vec![Arc::new(current.clone())];
    sessions.extend(earlier);
    sessions
}

fn owners(
    config: &Config,
    managed: &FastMap<AccountId, Arc<Managed>>,
) -> FastMap<AccessKeyId, Owner> {
    let mut owners = FastMap::default();
    // The oldest session first, so that a key in the configuration overrides the key of an old
    // session.
    for age in (0..SESSIONS).rev() {
        for account in managed.values() {
            let Some(session) = account.credentials.of_callers().get(age) else {
                continue;
            };
            let mut principal = Principal::of_account(
                session.access_key_id.clone(),
                vec![session.secret.clone()],
                account.clone(),
            );
            principal.expires = session.expires.filter(|_| age > 0);
            owners.insert(principal.key.clone(), Owner::Managed(Arc::new(principal)));
        }
    }
    for account in &config.accounts {
        let exact = account
            .aliases
            .iter()
            .filter(|alias| alias.prefix().is_none());
        for alias in exact {
            owners.insert(AccessKeyId::new(alias.as_str()), Owner::alias_of(account));
        }
    }
    for client in &config.clients {
        let account = managed
            .get(&client.account)
            .expect("a checked configuration gives clients managed accounts");
        let principal = Principal::of_client(client, account.clone());
        owners.insert(principal.key.clone(), Owner::Managed(Arc::new(principal)));
    }
    owners
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(listen: &str, name: Option<&str>, host: &str) -> Option<Kind> {
        let mut env = vec![("FLOWGATE_LISTEN__PROXY".into(), listen.into())];
        env.extend(name.map(|name| ("FLOWGATE_LISTEN__NAMES".into(), name.into())));
        let config = config::load(None, env).unwrap().config;
        let directory = Directory::new(&config, &Keepers::new(&config, None).unwrap(), None);
        directory
            .check_host(
                &HeaderValue::from_str(host).unwrap(),
                UpstreamIndex::default(),
            )
            .err()
            .map(|refusal| refusal.kind)
    }

    #[test]
    fn the_signed_host_must_be_cams_or_an_own_name() {
        let refused = Some(Kind::SignedHostMismatch);
        let loopback = "127.0.0.1:8080";
        for host in [
            "127.0.0.1:8080",
            "localhost:8080",
            "http://127.0.0.1:8080",
            "127.0.0.1:8080/",
            "LOCALHOST.:8080",
            "cams.ap-southeast-1.aliyuncs.com",
            "cams.ap-southeast-1.aliyuncs.com:80",
            "cams.ap-southeast-1.aliyuncs.com:443",
            "cams.ap-southeast-1.aliyuncs.com:8080",
            "CAMS.ap-southeast-1.aliyuncs.com.:8080",
            "http://cams.ap-southeast-1.aliyuncs.com:8080/",
        ] {
            assert_eq!(checked(loopback, None, host), None, "{host}");
        }
        for host in [
            "127.0.0.1:9",
            "gateway:8080",
            "10.0.0.1:8080",
            "ecs.aliyuncs.com",
            "cams.ap-southeast-1.aliyuncs.com.evil.example",
            "cams.ap-southeast-1.aliyuncs.com@evil.example",
            "x@cams.ap-southeast-1.aliyuncs.com",
            "x@127.0.0.1:8080",
            "cams.ap-southeast-1.aliyuncs.com:",
            "cams.ap-southeast-1.aliyuncs.com:0",
            "xcams.ap-southeast-1.aliyuncs.com",
            "[::1]:8080",
        ] {
            assert_eq!(checked(loopback, None, host), refused, "{host}");
        }
        assert_eq!(checked(loopback, Some("gateway"), "gateway:8080"), None);
        assert_eq!(checked("0.0.0.0:8080", None, "10.0.0.1:30080"), None);
        assert_eq!(
            checked("0.0.0.0:8080", None, "x@10.0.0.1:30080"),
            refused,
            "user information"
        );
        assert_eq!(checked("[::1]:8080", None, "[0::1]:8080"), None);
        assert_eq!(checked("0.0.0.0:8080", None, "gateway:8080"), refused);
        assert_eq!(checked("unix:/run/f.sock", None, "whatever"), None);
        assert_eq!(
            checked("unix:/run/f.sock", None, "ecs.aliyuncs.com"),
            refused
        );
    }
}
