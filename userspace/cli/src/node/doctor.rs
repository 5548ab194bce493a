//! `kwitness doctor`: the node's prerequisites and how to fix problems. A running daemon reports its own hooks and runtime;
//! without one, the hooks are tried for a moment, which takes privileges.

mod configuration;
mod kubernetes;
mod memory_pressure;
mod namespaces;
mod privileges;
mod runtime;

use std::borrow::Cow;
use std::ffi::OsString;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anstyle::AnsiColor;
use serde::Serialize;

use crate::capabilities::{capabilities_table, privileges_table};
use crate::connect::connect;
use crate::exit::Code;
use crate::options::Output as OutputArgs;
use crate::output::{Format, Output};
use crate::table::{Cell, Fit, Table, hanging};
use kwitness_agent::cgroupfs::{self, CgroupFs, Roots, Subtree};
use kwitness_agent::config::Config;
use kwitness_agent::cri::list_once;
use kwitness_agent::daemon::watch_limits;
use kwitness_agent::pressure;
use kwitness_agent::probe::environment::{self, CheckVerdict};
use kwitness_agent::probe::{Advised, Charges, ProbeError, pins, survey};
use kwitness_agent::wire::{capability, problem};
use kwitness_api::client::Error;
use kwitness_api::proto;
use kwitness_core::model::Problem;

#[derive(Debug, clap::Args)]
pub struct Doctor {
    /// The configuration file to check without a daemon [default: /etc/kwitness/config.toml, if it exists]
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
    /// Whether the capabilities are a running daemon's.
    daemon: bool,
    kernel: String,
    checks: Vec<Finding>,
    capabilities: Vec<proto::Capability>,
    /// What a running daemon holds.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    privileges: Vec<proto::Privilege>,
}

/// A fact about the node.
#[derive(Debug, Serialize)]
struct Finding {
    name: Cow<'static, str>,
    verdict: String,
    found: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<String>,
}

pub async fn run(named: Option<OsString>, options: Doctor) -> anyhow::Result<Code> {
    let Doctor { config, output } = options;
    let config = Config::load(config.as_deref(), &[])?;
    let socket = named.unwrap_or_else(|| config.socket.clone().into_os_string());
    let report = examine(config, socket).await;
    let mut out = Output::new();
    match output.output {
        Format::Table => text(&mut out, &report, false)?,
        Format::Wide => text(&mut out, &report, true)?,
        format => out.value(format, &report)?,
    }
    out.flush()?;
    Ok(match (report.healthy, report.capabilities.is_empty()) {
        (true, _) => Code::Success,
        (false, true) if report.is_unprivileged() => Code::Denied,
        (false, _) => Code::Failure,
    })
}

/// What was found out with the default configuration, for `bugtool`.
pub async fn report(named: Option<OsString>) -> anyhow::Result<impl Serialize> {
    let config = Config::load(None, &[])?;
    let socket = named.unwrap_or_else(|| config.socket.clone().into_os_string());
    Ok(examine(config, socket).await)
}

/// The check that everything else depends on.
const PRIVILEGES: &str = "privileges";

async fn examine(own: Config, socket: OsString) -> Report {
    let status = match connect(Some(socket)).await {
        Ok(mut client) => client.status().await.map(|status| (client.address().to_string(), status)),
        Err(error) => Err(error),
    };
    let (config, judged_by) = configuration::judged(own, status.as_ref().ok().map(|(_, status)| status));
    let config = &config;
    let mut checks: Vec<Finding> = environment::check().into_iter().map(Finding::from).collect();
    checks.push(judged_by);
    checks.extend(namespaces::findings(config));
    checks.push(pinned(config));
    checks.extend(controllers(&config.subtree));
    let mut report = Report {
        healthy: false,
        daemon: status.is_ok(),
        kernel: environment::kernel_release(),
        checks,
        capabilities: Vec::new(),
        privileges: Vec::new(),
    };
    match status {
        Ok((address, status)) => {
            // The daemon has its own.
            report.checks.retain(|check| check.name != PRIVILEGES);
            report.checks.extend(privileges::finding(&status.privileges));
            report.privileges = status.privileges;
            report.checks.extend([runtime::of_daemon(&status.runtime.unwrap_or_default()), statistics()]);
            report.checks.extend(status.kubernetes.as_ref().map(kubernetes::watch));
            report.checks.push(Finding::good("daemon", format!("version {} at {address}", status.version)));
            report.checks.extend(status.problems.into_iter().map(Finding::from));
            report.kernel = status.kernel_release;
            report.capabilities = status.capabilities;
        }
        Err(error) => {
            report.checks.extend([runtime::found(&config.runtime), statistics()]);
            report.checks.extend(outside_roots(config).await);
            report.checks.extend(unread_programs(config));
            let remedy = match error {
                Error::PermissionDenied { .. } => "run with sudo, or join the group of its socket",
                _ => "start it with `kwitness daemon`",
            };
            report.checks.push(Finding::new("daemon", CheckVerdict::Degraded, error.to_string(), remedy));
            if !report.is_unprivileged() {
                // Loading takes a tenth of a second, and nothing else runs here.
                let cgroups = CgroupFs::find(&config.subtree).ok();
                let mut settings = namespaces::probe_settings(config, cgroups.as_ref());
                match &cgroups {
                    Some(cgroups) => pressure::configure(&mut settings, config, cgroups),
                    None => settings.charges = Charges::Off,
                }
                match survey(&settings) {
                    Ok(mut capabilities) => {
                        if let Some(cgroups) = &cgroups {
                            watch_limits(&mut capabilities, cgroups);
                            pressure::note_sampling(&mut capabilities, config, cgroups);
                        }
                        report.capabilities = capabilities.reports.iter().map(capability).collect();
                    }
                    Err(error) => report.checks.push(Finding::of_probes(error)),
                }
            }
        }
    }
    report.checks.extend(memory_pressure::finding(config, &report.capabilities));
    let is_fatal = |check: &Finding| check.verdict == CheckVerdict::Fatal.to_string();
    report.healthy = !report.checks.iter().any(is_fatal)
        && report
            .capabilities
            .iter()
            .all(|capability: &proto::Capability| !capability.vital || !capability.hook.is_empty());
    report
}

impl Report {
    /// Whether the hooks cannot be tried by this process.
    fn is_unprivileged(&self) -> bool {
        self.checks
            .iter()
            .any(|check| check.name == PRIVILEGES && check.verdict == CheckVerdict::Fatal.to_string())
    }

    /// What works less well than it could: degraded checks and capabilities. That no daemon runs is no property of the node.
    fn limitations(&self) -> usize {
        let is_degraded =
            |check: &&Finding| check.name != "daemon" && check.verdict == CheckVerdict::Degraded.to_string();
        let is_missing =
            |capability: &&proto::Capability| capability.hook.is_empty() || !capability.refused.is_empty();
        self.checks.iter().filter(is_degraded).count() + self.capabilities.iter().filter(is_missing).count()
    }
}

impl Finding {
    fn new(
        name: impl Into<Cow<'static, str>>,
        verdict: CheckVerdict,
        found: impl Into<String>,
        remedy: impl Into<String>,
    ) -> Self {
        Self {
            name: name.into(),
            verdict: verdict.to_string(),
            found: found.into(),
            remedy: Some(remedy.into()),
        }
    }

    /// What prevents every probe: one cause, one remedy.
    fn of_probes(error: ProbeError) -> Self {
        let Advised { found, remedy, .. } = error.into();
        Self::new(
            "BPF probes",
            CheckVerdict::Fatal,
            found,
            remedy.unwrap_or("report it with the kernel's version"),
        )
    }

    fn good(name: &'static str, found: impl Into<String>) -> Self {
        Self { name: name.into(), verdict: CheckVerdict::Good.to_string(), found: found.into(), remedy: None }
    }
}

impl From<environment::Check> for Finding {
    fn from(check: environment::Check) -> Self {
        let environment::Check { name, verdict, found, remedy } = check;
        Self { name: name.into(), verdict: verdict.to_string(), found, remedy: remedy.map(str::to_owned) }
    }
}

impl From<proto::Problem> for Finding {
    fn from(problem: proto::Problem) -> Self {
        let proto::Problem { name, found, remedy } = problem;
        Self::new(name.replace('_', " "), CheckVerdict::Degraded, found, remedy)
    }
}

/// Whether limits can be verified; none: there is no hierarchy.
fn controllers(subtree: &Subtree) -> Option<Finding> {
    const NAME: &str = "controllers";
    let path = CgroupFs::find(subtree).ok()?.mount_point().join("cgroup.controllers");
    let found = fs::read_to_string(path).unwrap_or_default();
    let is_missing = |name: &&str| found.split_whitespace().all(|found| found != *name);
    let missing: Vec<_> = ["cpu", "memory"].into_iter().filter(is_missing).collect();
    Some(if missing.is_empty() {
        Finding::good(NAME, found.trim())
    } else {
        Finding::new(
            NAME,
            CheckVerdict::Degraded,
            format!("no {} in cgroup v2: limits cannot be verified", missing.join(" and ")),
            "use cgroup v2 for all controllers: boot with systemd.unified_cgroup_hierarchy=1",
        )
    })
}

/// What outlives a daemon, and how long an outage may be.
fn pinned(config: &Config) -> Finding {
    const NAME: &str = "pins";
    let directory = &config.pin_directory;
    let can_pin = if config.pin { pins::check_file_system(directory) } else { Ok(()) };
    let sets = match can_pin.and_then(|()| pins::found(directory)) {
        Ok(sets) => sets,
        Err(error) => {
            let Advised { found, remedy, .. } = (&error).into();
            let verdict = if config.pin { CheckVerdict::Degraded } else { CheckVerdict::Unknown };
            return Finding::new(NAME, verdict, found, remedy.unwrap_or("run with sudo"));
        }
    };
    let path = |name: &String| directory.join(name).display().to_string();
    if let Some((name, flaw)) = sets.iter().find_map(|(name, flaw)| Some((name, (*flaw)?))) {
        let remedy = "the next daemon replaces it; or remove it with `kwitness uninstall-pins`";
        return Finding::new(NAME, CheckVerdict::Degraded, format!("{}: {flaw}", path(name)), remedy);
    }
    let kept = match sets.first() {
        Some((name, _)) => path(name),
        None => format!("nothing in {}", directory.display()),
    };
    let outage = match config.pin {
        true => format!(
            "while no daemon runs, the rings hold the lives of about {} containers",
            config.probe.lives_held()
        ),
        false => "kernel.pin is \"off\": while no daemon runs, nothing is recorded".to_owned(),
    };
    Finding::good(NAME, format!("{kept}; {outage}"))
}

/// Pinned programs that no daemon reads, nor the next one with this configuration.
fn unread_programs(config: &Config) -> impl Iterator<Item = Finding> {
    let directory = &config.pin_directory;
    let goes_on = config.pin && pins::found(directory).is_ok();
    let unread = pins::unread(directory).into_iter().filter(move |other| !goes_on || other != directory);
    unread.map(|other| {
        let directory = other.to_string_lossy().into();
        Finding::from(problem(&Problem::UnreadPrograms { directory }))
    })
}

/// The containers that a daemon with this configuration would not see; none: there are none, or that cannot be found out.
async fn outside_roots(config: &Config) -> Option<Finding> {
    /// The longest that a call may take.
    const DEADLINE: Duration = Duration::from_secs(2);
    let running = list_once(&config.runtime, DEADLINE).await.ok()??.running;
    let cgroups = CgroupFs::find(&config.subtree).ok()?;
    let outside =
        cgroupfs::outside_roots(&cgroups, &Roots::new(config.probe.roots.clone()), &running).ok()?;
    Problem::outside_roots(&outside).map(|outside| Finding::from(problem(&outside)))
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

fn text(out: &mut Output, report: &Report, is_wide: bool) -> anyhow::Result<()> {
    let width = out.width(if is_wide { Format::Wide } else { Format::Table });
    out.line(&format!("Kernel {}", report.kernel))?;
    out.line("")?;
    out.text(&tables(report, width))?;
    for line in lines(report, is_wide) {
        hanging(&line, width).iter().try_for_each(|line| out.line(line))?;
    }
    Ok(())
}

fn tables(report: &Report, width: Option<usize>) -> String {
    let rows: Vec<_> = report
        .checks
        .iter()
        .map(|check| vec![Cell::from(&*check.name), verdict(&check.verdict), Cell::from(&check.found)])
        .collect();
    let table = Table::new(width).column("CHECK", 0, Fit::Whole).column("VERDICT", 0, Fit::Whole).column(
        "FOUND",
        0,
        Fit::End(20),
    );
    let mut text = table.render(&rows);
    if !report.capabilities.is_empty() {
        text += "\n";
        text += &capabilities_table(&report.capabilities, width);
    }
    if !report.privileges.is_empty() {
        text += "\n";
        text += &privileges_table(&report.privileges, width);
    }
    text
}

/// What to do, and the summary; in full, also why each hook was refused.
fn lines(report: &Report, is_wide: bool) -> Vec<String> {
    let mut lines = vec![String::new()];
    if report.capabilities.is_empty() && report.is_unprivileged() {
        lines.push("Cannot check the kernel's BPF capabilities without privileges: unknown.".to_owned());
        lines.push("Run: sudo kwitness doctor".to_owned());
        return lines;
    }
    let mut remedies = Vec::new();
    for check in &report.checks {
        remedies.extend(check.remedy.as_ref().map(|remedy| format!("  {}: {remedy}", check.name)));
    }
    for capability in &report.capabilities {
        if !capability.remedy.is_empty() {
            remedies.push(format!("  {}: {}", capability.name, capability.remedy));
            remedies.push(format!("    not observed without it: {}", capability.cost));
        }
        if is_wide {
            remedies.extend(
                capability.refused.iter().map(|refused| format!("    {}: {refused}", capability.name)),
            );
        }
    }
    if !remedies.is_empty() {
        lines.push("What to do:".to_owned());
        lines.append(&mut remedies);
        lines.push(String::new());
    }
    lines.push(match (report.healthy, report.limitations()) {
        (false, _) => "This node cannot be watched: a requirement is missing.".to_owned(),
        (true, 0) => "OK: this node can be watched.".to_owned(),
        (true, 1) => "OK with 1 limitation.".to_owned(),
        (true, count) => format!("OK with {count} limitations."),
    });
    lines
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
    fn a_report_says_what_to_do() {
        let report = Report {
            healthy: false,
            daemon: false,
            kernel: "6.18.1".into(),
            checks: vec![
                Finding::good("BTF", "/sys/kernel/btf/vmlinux"),
                Finding::new("bpffs", CheckVerdict::Degraded, "not mounted", "mount it"),
            ],
            capabilities: vec![
                proto::Capability {
                    name: "task_exec".into(),
                    vital: true,
                    refused: vec![
                        "task_exec (raw_tp): excluded".into(),
                        "task_exec_raw (raw_tp): refused".into(),
                    ],
                    cost: "when a program starts".into(),
                    remedy: "run as root".into(),
                    ..Default::default()
                },
                proto::Capability {
                    name: "task_fork".into(),
                    hook: "raw_tp:sched_process_fork".into(),
                    ..Default::default()
                },
            ],
            privileges: vec![proto::Privilege {
                name: "CAP_BPF".into(),
                purpose: "bpf(2): read the maps".into(),
            }],
        };
        let shown = |is_wide| {
            let tables = anstream::adapter::strip_str(&tables(&report, None)).to_string();
            format!("{tables}{}\n", lines(&report, is_wide).join("\n"))
        };
        insta::assert_snapshot!("doctor", shown(false));
        insta::assert_snapshot!("doctor_wide", shown(true));
    }

    #[test]
    fn without_privileges_there_is_one_remedy() {
        let report = Report {
            healthy: false,
            daemon: false,
            kernel: "6.18.1".into(),
            checks: vec![Finding::new(PRIVILEGES, CheckVerdict::Fatal, "missing CAP_BPF", "run as root")],
            capabilities: Vec::new(),
            privileges: Vec::new(),
        };
        let lines = lines(&report, false);
        assert_eq!(lines.iter().filter(|line| line.contains("sudo kwitness doctor")).count(), 1, "{lines:?}");
        assert_eq!(lines.len(), 3, "{lines:?}");
    }

    #[test]
    fn limitations_are_counted() {
        let capability = |hook: &str, refused: &[&str]| proto::Capability {
            hook: hook.into(),
            refused: refused.iter().map(|text| (*text).to_owned()).collect(),
            ..Default::default()
        };
        let report = Report {
            healthy: true,
            daemon: true,
            kernel: "6.18.1".into(),
            checks: vec![Finding::new("tracefs", CheckVerdict::Degraded, "not mounted", "mount it")],
            capabilities: vec![capability("a", &[]), capability("b", &["c"]), capability("", &["d"])],
            privileges: Vec::new(),
        };
        assert_eq!(lines(&report, false).last().map(String::as_str), Some("OK with 3 limitations."));
    }
}
