//! What cannot be done at present, in words.

use kwitness_api::proto;
use kwitness_core::cgroup_path::shortened;
use kwitness_core::model::{Problem, UnreadableCgroup};

/// In the API's shape.
pub fn problem(problem: &Problem) -> proto::Problem {
    match problem {
        Problem::UnreadableCgroups(unreadable) => {
            let named = |cgroup: &UnreadableCgroup| format!("{} ({})", shortened(&cgroup.path), cgroup.error);
            let mut named: Vec<String> = unreadable.cgroups.iter().map(named).collect();
            let rest = unreadable.count - unreadable.cgroups.len() as u64;
            if rest > 0 {
                named.push(format!("and {rest} more"));
            }
            proto::Problem {
                name: "unreadable_cgroups".to_owned(),
                found: format!("containers below are not seen: {}", named.join(", ")),
                remedy: "correct the permissions of these directories, or give the daemon CAP_DAC_READ_SEARCH; they are \
                         tried again by themselves"
                    .to_owned(),
            }
        }
        Problem::OtherPod { container, runtime } => proto::Problem {
            name: "other_pod".to_owned(),
            found: format!(
                "the cgroup {} is not given the names of container {}: the runtime says that this is of pod {runtime}",
                shortened(&container.cgroup_path),
                container.container_id
            ),
            remedy: "find out who made the cgroup: a runtime makes none of another pod".to_owned(),
        },
        Problem::Ambiguous { container, paths } => {
            let paths: Vec<_> = paths.iter().map(|path| shortened(path)).collect();
            proto::Problem {
                name: "ambiguous_container".to_owned(),
                found: format!("several cgroups are named as container {container}: {}", paths.join(", ")),
                remedy: "find out who made them: a runtime makes one; the names are given to that of the container's pod only"
                    .to_owned(),
            }
        }
        Problem::Full => proto::Problem {
            name: "too_many_cgroups".to_owned(),
            found: "there are more cgroups than are tracked: containers among them are not seen".to_owned(),
            remedy: "raise kernel.tracked_capacity".to_owned(),
        },
        Problem::BeyondShare(container) => proto::Problem {
            name: "cgroups_beyond_share".to_owned(),
            found: format!(
                "container {} has more cgroups within its own than its share of what is tracked: events of some are not seen",
                container.container_id
            ),
            remedy: "raise kernel.tracked_capacity, or find out why it makes so many".to_owned(),
        },
    }
}
