//! Canonical encoding (RFC 3986): every byte of the UTF-8 text except letters, digits and `-_.~`
//! becomes `%XX` in upper-case hex. Both signature versions hash this form, and Flowgate sends it.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, PercentEncode, utf8_percent_encode};

const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~');

/// Encodes a name or value.
pub(crate) fn encode(text: &str) -> PercentEncode<'_> {
    utf8_percent_encode(text, RESERVED)
}

/// Encodes pairs as `name=value&name=value`, in the given order.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut text = String::new();
    for (name, value) in pairs {
        if !text.is_empty() {
            text.push('&');
        }
        text.extend(encode(name));
        text.push('=');
        text.extend(encode(value));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_unreserved_bytes_stay() {
        assert_eq!(encode("aZ09-_.~").to_string(), "aZ09-_.~");
        assert_eq!(
            encode(" *+/:&=%'(").to_string(),
            "%20%2A%2B%2F%3A%26%3D%25%27%28"
        );
        assert_eq!(
            encode("é中😀\u{7f}\n").to_string(),
            "%C3%A9%E4%B8%AD%F0%9F%98%80%7F%0A"
        );
    }

    #[test]
    fn pairs_keep_their_order_and_empty_values() {
        assert_eq!(pairs([("b", "1 2"), ("a", "")]), "b=1%202&a=");
        assert_eq!(pairs([]), "");
    }
}
