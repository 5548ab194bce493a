//! `kubectl kwitness`: the commands of `kwitness` for all nodes of a cluster.
//!
//! ```text
//!  API server ── pods ─────────▶ cluster    which nodes have a daemon
//!      │                         targets    which pods are meant, on which nodes, with which limits
//!      │                         watch      the same, as they change
//!      └─ pods/portforward ────▶ tunnel ──▶ kwitness_api::Client, one a node
//!                                              └─▶ events (merge), commands ──▶ the tables of `kwitness`
//! ```
//!
//! Owns what a cluster adds: finding, reaching and merging nodes. Options, tables, formats and exit codes are those of the other
//! commands. Changes nothing in the cluster, and knows a node by its daemon's API alone.

mod args;
mod cluster;
mod commands;
mod complete;
mod connection;
mod events;
mod failure;
mod merge;
mod nodes;
mod scope;
mod targets;
mod tunnel;
mod watch;

use std::path::Path;
use std::process::ExitCode;

#[cfg(all(test, node))]
pub use args::command;
use args::{Args, Command};
use cluster::Cluster;
use failure::Failure;

use crate::connect;
use crate::exit::Code;
use crate::output::note;

/// Runs the plugin with the arguments of this process.
pub fn main() -> ExitCode {
    let mut words = std::env::args_os();
    let program = words.next().unwrap_or_default();
    if Path::new(&program).file_stem().is_some_and(|name| name == complete::PROGRAM) {
        if let Err(error) = complete::run(&mut args::command(), words) {
            note(&format!("cannot complete: {error}"));
            return Code::Failure.into();
        }
        return ExitCode::SUCCESS;
    }
    let Args { connection, color, command } = Args::of_process();
    color.write_global();
    Failure::code(connect::run(run(connection, command))).into()
}

async fn run(connection: connection::Connection, command: Command) -> anyhow::Result<Code> {
    command.check()?;
    let cluster = Cluster::connect(connection).await?;
    let filter = command.filter(cluster.default_namespace());
    match command {
        Command::Events(options) => events::run(cluster, filter, options).await,
        Command::Ps(options) => commands::ps(cluster, filter, options).await,
        Command::Verify(options) => commands::verify(cluster, filter, options).await,
        Command::Timeline(options) => commands::timeline(cluster, filter, options).await,
        Command::Status(options) => commands::status(cluster, options).await,
    }
}
