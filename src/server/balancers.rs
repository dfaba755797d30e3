//! Balancers in front of the proxy port, and how they state the address of a caller: in a PROXY
//! header for each connection, or in `X-Forwarded-For` for each request.

use std::net::IpAddr;

use hyper::header::{HeaderMap, HeaderName};
use ipnet::IpNet;

use crate::config::Listen;

/// A list to which each proxy appends the address that the request came from.
const FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The addresses of trusted balancers.
pub(crate) struct Balancers {
    networks: Box<[IpNet]>,
    /// Whether they send a PROXY header. `X-Forwarded-For` is not read then: a caller whose address
    /// is in one of the networks could state another.
    send_proxy_header: bool,
}

// === impl Balancers ===

impl Balancers {
    /// Balancers of one network, which state addresses in `X-Forwarded-For`.
    #[cfg(feature = "testing")]
    pub(crate) fn trusting(network: &str) -> Self {
        Self {
            networks: [network.parse().expect("a network")].into(),
            send_proxy_header: false,
        }
    }

    /// Whether every connection to the proxy port must begin with a PROXY header.
    pub(super) fn require_proxy_header(&self) -> bool {
        self.send_proxy_header
    }

    /// Whether this peer may state the address of a caller. A Unix socket's peer has no address,
    /// and only those that may write to its file connect.
    pub(super) fn is_trusted(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|peer| self.is_balancer(peer))
    }

    /// Whether this peer states addresses in `X-Forwarded-For`.
    pub(crate) fn is_forwarder(&self, peer: IpAddr) -> bool {
        !self.send_proxy_header && self.is_balancer(peer)
    }

    /// The caller of a request from a balancer: the last address of `X-Forwarded-For` that is not
    /// one of a balancer. Everything to the left of it is what the caller claims. An entry that is
    /// not an address ends the search, too.
    pub(crate) fn caller(&self, headers: &HeaderMap, peer: IpAddr) -> IpAddr {
        let mut nearest = peer;
        for value in headers.get_all(FORWARDED_FOR).iter().rev() {
            for entry in value.as_bytes().rsplit(|byte| *byte == b',') {
                let Some(address) = address(entry) else {
                    return nearest;
                };
                nearest = address;
                if !self.is_balancer(address) {
                    return nearest;
                }
            }
        }
        nearest
    }

    fn is_balancer(&self, address: IpAddr) -> bool {
        self.networks
            .iter()
            .any(|network| network.contains(&address))
    }
}

impl From<&Listen> for Balancers {
    fn from(listen: &Listen) -> Self {
        Self {
            networks: listen.trusted_proxies.clone().into(),
            send_proxy_header: listen.proxy_protocol,
        }
    }
}

/// Reads one entry of `X-Forwarded-For`: an address, with a port in some products.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry.trim_ascii()).ok()?;
    let bare = text
        .strip_prefix('[')
        .and_then(|text| text.strip_suffix(']'))
        .unwrap_or(text);
    let address = bare.parse().or_else(|_| {
        text.parse()
            .map(|with_port: std::net::SocketAddr| with_port.ip())
    });
    address.ok().map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn balancers(send_proxy_header: bool) -> Balancers {
        let networks = ["10.0.0.0/8", "2001:db8:b::/48", "192.0.2.1/32"];
        Balancers {
            networks: networks.map(|network| network.parse().unwrap()).into(),
            send_proxy_header,
        }
    }

    #[test]
    fn the_last_address_that_is_not_a_balancers_is_the_caller() {
        let peer: IpAddr = "10.0.0.1".parse().unwrap();
        let cases: [(&[&str], &str); 16] = [
            (&[], "10.0.0.1"),
            (&["198.51.100.7"], "198.51.100.7"),
            (&["203.0.113.1, 198.51.100.7"], "198.51.100.7"),
            (&["198.51.100.7, 10.1.2.3"], "198.51.100.7"),
            (
                &["203.0.113.1,198.51.100.7 ,\t10.1.2.3,192.0.2.1"],
                "198.51.100.7",
            ),
            (&["203.0.113.1", "198.51.100.7", "10.1.2.3"], "198.51.100.7"),
            (&["198.51.100.7:40000"], "198.51.100.7"),
            (&["[2001:db8::7]:40000"], "2001:db8::7"),
            (&["[2001:db8::7]"], "2001:db8::7"),
            (&["2001:db8::7, 2001:db8:b::1"], "2001:db8::7"),
            (&["::ffff:198.51.100.7"], "198.51.100.7"),
            (&["10.1.2.4, 10.1.2.3"], "10.1.2.4"),
            (&["198.51.100.7, unknown"], "10.0.0.1"),
            (&["198.51.100.7, unknown, 10.1.2.3"], "10.1.2.3"),
            (&["198.51.100.7, "], "10.0.0.1"),
            (&["198.51.100.7, \u{e9}"], "10.0.0.1"),
        ];
        for (lines, expected) in cases {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append(
                    FORWARDED_FOR,
                    HeaderValue::from_bytes(line.as_bytes()).unwrap(),
                );
            }
            let caller = balancers(false).caller(&headers, peer);
            assert_eq!(caller.to_string(), expected, "{lines:?}");
        }
    }

    #[test]
    fn only_peers_in_the_networks_are_trusted_in_the_configured_way() {
        for (peer, is_trusted) in [
            (Some("10.255.0.1"), true),
            (Some("192.0.2.1"), true),
            (Some("2001:db8:b:1::1"), true),
            (Some("11.0.0.1"), false),
            (Some("192.0.2.2"), false),
            (Some("::1"), false),
            (None, true),
        ] {
            let peer: Option<IpAddr> = peer.map(|peer| peer.parse().unwrap());
            for send_proxy_header in [true, false] {
                let balancers = balancers(send_proxy_header);
                assert_eq!(balancers.is_trusted(peer), is_trusted, "{peer:?}");
                let is_forwarder = peer.is_some_and(|peer| balancers.is_forwarder(peer));
                assert_eq!(
                    is_forwarder,
                    is_trusted && peer.is_some() && !send_proxy_header
                );
            }
        }
    }
}
