//! Idempotency keys: of all calls with one key of one client, CAMS executes at most one.
//!
//! `idempotency/key.rs` reads the key of a call, `idempotency/fingerprint.rs` names its record and
//! compares its parameters, `idempotency/record.rs` is the state of one record, and
//! `idempotency/records.rs` holds all of them. docs/exactly-once.md has the promises.

pub(crate) mod fingerprint;
pub(crate) mod key;
pub(crate) mod record;
pub(crate) mod records;
