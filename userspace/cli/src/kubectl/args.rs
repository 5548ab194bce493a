//! The arguments of `kubectl kwitness`: those of `kwitness`, of the commands that make sense for a cluster, and how to get there.
//!
//! Owns what differs: names of workloads, the namespace that is the default, completion by the API server.

use std::fmt::Write as _;

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::engine::ArgValueCompleter;

use super::complete;
use super::connection::Connection;
use super::failure::Failure;
use super::targets;
use crate::args::{Events, Ps, Status, Verify};
use crate::exit::Code;
use crate::options::Filter;
use crate::timeline;

/// See what the kernels of a cluster's nodes did to its containers.
#[derive(Debug, Parser)]
#[command(name = "kubectl-kwitness", bin_name = "kubectl kwitness", version, max_term_width = 100)]
pub struct Args {
    #[command(flatten)]
    pub connection: Connection,
    #[command(flatten)]
    pub color: colorchoice_clap::Color,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show events of all nodes as they happen, in the order of time
    Events(Events),
    /// List the containers of all nodes
    Ps(Ps),
    /// Check whether the limits of the pods' specs are in force on their nodes
    Verify(Verify),
    /// Show what happened to a pod: what killed it, whose limit, who wrote it
    Timeline(timeline::Options),
    /// Show each node's daemon: version, containers, losses, problems
    Status(Status),
}

/// The examples of the help; a test parses each.
const EXAMPLES: &[(&str, &[(&str, &str)])] = &[
    (
        "events",
        &[
            ("kubectl kwitness events -A -w", "all nodes, all namespaces"),
            ("kubectl kwitness events -n prod -p deploy/web --kind oom,limit", "of a Deployment"),
            ("kubectl kwitness events -l app=web --since 1h --no-follow", "the last hour"),
        ],
    ),
    (
        "ps",
        &[
            ("kubectl kwitness ps -n prod -l app=web", "where they run"),
            ("kubectl kwitness ps -A --node worker-1", "one node's"),
            ("kubectl kwitness ps -A --sort-by .createdAt", "the oldest first"),
            ("kubectl kwitness ps -l app=web -o name", "the pods, for other commands"),
        ],
    ),
    (
        "verify",
        &[
            ("kubectl kwitness verify deploy/web -n prod", "on each of its nodes"),
            ("kubectl kwitness verify deploy/web --wait 30s", "after a resize"),
        ],
    ),
    (
        "timeline",
        &[
            ("kubectl kwitness timeline pod/web-0 -n prod", "even if it is gone"),
            ("kubectl kwitness timeline web-0 -o html > web-0.html", "for a browser"),
        ],
    ),
    (
        "status",
        &[
            ("kubectl kwitness status", "is each daemon well?"),
            ("kubectl kwitness status --context prod --as jane", "may jane see that?"),
        ],
    ),
];

fn examples(command: &str) -> String {
    let mut text = "Examples:".to_owned();
    let all = EXAMPLES.iter().filter(|(name, _)| *name == command).flat_map(|(_, examples)| *examples);
    for (line, what) in all {
        // Writing to a string does not fail.
        let _ = write!(text, "\n  # {what}\n  {line}");
    }
    text
}

/// The command line that is parsed.
pub fn command() -> clap::Command {
    let command = Args::command();
    let names: Vec<_> = command.get_subcommands().map(|command| command.get_name().to_owned()).collect();
    names.into_iter().fold(command, |command, name| command.mut_subcommand(name, adapted))
}

/// A command of `kwitness`, as it is for a cluster.
fn adapted(command: clap::Command) -> clap::Command {
    const PODS: &str = "The pods: NAME, pod/NAME, NAMESPACE/NAME, UID, the beginning of names; of a workload: \
                        deploy/NAME, sts/NAME, ds/NAME, rs/NAME, job/NAME";
    let text = examples(command.get_name());
    let ids: Vec<_> = command.get_arguments().map(|argument| argument.get_id().to_string()).collect();
    let is_verify = command.get_name() == "verify";
    let command = ids.into_iter().fold(command, |command, id| {
        command.mut_arg(&id, |argument| match id.as_str() {
            // Those of one node.
            "file" | "at" | "watch" => argument.hide(true),
            "pod" | "name" => argument.help(PODS).add(ArgValueCompleter::new(complete::pods)),
            "namespace" => argument
                .help("The pods' namespace [default: that of the kubeconfig's context]")
                .add(ArgValueCompleter::new(complete::namespaces)),
            "all_namespaces" => argument.help("All namespaces"),
            "all" if is_verify => argument.help("All pods of the cluster"),
            _ => argument,
        })
    });
    let command = match is_verify {
        true => command.override_usage("kubectl kwitness verify [OPTIONS] <POD|-A|-n NAMESPACE|-l LABEL>"),
        false => command,
    };
    command.after_help(text)
}

impl Args {
    /// Of this process; ends it with what clap says if they are wrong.
    pub fn of_process() -> Self {
        let matches = command().get_matches();
        Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
    }
}

impl Command {
    /// What the other program does better.
    pub fn check(&self) -> Result<(), Failure> {
        let from = match self {
            Self::Events(Events { from, .. })
            | Self::Ps(Ps { from, .. })
            | Self::Verify(Verify { from, .. }) => Some(from),
            Self::Timeline(options) => Some(&options.from),
            Self::Status(_) => None,
        };
        if from.is_some_and(|from| from.file.is_some()) {
            return Err(Failure::new(Code::Failure, "recordings are read by `kwitness`: omit --file"));
        }
        if matches!(self, Self::Ps(Ps { watch: true, .. }) | Self::Verify(Verify { watch: true, .. })) {
            let text =
                "`kubectl kwitness events -w` follows all nodes; this command shows them once: omit --watch";
            return Err(Failure::new(Code::Failure, text));
        }
        Ok(())
    }

    /// The pods that it is about; without a namespace, those of the default one.
    pub fn filter(&self, default: &str) -> Filter {
        let (filter, all) = match self {
            Self::Events(options) => (options.selection.filter(), options.selection.filter.all_namespaces),
            Self::Ps(options) => (options.selection.filter(), options.selection.filter.all_namespaces),
            Self::Verify(options) => (options.filter(), options.all),
            Self::Timeline(timeline::Options { pod, namespace, .. }) => {
                let filter = Filter {
                    pod: pod.clone().into_iter().collect(),
                    namespace: namespace.clone().into_iter().collect(),
                    ..Filter::default()
                };
                (filter, false)
            }
            Self::Status(_) => (Filter::default(), true),
        };
        in_namespace(filter, all, default)
    }
}

/// As kubectl does: a namespace is named, or all are meant, or it is the default one. A pod's full name has its own.
fn in_namespace(mut filter: Filter, all: bool, default: &str) -> Filter {
    let has_own = |pod: &String| matches!(pod.split_once('/'), Some((kind, _)) if !targets::is_kind(kind));
    let is_named = !filter.namespace.is_empty() || (!filter.pod.is_empty() && filter.pod.iter().all(has_own));
    if !all && !is_named {
        filter.namespace.push(default.to_owned());
    }
    filter
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, String> {
        let words = line.trim_start_matches("kubectl ").split_whitespace();
        let matches = command().try_get_matches_from(words).map_err(|error| error.to_string())?;
        Args::from_arg_matches(&matches).map_err(|error| error.to_string())
    }

    fn filter(line: &str) -> Filter {
        parse(&format!("kwitness {line}")).unwrap().command.filter("mine")
    }

    #[test]
    fn the_arguments_are_consistent() {
        command().debug_assert();
    }

    #[test]
    fn examples_parse_and_fit_80_columns() {
        for (command, of_command) in EXAMPLES {
            assert!(!of_command.is_empty(), "{command}");
            for (line, _) in *of_command {
                let words = line.split(" >").next().unwrap_or_default();
                parse(words).unwrap_or_else(|error| panic!("{line}: {error}"));
            }
            assert!(examples(command).lines().all(|line| line.len() <= 80), "{command}");
        }
    }

    #[test]
    fn the_namespace_is_kubectls() {
        assert_eq!(filter("events").namespace, ["mine"]);
        assert_eq!(filter("events -A").namespace, [""; 0]);
        assert_eq!(filter("events -n a,b").namespace, ["a", "b"]);
        assert_eq!(filter("events -p pod/web-0").namespace, ["mine"]);
        assert_eq!(filter("events -p prod/web-0").namespace, [""; 0]);
        assert_eq!(filter("verify deploy/web").namespace, ["mine"]);
        assert_eq!(filter("verify -A").namespace, [""; 0]);
        assert_eq!(filter("timeline web-0 -n prod").namespace, ["prod"]);
    }

    #[test]
    fn templates_are_refused_with_what_to_use() {
        for format in ["jsonpath={.container.id}", "go-template={{.}}", "custom-columns=ID:.id"] {
            let error = parse(&format!("kwitness ps -o {format}")).unwrap_err();
            assert!(error.contains("use -o json and jq"), "{error}");
        }
        let error = parse("kwitness verify -A -o nmae").unwrap_err();
        assert!(error.contains("possible values: table, wide, json, yaml, name"), "{error}");
        assert!(parse("kwitness verify -A -o name --sort-by={.verdict.file}").is_ok());
        assert!(parse("kwitness ps --sort-by .items[0]").is_err());
        for line in ["events -o name", "status -o name"] {
            assert!(parse(&format!("kwitness {line}")).is_err(), "{line}");
        }
    }

    #[test]
    fn habits_of_kubectl_are_understood() {
        let args =
            parse("kwitness events -A -l app=web -w --node a,b --context c --kwitness-namespace k").unwrap();
        assert_eq!(args.connection.node, ["a", "b"]);
        assert_eq!(args.connection.kwitness_namespace, "k");
        assert!(args.command.check().is_ok());
        assert!(parse("kwitness events -w --no-follow").is_err());
        assert!(parse("kwitness verify").is_err());
        for line in ["ps -w", "verify -A -w", "events --file x", "timeline --file x"] {
            assert!(parse(&format!("kwitness {line}")).unwrap().command.check().is_err(), "{line}");
        }
    }
}
