//! Temporary credentials that Flowgate obtains and refreshes itself.
//!
//! `credentials/keepers.rs` holds one keeper per source of the configuration. A keeper
//! (`credentials/keeper.rs`) has the session to sign with, refreshes it in the background by the
//! times of `credentials/schedule.rs`, and lets calls wait for it; never more than one request of a
//! source is under way, and `credentials/service_limits.rs` bounds those of all sources of a service,
//! which `credentials/pacing.rs` paces.
//! `credentials/obtain.rs` is what a keeper asks. `credentials/fetch.rs` obtains one session: it asks
//! STS (`credentials/sts.rs`, with the token of `credentials/oidc_token.rs`), the metadata service
//! (`credentials/metadata.rs`) or a URI
//! (`credentials/uri.rs`) over its own connection (`credentials/http.rs`), and reads the answer
//! (`credentials/answer.rs`). `credentials/error.rs` says why there is none, without a secret.
//! `credentials/live.rs` is `flowgate check --live`.

pub(crate) mod answer;
pub(crate) mod error;
pub(crate) mod fetch;
pub(crate) mod http;
pub(crate) mod keeper;
pub(crate) mod keepers;
pub(crate) mod live;
mod metadata;
mod obtain;
mod oidc_token;
mod pacing;
mod schedule;
#[cfg(test)]
mod scripted;
mod service_limits;
pub(crate) mod session;
#[cfg(test)]
mod simulated;
mod sts;
pub(crate) mod uri;
