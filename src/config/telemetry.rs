//! What is told of calls, and where? Log lines, a journal of attempts, traces.

use std::path::PathBuf;

use super::Scheme;

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines, one object a line.
    Json,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// How lines look.
    pub format: LogFormat,
    /// The least severe level written by Flowgate itself; other crates never go below info.
    pub level: tracing::level_filters::LevelFilter,
}

/// `journal`.
#[derive(Clone, Debug)]
pub struct Journal {
    /// The file that is written now; older ones have a number behind the name.
    pub path: PathBuf,
    /// Bytes of one file.
    pub max_size: usize,
    /// Older files that are kept.
    pub keep: u32,
}

/// `[telemetry]`.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// None: calls are not traced, and a caller's trace is carried on.
    pub otlp: Option<Collector>,
    /// Of a hundred calls whose callers say nothing of a trace, so many begin one.
    pub sample_percent: u32,
}

/// Who takes traces: OTLP over HTTP, protobuf.
#[derive(Clone, Debug)]
pub struct Collector {
    /// In the clear or with TLS.
    pub scheme: Scheme,
    /// A name or an address, without brackets.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Host, and port if one was written, as in a `Host` header.
    pub authority: String,
}
