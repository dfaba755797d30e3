//! Validates the configuration, section by section and between sections.
//!
//! All mistakes are recorded in the reader; only a configuration without mistakes becomes a
//! [`Config`]. The function of a section reads all keys before it returns `None` for one of them,
//! so that all mistakes are reported.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::HeaderName;
use tracing::level_filters::LevelFilter;

use self::account_upstreams::AccountUpstreams;
use super::read::{Field, MAX_TIME, POSITIVE, Reader, Section};
use super::secrets::secret;
use super::units::Size;
use super::{
    Account, Bind, Client, Collector, Config, Drain, ExactlyOnce, Hold, Journal, Learn, Listen,
    Log, LogFormat, Mode, OnKeyLoss, Queue, Retry, Telemetry, Tenant, Time, UnknownKeys,
};
use crate::primitives::secret::Secret;

mod account_upstreams;
pub(super) mod accounts;
pub(super) mod credentials;
pub(super) mod ids;
mod limits;
pub(super) mod listen;
mod quota;
mod sts;
mod tls;
pub(super) mod upstream;

/// Range of a maximum size in bytes.
const BYTES: std::ops::RangeInclusive<usize> = 1..=1 << 30;

/// Range of the gap added to a window.
const GAP: std::ops::RangeInclusive<Duration> = Duration::from_millis(1)..=Duration::from_secs(1);

/// Range of a maximum count.
const MANY: std::ops::RangeInclusive<u32> = 1..=1_000_000;

/// Reads only the address of the admin listener.
pub(super) fn admin(mut root: Section<'_>) -> Option<Bind> {
    listen::bind(&root.table("listen").key("admin"))
}

/// Reads only the token of the admin listener. The inner `None`: it has none.
pub(super) fn admin_token(mut root: Section<'_>) -> Option<Option<Secret>> {
    root.table("listen").key("admin_token").given(secret)
}

/// Checks the whole configuration. `None` if the reader has recorded a mistake.
pub(super) fn check(mut root: Section<'_>) -> Option<Config> {
    let mode = mode(&mut root);
    let listen = listen::check(root.table("listen"));
    let base = upstream::check(root.table("upstream"), listen.as_ref());
    let mut upstreams = AccountUpstreams::new(base, listen.as_ref());
    let queue = queue(root.table("queue"), listen.as_ref());
    let max_hold = queue.as_ref().map(|queue| queue.max_hold);
    let sts = sts::check(root.table("sts"));
    let is_local = listen.as_ref().is_some_and(is_local);
    let (accounts, clients) = accounts::check(&mut root, max_hold, &mut upstreams, &sts, is_local);
    let sts = sts.into_endpoint(root.reader);
    let (upstream, account_upstreams) = upstreams.into_upstreams();
    let unknown_keys = unknown_keys(&mut root, listen.as_ref(), &accounts, &clients);
    let limits = limits::check(root.table("limits"));
    let shortest = limits
        .iter()
        .flat_map(|limits| limits.values())
        .map(|limit| limit.window)
        .min();
    let learn = learn(root.table("learn"), shortest);
    let quota = quota::check(root.table("quota"), limits.as_ref());
    let retry = retry(root.table("retry"));
    let drain = drain(root.table("drain"));
    let exactly_once = exactly_once(root.table("exactly_once"));
    let log = log(root.table("log"));
    let journal = journal(root.key("journal"));
    let telemetry = telemetry(root.table("telemetry"));
    let reader = root.reader;
    root.done();
    let config = Config {
        mode: mode?,
        unknown_keys: unknown_keys?,
        listen: listen?,
        upstream: upstream?,
        account_upstreams,
        accounts,
        clients,
        sts,
        limits: limits?,
        queue: queue?,
        learn: learn?,
        retry: retry?,
        quota: quota?,
        drain: drain?,
        exactly_once: exactly_once?,
        log: log?,
        journal: journal?,
        telemetry: telemetry?,
    };
    reader.mistakes.borrow().is_empty().then_some(config)
}

fn mode(root: &mut Section<'_>) -> Option<Mode> {
    let mode = root
        .key("mode")
        .choice(&[("enforce", Mode::Enforce), ("observe", Mode::Observe)])?;
    if mode == Mode::Observe {
        root.reader
            .warn("mode is observe: limits are counted but not enforced");
    }
    Some(mode)
}

fn queue(mut section: Section<'_>, listen: Option<&Listen>) -> Option<Queue> {
    let tenant = tenant(section.key("tenant"));
    let max_waiting = section.key("max_waiting").count(&MANY);
    let max_waiting_per_client = section.key("max_waiting_per_client").count(&MANY);
    let bytes = section.key("max_bytes");
    let max_bytes = bytes.size(&(1..=1 << 40));
    if let (Some(max_bytes), Some(listen)) = (max_bytes, listen)
        && max_bytes / 2 < listen.max_body
    {
        let least = Size(listen.max_body * 2);
        bytes.mistake(format!(
            "expected at least {least}, twice listen.max_body: one client may use half of it, and \
             the largest call must fit"
        ));
    }
    let max_hold = section.key("max_hold").time(&POSITIVE);
    let hold = hold(&section.key("hold"), max_hold);
    section.done();
    Some(Queue {
        tenant: tenant?,
        max_waiting: max_waiting? as usize,
        max_waiting_per_client: max_waiting_per_client? as usize,
        max_bytes: max_bytes?,
        hold: hold?,
        max_hold: max_hold?,
    })
}

fn tenant(key: Field<'_>) -> Option<Tenant> {
    let mut section = match key.into_table() {
        Ok(section) => section,
        Err(key) => {
            let expected = "\"cust-space-id\", \"none\" or { header = \"x-team\" }";
            return key.text(expected, |text| match text {
                "cust-space-id" => Some(Tenant::CustSpaceId),
                "none" => Some(Tenant::None),
                _ => None,
            });
        }
    };
    let expected =
        "a header of your own such as x-team: it begins with x-, but not x-acs- or x-flowgate-";
    let header = section.key("header").text(expected, tenant_header);
    section.done();
    header.map(Tenant::Header)
}

fn tenant_header(text: &str) -> Option<HeaderName> {
    let name: HeaderName = text.to_ascii_lowercase().parse().ok()?;
    let reserved = ["x-acs-", "x-flowgate-"];
    if !name.as_str().starts_with("x-")
        || reserved
            .iter()
            .any(|prefix| name.as_str().starts_with(prefix))
    {
        return None;
    }
    Some(name)
}

fn hold(key: &Field<'_>, max: Option<Duration>) -> Option<Hold> {
    let hold = key.text("\"auto\" or a duration such as 10s", |text| {
        if text == "auto" {
            return Some(Hold::Auto);
        }
        let Time(time) = text.parse().ok()?;
        Some(Hold::Fixed(time))
    })?;
    if let Hold::Fixed(time) = hold {
        key.within(time, &POSITIVE, Time)?;
        at_most_max_hold(key, time, max);
    }
    Some(hold)
}

/// Records a mistake if a hold is longer than `queue.max_hold`.
fn at_most_max_hold(key: &Field<'_>, hold: Duration, max: Option<Duration>) {
    if let Some(max) = max.filter(|max| hold > *max) {
        key.mistake(format!("expected at most {} (queue.max_hold)", Time(max)));
    }
}

/// Unverified callers are relayed by default only if the proxy listens locally, so that they are
/// applications of this machine, and only if no secret is configured that they could use.
fn unknown_keys(
    root: &mut Section<'_>,
    listen: Option<&Listen>,
    accounts: &[Account],
    clients: &[Client],
) -> Option<UnknownKeys> {
    let words = [
        ("refuse", UnknownKeys::Refuse),
        ("relay", UnknownKeys::Relay),
    ];
    let key = root.key("unknown_keys");
    let given = key.optional(|key| key.choice(&words))?;
    let local = is_local(listen?);
    // A session without a client is not used by any caller.
    let secrets = !clients.is_empty()
        || accounts
            .iter()
            .filter_map(|account| account.credentials.as_ref())
            .any(|credentials| credentials.loaded().is_some());
    let default = if local && !secrets {
        UnknownKeys::Relay
    } else {
        UnknownKeys::Refuse
    };
    let relays_all = accounts
        .iter()
        .flat_map(|account| &account.aliases)
        .any(|alias| alias.prefix() == Some(""));
    if relays_all && given == Some(UnknownKeys::Refuse) {
        key.mistake(
            "expected \"relay\": \"*\" in the aliases of an account relays every key that is not \
             configured",
        );
    }
    let unknown_keys = given.unwrap_or(default);
    if !local {
        warn_of_open_aliases(root.reader, listen, accounts);
    }
    if unknown_keys == UnknownKeys::Refuse && accounts.is_empty() {
        root.reader
            .warn("no account is configured and unknown keys are refused: every call is refused");
    }
    Some(unknown_keys)
}

/// Whether only applications of this machine reach the proxy.
fn is_local(listen: &Listen) -> bool {
    match &listen.proxy {
        Bind::Tcp(address) => address.ip().to_canonical().is_loopback(),
        Bind::Unix(_) => true,
    }
}

/// Warns if callers on other hosts, which reach the proxy, use an account without verification.
fn warn_of_open_aliases(reader: &Reader, listen: Option<&Listen>, accounts: &[Account]) {
    let has_prefixes = accounts
        .iter()
        .flat_map(|account| &account.aliases)
        .any(|alias| alias.prefix().is_some());
    let has_client_ca = listen
        .and_then(|listen| listen.tls.as_ref())
        .is_some_and(|tls| tls.client_ca.is_some());
    if has_prefixes && !has_client_ca {
        reader.warn(
            "aliases with * relay callers that are not verified, and other hosts reach \
             listen.proxy: anyone there can use up or pause the account's rate. Restrict access \
             with a firewall or listen.tls.client_ca",
        );
    }
}

/// `shortest` is the shortest window of all limits.
fn learn(mut section: Section<'_>, shortest: Option<Duration>) -> Option<Learn> {
    let key = section.key("gap");
    let gap = key.time(&GAP);
    if let (Some(gap), Some(shortest)) = (gap, shortest)
        && gap >= shortest
    {
        key.mistake(format!(
            "expected less than {}, the shortest window of the limits",
            Time(shortest)
        ));
    }
    let max_key = section.key("max_gap");
    let mut max_gap = max_key.time(&GAP);
    if let (Some(gap), Some(max)) = (gap, max_gap)
        && max < gap
    {
        if max_key.is_given() {
            max_key.mistake(format!("expected at least {} (learn.gap)", Time(gap)));
        }
        max_gap = Some(gap);
    }
    section.done();
    Some(Learn {
        gap: gap?,
        max_gap: max_gap?,
    })
}

fn retry(mut section: Section<'_>) -> Option<Retry> {
    let max_attempts = section.key("max_attempts").count(&(1..=1000));
    let base = section.key("base").time(&POSITIVE);
    let max_key = section.key("max");
    let max = max_key.time(&POSITIVE);
    if let (Some(base), Some(max)) = (base, max)
        && base > max
    {
        max_key.mistake(format!("expected at least {} (retry.base)", Time(base)));
    }
    let max_pause = section.key("max_pause").time(&POSITIVE);
    let reads = section.key("reads").flag();
    section.done();
    Some(Retry {
        max_attempts: max_attempts?,
        base: base?,
        max: max?,
        max_pause: max_pause?,
        reads: reads?,
    })
}

/// How long a finished key may be remembered.
const KEEP_KEYS: RangeInclusive<Duration> =
    Duration::from_secs(3600)..=Duration::from_secs(7 * 24 * 3600);
/// CAMS executes a request until 15 minutes after its time stamp; this host's clock may be as much
/// ahead.
const SETTLE: RangeInclusive<Duration> = Duration::from_secs(16 * 60)..=MAX_TIME;

fn exactly_once(mut section: Section<'_>) -> Option<ExactlyOnce> {
    let keys = section.key("keys").flag();
    let keep = section.key("keep").time(&KEEP_KEYS);
    let max_keys = section.key("max_keys").count(&(1..=100_000_000));
    let on_loss = section
        .key("on_loss")
        .choice(&[("refuse", OnKeyLoss::Refuse), ("send", OnKeyLoss::Send)]);
    let settle = section.key("settle").time(&SETTLE);
    section.done();
    Some(ExactlyOnce {
        keys: keys?,
        keep: keep?,
        max_keys: usize::try_from(max_keys?).ok()?,
        on_loss: on_loss?,
        settle: settle?,
    })
}

fn drain(mut section: Section<'_>) -> Option<Drain> {
    let delay = section.key("delay").time(&(Duration::ZERO..=MAX_TIME));
    let grace = section.key("grace").time(&(Duration::ZERO..=MAX_TIME));
    let hand_over = section.key("hand_over").flag();
    section.done();
    Some(Drain {
        delay: delay?,
        grace: grace?,
        hand_over: hand_over?,
    })
}

fn log(mut section: Section<'_>) -> Option<Log> {
    let format = section
        .key("format")
        .choice(&[("text", LogFormat::Text), ("json", LogFormat::Json)]);
    let levels = [
        ("error", LevelFilter::ERROR),
        ("warn", LevelFilter::WARN),
        ("info", LevelFilter::INFO),
        ("debug", LevelFilter::DEBUG),
        ("trace", LevelFilter::TRACE),
    ];
    let level = section.key("level").choice(&levels);
    section.done();
    Some(Log {
        format: format?,
        level: level?,
    })
}

fn telemetry(mut section: Section<'_>) -> Option<Telemetry> {
    let otlp = section.key("otlp").optional(|key| {
        let collector = key.text(
            "the scheme, host and port of a collector, such as http://127.0.0.1:4318",
            |text| {
                let upstream::Endpoint {
                    scheme,
                    host,
                    port,
                    authority,
                } = upstream::endpoint(text)?;
                Some(Collector {
                    scheme,
                    host,
                    port,
                    authority,
                })
            },
        )?;
        Some(collector)
    });
    let sample_percent = section.key("sample_percent").count(&(0..=100));
    section.done();
    Some(Telemetry {
        otlp: otlp?,
        sample_percent: sample_percent?,
    })
}

/// Reads a path alone, or a table with one. The outer `None` is a mistake.
fn journal(key: Field<'_>) -> Option<Option<Journal>> {
    if !key.is_given() {
        return Some(None);
    }
    let path;
    let mut section;
    match key.into_table() {
        Ok(table) => {
            section = table;
            path = journal_path(&section.key("path"), "the path of a file");
        }
        Err(key) => {
            let expected =
                "the path of a file or { path = \"...\", max_size = \"64MiB\", keep = 4 }";
            path = journal_path(&key, expected);
            section = key.empty_table();
        }
    }
    let max_size = section.key("max_size").size(&(4 << 10..=1 << 30));
    let keep = section.key("keep").count(&(1..=1000));
    section.done();
    Some(Some(Journal {
        path: path?,
        max_size: max_size?,
        keep: keep?,
    }))
}

fn journal_path(key: &Field<'_>, expected: &str) -> Option<PathBuf> {
    let path = key.text(expected, |text| {
        let is_file = !text.is_empty() && !text.ends_with('/');
        is_file.then(|| PathBuf::from(text))
    })?;
    Some(key.resolve(&path))
}
