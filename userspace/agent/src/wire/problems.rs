//! What cannot be done at present, in words.

use kwitness_api::proto;
use kwitness_api::text::escape;
use kwitness_core::cgroup_path::shortened;
use kwitness_core::model::{ContainerId, Problem, UnreadableCgroup};
use kwitness_service::BindingState;

use crate::probe::RootPattern;

/// Of cgroups with one name, those that are named.
const PATHS_SHOWN: usize = 4;

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
        Problem::TooManyUnnamed => proto::Problem {
            name: "runtime_queries_full".to_owned(),
            found: "too many containers wait for the runtime's answer: others stay without names and labels until there \
                    is room"
                .to_owned(),
            remedy: "see how the runtime is; find out why there are so many containers that it does not know".to_owned(),
        },
        Problem::OutsideRoots { count, container, path } => {
            let (containers, are) = if *count == 1 { ("container", "is") } else { ("containers", "are") };
            proto::Problem {
                name: "containers_outside_roots".to_owned(),
                found: format!(
                    "{count} running {containers} of the runtime {are} in cgroups that are not tracked, such as {} in {}: \
                     neither events nor limits of {} are seen",
                    short_id(container),
                    shortened(path),
                    if *count == 1 { "it" } else { "them" },
                ),
                remedy: format!("add {} to kernel.roots, and restart the daemon", root_of(path, container)),
            }
        }
        Problem::RootsUnchecked { error } => proto::Problem {
            name: "roots_unchecked".to_owned(),
            found: format!(
                "whether the runtime has containers in cgroups that are not tracked cannot be found out: {error}"
            ),
            remedy: "see the log; it is tried again".to_owned(),
        },
        Problem::UnreadPrograms { directory } => {
            let directory = escape(directory);
            proto::Problem {
                name: "unread_programs".to_owned(),
                found: format!(
                    "programs of an earlier daemon are attached, pinned in {directory}: no daemon reads them, and the kernel runs them \
                     for every event"
                ),
                remedy: format!("kwitness uninstall-pins --set kernel.pin_directory={directory}"),
            }
        }
        Problem::LimitWritesUnread { error } => proto::Problem {
            name: "limit_writes_unread".to_owned(),
            found: format!("the notices of limit writes cannot be read, and some are lost: {error}"),
            remedy: "see what the node or the daemon has too little of, such as descriptors or memory; it is tried again, and \
                     all limits are read"
                .to_owned(),
        },
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
            let shown: Vec<_> = paths.iter().take(PATHS_SHOWN).map(|path| shortened(path)).collect();
            proto::Problem {
                name: "ambiguous_container".to_owned(),
                found: format!(
                    "{} cgroups are named as container {container}, such as {}",
                    paths.len(),
                    shown.join(", ")
                ),
                remedy: "find out who made them: a runtime makes one; the names are given to that of the container's pod only"
                    .to_owned(),
            }
        }
        Problem::More { count } => proto::Problem {
            name: "more_problems".to_owned(),
            found: format!("there are {count} more problems than are listed"),
            remedy: "solve those that are listed first".to_owned(),
        },
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

/// Of an address: that it cannot be listened on, if so.
pub fn unserved(binding: &BindingState) -> Option<proto::Problem> {
    let (setting, error) = binding.problem()?;
    Some(proto::Problem {
        name: "address_unavailable".to_owned(),
        found: format!("{setting}: {error}"),
        remedy: "stop what listens there, or set another address; it is tried again by itself".to_owned(),
    })
}

/// As much of an id as people are used to see.
fn short_id(container: &ContainerId) -> &str {
    container.0.get(..12).unwrap_or(&container.0)
}

/// What to configure as a root for a container's cgroup, quoted: the path up to the id, as far as that is allowed.
fn root_of(path: &str, container: &ContainerId) -> String {
    let end = path.rfind(&*container.0).unwrap_or(path.len());
    let name = path[..end].rsplit('/').next().unwrap_or_default();
    [&path[..end], name]
        .into_iter()
        .find(|pattern| pattern.parse::<RootPattern>().is_ok())
        .map_or_else(|| "the beginning of that path".to_owned(), |pattern| format!("{pattern:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_to_configure_as_a_root_covers_the_example_and_its_like() {
        let id = "7c1e0d5b9a3f4862".repeat(4);
        let container = ContainerId(id.as_str().into());
        let root = |path: &str| root_of(&path.replace("ID", &id), &container);
        assert_eq!(root("/k8s.io/ID"), "\"/k8s.io/\"");
        assert_eq!(root("/system.slice/cri-containerd-ID.scope"), "\"/system.slice/cri-containerd-\"");
        assert_eq!(root("/kubelet/ID"), "\"/kubelet/\"");
        let deep = format!("{}/crio-ID.scope", "/a".repeat(100));
        assert_eq!(root(&deep), "\"crio-\"", "a pattern has a limit");
        assert_eq!(root("/ID"), "the beginning of that path", "a root of everything is none");
        let outside = |count| {
            let path = format!("/k8s.io/{id}").into();
            problem(&Problem::OutsideRoots { count, container: container.clone(), path })
        };
        assert!(outside(3).found.starts_with("3 running containers of the runtime are in cgroups that"));
        assert!(outside(1).found.contains("such as 7c1e0d5b9a3f in /k8s.io/"), "{}", outside(1).found);
        assert!(outside(1).remedy.contains("add \"/k8s.io/\" to kernel.roots"), "{}", outside(1).remedy);
    }
}
