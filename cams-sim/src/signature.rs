//! Computes Alibaba's signatures V1 (RPC, HMAC-SHA1) and V3 (ACS3-HMAC-SHA256), from their public
//! descriptions. `auth` compares them.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit, Mac};
use hyper::HeaderMap;
use sha1::Sha1;
use sha2::{Digest, Sha256};

/// The only V3 algorithm that is supported here.
pub(crate) const V3_ALGORITHM: &str = "ACS3-HMAC-SHA256";

/// Alibaba's percent-encoding: all but `A-Z a-z 0-9 - _ . ~`, in upper case.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                encoded.push(char::from(byte))
            }
            _ => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}

/// V1's string to sign, over all parameters but the signature.
pub(crate) fn v1_string_to_sign(method: &str, parameters: &BTreeMap<String, String>) -> String {
    let pairs = parameters.iter().filter(|(name, _)| *name != "Signature");
    let joined: Vec<String> = pairs
        .map(|(name, value)| format!("{}={}", encode(name), encode(value)))
        .collect();
    format!("{method}&%2F&{}", encode(&joined.join("&")))
}

/// V1's signature of its string to sign.
pub(crate) fn v1_signature(secret: &str, string_to_sign: &str) -> String {
    let mut mac = Hmac::<Sha1>::new_from_slice(format!("{secret}&").as_bytes())
        .expect("HMAC takes keys of any length");
    mac.update(string_to_sign.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// V3's canonical request, Alibaba's steps 1 to 6; the path is always `/`.
pub(crate) fn v3_canonical_request(
    method: &str,
    query: &BTreeMap<String, String>,
    headers: &HeaderMap,
    signed: &[String],
    body: &[u8],
) -> String {
    let pairs: Vec<String> = query
        .iter()
        .map(|(name, value)| format!("{name}={}", encode(value)))
        .collect();
    let mut names = signed.to_vec();
    names.sort();
    let lines: String = names
        .iter()
        .map(|name| format!("{name}:{}\n", joined(headers, name)))
        .collect();
    format!(
        "{method}\n/\n{}\n{lines}\n{}\n{}",
        pairs.join("&"),
        signed.join(";"),
        sha256(body)
    )
}

/// V3's string to sign, step 7.
pub(crate) fn v3_string_to_sign(canonical_request: &str) -> String {
    format!("{V3_ALGORITHM}\n{}", sha256(canonical_request.as_bytes()))
}

/// V3's signature of its string to sign, step 8.
pub(crate) fn v3_signature(secret: &str, string_to_sign: &str) -> String {
    let mut mac =
        Hmac::<Sha256>::new_from_slice(secret.as_bytes()).expect("HMAC takes keys of any length");
    mac.update(string_to_sign.as_bytes());
    hex(&mac.finalize().into_bytes())
}

/// The SHA-256 in lower-case hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// All values of a header, trimmed, sorted and joined with commas, as in V3's step 4.
fn joined(headers: &HeaderMap, name: &str) -> String {
    let values = headers.get_all(name).iter();
    let mut values: Vec<String> = values
        .map(|value| {
            String::from_utf8_lossy(value.as_bytes())
                .trim_matches([' ', '\t'])
                .to_owned()
        })
        .collect();
    values.sort();
    values.join(",")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
