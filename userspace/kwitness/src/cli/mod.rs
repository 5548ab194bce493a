//! The command line: `kwitness daemon`, and the clients of its API.
//!
//! Owns the arguments, what is printed, and the exit codes. Everything but `daemon` and `doctor` knows the node only through
//! the API.

mod args;
mod client;
mod cri_proxy;
mod daemon;
mod describe;
mod doctor;
mod events;
mod exit;
mod limits;
mod log;
mod manual;
mod output;
mod ps;
mod status;
mod table;
mod text;
mod verify;

use std::process::ExitCode;

use clap::Parser as _;

use args::{Args, Command};
pub use exit::Code;

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    let Args { socket, command } = Args::parse();
    let done = match command {
        Command::Daemon(options) => daemon::run(options, socket),
        Command::CriProxy(options) => cri_proxy::run(options, socket),
        Command::Events(options) => client::run(events::run(socket, options)),
        Command::Ps(options) => client::run(ps::run(socket, options)),
        Command::Verify(options) => client::run(verify::run(socket, options)),
        Command::Status(options) => client::run(status::run(socket, options)),
        Command::Doctor(options) => client::run(doctor::run(socket, options)),
        Command::Completion { shell } => manual::completion(shell),
        Command::Man { command } => manual::man(command.as_deref()),
    };
    exit::code(done).into()
}
