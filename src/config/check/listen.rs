//! `[listen]`: where Flowgate is bound, and the bounds of what it accepts.

use super::{BYTES, MANY, tls};
use crate::config::bind::BIND_FORM;
use crate::config::read::{Field, POSITIVE, Section};
use crate::config::secrets::secret;
use crate::config::{Bind, Listen};

/// The section, or `None` after a mistake.
pub(super) fn check(mut section: Section<'_>) -> Option<Listen> {
    let proxy = bind(&section.key("proxy"));
    let admin_key = section.key("admin");
    let admin = bind(&admin_key);
    if let (Some(proxy), Some(admin)) = (&proxy, &admin)
        && clash(proxy, admin)
    {
        admin_key.mistake("expected another address than listen.proxy");
    }
    let token_key = section.key("admin_token");
    let admin_token = if token_key.is_given() {
        secret(token_key).map(Some)
    } else {
        Some(None)
    };
    let actions_key = section.key("admin_actions");
    let admin_actions = actions_key.flag();
    if let (Some(true), Some(None)) = (admin_actions, &admin_token) {
        actions_key.mistake("expected listen.admin_token beside it: orders are for who shows it");
    }
    let socket_mode = section
        .key("socket_mode")
        .text("permissions in octal such as 0660", permissions);
    let names = section
        .key("names")
        .list(|entry| entry.text("a host name such as flowgate.internal", host_name));
    let tls = section.key("tls").given(tls::check);
    let max_connections = section.key("max_connections").count(&MANY);
    let per_source = section.key("max_connections_per_source").count(&MANY);
    let header_timeout = section.key("header_timeout").time(&POSITIVE);
    let body_timeout = section.key("body_timeout").time(&POSITIVE);
    let idle_timeout = section.key("idle_timeout").time(&POSITIVE);
    // The server's buffer cannot be smaller.
    let max_header = section.key("max_header").size(&(8 << 10..=1 << 20));
    let max_body = section.key("max_body").size(&BYTES);
    let unverified = section.key("max_unverified");
    let max_unverified = unverified.size(&BYTES);
    if let (Some(all), Some(one)) = (max_unverified, max_body)
        && all < one
    {
        unverified.mistake("expected at least listen.max_body: the largest call must fit");
    }
    section.done();
    Some(Listen {
        proxy: proxy?,
        admin: admin?,
        admin_token: admin_token?,
        admin_actions: admin_actions?,
        socket_mode: socket_mode?,
        tls: tls?,
        names: names?,
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

pub(super) fn bind(key: &Field<'_>) -> Option<Bind> {
    key.text(BIND_FORM, |text| text.parse().ok())
}

/// As `chmod` takes them, without what is no permission.
fn permissions(text: &str) -> Option<u32> {
    let octal =
        matches!(text.len(), 3 | 4) && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| octal && *mode <= 0o777)
}

/// Whether both cannot be bound at once. Port 0 is a new port each time.
fn clash(a: &Bind, b: &Bind) -> bool {
    match (a, b) {
        (Bind::Tcp(a), Bind::Tcp(b)) => {
            let (one, other) = (a.ip().to_canonical(), b.ip().to_canonical());
            let overlap = one == other || one.is_unspecified() || other.is_unspecified();
            a.port() == b.port() && a.port() != 0 && overlap
        }
        _ => a == b,
    }
}

/// A host name without a port, in lower case.
pub(super) fn host_name(text: &str) -> Option<String> {
    let label = |label: &str| {
        let inner = label
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
        (1..=63).contains(&label.len()) && inner && !label.starts_with('-') && !label.ends_with('-')
    };
    (text.len() <= 253 && text.split('.').all(label)).then(|| text.to_ascii_lowercase())
}
