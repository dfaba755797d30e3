//! The account `default`, which the variables of Alibaba's SDKs define for a process without a
//! configuration file: an access key, or exactly one other source. Unlike the SDKs there is no
//! order in which sources are tried.

use super::SourceReader;
use crate::config::check::ids::{KEY_FORM, access_key};
use crate::config::check::sts;
use crate::config::mistakes::Origin;
use crate::config::read::{Field, KeyLocation, Reader, Section};
use crate::config::secrets::one_line;
use crate::config::{AccountCredentials, Credentials, LoadedFrom, SessionSource};
use crate::primitives::secret::Secret;

/// The first characters of Alibaba's variables.
const PREFIX: &str = "ALIBABA_CLOUD";
pub(in crate::config) const ACCESS_KEY_ID: &str = "ALIBABA_CLOUD_ACCESS_KEY_ID";
const ACCESS_KEY_SECRET: &str = "ALIBABA_CLOUD_ACCESS_KEY_SECRET";
const SECURITY_TOKEN: &str = "ALIBABA_CLOUD_SECURITY_TOKEN";
const CREDENTIALS_URI: &str = "ALIBABA_CLOUD_CREDENTIALS_URI";
pub(super) const ROLE_ARN: &str = "ALIBABA_CLOUD_ROLE_ARN";
pub(super) const OIDC_PROVIDER_ARN: &str = "ALIBABA_CLOUD_OIDC_PROVIDER_ARN";
pub(super) const OIDC_TOKEN_FILE: &str = "ALIBABA_CLOUD_OIDC_TOKEN_FILE";
pub(super) const ROLE_SESSION_NAME: &str = "ALIBABA_CLOUD_ROLE_SESSION_NAME";
pub(super) const EXTERNAL_ID: &str = "ALIBABA_CLOUD_EXTERNAL_ID";
pub(super) const ECS_METADATA: &str = "ALIBABA_CLOUD_ECS_METADATA";
pub(super) const ECS_METADATA_DISABLED: &str = "ALIBABA_CLOUD_ECS_METADATA_DISABLED";
pub(super) const IMDSV1_DISABLED: &str = "ALIBABA_CLOUD_IMDSV1_DISABLED";
pub(super) const PROFILE: &str = "ALIBABA_CLOUD_PROFILE";
pub(super) const CLI_PROFILE_DISABLED: &str = "ALIBABA_CLOUD_CLI_PROFILE_DISABLED";
pub(super) const CONFIG_FILE: &str = "ALIBABA_CLOUD_CONFIG_FILE";

/// The variables of OIDC, which only together are a source.
const OIDC: [&str; 3] = [ROLE_ARN, OIDC_PROVIDER_ARN, OIDC_TOKEN_FILE];

/// The variables that define a source besides the access key.
const SOURCES: [&str; 6] = [
    ROLE_ARN,
    OIDC_PROVIDER_ARN,
    OIDC_TOKEN_FILE,
    CREDENTIALS_URI,
    ECS_METADATA,
    PROFILE,
];

/// All variables of Alibaba's SDKs that Flowgate reads.
pub(in crate::config) const READ: [&str; 18] = [
    ACCESS_KEY_ID,
    ACCESS_KEY_SECRET,
    SECURITY_TOKEN,
    CREDENTIALS_URI,
    ROLE_ARN,
    OIDC_PROVIDER_ARN,
    OIDC_TOKEN_FILE,
    ROLE_SESSION_NAME,
    EXTERNAL_ID,
    ECS_METADATA,
    ECS_METADATA_DISABLED,
    IMDSV1_DISABLED,
    PROFILE,
    CLI_PROFILE_DISABLED,
    CONFIG_FILE,
    sts::ENDPOINT_VARIABLE,
    sts::REGION_VARIABLE,
    sts::VPC_VARIABLE,
];

/// Variables of SDKs and other tools that name or hold credentials, and which Flowgate does not
/// read.
pub(in crate::config) const NOT_READ: [&str; 13] = [
    "ALIBABA_CLOUD_CREDENTIALS_FILE",
    "ALIBABA_CLOUD_BEARER_TOKEN",
    "ALIBABACLOUD_ACCESS_KEY_ID",
    "ALIBABACLOUD_ROLE_ARN",
    "ALIBABACLOUD_OIDC_TOKEN_FILE",
    "ALIBABACLOUD_ECS_METADATA",
    "ALIBABACLOUD_PROFILE",
    "ALICLOUD_ACCESS_KEY",
    "ALICLOUD_ACCESS_KEY_ID",
    "ALICLOUD_ROLE_ARN",
    "ALICLOUD_ASSUME_ROLE_ARN",
    "ALICLOUD_ECS_ROLE_NAME",
    "ALICLOUD_PROFILE",
];

/// The form of `env`.
const PREFIX_FORM: &str =
    "the first characters of variables such as ALIBABA_CLOUD: letters, digits and '_'";

/// A source that the variables define.
#[derive(Clone, Copy)]
enum Defined {
    Oidc,
    Uri,
    EcsRole,
    Profile,
}

// === impl SourceReader ===

impl<'a> SourceReader<'a> {
    /// Reads the credentials that the variables define, and where they are written. The outer
    /// `None` is a mistake.
    pub(in crate::config::check) fn of_variables(
        &self,
    ) -> Option<Option<(KeyLocation, AccountCredentials)>> {
        let others: Vec<_> = SOURCES
            .into_iter()
            .filter(|name| is_set(self.reader, name))
            .collect();
        if [ACCESS_KEY_ID, ACCESS_KEY_SECRET]
            .iter()
            .any(|name| is_set(self.reader, name))
        {
            if !others.is_empty() {
                self.reader.warn(format!(
                    "{}: ignored, because {ACCESS_KEY_ID} is set",
                    others.join(", ")
                ));
            }
            return access_key_of_variables(self.reader).map(Some);
        }
        if others.is_empty() {
            warn_of_unused_variables(self.reader);
            return Some(None);
        }
        self.only_source().map(Some)
    }

    /// Reads the only source besides an access key.
    fn only_source(&self) -> Option<(KeyLocation, AccountCredentials)> {
        let (oidc, missing): (Vec<_>, Vec<_>) =
            OIDC.into_iter().partition(|name| is_set(self.reader, name));
        if !oidc.is_empty() && !missing.is_empty() {
            let expectation = format!("expected {} to be set too", missing.join(" and "));
            self.reader.mistake(&variable(oidc[0]), expectation);
            return None;
        }
        let mut defined = Vec::new();
        if missing.is_empty() {
            defined.push((Defined::Oidc, ROLE_ARN));
        }
        let others = [
            (Defined::Uri, CREDENTIALS_URI),
            (Defined::EcsRole, ECS_METADATA),
            (Defined::Profile, PROFILE),
        ];
        defined.extend(
            others
                .into_iter()
                .filter(|(_, name)| is_set(self.reader, name)),
        );
        self.leave_out_disabled(&mut defined);
        let [(source, name)] = defined[..] else {
            let names: Vec<_> = defined.iter().map(|(_, name)| *name).collect();
            let expectation = format!(
                "expected one source of credentials, found {}: unset all but one, or configure \
                 [[accounts]]",
                names.join(" and ")
            );
            self.reader.mistake(&variable(names[0]), expectation);
            return None;
        };
        let place = variable(name);
        let credentials = self.defined(source, &place)?;
        Some((named(name), self.of_limited_length(credentials, &place)?))
    }

    /// Removes sources that the environment forbids, if another one is left.
    fn leave_out_disabled(&self, defined: &mut Vec<(Defined, &str)>) {
        if defined.iter().any(|(source, _)| self.is_allowed(*source)) {
            defined.retain(|(source, _)| self.is_allowed(*source));
        }
    }

    fn is_allowed(&self, source: Defined) -> bool {
        match source {
            Defined::EcsRole => !self.metadata_is_disabled(),
            Defined::Profile => !self.profiles_are_disabled(),
            Defined::Oidc | Defined::Uri => true,
        }
    }

    fn defined(&self, source: Defined, place: &KeyLocation) -> Option<AccountCredentials> {
        let unwritten = |table: &str| Section::unwritten(self.reader, table);
        let source: Option<SessionSource> = match source {
            Defined::Profile => return self.profile_of(place, None, None),
            Defined::EcsRole => self.ecs_role_of_variables(place),
            Defined::Oidc => self.oidc_table(unwritten("accounts[].credentials.oidc")),
            Defined::Uri => {
                let key = unwritten("accounts[].credentials").key("uri");
                super::uri(key.or_variable(CREDENTIALS_URI))
            }
        };
        source.map(AccountCredentials::Session)
    }
}

/// Whether a variable is set and not empty.
fn is_set(reader: &Reader, name: &str) -> bool {
    reader.environment.get(name).is_some()
}

/// Reads `env`: variables with these first characters.
pub(super) fn with_prefix(key: &Field<'_>) -> Option<AccountCredentials> {
    let prefix = key.text(PREFIX_FORM, |text| {
        let is_prefix =
            !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_');
        is_prefix.then(|| text.to_owned())
    })?;
    match prefixed(key.reader, &prefix) {
        Ok(credentials) => Some(AccountCredentials::Loaded(
            credentials,
            LoadedFrom::Variables(prefix),
        )),
        Err(expectation) => {
            key.mistake(expectation);
            None
        }
    }
}

/// Reads the variables with these first characters, which are not shown: they may be a misplaced
/// secret.
fn prefixed(reader: &Reader, prefix: &str) -> Result<Credentials, String> {
    let [id, secret, token] = ["_ACCESS_KEY_ID", "_ACCESS_KEY_SECRET", "_SECURITY_TOKEN"]
        .map(|end| reader.environment.get(&format!("{prefix}{end}")));
    let (Some(id), Some(secret)) = (id, secret) else {
        return Err(
            "expected the first characters of two variables that are set and not empty: with \
             _ACCESS_KEY_ID and with _ACCESS_KEY_SECRET after them (names not printed: they could \
             be a secret)"
                .to_owned(),
        );
    };
    let token = token.map(one_line).transpose();
    Ok(Credentials {
        access_key_id: access_key(id)
            .ok_or_else(|| format!("..._ACCESS_KEY_ID: expected {KEY_FORM}"))?,
        secret: one_line(secret).map_err(|reason| format!("..._ACCESS_KEY_SECRET: {reason}"))?,
        security_token: token.map_err(|reason| format!("..._SECURITY_TOKEN: {reason}"))?,
        expires: None,
    })
}

/// Reads the access key, one of whose variables is set.
fn access_key_of_variables(reader: &Reader) -> Option<(KeyLocation, AccountCredentials)> {
    let [key, secret, token] =
        [ACCESS_KEY_ID, ACCESS_KEY_SECRET, SECURITY_TOKEN].map(|name| reader.environment.get(name));
    let Some(key) = key else {
        let expectation = format!("expected {ACCESS_KEY_ID} to be set too");
        reader.mistake(&variable(ACCESS_KEY_SECRET), expectation);
        return None;
    };
    let Some(secret) = secret else {
        let expectation = format!("expected {ACCESS_KEY_SECRET} to be set too");
        reader.mistake(&variable(ACCESS_KEY_ID), expectation);
        return None;
    };
    let Some(access_key_id) = access_key(key) else {
        reader.mistake(&variable(ACCESS_KEY_ID), format!("expected {KEY_FORM}"));
        return None;
    };
    let secret = secret_variable(reader, ACCESS_KEY_SECRET, secret)?;
    let security_token = match token {
        Some(token) => Some(secret_variable(reader, SECURITY_TOKEN, token)?),
        None => None,
    };
    let credentials = Credentials {
        access_key_id,
        secret,
        security_token,
        expires: None,
    };
    let from = LoadedFrom::Variables(PREFIX.to_owned());
    Some((
        named(ACCESS_KEY_ID),
        AccountCredentials::Loaded(credentials, from),
    ))
}

/// Warns if no account is defined, but a variable of its key is set and empty, a variable is set
/// that is only of use beside another one, or the environment names a source of credentials that
/// another program would use.
fn warn_of_unused_variables(reader: &Reader) {
    for name in [ACCESS_KEY_ID, ACCESS_KEY_SECRET] {
        if reader.environment.is_empty(name) {
            reader.warn(format!("{name}: set but empty, so it defines no account"));
        }
    }
    for (name, needed) in [(SECURITY_TOKEN, ACCESS_KEY_ID), (CONFIG_FILE, PROFILE)] {
        if is_set(reader, name) {
            reader.warn(format!(
                "{name}: defines no account without {needed}: set {needed} too, or configure \
                 [[accounts]]"
            ));
        }
    }
    let set: Vec<_> = NOT_READ
        .into_iter()
        .filter(|name| is_set(reader, name))
        .collect();
    if !set.is_empty() {
        reader.warn(format!(
            "{}: not supported, so there is no account: set {ACCESS_KEY_ID} and \
             {ACCESS_KEY_SECRET}, the variables of OIDC, {CREDENTIALS_URI}, {ECS_METADATA} or \
             {PROFILE}, or configure [[accounts]]",
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

/// The place of a variable as other mistakes name it.
fn named(name: &str) -> KeyLocation {
    KeyLocation {
        path: name.to_owned(),
        ..variable(name)
    }
}

fn secret_variable(reader: &Reader, name: &str, text: &str) -> Option<Secret> {
    one_line(text)
        .map_err(|expectation| reader.mistake(&variable(name), expectation))
        .ok()
}
