//! Looks: how Flowgate finds out what became of a CreateFlow whose answer was lost. For accounts
//! whose flows have unique names (`flow_names = "unique"`) it lists the flows of the space until it
//! finds the flow, or has proof that there is none.
//!
//! `looks/schedule.rs` says when to look, `looks/decision.rs` what the flows prove, and
//! `looks/names.rs` which names could be the same flow. No I/O and no clock; `call/looks.rs` asks
//! CAMS.

mod decision;
mod names;
mod schedule;

pub(crate) use self::decision::{
    Evidence, FLOW_OF_ANOTHER, FlowStatus, Others, Verdict, Wanted, candidate_id, decide,
};
use self::schedule::BETWEEN_SWEEPS;
pub(crate) use self::schedule::{Look, LookKind, Schedule, Watch};
