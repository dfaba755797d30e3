//! `[[accounts]]` and `[[clients]]`: whose quota it is, and who may spend it. An access key stands in one place only,
//! or it could be read as two.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use super::limits::action;
use crate::config::credentials;
use crate::config::mistakes::Origin;
use crate::config::read::{Field, POSITIVE, Place, Reader, Section};
use crate::config::secrets::{one_line, secret};
use crate::config::{Account, Actions, Client, Credentials};
use crate::primitives::id::{AccessKeyId, AccountId, ClientId};
use crate::primitives::secret::Secret;

/// Alibaba's own variables, for a sidecar without a file: the account of this name.
const DEFAULT_ACCOUNT: &str = "default";
const KEY_VARIABLE: &str = "ALIBABA_CLOUD_ACCESS_KEY_ID";
const SECRET_VARIABLE: &str = "ALIBABA_CLOUD_ACCESS_KEY_SECRET";
const TOKEN_VARIABLE: &str = "ALIBABA_CLOUD_SECURITY_TOKEN";

/// The label of all accounts that stand nowhere in the configuration.
const UNKNOWN: &str = "unknown";

pub(in crate::config) const KEY_FORM: &str =
    "an access key id: 1 to 128 of letters, digits, '.', '_', '-'";
const ID_FORM: &str = "a name: 1 to 64 of letters, digits, '.', '_', '-', and not \"unknown\"";

/// Names that are taken, and where.
#[derive(Default)]
struct Taken {
    keys: HashMap<AccessKeyId, Place>,
    ids: HashMap<AccountId, Place>,
}

/// Every account, and whether it has a secret to sign with.
type Known = HashMap<AccountId, bool>;

/// Both lists, without what holds a mistake.
pub(super) fn check(
    root: &mut Section<'_>,
    max_hold: Option<Duration>,
) -> (Vec<Account>, Vec<Client>) {
    let mut taken = Taken::default();
    let written = root.tables("accounts");
    let count = written.len();
    let mut accounts: Vec<_> = written
        .into_iter()
        .filter_map(|section| account(section, &mut taken))
        .collect();
    // The client of an account that has a mistake of its own does not get a second one.
    let whole = accounts.len() == count;
    if count == 0 {
        accounts.extend(from_variables(root.reader, &mut taken));
    }
    let known = |account: &Account| (account.id.clone(), account.credentials.is_some());
    let known: Option<Known> = whole.then(|| accounts.iter().map(known).collect());
    let clients = root.tables("clients").into_iter();
    let clients = clients
        .filter_map(|section| client(section, known.as_ref(), max_hold, &mut taken))
        .collect();
    (accounts, clients)
}

fn from_variables(reader: &Reader, taken: &mut Taken) -> Option<Account> {
    let place = |name: &str| Place {
        path: String::new(),
        origin: Origin::Variable(name.to_owned()),
    };
    let [key, secret, token] =
        [KEY_VARIABLE, SECRET_VARIABLE, TOKEN_VARIABLE].map(|name| reader.environment.get(name));
    let (key, secret) = match (key, secret) {
        (None, None) => {
            for name in [KEY_VARIABLE, SECRET_VARIABLE]
                .into_iter()
                .filter(|name| reader.environment.is_empty(name))
            {
                reader.warn(format!("{name}: set, but empty: there is no account"));
            }
            return None;
        }
        (Some(key), Some(secret)) => (key, secret),
        (one, _) => {
            let (given, other) = if one.is_some() {
                (KEY_VARIABLE, SECRET_VARIABLE)
            } else {
                (SECRET_VARIABLE, KEY_VARIABLE)
            };
            reader.mistake(&place(given), format!("expected {other} beside it"));
            return None;
        }
    };
    let Some(access_key_id) = access_key(key) else {
        reader.mistake(&place(KEY_VARIABLE), format!("expected {KEY_FORM}"));
        return None;
    };
    let read = |name: &str, text| {
        one_line(text)
            .map_err(|expectation| reader.mistake(&place(name), expectation))
            .ok()
    };
    let secret = read(SECRET_VARIABLE, secret)?;
    let security_token = token.map(|token| read(TOKEN_VARIABLE, token));
    let security_token: Option<Secret> = if let Some(read) = security_token {
        Some(read?)
    } else {
        None
    };
    let place = Place {
        path: KEY_VARIABLE.to_owned(),
        origin: Origin::Variable(KEY_VARIABLE.to_owned()),
    };
    taken.keys.insert(access_key_id.clone(), place);
    let credentials = Some(Credentials {
        access_key_id,
        secret,
        security_token,
        expires: None,
    });
    Some(Account {
        id: AccountId::new(DEFAULT_ACCOUNT),
        credentials,
        credentials_file: None,
        aliases: Vec::new(),
    })
}

fn account(mut section: Section<'_>, taken: &mut Taken) -> Option<Account> {
    let id = taken.id(&section.key("id"));
    let (credentials, credentials_file) =
        match from_file(section.key("credentials"), &mut section, taken) {
            None => (credentials(&mut section, taken), None),
            Some(read) => {
                let (credentials, file) = read.unzip();
                (credentials.map(Some), file)
            }
        };
    let key = section.key("aliases");
    let place = key.place.clone();
    let aliases = key.list(|entry| taken.key(entry));
    if let (Some(None), Some([])) = (&credentials, aliases.as_deref()) {
        section.reader.mistake(
            &place,
            "expected at least one: without a secret an account is known by its aliases",
        );
    }
    section.done();
    Some(Account {
        id: id?,
        credentials: credentials?,
        credentials_file,
        aliases: aliases?,
    })
}

/// `None`: they are not to be read from one file. The inner `None` is a mistake.
fn from_file(
    key: Field<'_>,
    section: &mut Section<'_>,
    taken: &mut Taken,
) -> Option<Option<(Credentials, PathBuf)>> {
    if !key.is_given() {
        return None;
    }
    for beside in ["access_key_id", "access_key_secret"].map(|name| section.key(name)) {
        if beside.is_given() {
            beside.mistake("expected nothing beside credentials: the file holds both");
        }
    }
    let read = credentials::read(key);
    Some(read.and_then(|(field, credentials, path)| {
        taken.own(&field, &credentials.access_key_id)?;
        Some((credentials, path))
    }))
}

/// Both or neither; the outer `None` is a mistake.
fn credentials(section: &mut Section<'_>, taken: &mut Taken) -> Option<Option<Credentials>> {
    let (key, place) = (
        section.key("access_key_id"),
        section.key("access_key_secret"),
    );
    if !key.is_given() && !place.is_given() {
        return Some(None);
    }
    let access_key_id = taken.key(&key);
    let secret = secret(place);
    Some(Some(Credentials {
        access_key_id: access_key_id?,
        secret: secret?,
        security_token: None,
        expires: None,
    }))
}

/// The largest share; a client of weight 1 beside it still has one turn in a hundred.
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
    let key = section.key("previous_access_key_secret");
    let previous = if key.is_given() {
        secret(key).map(Some)
    } else {
        Some(None)
    };
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
    if let (Some(Some(hold)), Some(max)) = (hold, max_hold)
        && hold > max
    {
        key.mistake("expected at most queue.max_hold");
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

/// The name of an account that has a secret to sign with.
fn managed(key: &Field<'_>, accounts: Option<&Known>) -> Option<AccountId> {
    let id = key.text("the id of an account", |text| Some(AccountId::new(text)))?;
    let Some(accounts) = accounts else {
        return Some(id);
    };
    match accounts.get(&id) {
        None => key.mistake("expected the id of an account"),
        Some(false) => key.mistake("expected a managed account: one with a secret"),
        Some(true) => return Some(id),
    }
    None
}

/// A list of actions, or `*` alone: who may do everything must be written down too.
fn actions(key: Field<'_>) -> Option<Actions> {
    let (reader, place) = (key.reader, key.place.clone());
    let all = |entry: &Field<'_>| entry.says("*");
    let written = key.list(|entry| {
        if all(entry) {
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
        "expected the actions that it may call, or [\"*\"] alone for all",
    );
    None
}

// === impl Taken ===

impl Taken {
    fn key(&mut self, field: &Field<'_>) -> Option<AccessKeyId> {
        let key = field.text(KEY_FORM, access_key)?;
        self.own(field, &key)?;
        Some(key)
    }

    /// The key is this field's, and nobody else's.
    fn own(&mut self, field: &Field<'_>, key: &AccessKeyId) -> Option<()> {
        if let Some(first) = self.keys.get(key) {
            let first = field.reader.seen(first, &field.place);
            field.mistake(format!("expected another access key than that of {first}"));
            return None;
        }
        self.keys.insert(key.clone(), field.place.clone());
        Some(())
    }

    fn id(&mut self, field: &Field<'_>) -> Option<AccountId> {
        let id = field.text(ID_FORM, |text| {
            is_name(text, 64).then(|| AccountId::new(text))
        })?;
        if let Some(first) = self.ids.get(&id) {
            let first = field.reader.seen(first, &field.place);
            field.mistake(format!("expected another name than that of {first}"));
            return None;
        }
        self.ids.insert(id.clone(), field.place.clone());
        Some(id)
    }
}

/// Whether a client may have this access key id, and what is expected if not.
pub(crate) fn check_client_id(text: &str) -> Result<(), String> {
    access_key(text)
        .map(drop)
        .ok_or_else(|| format!("expected {KEY_FORM}"))
}

/// Whether an account may have this name, and what is expected if not.
pub(crate) fn check_account_id(text: &str) -> Result<(), String> {
    if is_name(text, 64) {
        Ok(())
    } else {
        Err(format!("expected {ID_FORM}"))
    }
}

pub(in crate::config) fn access_key(text: &str) -> Option<AccessKeyId> {
    // All callers that cannot be verified are one client of this name.
    let key = is_name(text, 128) && text != ClientId::unverified().as_str();
    key.then(|| AccessKeyId::new(text))
}

fn is_name(text: &str, most: usize) -> bool {
    let plain = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
    plain && (1..=most).contains(&text.len()) && text != UNKNOWN
}

fn space(text: &str) -> Option<String> {
    let printable = text.bytes().all(|b| b.is_ascii_graphic());
    (printable && (1..=128).contains(&text.len())).then(|| text.to_owned())
}
