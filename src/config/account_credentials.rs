//! Where an account's credentials come from. An account has one source; there is no fallback to
//! another.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hyper::http::uri::PathAndQuery;
use serde::{Serialize, Serializer};
use serde_json::json;

use super::serializers;
use super::upstreams::bracketed;
use crate::primitives::id::AccessKeyId;
use crate::primitives::secret::Secret;

/// The source of credentials: of an account that Flowgate signs for, or of those that assume a role.
#[derive(Clone, Debug)]
pub enum AccountCredentials {
    /// Read with the configuration.
    Loaded(Credentials, LoadedFrom),
    /// Temporary credentials, which are obtained and refreshed while Flowgate runs.
    Session(SessionSource),
}

/// Where credentials were read that are read with the configuration.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum LoadedFrom {
    /// `access_key_id` and `access_key_secret`.
    Keys,
    /// Environment variables with these first characters, such as `ALIBABA_CLOUD`.
    Variables(String),
    /// A file, which another process replaces before its credentials expire.
    File(PathBuf),
    /// A profile of Alibaba's command line tool.
    Profile(String),
}

/// The credentials that Flowgate signs with. They are replaced as a whole.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The access key id.
    pub access_key_id: AccessKeyId,
    /// The access key secret.
    pub secret: Secret,
    /// The STS token of temporary credentials.
    pub security_token: Option<Secret>,
    /// When temporary credentials expire, if that is known.
    pub expires: Option<SystemTime>,
}

/// A service that returns temporary credentials. Equal sources return interchangeable ones.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SessionSource {
    /// AssumeRoleWithOIDC of STS, with a token of Kubernetes (RRSA).
    Oidc(Oidc),
    /// The metadata service of the ECS instance.
    EcsRole(EcsRole),
    /// AssumeRole of STS, with other credentials.
    AssumeRole(AssumeRole),
    /// A URI that returns credentials in the form of the metadata service.
    Uri(CredentialsUri),
}

/// AssumeRoleWithOIDC.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Oidc {
    /// The OIDC provider in RAM: `acs:ram::<account>:oidc-provider/<name>`.
    pub provider_arn: String,
    /// The file of the OIDC token, which Kubernetes replaces.
    pub token_file: PathBuf,
    /// The role.
    #[serde(flatten)]
    pub role: Role,
}

/// AssumeRole.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct AssumeRole {
    /// The credentials that assume the role.
    pub from: Box<AccountCredentials>,
    /// The external id that the role's trust policy demands.
    pub external_id: Option<String>,
    /// The role.
    #[serde(flatten)]
    pub role: Role,
}

/// The role that STS is asked for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct Role {
    /// `acs:ram::<account>:role/<name>`.
    #[serde(rename = "role_arn")]
    pub arn: String,
    /// The session's name in ActionTrail.
    pub session_name: String,
    /// A policy in JSON that limits the session further.
    pub policy: Option<String>,
    /// The lifetime that is asked for. `None`: STS's default of one hour.
    #[serde(serialize_with = "serializers::optional_time")]
    pub duration: Option<Duration>,
    /// Where STS is.
    pub sts: StsEndpoint,
}

/// The HTTPS endpoint of STS.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct StsEndpoint {
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

/// The metadata service of an ECS instance.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
pub struct EcsRole {
    /// The role's name. `None`: the metadata service is asked for it.
    pub role: Option<String>,
    /// Whether version 1 of the service, without a token, is used if version 2 fails.
    pub allow_v1: bool,
    /// The service's address.
    #[serde(serialize_with = "serializers::text")]
    pub address: SocketAddr,
}

/// A URI that returns credentials. It was checked against addresses that must not be asked.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct CredentialsUri {
    /// Whether the scheme is https. Plaintext leads to loopback only.
    pub is_tls: bool,
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The path and the query, unchanged. May contain a secret.
    pub target: PathAndQuery,
}

// === impl AccountCredentials ===

impl AccountCredentials {
    /// The credentials, if they are read with the configuration.
    pub fn loaded(&self) -> Option<&Credentials> {
        match self {
            Self::Loaded(credentials, _) => Some(credentials),
            Self::Session(_) => None,
        }
    }

    /// Whether another process replaces the credentials while Flowgate runs.
    pub(crate) fn are_replaced(&self) -> bool {
        matches!(
            self,
            Self::Loaded(_, LoadedFrom::File(_) | LoadedFrom::Profile(_))
        )
    }

    /// Whether they are obtained over TLS.
    pub(super) fn use_tls(&self) -> bool {
        self.session().is_some_and(SessionSource::uses_tls)
    }

    /// The source of temporary credentials that Flowgate obtains itself.
    pub(crate) fn session(&self) -> Option<&SessionSource> {
        match self {
            Self::Loaded(..) => None,
            Self::Session(source) => Some(source),
        }
    }
}

impl Serialize for AccountCredentials {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Loaded(_, from) => from.serialize(serializer),
            Self::Session(source) => source.serialize(serializer),
        }
    }
}

impl PartialEq for AccountCredentials {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Loaded(ours, from), Self::Loaded(theirs, theirs_from)) => {
                ours.are_same(theirs) && from == theirs_from
            }
            (Self::Session(ours), Self::Session(theirs)) => ours == theirs,
            _ => false,
        }
    }
}

impl Eq for AccountCredentials {}

impl Hash for AccountCredentials {
    /// Secrets are left out; equality decides about them.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match self {
            Self::Loaded(credentials, _) => credentials.access_key_id.hash(state),
            Self::Session(source) => source.hash(state),
        }
    }
}

// === impl SessionSource ===

impl SessionSource {
    /// A short name for logs, metrics and the status page.
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Oidc(_) => "oidc",
            Self::EcsRole(_) => "ecs_role",
            Self::AssumeRole(_) => "assume_role",
            Self::Uri(_) => "uri",
        }
    }

    /// The number of sources that one session needs, including this one.
    pub(crate) fn chain_length(&self) -> usize {
        let from_loaded = self.chain().filter_map(Self::loaded_from);
        self.chain().count() + from_loaded.count()
    }

    /// This source and those that it needs, each before the one whose session assumes its role.
    pub(crate) fn chain(&self) -> impl Iterator<Item = &Self> {
        std::iter::successors(Some(self), |source| source.session_from())
    }

    /// The source of the credentials that assume the role, if they are temporary.
    pub(crate) fn session_from(&self) -> Option<&Self> {
        match self {
            Self::AssumeRole(role) => role.from.session(),
            _ => None,
        }
    }

    /// The credentials that assume the role, if they are read with the configuration.
    pub(crate) fn loaded_from(&self) -> Option<&Credentials> {
        match self {
            Self::AssumeRole(role) => role.from.loaded(),
            _ => None,
        }
    }

    /// The role that is asked for; empty if the configuration does not say it.
    pub(crate) fn role(&self) -> &str {
        match self {
            Self::Oidc(source) => &source.role.arn,
            Self::AssumeRole(source) => &source.role.arn,
            Self::EcsRole(source) => source.role.as_deref().unwrap_or_default(),
            Self::Uri(_) => "",
        }
    }

    /// Where STS is, for sources that ask it.
    pub(crate) fn sts(&self) -> Option<&StsEndpoint> {
        match self {
            Self::Oidc(source) => Some(&source.role.sts),
            Self::AssumeRole(source) => Some(&source.role.sts),
            Self::EcsRole(_) | Self::Uri(_) => None,
        }
    }

    /// Whether it, or a source that it needs, is asked over TLS.
    pub(crate) fn uses_tls(&self) -> bool {
        match self {
            Self::Oidc(_) | Self::AssumeRole(_) => true,
            Self::EcsRole(_) => false,
            Self::Uri(uri) => uri.is_tls,
        }
    }
}

// === impl EcsRole ===

impl EcsRole {
    /// The address of Alibaba's metadata service.
    pub(crate) const METADATA_SERVICE: SocketAddr =
        SocketAddr::new(IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)), 80);

    /// Whether the text is the name of a role, which becomes a part of a path.
    pub(crate) fn is_role_name(text: &str) -> bool {
        (1..=64).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
            // A path of them leads elsewhere.
            && !matches!(text, "." | "..")
    }
}

// === impl LoadedFrom ===

impl Serialize for LoadedFrom {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Keys => serializer.serialize_str("keys"),
            Self::Variables(prefix) => json!({ "env": prefix }).serialize(serializer),
            Self::File(path) => json!({ "file": path.display().to_string() }).serialize(serializer),
            Self::Profile(name) => json!({ "profile": name }).serialize(serializer),
        }
    }
}

// === impl Credentials ===

impl Credentials {
    /// Whether the text repeats a part of the secret or of the token.
    pub(crate) fn are_quoted_by(&self, text: &str) -> bool {
        let mut secrets = [Some(&self.secret), self.security_token.as_ref()]
            .into_iter()
            .flatten();
        secrets.any(|secret| secret.is_quoted_by(text))
    }

    /// Whether they are temporary, and not known to have expired.
    pub(crate) fn is_unexpired_session(&self, now: SystemTime) -> bool {
        self.security_token.is_some() && self.expires.is_none_or(|expires| now < expires)
    }

    /// Whether both are of one session. A service may return a new session with the same key id.
    pub(crate) fn is_same_session(&self, other: &Self) -> bool {
        self.access_key_id == other.access_key_id && self.token() == other.token()
    }

    /// Whether both sign in the same way.
    fn are_same(&self, other: &Self) -> bool {
        self.is_same_session(other) && self.secret.expose() == other.secret.expose()
    }

    fn token(&self) -> Option<&str> {
        self.security_token.as_ref().map(Secret::expose)
    }
}

// === impl StsEndpoint ===

impl StsEndpoint {
    /// The port of HTTPS.
    pub(crate) const DEFAULT_PORT: u16 = 443;
}

impl fmt::Display for StsEndpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = bracketed(&self.host);
        if self.port == Self::DEFAULT_PORT {
            f.write_str(&host)
        } else {
            write!(f, "{host}:{}", self.port)
        }
    }
}

impl Serialize for StsEndpoint {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

// === impl CredentialsUri ===

impl fmt::Display for CredentialsUri {
    /// Scheme, host and port: the path and the query may contain a secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = if self.is_tls { "https" } else { "http" };
        write!(f, "{scheme}://{}:{}", bracketed(&self.host), self.port)
    }
}

impl fmt::Debug for CredentialsUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for CredentialsUri {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
