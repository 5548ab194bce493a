//! `kwitness daemon`: flags and file into a configuration, the runtime.

use std::path::PathBuf;

use anyhow::Context as _;

use super::args::Daemon;
use super::exit::Code;
use super::log;
use crate::config::Config;

/// One for the engine, one for its clients; more would only idle on a node that runs other things.
const WORKERS: usize = 2;

pub fn run(options: Daemon, socket: Option<PathBuf>) -> anyhow::Result<Code> {
    let Daemon { config, mut set, runtime_endpoint, log_level, record } = options;
    let short = |key: &str, value: String| format!("{key}={}", toml::Value::String(value));
    set.extend(socket.map(|socket| short("api.socket", socket.to_string_lossy().into_owned())));
    set.extend(runtime_endpoint.map(|endpoint| short("runtime.endpoint", endpoint)));
    set.extend(log_level.map(|level| short("log.level", level)));
    let config = Config::load(config.as_deref(), &set)?;
    log::start(&config.log_filter, config.log_format)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(crate::daemon::run(config, record.as_deref()))?;
    Ok(Code::Success)
}
