//! `kwitness uninstall-pins`: what a daemon left in the kernel is removed.

use std::path::PathBuf;

use crate::exit::Code;
use crate::output::Output;
use kwitness_agent::config::Config;
use kwitness_agent::probe::pins;

#[derive(Debug, clap::Args)]
pub struct UninstallPins {
    /// The configuration file, for kernel.pin_directory [default: /etc/kwitness/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// A setting, as in the file: kernel.pin_directory=/sys/fs/bpf/kwitness; wins over the file
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

pub fn run(options: UninstallPins) -> anyhow::Result<Code> {
    let UninstallPins { config, set } = options;
    let directory = Config::load(config.as_deref(), &set)?.pin_directory;
    let removed = pins::uninstall(&directory)?;
    let mut out = Output::new();
    match removed.is_empty() {
        true => out.line(&format!("nothing is pinned in {}", directory.display()))?,
        false => removed
            .iter()
            .try_for_each(|name| out.line(&format!("removed {}", directory.join(name).display())))?,
    }
    out.flush()?;
    Ok(Code::Success)
}
