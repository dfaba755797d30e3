//! Flowgate is a client-side rate-limiting proxy for Alibaba Cloud's CAMS API (Chat App Message
//! Service).
//!
//! Applications keep the stock Alibaba SDK and set its endpoint to Flowgate. Flowgate queues the
//! calls of each account, sends them at the rate that CAMS documents, signs every attempt with a
//! new nonce, retries what CAMS throttles, and returns CAMS's answer.
//!
//! This crate is the library behind the `flowgate` program. Its public items are what the program,
//! its tests and its benchmarks need; they are not a stable interface. [`config`] reads and checks
//! the configuration, [`App`] starts and runs the proxy, [`cli`] defines the command line.
//!
//! ```no_run
//! use flowgate::{App, config};
//!
//! # async fn example() -> anyhow::Result<()> {
//! let loaded = config::load(Some("flowgate.toml".as_ref()), std::env::vars_os())?;
//! App::start(loaded.config).await?.run().await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Map
//!
//! The modules in the order in which a call passes them:
//!
//! | module | what it does |
//! |---|---|
//! | `server` | accepts connections within their bounds, with TLS or without, and notices when a caller disconnects |
//! | `call::identify` | parses the request strictly, verifies the signature, and finds the account and the client |
//! | `call::body` | reads the whole body within its bounds of size and time |
//! | `call::classify`, `call::hold` | find the operation, whether the client may call it, its limit and its deadline |
//! | `call::credentials`, `credentials` | wait for the account's session, if Flowgate obtains it itself from STS, the metadata service or a URI |
//! | `limiter` | decides when the attempt may leave: queue, tokens, pauses, and the quota shared through Redis |
//! | `call::sign` | builds the request to CAMS, with a new nonce and signature for each attempt |
//! | `call::attempt`, `upstream` | send one attempt over a pooled connection and read its answer |
//! | `call::judge` | decides from the answer what CAMS did |
//! | `call::retry` | decides whether the call is answered now or queued again |
//! | `call::reply` | builds the answer that the caller reads |
//! | `observe` | records each call and attempt: metrics, log, traces, journal |
//!
//! `call` runs these steps in this order; start reading there. The other modules serve all of them:
//! `primitives` (small values), `acs` (Alibaba's wire format), `config`, `admin` (the status page
//! and its API), `process` (signals, systemd, hardening), `cli`, and `app`, where everything is
//! joined. ARCHITECTURE.md has the terms and the invariants.

pub(crate) mod acs;
mod admin;
mod app;
mod call;
pub mod cli;
pub mod config;
mod credentials;
pub(crate) mod error;
mod idempotency;
mod limiter;
pub mod observe;
mod operation;
pub mod primitives;
pub mod process;
mod server;
#[cfg(test)]
#[path = "../tests/it/redis.rs"]
mod servers;
mod store;
#[cfg(feature = "testing")]
#[doc(hidden)]
pub mod testing;
mod upstream;

pub use crate::app::App;
pub use crate::cli::new_client::{fits, new_client};
pub use crate::credentials::live::check_live;

/// The version, and the commit that it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");
