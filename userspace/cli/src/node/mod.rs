//! The commands that need the node itself: the daemon, the CRI proxy, the guard, the doctor, the end of what a daemon left.
//! Linux only, behind the feature `node`.

mod cri_proxy;
mod daemon;
pub mod doctor;
#[cfg(feature = "export")]
mod export;
mod guard;
mod uninstall_pins;

use std::ffi::OsString;

use clap::Subcommand;
use kwitness_agent::config::Flag;
use kwitness_service::log;

use crate::connect;
use crate::examples;
use crate::exit::Code;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the node agent: load the eBPF probes and serve the API
    #[command(after_help = examples::of("daemon"))]
    Daemon(daemon::Daemon),
    /// Proxy the CRI so that the kubelet receives container events from kwitness
    #[command(after_help = examples::of("cri-proxy"))]
    CriProxy(cri_proxy::CriProxy),
    /// Export events as OpenTelemetry logs, and the rare ones as Kubernetes Events (needs a running daemon)
    #[cfg(feature = "export")]
    #[command(after_help = examples::of("export"))]
    Export(export::Export),
    /// Hold processes that reach their memory limit until it is raised (opt-in; needs a running daemon)
    #[command(after_help = examples::of("guard"))]
    Guard(guard::Guard),
    /// Check this node's prerequisites and explain how to fix problems (no daemon needed)
    #[command(after_help = examples::of("doctor"))]
    Doctor(doctor::Doctor),
    /// Remove what daemons left for the next one (kernel.pin): programs and maps in the kernel, and the ledger
    #[command(after_help = examples::of("uninstall-pins"))]
    UninstallPins(uninstall_pins::UninstallPins),
}

pub fn run(command: Command, socket: Option<OsString>) -> anyhow::Result<Code> {
    match command {
        Command::Daemon(options) => daemon::run(options, socket),
        Command::CriProxy(options) => cri_proxy::run(options, socket),
        #[cfg(feature = "export")]
        Command::Export(options) => export::run(options, socket),
        Command::Guard(options) => guard::run(options, socket),
        Command::Doctor(options) => connect::run(doctor::run(socket, options)),
        Command::UninstallPins(options) => uninstall_pins::run(options, socket),
    }
}

/// The setting that `--socket` stands for.
fn socket_setting(socket: Option<OsString>) -> anyhow::Result<Option<Flag>> {
    let socket = socket.map(connect::path).transpose()?;
    Ok(socket.map(|socket| {
        let value = socket.to_string_lossy().into_owned();
        Flag::Named { name: "--socket", key: "api.socket", value }
    }))
}

/// What `--log-level` takes, where it is no setting of a file.
fn log_level(text: &str) -> Result<String, String> {
    match log::filter(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(wrong) => Err(format!("{wrong}; expected {}", log::LEVELS)),
    }
}
