//! Flowgate: a client-side rate-limiting proxy for Alibaba Cloud's CAMS API.
//!
//! # Layout
//!
//! One call's way, in order:
//!
//! | step | question |
//! |---|---|
//! | `flow/listen.rs` | who comes in, and on what terms? |
//! | `flow/identify.rs` | who is asking, and is it really them? |
//! | `flow/body.rs` | has the whole request come? |
//! | `flow/classify.rs` | which operation is it, may they, is it limited? |
//! | `limiter.rs` | may this attempt leave now? |
//! | `flow/sign.rs` | what goes to CAMS? |
//! | `flow/attempt.rs`, `flow/forward.rs` | how does it get there, and what came back? |
//! | `flow/judge.rs` | what happened? |
//! | `flow/retry.rs` | what now? |
//! | `flow/reply.rs`, `flow/record.rs` | what does the caller read, and what do we write down? |
//!
//! `flow.rs` calls them in this order and is the table of contents. Beside it stand the parts that are always there:
//! `acs` (Alibaba's wire rules), `config`, `metrics`, `admin`, `shutdown`, `telemetry`, and `app`, where they are
//! joined. The public surface is what `main` and the tests need: [`config`], [`App`], [`cli`] and [`telemetry`].

mod flow;

pub(crate) mod acs;
pub(crate) mod error;
pub mod id;
pub mod secret;

pub mod config;

mod admin;
mod app;
#[doc(hidden)]
pub mod bench_support;
pub mod cli;
#[doc(hidden)]
pub mod fuzz_support;
pub mod hardening;
pub mod journal;
mod limiter;
mod metrics;
mod names;
mod new_client;
mod otlp;
mod parts;
mod reload;
mod room;
#[cfg(test)]
#[path = "../tests/it/redis.rs"]
mod servers;
mod settings;
mod shutdown;
mod start_error;
pub mod systemd;
pub mod telemetry;

pub use crate::app::App;
pub use crate::new_client::new_client;

/// The version, and the commit that it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");
