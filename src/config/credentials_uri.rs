//! Which URIs may be asked for credentials. Metadata services are refused in every notation of
//! their addresses: anyone who chooses a URI could obtain the credentials of the machine there.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use hyper::Uri;
use hyper::http::uri::PathAndQuery;

use super::CredentialsUri;
use super::check::upstream::{Authority, authority};

/// The form of a URI, for error messages.
const FORM: &str = "expected a URI such as https://host/path, or http:// with a loopback address \
                    such as http://127.0.0.1:8081/path";

const NO_USER: &str = "expected a URI without user and password";
const NO_FRAGMENT: &str = "expected a URI without a fragment (#)";
const LOOPBACK_ONLY: &str = "expected https://: http:// is allowed only to a literal loopback \
                             address (127.0.0.0/8 or [::1]), not to a name such as localhost";
const METADATA: &str = "expected another address: metadata services and link-local addresses are \
                        not asked. For the role of an ECS instance use ecs_role";
const ONE_NOTATION: &str = "expected an IPv4 address of four decimal numbers without leading zeros";

/// The metadata service of Alibaba Cloud.
const ALIBABA: Ipv4Addr = Ipv4Addr::new(100, 100, 100, 200);

/// The platform services of Azure.
const AZURE: Ipv4Addr = Ipv4Addr::new(168, 63, 129, 16);

/// Whether credentials may be requested from this address. Names are checked with it when they
/// have been resolved.
pub(crate) fn may_be_asked(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => may_be_asked_v4(address),
        IpAddr::V6(address) => {
            let is_refused = address.is_unspecified()
                || address.is_unicast_link_local()
                || is_of_aws(address)
                || is_teredo(address);
            !is_refused && embedded(address).is_none_or(may_be_asked_v4)
        }
    }
}

fn may_be_asked_v4(address: Ipv4Addr) -> bool {
    // All of 0.0.0.0/8 is this host.
    !(address == ALIBABA || address == AZURE || address.is_link_local() || address.octets()[0] == 0)
}

/// Whether it is a service of AWS's instances over IPv6, such as fd00:ec2::254 and fd00:ec2::23.
fn is_of_aws(address: Ipv6Addr) -> bool {
    address.segments()[..7] == [0xfd00, 0xec2, 0, 0, 0, 0, 0]
}

/// Whether it is a Teredo address (2001::/32), which leads to an IPv4 address through a tunnel.
fn is_teredo(address: Ipv6Addr) -> bool {
    address.segments()[..2] == [0x2001, 0]
}

/// The IPv4 address that an IPv6 address leads to: IPv4-mapped, -compatible or -translated, NAT64
/// with the prefix of RFC 6052 or one of RFC 8215, ISATAP, or 6to4.
fn embedded(address: Ipv6Addr) -> Option<Ipv4Addr> {
    let [a, b, c, d, e, f, g, h] = address.segments();
    let (high, low) = match [a, b, c, d, e, f] {
        [0, 0, 0, 0, 0, 0 | 0xffff] if address != Ipv6Addr::LOCALHOST => (g, h),
        [0, 0, 0, 0, 0xffff, 0] | [0x64, 0xff9b, 0, 0, 0, 0] => (g, h),
        [0x64, 0xff9b, 1, ..] | [_, _, _, _, 0 | 0x200, 0x5efe] => (g, h),
        [0x2002, high, low, ..] => (high, low),
        _ => return None,
    };
    Some(Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
}

// === impl CredentialsUri ===

impl CredentialsUri {
    /// Parses a URI that may be asked. The error describes what is expected and shows nothing of
    /// the text.
    pub(crate) fn parse(text: &str) -> Result<Self, &'static str> {
        // `Uri` drops a fragment without an error.
        if text.contains('#') {
            return Err(NO_FRAGMENT);
        }
        if !text.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(FORM);
        }
        let uri: Uri = text.parse().map_err(|_| FORM)?;
        let is_tls = match uri.scheme_str() {
            Some("https") => true,
            Some("http") => false,
            _ => return Err(FORM),
        };
        let written = uri.authority().ok_or(FORM)?.as_str();
        if written.contains('@') {
            return Err(NO_USER);
        }
        let Authority { host, port, .. } = authority(written).ok_or(FORM)?;
        check_host(&host, is_tls)?;
        Ok(Self {
            is_tls,
            host,
            port: port.unwrap_or(if is_tls { 443 } else { 80 }),
            target: target(&uri).ok_or(FORM)?,
        })
    }
}

/// Checks what is known of a host before it is resolved.
fn check_host(host: &str, is_tls: bool) -> Result<(), &'static str> {
    let address: Option<IpAddr> = host.parse().ok();
    if address.is_none() && looks_like_ipv4(host) {
        return Err(ONE_NOTATION);
    }
    if address.is_some_and(|address| !may_be_asked(address)) {
        return Err(METADATA);
    }
    // An IPv4-mapped loopback address is not loopback for `is_loopback`: it is refused.
    if !is_tls && !address.is_some_and(|address| address.is_loopback()) {
        return Err(LOOPBACK_ONLY);
    }
    Ok(())
}

/// Whether a resolver may read the name as an IPv4 address in another notation (`1684301000`,
/// `0144.0144.0144.0310`, `0x646464c8`, `100.6579400`): its last label is a number. No top-level
/// domain is one.
fn looks_like_ipv4(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    let is_hex = last
        .strip_prefix("0x")
        .is_some_and(|digits| digits.bytes().all(|b| b.is_ascii_hexdigit()));
    is_hex || last.bytes().all(|b| b.is_ascii_digit())
}

/// The path and the query as they were written; a path is added if there is only a query.
fn target(uri: &Uri) -> Option<PathAndQuery> {
    let written = uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if written.starts_with('?') {
        return format!("/{written}").parse().ok();
    }
    written.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(text: &str) -> &'static str {
        CredentialsUri::parse(text).expect_err(text)
    }

    #[test]
    fn uris_of_metadata_services_files_and_plaintext_beyond_loopback_are_refused() {
        for (text, expected) in [
            ("http://169.254.169.254/x", METADATA),
            ("http://100.100.100.200/x", METADATA),
            ("http://[::ffff:100.100.100.200]/", METADATA),
            ("http://1684301000/", ONE_NOTATION),
            ("http://0144.0144.0144.0310/", ONE_NOTATION),
            ("http://user:pw@127.0.0.1/", NO_USER),
            ("file:///etc/passwd", FORM),
            ("http://example.com/", LOOPBACK_ONLY),
        ] {
            assert_eq!(refused(text), expected, "{text}");
        }
    }

    #[test]
    fn metadata_services_are_refused_in_every_notation() {
        for host in [
            "100.100.100.200",
            "100.100.100.200:443",
            "169.254.0.1",
            "169.254.100.100:8080",
            "0.0.0.0",
            "0.0.0.1",
            "[::]",
            "[fe80::1]",
            "[febf::1]",
            "[fd00:ec2::254]",
            "[FD00:0EC2:0::0254]",
            "[::ffff:169.254.169.254]",
            "[::ffff:6464:64c8]",
            "[::ffff:0:0]",
            "[::100.100.100.200]",
            "[64:ff9b::6464:64c8]",
            "[64:ff9b::169.254.169.254]",
            "[2002:6464:64c8::1]",
            "[64:ff9b:1::6464:64c8]",
            "[::ffff:0:100.100.100.200]",
            "[2001:0:1::1]",
            "[2001:db8::5efe:6464:64c8]",
            "[2001:db8::200:5efe:6464:64c8]",
            "[fd00:ec2::23]",
            "168.63.129.16",
        ] {
            for scheme in ["http", "https"] {
                assert_eq!(refused(&format!("{scheme}://{host}/x")), METADATA, "{host}");
            }
        }
        for host in [
            "1684301000",
            "0x646464c8",
            "0X646464C8",
            "0144.0144.0144.0310",
            "0144.100.100.200",
            "100.100.100.0310",
            "0x64.0x64.0x64.0xc8",
            "100.6579400",
            "100.100.25800",
            "100.100.100.200.1",
            "127.1",
            "2130706433",
            "127.000.000.001",
            "0",
            "0x",
            "256.256.256.256",
        ] {
            for scheme in ["http", "https"] {
                let uri = format!("{scheme}://{host}:80/x");
                assert_eq!(refused(&uri), ONE_NOTATION, "{host}");
            }
        }
    }

    #[test]
    fn plaintext_leads_only_to_a_literal_loopback_address() {
        for host in [
            "localhost",
            "localhost:8081",
            "10.0.0.7",
            "[::ffff:127.0.0.1]",
            "[2001:db8::1]",
        ] {
            assert_eq!(
                refused(&format!("http://{host}/x")),
                LOOPBACK_ONLY,
                "{host}"
            );
        }
        for host in ["127.0.0.1", "127.255.255.254", "[::1]", "[0:0:0:0:0:0:0:1]"] {
            assert!(
                CredentialsUri::parse(&format!("http://{host}:8081/x")).is_ok(),
                "{host}"
            );
        }
        for host in [
            "localhost",
            "10.0.0.7",
            "vault.example",
            "[2001:db8::1]",
            "1e100.net",
        ] {
            assert!(
                CredentialsUri::parse(&format!("https://{host}/x")).is_ok(),
                "{host}"
            );
        }
    }

    #[test]
    fn a_uri_that_can_be_read_in_two_ways_is_refused() {
        for text in [
            "",
            "/path",
            "127.0.0.1:8081/path",
            "http:127.0.0.1/",
            "http:///x",
            "http://127.0.0.1:0/",
            "http://127.0.0.1:/",
            "http://127.0.0.1:+80/",
            "http://127.0.0.1:65536/",
            "http://127.0.0.1\\@example.com/",
            "http://127.0.0.1./",
            "https://example.com./",
            "https://100.100.100.200./",
            "https://exa%6dple.com/",
            "https://ex\u{e4}mple.com/",
            "https://\u{ff11}27.0.0.1/",
            "https://[fe80::1%25eth0]/",
            "https://::1/",
            "http://127.0.0.1/a b",
            "http://127.0.0.1/a\nb",
            "ftp://127.0.0.1/",
            "unix:/run/credentials",
        ] {
            assert_eq!(refused(text), FORM, "{text}");
        }
        assert_eq!(refused("http://127.0.0.1/#x"), NO_FRAGMENT);
        assert_eq!(refused("https://token@vault.example/"), NO_USER);
    }

    #[test]
    fn the_target_of_a_uri_keeps_its_bytes_and_the_default_port_is_the_scheme_s() {
        for (text, host, port, target) in [
            (
                "http://127.0.0.1:8081/c?x=a%20b",
                "127.0.0.1",
                8081,
                "/c?x=a%20b",
            ),
            ("http://127.0.0.1", "127.0.0.1", 80, "/"),
            (
                "HTTPS://Vault.Example?x=a+b",
                "vault.example",
                443,
                "/?x=a+b",
            ),
            (
                "https://vault.example:8443/a//b/../c%2F?u=x@y&z=",
                "vault.example",
                8443,
                "/a//b/../c%2F?u=x@y&z=",
            ),
            ("http://[::1]:9/x", "::1", 9, "/x"),
        ] {
            let uri = CredentialsUri::parse(text).unwrap();
            assert_eq!(
                (&*uri.host, uri.port, uri.target.as_str()),
                (host, port, target)
            );
        }
        let uri = CredentialsUri::parse("http://[::1]:9/secret?secret").unwrap();
        assert_eq!(uri.to_string(), "http://[::1]:9");
    }
}
