//! `[upstream]`: the one endpoint that Flowgate dials. In the clear only to loopback or when it is allowed by name, and
//! never Flowgate itself.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;

use hyper::Uri;

use super::BYTES;
use super::listen::host_name;
use crate::config::read::{Field, POSITIVE, Place, Section};
use crate::config::{Bind, Listen, Scheme, Upstream};

/// What `url` says.
pub(super) struct Endpoint {
    pub(super) scheme: Scheme,
    /// Without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// Host, and port if one was written, as in a `Host` header.
    pub(super) authority: String,
}

/// The section, or `None` after a mistake.
pub(super) fn check(mut section: Section<'_>, listen: Option<&Listen>) -> Option<Upstream> {
    let url = section.key("url");
    let endpoint = url.text(
        "scheme, host and port only, such as https://cams.ap-southeast-1.aliyuncs.com",
        endpoint,
    );
    let host = section.key("host").optional(|key| {
        key.text("a host name, with a port if need be", |t| {
            authority(t).map(|(_, _, text)| text)
        })
    });
    let plaintext = section.key("plaintext").flag();
    let connect_to = section.key("connect_to").list(address);
    if let (Some(endpoint), Some(connect_to), Some(plaintext)) = (&endpoint, &connect_to, plaintext)
    {
        if endpoint.scheme == Scheme::Http && !plaintext && !stays_here(endpoint, connect_to) {
            url.mistake("expected https://: http:// goes only to loopback, or with upstream.plaintext = true");
        }
        for (place, dialled) in dialled(&url, endpoint, connect_to) {
            if listen.is_some_and(|listen| {
                [&listen.proxy, &listen.admin]
                    .iter()
                    .any(|own| reaches(own, dialled))
            }) {
                url.reader.mistake(
                    place,
                    "expected another address than Flowgate's own listeners",
                );
            }
        }
    }
    let ca_file = ca_file(&section.key("ca_file"));
    let connect_timeout = section.key("connect_timeout").time(&POSITIVE);
    let answer_timeout = section.key("answer_timeout").time(&POSITIVE);
    let idle_timeout = section.key("idle_timeout").time(&POSITIVE);
    let max_response = section.key("max_response").size(&BYTES);
    section.done();
    let Endpoint {
        scheme,
        host: dial_host,
        port,
        authority,
    } = endpoint?;
    Some(Upstream {
        scheme,
        dial_host,
        dial_port: port,
        host: host?.unwrap_or(authority),
        connect_to: connect_to?
            .into_iter()
            .map(|(_, address)| address)
            .collect(),
        ca_file: ca_file?,
        connect_timeout: connect_timeout?,
        answer_timeout: answer_timeout?,
        idle_timeout: idle_timeout?,
        max_response: max_response?,
    })
}

/// The parts of a URL that has nothing but them.
pub(super) fn endpoint(text: &str) -> Option<Endpoint> {
    // The parser drops a fragment without a word.
    let uri: Uri = if text.contains('#') {
        None
    } else {
        text.parse().ok()
    }?;
    let (scheme, default) = match uri.scheme_str()? {
        "http" => (Scheme::Http, 80),
        "https" => (Scheme::Https, 443),
        _ => return None,
    };
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return None;
    }
    let (host, port, authority) = authority(uri.authority()?.as_str())?;
    Some(Endpoint {
        scheme,
        host,
        port: port.unwrap_or(default),
        authority,
    })
}

/// `host` or `host:port`, an IPv6 address in brackets: the host without brackets, the port, the whole in lower case.
pub(super) fn authority(text: &str) -> Option<(String, Option<u16>, String)> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    let digits = |port: &&str| port.bytes().all(|b| b.is_ascii_digit());
    let port = match port {
        None => None,
        Some(port) => Some(
            Some(port)
                .filter(digits)?
                .parse()
                .ok()
                .filter(|port| *port != 0)?,
        ),
    };
    let host = match name
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix(']'))
    {
        Some(address) => address.parse::<Ipv6Addr>().ok()?.to_string(),
        None => host_name(name)?,
    };
    Some((host, port, text.to_ascii_lowercase()))
}

fn address(entry: &Field<'_>) -> Option<(Place, SocketAddr)> {
    let parse = |text: &str| {
        text.parse()
            .ok()
            .filter(|address: &SocketAddr| address.port() != 0)
    };
    Some((
        entry.place.clone(),
        entry.text("ip:port such as 203.0.113.7:443", parse)?,
    ))
}

/// Addresses that the host is without asking anybody.
fn literal(endpoint: &Endpoint) -> Vec<SocketAddr> {
    let here = [
        IpAddr::from(Ipv4Addr::LOCALHOST),
        IpAddr::from(Ipv6Addr::LOCALHOST),
    ];
    let addresses = if endpoint.host == "localhost" {
        here.to_vec()
    } else {
        endpoint.host.parse().into_iter().collect()
    };
    addresses
        .into_iter()
        .map(|ip| SocketAddr::new(ip, endpoint.port))
        .collect()
}

/// Whether everything that is dialled is loopback.
fn stays_here(endpoint: &Endpoint, connect_to: &[(Place, SocketAddr)]) -> bool {
    let loopback = |address: &SocketAddr| address.ip().to_canonical().is_loopback();
    let literal = literal(endpoint);
    if connect_to.is_empty() {
        !literal.is_empty() && literal.iter().all(loopback)
    } else {
        connect_to.iter().all(|(_, address)| loopback(address))
    }
}

/// What is known to be dialled, and where that was written.
fn dialled<'a>(
    url: &'a Field<'_>,
    endpoint: &Endpoint,
    connect_to: &'a [(Place, SocketAddr)],
) -> Vec<(&'a Place, SocketAddr)> {
    if connect_to.is_empty() {
        literal(endpoint)
            .into_iter()
            .map(|address| (&url.place, address))
            .collect()
    } else {
        connect_to
            .iter()
            .map(|(place, address)| (place, *address))
            .collect()
    }
}

/// Whether dialling the address ends at the listener, as far as that is known before anything is bound.
fn reaches(own: &Bind, dialled: SocketAddr) -> bool {
    let Bind::Tcp(own) = own else { return false };
    let (listens, ip) = (own.ip().to_canonical(), dialled.ip().to_canonical());
    let same =
        listens == ip || ip.is_unspecified() || (listens.is_unspecified() && ip.is_loopback());
    own.port() == dialled.port() && same
}

/// Empty is none. That the file is there is checked now; what is in it, when it is loaded.
pub(super) fn ca_file(key: &Field<'_>) -> Option<Option<PathBuf>> {
    let text = key.text("the path of a PEM file", |text| Some(text.to_owned()))?;
    if text.is_empty() {
        return Some(None);
    }
    let path = key.opens(text.as_ref());
    if path.is_file() {
        return Some(Some(path));
    }
    key.mistake("expected the path of a file that exists");
    None
}
