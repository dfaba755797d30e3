//! Checks `[[accounts]]` and `[[clients]]`. Each access key id, and each prefix in `aliases`, may
//! appear only once, because it identifies one account or one client.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::time::Duration;

use super::account_upstreams::AccountUpstreams;
use super::at_most_max_hold;
use super::ids::{ALIAS_FORM, ID_FORM, KEY_FORM, access_key, account_id, alias};
use super::limits::action;
use crate::config::mistakes::Origin;
use crate::config::read::{Field, KeyLocation, POSITIVE, Reader, Section};
use crate::config::secrets::{one_line, secret};
use crate::config::{Account, AccountCredentials, Actions, Client, Credentials, LoadedFrom};
use crate::primitives::id::{AccessKeyId, AccountId, ClientId, KeyPattern};
use crate::primitives::secret::Secret;

/// The account that Alibaba's own variables define, for a sidecar without a file.
const DEFAULT_ACCOUNT: &str = "default";
/// The first characters of these variables.
const VARIABLES: &str = "ALIBABA_CLOUD";
const KEY_VARIABLE: &str = "ALIBABA_CLOUD_ACCESS_KEY_ID";
const SECRET_VARIABLE: &str = "ALIBABA_CLOUD_ACCESS_KEY_SECRET";
const TOKEN_VARIABLE: &str = "ALIBABA_CLOUD_SECURITY_TOKEN";

/// Variables of Alibaba's SDKs that name other sources of credentials, and those of other tools
/// that hold a key. Flowgate reads none of them.
const OTHER_SOURCES: [&str; 11] = [
    "ALIBABA_CLOUD_ROLE_ARN",
    "ALIBABA_CLOUD_OIDC_PROVIDER_ARN",
    "ALIBABA_CLOUD_OIDC_TOKEN_FILE",
    "ALIBABA_CLOUD_CREDENTIALS_URI",
    "ALIBABA_CLOUD_ECS_METADATA",
    "ALIBABA_CLOUD_CREDENTIALS_FILE",
    "ALIBABA_CLOUD_PROFILE",
    "ALIBABA_CLOUD_BEARER_TOKEN",
    "ALIBABACLOUD_ACCESS_KEY_ID",
    "ALICLOUD_ACCESS_KEY",
    "ALICLOUD_ACCESS_KEY_ID",
];

/// The names in use, and where they are written.
#[derive(Default)]
struct Taken {
    keys: HashMap<KeyPattern, KeyLocation>,
    ids: HashMap<AccountId, KeyLocation>,
}

/// Every account, and whether it has a secret to sign with.
type Known = HashMap<AccountId, bool>;

/// Checks both lists. Entries with a mistake are left out.
pub(super) fn check(
    root: &mut Section<'_>,
    max_hold: Option<Duration>,
    upstreams: &mut AccountUpstreams<'_>,
) -> (Vec<Account>, Vec<Client>) {
    let mut taken = Taken::default();
    let written = root.tables("accounts");
    let count = written.len();
    let mut accounts: Vec<_> = written
        .into_iter()
        .filter_map(|section| account(section, &mut taken, upstreams))
        .collect();
    // If an account has a mistake, its clients would be reported as having no account. In that
    // case they are not checked against the accounts.
    let whole = accounts.len() == count;
    if count == 0 {
        accounts.extend(from_variables(root.reader, &mut taken));
    }
    let known: Option<Known> = whole.then(|| {
        accounts
            .iter()
            .map(|account| (account.id.clone(), account.credentials.is_some()))
            .collect()
    });
    let clients = root
        .tables("clients")
        .into_iter()
        .filter_map(|section| client(section, known.as_ref(), max_hold, &mut taken))
        .collect();
    (accounts, clients)
}

/// Reads the account that Alibaba's own variables define.
fn from_variables(reader: &Reader, taken: &mut Taken) -> Option<Account> {
    let key = reader.environment.get(KEY_VARIABLE);
    let secret = reader.environment.get(SECRET_VARIABLE);
    let token = reader.environment.get(TOKEN_VARIABLE);
    let (key, secret) = match (key, secret) {
        (Some(key), Some(secret)) => (key, secret),
        (Some(_), None) => {
            let expectation = format!("expected {SECRET_VARIABLE} to be set too");
            reader.mistake(&variable(KEY_VARIABLE), expectation);
            return None;
        }
        (None, Some(_)) => {
            let expectation = format!("expected {KEY_VARIABLE} to be set too");
            reader.mistake(&variable(SECRET_VARIABLE), expectation);
            return None;
        }
        (None, None) => {
            warn_of_unused_variables(reader);
            return None;
        }
    };
    let Some(access_key_id) = access_key(key) else {
        reader.mistake(&variable(KEY_VARIABLE), format!("expected {KEY_FORM}"));
        return None;
    };
    let secret = secret_variable(reader, SECRET_VARIABLE, secret)?;
    let security_token = match token {
        Some(token) => Some(secret_variable(reader, TOKEN_VARIABLE, token)?),
        None => None,
    };
    let place = KeyLocation {
        path: KEY_VARIABLE.to_owned(),
        origin: Origin::Variable(KEY_VARIABLE.to_owned()),
    };
    let own = KeyPattern::new(access_key_id.as_str());
    taken.keys.insert(own, place);
    let credentials = Credentials {
        access_key_id,
        secret,
        security_token,
        expires: None,
    };
    let from = LoadedFrom::Variables(VARIABLES.to_owned());
    Some(Account {
        id: AccountId::new(DEFAULT_ACCOUNT),
        credentials: Some(AccountCredentials::Loaded(credentials, from)),
        aliases: Vec::new(),
        upstream: None,
    })
}

/// Warns if no account is defined, but a variable of its key is set and empty, or the environment
/// names a source of credentials that an SDK would use.
fn warn_of_unused_variables(reader: &Reader) {
    for name in [KEY_VARIABLE, SECRET_VARIABLE] {
        if reader.environment.is_empty(name) {
            reader.warn(format!("{name}: set but empty, so it defines no account"));
        }
    }
    let set: Vec<_> = OTHER_SOURCES
        .into_iter()
        .filter(|name| reader.environment.get(name).is_some())
        .collect();
    if !set.is_empty() {
        reader.warn(format!(
            "{}: not supported, so there is no account: set {KEY_VARIABLE} and \
             {SECRET_VARIABLE}, or [[accounts]] with a credentials file that is kept current",
            set.join(", ")
        ));
    }
}

/// The place of a variable that sets no key.
fn variable(name: &str) -> KeyLocation {
    KeyLocation {
        path: String::new(),
        origin: Origin::Variable(name.to_owned()),
    }
}

fn secret_variable(reader: &Reader, name: &str, text: &str) -> Option<Secret> {
    one_line(text)
        .map_err(|expectation| reader.mistake(&variable(name), expectation))
        .ok()
}

fn account(
    mut section: Section<'_>,
    taken: &mut Taken,
    upstreams: &mut AccountUpstreams<'_>,
) -> Option<Account> {
    let id = taken.id(&section.key("id"));
    let credentials = match from_file(section.key("credentials"), &mut section, taken) {
        None => credentials(&mut section, taken),
        Some(read) => read.map(Some),
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
    section.done();
    Some(Account {
        id: id?,
        credentials: credentials?,
        aliases: aliases?,
        upstream: upstream?,
    })
}

/// Reads `credentials`. `None`: the key is absent. The inner `None` is a mistake.
fn from_file(
    key: Field<'_>,
    section: &mut Section<'_>,
    taken: &mut Taken,
) -> Option<Option<AccountCredentials>> {
    if !key.is_given() {
        return None;
    }
    for beside in ["access_key_id", "access_key_secret"].map(|name| section.key(name)) {
        if beside.is_given() {
            beside.mistake(
                "expected either this key or credentials: the credentials file holds both the \
                 access key id and its secret",
            );
        }
    }
    let read = super::credentials::read(key);
    Some(read.and_then(|(field, credentials, path)| {
        taken.own(&field, &KeyPattern::new(credentials.access_key_id.as_str()))?;
        Some(AccountCredentials::Loaded(
            credentials,
            LoadedFrom::File(path),
        ))
    }))
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
    match accounts.get(&id) {
        None => key.mistake("no account has this id: expected the id of one of [[accounts]]"),
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

// === impl Taken ===

impl Taken {
    fn key(&mut self, field: &Field<'_>) -> Option<AccessKeyId> {
        let key = field.text(KEY_FORM, access_key)?;
        self.own(field, &KeyPattern::new(key.as_str()))?;
        Some(key)
    }

    fn alias(&mut self, field: &Field<'_>) -> Option<KeyPattern> {
        let alias = field.text(ALIAS_FORM, alias)?;
        self.own(field, &alias)?;
        Some(alias)
    }

    /// Records that the access key id or prefix is used by this field. Each may be used once.
    fn own(&mut self, field: &Field<'_>, key: &KeyPattern) -> Option<()> {
        if let Some(first) = self.keys.get(key) {
            let first = field.reader.seen(first, &field.place);
            let another = match key.prefix() {
                None => "another access key id",
                Some("") => "\"*\" in the aliases of one account only",
                Some(_) => "another prefix, for example a longer one, which takes precedence",
            };
            field.mistake(format!("already used by {first}: expected {another}"));
            return None;
        }
        self.keys.insert(key.clone(), field.place.clone());
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
