//! The arguments. What each does is said here once: the help, the completion and the manual are made from it.

use std::ffi::OsString;
use std::time::Duration;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand};
use clap_complete::engine::ArgValueCompleter;
use kwitness_api::EventKind;
use kwitness_api::proto::wanted::{Cpu, Memory};

use crate::complete;
use crate::examples;
use crate::options::{
    CONNECTION, FILTERS, Filter, From, Label, ListOutput, OUTPUT, Output, Selection, TimeOptions,
};
use crate::text::Moment;

/// See what the kernel did to the containers of this node.
#[derive(Debug, Parser)]
#[command(name = "kwitness", version, max_term_width = 100, after_help = examples::overview(), propagate_version = true)]
pub struct Args {
    /// The daemon's Unix socket, a path or unix:///PATH [default: /run/kwitness/kwitness.sock]
    #[arg(long, global = true, value_name = "PATH", help_heading = CONNECTION)]
    pub socket: Option<OsString>,
    #[command(flatten)]
    pub color: colorchoice_clap::Color,
    #[command(subcommand)]
    pub command: Command,
}

impl Args {
    /// The socket that is named, here or in the environment.
    pub fn socket(&self) -> Option<OsString> {
        self.socket
            .clone()
            .or_else(|| std::env::var_os("KWITNESS_SOCKET"))
            .filter(|socket| !socket.is_empty())
    }
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show events as they happen
    #[command(after_help = examples::of("events"))]
    Events(Events),
    /// List the containers
    #[command(after_help = examples::of("ps"))]
    Ps(Ps),
    /// Show who dies next: containers by share of their memory limit, live
    #[command(after_help = examples::of("top"))]
    Top(crate::top::Options),
    /// Check whether the desired limits are in force
    #[command(after_help = examples::of("verify"), override_usage = "kwitness verify [OPTIONS] <POD|-A|-n NAMESPACE|-l LABEL>")]
    Verify(Verify),
    /// Show daemon version, health, hooks and counters
    #[command(after_help = examples::of("status"))]
    Status(Status),
    /// Show what happened to a pod: what killed it, whose limit, who wrote it
    #[command(after_help = examples::of("timeline"))]
    Timeline(crate::timeline::Options),
    /// Record events to a file that --file reads
    #[command(after_help = examples::of("record"))]
    Record(crate::record::Record),
    /// Collect what a bug report needs in one archive
    #[command(after_help = examples::of("bugtool"))]
    Bugtool(crate::bugtool::Bugtool),
    /// Play a recorded incident: an OOM kill and who set the limit (no daemon needed)
    #[command(after_help = examples::of("demo"))]
    Demo(Demo),
    #[cfg(node)]
    #[command(flatten)]
    Node(crate::node::Command),
    /// Print the completion script of a shell
    #[command(after_help = examples::of("completion"))]
    Completion {
        /// Shell to generate the script for
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    #[command(after_help = examples::of("man"))]
    Man {
        /// Subcommand to document [default: kwitness]
        command: Option<String>,
        /// Write all manual pages to this directory
        #[arg(long, value_name = "DIR", conflicts_with = "command")]
        dir: Option<std::path::PathBuf>,
    },
    /// Show the versions of client and daemon
    #[command(hide = true)]
    Version,
    /// What people try who come from kubectl or crictl
    #[command(hide = true, aliases = ["logs", "describe", "watch"])]
    Get {
        /// Ignored
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, hide = true)]
        rest: Vec<OsString>,
    },
}

#[derive(Debug, clap::Args)]
pub struct Demo {
    /// Print everything without waiting
    #[arg(long)]
    pub no_wait: bool,
    /// Write the recording to this new file instead, to try `--file` with it
    #[arg(long, value_name = "FILE")]
    pub save: Option<std::path::PathBuf>,
}

#[derive(Debug, clap::Args)]
pub struct Events {
    #[command(flatten)]
    pub selection: Selection,
    /// Show only events of this kind
    #[arg(long, value_delimiter = ',', value_name = "KIND", value_parser = kinds(), help_heading = FILTERS)]
    pub kind: Vec<EventKind>,
    /// Start with past events: an age ("5m", "1h30m") or a time (RFC 3339), as far back as the daemon keeps
    /// events; in a recording, ages count back from its end
    #[arg(long, value_name = "WHEN", help_heading = FILTERS)]
    pub since: Option<Moment>,
    /// Exit after past events have been shown; without --since, all that the daemon keeps
    #[arg(long, help_heading = FILTERS)]
    pub no_follow: bool,
    /// Keep running and show events as they happen (the default)
    #[arg(long, short = 'f', visible_alias = "watch", visible_short_alias = 'w', conflicts_with_all = ["no_follow", "file"], help_heading = FILTERS)]
    pub follow: bool,
    #[command(flatten)]
    pub from: From,
    #[command(flatten)]
    pub times: TimeOptions,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, clap::Args)]
pub struct Ps {
    #[command(flatten)]
    pub selection: Selection,
    /// Show pod sandboxes, too
    #[arg(long, short = 'a', help_heading = FILTERS)]
    pub all: bool,
    /// Keep running and print containers as they change
    #[arg(long, short = 'w', conflicts_with = "file", help_heading = OUTPUT)]
    pub watch: bool,
    /// Print no headings
    #[arg(long, help_heading = OUTPUT)]
    pub no_headers: bool,
    #[command(flatten)]
    pub from: From,
    #[command(flatten)]
    pub output: ListOutput,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("whose").required(true).multiple(true).args(["name", "all", "label", "namespace"])))]
pub struct Verify {
    /// The pod: name, NAMESPACE/NAME, UID, or the beginning of names
    #[arg(value_name = "POD", add = ArgValueCompleter::new(complete::pods))]
    pub name: Option<String>,
    /// All pods of the node
    #[arg(long, short = 'A', visible_alias = "all-namespaces", conflicts_with_all = ["name", "container", "memory", "cpu"], help_heading = FILTERS)]
    pub all: bool,
    /// Check only pods in this namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE", add = ArgValueCompleter::new(complete::namespaces), help_heading = FILTERS)]
    pub namespace: Option<String>,
    /// Check only this container (name, ID, or the beginning of an ID); without it, pod-level limits are checked, too
    #[arg(long, short = 'c', value_name = "CONTAINER", add = ArgValueCompleter::new(complete::containers), help_heading = FILTERS)]
    pub container: Option<String>,
    /// Check only pods with this label: "app=web", "app!=web", "app", "!app"
    #[arg(long, short = 'l', value_delimiter = ',', value_name = "LABEL", help_heading = FILTERS)]
    pub label: Vec<Label>,
    /// The memory limit that each container should have ("512Mi"), or "max" for none; by default, what the kubelet or the
    /// runtime wants
    #[arg(long, value_name = "QUANTITY", value_parser = crate::quantities::memory, conflicts_with = "file")]
    pub memory: Option<Memory>,
    /// The CPU limit that each container should have ("500m", "1.5"), or "max" for none; by default, what the kubelet or the
    /// runtime wants
    #[arg(long, value_name = "QUANTITY", value_parser = crate::quantities::cpu, conflicts_with = "file")]
    pub cpu: Option<Cpu>,
    /// Wait up to this long for all limits to take effect ("10s"), at most 10m
    #[arg(long, value_name = "DURATION", value_parser = crate::quantities::wait, default_value = "0s", conflicts_with_all = ["watch", "file"])]
    pub wait: Duration,
    /// Measure for this long whether usage keeps to the limits, by the kernel's own counters ("5s"), at most 1m
    #[arg(long, value_name = "DURATION", value_parser = crate::quantities::prove, conflicts_with_all = ["watch", "file"])]
    pub prove: Option<Duration>,
    /// Keep running and print verdicts as they change
    #[arg(long, short = 'w', conflicts_with_all = ["memory", "cpu", "file"], help_heading = OUTPUT)]
    pub watch: bool,
    #[command(flatten)]
    pub from: From,
    #[command(flatten)]
    pub times: TimeOptions,
    #[command(flatten)]
    pub output: ListOutput,
}

impl Verify {
    /// Which containers.
    pub fn filter(&self) -> Filter {
        Filter {
            pod: self.name.clone().into_iter().collect(),
            namespace: self.namespace.clone().into_iter().collect(),
            container: self.container.clone().into_iter().collect(),
            label: self.label.clone(),
            all_namespaces: false,
        }
    }
}

#[derive(Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    pub times: TimeOptions,
    #[command(flatten)]
    pub output: Output,
}

/// The kinds of event, with shorter names for long ones.
fn kinds() -> impl TypedValueParser<Value = EventKind> {
    let possible = |kind: EventKind| {
        let value = PossibleValue::new(kind.name());
        match kind {
            EventKind::LimitChanged => value.aliases(["limit", "limits"]),
            EventKind::OomKill => value.aliases(["oom", "OOMKilled"]),
            _ => value,
        }
    };
    PossibleValuesParser::new(EventKind::ALL.map(possible)).try_map(move |name| {
        let kind = EventKind::ALL.into_iter().find(|kind| possible(*kind).matches(&name, false));
        kind.ok_or("not an event kind")
    })
}

/// What to use in place of a command that other tools have.
pub fn instead(command: &str) -> &'static str {
    match command {
        "logs" => "`kwitness events` shows what happened to containers; their output is in `kubectl logs`",
        "describe" => "`kwitness timeline POD` shows what happened to a pod",
        "watch" => "`kwitness events` shows events as they happen, `kwitness ps -w` containers",
        _ => "`kwitness ps` lists the containers of this node",
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    fn parse(line: &str) -> Result<Command, String> {
        let parsed = Args::try_parse_from(std::iter::once("kwitness").chain(line.split_whitespace()));
        parsed.map(|args| args.command).map_err(|error| error.to_string())
    }

    fn events(line: &str) -> Events {
        match parse(line) {
            Ok(Command::Events(events)) => events,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_arguments_are_consistent() {
        Args::command().debug_assert();
    }

    #[test]
    fn an_unknown_kind_is_rejected_with_a_suggestion() {
        let error = parse("events --kind startd").unwrap_err();
        assert!(error.contains("'started'"), "{error}");
        let events = events("events --kind=started,exited -n a,b");
        assert_eq!(events.kind, [EventKind::Started, EventKind::Exited]);
        assert_eq!(events.selection.filter.namespace, ["a", "b"]);
    }

    #[test]
    fn short_names_of_kinds_mean_the_kinds() {
        assert_eq!(events("events --kind limit,oom").kind, [EventKind::LimitChanged, EventKind::OomKill]);
    }

    #[test]
    fn a_pod_may_be_named_with_and_without_its_option() {
        let of = |command: Result<Command, String>| match command {
            Ok(Command::Events(events)) => events.selection,
            Ok(Command::Ps(ps)) => ps.selection,
            Ok(Command::Top(top)) => top.selection,
            other => panic!("{other:?}"),
        };
        for command in ["events", "ps", "top"] {
            let filter = of(parse(&format!("{command} web-0 -p web-1 -n prod -l app=web"))).filter();
            assert_eq!(filter.pod, ["web-1", "web-0"], "{command}");
            assert_eq!((&*filter.namespace, filter.label.len()), (&["prod".to_owned()][..], 1), "{command}");
        }
    }

    #[test]
    fn habits_of_other_tools_are_understood() {
        for line in [
            "events -f",
            "events --follow -A",
            "events -w",
            "events --watch pod/web-0",
            "ps pod/web-0 -a",
            "events -l app=web,tier!=db",
            "ps -A -a -w --no-headers",
            "ps -p pod/web-0",
            "verify prod/web-0",
            "verify -A -w",
            "verify -l app=web",
            "verify -n prod",
            "version",
            "get pods -n prod",
            "logs -f web-0",
            "top",
            "top -A --sort share -r",
            "top web-0",
            "top -n prod -p pod/web-0 -o json -w",
            "top --once --file x --at 30s",
            "record -o x --usage off",
            "ps --socket unix:///run/kwitness/kwitness.sock --color never",
            "ps --file x --at 30s",
            "verify web-0 --file x",
        ] {
            assert!(parse(line).is_ok(), "{line}: {:?}", parse(line));
        }
        for line in [
            "events -f --no-follow",
            "events -f --file x",
            "ps -w --file x",
            "top --once -w",
            "top --interval 499ms",
            "top --interval 1s --file x",
            "record -o x --usage 499ms",
            "record -o x --usage 10s --no-follow",
            "ps --at 5m",
            "verify -A --file x --wait 1s",
            "ps -A -n prod",
            "verify",
            "verify --all web-0",
            "ps -l a=b=c",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn every_command_has_help_with_examples() {
        let mut command = Args::command();
        command.build();
        for command in command.get_subcommands_mut() {
            if command.is_hide_set() || command.get_name() == "help" {
                continue;
            }
            let help = command.render_long_help().to_string();
            let usage = help.lines().find(|line| line.starts_with("Usage: ")).unwrap();
            assert!(usage.len() <= 80, "{usage}");
            let example =
                help.split_once("Examples:\n  ").map(|(_, example)| example.trim_start_matches("sudo "));
            assert!(example.is_some_and(|example| example.starts_with("kwitness ")), "{help}");
        }
    }
}
