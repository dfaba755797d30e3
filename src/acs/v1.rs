//! Alibaba's RPC signature, version 1.0 (HMAC-SHA1). It covers the method and all parameters of
//! query and form, but not path, host, headers or any other body.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hmac::Mac;
use subtle::ConstantTimeEq;

use crate::acs::encode;
use crate::primitives::secret::Secret;

/// The supported `SignatureMethod`.
pub(crate) const METHOD: &str = "HMAC-SHA1";
/// The supported `SignatureVersion`.
pub(crate) const VERSION: &str = "1.0";

/// Steps 1 to 3: all parameters except `Signature`, sorted, encoded, joined, and encoded again.
pub(crate) fn string_to_sign<'a>(
    method: &str,
    params: impl IntoIterator<Item = (&'a str, &'a str)>,
) -> String {
    let mut params: Vec<_> = params
        .into_iter()
        .filter(|(name, _)| *name != "Signature")
        .collect();
    params.sort_unstable();
    let pairs = encode::pairs(params);
    // The second encoding adds two bytes for each `%`, `&` and `=`.
    let mut text = Vec::with_capacity(pairs.len() * 2);
    text.extend_from_slice(method.as_bytes());
    text.extend_from_slice(b"&%2F&");
    encode::append(&mut text, &pairs);
    String::from_utf8(text).expect("encoded text is ASCII")
}

/// Step 4: the signature as base64. The key is the secret followed by an ampersand.
pub(crate) fn sign(secret: &Secret, string_to_sign: &str) -> String {
    let mut mac = secret.hmac_sha1();
    mac.update(string_to_sign.as_bytes());
    STANDARD.encode(mac.finalize().into_bytes())
}

/// Verifies a signature in constant time.
pub(crate) fn verify(secret: &Secret, string_to_sign: &str, signature: &str) -> bool {
    sign(secret, string_to_sign)
        .as_bytes()
        .ct_eq(signature.as_bytes())
        .into()
}
