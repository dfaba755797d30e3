//! Checks `accounts[].credentials`: exactly one source, which for AssumeRole has another one in
//! `from`. A profile becomes the source that it stands for.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::HashMap;
use std::path::PathBuf;
use std::rc::Rc;

use self::profile::Profiles;
use super::ids::{KEY_FORM, access_key};
use super::sts::Sts;
use crate::config::file::Item;
use crate::config::read::{Field, KeyLocation, Reader, Section};
use crate::config::secrets::secret;
use crate::config::{
    AccountCredentials, AssumeRole, Credentials, CredentialsUri, LoadedFrom, Oidc, SessionSource,
    StsEndpoint,
};
use crate::primitives::secret::Secret;

mod ecs_role;
mod file;
mod profile;
mod role;
pub(in crate::config) mod variables;

/// The names of the sources.
const SOURCES: [&str; 7] = [
    "file",
    "env",
    "profile",
    "oidc",
    "ecs_role",
    "assume_role",
    "uri",
];

/// The keys of an access key in `from`.
const ACCESS_KEY: [&str; 3] = ["access_key_id", "access_key_secret", "security_token"];

/// What is expected if neither a key of `oidc` nor its variable is set.
const NO_OIDC: &str = "expected the variables that ACK's webhook sets (ALIBABA_CLOUD_ROLE_ARN, \
                       ALIBABA_CLOUD_OIDC_PROVIDER_ARN, ALIBABA_CLOUD_OIDC_TOKEN_FILE), none of \
                       which is set here, or role_arn, provider_arn and token_file";

const URI_FORM: &str =
    "a URI such as https://host/path, or { env = \"NAME\" } or { file = \"path\" }";

const PATH_FORM: &str = "the path of a file, not its content";

/// Linux's limits in bytes.
const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// Maximum number of sources in a chain: a mistake in it would cause many requests.
const MAX_CHAIN: usize = 5;

/// Reads the sources of all accounts.
pub(super) struct SourceReader<'a> {
    reader: &'a Reader,
    sts: &'a Sts,
    session_name: OnceCell<String>,
    /// The files of profiles that were read.
    profiles: RefCell<HashMap<PathBuf, Rc<Result<Profiles, String>>>>,
    /// Whether the environment forbids these sources.
    metadata_disabled: OnceCell<bool>,
    profiles_disabled: OnceCell<bool>,
    warned_of_version: Cell<bool>,
    /// The profile that the source of the present account, or a source in its chain, was read from.
    profile: RefCell<Option<String>>,
}

/// The required keys of `oidc`.
struct OidcKeys {
    role_arn: String,
    provider_arn: String,
    token_file: PathBuf,
}

// === impl SourceReader ===

impl<'a> SourceReader<'a> {
    pub(super) fn new(reader: &'a Reader, sts: &'a Sts) -> Self {
        Self {
            reader,
            sts,
            session_name: OnceCell::new(),
            profiles: RefCell::default(),
            metadata_disabled: OnceCell::new(),
            profiles_disabled: OnceCell::new(),
            warned_of_version: Cell::new(false),
            profile: RefCell::default(),
        }
    }

    /// Reads the `credentials` of an account, and where its source is written.
    pub(super) fn read(&self, key: Field<'a>) -> Option<(KeyLocation, AccountCredentials)> {
        let section = table(
            key,
            "expected a table with one source, such as { file = \"path\" }",
        )?;
        let whole = section.place.clone();
        let (place, credentials) = self.source(section, 0)?;
        Some((place, self.of_limited_length(credentials, &whole)?))
    }

    /// The profile that the source which was read last comes from.
    pub(super) fn taken_profile(&self) -> Option<String> {
        self.profile.take()
    }

    /// Refuses a chain that is too long because of a profile in it.
    fn of_limited_length(
        &self,
        credentials: AccountCredentials,
        place: &KeyLocation,
    ) -> Option<AccountCredentials> {
        let length = credentials.session().map_or(1, SessionSource::chain_length);
        if length > MAX_CHAIN {
            self.reader.mistake(place, too_long());
            return None;
        }
        Some(credentials)
    }

    /// Reads the one source of a table. `level` is the number of roles that it is assumed for.
    fn source(
        &self,
        mut section: Section<'a>,
        level: usize,
    ) -> Option<(KeyLocation, AccountCredentials)> {
        let place = section.place.clone();
        let sources: Vec<_> = SOURCES
            .into_iter()
            .map(|name| (name, section.key(name)))
            .filter(|(_, key)| key.is_given())
            .collect();
        let access_key = section
            .is_from()
            .then(|| ACCESS_KEY.map(|name| section.key(name)));
        section.done();
        if let Some(keys) = access_key
            && keys.iter().any(Field::is_given)
        {
            if !sources.is_empty() {
                let names = sources.iter().map(|(name, _)| *name);
                self.refuse_several(&place, names.chain(["access_key_id"]));
            }
            return Some((
                place,
                AccountCredentials::Loaded(access_key_of(keys)?, LoadedFrom::Keys),
            ));
        }
        let (name, key) = self.only(&place, sources)?;
        let place = key.place.clone();
        let source = match name {
            "file" => file::read(&key),
            "env" => variables::with_prefix(&key),
            "profile" => self.profile(key),
            "oidc" => self.oidc(key).map(AccountCredentials::Session),
            "ecs_role" => self.ecs_role(key).map(AccountCredentials::Session),
            "assume_role" => self
                .assume_role(key, level)
                .map(AccountCredentials::Session),
            _ => uri(key).map(AccountCredentials::Session),
        };
        Some((place, source?))
    }

    /// Returns the one source. Those that variables set replace those of the file.
    fn only(
        &self,
        place: &KeyLocation,
        mut sources: Vec<(&'static str, Field<'a>)>,
    ) -> Option<(&'static str, Field<'a>)> {
        if sources.iter().any(|(_, key)| key.is_variable()) {
            sources.retain(|(_, key)| key.is_variable());
        }
        if sources.len() > 1 {
            self.refuse_several(place, sources.iter().map(|(name, _)| *name));
            return None;
        }
        let only = sources.pop();
        if only.is_none() {
            let names = SOURCES.join(", ");
            self.reader
                .mistake(place, format!("expected a source: one of {names}"));
        }
        only
    }

    fn refuse_several<'n>(&self, place: &KeyLocation, names: impl Iterator<Item = &'n str>) {
        let names: Vec<_> = names.collect();
        self.reader.mistake(
            place,
            format!("expected one source, found {}", names.join(" and ")),
        );
    }

    /// Reads `oidc`.
    fn oidc(&self, key: Field<'a>) -> Option<SessionSource> {
        let form = "expected a table such as { role_arn = \"acs:ram::...:role/name\" }, or {}";
        self.oidc_table(table(key, form)?)
    }

    fn oidc_table(&self, mut section: Section<'a>) -> Option<SessionSource> {
        let keys = self.oidc_keys(&mut section);
        let arn = keys.as_ref().map(|keys| keys.role_arn.clone());
        let role = self.role(&mut section, arn);
        section.done();
        let OidcKeys {
            provider_arn,
            token_file,
            ..
        } = keys?;
        Some(SessionSource::Oidc(Oidc {
            provider_arn,
            token_file,
            role: role?,
        }))
    }

    /// Reads the required keys of `oidc`. One mistake says that nothing of them is set.
    fn oidc_keys(&self, section: &mut Section<'a>) -> Option<OidcKeys> {
        let [role_arn, provider_arn, token_file] = [
            ("role_arn", variables::ROLE_ARN),
            ("provider_arn", variables::OIDC_PROVIDER_ARN),
            ("token_file", variables::OIDC_TOKEN_FILE),
        ]
        .map(|(name, variable)| section.key(name).or_variable(variable));
        if ![&role_arn, &provider_arn, &token_file]
            .into_iter()
            .any(Field::is_given)
        {
            self.reader.mistake(&section.place, NO_OIDC);
            return None;
        }
        let role_arn = role_arn.text(role::ROLE_FORM, role::role_arn);
        let provider_arn = provider_arn.text(role::PROVIDER_FORM, role::provider_arn);
        let path = path(&token_file).map(|path| token_file.resolve(&path));
        Some(OidcKeys {
            role_arn: role_arn?,
            provider_arn: provider_arn?,
            token_file: path?,
        })
    }

    /// Reads `assume_role`, with its source.
    fn assume_role(&self, key: Field<'a>, level: usize) -> Option<SessionSource> {
        let form = "expected a table such as { from = { ecs_role = {} }, role_arn = \
                    \"acs:ram::...:role/name\" }";
        let mut section = table(key, form)?;
        let from = self.from(section.key("from"), level);
        let mut role_arn = section.key("role_arn");
        let mut external_id = section.key("external_id");
        // The variables describe one role, which is not assumed from itself.
        if level == 0 {
            external_id = external_id.or_variable(variables::EXTERNAL_ID);
            if !from.as_ref().is_some_and(asks_oidc) {
                role_arn = role_arn.or_variable(variables::ROLE_ARN);
            }
        }
        let external_id =
            external_id.optional(|key| key.text(role::EXTERNAL_ID_FORM, role::external_id));
        let arn = role_arn.text(role::ROLE_FORM, role::role_arn);
        let role = self.role(&mut section, arn);
        section.done();
        Some(SessionSource::AssumeRole(AssumeRole {
            from: Box::new(from?),
            external_id: external_id?,
            role: role?,
        }))
    }

    fn from(&self, key: Field<'a>, level: usize) -> Option<AccountCredentials> {
        // Also bounds the recursion.
        if level + 2 > MAX_CHAIN {
            key.mistake(too_long());
            return None;
        }
        let form = "expected the source that assumes the role, such as { ecs_role = {} } or \
                    { access_key_id = \"LTAI...\", access_key_secret = { env = \"NAME\" } }";
        if !key.is_given() {
            key.mistake(format!("missing, {form}"));
            return None;
        }
        self.source(table(key, form)?, level + 1)
            .map(|(_, source)| source)
    }

    /// The endpoint of STS.
    fn sts(&self) -> Option<StsEndpoint> {
        self.sts.endpoint(self.reader)
    }

    /// The session's name if none is given.
    fn default_session_name(&self) -> String {
        let name = self.session_name.get_or_init(|| {
            let host = rustix::system::uname();
            role::default_session_name(&host.nodename().to_string_lossy())
        });
        name.clone()
    }

    fn metadata_is_disabled(&self) -> bool {
        *self
            .metadata_disabled
            .get_or_init(|| self.reader.is_true(variables::ECS_METADATA_DISABLED))
    }

    fn profiles_are_disabled(&self) -> bool {
        *self
            .profiles_disabled
            .get_or_init(|| self.reader.is_true(variables::CLI_PROFILE_DISABLED))
    }
}

/// Returns the key's table.
fn table<'a>(key: Field<'a>, form: &str) -> Option<Section<'a>> {
    key.into_table().map_err(|key| key.mistake(form)).ok()
}

/// Reads the path of a file.
fn path(key: &Field<'_>) -> Option<PathBuf> {
    key.text(PATH_FORM, path_of)
}

/// The path, unless the text is what should be in the file: a JSON Web Token, or a text that is too
/// long for a path. Paths are shown to operators.
fn path_of(text: &str) -> Option<PathBuf> {
    let looks_like_token = text.starts_with("eyJ") && text.contains('.') && !text.contains('/');
    let fits = text.len() <= MAX_PATH && text.split('/').all(|name| name.len() <= MAX_NAME);
    (!text.is_empty() && fits && !looks_like_token).then(|| PathBuf::from(text))
}

/// Reads `uri`: the URI, or the place of one that contains a secret.
fn uri(key: Field<'_>) -> Option<SessionSource> {
    let (reader, place) = (key.reader, key.place.clone());
    let uri = if matches!(key.item, Some(Item::Table(_))) {
        secret(key)?
    } else {
        key.text(URI_FORM, |text| Some(Secret::new(text)))?
    };
    CredentialsUri::parse(uri.expose())
        .map(SessionSource::Uri)
        .map_err(|expectation| reader.mistake(&place, expectation))
        .ok()
}

fn access_key_of(keys: [Field<'_>; 3]) -> Option<Credentials> {
    let [id, secret_key, token] = keys;
    let access_key_id = id.text(KEY_FORM, access_key);
    let secret = secret(secret_key);
    let security_token = token.given(self::secret);
    Some(Credentials {
        access_key_id: access_key_id?,
        secret: secret?,
        security_token: security_token?,
        expires: None,
    })
}

/// Whether a session of Kubernetes' token is in the chain.
fn asks_oidc(source: &AccountCredentials) -> bool {
    let mut source = source;
    loop {
        match source {
            AccountCredentials::Session(SessionSource::Oidc(_)) => return true,
            AccountCredentials::Session(SessionSource::AssumeRole(next)) => source = &next.from,
            AccountCredentials::Loaded(..) | AccountCredentials::Session(_) => return false,
        }
    }
}

fn too_long() -> String {
    format!("expected at most {MAX_CHAIN} sources in a chain")
}
