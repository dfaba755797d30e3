//! The operations on shared records: each builds the call of a script, and reads its answer.

use std::fmt;
use std::time::Duration;

use redis::{FromRedisValue, Value};
use tokio::time::Instant;

use crate::idempotency::fingerprint::{Fingerprint, FlowNameHash, RecordName};
use crate::idempotency::record::{Created, Order, Resolution, UnknownOutcome};

/// An operation on the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    Claim,
    Mark,
    Settle,
    Resolve,
    TakeFlow,
    Publish,
    Beat,
    /// The first heartbeat over a connection.
    Greet,
    /// The last one.
    Leave,
}

/// One run of a script.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) op: Op,
    pub(crate) keys: Vec<String>,
    pub(crate) args: Vec<Vec<u8>>,
}

/// The name of one claim: the call, which is Flowgate's id of the request that it began with, and the claim's
/// number of this call. A call that has lost its claim makes another one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimId {
    pub(crate) call: Box<str>,
    pub(crate) number: u32,
}

/// One claim of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KeyClaim {
    pub(crate) name: RecordName,
    pub(crate) id: ClaimId,
    pub(crate) print: Fingerprint,
    /// Not of an order whose flow cannot be looked for, nor of one that is not known any more.
    pub(crate) flow_name: Option<FlowNameHash>,
}

/// What a replica finds in the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SharedState {
    /// The key is claimed for this replica.
    Mine,
    /// There is no record; nothing was claimed.
    Absent,
    /// A call has claimed the key, and has sent nothing yet.
    Claimed(SharedRecord),
    /// An attempt of a call is under way.
    Open(SharedRecord),
    /// CAMS has created the flow.
    Done(Created),
    /// CAMS may have created the flow.
    Unknown(SharedRecord),
    /// Another order has the key.
    Mismatch,
    /// A replica may know more that it has not published yet.
    Gated,
}

/// A key whose call has not ended, or whose outcome is unknown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SharedRecord {
    /// The calls that have claimed the key. Of several the outcome is unknown.
    pub(crate) calls: Vec<Box<str>>,
    /// CAMS's request id.
    pub(crate) request_id: Option<Box<str>>,
    /// Time until no attempt of it can be signed any more, at the answer; negative if that has
    /// passed. In milliseconds.
    pub(crate) until_ms: i64,
}

/// The answer of `claim`, and of operations that answer what the store has instead of what they were for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct StateAnswer {
    pub(crate) epoch: Box<str>,
    pub(crate) state: SharedState,
}

/// The answer of `mark`.
pub(crate) struct MarkAnswer {
    pub(crate) epoch: Box<str>,
    pub(crate) is_open: bool,
}

/// The answer of `settle` and `resolve`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct SettleAnswer {
    pub(crate) epoch: Box<str>,
    pub(crate) settled: Settled,
}

/// What has become of an end that the store was told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Settled {
    Yes,
    /// The flow is another call's.
    FlowOfAnother,
    /// The store has another state of the key, which holds.
    Kept(SharedState),
}

/// The answer of `take_flow`.
pub(crate) struct TakeAnswer {
    pub(crate) epoch: Box<str>,
    pub(crate) taken: Taken,
}

/// Whether a flow is that of a call whose outcome is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Taken {
    /// It belongs to this call, or to none.
    Mine,
    /// It belongs to another call.
    Owned,
    /// Another call of the same flow name is under way.
    OtherOpen,
    /// Another call of the same flow name has an unknown outcome, too.
    OtherUnknown,
    /// A replica may know another call that it has not published yet.
    Gated,
}

/// How it was learned that a call has created a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LearnedBy {
    /// By a look: other calls of the flow's name must not be under way or unknown.
    Look,
    /// By an operator's word, which is yet to be recorded.
    Word,
    /// By CAMS's answer to a call without a key.
    Answer,
}

/// The answer of a heartbeat.
pub(crate) struct BeatAnswer {
    pub(crate) epoch: Box<str>,
    /// The other replicas, each with the time since its last heartbeat.
    pub(crate) members: Vec<(Box<str>, Duration)>,
}

/// How a call has ended, or an unknown outcome is resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum SharedEnd {
    /// CAMS has created the flow.
    Done(Created),
    /// CAMS may have created the flow.
    Unknown { request_id: Option<Box<str>> },
    /// CAMS has executed nothing of the claim.
    Released,
    /// A look has found the flow. This end and those below hold only while the outcome is unknown.
    Found(Created),
    /// The flow was not found after the time in which CAMS may execute the call.
    Absent,
    /// An operator says that CAMS has created the flow.
    SettledCreated(Created),
    /// An operator says that CAMS has executed nothing.
    SettledNotCreated,
}

/// An end, and whose it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Settlement {
    pub(crate) claim: KeyClaim,
    pub(crate) end: SharedEnd,
    /// Nothing of it was signed later.
    pub(crate) signed_until: Instant,
}

/// A record of this replica that it publishes: how the call has ended, or `None` while an attempt
/// may be under way.
#[derive(Clone, Debug)]
pub(crate) struct Published {
    pub(crate) claim: KeyClaim,
    /// `Done` or `Unknown`.
    pub(crate) end: Option<SharedEnd>,
    pub(crate) signed_until: Instant,
    /// How long the record is kept.
    pub(crate) lifetime: Duration,
}

/// The ids of a record, empty if unknown.
pub(super) struct Ids<'a> {
    pub(super) request_id: &'a str,
    pub(super) flow_id: &'a str,
}

/// Reads the epoch that `publish` answers.
pub(super) fn published_epoch(answer: Value) -> Option<Box<str>> {
    let (epoch, _states): (String, String) = redis::from_redis_value(answer).ok()?;
    Some(epoch.into())
}

/// Milliseconds from `now` to `then`, negative if it has passed.
pub(super) fn offset_ms(then: Instant, now: Instant) -> i64 {
    let ms = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
    match now.checked_duration_since(then) {
        // Rounded so that the time is never earlier than it is.
        Some(passed) => -ms(passed),
        None => ms(then - now).saturating_add(1),
    }
}

/// A request id that fits into a record: what CAMS writes is a UUID.
fn plain(id: &str) -> &str {
    let is_plain = id.len() <= 64 && !id.contains(['|', '\n']);
    if is_plain { id } else { "" }
}

fn text(value: &[String], at: usize) -> Option<&str> {
    value.get(at).map(String::as_str)
}

fn strings(answer: Value) -> Option<Vec<String>> {
    Vec::from_redis_value(answer).ok()
}

// === impl Settlement ===

impl Settlement {
    /// Nothing of this claim was sent, or CAMS has refused all of it.
    pub(crate) fn released(claim: &KeyClaim, now: Instant) -> Self {
        Self {
            claim: claim.clone(),
            end: SharedEnd::Released,
            signed_until: now,
        }
    }
}

// === impl Op ===

impl Op {
    /// The script of the operation.
    pub(crate) fn source(self) -> &'static str {
        macro_rules! script {
            ($name:literal) => {
                concat!(include_str!("prelude.lua"), "\n", include_str!($name))
            };
        }
        match self {
            Self::Claim => script!("claim.lua"),
            Self::Mark => script!("mark.lua"),
            Self::Settle => script!("settle.lua"),
            Self::Resolve => script!("resolve.lua"),
            Self::TakeFlow => script!("take_flow.lua"),
            Self::Publish => script!("publish.lua"),
            Self::Beat | Self::Greet | Self::Leave => script!("beat.lua"),
        }
    }

    /// The label of the metrics.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::Claim => "claim",
            Self::Mark => "mark",
            Self::Settle => "settle",
            Self::Resolve => "resolve",
            Self::TakeFlow => "take_flow",
            Self::Publish => "publish",
            Self::Beat | Self::Greet | Self::Leave => "key_beat",
        }
    }

    /// The name that the script knows it by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Greet => "greet",
            Self::Leave => "leave",
            _ => "beat",
        }
    }
}

// === impl ClaimId ===

impl ClaimId {
    /// Stands for all claims of a call.
    pub(crate) fn of_call(call: &str) -> Self {
        Self {
            call: call.into(),
            number: 0,
        }
    }

    /// The next claim of the call.
    pub(crate) fn next(&self) -> Self {
        Self {
            call: self.call.clone(),
            number: self.number + 1,
        }
    }
}

impl fmt::Display for ClaimId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.call, self.number)
    }
}

// === impl SharedRecord ===

impl SharedRecord {
    fn read(fields: &[String]) -> Option<Self> {
        let request_id = text(fields, 4)?;
        let claims = text(fields, 2)?.split(' ');
        let call = |claim: &str| claim.rsplit_once(':').map(|(call, _)| call.into());
        Some(Self {
            calls: claims.map(call).collect::<Option<_>>()?,
            request_id: (!request_id.is_empty()).then(|| request_id.into()),
            until_ms: text(fields, 3)?.parse().ok()?,
        })
    }

    /// Whether it is about this call, or about this one, too.
    pub(crate) fn is_of(&self, call: &str) -> bool {
        self.calls.iter().any(|own| **own == *call)
    }
}

// === impl SharedState ===

impl SharedState {
    /// How the store says that a call has ended whose outcome is unknown here. `None`: it does not say so.
    pub(crate) fn end_of(&self, outcome: &UnknownOutcome) -> Option<Resolution> {
        match self {
            Self::Done(created) => Some(Resolution::CreatedElsewhere(created.clone())),
            Self::Claimed(record) | Self::Open(record) | Self::Unknown(record)
                if record.is_of(&outcome.order.request_id) =>
            {
                None
            }
            // Nothing was created, and the key is free or has its next call.
            Self::Claimed(_) | Self::Open(_) | Self::Unknown(_) | Self::Absent | Self::Mismatch => {
                Some(Resolution::Absent)
            }
            Self::Mine | Self::Gated => None,
        }
    }

    fn read(fields: &[String]) -> Option<Self> {
        let record = || SharedRecord::read(fields);
        Some(match text(fields, 1)? {
            "mine" => Self::Mine,
            "absent" => Self::Absent,
            "gated" => Self::Gated,
            "mismatch" => Self::Mismatch,
            "c" => Self::Claimed(record()?),
            "o" => Self::Open(record()?),
            "u" => Self::Unknown(record()?),
            "d" => Self::Done(Created {
                flow_id: text(fields, 5)?.into(),
                request_id: text(fields, 4).filter(|id| !id.is_empty()).map(Into::into),
            }),
            _ => return None,
        })
    }
}

// === impl KeyClaim ===

impl KeyClaim {
    /// A claim of this order.
    pub(crate) fn of(name: RecordName, order: &Order, id: ClaimId) -> Self {
        Self {
            name,
            id,
            print: order.fingerprint,
            flow_name: order.flow_name_hash(),
        }
    }
}

// === impl StateAnswer ===

impl StateAnswer {
    pub(crate) fn read(answer: Value) -> Option<Self> {
        let fields = strings(answer)?;
        let epoch = text(&fields, 0)?.into();
        let state = SharedState::read(&fields)?;
        Some(Self { epoch, state })
    }
}

// === impl MarkAnswer ===

impl MarkAnswer {
    pub(crate) fn read(answer: Value) -> Option<Self> {
        let fields = strings(answer)?;
        let is_open = match text(&fields, 1)? {
            "open" => true,
            "lost" => false,
            _ => return None,
        };
        let epoch = text(&fields, 0)?.into();
        Some(Self { epoch, is_open })
    }
}

// === impl SettleAnswer ===

impl SettleAnswer {
    pub(crate) fn read(answer: Value) -> Option<Self> {
        let fields = strings(answer)?;
        let epoch = text(&fields, 0)?.into();
        let settled = match text(&fields, 1)? {
            "settled" => Settled::Yes,
            "owned" => Settled::FlowOfAnother,
            _ => Settled::Kept(SharedState::read(&fields)?),
        };
        Some(Self { epoch, settled })
    }
}

// === impl TakeAnswer ===

impl TakeAnswer {
    pub(crate) fn read(answer: Value) -> Option<Self> {
        let fields = strings(answer)?;
        let taken = match text(&fields, 1)? {
            "taken" => Taken::Mine,
            "owned" => Taken::Owned,
            "open" => Taken::OtherOpen,
            "unknown" => Taken::OtherUnknown,
            "gated" => Taken::Gated,
            _ => return None,
        };
        let epoch = text(&fields, 0)?.into();
        Some(Self { epoch, taken })
    }
}

// === impl BeatAnswer ===

impl BeatAnswer {
    pub(crate) fn read(answer: Value) -> Option<Self> {
        let fields = strings(answer)?;
        let epoch = text(&fields, 0)?.into();
        let members = fields[1..].chunks_exact(2).map(|member| {
            let silent = member[1].parse().ok()?;
            Some((member[0].as_str().into(), Duration::from_millis(silent)))
        });
        Some(Self {
            epoch,
            members: members.collect::<Option<_>>()?,
        })
    }
}

// === impl LearnedBy ===

impl LearnedBy {
    /// The name that the script knows it by.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Look => "look",
            Self::Word => "word",
            Self::Answer => "answer",
        }
    }
}

// === impl SharedEnd ===

impl SharedEnd {
    /// The name that the scripts know it by.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Done(_) | Self::Found(_) | Self::SettledCreated(_) => "d",
            Self::Unknown { .. } => "u",
            Self::Released => "released",
            Self::Absent => "absent",
            Self::SettledNotCreated => "not_created",
        }
    }

    /// Who says so, if it is the end of an unknown outcome.
    pub(super) fn resolved_by(&self) -> Option<LearnedBy> {
        match self {
            Self::Done(_) | Self::Unknown { .. } | Self::Released => None,
            Self::Found(_) | Self::Absent => Some(LearnedBy::Look),
            Self::SettledCreated(_) | Self::SettledNotCreated => Some(LearnedBy::Word),
        }
    }

    pub(super) fn is_done(&self) -> bool {
        matches!(
            self,
            Self::Done(_) | Self::Found(_) | Self::SettledCreated(_)
        )
    }

    pub(super) fn ids(&self) -> Ids<'_> {
        let (request_id, flow_id) = match self {
            Self::Done(created) | Self::Found(created) | Self::SettledCreated(created) => {
                (created.request_id.as_deref(), &*created.flow_id)
            }
            Self::Unknown { request_id } => (request_id.as_deref(), ""),
            Self::Released | Self::Absent | Self::SettledNotCreated => (None, ""),
        };
        Ids {
            request_id: plain(request_id.unwrap_or_default()),
            flow_id,
        }
    }
}
