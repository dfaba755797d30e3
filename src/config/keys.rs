//! Which keys are there? Each with its kind, its default and its meaning: the one table from which defaults are read,
//! unknown keys are told apart, and `docs/configuration.md` is made. What a value may be is checked by `check.rs`.

/// What kind of value a key takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Text of some form, an address for instance.
    Text,
    /// A whole number.
    Count,
    /// `true` or `false`.
    Flag,
    /// `200ms`, `1s`, `2m`, `1h`.
    Time,
    /// `64KiB`.
    Size,
    /// `5/1s`, a table with `rate`, `burst` and `reserve`, or `off`.
    Limit,
    /// A list of text.
    List,
    /// The place of a secret.
    Secret,
    /// A table.
    Table,
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Key {
    /// Its path; `[]` stands for an index, `<Action>` for the name of an action.
    pub(crate) path: &'static str,
    pub(crate) kind: Kind,
    /// As it would be written, without quotes. Without one the key is required, or leaving it out means something.
    pub(crate) default: Option<&'static str>,
    /// One or two sentences for the manual.
    #[cfg_attr(not(test), expect(dead_code, reason = "the manual's test reads it"))]
    pub(crate) meaning: &'static str,
}

/// The key of this path.
pub(crate) fn find(path: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.path == path)
}

/// Names that may stand in the table of this path (empty: at the top), each once, in the manual's order.
pub(crate) fn names(table: &str) -> Vec<&'static str> {
    let mut names: Vec<&str> = Vec::new();
    for key in KEYS {
        let rest = if table.is_empty() {
            Some(key.path)
        } else {
            key.path.strip_prefix(table).and_then(|r| r.strip_prefix('.'))
        };
        let name = rest.and_then(|rest| rest.split(['.', '[']).next());
        names.extend(name.filter(|name| !names.contains(name)));
    }
    names
}

// === impl Key ===

impl Key {
    pub(crate) fn is_list(&self) -> bool {
        self.kind == Kind::List
    }

    pub(crate) fn is_secret(&self) -> bool {
        self.kind == Kind::Secret
    }
}

const fn key(path: &'static str, kind: Kind, default: Option<&'static str>, meaning: &'static str) -> Key {
    Key { path, kind, default, meaning }
}

/// Every key, in the order of the manual.
pub(crate) const KEYS: &[Key] = &[
    key(
        "mode",
        Kind::Text,
        Some("enforce"),
        "`enforce`: calls are held to the limits. `observe`: each call is sent at once, and once, and `flowgate_shadow_decisions_total` counts what the limits would have done to it.",
    ),
    key(
        "unknown_keys",
        Kind::Text,
        None,
        "What happens to a call under an access key that stands nowhere here: `refuse`, or `relay` (passed on unverified, each key an account of its own). Default: `relay` while `listen.proxy` is a loopback address or a Unix socket and no account or client holds a secret, else `refuse`.",
    ),
    key(
        "listen.proxy",
        Kind::Text,
        Some("127.0.0.1:8080"),
        "Where applications point their SDK's endpoint (protocol HTTP): `ip:port`, or `unix:/run/flowgate.sock`.",
    ),
    key(
        "listen.admin",
        Kind::Text,
        Some("127.0.0.1:9900"),
        "Where `/metrics`, `/livez`, `/readyz`, `/lanes` and `/config` are: `ip:port` or `unix:/path`, never the proxy's.",
    ),
    key(
        "listen.names",
        Kind::List,
        Some("[]"),
        "Own host names, besides the address (behind `0.0.0.0`, any address), that a signed host may bear: the names by which applications reach Flowgate, without a port or with one.",
    ),
    key("listen.tls", Kind::Table, None, "Not available yet."),
    key("listen.max_connections", Kind::Count, Some("10000"), "Connections at once, in total."),
    key("listen.max_connections_per_source", Kind::Count, Some("2000"), "Connections at once from one address."),
    key("listen.header_timeout", Kind::Time, Some("10s"), "From a request's first byte to the end of its head."),
    key(
        "listen.body_timeout",
        Kind::Time,
        Some("30s"),
        "From the end of the head to the end of the body; also how long a caller may stall while it reads an answer.",
    ),
    key(
        "listen.idle_timeout",
        Kind::Time,
        Some("120s"),
        "Between two requests of a connection. Keep it longer than the SDKs' pools.",
    ),
    key("listen.max_header", Kind::Size, Some("32KiB"), "Bytes of a request's head, from 8KiB."),
    key(
        "listen.max_body",
        Kind::Size,
        Some("1MiB"),
        "Bytes of a request's body. Of calls signed in version 1, at most 64KiB are read: their signature is known only with the body.",
    ),
    key(
        "upstream.url",
        Kind::Text,
        Some("https://cams.ap-southeast-1.aliyuncs.com"),
        "The one endpoint that is dialled: scheme, host and port, nothing else. `http://` only to loopback, or with `plaintext = true`.",
    ),
    key("upstream.host", Kind::Text, None, "Signed and sent as `Host`. Default: from `url`."),
    key(
        "upstream.plaintext",
        Kind::Flag,
        Some("false"),
        "Allows `http://` beyond loopback: whoever is on the way reads and changes the calls.",
    ),
    key(
        "upstream.connect_to",
        Kind::List,
        Some("[]"),
        "Pins the addresses that are dialled, each `ip:port`: where a hosts file points the real name at Flowgate, for instance.",
    ),
    key(
        "upstream.ca_file",
        Kind::Text,
        Some(""),
        "More roots, as a PEM file. A relative path starts at the configuration file's folder.",
    ),
    key("upstream.connect_timeout", Kind::Time, Some("3s"), "TCP and TLS together."),
    key(
        "upstream.answer_timeout",
        Kind::Time,
        Some("30s"),
        "From the hand-over of a request to the last byte of its answer.",
    ),
    key(
        "upstream.idle_timeout",
        Kind::Time,
        Some("10s"),
        "How long a connection may lie idle before it is not used again. Keep it below what servers keep, or a call meets a connection that is just closing.",
    ),
    key("upstream.max_response", Kind::Size, Some("4MiB"), "Bytes of an answer's body."),
    key(
        "accounts[].id",
        Kind::Text,
        None,
        "Required. The account's name in metrics and logs: 1 to 64 of letters, digits, `.`, `_`, `-`; not `unknown`.",
    ),
    key(
        "accounts[].access_key_id",
        Kind::Text,
        None,
        "With a secret the account is managed: Flowgate verifies its callers and signs. Without either it is relayed.",
    ),
    key(
        "accounts[].access_key_secret",
        Kind::Secret,
        None,
        "The place of the secret: `{ env = \"NAME\" }` or `{ file = \"path\" }`.",
    ),
    key("accounts[].credentials", Kind::Table, None, "Not available yet."),
    key(
        "accounts[].aliases",
        Kind::List,
        Some("[]"),
        "Other access keys of this account, without their secrets: relayed unverified, and they spend its quota. A relayed account has at least one.",
    ),
    key(
        "clients[].access_key_id",
        Kind::Text,
        None,
        "Required. A key that Flowgate itself hands to a team, and the team's name in logs.",
    ),
    key(
        "clients[].access_key_secret",
        Kind::Secret,
        None,
        "Required. The place of the secret that the client's signatures are verified with.",
    ),
    key(
        "clients[].account",
        Kind::Text,
        None,
        "Required. The managed account whose quota the client spends and whose key signs for it.",
    ),
    key("clients[].actions", Kind::List, None, "Required. The actions that it may call; `[\"*\"]` for all."),
    key(
        "clients[].cust_space_ids",
        Kind::List,
        Some("[]"),
        "When not empty, `CustSpaceId` must be present and one of these.",
    ),
    key(
        "clients[].weight",
        Kind::Count,
        Some("1"),
        "Its share among the account's clients, 1 to 100: a client of weight 2 has two turns for each one of a client of weight 1 while both wait.",
    ),
    key(
        "clients[].hold",
        Kind::Time,
        None,
        "How long Flowgate may keep a call of this client that does not say so itself (`x-flowgate-hold`). Default: `queue.hold`. At most `queue.max_hold`.",
    ),
    key(
        "limits.preset",
        Kind::Text,
        Some("documented"),
        "The limits to start from: `documented` (the 62 documented CAMS limits) or `none`.",
    ),
    key(
        "limits.<Action>",
        Kind::Limit,
        None,
        "The limit of one action, by its name: a rate such as `5/1s`, a table with the keys below, or `off`. At most 10000 calls in a window of 10ms to 1h.",
    ),
    key("limits.<Action>.rate", Kind::Text, None, "Required in the table. Calls per window: `5/1s`."),
    key(
        "limits.<Action>.burst",
        Kind::Count,
        None,
        "How many may leave at once after idleness: a divisor of the rate's count, so with `5/1s` 1 or 5. Default: the count.",
    ),
    key(
        "limits.<Action>.reserve",
        Kind::Count,
        Some("0"),
        "Calls per window that are left to whoever else spends the account's quota, the console or Terraform for instance.",
    ),
    key(
        "queue.tenant",
        Kind::Text,
        Some("cust-space-id"),
        "What tells the tenants apart that take turns inside a client's share: `cust-space-id` (the CAMS sub-customer), `none`, or a table with the key below.",
    ),
    key(
        "queue.tenant.header",
        Kind::Text,
        None,
        "A header of the caller's, signed or not, such as `x-team`: it divides only the client's own share.",
    ),
    key("queue.max_waiting", Kind::Count, Some("10000"), "Waiting calls per account and action."),
    key("queue.max_waiting_per_client", Kind::Count, Some("5000"), "Waiting calls per account, action and client."),
    key(
        "queue.max_bytes",
        Kind::Size,
        Some("256MiB"),
        "Bytes of all bodies that come in, wait or are under way; one client may have half of it. At least twice `listen.max_body`.",
    ),
    key(
        "queue.hold",
        Kind::Time,
        Some("auto"),
        "How long Flowgate may keep a call when neither its `x-flowgate-hold` nor its client's `hold` says anything else: a duration of at most `max_hold`, or `auto`, as its SDK waits by default (docs/holds.md).",
    ),
    key(
        "queue.max_hold",
        Kind::Time,
        Some("2m"),
        "The most that any hold may be; a longer one is cut to it, if a caller asks for it or its SDK waits so long.",
    ),
    key(
        "learn.gap",
        Kind::Time,
        Some("5ms"),
        "What is added to the window before a token comes back: for timer lateness and path jitter. Shorter than every window, at most 1s.",
    ),
    key(
        "learn.max_gap",
        Kind::Time,
        Some("40ms"),
        "The most that throttle refusals may widen the gap to, before Flowgate uses fewer tokens per window. At least `gap`, at most 1s; never more than half of an action's window.",
    ),
    key("retry.max_attempts", Kind::Count, Some("10"), "Attempts per call, the first included."),
    key("retry.base", Kind::Time, Some("200ms"), "The first step of the back-off after a throttle refusal."),
    key("retry.max", Kind::Time, Some("8s"), "The most that Flowgate's own back-off may be."),
    key("retry.max_pause", Kind::Time, Some("60s"), "The most that a server's hint may ask."),
    key("quota.store", Kind::Text, Some("memory"), "Only `memory` for now."),
    key("quota.on_store_failure", Kind::Text, Some("share"), "Only `share` for now."),
    key("drain.delay", Kind::Time, Some("0s"), "After SIGTERM: readiness is down, calls are still accepted."),
    key("drain.grace", Kind::Time, Some("25s"), "How long queued and running calls may go on after that."),
    key("log.format", Kind::Text, Some("text"), "`text` for people, `json` for machines, on standard error."),
    key(
        "log.level",
        Kind::Text,
        Some("info"),
        "`error`, `warn`, `info`, `debug` or `trace`, of Flowgate itself; other libraries never say more than `info`.",
    ),
];

#[cfg(test)]
mod tests;
