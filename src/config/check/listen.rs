//! Checks `[listen]`: addresses, TLS and the bounds on what is accepted.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{BYTES, MANY, tls};
use crate::config::bind::BIND_FORM;
use crate::config::read::{Field, POSITIVE, Section};
use crate::config::secrets::secret;
use crate::config::units::Size;
use crate::config::{Bind, Listen};
use crate::primitives::secret::Secret;

/// The form of one of Flowgate's own names.
const NAME_FORM: &str = "a host name such as flowgate.internal";

/// Checks one of Flowgate's own names. The error describes what is expected.
pub(crate) fn check_host_name(text: &str) -> Result<(), String> {
    host_name(text)
        .map(drop)
        .ok_or_else(|| format!("expected {NAME_FORM}"))
}

/// Checks the section. `None` after a mistake.
pub(super) fn check(mut section: Section<'_>) -> Option<Listen> {
    let proxy = bind(&section.key("proxy"));
    let admin_key = section.key("admin");
    let admin = bind(&admin_key);
    if let (Some(proxy), Some(admin)) = (&proxy, &admin)
        && clash(proxy, admin)
    {
        admin_key.mistake("conflicts with listen.proxy: expected another address or port");
    }
    let admin_token = section.key("admin_token").given(secret);
    let admin_actions = admin_actions(&section.key("admin_actions"), admin_token.as_ref());
    let socket_mode = section
        .key("socket_mode")
        .text("permissions in octal such as 0660", permissions);
    let names = section
        .key("names")
        .list(|entry| entry.text(NAME_FORM, host_name));
    let tls = section.key("tls").given(tls::check);
    let trusted_proxies = trusted_proxies(&mut section);
    let proxy_protocol = proxy_protocol(&mut section, proxy.as_ref(), trusted_proxies.as_deref());
    let max_connections = section.key("max_connections").count(&MANY);
    let per_source = section.key("max_connections_per_source").count(&MANY);
    let header_timeout = section.key("header_timeout").time(&POSITIVE);
    let body_timeout = section.key("body_timeout").time(&POSITIVE);
    let idle_timeout = section.key("idle_timeout").time(&POSITIVE);
    // hyper's buffer cannot be smaller.
    let max_header = section.key("max_header").size(&(8 << 10..=1 << 20));
    let max_body = section.key("max_body").size(&BYTES);
    let max_unverified = max_unverified(&section.key("max_unverified"), max_body);
    section.done();
    Some(Listen {
        proxy: proxy?,
        admin: admin?,
        admin_token: admin_token?,
        admin_actions: admin_actions?,
        socket_mode: socket_mode?,
        tls: tls?,
        names: names?,
        trusted_proxies: trusted_proxies?,
        proxy_protocol: proxy_protocol?,
        max_connections: max_connections? as usize,
        max_connections_per_source: per_source? as usize,
        header_timeout: header_timeout?,
        body_timeout: body_timeout?,
        idle_timeout: idle_timeout?,
        max_header: max_header?,
        max_body: max_body?,
        max_unverified: max_unverified?,
    })
}

/// Reads whether operators may act, which requires a token. The outer `None` of `admin_token` is a
/// mistake.
fn admin_actions(key: &Field<'_>, admin_token: Option<&Option<Secret>>) -> Option<bool> {
    let admin_actions = key.flag();
    if let (Some(true), Some(None)) = (admin_actions, admin_token) {
        key.mistake("expected listen.admin_token to be set too: admin actions require the token");
    }
    admin_actions
}

/// Reads whether balancers send a PROXY header. A TCP listener must know their addresses.
fn proxy_protocol(
    section: &mut Section<'_>,
    proxy: Option<&Bind>,
    trusted_proxies: Option<&[IpNet]>,
) -> Option<bool> {
    let key = section.key("proxy_protocol");
    let proxy_protocol = key.flag();
    if let (Some(true), Some(Bind::Tcp(_)), Some([])) = (proxy_protocol, proxy, trusted_proxies) {
        key.mistake(
            "expected listen.trusted_proxies to be set too: only connections from these addresses \
             are accepted",
        );
    }
    proxy_protocol
}

/// Reads the bytes for the bodies of unverified callers, with room for the largest body.
fn max_unverified(key: &Field<'_>, max_body: Option<usize>) -> Option<usize> {
    let max_unverified = key.size(&BYTES);
    if let (Some(all), Some(one)) = (max_unverified, max_body)
        && all < one
    {
        key.mistake(format!(
            "expected at least {} (listen.max_body): the largest call must fit",
            Size(one)
        ));
    }
    max_unverified
}

/// Reads the addresses of balancers.
fn trusted_proxies(section: &mut Section<'_>) -> Option<Vec<IpNet>> {
    let reader = section.reader;
    section.key("trusted_proxies").list(|entry| {
        let expected = "an address or a network such as 10.0.0.0/8, without bits beyond its prefix";
        let network = entry.text(expected, network)?;
        if network.prefix_len() == 0 {
            reader.warn(format!(
                "listen.trusted_proxies contains {network}: every caller can state any address"
            ));
        }
        Some(network)
    })
}

fn network(text: &str) -> Option<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(IpNet::from(address));
    }
    text.parse()
        .ok()
        .filter(|network: &IpNet| network.trunc() == *network)
}

pub(super) fn bind(key: &Field<'_>) -> Option<Bind> {
    key.text(BIND_FORM, |text| text.parse().ok())
}

/// Reads permissions in octal as `chmod` accepts them, without setuid, setgid and sticky bits.
fn permissions(text: &str) -> Option<u32> {
    let octal =
        matches!(text.len(), 3 | 4) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| octal && *mode <= 0o777)
}

/// Whether both addresses cannot be bound at once. Port 0 never clashes.
fn clash(a: &Bind, b: &Bind) -> bool {
    match (a, b) {
        (Bind::Tcp(a), Bind::Tcp(b)) => {
            let one = a.ip().to_canonical();
            let other = b.ip().to_canonical();
            let overlap = one == other || one.is_unspecified() || other.is_unspecified();
            a.port() == b.port() && a.port() != 0 && overlap
        }
        _ => a == b,
    }
}

/// Reads a host name without a port, and converts it to lower case.
pub(super) fn host_name(text: &str) -> Option<String> {
    (text.len() <= 253 && text.split('.').all(is_label)).then(|| text.to_ascii_lowercase())
}

/// Whether the text is one label of a host name.
fn is_label(text: &str) -> bool {
    let has_plain_characters = text
        .bytes()
        .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    (1..=63).contains(&text.len())
        && has_plain_characters
        && !text.starts_with('-')
        && !text.ends_with('-')
}
