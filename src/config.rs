//! The checked configuration: durations are positive, bounds are known, and every key has a value.
//!
//! `config/file.rs` parses TOML, `config/env.rs` applies environment variables, and
//! `config/check.rs` validates the result and reports all mistakes at once.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderName;
use ipnet::IpNet;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use crate::primitives::id::{AccessKeyId, AccountId, ActionName, ClientId, KeyPattern};
use crate::primitives::secret::Secret;

pub use account_credentials::{
    AccountCredentials, AssumeRole, Credentials, CredentialsUri, EcsRole, LoadedFrom, Oidc, Role,
    SessionSource, StsEndpoint,
};
pub use bind::Bind;
pub use effective::effective;
pub(crate) use effective::outline;
pub use load::{Loaded, Source, load};
pub use mistakes::{Mistake, Mistakes};
pub use mode::Mode;
pub use quota::{OnStoreFailure, Quota, Server, Store, Topology};
pub use source_text::account_lines;
pub(crate) use source_text::{source as source_in_words, step as step_in_words};
pub use telemetry::{Collector, Journal, Log, LogFormat, Telemetry};
pub use tls::Tls;
pub use upstreams::{AccountUpstream, HttpProxy, UpstreamIndex};

mod account_credentials;
mod bind;
mod check;
mod credentials_uri;
mod directory;
mod effective;
mod entries;
mod env;
mod file;
mod keys;
mod load;
mod merge;
mod mistakes;
mod mode;
pub(crate) mod names;
mod quota;
mod read;
mod secrets;
mod serializers;
mod source_text;
mod sources;
mod stamps;
mod suspects;
mod telemetry;
pub(crate) mod tls;
mod units;
mod upstreams;

pub(crate) use check::accounts::DEFAULT_ACCOUNT;
pub(crate) use check::ids::{access_key, check_account_id, check_client_id};
pub(crate) use check::listen::check_host_name;
pub(crate) use credentials_uri::may_be_asked;
pub(crate) use keys::default_in_toml;
pub(crate) use secrets::{file as secret_file, one_line, private as private_file};
pub(crate) use stamps::{Stamp, Stamps, stamp};
pub(crate) use units::Time;
pub(crate) use upstreams::bracketed;

/// The checked configuration. [`effective`] writes it as JSON; `Serialize` is a part of that.
#[derive(Clone, Debug, Serialize)]
pub struct Config {
    /// Whether limits are enforced or only observed.
    #[serde(serialize_with = "serializers::text")]
    pub mode: Mode,
    /// What happens to a call whose access key is not in the configuration.
    pub unknown_keys: UnknownKeys,
    /// Where Flowgate listens, and the bounds on what it accepts.
    pub listen: Listen,
    /// The endpoint to which Flowgate connects.
    pub upstream: Upstream,
    /// The endpoints of accounts that name another one; each URL occurs once.
    #[serde(skip)]
    pub account_upstreams: Vec<Upstream>,
    /// The accounts whose quota is limited.
    #[serde(skip)]
    pub accounts: Vec<Account>,
    /// Clients with access keys issued by Flowgate.
    #[serde(skip)]
    pub clients: Vec<Client>,
    /// The endpoint of STS, unless a profile has its own.
    pub sts: StsEndpoint,
    /// The limit of each limited action. An action that is not listed is not limited.
    pub limits: BTreeMap<ActionName, Limit>,
    /// How many calls may wait, and for how long.
    pub queue: Queue,
    /// The gap added to the window before a token returns.
    pub learn: Learn,
    /// Attempts and back-off after a throttled attempt.
    pub retry: Retry,
    /// Where quota state is stored.
    pub quota: Quota,
    /// What SIGTERM does.
    pub drain: Drain,
    /// Idempotency keys.
    pub exactly_once: ExactlyOnce,
    /// What is written to standard error.
    pub log: Log,
    /// The journal of attempts, if one is configured.
    pub journal: Option<Journal>,
    /// Where traces are exported.
    pub telemetry: Telemetry,
}

/// What happens to a call whose access key is not in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum UnknownKeys {
    /// The call gets `InvalidAccessKeyId.NotFound`.
    Refuse,
    /// The call is forwarded unverified. Each key is an account of its own, unless the aliases of
    /// an account match it.
    Relay,
}

/// `[listen]`.
#[derive(Clone, Debug, Serialize)]
pub struct Listen {
    /// The listener that SDKs use as their endpoint.
    #[serde(serialize_with = "serializers::text")]
    pub proxy: Bind,
    /// The listener for `/metrics`, health and the operators' pages.
    #[serde(serialize_with = "serializers::text")]
    pub admin: Bind,
    /// Token that grants access from beyond loopback to more than health and metrics.
    #[serde(serialize_with = "serializers::is_set")]
    pub admin_token: Option<Secret>,
    /// Whether the admin token also allows pausing, resuming and flushing lanes.
    pub admin_actions: bool,
    /// File mode of Unix sockets.
    #[serde(serialize_with = "serializers::octal")]
    pub socket_mode: u32,
    /// TLS for callers. Without it the proxy listener accepts plaintext.
    pub tls: Option<Tls>,
    /// Host names, besides the listener's address, that are accepted as a signed `Host`.
    pub names: Vec<String>,
    /// Maximum concurrent connections.
    pub max_connections: usize,
    /// Addresses of balancers, which may state the address of a caller.
    #[serde(serialize_with = "serializers::texts")]
    pub trusted_proxies: Vec<IpNet>,
    /// Whether balancers state it in a PROXY header, with which every connection begins, rather
    /// than in `X-Forwarded-For`.
    pub proxy_protocol: bool,
    /// Maximum concurrent connections from one address.
    pub max_connections_per_source: usize,
    /// From a request's first byte to the end of its head.
    #[serde(serialize_with = "serializers::time")]
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body. Also the time a caller has to read a
    /// response.
    #[serde(serialize_with = "serializers::time")]
    pub body_timeout: Duration,
    /// Between two requests of a connection.
    #[serde(serialize_with = "serializers::time")]
    pub idle_timeout: Duration,
    /// Maximum size of a request's head, in bytes.
    #[serde(serialize_with = "serializers::size")]
    pub max_header: usize,
    /// Maximum size of a request's body, in bytes.
    #[serde(serialize_with = "serializers::size")]
    pub max_body: usize,
    /// Maximum size of all bodies of requests that are not verified yet, in bytes.
    #[serde(serialize_with = "serializers::size")]
    pub max_unverified: usize,
}

/// URL scheme of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plaintext: only to loopback, or with `plaintext = true`.
    Http,
    /// Verified TLS, 1.2 or later.
    Https,
}

/// `[upstream]`.
#[derive(Clone, Debug, Serialize)]
pub struct Upstream {
    /// Scheme of `url`.
    #[serde(skip)]
    pub scheme: Scheme,
    /// Host of `url`: the host to connect to, and the name that the certificate must have.
    #[serde(skip)]
    pub dial_host: String,
    /// Port of `url`.
    #[serde(skip)]
    pub dial_port: u16,
    /// The `Host` header, signed and sent. Includes a port only if `url` or `host` includes one.
    pub host: String,
    /// Pinned addresses to connect to. Empty: resolve `dial_host`.
    pub connect_to: Vec<SocketAddr>,
    /// The HTTP proxy through which connections are opened.
    pub proxy: Option<HttpProxy>,
    /// User and password for the proxy, as `user:password`.
    #[serde(serialize_with = "serializers::is_set")]
    pub proxy_credentials: Option<Secret>,
    /// PEM file with additional root certificates.
    #[serde(serialize_with = "serializers::optional_path")]
    pub ca_file: Option<PathBuf>,
    /// Timeout of the TCP handshake, the proxy's tunnel and the TLS handshake together.
    #[serde(serialize_with = "serializers::time")]
    pub connect_timeout: Duration,
    /// From handing a request to the connection to the last byte of its response.
    #[serde(serialize_with = "serializers::time")]
    pub answer_timeout: Duration,
    /// How long a connection may be idle before it is discarded.
    #[serde(serialize_with = "serializers::time")]
    pub idle_timeout: Duration,
    /// Maximum size of a response's body, in bytes.
    #[serde(serialize_with = "serializers::size")]
    pub max_response: usize,
    /// Whether time stamps are corrected by the offset of the endpoint's clock.
    pub correct_clock: bool,
}

/// One `[[accounts]]` entry.
#[derive(Clone, Debug, Serialize)]
pub struct Account {
    /// The account's name in metrics and logs.
    pub id: AccountId,
    /// With credentials the account is managed: Flowgate signs its calls. Without, they are
    /// relayed as their callers signed them.
    #[serde(flatten, serialize_with = "serialize_credentials")]
    pub credentials: Option<AccountCredentials>,
    /// The profile that the source of `credentials`, or a source in its chain, was read from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<String>,
    /// All keys of a relayed account, or additional keys of a managed one: exact, by their first
    /// characters, or all that are not configured. Calls under these keys are relayed unverified.
    pub aliases: Vec<KeyPattern>,
    /// The endpoint of its calls, if it is not the one of `[upstream]`.
    pub upstream: Option<AccountUpstream>,
    /// What is known of the names of its flows.
    pub flow_names: FlowNames,
    /// Whether a CreateFlow without an idempotency key is a repetition of an equal one.
    pub adopt_repeats: bool,
}

/// What is known of the names of an account's flows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowNames {
    /// Nothing.
    #[default]
    Any,
    /// While a CreateFlow is under way, only it creates, renames or deletes a flow of its name in its
    /// CustSpaceId: a flow that is found by its name is the one that was created.
    Unique,
}

/// The actions that a client may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actions {
    /// Written as `["*"]`.
    All,
    /// Only the listed actions.
    Listed(Vec<ActionName>),
}

/// One `[[clients]]` entry.
#[derive(Clone, Debug, Serialize)]
pub struct Client {
    /// The client's access key id, which is also its name in metrics and logs.
    pub id: ClientId,
    /// The secrets that verify the client's signatures: the current one first, then the previous
    /// one during a rotation.
    #[serde(serialize_with = "serializers::count")]
    pub secrets: Vec<Secret>,
    /// Whether all calls of the client are refused.
    pub disabled: bool,
    /// The managed account whose quota the client uses and whose key signs its calls.
    pub account: AccountId,
    /// The actions that the client may call.
    pub actions: Actions,
    /// When not empty, `CustSpaceId` is required and must be one of these.
    pub cust_space_ids: Vec<String>,
    /// The client's weight among the clients of its account.
    pub weight: NonZeroU32,
    /// Overrides `queue.hold` for this client.
    #[serde(serialize_with = "serializers::optional_time")]
    pub hold: Option<Duration>,
}

/// A rate limit: `count` tokens, each reusable one `window` plus the gap after its use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Limit {
    /// Number of tokens. A `burst` below the rate's count reduces both the tokens and the window,
    /// in proportion.
    pub count: NonZeroU32,
    /// How long a spent token is unavailable, without the gap.
    #[serde(serialize_with = "serializers::time")]
    pub window: Duration,
}

/// How long a call may be held.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Hold {
    /// Up to the default timeout of the caller's SDK.
    Auto,
    /// Up to the same duration for every call.
    #[serde(untagged)]
    Fixed(#[serde(serialize_with = "serializers::time")] Duration),
}

/// What identifies a tenant within one client's share.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tenant {
    /// The CAMS sub-customer.
    CustSpaceId,
    /// Nothing: a client's calls leave in order of arrival.
    None,
    /// A request header, signed or not: it divides only the client's own share.
    Header(#[serde(serialize_with = "serializers::text")] HeaderName),
}

/// `[queue]`.
#[derive(Clone, Debug, Serialize)]
pub struct Queue {
    /// What identifies a tenant.
    pub tenant: Tenant,
    /// Maximum waiting calls per lane.
    pub max_waiting: usize,
    /// Maximum waiting calls per lane and client.
    pub max_waiting_per_client: usize,
    /// Maximum size of all queued bodies, in bytes.
    #[serde(serialize_with = "serializers::size")]
    pub max_bytes: usize,
    /// How long a call may be held unless the call or its client sets another value.
    pub hold: Hold,
    /// The upper bound of every hold.
    #[serde(serialize_with = "serializers::time")]
    pub max_hold: Duration,
}

/// `[learn]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Learn {
    /// The smallest duration added to the window before a token returns.
    #[serde(serialize_with = "serializers::time")]
    pub gap: Duration,
    /// The largest gap that throttling can cause. In each lane it is at most half of the window.
    #[serde(serialize_with = "serializers::time")]
    pub max_gap: Duration,
}

/// `[retry]`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Retry {
    /// Attempts per call, including the first.
    pub max_attempts: u32,
    /// First step of the back-off.
    #[serde(serialize_with = "serializers::time")]
    pub base: Duration,
    /// Upper bound of Flowgate's own back-off.
    #[serde(serialize_with = "serializers::time")]
    pub max: Duration,
    /// Upper bound of a pause requested by the server.
    #[serde(serialize_with = "serializers::time")]
    pub max_pause: Duration,
    /// Whether a call that only reads is repeated after an unknown outcome.
    pub reads: bool,
}

/// `[exactly_once]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct ExactlyOnce {
    /// Whether idempotency keys of CreateFlow are honoured.
    pub keys: bool,
    /// How long a finished key is remembered.
    #[serde(serialize_with = "serializers::time")]
    pub keep: Duration,
    /// Maximum number of keys that are remembered.
    pub max_keys: usize,
    /// What happens to a call with a key that cannot be recorded.
    pub on_loss: OnKeyLoss,
    /// How long after its last possible time stamp a request may still be executed.
    #[serde(serialize_with = "serializers::time")]
    pub settle: Duration,
}

/// What happens to a call with an idempotency key that cannot be recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OnKeyLoss {
    /// It is refused.
    Refuse,
    /// It is sent without protection.
    Send,
}

/// `[drain]`.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Drain {
    /// How long calls are still accepted after readiness fails.
    #[serde(serialize_with = "serializers::time")]
    pub delay: Duration,
    /// How long queued and running calls may take after `delay`.
    #[serde(serialize_with = "serializers::time")]
    pub grace: Duration,
    /// Whether limited actions stop immediately, because a successor already uses their quota.
    pub hand_over: bool,
}

// === impl Scheme ===

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Http => "http",
            Self::Https => "https",
        })
    }
}

// === impl Account ===

impl Account {
    /// The endpoint of its calls.
    pub(crate) fn upstream_index(&self) -> UpstreamIndex {
        self.upstream
            .as_ref()
            .map_or_else(UpstreamIndex::default, |upstream| upstream.index)
    }
}

// === impl Actions ===

impl Serialize for Actions {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::All => ["*"].serialize(serializer),
            Self::Listed(actions) => actions.serialize(serializer),
        }
    }
}

/// Writes what an account shows of its credentials.
fn serialize_credentials<S: Serializer>(
    credentials: &Option<AccountCredentials>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    #[derive(Serialize)]
    struct Shown<'a> {
        kind: &'static str,
        access_key_id: Option<&'a AccessKeyId>,
        expires: Option<String>,
        credentials: Value,
    }
    let kind = match credentials {
        Some(_) => "managed",
        None => "relayed",
    };
    let loaded = credentials.as_ref().and_then(AccountCredentials::loaded);
    let expires = loaded.and_then(|loaded| loaded.expires);
    let source = match credentials {
        None => Value::Null,
        Some(AccountCredentials::Loaded(_, from)) => json!(from),
        Some(AccountCredentials::Session(source)) => json!(source),
    };
    let shown = Shown {
        kind,
        access_key_id: loaded.map(|loaded| &loaded.access_key_id),
        expires: expires.map(crate::acs::time::format),
        credentials: source,
    };
    shown.serialize(serializer)
}

#[cfg(test)]
mod tests;
