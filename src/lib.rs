//! Flowgate: a client-side rate-limiting proxy for Alibaba Cloud's CAMS API.
//!
//! # Layout
//!
//! One call's way, in order:
//!
//! | step | question |
//! |---|---|
//! | `server.rs` | who comes in, and on what terms? |
//! | `call/identify.rs` | who is asking, and is it really them? |
//! | `call/body.rs` | has the whole request come? |
//! | `call/classify.rs` | which operation is it, may they, is it limited? |
//! | `limiter.rs` | may this attempt leave now? |
//! | `call/sign.rs` | what goes to CAMS? |
//! | `call/attempt.rs`, `upstream.rs` | how does it get there, and what came back? |
//! | `call/judge.rs` | what happened? |
//! | `call/retry.rs` | what now? |
//! | `call/reply.rs`, `observe/record.rs` | what does the caller read, and what do we write down? |
//!
//! `call.rs` calls them in this order and is the table of contents. Beside it stand the parts that are always there:
//! `acs` (Alibaba's wire rules), `config`, `observe`, `process`, `admin`, and `app`, where they are joined. The public
//! surface is what `main` and the tests need: [`config`], [`App`], [`cli`], [`observe`] and [`process`].

pub(crate) mod acs;
mod admin;
mod app;
mod call;
pub mod cli;
pub mod config;
pub(crate) mod error;
mod limiter;
pub mod observe;
mod operation;
pub mod primitives;
pub mod process;
mod server;
#[cfg(test)]
#[path = "../tests/it/redis.rs"]
mod servers;
#[doc(hidden)]
pub mod testing;
mod upstream;

pub use crate::app::App;
pub use crate::cli::new_client::new_client;

/// The version, and the commit that it was built from.
pub const VERSION: &str = concat!(env!("CARGO_PKG_VERSION"), " (", env!("BUILD_COMMIT"), ")");
