//! The headers that identify evaluates, found in one pass over the head: a lookup of each would hash
//! some twenty names.

use hyper::header::{HeaderMap, HeaderValue};

use super::refusals::twice;
use crate::error::Refusal;

/// A header that identify evaluates.
#[derive(Clone, Copy)]
pub(super) enum Known {
    Authorization,
    Connection,
    ContentEncoding,
    ContentType,
    Host,
    TransferEncoding,
    Action,
    BodyHash,
    Date,
    Key,
    Nonce,
    Version,
}

/// The first value of each header, and which headers have further ones.
pub(super) struct KnownHeaders<'a> {
    values: [Option<&'a HeaderValue>; Known::NAMES.len()],
    are_doubled: [bool; Known::NAMES.len()],
    is_from_browser: bool,
}

// === impl Known ===

impl Known {
    /// In the order of the variants.
    const NAMES: [&str; 12] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-type",
        "host",
        "transfer-encoding",
        "x-acs-action",
        "x-acs-content-sha256",
        "x-acs-date",
        "x-acs-accesskey-id",
        "x-acs-signature-nonce",
        "x-acs-version",
    ];

    pub(super) fn name(self) -> &'static str {
        Self::NAMES[self as usize]
    }
}

// === impl KnownHeaders ===

impl<'a> KnownHeaders<'a> {
    pub(super) fn new(headers: &'a HeaderMap) -> Self {
        let mut known = Self {
            values: [None; Known::NAMES.len()],
            are_doubled: [false; Known::NAMES.len()],
            is_from_browser: false,
        };
        for (name, value) in headers {
            let name = name.as_str();
            if let Some(at) = Known::NAMES.iter().position(|known| *known == name) {
                known.are_doubled[at] |= known.values[at].is_some();
                known.values[at].get_or_insert(value);
            } else {
                known.is_from_browser |= is_from_browser(name);
            }
        }
        known
    }

    /// The value of a header, if it is present; an error if it occurs twice.
    pub(super) fn one(&self, known: Known) -> Result<Option<&'a HeaderValue>, Refusal> {
        if self.are_doubled[known as usize] {
            return Err(twice(known.name()));
        }
        Ok(self.values[known as usize])
    }

    pub(super) fn has(&self, known: Known) -> bool {
        self.values[known as usize].is_some()
    }

    /// Whether a browser made the request. No SDK sends any of these headers.
    pub(super) fn is_from_browser(&self) -> bool {
        self.is_from_browser
    }
}

fn is_from_browser(name: &str) -> bool {
    matches!(name, "origin" | "cookie") || name.starts_with("sec-fetch-")
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderName;

    use super::*;
    use crate::call::identify::refusals;

    /// The lookup that this replaces is the reference.
    #[test]
    fn each_header_is_found_as_a_lookup_finds_it() {
        for (at, name) in Known::NAMES.into_iter().enumerate() {
            for count in 0..3 {
                let mut headers = HeaderMap::new();
                for other in ["accept", "x-acs-other", name]
                    .into_iter()
                    .chain(Known::NAMES)
                {
                    let count = if other == name { count } else { 1 };
                    let other: HeaderName = other.parse().unwrap();
                    headers.remove(&other);
                    for value in 0..count {
                        headers.append(&other, HeaderValue::from(value));
                    }
                }
                let known = KnownHeaders::new(&headers);
                let looked_up = refusals::one(&headers, &name.parse().unwrap());
                assert_eq!(known.values[at], headers.get(name), "{name}");
                assert_eq!(known.are_doubled[at], looked_up.is_err(), "{name}");
                assert!(!known.is_from_browser());
            }
        }
    }

    #[test]
    fn a_variant_has_its_name() {
        for (known, name) in [
            (Known::Authorization, "authorization"),
            (Known::Host, "host"),
            (Known::Action, "x-acs-action"),
            (Known::Date, "x-acs-date"),
            (Known::Key, "x-acs-accesskey-id"),
            (Known::Version, "x-acs-version"),
        ] {
            assert_eq!(known.name(), name);
        }
    }
}
