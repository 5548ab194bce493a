//! The arguments. What each does is said here once: the help, the completion and the manual are made from it.

use std::path::PathBuf;

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Parser, Subcommand, ValueEnum};

use crate::text::Moment;
use kwitness_api::EventKind;
use kwitness_api::proto;

/// The kernel's witness: what happens to the containers of this node.
#[derive(Debug, Parser)]
#[command(name = "kwitness", version, max_term_width = 100, after_help = after_help(), propagate_version = true)]
pub struct Args {
    /// The daemon's Unix socket [default: /run/kwitness/kwitness.sock]
    #[arg(long, global = true, env = "KWITNESS_SOCKET", value_name = "PATH", hide_env_values = true)]
    pub socket: Option<PathBuf>,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show events as they happen
    Events(Events),
    /// List the containers
    Ps(Ps),
    /// Say whether the limits that were asked for are in force
    Verify(Verify),
    /// Show what the daemon is and what it counted
    Status(Status),
    #[cfg(node)]
    #[command(flatten)]
    Node(crate::node::Command),
    /// Print the completion script of a shell
    Completion {
        /// Which
        shell: clap_complete::Shell,
    },
    /// Print the manual page
    Man {
        /// Of that command
        command: Option<String>,
    },
}

#[derive(Debug, clap::Args)]
pub struct Events {
    #[command(flatten)]
    pub filter: Filter,
    /// Only events of that kind
    #[arg(long, value_delimiter = ',', value_name = "KIND", value_parser = kinds())]
    pub kind: Vec<EventKind>,
    /// Begin with what happened since: an age ("5m", "1h30m") or a time (RFC 3339); as far back as the daemon keeps events
    #[arg(long, value_name = "WHEN")]
    pub since: Option<Moment>,
    /// End when everything recorded so far has been shown; without --since, all that the daemon keeps
    #[arg(long)]
    pub no_follow: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, clap::Args)]
pub struct Ps {
    #[command(flatten)]
    pub filter: Filter,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("whose").required(true).args(["name", "all"])))]
pub struct Verify {
    /// The pod: its name, or its UID
    #[arg(value_name = "POD")]
    pub name: Option<String>,
    /// All pods of the node
    #[arg(long, conflicts_with_all = ["container", "memory", "cpu"])]
    pub all: bool,
    /// Only of that namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub namespace: Option<String>,
    /// Only that container: its name, its id, or the beginning of its id; without it, the pod's own limits are judged, too
    #[arg(long, short = 'c', value_name = "CONTAINER")]
    pub container: Option<String>,
    /// The memory limit that each of these containers should have ("512Mi"), or "max" for none; otherwise what the kubelet or
    /// the runtime says
    #[arg(long, value_name = "QUANTITY", value_parser = crate::verify::memory)]
    pub memory: Option<kwitness_api::proto::wanted::Memory>,
    /// The CPU limit that each of these containers should have ("500m", "1.5"), or "max" for none; otherwise what the kubelet or
    /// the runtime says
    #[arg(long, value_name = "QUANTITY", value_parser = crate::verify::cpu)]
    pub cpu: Option<kwitness_api::proto::wanted::Cpu>,
    /// Wait so long until all are in force ("10s"), 10m at most
    #[arg(long, value_name = "DURATION", value_parser = crate::verify::wait, default_value = "0s", conflicts_with = "watch")]
    pub wait: std::time::Duration,
    /// Watch for so long whether usage keeps to the limits, by the kernel's own counters ("5s"), 1m at most
    #[arg(long, value_name = "DURATION", value_parser = crate::verify::prove, conflicts_with = "watch")]
    pub prove: Option<std::time::Duration>,
    /// Go on with every verdict that changes
    #[arg(long, short = 'w', conflicts_with_all = ["memory", "cpu"])]
    pub watch: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, clap::Args)]
pub struct Status {
    #[command(flatten)]
    pub output: Output,
}

/// Which containers. Conditions are ANDed; values of one are ORed, given by comma or by repeating the option.
#[derive(Debug, clap::Args)]
pub struct Filter {
    /// Only of that pod: its name, or its UID
    #[arg(long, short = 'p', value_delimiter = ',', value_name = "POD")]
    pub pod: Vec<String>,
    /// Only of that namespace
    #[arg(long, short = 'n', value_delimiter = ',', value_name = "NAMESPACE")]
    pub namespace: Vec<String>,
    /// Only that container: its name, its id, or the beginning of its id
    #[arg(long, short = 'c', value_delimiter = ',', value_name = "CONTAINER")]
    pub container: Vec<String>,
}

impl Filter {
    /// In the API's shape.
    pub fn into_api(self, kinds: Vec<EventKind>) -> proto::Filter {
        let Self { pod, namespace, container } = self;
        proto::Filter {
            pods: pod,
            namespaces: namespace,
            containers: container,
            kinds: kinds.into_iter().map(i32::from).collect(),
            ..Default::default()
        }
    }
}

#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Output {
    /// How to print; json is one object of the API (canonical protobuf JSON) a line
    #[arg(long, short = 'o', value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
}

/// How things are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// An aligned table
    Table,
    /// A table with more columns, and nothing shortened
    Wide,
    /// A JSON object a line
    Json,
    /// YAML documents
    Yaml,
}

/// The kinds of event, with shorter names for long ones.
fn kinds() -> impl TypedValueParser<Value = EventKind> {
    let possible = |kind: EventKind| {
        let value = PossibleValue::new(kind.name());
        match kind {
            EventKind::LimitChanged => value.alias("limit"),
            EventKind::OomKill => value.alias("oom"),
            _ => value,
        }
    };
    PossibleValuesParser::new(EventKind::ALL.map(possible)).try_map(move |name| {
        let kind = EventKind::ALL.into_iter().find(|kind| possible(*kind).matches(&name, false));
        kind.ok_or("not an event kind")
    })
}

fn after_help() -> String {
    let mut text = String::from("Exit codes:\n");
    for (code, meaning) in crate::exit::CODES {
        text += &format!("  {code:<4} {meaning}\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_arguments_hold_together() {
        Args::command().debug_assert();
    }

    #[test]
    fn an_unknown_kind_is_refused_with_a_suggestion() {
        let error = Args::try_parse_from(["kwitness", "events", "--kind", "startd"]).unwrap_err().to_string();
        assert!(error.contains("'started'"), "{error}");
        let args =
            Args::try_parse_from(["kwitness", "events", "--kind=started,exited", "-n", "a,b"]).unwrap();
        let Command::Events(events) = args.command else { panic!("{args:?}") };
        assert_eq!(events.kind, [EventKind::Started, EventKind::Exited]);
        assert_eq!(events.filter.namespace, ["a", "b"]);
    }
}
