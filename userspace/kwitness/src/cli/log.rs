//! The log on standard error of the programs that stay: the daemon and the proxy.

use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::Context as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::config::LogFormat;

/// Logs from now on.
pub fn start(level: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = filter(level).context("log.level")?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        )
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    match format {
        LogFormat::Json => registry.with(lines.json().flatten_event(true)).init(),
        LogFormat::Text if is_journald() => registry.with(lines.without_time()).init(),
        LogFormat::Text => registry.with(lines).init(),
    }
    Ok(())
}

/// A bare level is ours: what the libraries say below a warning helps nobody who does not ask for it by name.
fn filter(text: &str) -> anyhow::Result<Targets> {
    Ok(match text.parse::<LevelFilter>() {
        Ok(level) => Targets::new().with_default(level.min(LevelFilter::WARN)).with_target("kwitness", level),
        Err(_) => text.parse()?,
    })
}

/// Whether standard error is journald's: systemd names the file that it gave, and another may have taken its place since.
fn is_journald() -> bool {
    let Ok(given) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| given == format!("{}:{}", stderr.dev(), stderr.ino()))
}
