//! Idempotency keys: of all calls with one key of one client, CAMS executes at most one.
//!
//! `idempotency/key.rs` reads the key of a call, `idempotency/fingerprint.rs` names its record and
//! compares its parameters, `idempotency/record.rs` is the state of one record, and
//! `idempotency/records.rs` holds all of them, and `idempotency/shared.rs` shares them with other
//! replicas. docs/exactly-once.md has the promises.

pub(crate) mod fingerprint;
pub(crate) mod key;
pub(crate) mod looks;
pub(crate) mod record;
pub(crate) mod records;
pub(crate) mod shared;

/// What an answer has to do with the key of its call: the value of `x-flowgate-idempotency`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeyState {
    /// The call was sent for this caller.
    First,
    /// An earlier call of the key was still under way, and this caller has waited for it.
    Attached,
    /// An earlier call of the key has created the flow.
    Replayed,
    /// The answer was lost, and Flowgate has found the flow.
    Resolved,
    /// The call has no key, and an equal one has created the flow.
    Adopted,
    /// The call of the key is still under way.
    Pending,
    /// The outcome of the key's call is unknown.
    Unknown,
    /// Another order has the key.
    Mismatch,
    /// The call was refused for another reason, and nothing of it is kept.
    Refused,
}

// === impl KeyState ===

impl KeyState {
    /// All states.
    pub(crate) const ALL: [Self; 9] = [
        Self::First,
        Self::Attached,
        Self::Replayed,
        Self::Resolved,
        Self::Adopted,
        Self::Pending,
        Self::Unknown,
        Self::Mismatch,
        Self::Refused,
    ];

    /// The value of the header.
    pub(crate) fn label(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Attached => "attached",
            Self::Replayed => "replayed",
            Self::Resolved => "resolved",
            Self::Adopted => "adopted",
            Self::Pending => "pending",
            Self::Unknown => "unknown",
            Self::Mismatch => "mismatch",
            Self::Refused => "refused",
        }
    }
}
