//! Configuration of the log, the journal and traces.

use std::path::PathBuf;

use super::Scheme;

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[log]`.
#[derive(Clone, Debug)]
pub struct Log {
    /// Format of log lines.
    pub format: LogFormat,
    /// The least severe level that Flowgate logs. Other crates log at info at most.
    pub level: tracing::level_filters::LevelFilter,
}

/// `journal`.
#[derive(Clone, Debug)]
pub struct Journal {
    /// The current file. Rotated files have a number after the name.
    pub path: PathBuf,
    /// Size at which a file is rotated, in bytes.
    pub max_size: usize,
    /// Number of rotated files that are kept.
    pub keep: u32,
}

/// `[telemetry]`.
#[derive(Clone, Debug)]
pub struct Telemetry {
    /// Where traces are exported. `None`: calls are not traced, and a caller's trace headers are
    /// forwarded unchanged.
    pub otlp: Option<Collector>,
    /// Percentage of calls without trace headers that start a trace.
    pub sample_percent: u32,
}

/// An OTLP collector: HTTP with protobuf.
#[derive(Clone, Debug)]
pub struct Collector {
    /// Plaintext or TLS.
    pub scheme: Scheme,
    /// A name or an address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
    /// The host, with the port if one was configured, as in a `Host` header.
    pub authority: String,
}
