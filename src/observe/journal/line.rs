//! The format of the journal: one JSON object per line, for the start or the end of an attempt. It
//! has no field for a secret, a signature or a nonce.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::acs;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Line<'a> {
    /// Written before the attempt's first byte leaves.
    Sent(SentLine<'a>),
    /// Written when the attempt has ended.
    Done(DoneLine<'a>),
    /// Written when an unknown outcome has ended.
    Resolved(ResolvedLine<'a>),
}

/// An attempt that is about to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SentLine<'a> {
    pub(crate) time: Cow<'a, str>,
    /// A name that is unique across processes.
    pub(crate) attempt: Cow<'a, str>,
    /// Flowgate's request id, as in its responses and its log.
    pub(crate) request_id: Cow<'a, str>,
    pub(crate) account: Cow<'a, str>,
    pub(crate) client: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) tenant: Option<Cow<'a, str>>,
    pub(crate) action: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) flow_name: Option<Cow<'a, str>>,
    /// The name of its record, if it has one.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) key: Option<Cow<'a, str>>,
    /// The fingerprint of its parameters.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) print: Option<Cow<'a, str>>,
    /// How repetitions of it are recognised.
    #[serde(skip_serializing_if = "OrderKind::is_keyed", default)]
    pub(crate) kind: OrderKind,
    /// The CustSpaceId of its flow.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) space: Option<Cow<'a, str>>,
    /// The categories of its flow.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub(crate) categories: Vec<Cow<'a, str>>,
    /// Whether it was sent although the store that replicas share could not record its key.
    #[serde(skip_serializing_if = "std::ops::Not::not", default)]
    pub(crate) unprotected: bool,
}

/// How repetitions of an order are recognised.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum OrderKind {
    /// By the idempotency key that they carry.
    #[default]
    Keyed,
    /// By their parameters: they carry no key.
    Equal,
    /// They are not: the record serves to look for the flow if its outcome is unknown.
    Single,
}

/// How an unknown outcome has ended.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ResolvedLine<'a> {
    pub(super) time: Cow<'a, str>,
    pub(super) attempt: Cow<'a, str>,
    pub(super) result: ResolvedAs,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) flow_id: Option<Cow<'a, str>>,
    /// What only an operator can judge.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) found: Option<Cow<'a, str>>,
}

/// The result of a [`ResolvedLine`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ResolvedAs {
    /// A look has found the flow.
    Created,
    /// Looks have proved that there is no flow.
    Absent,
    /// Looks have found something that only an operator can judge.
    Ambiguous,
    /// An operator has decided; with a FlowId, that the flow was created.
    Settled,
    /// It was unknown for too long.
    Forgotten,
}

/// How an attempt has ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct DoneLine<'a> {
    pub(super) time: Cow<'a, str>,
    pub(super) attempt: Cow<'a, str>,
    #[serde(rename = "result")]
    pub(super) outcome: Outcome,
    /// CAMS's code.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) code: Option<Cow<'a, str>>,
    /// Why the end is unknown.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) reason: Option<Cow<'a, str>>,
    /// CAMS's request id.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) cams_request_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) flow_id: Option<Cow<'a, str>>,
}

/// The outcome of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Ok,
    Throttled,
    UpstreamError,
    /// CAMS rejected Flowgate's signature.
    Credentials,
    /// CAMS may have processed it.
    #[default]
    Unknown,
    /// Nothing was sent.
    Unsent,
}

/// Formats a time as RFC 3339 with milliseconds.
pub(super) fn time(at: SystemTime) -> String {
    let millis = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since: Duration| since.subsec_millis());
    let seconds = acs::time::format(at);
    format!("{}.{millis:03}Z", seconds.trim_end_matches('Z'))
}

/// Returns the line that records that the attempt of a `SentLine` line was not sent; `None` for any
/// other line.
pub(super) fn unsent(sent: &[u8]) -> Option<Vec<u8>> {
    let Ok(Line::Sent(SentLine { attempt, .. })) = serde_json::from_slice(sent) else {
        return None;
    };
    let time = time(SystemTime::now()).into();
    Some(
        Line::Done(DoneLine {
            time,
            attempt,
            outcome: Outcome::Unsent,
            ..DoneLine::default()
        })
        .to_bytes(),
    )
}

// === impl ResolvedAs ===

impl ResolvedAs {
    /// Whether it counts after an earlier line of the same attempt. What a process finds ambiguous, another one
    /// may have ended.
    pub(super) fn may_follow(self, earlier: Option<Self>) -> bool {
        self != Self::Ambiguous || earlier.is_none_or(|earlier| earlier == Self::Ambiguous)
    }

    /// The label in metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Absent => "absent",
            Self::Ambiguous => "ambiguous",
            Self::Settled => "settled",
            Self::Forgotten => "forgotten",
        }
    }
}

// === impl OrderKind ===

impl OrderKind {
    #[expect(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde passes a reference"
    )]
    fn is_keyed(&self) -> bool {
        *self == Self::Keyed
    }
}

// === impl Line ===

impl Line<'_> {
    /// Serializes the line with its newline.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a line has only text fields");
        bytes.push(b'\n');
        bytes
    }
}
