//! Asks a URI that returns credentials.

use std::net::IpAddr;
use std::time::Duration;

use hyper::Method;
use tokio::time::Instant;

use super::answer::{self, Form};
use super::error::FetchError;
use super::http::{self, Roots};
use super::session::Obtained;
use crate::config::{CredentialsUri, may_be_asked};
use crate::upstream::one_request::Destination;

/// Time-out of the whole request.
const TIMEOUT: Duration = Duration::from_secs(5);

/// The least length of a part of the target that is taken for a secret. Shorter ones are words, which
/// codes contain, too.
const MIN_PART: usize = 8;

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
            may_be_asked
        } else {
            is_loopback
        },
    };
    let request = http::request(Method::GET, uri.target.clone(), &host, "");
    let deadline = deadline.min(Instant::now() + TIMEOUT);
    let answer = http::send(&host, &destination, request, &parts(uri), deadline).await?;
    answer::read(Form::Uri, &host, &answer)
}

/// The parts of the target that may be secrets.
fn parts(uri: &CredentialsUri) -> Vec<&str> {
    let parts = uri
        .target
        .as_str()
        .split(|char: char| !char.is_ascii_alphanumeric() && !matches!(char, '.' | '_' | '-'));
    parts.filter(|part| part.len() >= MIN_PART).collect()
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
            assert!(!may_be_asked(address.parse().unwrap()), "{address}");
        }
        for address in [
            "127.0.0.1",
            "::1",
            "::ffff:127.0.0.1",
            "10.0.0.7",
            "100.100.100.201",
            "100.100.2.136",
            "8.8.8.8",
            "fd00:ec3::254",
            "2001:db8::1",
        ] {
            assert!(may_be_asked(address.parse().unwrap()), "{address}");
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
