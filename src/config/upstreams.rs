//! The upstreams of a configuration: the one of `[upstream]`, and those that accounts name. An
//! account's upstream has the settings of `[upstream]` with another URL. Each URL is one upstream.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Serialize, Serializer};

use super::{AccountCredentials, Config, Scheme, Upstream};
use crate::primitives::secret::Secret;

/// The index of an upstream in its configuration. 0 is the one of `[upstream]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct UpstreamIndex(usize);

/// The upstream of an account that does not use the one of `[upstream]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccountUpstream {
    /// Its index.
    pub index: UpstreamIndex,
    /// Its URL.
    pub url: Arc<str>,
}

/// An HTTP proxy that opens tunnels with CONNECT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProxy {
    /// The host, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

// === impl UpstreamIndex ===

impl UpstreamIndex {
    /// The index of the upstream with this index in `Config::account_upstreams`.
    pub(super) fn of_account(index: usize) -> Self {
        Self(index + 1)
    }

    /// The index in a list of all upstreams.
    pub(crate) fn index(self) -> usize {
        self.0
    }
}

// === impl Config ===

impl Config {
    /// All upstreams, in the order of their indices.
    pub(crate) fn upstreams(&self) -> impl Iterator<Item = &Upstream> {
        std::iter::once(&self.upstream).chain(&self.account_upstreams)
    }

    /// Whether an upstream or a source of temporary credentials is reached over TLS.
    pub(crate) fn dials_tls(&self) -> bool {
        let credentials = || {
            self.accounts
                .iter()
                .filter_map(|account| account.credentials.as_ref())
        };
        self.upstreams()
            .any(|upstream| upstream.scheme == Scheme::Https)
            || credentials().any(AccountCredentials::use_tls)
    }
}

// === impl Upstream ===

impl Upstream {
    /// Scheme, host and port.
    pub(crate) fn url(&self) -> String {
        let host = bracketed(&self.dial_host);
        format!("{}://{host}:{}", self.scheme, self.dial_port)
    }

    /// Host and port, as a tunnel's target.
    pub(crate) fn authority(&self) -> String {
        format!("{}:{}", bracketed(&self.dial_host), self.dial_port)
    }

    /// Whether connections opened with the other settings can serve these.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        // Each field is named, so that the compiler reports a new one.
        let Self {
            scheme,
            dial_host,
            dial_port,
            host,
            connect_to,
            proxy,
            proxy_credentials,
            ca_file,
            connect_timeout,
            answer_timeout,
            idle_timeout,
            max_response,
            correct_clock,
        } = self;
        *scheme == other.scheme
            && *dial_host == other.dial_host
            && *dial_port == other.dial_port
            && *host == other.host
            && *connect_to == other.connect_to
            && *proxy == other.proxy
            && *ca_file == other.ca_file
            && *connect_timeout == other.connect_timeout
            && *answer_timeout == other.answer_timeout
            && *idle_timeout == other.idle_timeout
            && *max_response == other.max_response
            && *correct_clock == other.correct_clock
            && exposed(proxy_credentials.as_ref()) == exposed(other.proxy_credentials.as_ref())
    }
}

// === impl AccountUpstream ===

impl Serialize for AccountUpstream {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.url)
    }
}

// === impl HttpProxy ===

impl fmt::Display for HttpProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}:{}", bracketed(&self.host), self.port)
    }
}

impl Serialize for HttpProxy {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

fn exposed(secret: Option<&Secret>) -> Option<&str> {
    secret.map(Secret::expose)
}

/// The host of a URL: an IPv6 address is in brackets.
pub(crate) fn bracketed(host: &str) -> Cow<'_, str> {
    if host.contains(':') {
        format!("[{host}]").into()
    } else {
        host.into()
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Account, CredentialsUri, EcsRole, FlowNames, SessionSource};
    use super::*;
    use crate::primitives::id::AccountId;

    fn dials_tls(url: &str, source: Option<SessionSource>) -> bool {
        let env = [("FLOWGATE_UPSTREAM__URL".into(), url.into())];
        let mut config = crate::config::load(None, env).unwrap().config;
        config.accounts.push(Account {
            id: AccountId::new("acme"),
            credentials: source.map(AccountCredentials::Session),
            profile: None,
            aliases: Vec::new(),
            upstream: None,
            flow_names: FlowNames::Any,
            adopt_repeats: false,
        });
        config.dials_tls()
    }

    #[test]
    fn roots_are_needed_if_an_upstream_or_a_source_of_credentials_uses_tls() {
        let uri = |is_tls| {
            SessionSource::Uri(CredentialsUri {
                is_tls,
                host: "127.0.0.1".to_owned(),
                port: 8443,
                target: "/".parse().unwrap(),
            })
        };
        let ecs_role = SessionSource::EcsRole(EcsRole {
            role: None,
            allow_v1: false,
            address: "100.100.100.200:80".parse().unwrap(),
        });
        let http = "http://127.0.0.1:9";
        assert!(!dials_tls(http, None));
        assert!(!dials_tls(http, Some(ecs_role)));
        assert!(!dials_tls(http, Some(uri(false))));
        assert!(dials_tls(http, Some(uri(true))));
        assert!(dials_tls("https://cams.ap-southeast-1.aliyuncs.com", None));
    }
}
