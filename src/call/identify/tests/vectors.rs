//! Test vectors: signatures of the stock SDKs, recomputed, and made again for another host, date
//! and nonce.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::capture::{load, pairs};
use super::*;
use crate::acs::v3::Signable;
use crate::acs::{v1, v3};

#[derive(Deserialize)]
pub(super) struct Vector {
    pub(super) file: String,
    pub(super) kind: String,
    canonical_request: Option<String>,
    string_to_sign: Option<String>,
    signature: Option<String>,
    resigned: Option<BTreeMap<String, String>>,
}

pub(super) fn all() -> Vec<Vector> {
    serde_json::from_str(include_str!("../../../../tests/data/vectors.json")).unwrap()
}

fn secret() -> Secret {
    Secret::new(SECRET)
}

/// The parts of a version 3 capture that its signature covers, some of them replaced.
struct Covered {
    query: Vec<(String, String)>,
    headers: Vec<(String, Vec<u8>)>,
    hash: String,
}

impl Covered {
    fn of(capture: &Capture, replaced: &BTreeMap<String, String>) -> Self {
        let authorization = Authorization::parse(capture.header("authorization").unwrap()).unwrap();
        let value = |name: &str| {
            replaced
                .get(name)
                .map(String::as_str)
                .or_else(|| capture.header(name))
                .unwrap()
        };
        Self {
            query: pairs(capture.query()),
            headers: authorization
                .signed_headers
                .iter()
                .map(|name| (name.to_string(), value(name).into()))
                .collect(),
            hash: capture.header("x-acs-content-sha256").unwrap().to_owned(),
        }
    }

    fn signable<'a>(&'a self, method: &'a str) -> Signable<'a> {
        Signable {
            method,
            query: self
                .query
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_str()))
                .collect(),
            headers: self
                .headers
                .iter()
                .map(|(name, value)| (name.as_str(), value.as_slice()))
                .collect(),
            body_hash: &self.hash,
        }
    }
}

#[test]
fn version_3_signatures_are_recomputed_and_made_again() {
    let mut count = 0;
    for vector in all()
        .into_iter()
        .filter(|vector| vector.kind == "ACS3-HMAC-SHA256")
    {
        let capture = load(&vector.file);
        let covered = Covered::of(&capture, &BTreeMap::new());
        let signable = covered.signable(&capture.method);
        assert_eq!(
            String::from_utf8(signable.canonical_request()).unwrap(),
            vector.canonical_request.unwrap()
        );
        assert_eq!(
            Some(signable.string_to_sign()),
            vector.string_to_sign,
            "{}",
            vector.file
        );
        assert_eq!(v3::hash(&capture.body), covered.hash, "{}", vector.file);
        let signature = vector.signature.unwrap();
        assert_eq!(v3::sign(&secret(), &signable.string_to_sign()), signature);
        assert!(v3::verify(
            &secret(),
            &signable.string_to_sign(),
            &signature
        ));
        let resigned = vector.resigned.unwrap();
        let again = Covered::of(&capture, &resigned);
        assert_eq!(
            again
                .signable(&capture.method)
                .authorization(KEY, &secret()),
            resigned["authorization"]
        );
        count += 1;
    }
    assert_eq!(count, 26);
}

#[test]
fn other_version_3_algorithms_have_the_same_canonical_request() {
    for file in ["py5_d_sm3.http", "py5_d_rsa.http"] {
        let vector = all()
            .into_iter()
            .find(|vector| vector.file == file)
            .unwrap();
        let capture = load(file);
        let canonical = Covered::of(&capture, &BTreeMap::new())
            .signable(&capture.method)
            .canonical_request();
        assert_eq!(
            String::from_utf8(canonical).unwrap(),
            vector.canonical_request.unwrap()
        );
    }
}

#[test]
fn version_1_signatures_are_recomputed_and_made_again() {
    let mut count = 0;
    for vector in all()
        .into_iter()
        .filter(|vector| vector.kind.starts_with("RPC-V1"))
    {
        let capture = load(&vector.file);
        let mut params: BTreeMap<_, _> = pairs(capture.query())
            .into_iter()
            .chain(pairs(capture.form()))
            .collect();
        let to_sign = |params: &BTreeMap<String, String>| {
            v1::string_to_sign(
                &capture.method,
                params
                    .iter()
                    .map(|(name, value)| (name.as_str(), value.as_str())),
            )
        };
        assert_eq!(
            Some(to_sign(&params)),
            vector.string_to_sign,
            "{}",
            vector.file
        );
        let Some(resigned) = vector.resigned else {
            continue;
        };
        assert!(v1::verify(
            &secret(),
            &to_sign(&params),
            &params["Signature"]
        ));
        assert_eq!(vector.signature.as_ref(), params.get("Signature"));
        params.extend(resigned.clone());
        assert_eq!(
            v1::sign(&secret(), &to_sign(&params)),
            resigned["Signature"]
        );
        count += 1;
    }
    assert_eq!(count, 45);
}

#[test]
fn all_captures_are_accepted_and_forwarded_with_the_same_meaning() {
    let gate = Gate::new();
    for (file, capture) in capture::signed() {
        let caller = gate
            .ask(&capture)
            .map_err(|refusal| format!("{file}: {refusal}"))
            .unwrap();
        assert_eq!(gate.send(caller).read(), capture.read(), "{file}");
        let replayed = gate.refuses(&capture).0;
        assert_eq!(replayed, Kind::NonceUsed, "{file}");
    }
}

#[test]
fn flowgate_accepts_what_it_signs() {
    let gate = Gate::new();
    for (file, capture) in capture::signed() {
        let sent = gate.send(gate.ask(&capture).unwrap());
        let again = gate
            .ask(&sent)
            .map_err(|refusal| format!("{file}: {refusal}"))
            .unwrap();
        assert_eq!(gate.send(again).read(), capture.read(), "{file}");
    }
}

#[test]
fn any_flipped_bit_of_a_signed_part_is_refused() {
    let gate = Gate::new();
    let mut flips = 0;
    for (file, capture) in capture::signed() {
        for flipped in flipped(&capture) {
            flips += 1;
            assert!(gate.ask(&flipped).is_err(), "{file}: {flipped:?}");
        }
        assert!(gate.ask(&capture).is_ok(), "{file}");
    }
    assert!(flips > 14_000, "{flips}");
}

/// The capture with one bit of one signed byte changed, for each of them.
fn flipped(capture: &Capture) -> Vec<Capture> {
    let mut all = Vec::new();
    let from = capture
        .target
        .find('?')
        .map_or(capture.target.len(), |at| at + 1);
    for at in from..capture.target.len() {
        let mut target = capture.target.clone().into_bytes();
        target[at] ^= 1;
        all.push(Capture {
            target: String::from_utf8(target).unwrap(),
            ..capture.clone()
        });
    }
    for at in 0..capture.body.len() {
        let mut other = capture.clone();
        other.body[at] ^= 1;
        all.push(other);
    }
    let Some(authorization) = capture.header("authorization") else {
        return all;
    };
    let authorization = Authorization::parse(authorization).unwrap();
    for (index, (name, value)) in capture.headers.iter().enumerate() {
        let name = name.to_ascii_lowercase();
        if authorization.signed_headers.contains(&name.as_str()) || name == "authorization" {
            for at in 0..value.len() {
                let mut other = capture.clone();
                other.headers[index].1[at] ^= 1;
                all.push(other);
            }
        }
    }
    all
}
