//! Configuration of the log, the journal and traces.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use super::Scheme;

/// Format of log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// Human-readable text.
    Text,
    /// One JSON object per line.
    Json,
}

/// `[log]`.
#[derive(Clone, Debug, Serialize)]
pub struct Log {
    /// Format of log lines.
    pub format: LogFormat,
    /// The least severe level that Flowgate logs. Other crates log at info at most.
    #[serde(serialize_with = "super::serializers::text")]
    pub level: tracing::level_filters::LevelFilter,
}

/// `journal`.
#[derive(Clone, Debug, Serialize)]
pub struct Journal {
    /// The current file. Rotated files have a number after the name.
    #[serde(serialize_with = "super::serializers::path")]
    pub path: PathBuf,
    /// Size at which a file is rotated, in bytes.
    #[serde(serialize_with = "super::serializers::size")]
    pub max_size: usize,
    /// Number of rotated files that are kept.
    pub keep: u32,
}

/// `[telemetry]`.
#[derive(Clone, Debug, Serialize)]
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

// === impl Collector ===

/// Its URL, without the path that every collector has.
impl Serialize for Collector {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{}://{}", self.scheme, self.authority))
    }
}
