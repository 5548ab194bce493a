//! `kwitness uninstall-pins`: what a daemon left for the next one is removed.

use std::ffi::OsString;
use std::path::PathBuf;

use super::socket_setting;
use crate::exit::Code;
use crate::output::Output;
use kwitness_agent::config::{Config, Flag};
use kwitness_agent::daemon;

#[derive(Debug, clap::Args)]
pub struct UninstallPins {
    /// The configuration file, for kernel.pin_directory and api.socket [default: /etc/kwitness/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A setting, as in the file: kernel.pin_directory=/sys/fs/bpf/kwitness; wins over the file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

pub fn run(options: UninstallPins, socket: Option<OsString>) -> anyhow::Result<Code> {
    let UninstallPins { config, set } = options;
    let flags: Vec<_> = set.into_iter().map(Flag::Set).chain(socket_setting(socket)?).collect();
    let config = Config::load(config.as_deref(), &flags)?;
    let removed = daemon::uninstall(&config)?;
    let mut out = Output::new();
    if removed.is_empty() {
        out.line(&format!("nothing is pinned in {}", config.pin_directory.display()))?;
    }
    removed.iter().try_for_each(|path| out.line(&format!("removed {}", path.display())))?;
    out.flush()?;
    Ok(Code::Success)
}
