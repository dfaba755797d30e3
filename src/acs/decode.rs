//! Strict decoding of queries and forms. Ambiguous input is an error: if Flowgate and CAMS decoded
//! it differently, Flowgate could sign a call that its caller did not authorise.

/// Maximum number of parameters of a call, query and form together.
const MAX_PARAMETERS: usize = 2048;
const MAX_NAME: usize = 128;

/// Why a query or a form is invalid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum DecodeError {
    /// A `%` without two hex digits.
    #[error("a % is not followed by two hexadecimal digits")]
    Escape,
    /// Bytes that are not UTF-8.
    #[error("a parameter is not UTF-8")]
    Utf8,
    /// A NUL byte, at which some decoders stop.
    #[error("a parameter contains a NUL byte")]
    Nul,
    /// An invalid or empty name.
    #[error("a parameter's name is not 1 to 128 of A-Z, a-z, 0-9, '.', '_' and '-'")]
    Name,
    /// A name without `=`, which some decoders read as an empty value and others drop.
    #[error("a parameter has no '='")]
    NoValue,
    /// More than 2,048 parameters.
    #[error("there are more than 2,048 parameters")]
    TooMany,
    /// A name that occurs twice, in any case, in query or form.
    #[error("a parameter's name occurs twice")]
    Doubled,
}

/// Decoded parameters with distinct names, in their original order.
#[derive(Clone, Default, PartialEq, Eq)]
pub(crate) struct Params {
    query: Vec<(String, String)>,
    form: Vec<(String, String)>,
}

fn decode(text: &[u8]) -> Result<String, DecodeError> {
    if text.iter().all(|byte| byte.is_ascii_alphanumeric()) {
        return Ok(String::from_utf8(text.to_vec()).expect("letters and digits are UTF-8"));
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        bytes.push(match byte {
            b'+' => b' ',
            b'%' => digit(rest.next())? << 4 | digit(rest.next())?,
            other => other,
        });
    }
    if bytes.contains(&0) {
        return Err(DecodeError::Nul);
    }
    String::from_utf8(bytes).map_err(|_| DecodeError::Utf8)
}

fn digit(byte: Option<&u8>) -> Result<u8, DecodeError> {
    let digit = byte
        .and_then(|byte| char::from(*byte).to_digit(16))
        .ok_or(DecodeError::Escape)?;
    Ok(u8::try_from(digit).expect("a hexadecimal digit is below 16"))
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len())
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

// === impl Params ===

impl Params {
    /// The parameters of a call of Flowgate's own, whose names are distinct.
    pub(crate) fn of_query(query: Vec<(String, String)>) -> Self {
        let form = Vec::new();
        Self { query, form }
    }

    /// Decodes the part of the request target after `?`.
    pub(crate) fn from_query(query: &str) -> Result<Self, DecodeError> {
        let mut params = Self::default();
        params.query = params.read(query.as_bytes())?;
        Ok(params)
    }

    /// Decodes a form body and adds it to the query.
    pub(crate) fn add_form(&mut self, body: &[u8]) -> Result<(), DecodeError> {
        self.form = self.read(body)?;
        Ok(())
    }

    /// Returns the value of a parameter of query or form.
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.iter()
            .find(|(other, _)| *other == name)
            .map(|(_, value)| value)
    }

    /// Iterates over all parameters, the query's first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query().chain(self.form())
    }

    /// Iterates over the parameters of the query.
    pub(crate) fn query(&self) -> impl Iterator<Item = (&str, &str)> {
        self.query
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Iterates over the parameters of the form.
    pub(crate) fn form(&self) -> impl Iterator<Item = (&str, &str)> {
        self.form
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Removes the parameters for whose name `keep` returns false.
    pub(crate) fn retain(&mut self, keep: impl Fn(&str) -> bool) {
        self.query.retain(|(name, _)| keep(name));
        self.form.retain(|(name, _)| keep(name));
    }

    fn read(&self, text: &[u8]) -> Result<Vec<(String, String)>, DecodeError> {
        if text.is_empty() {
            return Ok(Vec::new());
        }
        let before = self.iter().count();
        let mut pairs = Vec::new();
        for pair in text.split(|byte| *byte == b'&') {
            if before + pairs.len() == MAX_PARAMETERS {
                return Err(DecodeError::TooMany);
            }
            let equals = pair
                .iter()
                .position(|byte| *byte == b'=')
                .ok_or(DecodeError::NoValue)?;
            let name = decode(&pair[..equals])?;
            if !is_name(&name) {
                return Err(DecodeError::Name);
            }
            pairs.push((name, decode(&pair[equals + 1..])?));
        }
        if self.is_doubled(&pairs) {
            return Err(DecodeError::Doubled);
        }
        Ok(pairs)
    }

    /// Whether two names, in `self` or `more`, are equal except for case.
    fn is_doubled(&self, more: &[(String, String)]) -> bool {
        let mut names: Vec<&str> = self.iter().map(|(name, _)| name).collect();
        names.extend(more.iter().map(|(name, _)| name.as_str()));
        names.sort_unstable_by(|a, b| {
            let a = a.bytes().map(|byte| byte.to_ascii_lowercase());
            let b = b.bytes().map(|byte| byte.to_ascii_lowercase());
            a.cmp(b)
        });
        names
            .windows(2)
            .any(|pair| pair[0].eq_ignore_ascii_case(pair[1]))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::acs::encode;

    fn query(text: &str) -> Result<Vec<(String, String)>, DecodeError> {
        Params::from_query(text).map(|params| params.query)
    }

    fn pair(name: &str, value: &str) -> (String, String) {
        (name.to_owned(), value.to_owned())
    }

    #[test]
    fn escapes_plus_semicolon_and_empty_values_are_read() {
        assert_eq!(
            query("a=1+2%20%2B;b=c&d="),
            Ok(vec![pair("a", "1 2 +;b=c"), pair("d", "")])
        );
        assert_eq!(query("%41=é%C3%A9"), Ok(vec![pair("A", "éé")]));
        assert_eq!(query(""), Ok(vec![]));
    }

    #[test]
    fn what_is_not_exactly_encoded_is_refused() {
        for text in ["a=%", "a=%4", "a=%4g", "a=%+1", "%=1", "a=%%41"] {
            assert_eq!(query(text), Err(DecodeError::Escape), "{text}");
        }
        for text in ["a=%FF", "a=%C3", "a=%ED%A0%80", "%C3=1"] {
            assert_eq!(query(text), Err(DecodeError::Utf8), "{text}");
        }
        assert_eq!(query("a=%00"), Err(DecodeError::Nul));
        for text in ["=1", "a b=1", "a%5B%5D=1", "é=1", "a=1&&b=2", "a=1&"] {
            assert!(
                matches!(query(text), Err(DecodeError::Name | DecodeError::NoValue)),
                "{text}"
            );
        }
        assert_eq!(
            query(&format!("{}=1", "n".repeat(129))),
            Err(DecodeError::Name)
        );
        assert_eq!(
            query(&format!("{}=1", "n".repeat(128))),
            Ok(vec![pair(&"n".repeat(128), "1")])
        );
        assert_eq!(query("a"), Err(DecodeError::NoValue));
    }

    #[test]
    fn at_most_2048_parameters_are_read() {
        let many = |count: usize| {
            (0..count)
                .map(|i| format!("p{i}="))
                .collect::<Vec<_>>()
                .join("&")
        };
        assert_eq!(query(&many(2048)).unwrap().len(), 2048);
        assert_eq!(query(&many(2049)), Err(DecodeError::TooMany));
        let mut both = Params::from_query(&many(2048)).unwrap();
        assert_eq!(both.add_form(b"x=1"), Err(DecodeError::TooMany));
    }

    #[test]
    fn a_parameter_name_that_occurs_twice_is_refused() {
        assert_eq!(query("a=1&a=1"), Err(DecodeError::Doubled));
        assert_eq!(
            query("CustSpaceId=a&custspaceid=b"),
            Err(DecodeError::Doubled)
        );
        assert_eq!(query("%61=1&a=1"), Err(DecodeError::Doubled));
        let mut params = Params::from_query("a=1").unwrap();
        assert_eq!(params.add_form(b"A=2"), Err(DecodeError::Doubled));
    }

    #[test]
    fn places_and_order_are_kept() {
        let mut params = Params::from_query("b=1&a=2").unwrap();
        params.add_form(b"d=3&c=4").unwrap();
        assert_eq!(
            params.iter().collect::<Vec<_>>(),
            [("b", "1"), ("a", "2"), ("d", "3"), ("c", "4")]
        );
        assert_eq!((params.get("d"), params.get("D")), (Some("3"), None));
        params.retain(|name| name > "b");
        assert_eq!((params.query().count(), params.form().count()), (0, 2));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_read_back(values in prop::collection::vec("[^\0]{0,20}", 0..8)) {
            let pairs: Vec<_> = values.into_iter().enumerate().map(|(i, value)| (format!("n.{i}"), value)).collect();
            let text = encode::pairs(pairs.iter().map(|(name, value)| (name.as_str(), value.as_str())));
            prop_assert_eq!(query(&text), Ok(pairs));
        }

        #[test]
        fn no_bytes_break_it(text in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut params = Params::default();
            if params.add_form(&text).is_ok() {
                let again = encode::pairs(params.form());
                let mut second = Params::default();
                second.add_form(again.as_bytes()).unwrap();
                prop_assert!(second == params);
            }
        }
    }
}
