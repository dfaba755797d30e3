//! What Flowgate was told, checked: every duration positive, every bound known, no option that must be set. What may be
//! written is `config/file.rs`; every rule, and all mistakes at once, is `config/check.rs`.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use hyper::header::HeaderName;

use crate::primitives::id::{AccessKeyId, AccountId, ActionName, ClientId};
use crate::primitives::secret::Secret;

pub use bind::Bind;
pub use effective::effective;
pub(crate) use effective::outline;
pub use load::{Loaded, Source, load};
pub use mistakes::{Mistake, Mistakes};
pub use mode::Mode;
pub use quota::{OnStoreFailure, Quota, Server, Store, Topology};
pub use telemetry::{Collector, Journal, Log, LogFormat, Telemetry};
pub use tls::Tls;

mod bind;
mod check;
mod credentials;
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
mod sources;
mod stamps;
mod telemetry;
pub(crate) mod tls;
mod units;

pub(crate) use check::accounts::{check_account_id, check_client_id};
pub(crate) use secrets::file as secret_file;
pub(crate) use stamps::{Stamps, stamp};
pub(crate) use units::Time;

/// The whole checked configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// Whether calls are held to the limits.
    pub mode: Mode,
    /// What happens to a call under an access key that stands nowhere in the configuration.
    pub unknown_keys: UnknownKeys,
    /// Where Flowgate listens, and the bounds of what it accepts.
    pub listen: Listen,
    /// The one endpoint that Flowgate dials.
    pub upstream: Upstream,
    /// The accounts whose quota is paced.
    pub accounts: Vec<Account>,
    /// Keys that Flowgate itself hands out.
    pub clients: Vec<Client>,
    /// Calls per window of each limited action; an action that is not here is not limited.
    pub limits: BTreeMap<ActionName, Limit>,
    /// How many may wait, and for how long.
    pub queue: Queue,
    /// What is added to the window before a token comes back.
    pub learn: Learn,
    /// Attempts and back-off after a throttle refusal.
    pub retry: Retry,
    /// Where the quota is kept.
    pub quota: Quota,
    /// What SIGTERM does.
    pub drain: Drain,
    /// What is written to standard error.
    pub log: Log,
    /// Where attempts are written down, if they are.
    pub journal: Option<Journal>,
    /// Where traces go.
    pub telemetry: Telemetry,
}

/// What happens to a call under an access key that stands nowhere in the configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UnknownKeys {
    /// `InvalidAccessKeyId.NotFound`.
    Refuse,
    /// Passed on unverified, each key an account of its own.
    Relay,
}

/// `[listen]`.
#[derive(Clone, Debug)]
pub struct Listen {
    /// Where applications point their SDK's endpoint.
    pub proxy: Bind,
    /// `/metrics` and the other pages for operators.
    pub admin: Bind,
    /// What operators beyond loopback show to see more than health and metrics.
    pub admin_token: Option<Secret>,
    /// Whether who shows it may also pause, resume and flush lanes.
    pub admin_actions: bool,
    /// Permissions of Unix sockets.
    pub socket_mode: u32,
    /// What callers speak TLS with; without it they speak in the clear.
    pub tls: Option<Tls>,
    /// Own host names, besides the address, that a signed host may bear.
    pub names: Vec<String>,
    /// Connections at once, in total.
    pub max_connections: usize,
    /// Connections at once from one address.
    pub max_connections_per_source: usize,
    /// From a request's first byte to the end of its head.
    pub header_timeout: Duration,
    /// From the end of the head to the end of the body; also what a caller may take to read an answer.
    pub body_timeout: Duration,
    /// Between two requests of a connection.
    pub idle_timeout: Duration,
    /// Bytes of a request's head.
    pub max_header: usize,
    /// Bytes of a request's body.
    pub max_body: usize,
    /// Bytes of the bodies of all callers that are not verified yet.
    pub max_unverified: usize,
}

/// Scheme of the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Only to loopback, or with `plaintext = true`.
    Http,
    /// Verified TLS, 1.2 or later.
    Https,
}

/// `[upstream]`.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// Scheme of `url`.
    pub scheme: Scheme,
    /// Host of `url`: dialled, and the name that the certificate must bear.
    pub dial_host: String,
    /// Port of `url`.
    pub dial_port: u16,
    /// Signed and sent as `Host`; with a port only if `url` or `host` was written with one.
    pub host: String,
    /// Pins the addresses that are dialled; empty: resolve `dial_host`.
    pub connect_to: Vec<SocketAddr>,
    /// More roots, PEM.
    pub ca_file: Option<PathBuf>,
    /// TCP and TLS together.
    pub connect_timeout: Duration,
    /// From the hand-over of a request to the last byte of its answer.
    pub answer_timeout: Duration,
    /// How long a connection may lie idle before it is not used again.
    pub idle_timeout: Duration,
    /// Bytes of an answer's body.
    pub max_response: usize,
}

/// What Flowgate signs with; all of it changes at once or not at all.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// The access key id.
    pub access_key_id: AccessKeyId,
    /// Its secret.
    pub secret: Secret,
    /// The STS token, for temporary keys.
    pub security_token: Option<Secret>,
    /// When temporary keys end, if their file says so.
    pub expires: Option<SystemTime>,
}

/// One `[[accounts]]` entry.
#[derive(Clone, Debug)]
pub struct Account {
    /// Its name in metrics and logs.
    pub id: AccountId,
    /// With credentials the account is managed: Flowgate signs. Without: relayed.
    pub credentials: Option<Credentials>,
    /// Where they come from when they are read from one file, which somebody writes anew before they expire.
    pub credentials_file: Option<PathBuf>,
    /// Every key of a relayed account, and the other keys of a managed one: relayed unverified.
    pub aliases: Vec<AccessKeyId>,
}

/// Which actions a client may call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Actions {
    /// `["*"]`.
    All,
    /// Only these.
    Listed(Vec<ActionName>),
}

/// One `[[clients]]` entry.
#[derive(Clone, Debug)]
pub struct Client {
    /// Its name in metrics and logs: its access key id.
    pub id: ClientId,
    /// The secrets that Flowgate verifies its signatures with: the present one first, then, while it is being replaced,
    /// the previous one.
    pub secrets: Vec<Secret>,
    /// Whether all its calls are refused.
    pub disabled: bool,
    /// The account whose quota it spends and whose key signs for it. Always managed.
    pub account: AccountId,
    /// What it may call.
    pub actions: Actions,
    /// When not empty: `CustSpaceId` must be present and one of these.
    pub cust_space_ids: Vec<String>,
    /// Its share among the account's clients.
    pub weight: NonZeroU32,
    /// Its own hold.
    pub hold: Option<Duration>,
}

/// Calls per window: `count` tokens, each usable again one `window` (and the gap) after its own use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limit {
    /// Tokens. With `burst` below the rate's count, `burst` tokens and a window shortened in proportion.
    pub count: NonZeroU32,
    /// How long a spent token stays away, less the gap.
    pub window: Duration,
}

/// How long calls are kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hold {
    /// As the caller's SDK waits by default.
    Auto,
    /// All the same.
    Fixed(Duration),
}

/// What tells the tenants inside one client's share apart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tenant {
    /// The CAMS sub-customer.
    CustSpaceId,
    /// Nothing: a client's calls go in order of arrival.
    None,
    /// A header of the caller's, signed or not: it divides only the client's own share.
    Header(HeaderName),
}

/// `[queue]`.
#[derive(Clone, Debug)]
pub struct Queue {
    /// What tells tenants apart.
    pub tenant: Tenant,
    /// Waiting calls per lane.
    pub max_waiting: usize,
    /// Waiting calls per lane and client.
    pub max_waiting_per_client: usize,
    /// Bytes of all queued bodies.
    pub max_bytes: usize,
    /// How long a call may be kept when neither it nor its client says anything else.
    pub hold: Hold,
    /// The most that any hold may be.
    pub max_hold: Duration,
}

/// `[learn]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Learn {
    /// What is added to the window before a token comes back, at the least.
    pub gap: Duration,
    /// The most that throttle refusals may widen it to; in each lane at most half of its window.
    pub max_gap: Duration,
}

/// `[retry]`.
#[derive(Clone, Copy, Debug)]
pub struct Retry {
    /// Attempts per call, the first included.
    pub max_attempts: u32,
    /// First step of the back-off.
    pub base: Duration,
    /// The most that our own back-off may be.
    pub max: Duration,
    /// The most that a server's hint may ask.
    pub max_pause: Duration,
}

/// `[drain]`.
#[derive(Clone, Copy, Debug)]
pub struct Drain {
    /// Readiness is down, calls are still accepted.
    pub delay: Duration,
    /// How long queued and running calls may go on after that.
    pub grace: Duration,
    /// Whether limited actions stop at once, because a successor already uses their quota.
    pub hand_over: bool,
}

#[cfg(test)]
mod tests;
