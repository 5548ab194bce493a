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
    }
}
