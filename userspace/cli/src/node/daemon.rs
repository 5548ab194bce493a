//! `kwitness daemon`: flags and file into a configuration, the runtime.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;

use super::{setting, socket_setting};
use crate::exit::Code;
use kwitness_agent::config::Config;
use kwitness_agent::daemon::Options;
use kwitness_agent::privileges::Setup;
use kwitness_agent::reload::Reload;
use kwitness_service::log;

#[derive(Debug, clap::Args)]
pub struct Daemon {
    /// The configuration file [default: /etc/kwitness/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A setting, as in the file: kernel.roots='["docker-"]'; wins over the file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
    /// The container runtime's socket, or "none"; short for --set runtime.endpoint=
    #[arg(long, value_name = "PATH")]
    pub runtime_endpoint: Option<String>,
    /// What is logged to standard error; short for --set log.level=
    #[arg(long, value_name = "LEVEL")]
    pub log_level: Option<String>,
    /// Write every observation to a file, one JSON object a line, to replay it in a test
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,
    /// At the end, remove what is pinned for the next daemon (kernel.pin)
    #[arg(long)]
    pub unpin: bool,
}

/// One for the engine, one for its clients; more would only idle on a node that runs other things.
const WORKERS: usize = 2;

/// Threads that read files of cgroups for scans and verdicts. A call that waits for one costs no thread, and at the end of the
/// process there are few to wait for.
const READERS: usize = 4;

pub fn run(options: Daemon, socket: Option<OsString>) -> anyhow::Result<Code> {
    // Before there is another thread.
    let setup = Setup::start()?;
    let Daemon { config, mut set, runtime_endpoint, log_level, record, unpin } = options;
    set.extend(socket_setting(socket)?);
    set.extend(runtime_endpoint.map(|endpoint| setting("runtime.endpoint", endpoint)));
    set.extend(log_level.map(|level| setting("log.level", level)));
    let file = config;
    let config = Config::load(file.as_deref(), &set)?;
    let log = log::start(&config.log_filter, config.log_format)?;
    let reload = Reload { file, flags: set, filter: log.filter() };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(READERS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let options = Options { record, unpin, reload };
    let ended = runtime.block_on(kwitness_agent::daemon::run(config, options, setup));
    // A read that is under way is nothing to wait for.
    runtime.shutdown_background();
    ended.map(|()| Code::Success)
}
