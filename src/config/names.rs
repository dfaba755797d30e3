//! The names of a listener: its address, loopback if it is bound to all addresses, and the names of
//! the configuration. A request with another signed host is meant for another server.

use std::net::{IpAddr, SocketAddr};

use crate::config::Bind;

/// The names of one listener.
pub(crate) struct Names {
    /// In lower case.
    given: Vec<String>,
    /// `None` for a Unix socket.
    address: Option<SocketAddr>,
    /// The scheme's default port, which may be omitted.
    usual_port: u16,
}

/// Returns the part of a `Host` value between scheme and path.
pub(crate) fn authority(host: &str) -> &str {
    let host = host.split_once("://").map_or(host, |(_, rest)| rest);
    host.split(['/', '?', '#']).next().unwrap_or_default()
}

/// Returns the host of a `Host` value in lower case, without scheme, port and path: some SDKs send
/// their whole endpoint setting.
pub(crate) fn host_name(host: &str) -> String {
    let host = authority(host).rsplit('@').next().unwrap_or_default();
    let name = match host.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => name,
        _ => host,
    };
    name.trim_end_matches('.').to_ascii_lowercase()
}

// === impl Names ===

impl Names {
    /// `bind` is the address that was actually bound; `over_tls`, whether callers use TLS.
    pub(crate) fn new(bind: &Bind, given: &[String], over_tls: bool) -> Self {
        let given = given.iter().map(|name| name.to_ascii_lowercase()).collect();
        Self {
            given,
            address: bind.address(),
            usual_port: if over_tls { 443 } else { 80 },
        }
    }

    /// Whether an authority certainly names this listener.
    pub(crate) fn contain(&self, authority: &str) -> bool {
        let authority = authority.to_ascii_lowercase();
        self.given
            .iter()
            .any(|name| *name == authority || *name == host_name(&authority))
            || self
                .address
                .is_some_and(|address| is_at(address, &authority, self.usual_port))
    }

    /// Whether a host name may name this listener. A Unix socket has no name of its own, and a
    /// listener on 0.0.0.0 is reached through every address of the machine, which are not known
    /// here.
    pub(crate) fn could_be(&self, name: &str) -> bool {
        let Some(address) = self.address else {
            return true;
        };
        address.ip().is_unspecified() && name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok()
    }
}

/// Whether an authority is the listener's address, or loopback if the listener accepts that.
fn is_at(address: SocketAddr, authority: &str, usual_port: u16) -> bool {
    let port = format!(":{}", address.port());
    let host = match authority.strip_suffix(&port) {
        Some(host) => host,
        None if address.port() == usual_port => authority,
        None => return false,
    };
    let takes_loopback = address.ip().is_loopback() || address.ip().is_unspecified();
    let own = SocketAddr::new(address.ip(), address.port()).to_string();
    own.strip_suffix(&port) == Some(host)
        || takes_loopback && ["localhost", "127.0.0.1"].contains(&host)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_host_name_is_found_in_unusual_host_values() {
        for (host, name) in [
            (
                "Cams.Ap-Southeast-1.aliyuncs.com",
                "cams.ap-southeast-1.aliyuncs.com",
            ),
            ("http://127.0.0.1:18080", "127.0.0.1"),
            ("h:80/", "h"),
            ("h:80/prefix", "h"),
            ("https://x@ecs.aliyuncs.com.:443/?a#b", "ecs.aliyuncs.com"),
            ("[::1]:8080", "[::1]"),
            ("[::1]", "[::1]"),
        ] {
            assert_eq!(host_name(host), name, "{host}");
        }
    }

    #[test]
    fn own_addresses() {
        let at = |address: &str, authority| is_at(address.parse().unwrap(), authority, 80);
        assert!(at("127.0.0.1:8080", "127.0.0.1:8080") && at("127.0.0.1:8080", "localhost:8080"));
        assert!(
            at("0.0.0.0:8080", "localhost:8080")
                && at("10.0.0.7:80", "10.0.0.7:80")
                && at("[::1]:1", "[::1]:1")
        );
        assert!(!at("127.0.0.1:8080", "127.0.0.1") && !at("10.0.0.7:80", "localhost:80"));
        assert!(!at("0.0.0.0:8080", "10.0.0.7:8080"));
        // The default port may be omitted.
        assert!(
            at("127.0.0.1:80", "127.0.0.1")
                && at("0.0.0.0:80", "localhost")
                && at("[::1]:80", "[::1]")
        );
        assert!(
            !at("127.0.0.1:443", "127.0.0.1")
                && !at("10.0.0.7:80", "localhost")
                && !at("[::1]:80", "::1")
        );
    }
}
