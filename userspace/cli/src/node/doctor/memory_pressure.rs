//! How the daemon sees memory pressure on this node, and what that way misses.

use kwitness_agent::cgroupfs::CgroupFs;
use kwitness_agent::config::Config;
use kwitness_agent::pressure::MemoryFiles;
use kwitness_agent::probe::environment::Verdict;
use kwitness_agent::probe::error_chain;

use super::Finding;

const NAME: &str = "memory pressure";

/// The finding; none: there is no cgroup v2 hierarchy, as another check says.
pub(super) fn finding(config: &Config) -> Option<Finding> {
    if !config.pressure {
        return Some(Finding::good(NAME, "off (pressure.mode is \"off\")"));
    }
    Some(match MemoryFiles::find(&CgroupFs::find(&config.subtree).ok()?) {
        Ok(files) => Finding::good(
            NAME,
            format!("sampled: {files}; missed: what begins and ends, or kills, between two samples"),
        ),
        Err(error) => Finding::new(
            NAME,
            Verdict::Degraded,
            format!("{}: it is not reported", error_chain(&error)),
            "boot without cgroup_disable=memory, or give the container the host's /sys/fs/cgroup",
        ),
    })
}
