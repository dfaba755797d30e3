//! The names of a listener: its address, loopback if it is bound to all addresses, and the names of
//! the configuration. A request with another signed host is meant for another server.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use crate::config::Bind;

/// The names of one listener.
pub(crate) struct Names {
    given: Vec<Authority>,
    /// The listener's own hosts: its address, and loopback if it accepts that. Empty for a Unix
    /// socket.
    own: Vec<String>,
    /// `None` for a Unix socket.
    address: Option<SocketAddr>,
    /// The scheme's default port, which may be omitted.
    usual_port: u16,
}

/// A host and its port, compared by meaning rather than as text: the host is in lower case, without
/// a trailing dot, and an IPv6 address is in its shortest form.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    host: String,
    port: Option<u16>,
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

/// Parses the host part of an authority. `None` for text that another parser could read
/// differently.
fn parse_host(text: &str) -> Option<String> {
    if let Some(rest) = text.strip_prefix('[') {
        let address: Ipv6Addr = rest.strip_suffix(']')?.parse().ok()?;
        return Some(format!("[{address}]"));
    }
    let name = text.strip_suffix('.').unwrap_or(text);
    let is_name = !name.is_empty()
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'));
    is_name.then(|| name.to_ascii_lowercase())
}

// === impl Authority ===

impl Authority {
    /// Parses `host` or `host:port`. `None` for user information, an IPv6 address without brackets
    /// or with a zone, a port that is no number from 1 to 65535, and anything else that is not a
    /// host.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
            _ => (text, None),
        };
        let port = match port {
            Some(digits) if digits.bytes().all(|b| b.is_ascii_digit()) => {
                Some(digits.parse().ok().filter(|port| *port != 0)?)
            }
            Some(_) => return None,
            None => None,
        };
        Some(Self {
            host: parse_host(host)?,
            port,
        })
    }

    /// Whether the other has this host and this port. One without a port, or with the default port
    /// of a scheme, stands for every port: a hosts file leads callers to Flowgate's own.
    pub(crate) fn covers(&self, other: &Self) -> bool {
        let has_port = match self.port {
            None | Some(80 | 443) => true,
            own => own == other.port,
        };
        self.host == other.host && has_port
    }

    /// Whether both have the same host and port. `usual_port` is the port of one that names none.
    pub(crate) fn is_same(&self, other: &Self, usual_port: u16) -> bool {
        self.host == other.host && self.port_or(usual_port) == other.port_or(usual_port)
    }

    fn port_or(&self, usual_port: u16) -> u16 {
        self.port.unwrap_or(usual_port)
    }
}

// === impl Names ===

impl Names {
    /// `bind` is the address that was actually bound; `over_tls`, whether callers use TLS.
    pub(crate) fn new(bind: &Bind, given: &[String], over_tls: bool) -> Self {
        let address = bind.address();
        Self {
            given: given
                .iter()
                .filter_map(|name| Authority::parse(name))
                .collect(),
            own: address.map(own_hosts).unwrap_or_default(),
            address,
            usual_port: if over_tls { 443 } else { 80 },
        }
    }

    /// Whether an authority certainly names this listener. Names of the configuration have no port.
    pub(crate) fn contains(&self, authority: &Authority) -> bool {
        self.given.iter().any(|name| name.covers(authority)) || self.is_address(authority)
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

    /// Whether an authority is the listener's address, or loopback if the listener accepts that.
    fn is_address(&self, authority: &Authority) -> bool {
        let port = authority.port_or(self.usual_port);
        self.address.is_some_and(|address| address.port() == port)
            && self.own.contains(&authority.host)
    }
}

/// The hosts by which a listener on this address is reached.
fn own_hosts(address: SocketAddr) -> Vec<String> {
    let ip = address.ip();
    let mut hosts = vec![match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }];
    if ip.is_loopback() || ip.is_unspecified() {
        hosts.extend(["localhost".to_owned(), "127.0.0.1".to_owned()]);
    }
    hosts
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

    fn parsed(text: &str) -> Authority {
        Authority::parse(text).unwrap_or_else(|| panic!("{text}"))
    }

    #[test]
    fn authorities_are_compared_by_host_and_port() {
        for (one, other) in [
            ("cams.example", "CAMS.Example"),
            ("cams.example", "cams.example."),
            ("cams.example", "cams.example:80"),
            ("cams.example.:80", "Cams.example"),
            ("cams.example:8080", "cams.example.:08080"),
            ("[::1]:80", "[0:0:0:0:0:0:0:1]"),
            ("[2001:DB8::1]:9", "[2001:db8:0::1]:9"),
        ] {
            assert!(parsed(one).is_same(&parsed(other), 80), "{one} {other}");
        }
        for (one, other) in [
            ("cams.example", "cams.example:8080"),
            ("cams.example", "cams.example:443"),
            ("cams.example", "xcams.example"),
            ("[::1]", "[::2]"),
        ] {
            assert!(!parsed(one).is_same(&parsed(other), 80), "{one} {other}");
        }
        assert!(parsed("cams.example:443").is_same(&parsed("cams.example"), 443));
    }

    #[test]
    fn one_without_a_port_stands_for_every_port() {
        for (one, other, is_covered) in [
            ("cams.example", "Cams.example.:8080", true),
            ("cams.example:443", "cams.example", true),
            ("cams.example:80", "cams.example:9", true),
            ("127.0.0.1:9", "127.0.0.1:9", true),
            ("127.0.0.1:9", "127.0.0.1:8", false),
            ("127.0.0.1:9", "127.0.0.1", false),
            ("cams.example", "xcams.example", false),
        ] {
            let is = parsed(one).covers(&parsed(other));
            assert_eq!(is, is_covered, "{one} {other}");
        }
    }

    #[test]
    fn an_authority_that_can_be_read_in_two_ways_is_none() {
        for text in [
            "",
            ".",
            ":80",
            "h:",
            "h:0",
            "h:65536",
            "h:+80",
            "h:8 0",
            "h:80:80",
            "u@h",
            "u:p@h",
            "h:80@evil",
            "::1",
            "[::1",
            "::1]",
            "[::1]x",
            "[::1]:",
            "[::1%eth0]",
            "[h]",
            "h/x",
            "h?x",
            "h#x",
            "h\\x",
            "h h",
            "h%2e",
            "h,i",
            "h\u{e9}",
        ] {
            assert_eq!(Authority::parse(text), None, "{text}");
        }
    }

    #[test]
    fn own_addresses() {
        let at = |address: &str, authority: &str| {
            let bind = Bind::Tcp(address.parse().unwrap());
            Names::new(&bind, &[], false).contains(&parsed(authority))
        };
        assert!(at("127.0.0.1:8080", "127.0.0.1:8080") && at("127.0.0.1:8080", "localhost:8080"));
        assert!(
            at("0.0.0.0:8080", "localhost:8080")
                && at("10.0.0.7:80", "10.0.0.7:80")
                && at("[::1]:1", "[::1]:1")
        );
        assert!(!at("127.0.0.1:8080", "127.0.0.1") && !at("10.0.0.7:80", "localhost:80"));
        assert!(!at("0.0.0.0:8080", "10.0.0.7:8080") && !at("127.0.0.1:8080", "[::1]:8080"));
        // The default port may be omitted.
        assert!(
            at("127.0.0.1:80", "127.0.0.1")
                && at("0.0.0.0:80", "localhost")
                && at("[::1]:80", "[::1]")
        );
        assert!(!at("127.0.0.1:443", "127.0.0.1") && !at("10.0.0.7:80", "localhost"));
    }

    #[test]
    fn a_given_name_stands_for_every_port() {
        let bind = Bind::Tcp("127.0.0.1:8080".parse().unwrap());
        let names = Names::new(&bind, &["Gate.Internal".to_owned()], false);
        for authority in ["gate.internal", "GATE.internal.:9", "gate.internal:8080"] {
            assert!(names.contains(&parsed(authority)), "{authority}");
        }
        assert!(!names.contains(&parsed("xgate.internal")));
    }
}
