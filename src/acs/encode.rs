//! Canonical encoding (RFC 3986): every byte of the UTF-8 text except letters, digits and `-_.~`
//! becomes `%XX` in upper-case hex. Both signature versions hash this form, and Flowgate sends it.

const DIGITS: &[u8; 16] = b"0123456789ABCDEF";

/// Which bytes stay as they are.
const UNRESERVED: [bool; 256] = {
    let mut table = [false; 256];
    let mut byte = 0;
    while byte < table.len() {
        table[byte] = matches!(
            byte as u8,
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~'
        );
        byte += 1;
    }
    table
};

/// Encodes a name or value.
pub(crate) fn encode(text: &str) -> String {
    let mut encoded = Vec::with_capacity(text.len());
    append(&mut encoded, text);
    ascii(encoded)
}

/// Encodes pairs as `name=value&name=value`, in the given order.
pub(crate) fn pairs<'a>(pairs: impl IntoIterator<Item = (&'a str, &'a str)>) -> String {
    let mut encoded = Vec::new();
    append_pairs(&mut encoded, pairs);
    ascii(encoded)
}

/// Appends an encoded name or value.
pub(crate) fn append(encoded: &mut Vec<u8>, text: &str) {
    let mut rest = text.as_bytes();
    loop {
        let reserved = rest.iter().position(|byte| !UNRESERVED[usize::from(*byte)]);
        let (stays, changes) = rest.split_at(reserved.unwrap_or(rest.len()));
        encoded.extend_from_slice(stays);
        let Some((byte, after)) = changes.split_first() else {
            return;
        };
        encoded.extend_from_slice(&[
            b'%',
            DIGITS[usize::from(byte >> 4)],
            DIGITS[usize::from(byte & 0x0f)],
        ]);
        rest = after;
    }
}

/// Appends pairs, encoded as by [`pairs`].
pub(crate) fn append_pairs<'a>(
    encoded: &mut Vec<u8>,
    pairs: impl IntoIterator<Item = (&'a str, &'a str)>,
) {
    for (index, (name, value)) in pairs.into_iter().enumerate() {
        if index > 0 {
            encoded.push(b'&');
        }
        append(encoded, name);
        encoded.push(b'=');
        append(encoded, value);
    }
}

fn ascii(encoded: Vec<u8>) -> String {
    String::from_utf8(encoded).expect("encoded text is ASCII")
}

#[cfg(test)]
mod tests {
    use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
    use proptest::prelude::*;

    use super::*;

    const RESERVED: &AsciiSet = &NON_ALPHANUMERIC
        .remove(b'-')
        .remove(b'_')
        .remove(b'.')
        .remove(b'~');

    #[test]
    fn only_unreserved_bytes_stay() {
        assert_eq!(encode("aZ09-_.~"), "aZ09-_.~");
        assert_eq!(encode(" *+/:&=%'("), "%20%2A%2B%2F%3A%26%3D%25%27%28");
        assert_eq!(encode("é中😀\u{7f}\n"), "%C3%A9%E4%B8%AD%F0%9F%98%80%7F%0A");
    }

    #[test]
    fn pairs_keep_their_order_and_empty_values() {
        assert_eq!(pairs([("b", "1 2"), ("a", "")]), "b=1%202&a=");
        assert_eq!(pairs([]), "");
    }

    proptest! {
        #[test]
        fn it_encodes_like_the_library(text in any::<String>()) {
            prop_assert_eq!(encode(&text), utf8_percent_encode(&text, RESERVED).to_string());
        }
    }
}
