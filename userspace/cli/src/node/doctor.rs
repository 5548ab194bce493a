//! `kwitness doctor`: what this node offers, what is missing, what that costs and what to do. With a daemon, its own word on
//! the hooks; without, they are tried for a moment.

use std::fs;
use std::path::{Path, PathBuf};

use anstyle::AnsiColor;
use serde::Serialize;

use crate::args::{Format, Output as OutputArgs};
use crate::capabilities::needs_table;
use crate::client::{connect, socket};
use crate::exit::Code;
use crate::output::Output;
use crate::table::{Cell, Table};
use kwitness_agent::api::need;
use kwitness_agent::cgroupfs::{CgroupFs, Subtree, in_initial_pid_namespace};
use kwitness_agent::config::{Config, RuntimeChoice};
use kwitness_agent::daemon::watch_limits;
use kwitness_agent::probe::environment::{self, Verdict};
use kwitness_agent::probe::survey;
use kwitness_api::proto;
use kwitness_cri::CANDIDATES;

#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// The configuration file to judge without a daemon [default: /etc/kwitness/config.toml, if it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    #[command(flatten)]
    pub output: OutputArgs,
}

/// Everything that was found out.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    /// Whether the node can be, or is, watched.
    healthy: bool,
    /// Whether the needs are a running daemon's.
    daemon: bool,
    kernel: String,
    checks: Vec<Finding>,
    needs: Vec<proto::Need>,
}

/// A fact about the node.
#[derive(Debug, Serialize)]
struct Finding {
    name: &'static str,
    verdict: String,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

pub async fn run(named: Option<PathBuf>, options: Doctor) -> anyhow::Result<Code> {
    let Doctor { config, output } = options;
    let config = Config::load(config.as_deref(), &[])?;
    let socket = if named.is_none() { config.socket.clone() } else { socket(named) };
    let report = examine(&config, &socket).await;
    let mut out = Output::new();
    match output.output {
        Format::Table | Format::Wide => out.text(&text(&report))?,
        format => out.value(format, &report)?,
    }
    out.flush()?;
    Ok(if report.healthy { Code::Success } else { Code::Failure })
}

async fn examine(config: &Config, socket: &Path) -> Report {
    let mut checks: Vec<Finding> = environment::check().into_iter().map(Finding::from).collect();
    checks.extend([cgroups(&config.subtree), pid_namespace(), runtime(&config.runtime), statistics()]);
    let status = match connect(socket).await {
        Ok(mut client) => {
            client.status(proto::StatusRequest {}).await.map_err(|status| status.message().to_owned())
        }
        Err(unreachable) => Err(unreachable.reason),
    };
    let is_running = status.is_ok();
    let (kernel, needs) = match status {
        Ok(status) => {
            let status = status.into_inner();
            checks
                .push(Finding::good("daemon", format!("version {} at {}", status.version, socket.display())));
            (status.kernel_release, status.needs)
        }
        Err(reason) => {
            let found = format!("none at {}: {reason}; the hooks were tried without one", socket.display());
            checks.push(Finding::new("daemon", Verdict::Degraded, found, "start it with `kwitness daemon`"));
            // Loading takes a tenth of a second, and nobody else is waiting here.
            let mut capabilities = survey(&config.probe);
            if let Ok(cgroups) = CgroupFs::find(&config.subtree) {
                watch_limits(&mut capabilities, &cgroups);
            }
            (capabilities.kernel, capabilities.needs.iter().map(need).collect())
        }
    };
    let is_fatal = |check: &Finding| check.verdict == Verdict::Fatal.to_string();
    let healthy = !checks.iter().any(is_fatal)
        && needs.iter().all(|need: &proto::Need| !need.vital || !need.hook.is_empty());
    Report { healthy, daemon: is_running, kernel, checks, needs }
}

impl Finding {
    fn new(
        name: &'static str,
        verdict: Verdict,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self { name, verdict: verdict.to_string(), found: found.into(), remedy: Some(remedy.into()) }
    }

    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name, verdict: Verdict::Good.to_string(), found: found.into(), remedy: None }
    }
}

impl From<environment::Check> for Finding {
    fn from(check: environment::Check) -> Self {
        let environment::Check { name, verdict, found, remedy } = check;
        Self { name, verdict: verdict.to_string(), found, remedy: remedy.map(str::to_owned) }
    }
}

fn cgroups(subtree: &Subtree) -> Finding {
    const NAME: &str = "cgroup v2";
    match CgroupFs::find(subtree) {
        Ok(found) if found.subtree() == &Subtree::default() => {
            Finding::good(NAME, found.mount_point().display().to_string())
        }
        Ok(found) => Finding::good(NAME, format!("{}, only {subtree}", found.mount_point().display())),
        Err(error) => {
            // The remedy follows the semicolon.
            let text = error.to_string();
            let (found, remedy) = text.split_once("; ").unwrap_or((&text, "see above"));
            Finding::new(NAME, Verdict::Fatal, found, remedy)
        }
    }
}

fn pid_namespace() -> Finding {
    const NAME: &str = "pid namespace";
    if in_initial_pid_namespace() {
        return Finding::good(NAME, "the host's");
    }
    let found = "not the host's: processes that run already cannot be told";
    Finding::new(NAME, Verdict::Degraded, found, "run with hostPID: true, or without a pid namespace")
}

fn runtime(choice: &RuntimeChoice) -> Finding {
    const NAME: &str = "runtime";
    let found = match choice {
        RuntimeChoice::Never => return Finding::good(NAME, "not asked (runtime.endpoint is \"none\")"),
        RuntimeChoice::Auto => CANDIDATES.iter().map(Path::new).find(|path| path.exists()),
        RuntimeChoice::Socket(socket) => Some(&**socket).filter(|path| path.exists()),
    };
    match found {
        Some(path) => Finding::good(NAME, path.display().to_string()),
        None => Finding::new(
            NAME,
            Verdict::Degraded,
            "no container runtime's socket: containers keep their ids for names",
            "start the runtime, mount its socket into the container, or name it with runtime.endpoint",
        ),
    }
}

fn statistics() -> Finding {
    let enabled =
        fs::read_to_string("/proc/sys/kernel/bpf_stats_enabled").is_ok_and(|text| text.trim() == "1");
    let found = if enabled {
        "on: `kwitness status -o wide` shows what the programs cost (each run costs some 30 ns more)"
    } else {
        "off; `sysctl kernel.bpf_stats_enabled=1` shows what the programs cost"
    };
    Finding::good("BPF statistics", found)
}

fn text(report: &Report) -> String {
    let rows: Vec<_> = report
        .checks
        .iter()
        .map(|check| [check.name.into(), verdict(&check.verdict), check.found.clone().into()])
        .collect();
    let mut text = format!("Kernel {}\n\n", report.kernel);
    text += &Table::new([("CHECK", 0), ("VERDICT", 0), ("FOUND", 0)]).render(&rows);
    text += "\n";
    text += &needs_table(&report.needs);
    let remedies: Vec<String> = report
        .checks
        .iter()
        .filter_map(|check| Some(format!("{}: {}", check.name, check.remedy.as_ref()?)))
        .chain(report.needs.iter().filter(|need| !need.remedy.is_empty()).map(|need| {
            format!(
                "{}: {}\n    without it, not seen: {}\n    {}",
                need.name,
                need.remedy,
                need.cost,
                need.refused.join("\n    ")
            )
        }))
        .collect();
    if !remedies.is_empty() {
        text += "\nWhat to do:\n";
        for remedy in remedies {
            text += &format!("  {remedy}\n");
        }
    }
    text += if report.healthy {
        "\nThis node can be watched.\n"
    } else {
        "\nThis node cannot be watched: something vital is missing.\n"
    };
    text
}

fn verdict(verdict: &str) -> Cell {
    let style = match verdict {
        "good" => AnsiColor::Green.on_default(),
        "fatal" => AnsiColor::Red.on_default().bold(),
        _ => AnsiColor::Yellow.on_default(),
    };
    Cell::styled(verdict, style)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_in_words() {
        let report = Report {
            healthy: false,
            daemon: false,
            kernel: "6.18.1".into(),
            checks: vec![
                Finding::good("BTF", "/sys/kernel/btf/vmlinux"),
                Finding::new("bpffs", Verdict::Degraded, "not mounted", "mount it"),
            ],
            needs: vec![
                proto::Need {
                    name: "task_exec".into(),
                    vital: true,
                    refused: vec![
                        "task_exec_btf (tp_btf): excluded".into(),
                        "task_exec_raw (raw_tp): refused".into(),
                    ],
                    cost: "when a program starts".into(),
                    remedy: "run as root".into(),
                    ..Default::default()
                },
                proto::Need {
                    name: "task_fork".into(),
                    hook: "raw_tp:sched_process_fork".into(),
                    ..Default::default()
                },
            ],
        };
        insta::assert_snapshot!(anstream::adapter::strip_str(&text(&report)).to_string());
    }
}
