//! The command line: `kwitness daemon`, and the clients of its API.
//!
//! Owns the arguments, what is printed, and the exit codes. Everything but `daemon` and `doctor` knows the node only through
//! the API.

mod args;
mod capabilities;
mod client;
mod describe;
mod events;
mod exit;
mod limits;
mod manual;
#[cfg(node)]
mod node;
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
        Command::Events(options) => client::run(events::run(socket, options)),
        Command::Ps(options) => client::run(ps::run(socket, options)),
        Command::Verify(options) => client::run(verify::run(socket, options)),
        Command::Status(options) => client::run(status::run(socket, options)),
        #[cfg(node)]
        Command::Node(command) => node::run(command, socket),
        Command::Completion { shell } => manual::completion(shell),
        Command::Man { command } => manual::man(command.as_deref()),
    };
    exit::code(done).into()
}
