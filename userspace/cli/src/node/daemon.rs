//! `kwitness daemon`: flags and file into a configuration, the runtime.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Context as _;

use super::socket_setting;
use crate::exit::Code;
use kwitness_agent::config::{Config, Flag};
use kwitness_agent::daemon::{self, Options};
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
    /// While another daemon runs at the socket, wait for its end and take over
    #[arg(long)]
    pub standby: bool,
    /// At SIGTERM or SIGINT, remove what is kept for the next daemon (kernel.pin)
    #[arg(
        long,
        value_name = "WHEN",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "always",
        overrides_with = "unpin"
    )]
    pub unpin: Option<Unpin>,
}

/// When a daemon that gets SIGTERM or SIGINT leaves nothing.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub enum Unpin {
    /// In any case, also if a standby waits
    Always,
    /// Only if no daemon with --standby waits to take over
    UnlessStandby,
}

/// One for the engine, one for its clients; more would only idle on a node that runs other things.
const WORKERS: usize = 2;

/// Threads that read files of cgroups for scans and verdicts. A call that waits for one costs no thread, and at the end of the
/// process there are few to wait for.
const READERS: usize = 4;

pub fn run(options: Daemon, socket: Option<OsString>) -> anyhow::Result<Code> {
    // Before there is another thread.
    let setup = Setup::start()?;
    let Daemon { config, set, runtime_endpoint, log_level, record, standby, unpin } = options;
    let named = |name, key| move |value| Flag::Named { name, key, value };
    let mut flags: Vec<_> = set.into_iter().map(Flag::Set).collect();
    flags.extend(socket_setting(socket)?);
    flags.extend(runtime_endpoint.map(named("--runtime-endpoint", "runtime.endpoint")));
    flags.extend(log_level.map(named("--log-level", "log.level")));
    let file = config;
    let config = Config::load(file.as_deref(), &flags)?;
    let log = log::start(&config.log_filter, config.log_format)?;
    let reload = Reload { file, flags, filter: log.filter() };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(READERS)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    let unpin = match unpin {
        None => daemon::Unpin::Never,
        Some(Unpin::UnlessStandby) => daemon::Unpin::UnlessStandby,
        Some(Unpin::Always) => daemon::Unpin::Always,
    };
    let options = Options { record, unpin, standby, reload };
    let ended = runtime.block_on(daemon::run(config, options, setup));
    // A read that is under way is nothing to wait for.
    runtime.shutdown_background();
    ended.map(|()| Code::Success)
}
