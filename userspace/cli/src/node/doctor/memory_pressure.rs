//! How the daemon sees memory pressure on this node, and what that way misses.

use kwitness_agent::cgroupfs::CgroupFs;
use kwitness_agent::config::Config;
use kwitness_agent::pressure::MemoryFiles;
use kwitness_agent::probe::capability::MEMORY_CHARGES;
use kwitness_agent::probe::environment::CheckVerdict;
use kwitness_agent::probe::error_chain;
use kwitness_api::proto;

use super::Finding;

const NAME: &str = "memory pressure";

/// The finding; none: there is no cgroup v2 hierarchy, as another check says. `capabilities` are empty where hooks cannot be tried.
pub(super) fn finding(config: &Config, capabilities: &[proto::Capability]) -> Option<Finding> {
    if !config.pressure {
        return Some(Finding::good(NAME, "off (pressure.mode is \"off\")"));
    }
    Some(match MemoryFiles::find(&CgroupFs::find(&config.subtree).ok()?) {
        Ok(files) => {
            let limits_are_noticed = matches!(files, MemoryFiles::V2(_));
            Finding::good(NAME, found(&files.to_string(), limits_are_noticed, capabilities))
        }
        Err(error) => Finding::new(
            NAME,
            CheckVerdict::Degraded,
            format!("{}: it is not reported", error_chain(&error)),
            "boot without cgroup_disable=memory, or give the container the host's /sys/fs/cgroup",
        ),
    })
}

fn found(files: &str, limits_are_noticed: bool, capabilities: &[proto::Capability]) -> String {
    let hook = capabilities.iter().find(|capability| capability.name == MEMORY_CHARGES).map(|of| &*of.hook);
    match hook.filter(|hook| hook.ends_with("page_counter_try_charge")) {
        Some(hook) => {
            format!(
                "recorded at each charge ({hook}); falls, changed limits and forced charges are sampled: {files}"
            )
        }
        None if limits_are_noticed => format!(
            "sampled: {files}, and when a limit is reached (memory.events.local); missed: what rises and falls between two \
             samples, and which process was charging"
        ),
        None => format!(
            "sampled: {files}; missed: what begins and ends, or kills, between two samples, and which process was charging"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_basis_and_what_it_misses_are_named() {
        let of = |hook: &str, limits_are_noticed| {
            let capability =
                proto::Capability { name: MEMORY_CHARGES.into(), hook: hook.into(), ..Default::default() };
            found("memory.current", limits_are_noticed, &[capability])
        };
        assert!(of("fentry:page_counter_try_charge", true).starts_with("recorded at each charge (fentry:"));
        for hook in ["", "sampling:/sys/fs/cgroup"] {
            let (v1, v2) = (of(hook, false), of(hook, true));
            assert!(
                v1.starts_with("sampled: memory.current; missed: what begins and ends, or kills,"),
                "{v1}"
            );
            assert!(v2.starts_with("sampled: memory.current, and when a limit is reached"), "{v2}");
        }
        assert!(found("memory.current", false, &[]).starts_with("sampled"));
    }
}
