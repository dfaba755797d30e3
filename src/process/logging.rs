//! Log lines: text or JSON on standard error, one line per event.
//!
//! A bounded queue decouples calls from a slow reader: lines are dropped and counted, calls never
//! wait.
//! `RUST_LOG` is not read. Other crates log at info at most, because their debug output may contain
//! callers' data.

use std::fmt;
use std::io::{self, IsTerminal};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use tracing::field::Field;
use tracing::level_filters::LevelFilter;
use tracing::{Subscriber, error};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::format::{self, Writer};
use tracing_subscriber::fmt::{self as lines, MakeWriter};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, reload};

use crate::config::{Log, LogFormat};

/// Maximum number of queued lines; further lines are dropped.
const MAX_LINES: usize = 8192;

/// Handle to change the level.
type Levels = reload::Handle<Targets, Registry>;

static LEVELS: OnceLock<Levels> = OnceLock::new();
static DROPPED: OnceLock<ErrorCounter> = OnceLock::new();

/// Starts the log, and logs panics as events. Lines are written while the guard lives.
pub fn init(log: &Log) -> Result<WorkerGuard, TryInitError> {
    let (queue, guard) = NonBlockingBuilder::default()
        .buffered_lines_limit(MAX_LINES)
        .lossy(true)
        .finish(io::stderr());
    let dropped = queue.error_counter();
    let (subscriber, levels) = subscriber(log, io::stderr().is_terminal(), queue);
    subscriber.try_init()?;
    drop(DROPPED.set(dropped));
    drop(LEVELS.set(levels));
    std::panic::set_hook(Box::new(report));
    Ok(guard)
}

/// Number of lines that were dropped since the start, because the queue was full.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED
        .get()
        .map_or(0, |dropped| dropped.dropped_lines() as u64)
}

/// Changes the least severe level that is logged.
pub(crate) fn set_level(level: LevelFilter) {
    if let Some(handle) = LEVELS.get() {
        // Fails only if the subscriber has been dropped.
        drop(handle.reload(levels(level)));
    }
}

fn subscriber<W>(
    log: &Log,
    ansi: bool,
    writer: W,
) -> (impl Subscriber + Send + Sync + use<W>, Levels)
where
    W: for<'w> MakeWriter<'w> + Send + Sync + 'static,
{
    let lines = match log.format {
        LogFormat::Text => lines::layer()
            .with_ansi(ansi)
            .with_writer(writer)
            .fmt_fields(format::debug_fn(write_field).delimited(" "))
            .boxed(),
        LogFormat::Json => lines::layer()
            .json()
            .flatten_event(true)
            .with_ansi(false)
            .with_writer(writer)
            .boxed(),
    };
    let (levels, handle) = reload::Layer::new(levels(log.level));
    (
        tracing_subscriber::registry().with(lines.with_filter(levels)),
        handle,
    )
}

fn levels(own: LevelFilter) -> Targets {
    Targets::new()
        .with_target(env!("CARGO_CRATE_NAME"), own)
        .with_default(own.min(LevelFilter::INFO))
}

/// Logs a panic's location but not its message, which may contain callers' data.
fn report(info: &PanicHookInfo<'_>) {
    let location = info.location().map(ToString::to_string);
    error!(location, thread = std::thread::current().name(), "panic");
}

/// Writes a field of a text line. A value with spaces is in quotes, however it was recorded, so that
/// its end is seen. Control characters are escaped, so that an event is one line.
fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let is_message = field.name() == "message";
    if !is_message {
        write!(writer, "{}=", field.name())?;
    }
    let text = format!("{value:?}");
    let is_whole = is_message || is_quoted(&text) || !text.contains(['"', ' ']);
    let breaks_a_line = |char: char| char.is_control() || char != ' ' && char.is_whitespace();
    if is_whole && !text.contains(breaks_a_line) {
        writer.write_str(&text)
    } else {
        write!(writer, "{text:?}")
    }
}

/// Whether the text is a quoted string, with no other quote in it than escaped ones.
fn is_quoted(text: &str) -> bool {
    let inner = text
        .strip_prefix('"')
        .and_then(|text| text.strip_suffix('"'));
    inner.is_some_and(|inner| {
        let mut is_escaped = false;
        let is_inside = inner.chars().all(|char| {
            let was_escaped = std::mem::take(&mut is_escaped);
            is_escaped = char == '\\' && !was_escaped;
            char != '"' || was_escaped
        });
        is_inside && !is_escaped
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info, trace};

    use super::*;

    #[derive(Clone, Default)]
    struct Page(Arc<Mutex<Vec<u8>>>);

    impl Write for Page {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Returns the lines that `work` logs, without their times.
    fn logged(format: LogFormat, level: LevelFilter, work: impl FnOnce()) -> Vec<String> {
        let page = Page::default();
        let writer = page.clone();
        let (subscriber, _levels) =
            subscriber(&Log { format, level }, false, move || writer.clone());
        tracing::subscriber::with_default(subscriber, work);
        let text = String::from_utf8(page.0.lock().unwrap().clone()).unwrap();
        text.lines()
            .map(|line| {
                line.split_once(' ')
                    .map_or(line, |(_, rest)| rest)
                    .trim()
                    .to_owned()
            })
            .collect()
    }

    #[test]
    fn an_event_with_control_characters_is_one_line() {
        let name = "a\nERROR forged\u{1b}[2J\r\u{85}";
        let lines = logged(LogFormat::Text, LevelFilter::INFO, || {
            info!(flow = name, "a string");
            info!(flow = %name, "a value");
            info!("{name}");
        });
        let target = "INFO flowgate::process::logging::tests:";
        let escaped = r"a\nERROR forged\u{1b}[2J\r\u{85}";
        assert_eq!(
            lines,
            [
                format!(r#"{target} a string flow="{escaped}""#),
                format!(r#"{target} a value flow="{escaped}""#),
                format!(r#"{target} "{escaped}""#),
            ]
        );
    }

    #[test]
    fn a_value_with_spaces_is_quoted_once() {
        let reason = "cannot connect: connection refused";
        let error = io::Error::other("\"the host\" is down");
        let forged = "\"a\" outcome=\"ok\"";
        let lines = logged(LogFormat::Text, LevelFilter::INFO, || {
            info!(reason, "a string");
            info!(%reason, %error, idle = 0, mode = %"enforce", "values");
            info!(%forged, next = %"\"b", line = %"c\u{2028}d", "values");
        });
        let target = "INFO flowgate::process::logging::tests:";
        assert_eq!(
            lines,
            [
                format!(r#"{target} a string reason="{reason}""#),
                format!(
                    r#"{target} values reason="{reason}" error="\"the host\" is down" idle=0 mode=enforce"#
                ),
                format!(
                    r#"{target} values forged="\"a\" outcome=\"ok\"" next="\"b" line="c\u{{2028}}d""#
                ),
            ]
        );
    }

    #[test]
    fn json_is_one_object_per_line() {
        let lines = logged(LogFormat::Json, LevelFilter::INFO, || {
            info!(flow = "a\nb", attempts = 2, "done")
        });
        let page = lines.join("");
        assert!(
            page.contains(r#""message":"done","flow":"a\nb","attempts":2"#),
            "{page}"
        );
        assert_eq!(lines.len(), 1);
    }

    #[test]
    fn other_crates_are_capped_at_info_and_follow_a_stricter_level() {
        let work = || {
            trace!("own trace");
            debug!(target: "hyper::proto", "their debug");
            info!(target: "hyper::proto", "their info");
        };
        let lines = logged(LogFormat::Text, LevelFilter::TRACE, work);
        assert_eq!(
            lines,
            [
                "TRACE flowgate::process::logging::tests: own trace",
                "INFO hyper::proto: their info"
            ]
        );
        assert_eq!(logged(LogFormat::Text, LevelFilter::WARN, work), [""; 0]);
    }

    #[test]
    fn a_panic_is_logged_with_its_location_and_without_its_message() {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(report));
        let lines = logged(LogFormat::Text, LevelFilter::INFO, || {
            std::panic::catch_unwind(|| panic!("hunter2")).unwrap_err();
        });
        std::panic::set_hook(before);
        let expected =
            r#"ERROR flowgate::process::logging: panic location="src/process/logging.rs:"#;
        assert!(
            lines.len() == 1 && lines[0].starts_with(expected) && !lines[0].contains("hunter2"),
            "{lines:?}"
        );
    }
}
