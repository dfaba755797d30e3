//! Checks `[upstream]`: the endpoint to which Flowgate connects, and the proxy on the way.
//! Plaintext is allowed only to loopback or with `plaintext = true`, and the endpoint must not be
//! Flowgate itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use hyper::Uri;

use super::BYTES;
use super::listen::host_name;
use crate::config::file::Item;
use crate::config::read::{Field, KeyLocation, POSITIVE, Reader, Section};
use crate::config::secrets::secret;
use crate::config::{Bind, HttpProxy, Listen, Scheme, Upstream, tls};
use crate::primitives::secret::Secret;

/// The form of an upstream's URL.
pub(super) const URL: &str =
    "scheme, host and port only, such as https://cams.ap-southeast-1.aliyuncs.com";

const OWN_LISTENER: &str = "this is one of Flowgate's own listeners: expected another address";

/// Variables by which other programs choose a proxy.
const PROXY_VARIABLES: [&str; 6] = [
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// Variables that list hosts which are reached without a proxy.
const EXEMPT_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

/// `[upstream]`, with what the accounts' upstreams need of it.
pub(super) struct Base {
    pub(super) upstream: Upstream,
    plaintext: bool,
}

/// The parts of a URL without path and query.
pub(super) struct Endpoint {
    pub(super) scheme: Scheme,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The host, with the port if one was written, as in a `Host` header.
    pub(super) authority: String,
}

/// The parts of `host` or `host:port`.
pub(in crate::config) struct Authority {
    /// Without brackets, in lower case.
    pub(in crate::config) host: String,
    pub(in crate::config) port: Option<u16>,
    /// The whole text in lower case.
    pub(super) text: String,
}

/// A pinned address and where it is written.
struct Pinned {
    place: KeyLocation,
    address: SocketAddr,
}

/// Checks the section. `None` after a mistake.
pub(super) fn check(mut section: Section<'_>, listen: Option<&Listen>) -> Option<Base> {
    let url = section.key("url");
    let endpoint = url.text(URL, endpoint);
    let host = section.key("host").optional(host);
    let plaintext = section.key("plaintext").flag();
    let connect_to = section.key("connect_to").list(pinned);
    let proxy = proxy(&mut section, connect_to.as_deref(), listen);
    if let (Some(endpoint), Some(connect_to), Some(plaintext), Some((proxy, _))) =
        (&endpoint, &connect_to, plaintext, &proxy)
    {
        endpoint.check_route(&url, connect_to, proxy.as_ref(), plaintext);
        if let Some(listen) = listen {
            let addresses = addresses(&endpoint.host, endpoint.port, connect_to);
            refuse_own_listeners(&url, &addresses, connect_to, listen);
        }
    }
    let ca_file = ca_file(&section.key("ca_file"));
    let connect_timeout = section.key("connect_timeout").time(&POSITIVE);
    let answer_timeout = section.key("answer_timeout").time(&POSITIVE);
    let idle_timeout = section.key("idle_timeout").time(&POSITIVE);
    let max_response = section.key("max_response").size(&BYTES);
    let correct_clock = section.key("correct_clock").flag();
    section.done();
    let endpoint = endpoint?;
    let (proxy, proxy_credentials) = proxy?;
    let upstream = Upstream {
        scheme: endpoint.scheme,
        dial_host: endpoint.host,
        dial_port: endpoint.port,
        host: host?.unwrap_or(endpoint.authority),
        connect_to: connect_to?
            .into_iter()
            .map(|pinned| pinned.address)
            .collect(),
        proxy,
        proxy_credentials,
        ca_file: ca_file?,
        connect_timeout: connect_timeout?,
        answer_timeout: answer_timeout?,
        idle_timeout: idle_timeout?,
        max_response: max_response?,
        correct_clock: correct_clock?,
    };
    Some(Base {
        upstream,
        plaintext: plaintext?,
    })
}

// === impl Endpoint ===

impl Endpoint {
    /// Checks how calls get there: not in plaintext over a network, and warns if a proxy that the
    /// environment names is not used.
    fn check_route(
        &self,
        url: &Field<'_>,
        connect_to: &[Pinned],
        proxy: Option<&HttpProxy>,
        plaintext: bool,
    ) {
        let addresses = addresses(&self.host, self.port, connect_to);
        if are_loopback(&addresses) && is_near(proxy) {
            return;
        }
        if self.scheme == Scheme::Http && !plaintext {
            refuse_plaintext(url);
        }
        if proxy.is_none() {
            warn_of_variables(url.reader, &self.host);
        }
    }
}

// === impl Base ===

impl Base {
    /// Checks the endpoint of an account's upstream. `None` after a mistake.
    pub(super) fn check_endpoint(
        &self,
        key: &Field<'_>,
        upstream: &Upstream,
        listen: Option<&Listen>,
    ) -> Option<()> {
        let addresses = literal(&upstream.dial_host, upstream.dial_port);
        let stays_here = are_loopback(&addresses) && is_near(upstream.proxy.as_ref());
        if upstream.scheme == Scheme::Http && !self.plaintext && !stays_here {
            refuse_plaintext(key);
            return None;
        }
        if listen.is_some_and(|listen| addresses.iter().any(|it| is_own_listener(listen, *it))) {
            key.mistake(OWN_LISTENER);
            return None;
        }
        Some(())
    }
}

fn refuse_plaintext(key: &Field<'_>) {
    key.mistake(
        "expected https://: http:// is allowed only to loopback, or with upstream.plaintext = true",
    );
}

/// Reads the host that requests name.
fn host(key: &Field<'_>) -> Option<String> {
    key.text("a host name, optionally with a port", |text| {
        authority(text).map(|authority| authority.text)
    })
}

/// Reads the proxy and its credentials. The outer `None` is a mistake.
fn proxy(
    section: &mut Section<'_>,
    connect_to: Option<&[Pinned]>,
    listen: Option<&Listen>,
) -> Option<(Option<HttpProxy>, Option<Secret>)> {
    let key = section.key("proxy");
    let credentials = section.key("proxy_credentials");
    if credentials.is_given() && !key.is_given() {
        credentials
            .mistake("has no effect without upstream.proxy: expected http://host:port there");
    }
    let proxy = key.optional(http_proxy);
    if let (Some(Some(proxy)), Some(connect_to)) = (&proxy, connect_to) {
        if !connect_to.is_empty() {
            key.mistake(
                "expected either this key or upstream.connect_to: the proxy resolves CAMS's name",
            );
        }
        let addresses = literal(&proxy.host, proxy.port);
        if listen.is_some_and(|listen| addresses.iter().any(|it| is_own_listener(listen, *it))) {
            key.mistake(OWN_LISTENER);
        }
    }
    let credentials = credentials.given(proxy_credentials);
    Some((proxy?, credentials?))
}

fn http_proxy(key: &Field<'_>) -> Option<HttpProxy> {
    if let Some(Item::Scalar { text, .. }) = &key.item {
        if text.contains('@') {
            key.mistake(
                "expected a URL without user and password: set upstream.proxy_credentials instead",
            );
            return None;
        }
        if text.starts_with("https://") {
            key.mistake(
                "expected http://host:port: TLS to the proxy itself is not supported. TLS to CAMS \
                 runs end to end through the proxy's tunnel",
            );
            return None;
        }
    }
    key.text(
        "scheme, host and port of an HTTP proxy, such as http://proxy.example:3128",
        |text| {
            let proxy = endpoint(text)?;
            // Proxies have no usual port.
            let has_port = text
                .trim_end_matches('/')
                .ends_with(&format!(":{}", proxy.port));
            (proxy.scheme == Scheme::Http && has_port).then_some(HttpProxy {
                host: proxy.host,
                port: proxy.port,
            })
        },
    )
}

fn proxy_credentials(key: Field<'_>) -> Option<Secret> {
    let reader = key.reader;
    let place = key.place.clone();
    let credentials = secret(key)?;
    // RFC 7617, section 2: the user name has no colon.
    if credentials.expose().contains(':') {
        return Some(credentials);
    }
    reader.mistake(&place, "expected user:password");
    None
}

/// Tells an operator whose environment names a proxy, also for `host`, that Flowgate does not use it.
fn warn_of_variables(reader: &Reader, host: &str) {
    let is_exempt = |entry: &str| {
        let entry = entry.trim().trim_start_matches('*').trim_start_matches('.');
        let before = host.strip_suffix(entry);
        // Only `*` is empty now.
        entry.is_empty() || before.is_some_and(|it| it.is_empty() || it.ends_with('.'))
    };
    let mut entries = EXEMPT_VARIABLES
        .into_iter()
        .filter_map(|name| reader.environment.get(name))
        .flat_map(|entries| entries.split(','))
        .filter(|entry| !entry.trim().is_empty());
    if entries.any(is_exempt) {
        return;
    }
    let set: Vec<_> = PROXY_VARIABLES
        .into_iter()
        .filter(|name| reader.environment.get(name).is_some())
        .collect();
    if !set.is_empty() {
        reader.warn(format!(
            "{}: not read by Flowgate, which connects to CAMS directly: set upstream.proxy to use a \
             proxy",
            set.join(", ")
        ));
    }
}

/// Parses a URL that consists only of scheme, host and optional port.
pub(super) fn endpoint(text: &str) -> Option<Endpoint> {
    // `Uri` silently drops a fragment.
    if text.contains('#') {
        return None;
    }
    let uri: Uri = text.parse().ok()?;
    let (scheme, default_port) = match uri.scheme_str()? {
        "http" => (Scheme::Http, 80),
        "https" => (Scheme::Https, 443),
        _ => return None,
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return None;
    }
    let Authority { host, port, text } = authority(uri.authority()?.as_str())?;
    Some(Endpoint {
        scheme,
        host,
        port: port.unwrap_or(default_port),
        authority: text,
    })
}

/// Parses `host` or `host:port`, with an IPv6 address in brackets.
pub(in crate::config) fn authority(text: &str) -> Option<Authority> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(parse_port(port)?)),
        _ => (text, None),
    };
    let in_brackets = name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'));
    let host = match in_brackets {
        Some(address) => address.parse::<Ipv6Addr>().ok()?.to_string(),
        None => host_name(name)?,
    };
    Some(Authority {
        host,
        port,
        text: text.to_ascii_lowercase(),
    })
}

/// Parses a port other than 0. Only digits are accepted: `parse` alone would accept `+443`.
fn parse_port(text: &str) -> Option<u16> {
    if !text.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

fn pinned(entry: &Field<'_>) -> Option<Pinned> {
    let address = entry.text("ip:port such as 203.0.113.7:443", |text| {
        let address: SocketAddr = text.parse().ok()?;
        (address.port() != 0).then_some(address)
    })?;
    Some(Pinned {
        place: entry.place.clone(),
        address,
    })
}

/// Returns the addresses of the host that are known without a name look-up.
fn literal(host: &str, port: u16) -> Vec<SocketAddr> {
    let addresses: Vec<IpAddr> = if host == "localhost" {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        host.parse().into_iter().collect()
    };
    addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, port))
        .collect()
}

/// Returns the pinned addresses, or else those of the host that are known.
fn addresses(host: &str, port: u16, connect_to: &[Pinned]) -> Vec<SocketAddr> {
    if connect_to.is_empty() {
        return literal(host, port);
    }
    connect_to.iter().map(|pinned| pinned.address).collect()
}

/// Whether all addresses are known and loopback.
fn are_loopback(addresses: &[SocketAddr]) -> bool {
    !addresses.is_empty() && addresses.iter().all(is_loopback)
}

/// Whether no proxy beyond loopback is on the way: to another machine's proxy, loopback is that
/// machine.
fn is_near(proxy: Option<&HttpProxy>) -> bool {
    proxy.is_none_or(|proxy| are_loopback(&literal(&proxy.host, proxy.port)))
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Records a mistake for each address of the endpoint that is a listener of Flowgate.
fn refuse_own_listeners(
    url: &Field<'_>,
    addresses: &[SocketAddr],
    connect_to: &[Pinned],
    listen: &Listen,
) {
    if connect_to.is_empty() {
        for address in addresses {
            if is_own_listener(listen, *address) {
                url.mistake(OWN_LISTENER);
            }
        }
        return;
    }
    for pinned in connect_to {
        if is_own_listener(listen, pinned.address) {
            url.reader.mistake(&pinned.place, OWN_LISTENER);
        }
    }
}

fn is_own_listener(listen: &Listen, address: SocketAddr) -> bool {
    reaches(&listen.proxy, address) || reaches(&listen.admin, address)
}

/// Whether connecting to the address reaches the listener, to the extent that this is known before
/// it is bound.
fn reaches(own: &Bind, dialled: SocketAddr) -> bool {
    let Bind::Tcp(own) = own else { return false };
    let listens = own.ip().to_canonical();
    let ip = dialled.ip().to_canonical();
    let same =
        listens == ip || ip.is_unspecified() || (listens.is_unspecified() && ip.is_loopback());
    own.port() == dialled.port() && same
}

/// Reads the path of a PEM file of CAs; an empty text means no file. The file is parsed here only
/// to report its mistakes. It is loaded again when it is used.
pub(super) fn ca_file(key: &Field<'_>) -> Option<Option<PathBuf>> {
    let text = key.text("the path of a PEM file", |text| Some(text.to_owned()))?;
    if text.is_empty() {
        return Some(None);
    }
    let path = key.opens(text.as_ref());
    match tls::roots(&path) {
        Ok(_) => Some(Some(path)),
        Err(expectation) => {
            key.mistake(expectation);
            None
        }
    }
}
