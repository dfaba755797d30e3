//! What does one line of the journal say? That an attempt is sent, by whom and for what, or how it has ended: an object of
//! JSON, in the order in which people look for it. No secret, signature or nonce has a field here.

use std::borrow::Cow;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::acs;

/// One line.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Line<'a> {
    /// Written before the attempt's first byte leaves.
    Sent(Sent<'a>),
    /// Written when the attempt has ended.
    Done(Done<'a>),
}

/// An attempt that is about to leave.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Sent<'a> {
    pub(crate) time: Cow<'a, str>,
    /// Its name, which no other attempt of any process has.
    pub(crate) attempt: Cow<'a, str>,
    /// Flowgate's own name for the call, in its answers and in the log.
    pub(crate) request_id: Cow<'a, str>,
    pub(crate) account: Cow<'a, str>,
    pub(crate) client: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) tenant: Option<Cow<'a, str>>,
    pub(crate) action: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(crate) flow_name: Option<Cow<'a, str>>,
}

/// How an attempt has ended.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Done<'a> {
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
    /// CAMS's name for the attempt.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) cams_request_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) flow_id: Option<Cow<'a, str>>,
}

/// What came of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Outcome {
    Ok,
    Throttled,
    UpstreamError,
    /// CAMS does not take the signature that Flowgate made.
    Credentials,
    /// CAMS may have done it.
    #[default]
    Unknown,
    /// Nothing left this process.
    Unsent,
}

/// RFC 3339 with milliseconds.
pub(super) fn time(at: SystemTime) -> String {
    let millis = at
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since: Duration| since.subsec_millis());
    let seconds = acs::time::format(at);
    format!("{}.{millis:03}Z", seconds.trim_end_matches('Z'))
}

/// The line that says that the attempt of this one did not leave; none if it is no such line.
pub(super) fn unsent(sent: &[u8]) -> Option<Vec<u8>> {
    let Ok(Line::Sent(Sent { attempt, .. })) = serde_json::from_slice(sent) else {
        return None;
    };
    let time = time(SystemTime::now()).into();
    Some(
        Line::Done(Done {
            time,
            attempt,
            outcome: Outcome::Unsent,
            ..Done::default()
        })
        .to_bytes(),
    )
}

// === impl Line ===

impl Line<'_> {
    /// With the newline.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = serde_json::to_vec(self).expect("a line's fields are texts");
        bytes.push(b'\n');
        bytes
    }
}
