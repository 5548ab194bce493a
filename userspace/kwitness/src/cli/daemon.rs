//! `kwitness daemon`: flags and file into a configuration, logging, the runtime.

use std::io::IsTerminal as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::Context as _;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use super::args::Daemon;
use super::exit::Code;
use crate::config::{Config, LogFormat};

/// One for the engine, one for its clients; more would only idle on a node that runs other things.
const WORKERS: usize = 2;

pub fn run(options: Daemon, socket: Option<PathBuf>) -> anyhow::Result<Code> {
    let Daemon { config, mut set, runtime_endpoint, log_level, record } = options;
    let short = |key: &str, value: String| format!("{key}={}", toml::Value::String(value));
    set.extend(socket.map(|socket| short("api.socket", socket.to_string_lossy().into_owned())));
    set.extend(runtime_endpoint.map(|endpoint| short("runtime.endpoint", endpoint)));
    set.extend(log_level.map(|level| short("log.level", level)));
    let config = Config::load(config.as_deref(), &set)?;
    log(&config)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(crate::daemon::run(config, record.as_deref()))?;
    Ok(Code::Success)
}

fn log(config: &Config) -> anyhow::Result<()> {
    let filter = filter(&config.log_filter).context("log.level")?;
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(
            std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|set| set.is_empty()),
        )
        .with_target(false);
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
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
