//! A simulated CAMS endpoint, written after CAMS's API page. It answers as Alibaba would, and
//! records what it received.
//!
//! A call passes through the files in this order: `serve` reads it from a connection, `stamp` knows
//! when it arrived, `request` decodes it, `fault` may break it, `auth` checks key, time, signature
//! and nonce, `limit` counts it, `flows` acts on the flows, `answer` writes the response, `record`
//! keeps it. [`Sim`] joins them. No code is shared with Flowgate: a mistake in both would pass every
//! test.
//!
//! Alibaba's sources of temporary keys are here too. A call of STS comes to the same address as one of
//! CAMS; `sts` performs it. [`Sim::metadata`] serves an instance's metadata service and a credentials
//! URI. What they issue, `session`, is a caller of CAMS until its end; `credential_request` keeps
//! what was asked, without its secrets.
//!
//! [`Sim::start`] listens on a free port of this machine. [`Sim::answer`] and
//! [`Sim::serve_connection`] need no socket, so a test can run hours of simulated time. What is
//! undocumented about the real CAMS is a setting: how the window moves, whether refused calls
//! count, whether retry hints are sent.
//!
//! ```
//! # tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap().block_on(async {
//! use cams_sim::{Answer, Settings, Sim};
//! let sim = Sim::new(Settings { check_signatures: false, ..Settings::default() });
//! let call = || hyper::Request::post("/?Action=CreateFlow&Version=2020-06-06&Format=JSON&FlowName=a&Categories=%5B%22OTHER%22%5D");
//! for _ in 0..6 {
//!     sim.answer(call().header("host", "cams").body(bytes::Bytes::new()).unwrap()).await;
//! }
//! let report = sim.report();
//! assert_eq!((report.accepted, report.refused, report.worst_window), (5, 1, 6));
//! # });
//! ```

mod answer;
mod auth;
mod credential_request;
mod date;
mod fault;
mod flows;
mod limit;
mod metadata;
mod record;
mod refusal;
mod request;
mod serve;
mod session;
mod settings;
mod signature;
mod sim;
mod stamp;
mod sts;
#[cfg(test)]
mod testing;

pub use answer::Answer;
pub use credential_request::{CredentialRequest, fingerprint};
pub use fault::{Fault, Rule, Throttle, When};
pub use flows::{Flow, NewFlow, Status};
pub use limit::{Kind, Limit};
pub use record::{Arrival, Report, Verdict};
pub use refusal::Hints;
pub use request::Scheme;
pub use serve::Running;
pub use settings::{
    FlowSettings, Key, MetadataSettings, Role, Settings, StsSettings, parse_duration, parse_skew,
};
pub use sim::Sim;
pub use stamp::{receive, stamp};
