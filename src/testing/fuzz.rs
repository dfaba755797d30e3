//! Access for the fuzz targets to internal parsers. Each function takes arbitrary bytes and panics
//! if an invariant is violated. This is not part of the public API and may change at any time.

mod answers;
mod gate;
mod reading;
mod session;

pub use self::answers::{answer, hints};
pub use self::gate::Gate;
pub use self::session::session;

use std::net::IpAddr;

use futures_util::FutureExt;
use hyper::header::{HeaderName, HeaderValue};

use crate::acs::decode::Params;
use crate::acs::v3::{self, Authorization, Signable};
use crate::acs::{encode, v1};
use crate::primitives::secret::Secret;
use crate::server::balancers::Balancers;
use crate::server::proxy_header;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");

/// The key that signed the captures, its secret, and the time of the captures.
pub const SIGNER: [&str; 3] = [
    "LTAI-test-key-id-1",
    "test-secret-1",
    "2026-11-24T02:59:00Z",
];

/// Splits after the first line.
fn first_line(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(input.len());
    (&input[..end], input.get(end + 1..).unwrap_or_default())
}

/// The first line is a query, the rest a form. Parsed parameters can be written and parsed again
/// without change, no name occurs twice, and there is no NUL, at which other parsers may stop.
pub fn parameters(input: &[u8]) {
    let (query, form) = first_line(input);
    let Ok(query) = std::str::from_utf8(query) else {
        return;
    };
    let Ok(mut params) = Params::from_query(query) else {
        return;
    };
    if params.add_form(form).is_err() {
        return;
    }
    let mut names: Vec<_> = params
        .iter()
        .map(|(name, _)| name.to_ascii_lowercase())
        .collect();
    names.sort_unstable();
    assert!(
        names.windows(2).all(|pair| pair[0] != pair[1]),
        "no name occurs twice"
    );
    assert!(names.len() <= 2048);
    assert!(
        params
            .iter()
            .all(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'))
    );
    let query = encode::pairs(params.query());
    let form = encode::pairs(params.form());
    let mut again = Params::from_query(&query).expect("a written query can be parsed");
    again
        .add_form(form.as_bytes())
        .expect("a written form can be parsed");
    assert!(again == params, "parsing again gives the same parameters");
    assert_eq!(encode::pairs(again.query()), query);
}

/// The first line is an `Authorization` header, the rest a query. The grammar is exact, and a
/// signature is valid only for the request that it was made for.
pub fn authorization(input: &[u8]) {
    let (header, query) = first_line(input);
    let (Ok(header), Ok(query)) = (std::str::from_utf8(header), std::str::from_utf8(query)) else {
        return;
    };
    let Ok(signed) = Authorization::parse(header) else {
        return;
    };
    let Some((algorithm, _)) = header.split_once(' ') else {
        panic!("the algorithm ends at the first blank")
    };
    let names = signed.signed_headers.join(";");
    let Authorization {
        credential,
        signature,
        ..
    } = &signed;
    let written =
        format!("{algorithm} Credential={credential},SignedHeaders={names},Signature={signature}");
    assert_eq!(written, header, "there is only one way to write it");
    assert!(
        signed
            .signed_headers
            .windows(2)
            .all(|pair| pair[0] < pair[1]),
        "signed headers are sorted and distinct"
    );
    let Ok(params) = Params::from_query(query) else {
        return;
    };
    check_signature(&signed, &params);
}

/// A signature does not depend on the order of parameters or on blanks around a header's value, and
/// is invalid with an additional parameter.
fn check_signature(signed: &Authorization<'_>, params: &Params) {
    let secret = Secret::new(SIGNER[1]);
    let made =
        signable(signed, params.query().collect(), b"x").authorization(signed.credential, &secret);
    let made = Authorization::parse(&made).expect("Flowgate's own header can be parsed");
    assert_eq!(
        (made.credential, &made.signed_headers),
        (signed.credential, &signed.signed_headers)
    );
    let mut reversed: Vec<_> = params.query().collect();
    reversed.reverse();
    let same = signable(signed, reversed.clone(), b" x\t").string_to_sign();
    assert!(
        v3::verify(&secret, &same, made.signature),
        "order and surrounding blanks do not matter"
    );
    reversed.push(("Extra", ""));
    let other = signable(signed, reversed, b"x").string_to_sign();
    assert!(
        !v3::verify(&secret, &other, made.signature),
        "an additional parameter invalidates the signature"
    );
}

/// A request with these parameters, and with this value in each signed header.
fn signable<'a>(
    signed: &Authorization<'a>,
    query: Vec<(&'a str, &'a str)>,
    value: &'static [u8],
) -> Signable<'a> {
    Signable {
        method: "POST",
        query,
        headers: signed
            .signed_headers
            .iter()
            .map(|name| (*name, value))
            .collect(),
        body_hash: signed.signature,
    }
}

/// The first line is a query, the rest a form. The string to sign of version 1 contains all
/// parameters unambiguously, and does not depend on whether a parameter is in the query or the
/// form.
pub fn rpc(input: &[u8]) {
    let (query, form) = first_line(input);
    let Ok(query) = std::str::from_utf8(query) else {
        return;
    };
    let Ok(mut params) = Params::from_query(query) else {
        return;
    };
    if params.add_form(form).is_err() {
        return;
    }
    let text = v1::string_to_sign("POST", params.iter());
    let moved = params.form().chain(params.query());
    assert_eq!(
        v1::string_to_sign("POST", moved),
        text,
        "the string to sign does not depend on query or form"
    );
    let signed = text
        .strip_prefix("POST&%2F&")
        .expect("method and path come first");
    let signed =
        Params::from_query(&format!("all={signed}")).expect("the string to sign is encoded");
    let signed = Params::from_query(signed.get("all").unwrap_or_default())
        .expect("the parameters are encoded twice");
    let mut wanted: Vec<_> = params
        .iter()
        .filter(|(name, _)| *name != "Signature")
        .collect();
    wanted.sort_unstable();
    assert!(
        signed.iter().eq(wanted),
        "the signed parameters can be recovered"
    );
    let secret = Secret::new(SIGNER[1]);
    let signature = v1::sign(&secret, &text);
    assert!(v1::verify(&secret, &text, &signature));
    assert!(
        !v1::verify(
            &secret,
            &v1::string_to_sign("GET", params.iter()),
            &signature
        ),
        "the method is signed"
    );
}

/// A PROXY header, and a value of `X-Forwarded-For`. The header is read exactly to its end, and
/// what a caller writes to the left of the address that a balancer has appended changes nothing.
pub fn balancer(input: &[u8]) {
    proxy_header(input);
    let Ok(value) = HeaderValue::from_bytes(input) else {
        return;
    };
    let balancers = Balancers::trusting("10.0.0.0/8");
    let peer = IpAddr::from([10, 0, 0, 1]);
    let caller = |values: &[&HeaderValue]| {
        let values = values
            .iter()
            .map(|value| (X_FORWARDED_FOR, (*value).clone()));
        balancers.caller(&values.collect(), peer)
    };
    let found = caller(&[&value]);
    let appended = HeaderValue::from_static("198.51.100.7");
    assert_eq!(
        caller(&[&value, &appended]),
        IpAddr::from([198, 51, 100, 7]),
        "the balancer's own entry decides"
    );
    let claimed = HeaderValue::from_static("203.0.113.1");
    if found != peer && !balancers.is_forwarder(found) {
        assert_eq!(caller(&[&claimed, &value]), found);
    }
}

fn proxy_header(input: &[u8]) {
    let mut left = input;
    let Some(read) = proxy_header::read(&mut left).now_or_never() else {
        panic!("a slice is always ready")
    };
    let header = &input[..input.len() - left.len()];
    if let Ok(address) = read {
        let rest = usize::from(u16::from_be_bytes([header[14], header[15]]));
        assert_eq!(header.len(), 16 + rest, "exactly the header is read");
        assert!(header.starts_with(b"\r\n\r\n\0\r\nQUIT\n"));
        assert!(matches!(header[12], 0x20 | 0x21));
        assert!(
            address.is_none_or(|address| header[12] == 0x21 && address == address.to_canonical())
        );
    }
}
