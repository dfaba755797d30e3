//! Checks that a JSON body is unambiguous: one complete document without duplicate keys at any
//! depth. Of duplicate keys, one parser uses the first and another the last.

use std::collections::HashSet;
use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor};

/// The body is not one JSON document, is nested more than 128 levels deep, or has a duplicate key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the body is not one JSON document whose keys are all distinct")]
pub(crate) struct JsonError;

/// A value that is parsed and discarded.
struct Seen;

/// Parses the whole body. serde_json's recursion limit bounds the depth.
pub(crate) fn check(body: &[u8]) -> Result<(), JsonError> {
    serde_json::from_slice::<Seen>(body)
        .map(drop)
        .map_err(|_| JsonError)
}

// === impl Seen ===

impl<'de> Deserialize<'de> for Seen {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Seen {
    type Value = Self;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON document")
    }

    fn visit_unit<E>(self) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self, A::Error> {
        while items.next_element::<Self>()?.is_some() {}
        Ok(self)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        let mut keys = HashSet::new();
        while let Some(key) = fields.next_key::<String>()? {
            if !keys.insert(key) {
                return Err(A::Error::custom("a key occurs twice"));
            }
            fields.next_value::<Self>()?;
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_documents_pass() {
        for body in [
            "{}",
            "null",
            "[1,-1,1.5e3,true,\"é\"]",
            " {\"a\":{\"b\":[{\"a\":1},{\"a\":2}]},\"A\":null} \n",
        ] {
            assert_eq!(check(body.as_bytes()), Ok(()), "{body}");
        }
    }

    #[test]
    fn a_key_that_occurs_twice_is_refused_at_any_depth_in_any_spelling() {
        for body in [
            r#"{"a":1,"a":1}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"[{"x":{"y":[{"k":1,"l":2,"k":3}]}}]"#,
            r#"{"CustSpaceId":"mine","Cust\u0053paceId":"yours"}"#,
        ] {
            assert_eq!(check(body.as_bytes()), Err(JsonError), "{body}");
        }
    }

    #[test]
    fn what_is_not_one_document_is_refused() {
        for body in [
            "",
            "{",
            "{}{}",
            "{} x",
            "{'a':1}",
            "{\"a\":1,}",
            "\"\\ud800\"",
            "NaN",
            "// c\n{}",
        ] {
            assert_eq!(check(body.as_bytes()), Err(JsonError), "{body}");
        }
        assert_eq!(check(b"\"\xff\""), Err(JsonError));
    }

    #[test]
    fn depth_is_bounded() {
        let nested = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
        assert_eq!(check(nested(127).as_bytes()), Ok(()));
        assert_eq!(check(nested(100_000).as_bytes()), Err(JsonError));
    }
}
