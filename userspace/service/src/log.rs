//! The log on standard error of the programs that stay: the daemon and the proxy.
//!
//! ```text
//!   event ──▶ queue of QUEUE lines ──▶ a thread ──▶ standard error
//!               └─ full: dropped, counted; the count is logged once standard error takes lines again
//! ```
//!
//! Logging never waits: a reader of standard error that hangs costs lines, not the program. What others wrote into a line
//! (paths, names, errors) is escaped as everywhere: tracing escapes the message only, and in it what colours need, and in JSON no more
//! than C0.

use std::fmt;
use std::io::{self, IsTerminal as _, Write};
use std::os::unix::fs::MetadataExt as _;
use std::str::FromStr;
use std::sync::{Arc, OnceLock};

use anyhow::Context as _;
use kwitness_api::text::{escape, escape_json};
use tracing::field::{Field, Visit};
use tracing::{Event, Subscriber};
use tracing_appender::non_blocking::{ErrorCounter, NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::Registry;
use tracing_subscriber::field::RecordFields;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt as _;

/// How log lines are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people; without a time where journald adds its own.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            _ => Err("expected \"text\" or \"json\"".to_owned()),
        }
    }
}

/// Lines that wait for standard error; most have some hundred bytes, and what others wrote into them is bounded.
const QUEUE: usize = 4096;

/// The log of this process. Writes what waits when it is dropped, unless that takes long.
#[must_use = "the end of the log is lost without it"]
#[derive(Debug)]
pub struct Log {
    filter: LogFilter,
    _flush: WorkerGuard,
}

impl Log {
    /// What is logged.
    pub fn filter(&self) -> LogFilter {
        self.filter.clone()
    }
}

/// What is logged. Clones change the same.
#[derive(Clone, Debug)]
pub struct LogFilter(reload::Handle<Targets, Registry>);

impl LogFilter {
    /// The filter as a layer, and the handle that changes it.
    fn new(level: &str) -> anyhow::Result<(reload::Layer<Targets, Registry>, Self)> {
        let (layer, handle) = reload::Layer::new(parse(level)?);
        Ok((layer, Self(handle)))
    }

    /// Logs by `level` from now on.
    ///
    /// # Errors
    /// The level is none, and nothing has changed.
    pub fn set(&self, level: &str) -> anyhow::Result<()> {
        self.0.reload(parse(level)?).context("the log has ended")
    }
}

fn parse(level: &str) -> anyhow::Result<Targets> {
    filter(level).map_err(|error| anyhow::anyhow!("log level: {error}; expected {LEVELS}"))
}

/// Logs from now on.
///
/// # Errors
/// The level is none.
pub fn start(level: &str, format: LogFormat) -> anyhow::Result<Log> {
    let (layer, filter) = LogFilter::new(level)?;
    let (writer, guard) = lossy(io::stderr(), format, QUEUE);
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(
            io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        )
        .with_target(false);
    let registry = tracing_subscriber::registry().with(layer);
    match format {
        LogFormat::Json => {
            registry.with(lines.json().flatten_event(true).map_event_format(EscapedJson)).init()
        }
        LogFormat::Text if is_journald() => registry.with(lines.fmt_fields(Escaped).without_time()).init(),
        LogFormat::Text => registry.with(lines.fmt_fields(Escaped)).init(),
    }
    Ok(Log { filter, _flush: guard })
}

/// The message and the fields of a line, escaped. A value of more than one word is quoted, so that the next field cannot be taken for a
/// part of it.
struct Escaped;

impl<'writer> FormatFields<'writer> for Escaped {
    fn format_fields<R: RecordFields>(&self, mut writer: Writer<'writer>, fields: R) -> fmt::Result {
        let mut line = Fields::default();
        fields.record(&mut line);
        writer.write_str(&escape(&line.0))
    }
}

/// `message key=value key="two words"`
#[derive(Default)]
struct Fields(String);

impl Fields {
    /// Where a record of the `log` crate comes from.
    const OF_LOG: [&str; 4] = ["log.target", "log.module_path", "log.file", "log.line"];

    fn add(&mut self, field: &Field, value: &str) {
        if Self::OF_LOG.contains(&field.name()) {
            return;
        }
        if !self.0.is_empty() {
            self.0.push(' ');
        }
        if field.name() != MESSAGE {
            self.0 += field.name();
            self.0.push('=');
        }
        self.0 += value;
    }
}

const MESSAGE: &str = "message";

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == MESSAGE { self.add(field, value) } else { self.add(field, &format!("{value:?}")) }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let text = format!("{value:?}");
        let is_word = !text.is_empty() && !text.contains(|c: char| c.is_whitespace() || c == '=' || c == '"');
        if is_word || field.name() == MESSAGE {
            self.add(field, &text);
        } else {
            self.add(field, &format!("{text:?}"));
        }
    }
}

/// A line of JSON as tracing writes it, escaped: what is not JSON's own is within its strings.
struct EscapedJson<F>(F);

impl<S, N, F> FormatEvent<S, N> for EscapedJson<F>
where
    S: Subscriber + for<'span> LookupSpan<'span>,
    N: for<'writer> FormatFields<'writer> + 'static,
    F: FormatEvent<S, N>,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut line = String::new();
        self.0.format_event(context, Writer::new(&mut line), event)?;
        writeln!(writer, "{}", escape_json(line.trim_end_matches('\n')))
    }
}

/// A writer that never waits for `to`.
fn lossy<W: Write + Send + 'static>(to: W, format: LogFormat, queue: usize) -> (NonBlocking, WorkerGuard) {
    let counter = Arc::new(OnceLock::new());
    let reporting = ReportDropped { to, format, counter: Arc::clone(&counter), reported: 0 };
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(queue).thread_name("log");
    let (writer, guard) = builder.finish(reporting);
    counter.get_or_init(|| writer.error_counter());
    (writer, guard)
}

/// Adds a line for what was dropped, as soon as a line can be written again.
struct ReportDropped<W> {
    to: W,
    format: LogFormat,
    counter: Arc<OnceLock<ErrorCounter>>,
    reported: usize,
}

impl<W: Write> Write for ReportDropped<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Whole lines come, and whole lines go.
        self.to.write_all(bytes)?;
        let dropped = self.counter.get().map_or(0, ErrorCounter::dropped_lines);
        if dropped > self.reported {
            let more = dropped - self.reported;
            match self.format {
                LogFormat::Text => {
                    writeln!(self.to, " WARN log lines dropped: standard error was full dropped={more}")?
                }
                LogFormat::Json => writeln!(
                    self.to,
                    r#"{{"level":"WARN","message":"log lines dropped: standard error was full","dropped":{more}}}"#
                )?,
            }
            self.reported = dropped;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// What [`filter`] takes.
pub const LEVELS: &str =
    "error, warn, info, debug, trace, or a filter such as \"info,kwitness_agent::cri=debug\"";

/// A bare level is ours: what the libraries log below a warning is shown only if a filter names them.
///
/// # Errors
/// A word that is neither a level nor `TARGET=LEVEL`.
pub fn filter(text: &str) -> Result<Targets, String> {
    // tracing takes an empty text for "error".
    if let Ok(level) = text.parse::<LevelFilter>()
        && !text.is_empty()
    {
        return Ok(Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("kwitness", level));
    }
    // Alone, a word would be a target whose every level is logged, and everything else would be silent.
    let unknown = text.split(',').map(str::trim).find(|word| match word.split_once('=') {
        Some((target, _)) => target.is_empty() || target.contains(char::is_whitespace),
        None => word.is_empty() || word.parse::<LevelFilter>().is_err(),
    });
    match unknown {
        Some(word) => Err(format!("unknown level \"{word}\"")),
        None => text.parse::<Targets>().map_err(|error| error.to_string()),
    }
}

/// Whether standard error is journald's: systemd names the file that it gave, and another may have replaced it since.
fn is_journald() -> bool {
    let Ok(given) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| given == format!("{}:{}", stderr.dev(), stderr.ino()))
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// Takes bytes while the gate is open, and waits while it is not, as a full pipe does.
    struct Gate {
        open: Arc<(Mutex<bool>, Condvar)>,
        written: Arc<Mutex<Vec<u8>>>,
    }

    impl Write for Gate {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let (open, changed) = &*self.open;
            drop(changed.wait_while(open.lock().unwrap(), |open| !*open).unwrap());
            self.written.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_reader_that_hangs_stops_no_other_and_the_loss_is_logged() {
        const QUEUE: usize = 8;
        const LINES: usize = 100;
        for format in [LogFormat::Text, LogFormat::Json] {
            let (open, written) = (Arc::new((Mutex::new(false), Condvar::new())), Arc::new(Mutex::default()));
            let gate = Gate { open: Arc::clone(&open), written: Arc::clone(&written) };
            let (mut writer, guard) = lossy(gate, format, QUEUE);
            for line in 0..LINES {
                writer.write_all(format!("{{\"line\":{line}}}\n").as_bytes()).unwrap();
            }
            let dropped = writer.error_counter().dropped_lines();
            // What fits into the queue, and the one that the thread is writing.
            assert!((LINES - QUEUE - 1..=LINES - QUEUE).contains(&dropped), "{dropped}");
            *open.0.lock().unwrap() = true;
            open.1.notify_all();
            let text = || String::from_utf8(written.lock().unwrap().clone()).unwrap();
            let began = std::time::Instant::now();
            while text().lines().count() < LINES - dropped + 1 && began.elapsed().as_secs() < 20 {
                std::thread::sleep(std::time::Duration::from_millis(5));
            }
            drop(guard);
            let text = text();
            assert_eq!(text.lines().count(), LINES - dropped + 1, "{text}");
            let report = text.lines().find(|line| line.contains("dropped")).unwrap();
            assert!(report.contains(&dropped.to_string()), "{report}");
            if format == LogFormat::Json {
                assert!(report.starts_with('{') && report.ends_with('}'), "{report}");
            }
        }
    }

    #[test]
    fn what_others_wrote_cannot_reach_the_terminal_nor_forge_a_line() {
        let open = Arc::new((Mutex::new(true), Condvar::new()));
        let written = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&written);
        let gate = move || Gate { open: Arc::clone(&open), written: Arc::clone(&to) };
        let layer = || tracing_subscriber::fmt::layer().with_writer(gate.clone()).with_ansi(false);
        let hostile = "/kubepods/\x1b]0;x\x07\r\n ERROR forged \x7f \u{9b}2J \u{202e}";
        let log = || tracing::warn!(path = %hostile, error = hostile, "found {hostile}");
        let json = layer().json().flatten_event(true).map_event_format(EscapedJson);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(json), log);
        let text = String::from_utf8(std::mem::take(&mut *written.lock().unwrap())).unwrap();
        assert!(text.starts_with('{') && text.ends_with("}\n") && text.lines().count() == 1, "{text:?}");
        assert!(matches!(escape(text.trim_end()), std::borrow::Cow::Borrowed(_)), "{text:?}");
        assert_eq!(text.matches(r"forged \u007f \u009b2J \u202e").count(), 3, "{text}");

        let lines = layer().fmt_fields(Escaped);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), log);
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(!text.trim_end_matches('\n').chars().any(char::is_control), "{text:?}");
        assert!(!text.contains('\u{202e}') && text.matches("/kubepods/").count() == 3, "{text:?}");
    }

    #[test]
    fn a_value_of_several_words_is_quoted() {
        let open = Arc::new((Mutex::new(true), Condvar::new()));
        let written = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&written);
        let gate = move || Gate { open: Arc::clone(&open), written: Arc::clone(&to) };
        let lines = tracing_subscriber::fmt::layer().with_writer(gate).with_ansi(false).without_time();
        let lines = lines.with_target(false).fmt_fields(Escaped);
        tracing::subscriber::with_default(tracing_subscriber::registry().with(lines), || {
            let (file, counts, empty) = ("/run/k.sock", "a=1 b=2", "");
            tracing::info!(%file, %counts, pid = 7, empty, log.target = "x", "two words");
        });
        let text = String::from_utf8(written.lock().unwrap().clone()).unwrap();
        assert_eq!(text, " INFO two words file=/run/k.sock counts=\"a=1 b=2\" pid=7 empty=\"\"\n");
    }

    #[test]
    fn the_level_can_be_changed() {
        let open = Arc::new((Mutex::new(true), Condvar::new()));
        let written = Arc::new(Mutex::new(Vec::new()));
        let to = Arc::clone(&written);
        let gate = move || Gate { open: Arc::clone(&open), written: Arc::clone(&to) };
        let lines = tracing_subscriber::fmt::layer().with_writer(gate);
        let (layer, filter) = LogFilter::new("info").unwrap();
        let logs_details = || {
            tracing::debug!(target: "kwitness_agent", "a detail");
            !std::mem::take(&mut *written.lock().unwrap()).is_empty()
        };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer).with(lines), || {
            assert!(!logs_details());
            filter.set("debug").unwrap();
            assert!(logs_details());
            assert!(filter.set("verbose").is_err() && logs_details(), "as before");
            filter.set("warn").unwrap();
            assert!(!logs_details());
        });
    }

    #[test]
    fn a_level_a_filter_and_nothing_else() {
        for good in ["info", "INFO", "off", "info,kwitness_agent::cri=debug", "kwitness=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["verbose", "warning", "info kwitness=debug", "kwitness=loud", ""] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }
}
