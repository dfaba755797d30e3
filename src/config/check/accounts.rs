//! Checks `[[accounts]]` and `[[clients]]`. Each access key id, and each prefix in `aliases`, may
//! appear only once, because it identifies one account or one client.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU32;
use std::time::Duration;

use super::account_upstreams::AccountUpstreams;
use super::at_most_max_hold;
use super::credentials::SourceReader;
use super::ids::{ALIAS_FORM, ID_FORM, KEY_FORM, access_key, account_id, alias};
use super::limits::action;
use super::sts::Sts;
use crate::config::read::{Field, KeyLocation, POSITIVE, Reader, Section};
use crate::config::secrets::secret;
use crate::config::{
    Account, AccountCredentials, Actions, Client, Credentials, FlowNames, LoadedFrom,
};
use crate::primitives::id::{AccessKeyId, AccountId, ClientId, KeyPattern};

/// The account that Alibaba's own variables define, for a sidecar without a file.
pub(crate) const DEFAULT_ACCOUNT: &str = "default";

/// The additional keys of that account in a sidecar: the application's own sessions.
const SESSIONS: &str = "STS.*";

/// Maximum number of accounts that a warning names.
const NAMED: usize = 5;

/// The names in use, and where they are written.
#[derive(Default)]
struct Taken {
    keys: HashMap<KeyPattern, KeyLocation>,
    ids: HashMap<AccountId, KeyLocation>,
}

/// The accounts that a client may name.
struct Known {
    /// Every account, and whether it has a secret to sign with.
    are_managed: HashMap<AccountId, bool>,
    /// Whether there are `[[accounts]]`, so that Alibaba's variables define none.
    are_written: bool,
}

/// Checks both lists. Entries with a mistake are left out. `is_local` is whether only applications
/// of this machine reach the proxy.
pub(super) fn check(
    root: &mut Section<'_>,
    max_hold: Option<Duration>,
    upstreams: &mut AccountUpstreams<'_>,
    sts: &Sts,
    is_local: bool,
) -> (Vec<Account>, Vec<Client>) {
    let sources = SourceReader::new(root.reader, sts);
    let mut taken = Taken::default();
    let mistakes = root.reader.mistake_count();
    let written = root.tables("accounts");
    let is_list = root.reader.mistake_count() == mistakes;
    let count = written.len();
    let mut accounts: Vec<_> = written
        .into_iter()
        .filter_map(|section| account(section, &mut taken, upstreams, &sources))
        .collect();
    // If an account has a mistake, its clients would be reported as having no account. In that
    // case they are not checked against the accounts.
    let mut whole = is_list && accounts.len() == count;
    let are_written = !is_list || count > 0;
    if !are_written {
        match from_variables(&sources, root.reader, &mut taken) {
            Some(account) => accounts.extend(account),
            None => whole = false,
        }
    }
    let known = whole.then(|| Known::new(&accounts, are_written));
    let clients: Vec<_> = root
        .tables("clients")
        .into_iter()
        .filter_map(|section| client(section, known.as_ref(), max_hold, &mut taken))
        .collect();
    if !are_written && is_local && clients.is_empty() {
        accounts.iter_mut().for_each(relay_sessions);
    }
    warn_of_unused_sessions(root.reader, &accounts, &clients);
    (accounts, clients)
}

/// Reads the account that Alibaba's own variables define. The outer `None` is a mistake.
fn from_variables(
    sources: &SourceReader<'_>,
    reader: &Reader,
    taken: &mut Taken,
) -> Option<Option<Account>> {
    let Some((place, credentials)) = sources.of_variables()? else {
        return Some(None);
    };
    if let Some(loaded) = credentials.loaded() {
        taken.own(
            reader,
            &place,
            &KeyPattern::new(loaded.access_key_id.as_str()),
        )?;
    }
    Some(Some(Account {
        id: AccountId::new(DEFAULT_ACCOUNT),
        credentials: Some(credentials),
        profile: sources.taken_profile(),
        aliases: Vec::new(),
        upstream: None,
        flow_names: FlowNames::Any,
        adopt_repeats: false,
    }))
}

/// Lets the application of a sidecar keep its own sessions of the source that both use: they are
/// relayed, and spend the account's quota in one lane per action.
fn relay_sessions(account: &mut Account) {
    if has_session(account) {
        account.aliases.push(KeyPattern::new(SESSIONS));
    }
}

/// Warns of accounts whose sessions no call can be signed with: unlike that of an access key, a
/// session's secret is known to Flowgate alone. Calls under the account's aliases are relayed as they are signed.
fn warn_of_unused_sessions(reader: &Reader, accounts: &[Account], clients: &[Client]) {
    let used: HashSet<_> = clients.iter().map(|client| &client.account).collect();
    let (relaying, unused): (Vec<_>, Vec<_>) = accounts
        .iter()
        .filter(|account| has_session(account) && !used.contains(&account.id))
        .partition(|account| !account.aliases.is_empty());
    if !relaying.is_empty() {
        reader.warn(format!(
            "accounts without clients: {}: their temporary credentials are not used: calls under \
             their aliases, such as those with sessions of the applications, are relayed, and must \
             be signed for CAMS's host or with version 1 (docs/faq.md, Flowgate.SignedHostMismatch); \
             if Flowgate is to sign, add [[clients]] (flowgate client new)",
            names(&relaying)
        ));
    }
    if !unused.is_empty() {
        reader.warn(format!(
            "accounts without clients: {}: no caller can use their temporary credentials: add \
             [[clients]] (flowgate client new)",
            names(&unused)
        ));
    }
}

fn has_session(account: &Account) -> bool {
    let source = account.credentials.as_ref();
    source.and_then(AccountCredentials::session).is_some()
}

/// Names the first accounts, and the number of the others.
fn names(accounts: &[&Account]) -> String {
    let mut names: Vec<_> = accounts
        .iter()
        .take(NAMED)
        .map(|account| account.id.as_str())
        .collect();
    let more = format!("{} more", accounts.len().saturating_sub(NAMED));
    if accounts.len() > NAMED {
        names.push(&more);
    }
    names.join(", ")
}

fn account<'a>(
    mut section: Section<'a>,
    taken: &mut Taken,
    upstreams: &mut AccountUpstreams<'_>,
    sources: &SourceReader<'a>,
) -> Option<Account> {
    let id = taken.id(&section.key("id"));
    let key = section.key("credentials");
    let credentials = if key.is_given() {
        from_source(key, &mut section, taken, sources).map(Some)
    } else {
        credentials(&mut section, taken)
    };
    let key = section.key("aliases");
    let place = key.place.clone();
    let aliases = key.list(|entry| taken.alias(entry));
    if let (Some(None), Some([])) = (&credentials, aliases.as_deref()) {
        section.reader.mistake(
            &place,
            "expected at least one access key id, or the first characters of one and '*': an \
             account without a secret is identified by its aliases",
        );
    }
    let upstream = upstreams.read(&section.key("upstream"));
    let is_managed = credentials.as_ref().is_none_or(Option::is_some);
    let flow_names = flow_names(&mut section, is_managed);
    let adopt_repeats = adopt_repeats(&mut section, flow_names);
    section.done();
    Some(Account {
        id: id?,
        credentials: credentials?,
        profile: sources.taken_profile(),
        aliases: aliases?,
        upstream: upstream?,
        flow_names: flow_names?,
        adopt_repeats: adopt_repeats?,
    })
}

fn flow_names(section: &mut Section<'_>, is_managed: bool) -> Option<FlowNames> {
    let key = section.key("flow_names");
    let names = key.choice(&[("any", FlowNames::Any), ("unique", FlowNames::Unique)])?;
    if names == FlowNames::Unique && !is_managed {
        key.mistake("this account has no secret: Flowgate cannot look for its flows");
        return None;
    }
    Some(names)
}

fn adopt_repeats(section: &mut Section<'_>, flow_names: Option<FlowNames>) -> Option<bool> {
    let key = section.key("adopt_repeats");
    let adopts = key.flag()?;
    if adopts && flow_names == Some(FlowNames::Any) {
        key.mistake(
            "expected false: calls that are equal are repetitions only if flow_names is unique",
        );
        return None;
    }
    Some(adopts)
}

/// Reads `credentials`.
fn from_source<'a>(
    key: Field<'a>,
    section: &mut Section<'a>,
    taken: &mut Taken,
    sources: &SourceReader<'a>,
) -> Option<AccountCredentials> {
    for beside in ["access_key_id", "access_key_secret"].map(|name| section.key(name)) {
        if beside.is_given() {
            beside.mistake("expected either this key or credentials: an account has one source");
        }
    }
    let (place, credentials) = sources.read(key)?;
    if let Some(loaded) = credentials.loaded() {
        let own = KeyPattern::new(loaded.access_key_id.as_str());
        taken.own(section.reader, &place, &own)?;
    }
    Some(credentials)
}

/// Reads the access key id and its secret: both or neither. The outer `None` is a mistake.
fn credentials(section: &mut Section<'_>, taken: &mut Taken) -> Option<Option<AccountCredentials>> {
    let id_key = section.key("access_key_id");
    let secret_key = section.key("access_key_secret");
    if !id_key.is_given() && !secret_key.is_given() {
        return Some(None);
    }
    let access_key_id = taken.key(&id_key);
    let secret = secret(secret_key);
    let credentials = Credentials {
        access_key_id: access_key_id?,
        secret: secret?,
        security_token: None,
        expires: None,
    };
    Some(Some(AccountCredentials::Loaded(
        credentials,
        LoadedFrom::Keys,
    )))
}

/// The largest weight: beside it, a client of weight 1 still gets one token in a hundred.
const MAX_WEIGHT: u32 = 100;

fn client(
    mut section: Section<'_>,
    accounts: Option<&Known>,
    max_hold: Option<Duration>,
    taken: &mut Taken,
) -> Option<Client> {
    let weight = section.key("weight").count(&(1..=MAX_WEIGHT));
    let id = taken
        .key(&section.key("access_key_id"))
        .map(|key| ClientId::new(key.as_str()));
    let present = secret(section.key("access_key_secret"));
    let previous = section.key("previous_access_key_secret").given(secret);
    let disabled = section.key("disabled").flag();
    let account = managed(&section.key("account"), accounts);
    let actions = actions(section.key("actions"));
    let spaces = section.key("cust_space_ids");
    if spaces.is_empty_variable() {
        spaces.mistake("expected a CustSpaceId: an empty list would allow all of them");
    }
    let cust_space_ids =
        spaces.list(|entry| entry.text("a CustSpaceId of at most 128 printable characters", space));
    let key = section.key("hold");
    let hold = key.optional(|key| key.time(&POSITIVE));
    if let Some(Some(hold)) = hold {
        at_most_max_hold(&key, hold, max_hold);
    }
    section.done();
    Some(Client {
        id: id?,
        secrets: [present?].into_iter().chain(previous?).collect(),
        disabled: disabled?,
        weight: NonZeroU32::new(weight?)?,
        account: account?,
        actions: actions?,
        cust_space_ids: cust_space_ids?,
        hold: hold?,
    })
}

/// Reads the id of a managed account: one that has a secret to sign with.
fn managed(key: &Field<'_>, accounts: Option<&Known>) -> Option<AccountId> {
    let id = key.text("the id of an account", |text| Some(AccountId::new(text)))?;
    let Some(accounts) = accounts else {
        return Some(id);
    };
    match accounts.are_managed.get(&id) {
        None => key.mistake(accounts.expected_instead_of(&id)),
        Some(false) => key.mistake(
            "this account has no secret: expected an account with access_key_secret or credentials",
        ),
        Some(true) => return Some(id),
    }
    None
}

/// Reads a list of actions, or `*` alone. There is no default: access to all actions must be
/// explicit.
fn actions(key: Field<'_>) -> Option<Actions> {
    let reader = key.reader;
    let place = key.place.clone();
    let written = key.list(|entry| {
        if entry.says("*") {
            Some(None)
        } else {
            action(entry).map(Some)
        }
    })?;
    let listed: Vec<_> = written.iter().flatten().cloned().collect();
    if !listed.is_empty() && listed.len() == written.len() {
        return Some(Actions::Listed(listed));
    }
    if listed.is_empty() && written.len() == 1 {
        return Some(Actions::All);
    }
    reader.mistake(
        &place,
        "expected the actions that the client may call, or [\"*\"] alone for all actions",
    );
    None
}

// === impl Known ===

impl Known {
    fn new(accounts: &[Account], are_written: bool) -> Self {
        let are_managed = accounts
            .iter()
            .map(|account| (account.id.clone(), account.credentials.is_some()))
            .collect();
        Self {
            are_managed,
            are_written,
        }
    }

    /// What a client must name instead of an account that does not exist.
    fn expected_instead_of(&self, id: &AccountId) -> &'static str {
        let is_default = id.as_str() == DEFAULT_ACCOUNT;
        match (self.are_written, self.are_managed.is_empty()) {
            (true, _) if is_default => {
                "no account has this id: expected the id of one of [[accounts]], beside which \
                 Alibaba's variables define no account \"default\""
            }
            (true, _) => "no account has this id: expected the id of one of [[accounts]]",
            (false, true) if is_default => {
                "no account has this id: expected Alibaba's variables to define the account \
                 \"default\", such as those that ACK's webhook sets (ALIBABA_CLOUD_ROLE_ARN, \
                 ALIBABA_CLOUD_OIDC_PROVIDER_ARN, ALIBABA_CLOUD_OIDC_TOKEN_FILE), but none of them \
                 is set here; or expected [[accounts]]"
            }
            (false, true) => {
                "no account has this id: expected [[accounts]], or \"default\" and Alibaba's \
                 variables, which define that account"
            }
            (false, false) => {
                "no account has this id: expected \"default\", which Alibaba's variables define, \
                 or [[accounts]]"
            }
        }
    }
}

// === impl Taken ===

impl Taken {
    fn key(&mut self, field: &Field<'_>) -> Option<AccessKeyId> {
        let key = field.text(KEY_FORM, access_key)?;
        self.own(field.reader, &field.place, &KeyPattern::new(key.as_str()))?;
        Some(key)
    }

    fn alias(&mut self, field: &Field<'_>) -> Option<KeyPattern> {
        let alias = field.text(ALIAS_FORM, alias)?;
        self.own(field.reader, &field.place, &alias)?;
        Some(alias)
    }

    /// Records that the access key id or prefix is used by this key. Each may be used once.
    fn own(&mut self, reader: &Reader, place: &KeyLocation, key: &KeyPattern) -> Option<()> {
        if let Some(first) = self.keys.get(key) {
            let first = reader.seen(first, place);
            let another = match key.prefix() {
                None => "another access key id",
                Some("") => "\"*\" in the aliases of one account only",
                Some(_) => "another prefix, for example a longer one, which takes precedence",
            };
            let expectation = format!("already used by {first}: expected {another}");
            reader.mistake(place, expectation);
            return None;
        }
        self.keys.insert(key.clone(), place.clone());
        Some(())
    }

    fn id(&mut self, field: &Field<'_>) -> Option<AccountId> {
        let id = field.text(ID_FORM, account_id)?;
        if let Some(first) = self.ids.get(&id) {
            let first = field.reader.seen(first, &field.place);
            field.mistake(format!("already used by {first}: expected another id"));
            return None;
        }
        self.ids.insert(id.clone(), field.place.clone());
        Some(id)
    }
}

fn space(text: &str) -> Option<String> {
    let printable = text.bytes().all(|b| b.is_ascii_graphic());
    (printable && (1..=128).contains(&text.len())).then(|| text.to_owned())
}
