//! The name of a record, and the fingerprint of a call's parameters. Two calls of one key must be
//! the same order, whichever SDK and signature version sent them.

use serde::de::IgnoredAny;
use sha2::{Digest, Sha256};

use super::key::{CLIENT_TOKEN, IdempotencyKey};

/// The name of a record: a hash of account, client and key, so that no client can find
/// another one's record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct RecordName([u8; 16]);

/// A hash of the action and of every business parameter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Fingerprint(u64);

/// A hash of account, space and name of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct FlowNameHash([u8; 16]);

/// Parameters that do not change what CAMS does.
const NOT_BUSINESS: [&str; 2] = [CLIENT_TOKEN, "Format"];

/// The fingerprint of a call with these parameters of query and form, without those of the
/// signature, and this JSON body.
pub(crate) fn fingerprint<'a>(
    action: &str,
    params: impl IntoIterator<Item = (&'a str, &'a str)>,
    json: Option<&[u8]>,
) -> Fingerprint {
    let mut pairs: Vec<_> = params
        .into_iter()
        .filter(|(name, _)| !NOT_BUSINESS.contains(name))
        .map(|(name, value)| (name, normalized(value.as_bytes())))
        .collect();
    pairs.sort_unstable();
    let mut hasher = Sha256::new();
    add(&mut hasher, action.as_bytes());
    for (name, value) in &pairs {
        add(&mut hasher, name.as_bytes());
        add(&mut hasher, value);
    }
    if let Some(json) = json {
        add(&mut hasher, &normalized(json));
    }
    Fingerprint(u64::from_be_bytes(first(&hasher.finalize())))
}

/// The name of the record of a key. `client` must be the same for all keys and sessions of one
/// caller.
pub(crate) fn record_name(account: &str, client: &str, key: &IdempotencyKey) -> RecordName {
    let mut hasher = Sha256::new();
    for part in [account, client, key.expose()] {
        add(&mut hasher, part.as_bytes());
    }
    RecordName(first(&hasher.finalize()))
}

/// The name of the record of equal calls without a key.
pub(crate) fn equal_name(account: &str, client: &str, fingerprint: Fingerprint) -> RecordName {
    let mut hasher = Sha256::new();
    for part in [account, client] {
        add(&mut hasher, part.as_bytes());
    }
    // No key is as long, and none has a byte of zero.
    add(&mut hasher, &[0; 256]);
    add(&mut hasher, &fingerprint.0.to_be_bytes());
    RecordName(first(&hasher.finalize()))
}

/// What all calls that create a flow of this name in this space have in common.
pub(crate) fn flow_name_hash(account: &str, space: &str, name: &str) -> FlowNameHash {
    let mut hasher = Sha256::new();
    for part in [account, space, name] {
        add(&mut hasher, part.as_bytes());
    }
    FlowNameHash(first(&hasher.finalize()))
}

/// A JSON object or list without its white space, which SDKs write differently. Other values are
/// kept. Numbers and names keep their spelling: reading them could lose digits.
fn normalized(value: &[u8]) -> Vec<u8> {
    let is_container = matches!(value.trim_ascii_start().first(), Some(b'{' | b'['));
    if !is_container || serde_json::from_slice::<IgnoredAny>(value).is_err() {
        return value.to_vec();
    }
    let mut is_text = false;
    let mut is_escaped = false;
    let keep = |byte: &u8| {
        let was_escaped = std::mem::take(&mut is_escaped);
        match byte {
            b'"' if !was_escaped => is_text = !is_text,
            b'\\' if is_text && !was_escaped => is_escaped = true,
            _ => {}
        }
        is_text || !byte.is_ascii_whitespace()
    };
    value.iter().copied().filter(keep).collect()
}

/// Adds a part with its length, so that parts cannot be divided in another way.
fn add(hasher: &mut Sha256, part: &[u8]) {
    hasher.update((part.len() as u64).to_be_bytes());
    hasher.update(part);
}

fn first<const N: usize>(hash: &[u8]) -> [u8; N] {
    hash[..N].try_into().expect("a hash has 32 bytes")
}

// === impl RecordName ===

impl RecordName {
    /// A name that no other record has.
    pub(crate) fn random() -> Self {
        Self(fastrand::u128(..).to_be_bytes())
    }

    /// The name in hexadecimal, for the store and the journal.
    pub(crate) fn hex(self) -> String {
        crate::acs::v3::hex(&self.0)
    }

    /// The first 8 hexadecimal digits of the name, for the log.
    pub(crate) fn short(self) -> String {
        crate::acs::v3::hex(&self.0[..4])
    }

    /// Reads the name in hexadecimal.
    pub(crate) fn parse(hex: &str) -> Option<Self> {
        let number = u128::from_str_radix(hex, 16).ok()?;
        (hex.len() == 32).then(|| Self(number.to_be_bytes()))
    }
}

// === impl FlowNameHash ===

impl FlowNameHash {
    /// The hash in hexadecimal.
    pub(crate) fn hex(self) -> String {
        crate::acs::v3::hex(&self.0)
    }
}

// === impl Fingerprint ===

impl Fingerprint {
    /// The fingerprint in hexadecimal.
    pub(crate) fn hex(self) -> String {
        format!("{:016x}", self.0)
    }

    /// Reads the fingerprint in hexadecimal.
    pub(crate) fn parse(hex: &str) -> Option<Self> {
        let number = u64::from_str_radix(hex, 16).ok()?;
        (hex.len() == 16).then_some(Self(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARAMS: [(&str, &str); 3] = [
        ("FlowName", "Welcome"),
        ("Categories", r#"["SIGN_UP","OTHER"]"#),
        ("CustSpaceId", "cams-1"),
    ];

    #[test]
    fn the_same_order_of_different_sdks_has_one_fingerprint() {
        let first = fingerprint("CreateFlow", PARAMS, None);
        let other_order = [
            ("ClientToken", "k"),
            ("CustSpaceId", "cams-1"),
            ("Format", "XML"),
            ("Categories", r#"[ "SIGN_UP", "OTHER" ]"#),
            ("FlowName", "Welcome"),
        ];
        assert_eq!(first, fingerprint("CreateFlow", other_order, None));
        let body = |text: &str| fingerprint("CreateFlow", [], Some(text.as_bytes()));
        assert_eq!(body(r#"{"FlowName": "x"}"#), body(r#"{"FlowName":"x"}"#));
        assert_ne!(body(r#"{"FlowName":"a b"}"#), body(r#"{"FlowName":"ab"}"#));
        assert_ne!(
            body(r#"["\" ", 1]"#),
            body(r#"["\"",1]"#),
            "a blank after an escaped quote is text"
        );
        assert_ne!(
            body("[10000000000000000000001]"),
            body("[10000000000000000000002]")
        );
    }

    #[test]
    fn another_order_has_another_fingerprint() {
        let first = fingerprint("CreateFlow", PARAMS, None);
        let mut others = vec![fingerprint("UpdateFlow", PARAMS, None)];
        for index in 0..PARAMS.len() {
            let mut changed = PARAMS;
            changed[index].1 = "Other";
            others.push(fingerprint("CreateFlow", changed, None));
            let without = PARAMS.into_iter().filter(|pair| *pair != PARAMS[index]);
            others.push(fingerprint("CreateFlow", without, None));
        }
        others.push(fingerprint("CreateFlow", [("a", "bc")], None));
        others.push(fingerprint("CreateFlow", [("ab", "c")], None));
        others.push(fingerprint("CreateFlow", [], Some(b"{}")));
        others.push(fingerprint("CreateFlow", [], None));
        assert!(!others.contains(&first));
        let count = others.len();
        others.sort_unstable_by_key(|print| print.0);
        others.dedup();
        assert_eq!(others.len(), count);
    }

    #[test]
    fn a_record_belongs_to_one_client() {
        let key = |text: &str| {
            super::super::key::read(&hyper::HeaderMap::new(), Some(text))
                .unwrap()
                .unwrap()
        };
        let name = record_name("acme", "team-a", &key("k"));
        assert!(name == record_name("acme", "team-a", &key("k")));
        for other in [
            record_name("acme", "team-b", &key("k")),
            record_name("other", "team-a", &key("k")),
            record_name("acme", "team-a", &key("k2")),
            record_name("acmet", "eam-a", &key("k")),
        ] {
            assert!(name != other);
        }
        assert_eq!(name.hex().len(), 32);
    }
}
