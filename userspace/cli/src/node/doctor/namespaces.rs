//! Where this process's view of the cgroup hierarchy and of the processes begins, as a daemon's here would.

use kwitness_agent::cgroupfs::{CgroupFs, Subtree};
use kwitness_agent::config::Config;
use kwitness_agent::namespaces::PidNamespace;
use kwitness_agent::probe::Settings;
use kwitness_agent::probe::environment::CheckVerdict;

use super::Finding;

const CGROUPS: &str = "cgroup v2";
const PIDS: &str = "pid namespace";

/// The hierarchy, and whether the pids are those of the node that it is of.
pub(super) fn findings(config: &Config) -> Vec<Finding> {
    match CgroupFs::find(&config.subtree) {
        Ok(found) => vec![cgroups(&found), pid_namespace(&found, config.any_pid_namespace)],
        Err(error) => {
            // The remedy follows the semicolon.
            let text = error.to_string();
            let (found, remedy) = text.split_once("; ").unwrap_or((&text, "see above"));
            vec![Finding::new(CGROUPS, CheckVerdict::Fatal, found, remedy)]
        }
    }
}

/// The settings that a daemon's probes would have here.
pub(super) fn probe_settings(config: &Config, cgroups: Option<&CgroupFs>) -> Settings {
    let mut settings = config.probe.clone();
    if let Some(cgroups) = cgroups {
        PidNamespace::find(cgroups).unwrap_or(PidNamespace::Host).apply(&mut settings, cgroups);
    }
    settings
}

fn cgroups(found: &CgroupFs) -> Finding {
    let mut text = found.mount_point().display().to_string();
    if found.subtree() != &Subtree::default() {
        text += &format!(", only {}", found.subtree());
    }
    if !found.is_whole() {
        text += ": only this node's part, as the node is a container";
    }
    Finding::good(CGROUPS, text)
}

fn pid_namespace(cgroups: &CgroupFs, any: bool) -> Finding {
    match PidNamespace::find(cgroups) {
        Ok(PidNamespace::Host) => Finding::good(PIDS, "the host's"),
        Ok(PidNamespace::Node(_)) => Finding::good(PIDS, "the node's: the node is a container"),
        Err(error) => {
            let verdict = if any { CheckVerdict::Degraded } else { CheckVerdict::Fatal };
            let remedy = format!("{}; or set kernel.pid_namespace to \"any\"", error.remedy());
            Finding::new(PIDS, verdict, error.to_string(), remedy)
        }
    }
}
