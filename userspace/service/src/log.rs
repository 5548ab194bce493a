//! The log on standard error of the programs that stay: the daemon and the proxy.

use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;
use std::str::FromStr;

use anyhow::Context as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
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

/// Logs from now on.
pub fn start(level: &str, format: LogFormat) -> anyhow::Result<()> {
    let filter = filter(level).map_err(anyhow::Error::msg).context("log.level")?;
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
        Some(word) => Err(format!(
            "unknown level \"{word}\": expected error, warn, info, debug or trace, or TARGET=LEVEL"
        )),
        None => text.parse::<Targets>().map_err(|error| error.to_string()),
    }
}

/// Whether standard error is journald's: systemd names the file that it gave, and another may have taken its place since.
fn is_journald() -> bool {
    let Ok(given) = std::env::var("JOURNAL_STREAM") else { return false };
    std::fs::metadata("/proc/self/fd/2")
        .is_ok_and(|stderr| given == format!("{}:{}", stderr.dev(), stderr.ino()))
}

#[cfg(test)]
mod tests {
    use super::*;

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
