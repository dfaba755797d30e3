//! Log lines: text or JSON on standard error, one line per event.
//!
//! A bounded queue decouples calls from a slow reader: lines are dropped and counted, calls never
//! wait.
//! `RUST_LOG` is not read. Other crates log at info at most, because their debug output may contain
//! callers' data.

use std::io::{self, IsTerminal, Write};
use std::panic::PanicHookInfo;
use std::sync::OnceLock;

use tracing::level_filters::LevelFilter;
use tracing::{Subscriber, error};
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::Targets;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{Layer, Registry, fmt, reload};

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
        LogFormat::Text => fmt::layer()
            .with_ansi(ansi)
            .with_writer(OneLine { writer, ansi })
            .boxed(),
        LogFormat::Json => fmt::layer()
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

/// Keeps each event on one line. The formatter escapes fields, except those recorded as `%value`.
struct OneLine<W> {
    writer: W,
    /// On a terminal, escape sequences are kept, because colours are escape sequences. The
    /// formatter escapes those in fields.
    ansi: bool,
}

impl<'w, W: MakeWriter<'w>> MakeWriter<'w> for OneLine<W> {
    type Writer = OneLine<W::Writer>;

    fn make_writer(&'w self) -> Self::Writer {
        OneLine {
            writer: self.writer.make_writer(),
            ansi: self.ansi,
        }
    }
}

impl<W: Write> Write for OneLine<W> {
    /// Writes a whole event: the formatter writes each event in one call.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        let text = String::from_utf8_lossy(event.strip_suffix(b"\n").unwrap_or(event));
        let mut line = String::with_capacity(text.len() + 1);
        for char in text.chars() {
            match char {
                '\u{1b}' if self.ansi => line.push(char),
                char if char.is_control() => line.extend(char.escape_default()),
                char => line.push(char),
            }
        }
        line.push('\n');
        self.writer.write_all(line.as_bytes())?;
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}

#[cfg(test)]
mod tests {
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
            info!(flow = name, "quoted");
            info!(flow = %name, "plain");
        });
        let target = "INFO flowgate::process::logging::tests:";
        let quoted = format!(r#"{target} quoted flow="a\nERROR forged\u{{1b}}[2J\r\u{{85}}""#);
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert_eq!(lines[0], quoted);
        assert!(!lines[1].contains(char::is_control), "{lines:?}");
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
