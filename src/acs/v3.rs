//! Alibaba's signature version 3 (`ACS3-HMAC-SHA256`): the `Authorization` header, the string to
//! sign and the signature.

use std::str::FromStr;

use hmac::{Hmac, Mac};
use sha2::{Digest, Sha256};

use crate::acs::encode;
use crate::primitives::secret::Secret;

/// The algorithms of version 3. Only the first is supported; the others are recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Algorithm {
    /// `ACS3-HMAC-SHA256`.
    HmacSha256,
    /// `ACS3-HMAC-SM3`.
    HmacSm3,
    /// `ACS3-RSA-SHA256`.
    RsaSha256,
}

/// Why an `Authorization` header is not valid for version 3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AuthorizationError {
    /// Another scheme.
    #[error(
        "the Authorization header names none of ACS3-HMAC-SHA256, ACS3-HMAC-SM3 and ACS3-RSA-SHA256"
    )]
    Algorithm,
    /// Not exactly `Credential=…,SignedHeaders=…,Signature=…`.
    #[error(
        "the Authorization header is not 'ALGORITHM Credential=KEY,SignedHeaders=a;b,Signature=HEX' to the letter"
    )]
    Grammar,
    /// An ambiguous list.
    #[error("SignedHeaders are not lower-case names, sorted, each once")]
    SignedHeaders,
}

/// A parsed `Authorization` header.
#[derive(PartialEq, Eq)]
pub(crate) struct Authorization<'a> {
    /// The header's first word.
    pub(crate) algorithm: Algorithm,
    /// The access key id.
    pub(crate) credential: &'a str,
    /// Lower-case names in ascending order.
    pub(crate) signed_headers: Vec<&'a str>,
    /// Lower-case hex.
    pub(crate) signature: &'a str,
}

/// The signed parts of a request. The path is not one of them: Alibaba's RPC-style products sign
/// `/`.
pub(crate) struct Signable<'a> {
    /// In upper case.
    pub(crate) method: &'a str,
    /// Decoded parameters, in any order.
    pub(crate) query: Vec<(&'a str, &'a str)>,
    /// The signed headers in ascending order of their lower-case names.
    pub(crate) headers: Vec<(&'a str, &'a [u8])>,
    /// The result of [`hash`].
    pub(crate) body_hash: &'a str,
}

/// Maximum number of headers that Alibaba's SDKs sign.
const USUAL_HEADERS: usize = 16;

/// Bytes of an `Authorization` header, and of most canonical requests.
const USUAL_LENGTH: usize = 1024;

/// The supported algorithm.
const ALGORITHM: &[u8] = b"ACS3-HMAC-SHA256";

/// Like `str::split`, but twice as fast for pieces of a few bytes: `str::split` uses memchr, which
/// is made for distant separators.
struct Pieces<'a> {
    /// What follows the last piece and its separator.
    rest: Option<&'a str>,
    separator: u8,
}

/// The hash of an empty body; most calls have one.
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Step 1: SHA-256 in lower-case hex.
pub(crate) fn hash(bytes: &[u8]) -> String {
    if bytes.is_empty() {
        return EMPTY.to_owned();
    }
    hex(&Sha256::digest(bytes))
}

/// Step 8: the signature in lower-case hex. The key is the secret itself.
pub(crate) fn sign(secret: &Secret, string_to_sign: &str) -> String {
    hex(&mac(secret, string_to_sign).finalize().into_bytes())
}

/// Verifies a signature, in lower-case hex, in constant time.
pub(crate) fn verify(secret: &Secret, string_to_sign: &str, signature: &str) -> bool {
    let Some(signature) = from_hex::<32>(signature) else {
        return false;
    };
    mac(secret, string_to_sign).verify_slice(&signature).is_ok()
}

fn mac(secret: &Secret, string_to_sign: &str) -> Hmac<Sha256> {
    secret.hmac_sha256().chain_update(string_to_sign)
}

/// A new nonce: 128 random bits in hexadecimal, from a generator in this process that the operating
/// system seeds: a call to the system for each would cost more than the signature.
pub(crate) fn nonce() -> String {
    hex(&rand::random::<[u8; 16]>())
}

/// Encodes bytes as lower-case hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    let mut text = Vec::with_capacity(bytes.len() * 2);
    append_hex(&mut text, bytes);
    String::from_utf8(text).expect("digits are ASCII")
}

fn append_hex(text: &mut Vec<u8>, bytes: &[u8]) {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    for byte in bytes {
        text.extend_from_slice(&[
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 0x0f)],
        ]);
    }
}

/// Decodes `N` bytes of lower-case hex. `None` for any other text.
fn from_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    if text.len() != 2 * N || !is_hex(text) {
        return None;
    }
    // The lower four bits of a digit are its value, and those of a letter its value less nine.
    let value = |digit: u8| (digit & 0x0f) + 9 * (digit >> 6);
    let digits = text.as_bytes();
    Some(std::array::from_fn(|at| {
        value(digits[2 * at]) << 4 | value(digits[2 * at + 1])
    }))
}

/// Whether a text is lower-case hex.
pub(crate) fn is_hex(text: &str) -> bool {
    holds_only(text, |byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// Like `text.bytes().all(is_one)`, but without an early return, so that the loop is vectorised.
fn holds_only(text: &str, is_one: impl Fn(u8) -> bool) -> bool {
    text.bytes().fold(true, |all, byte| all & is_one(byte))
}

/// Removes surrounding blanks, which are not signed. Only spaces and tabs: with a wider trim,
/// different values could have the same signature.
fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

// === impl Algorithm ===

impl FromStr for Algorithm {
    type Err = AuthorizationError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "ACS3-HMAC-SHA256" => Ok(Self::HmacSha256),
            "ACS3-HMAC-SM3" => Ok(Self::HmacSm3),
            "ACS3-RSA-SHA256" => Ok(Self::RsaSha256),
            _ => Err(AuthorizationError::Algorithm),
        }
    }
}

impl Algorithm {
    /// Whether the body's hash is SHA-256.
    pub(crate) fn hashes_with_sha256(self) -> bool {
        matches!(self, Self::HmacSha256 | Self::RsaSha256)
    }
}

// === impl Authorization ===

impl<'a> Authorization<'a> {
    /// Parses the header's value. The grammar is exact: no additional blanks, no other order or
    /// case.
    pub(crate) fn parse(value: &'a str) -> Result<Self, AuthorizationError> {
        let (algorithm, rest) = value.split_once(' ').unwrap_or((value, ""));
        let algorithm: Algorithm = algorithm.parse()?;
        let [credential, names, signature] =
            fields(rest, ["Credential=", "SignedHeaders=", "Signature="])
                .ok_or(AuthorizationError::Grammar)?;
        let is_key = (1..=128).contains(&credential.len())
            && holds_only(credential, |byte| byte.is_ascii_graphic());
        let length = match algorithm {
            Algorithm::RsaSha256 => 2..=2048,
            Algorithm::HmacSha256 | Algorithm::HmacSm3 => 64..=64,
        };
        if !is_key || !is_hex(signature) || !length.contains(&signature.len()) {
            return Err(AuthorizationError::Grammar);
        }
        let mut signed_headers = Vec::with_capacity(USUAL_HEADERS);
        signed_headers.extend(Pieces::new(names, b';'));
        let are_tokens = holds_only(
            names,
            |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b';'),
        );
        // In ascending order, only the first name can be empty.
        let is_list = !signed_headers[0].is_empty() && signed_headers.is_sorted_by(|a, b| a < b);
        if !are_tokens || !is_list {
            return Err(AuthorizationError::SignedHeaders);
        }
        Ok(Self {
            algorithm,
            credential,
            signed_headers,
            signature,
        })
    }
}

/// Splits the three comma-separated fields of a version 3 header and removes their names. The last
/// one may contain further commas.
fn fields<'a>(text: &'a str, names: [&str; 3]) -> Option<[&'a str; 3]> {
    let mut parts = Pieces::new(text, b',');
    let fields = [parts.next()?, parts.next()?, parts.rest?];
    let mut values = [""; 3];
    for ((value, field), name) in values.iter_mut().zip(fields).zip(names) {
        *value = field.strip_prefix(name)?;
    }
    Some(values)
}

// === impl Pieces ===

impl<'a> Pieces<'a> {
    fn new(text: &'a str, separator: u8) -> Self {
        Self {
            rest: Some(text),
            separator,
        }
    }
}

impl<'a> Iterator for Pieces<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let text = self.rest.take()?;
        let Some(at) = text.bytes().position(|byte| byte == self.separator) else {
            return Some(text);
        };
        self.rest = Some(&text[at + 1..]);
        Some(&text[..at])
    }
}

// === impl Signable ===

impl Signable<'_> {
    /// Steps 2 to 6: the canonical request.
    pub(crate) fn canonical_request(&self) -> Vec<u8> {
        let mut text = Vec::with_capacity(USUAL_LENGTH);
        text.extend_from_slice(self.method.as_bytes());
        text.extend_from_slice(b"\n/\n");
        if self.query.is_sorted() {
            encode::append_pairs(&mut text, self.query.iter().copied());
        } else {
            let mut query = self.query.clone();
            query.sort_unstable();
            encode::append_pairs(&mut text, query);
        }
        text.push(b'\n');
        for (name, value) in &self.headers {
            text.extend_from_slice(name.as_bytes());
            text.push(b':');
            text.extend_from_slice(trim(value));
            text.push(b'\n');
        }
        text.push(b'\n');
        self.append_signed_headers(&mut text);
        text.push(b'\n');
        text.extend_from_slice(self.body_hash.as_bytes());
        text
    }

    /// Step 7: the string to sign.
    pub(crate) fn string_to_sign(&self) -> String {
        let mut text = Vec::with_capacity(ALGORITHM.len() + 1 + 64);
        text.extend_from_slice(ALGORITHM);
        text.push(b'\n');
        append_hex(&mut text, &Sha256::digest(self.canonical_request()));
        String::from_utf8(text).expect("an algorithm and digits are ASCII")
    }

    /// Steps 5 and 9: the whole `Authorization` header.
    pub(crate) fn authorization(&self, credential: &str, secret: &Secret) -> String {
        let signature = sign(secret, &self.string_to_sign());
        let mut text = Vec::with_capacity(USUAL_LENGTH);
        text.extend_from_slice(ALGORITHM);
        text.extend_from_slice(b" Credential=");
        text.extend_from_slice(credential.as_bytes());
        text.extend_from_slice(b",SignedHeaders=");
        self.append_signed_headers(&mut text);
        text.extend_from_slice(b",Signature=");
        text.extend_from_slice(signature.as_bytes());
        String::from_utf8(text).expect("it consists of texts")
    }

    fn append_signed_headers(&self, text: &mut Vec<u8>) {
        for (index, (name, _)) in self.headers.iter().enumerate() {
            if index > 0 {
                text.push(b';');
            }
            text.extend_from_slice(name.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use hmac::KeyInit;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_lower_case_hex_of_the_right_length_is_decoded() {
        assert_eq!(from_hex("00ff9a"), Some([0x00, 0xff, 0x9a]));
        for text in [
            "", "00ff9", "00ff9a0", "00FF9A", "00ff9g", "00ff9:", "00ff9é",
        ] {
            assert_eq!(from_hex::<3>(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn hex_is_decoded_to_the_same_bytes(bytes in any::<[u8; 32]>()) {
            prop_assert_eq!(hex(&bytes), bytes.map(|byte| format!("{byte:02x}")).concat());
            prop_assert_eq!(from_hex(&hex(&bytes)), Some(bytes));
        }

        #[test]
        fn a_signature_is_valid_only_as_it_was_made(
            secret in ".*",
            text in ".*",
            at in 0_usize..64,
            other in "[0-9a-f]",
        ) {
            let secret = Secret::new(secret);
            let signature = sign(&secret, &text);
            let plain = Hmac::<Sha256>::new_from_slice(secret.expose().as_bytes());
            let plain = plain.unwrap().chain_update(&text).finalize().into_bytes();
            prop_assert_eq!(&signature, &hex(&plain));
            prop_assert!(verify(&secret, &text, &signature));
            let mut changed = signature.clone();
            changed.replace_range(at..=at, &other);
            prop_assert_eq!(verify(&secret, &text, &changed), changed == signature);
            prop_assert!(!verify(&secret, &text, &signature.to_uppercase()) || !signature.contains(|c: char| c.is_alphabetic()));
            prop_assert!(!verify(&secret, &text, &signature[..62]));
        }
    }
}
