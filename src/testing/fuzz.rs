//! What must hold for any bytes at all? The fuzz targets' door to readers that nobody else outside may call: each takes
//! bytes as they may come and panics when a promise is broken. No part of the public surface; it may change at any time.

mod answers;
mod gate;
mod reading;

pub use self::answers::{answer, hints};
pub use self::gate::Gate;

use crate::acs::decode::Params;
use crate::acs::v3::{self, Authorization, Signable};
use crate::acs::{encode, v1};
use crate::primitives::secret::Secret;

/// The key of the captures, its secret, and the moment of which they are.
pub const SIGNER: [&str; 3] = [
    "LTAI-test-key-id-1",
    "test-secret-1",
    "2026-11-24T02:59:00Z",
];

/// Splits at the first line's end.
fn first_line(input: &[u8]) -> (&[u8], &[u8]) {
    let end = input
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(input.len());
    (&input[..end], input.get(end + 1..).unwrap_or_default())
}

/// A query on the first line and a form behind it: what is read is written and read again without change, no name comes
/// twice, and nothing is in it where other readers may stop.
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
        "one name, one value"
    );
    assert!(names.len() <= 2048);
    assert!(
        params
            .iter()
            .all(|(name, value)| !name.is_empty() && !name.contains('\0') && !value.contains('\0'))
    );
    let (query, form) = (encode::pairs(params.query()), encode::pairs(params.form()));
    let mut again = Params::from_query(&query).expect("what was written is read");
    again
        .add_form(form.as_bytes())
        .expect("what was written is read");
    assert!(again == params, "what is read again is the same");
    assert_eq!(encode::pairs(again.query()), query);
}

/// An `Authorization` header on the first line and a query behind it: the grammar is exact, and a signature is right for
/// what it was made for and for nothing else.
pub fn authorization(input: &[u8]) {
    let (header, query) = first_line(input);
    let (Ok(header), Ok(query)) = (std::str::from_utf8(header), std::str::from_utf8(query)) else {
        return;
    };
    let Ok(signed) = Authorization::parse(header) else {
        return;
    };
    let Some((algorithm, _)) = header.split_once(' ') else {
        panic!("an algorithm stands before the first blank")
    };
    let names = signed.signed_headers.join(";");
    let Authorization {
        credential,
        signature,
        ..
    } = &signed;
    let written =
        format!("{algorithm} Credential={credential},SignedHeaders={names},Signature={signature}");
    assert_eq!(written, header, "there is one way to write it");
    assert!(
        signed
            .signed_headers
            .windows(2)
            .all(|pair| pair[0] < pair[1]),
        "sorted, each once"
    );
    let Ok(params) = Params::from_query(query) else {
        return;
    };
    let secret = Secret::new(SIGNER[1]);
    let signable = |query, value: &'static [u8]| Signable {
        method: "POST",
        query,
        headers: signed
            .signed_headers
            .iter()
            .map(|name| (*name, value))
            .collect(),
        body_hash: signature,
    };
    let made = signable(params.query().collect(), b"x").authorization(credential, &secret);
    let made = Authorization::parse(&made).expect("what Flowgate signs is read");
    assert_eq!(
        (made.credential, &made.signed_headers),
        (*credential, &signed.signed_headers)
    );
    let mut turned: Vec<_> = params.query().collect();
    turned.reverse();
    let same = signable(turned.clone(), b" x\t").string_to_sign();
    assert!(
        v3::verify(&secret, &same, made.signature),
        "neither order nor blanks matter"
    );
    turned.push(("Extra", ""));
    let other = signable(turned, b"x").string_to_sign();
    assert!(
        !v3::verify(&secret, &other, made.signature),
        "one parameter more is another call"
    );
}

/// A query on the first line and a form behind it, as signature version 1 sees them: what is signed says all of it, in
/// one way, wherever a parameter stands.
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
        "the place of a parameter is not signed"
    );
    let signed = text
        .strip_prefix("POST&%2F&")
        .expect("method and path come first");
    let signed = Params::from_query(&format!("all={signed}")).expect("what is signed is encoded");
    let signed =
        Params::from_query(signed.get("all").unwrap_or_default()).expect("and encoded again");
    let mut wanted: Vec<_> = params
        .iter()
        .filter(|(name, _)| *name != "Signature")
        .collect();
    wanted.sort_unstable();
    assert!(signed.iter().eq(wanted), "what is signed can be read back");
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
