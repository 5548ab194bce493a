//! The command line: `kwitness daemon`, and the clients of its API.
//!
//! Owns the arguments, what is printed, and the exit codes. Everything but the commands in `node` (`daemon`, `cri-proxy`,
//! `guard`, `doctor`, `uninstall-pins`) knows the node only through the API.

mod args;
mod bugtool;
mod capabilities;
mod complete;
mod connect;
mod demo;
mod describe;
#[cfg(all(test, node))]
mod documented;
mod events;
mod examples;
mod exit;
mod history;
#[cfg(feature = "kubectl")]
mod kubectl;
mod manual;
#[cfg(node)]
mod node;
mod options;
mod output;
mod ps;
mod quantities;
mod record;
mod select;
mod sort;
mod status;
mod table;
mod text;
mod time;
mod timeline;
mod top;
mod verify;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{Args, Command};
pub use exit::Code;
#[cfg(feature = "kubectl")]
pub use kubectl::main as kubectl;

/// Runs the program with the arguments of this process.
pub fn main() -> ExitCode {
    clap_complete::CompleteEnv::with_factory(Args::command).complete();
    let args = Args::parse();
    args.color.write_global();
    let socket = args.socket();
    let done = match args.command {
        Command::Events(options) => connect::run(events::run(socket, options)),
        Command::Ps(options) => connect::run(ps::run(socket, options)),
        Command::Top(options) => connect::run(top::run(socket, options)),
        Command::Verify(options) => connect::run(verify::run(socket, options)),
        Command::Status(options) => connect::run(status::run(socket, options)),
        Command::Timeline(options) => connect::run(timeline::run(socket, options)),
        Command::Bugtool(options) => connect::run(bugtool::run(socket, options)),
        Command::Demo(options) => connect::run(demo::run(options)),
        Command::Record(options) => connect::run_to_its_end(record::run(socket, options)),
        Command::Version => connect::run(status::versions(socket)),
        #[cfg(node)]
        Command::Node(command) => node::run(command, socket),
        Command::Completion { shell } => manual::completion(shell),
        Command::Man { command, dir } => manual::man(command.as_deref(), dir.as_deref()),
        Command::Get { .. } => {
            let is_command = |word: &&str| ["get", "logs", "describe", "watch"].contains(word);
            let words: Vec<_> = std::env::args_os().skip(1).collect();
            let command = words.iter().filter_map(|word| word.to_str()).find(is_command).unwrap_or_default();
            let hint = format!("kwitness has no command `{command}`: {}", args::instead(command));
            Args::command().error(clap::error::ErrorKind::InvalidSubcommand, hint).exit()
        }
    };
    exit::code(done).into()
}
