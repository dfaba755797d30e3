//! Checks `[upstream]`: the one endpoint to which Flowgate connects. Plaintext is allowed only to
//! loopback or with `plaintext = true`, and the endpoint must not be Flowgate itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use hyper::Uri;

use super::BYTES;
use super::listen::host_name;
use crate::config::read::{Field, KeyLocation, POSITIVE, Section};
use crate::config::{Bind, Listen, Scheme, Upstream, tls};

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
pub(super) struct Authority {
    /// Without brackets, in lower case.
    pub(super) host: String,
    pub(super) port: Option<u16>,
    /// The whole text in lower case.
    pub(super) text: String,
}

/// A pinned address and where it is written.
struct Pinned {
    place: KeyLocation,
    address: SocketAddr,
}

/// Checks the section. `None` after a mistake.
pub(super) fn check(mut section: Section<'_>, listen: Option<&Listen>) -> Option<Upstream> {
    let url = section.key("url");
    let endpoint = url.text(
        "scheme, host and port only, such as https://cams.ap-southeast-1.aliyuncs.com",
        endpoint,
    );
    let host = section.key("host").optional(|key| {
        key.text("a host name, optionally with a port", |text| {
            authority(text).map(|authority| authority.text)
        })
    });
    let plaintext = section.key("plaintext").flag();
    let connect_to = section.key("connect_to").list(pinned);
    if let (Some(endpoint), Some(connect_to), Some(plaintext)) = (&endpoint, &connect_to, plaintext)
    {
        if endpoint.scheme == Scheme::Http && !plaintext && !stays_here(endpoint, connect_to) {
            url.mistake(
                "expected https://: http:// is allowed only to loopback, or with \
                 upstream.plaintext = true",
            );
        }
        if let Some(listen) = listen {
            refuse_own_listeners(&url, endpoint, connect_to, listen);
        }
    }
    let ca_file = ca_file(&section.key("ca_file"));
    let connect_timeout = section.key("connect_timeout").time(&POSITIVE);
    let answer_timeout = section.key("answer_timeout").time(&POSITIVE);
    let idle_timeout = section.key("idle_timeout").time(&POSITIVE);
    let max_response = section.key("max_response").size(&BYTES);
    section.done();
    let endpoint = endpoint?;
    Some(Upstream {
        scheme: endpoint.scheme,
        dial_host: endpoint.host,
        dial_port: endpoint.port,
        host: host?.unwrap_or(endpoint.authority),
        connect_to: connect_to?
            .into_iter()
            .map(|pinned| pinned.address)
            .collect(),
        ca_file: ca_file?,
        connect_timeout: connect_timeout?,
        answer_timeout: answer_timeout?,
        idle_timeout: idle_timeout?,
        max_response: max_response?,
    })
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
pub(super) fn authority(text: &str) -> Option<Authority> {
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
fn literal(endpoint: &Endpoint) -> Vec<SocketAddr> {
    let addresses: Vec<IpAddr> = if endpoint.host == "localhost" {
        vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]
    } else {
        endpoint.host.parse().into_iter().collect()
    };
    addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, endpoint.port))
        .collect()
}

/// Whether all addresses of the endpoint are loopback.
fn stays_here(endpoint: &Endpoint, connect_to: &[Pinned]) -> bool {
    if !connect_to.is_empty() {
        return connect_to.iter().all(|pinned| is_loopback(&pinned.address));
    }
    let literal = literal(endpoint);
    !literal.is_empty() && literal.iter().all(is_loopback)
}

fn is_loopback(address: &SocketAddr) -> bool {
    address.ip().to_canonical().is_loopback()
}

/// Records a mistake for each address of the endpoint that is a listener of Flowgate.
fn refuse_own_listeners(
    url: &Field<'_>,
    endpoint: &Endpoint,
    connect_to: &[Pinned],
    listen: &Listen,
) {
    let expectation = "this is one of Flowgate's own listeners: expected another address";
    if connect_to.is_empty() {
        for address in literal(endpoint) {
            if is_own_listener(listen, address) {
                url.mistake(expectation);
            }
        }
        return;
    }
    for pinned in connect_to {
        if is_own_listener(listen, pinned.address) {
            url.reader.mistake(&pinned.place, expectation);
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
