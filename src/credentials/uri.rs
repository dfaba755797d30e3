//! A URI that returns credentials, and the addresses that must not be asked for them.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use hyper::Method;
use tokio::time::Instant;

use super::answer::{self, Form};
use super::error::FetchError;
use super::http::{self, Roots};
use super::session::Obtained;
use crate::config::CredentialsUri;
use crate::upstream::one_request::Destination;

/// Time-out of the whole request.
const WITHIN: Duration = Duration::from_secs(5);

/// The metadata service of Alibaba Cloud.
const ALIBABA_METADATA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);
/// The metadata service of AWS over IPv6.
const AWS_METADATA: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);

/// Asks the URI.
pub(super) async fn fetch(
    uri: &CredentialsUri,
    roots: &Roots,
    deadline: Instant,
) -> Result<Obtained, FetchError> {
    let host = http::place_of_uri(uri);
    let destination = Destination {
        host: &uri.host,
        port: uri.port,
        tls: if uri.is_tls {
            Some(roots.get(&host)?)
        } else {
            None
        },
        allows: if uri.is_tls {
            is_permitted
        } else {
            is_loopback
        },
    };
    let request = http::request(Method::GET, uri.target.clone(), &host, "");
    let deadline = deadline.min(Instant::now() + WITHIN);
    let answer = http::ask(&host, &destination, request, deadline).await?;
    answer::read(Form::Uri, &host, &answer)
}

/// Whether a credentials URI may lead to the address: not to a metadata service, which has
/// `ecs_role`, not to an address of the link, and not to the unspecified address, which is this
/// host.
pub(crate) fn is_permitted(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_permitted_v4(address),
        IpAddr::V6(address) => match inner_v4(address) {
            Some(inner) => is_permitted_v4(inner),
            None => {
                address != AWS_METADATA
                    && !address.is_unspecified()
                    && !address.is_unicast_link_local()
            }
        },
    }
}

fn is_permitted_v4(address: Ipv4Addr) -> bool {
    address != ALIBABA_METADATA && !address.is_link_local() && address.octets()[0] != 0
}

/// The IPv4 address that an IPv6 address leads to: mapped, compatible (deprecated), or translated
/// by NAT64 (RFC 6052). Not `::` and `::1`.
fn inner_v4(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, high, low] = address.segments();
    let is_mapped = [a, b, c, d, e, f] == [0, 0, 0, 0, 0, 0xffff];
    let is_compatible = [a, b, c, d, e, f] == [0; 6] && high != 0;
    let is_translated = [a, b, c, d, e, f] == [0x64, 0xff9b, 0, 0, 0, 0];
    let [high, low] = [high.to_be_bytes(), low.to_be_bytes()];
    (is_mapped || is_compatible || is_translated)
        .then(|| Ipv4Addr::new(high[0], high[1], low[0], low[1]))
}

/// Whether plaintext may lead to the address.
fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_services_link_local_and_unspecified_addresses_are_not_asked() {
        for address in [
            "100.100.100.200",
            "169.254.169.254",
            "169.254.0.1",
            "0.0.0.0",
            "0.1.2.3",
            "::",
            "fe80::1",
            "febf::1",
            "fd00:ec2::254",
            "::ffff:100.100.100.200",
            "::ffff:169.254.169.254",
            "::ffff:0.0.0.0",
            "::100.100.100.200",
            "64:ff9b::100.100.100.200",
            "64:ff9b::169.254.169.254",
        ] {
            assert!(!is_permitted(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "10.0.0.7",
            "100.100.100.201",
            "100.100.2.136",
            "8.8.8.8",
            "fd00:ec2::255",
            "2001:db8::1",
        ] {
            assert!(is_permitted(address.parse().unwrap()), "{address}");
        }
    }

    #[test]
    fn plaintext_leads_to_loopback_only() {
        for address in ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1"] {
            assert!(is_loopback(address.parse().unwrap()), "{address}");
        }
        for address in ["10.0.0.7", "0.0.0.0", "::", "::2", "8.8.8.8"] {
            assert!(!is_loopback(address.parse().unwrap()), "{address}");
        }
    }
}
