//! Reads the idempotency key of a call: the header `Idempotency-Key` or
//! `x-flowgate-idempotency-key`, or the parameter `ClientToken`, which the signature covers.

use hyper::header::{HeaderMap, HeaderName, HeaderValue};

use crate::primitives::secret::never_shown;

/// The parameter that carries a key.
pub(crate) const CLIENT_TOKEN: &str = "ClientToken";

const STANDARD: HeaderName = HeaderName::from_static("idempotency-key");
const OWN: HeaderName = HeaderName::from_static("x-flowgate-idempotency-key");

/// Maximum length of a key in a header.
const MAX_HEADER: usize = 255;
/// Maximum length of a `ClientToken`, as in Alibaba's other products.
const MAX_TOKEN: usize = 64;

/// An idempotency key. It gives access to the answer of its call, so it is never shown.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct IdempotencyKey(Box<str>);

never_shown!(IdempotencyKey);

/// Why the key of a call cannot be honoured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum KeyError {
    /// A header occurs twice.
    #[error("the idempotency key occurs twice")]
    Doubled,
    /// An empty key, or one of other characters.
    #[error("an idempotency key is 1 to 255 visible ASCII characters, a ClientToken 1 to 64")]
    Form,
    /// The carriers differ.
    #[error("Idempotency-Key, x-flowgate-idempotency-key and ClientToken differ: send one of them")]
    Differ,
}

/// Reads the key of a call. `client_token` is its parameter `ClientToken`.
pub(crate) fn read(
    headers: &HeaderMap,
    client_token: Option<&str>,
) -> Result<Option<IdempotencyKey>, KeyError> {
    let mut found: Option<IdempotencyKey> = None;
    let carried = [header(headers, &STANDARD)?, header(headers, &OWN)?];
    let token = client_token
        .map(|token| checked(token, MAX_TOKEN))
        .transpose()?;
    for key in carried.into_iter().chain([token]).flatten() {
        match &found {
            Some(first) if *first != key => return Err(KeyError::Differ),
            _ => found = Some(key),
        }
    }
    Ok(found)
}

fn header(headers: &HeaderMap, name: &HeaderName) -> Result<Option<IdempotencyKey>, KeyError> {
    let mut values = headers.get_all(name).iter();
    let Some(value) = values.next() else {
        return Ok(None);
    };
    if values.next().is_some() {
        return Err(KeyError::Doubled);
    }
    checked(unquoted(value)?, MAX_HEADER).map(Some)
}

/// The text of a header, bare or as the quoted string of the IETF draft.
fn unquoted(value: &HeaderValue) -> Result<&str, KeyError> {
    let text = value.to_str().map_err(|_| KeyError::Form)?;
    let Some(inner) = text.strip_prefix('"') else {
        return Ok(text);
    };
    let inner = inner.strip_suffix('"').ok_or(KeyError::Form)?;
    if inner.contains(['"', '\\']) {
        return Err(KeyError::Form);
    }
    Ok(inner)
}

fn checked(text: &str, max: usize) -> Result<IdempotencyKey, KeyError> {
    let is_visible = text.bytes().all(|byte| byte.is_ascii_graphic());
    if !is_visible || !(1..=max).contains(&text.len()) {
        return Err(KeyError::Form);
    }
    Ok(IdempotencyKey(text.into()))
}

// === impl IdempotencyKey ===

impl IdempotencyKey {
    /// The key, for computing with it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_of(
        carried: &[(&'static str, &str)],
        token: Option<&str>,
    ) -> Result<Option<String>, KeyError> {
        let mut headers = HeaderMap::new();
        for (name, value) in carried {
            headers.append(*name, HeaderValue::from_str(value).unwrap());
        }
        read(&headers, token).map(|key| key.map(|key| key.expose().to_owned()))
    }

    #[test]
    fn a_key_is_read_from_each_carrier() {
        let key = Ok(Some("order-1".to_owned()));
        assert_eq!(read_of(&[("idempotency-key", "order-1")], None), key);
        assert_eq!(read_of(&[("idempotency-key", "\"order-1\"")], None), key);
        assert_eq!(
            read_of(&[("x-flowgate-idempotency-key", "order-1")], None),
            key
        );
        assert_eq!(read_of(&[], Some("order-1")), key);
        assert_eq!(
            read_of(&[("idempotency-key", "order-1")], Some("order-1")),
            key
        );
        assert_eq!(read_of(&[], None), Ok(None));
    }

    #[test]
    fn an_ambiguous_key_is_a_mistake() {
        let twice = [("idempotency-key", "a"), ("idempotency-key", "a")];
        assert_eq!(read_of(&twice, None), Err(KeyError::Doubled));
        let both = [
            ("idempotency-key", "a"),
            ("x-flowgate-idempotency-key", "b"),
        ];
        assert_eq!(read_of(&both, None), Err(KeyError::Differ));
        assert_eq!(
            read_of(&[("idempotency-key", "a")], Some("b")),
            Err(KeyError::Differ)
        );
    }

    #[test]
    fn a_key_has_a_length_and_visible_characters() {
        let longest = "k".repeat(MAX_HEADER);
        assert_eq!(
            read_of(&[("idempotency-key", &longest)], None),
            Ok(Some(longest.clone()))
        );
        let longest_token = "k".repeat(MAX_TOKEN);
        assert_eq!(
            read_of(&[], Some(&longest_token)),
            Ok(Some(longest_token.clone()))
        );
        for bad in [
            "",
            "\"\"",
            "a b",
            "\"a",
            "\"a\"b\"",
            "a\tb",
            &format!("{longest}k"),
        ] {
            assert_eq!(
                read_of(&[("idempotency-key", bad)], None),
                Err(KeyError::Form),
                "{bad}"
            );
        }
        for bad in ["", "a b", "\u{e9}", &format!("{longest_token}k")] {
            assert_eq!(read_of(&[], Some(bad)), Err(KeyError::Form), "{bad}");
        }
    }
}
