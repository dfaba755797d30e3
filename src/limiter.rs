//! Decides when an attempt may leave. Each limited action of each account has a lane. In it calls
//! wait in fair order until a connection is ready, no pause is in force and a token is free. The
//! result is a [`SendPermit`], the right to send one attempt, which only this module makes.
//!
//! | file | what it is |
//! |---|---|
//! | `lane.rs` | one lane as a state machine: events and the time go in, effects come out (`lane/events.rs`) |
//! | `fair.rs`, `source.rs`, `tokens.rs`, `pause.rs`, `pace.rs`, `forecast.rs`, `token_returns.rs`, `wait.rs`, `shadow.rs` | the parts of a lane; they only decide |
//! | `registry.rs`, `inner.rs`, `handle.rs`, `worker.rs`, `permit.rs`, `connector.rs`, `routes.rs` | all lanes, the state that they share, a lane's lock, its worker task, the right to send, the source of connections, the source of each account |
//! | `rules.rs`, `drain.rs`, `commands.rs`, `refusals.rs`, `view.rs` | configuration, drain deadlines, operators' commands, refusal texts, the lanes as operators see them |
//! | `shared/` | the quota that replicas share: tokens dealt by a store |

mod commands;
mod connector;
mod drain;
pub(crate) mod fair;
mod forecast;
mod handle;
mod inner;
mod lane;
pub(crate) mod pace;
pub(crate) mod pause;
mod permit;
mod refusals;
mod registry;
mod routes;
mod rules;
mod shadow;
pub(crate) mod shared;
mod source;
#[cfg(test)]
mod tests;
mod token_returns;
pub(crate) mod tokens;
mod view;
mod wait;
mod worker;

pub(crate) use crate::limiter::commands::{Command, CommandResult};
pub(crate) use crate::limiter::connector::Connector;
pub(crate) use crate::limiter::permit::{Receipt, SendPermit};
pub(crate) use crate::limiter::refusals::draining;
pub(crate) use crate::limiter::registry::{LimitedCall, Limiter};
pub(crate) use crate::limiter::routes::Routes;
pub(crate) use crate::limiter::view::{LaneView, OperatorPauseView, TenantView};
