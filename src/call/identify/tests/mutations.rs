//! Mangled captures: if one is still accepted, the request to CAMS has the meaning of the original,
//! according to a parser that shares no code with Flowgate.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::capture::SIGNED;
use super::*;

static CAPTURES: LazyLock<Vec<(String, Capture)>> = LazyLock::new(capture::signed);

/// One way to mangle a request.
#[derive(Clone, Debug)]
enum Mutation {
    DoubleParameter { index: usize, value: String },
    AddParameter { name: String, value: String },
    MoveToForm { index: usize },
    MoveToQuery { index: usize },
    EncodeAll { index: usize },
    LowerCaseEscapes,
    ReverseParameters,
    DropParameter { index: usize },
    AddHeader { name: String, value: String },
    SetHeader { index: usize, value: String },
    CaseOfHeader { index: usize },
    DropHeader { index: usize },
    Path { path: String },
    Method { method: String },
    FlipByte { at: usize, bit: u8 },
    Body { body: Vec<u8> },
}

/// Names and values that are likely to expose ambiguities.
const PARAMETERS: [&str; 10] = [
    "Action",
    "action",
    "CustSpaceId",
    "FlowName",
    "flowname",
    "SourceIp",
    "Signature",
    "Format",
    "x",
    "é",
];
const VALUES: [&str; 7] = [
    "",
    "x",
    "CreateFlow",
    "DeleteFlow",
    "a b",
    "%00",
    "1&Action=DeleteFlow",
];
const HEADERS: [&str; 14] = [
    "host",
    "x-acs-action",
    "X-Acs-Version",
    "x-acs-source-ip",
    "content-type",
    "authorization",
    "x-y",
    "te",
    "transfer-encoding",
    "connection",
    "x-acs-security-token",
    "x-flowgate-hold",
    "x-acs-content-sha256",
    "content-encoding",
];
const HEADER_VALUES: [&str; 8] = [
    "",
    "x",
    "DeleteFlow",
    "application/json",
    "application/x-www-form-urlencoded",
    "gzip",
    "host, x-y",
    UPSTREAM,
];
const PATHS: [&str; 8] = [
    "/",
    "//",
    "/x",
    "/x/",
    "*",
    "//x.y/",
    "http://x/",
    "http://127.0.0.1:8080/",
];

fn one_of(texts: &'static [&'static str]) -> impl Strategy<Value = String> {
    prop::sample::select(texts).prop_map(str::to_owned)
}

fn mutation() -> impl Strategy<Value = Mutation> {
    use Mutation::*;
    let index = || 0_usize..24;
    prop_oneof![
        (index(), one_of(&VALUES)).prop_map(|(index, value)| DoubleParameter { index, value }),
        (one_of(&PARAMETERS), one_of(&VALUES))
            .prop_map(|(name, value)| AddParameter { name, value }),
        index().prop_map(|index| MoveToForm { index }),
        index().prop_map(|index| MoveToQuery { index }),
        index().prop_map(|index| EncodeAll { index }),
        Just(LowerCaseEscapes),
        Just(ReverseParameters),
        index().prop_map(|index| DropParameter { index }),
        (one_of(&HEADERS), one_of(&HEADER_VALUES))
            .prop_map(|(name, value)| AddHeader { name, value }),
        (index(), one_of(&HEADER_VALUES)).prop_map(|(index, value)| SetHeader { index, value }),
        index().prop_map(|index| CaseOfHeader { index }),
        index().prop_map(|index| DropHeader { index }),
        one_of(&PATHS).prop_map(|path| Path { path }),
        one_of(&["GET", "POST", "post", "PUT"]).prop_map(|method| Method { method }),
        (any::<usize>(), 0_u8..8).prop_map(|(at, bit)| FlipByte { at, bit }),
        prop::collection::vec(any::<u8>(), 0..8).prop_map(|body| Body { body }),
    ]
}

/// The raw `name=value` texts of a query or form.
fn split(text: &str) -> Vec<String> {
    text.split('&')
        .filter(|pair| !pair.is_empty())
        .map(str::to_owned)
        .collect()
}

/// Escapes every letter and digit that is not already part of an escape.
fn escape_all(pair: &str) -> String {
    let mut inside = 0;
    let escape = |c: char| {
        let is_inside = inside > 0;
        inside = if c == '%' { 2 } else { i32::max(inside - 1, 0) };
        if c.is_ascii_alphanumeric() && !is_inside {
            format!("%{:02x}", u32::from(c))
        } else {
            c.into()
        }
    };
    pair.chars().map(escape).collect()
}

fn apply(mutation: &Mutation, capture: &mut Capture) {
    let (path, query) = capture
        .target
        .split_once('?')
        .unwrap_or((&capture.target, ""));
    let mut path = path.to_owned();
    let mut query = split(query);
    let mut form = split(std::str::from_utf8(&capture.body).unwrap_or(""));
    let is_form = capture
        .header("content-type")
        .is_some_and(|value| value.contains("form"));
    match mutation {
        Mutation::DoubleParameter { index, value } if !query.is_empty() => {
            let name = query[index % query.len()]
                .split('=')
                .next()
                .unwrap()
                .to_owned();
            query.push(format!("{name}={value}"));
        }
        Mutation::AddParameter { name, value } => query.push(format!("{name}={value}")),
        Mutation::MoveToForm { index } if !query.is_empty() => {
            let pair = query.remove(index % query.len());
            form.push(pair);
            capture.set("content-type", "application/x-www-form-urlencoded");
            capture.body = form.join("&").into_bytes();
        }
        Mutation::MoveToQuery { index } if is_form && !form.is_empty() => {
            query.push(form.remove(index % form.len()));
            capture.body = form.join("&").into_bytes();
        }
        Mutation::EncodeAll { index } if !query.is_empty() => {
            let at = index % query.len();
            query[at] = escape_all(&query[at]);
        }
        Mutation::LowerCaseEscapes => {
            query = query
                .iter()
                .map(|pair| pair.replace("%2C", "%2c").replace("%5B", "%5b"))
                .collect()
        }
        Mutation::ReverseParameters => query.reverse(),
        Mutation::DropParameter { index } if !query.is_empty() => {
            drop(query.remove(index % query.len()))
        }
        Mutation::AddHeader { name, value } => capture.add(name, value),
        Mutation::SetHeader { index, value } => {
            let at = index % capture.headers.len().max(1);
            capture
                .headers
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|header| header.1 = value.clone().into_bytes());
        }
        Mutation::CaseOfHeader { index } => {
            let at = index % capture.headers.len().max(1);
            capture
                .headers
                .iter_mut()
                .skip(at)
                .take(1)
                .for_each(|header| header.0 = header.0.to_ascii_uppercase());
        }
        Mutation::DropHeader { index } if !capture.headers.is_empty() => {
            drop(capture.headers.remove(index % capture.headers.len()));
        }
        Mutation::Path { path: other } => path = other.clone(),
        Mutation::Method { method } => capture.method = method.clone(),
        Mutation::FlipByte { at, bit } => {
            let mut target = [path.as_bytes(), b"?", query.join("&").as_bytes()].concat();
            let at = at % target.len();
            target[at] ^= 1 << bit;
            if let Ok(target) = String::from_utf8(target) {
                capture.target = target;
            }
            return;
        }
        Mutation::Body { body } => capture.body = body.clone(),
        _ => {}
    }
    capture.target = if query.is_empty() {
        path
    } else {
        format!("{path}?{}", query.join("&"))
    };
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_mangled_call_is_refused_or_sent_with_its_signed_meaning(
        at in 0..SIGNED,
        mutations in prop::collection::vec(mutation(), 1..4),
    ) {
        let original = &CAPTURES[at].1;
        let mut mangled = original.clone();
        for mutation in &mutations {
            apply(mutation, &mut mangled);
        }
        let gate = Gate::new();
        if let Ok(caller) = gate.ask(&mangled) {
            prop_assert_eq!(gate.send(caller).read(), original.read(), "{:?}", mutations);
        }
    }
}

#[test]
fn changes_outside_the_signature_change_nothing() {
    let header = |name: &str, value: &str| Mutation::AddHeader {
        name: name.into(),
        value: value.into(),
    };
    let changes = [
        Mutation::ReverseParameters,
        Mutation::LowerCaseEscapes,
        Mutation::EncodeAll { index: 0 },
        header("x-y", "1"),
        header("x-flowgate-hold", "1s"),
    ];
    for (file, original) in CAPTURES.iter() {
        for change in &changes {
            let mut changed = original.clone();
            apply(change, &mut changed);
            let gate = Gate::new();
            let caller = gate
                .ask(&changed)
                .map_err(|refusal| format!("{file}, {change:?}: {refusal}"))
                .unwrap();
            assert_eq!(
                gate.send(caller).read(),
                original.read(),
                "{file}, {change:?}"
            );
        }
    }
}

#[test]
fn version_1_does_not_sign_whether_a_parameter_is_in_query_or_form() {
    let original = capture::load("py5_d_v2_ak.http");
    let index = capture::pairs(original.query())
        .iter()
        .position(|(name, _)| name == "FlowName")
        .unwrap();
    let mut moved = original.clone();
    apply(&Mutation::MoveToForm { index }, &mut moved);
    let gate = Gate::new();
    let sent = gate.send(gate.ask(&moved).unwrap());
    assert_eq!(
        (sent.body.as_slice(), sent.read()),
        (b"FlowName=flow_001".as_slice(), original.read())
    );
}
