//! Which part of the machine the daemon sees: whether it is the host's or that of a node which is itself a container, and what the
//! kernel side has to translate for it.
//!
//! The kernel counts cgroups from the root of the hierarchy, and gives a process an id in its own pid namespace and in each one
//! above, up to the host's. What is reported is what a person on the node sees: paths as in its `/sys/fs/cgroup`, pids as in its
//! `ps`; the scan finds the same in `cgroup.procs` and `/proc`. So the daemon's own pid namespace must be the node's:
//!
//! | Watched | The daemon's pid namespace | |
//! |---|---|---|
//! | the whole hierarchy, or a part with the machine's first process in it | the host's | pids are the kernel's own |
//! | another part | the host's | refused: it need not be a node's; in `kubepods` alone, no root is found |
//! | the whole hierarchy | another | refused: the machine's other processes are not in it |
//! | a part of it | another, whose first process is in that part and in no container there | a node that is a container |
//! | a part of it | another | refused: that of a container, such as a pod without `hostPID` |
//!
//! A part is what is mounted in a node's cgroup namespace, or `kernel.subtree`.

use std::fs;

use kwitness_core::cgroup_path::{Placement, classify};
use kwitness_service::{in_initial_pid_namespace, pid_namespace};

use crate::cgroupfs::{CgroupFs, Subtree};
use crate::probe::Settings;

/// Whose pids are reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PidNamespace {
    /// The host's, as the kernel has them.
    Host,
    /// Those of a node that is a container, by the inode number of its pid namespace.
    Node(u32),
}

/// Why what is watched and the daemon's pid namespace are not one node's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PidNamespaceError {
    /// `/proc` shows the processes of another one.
    #[error("/proc is of another pid namespace than this process: existing processes cannot be identified")]
    Procfs,
    /// A part is mounted, and nothing shows that it is a node's.
    #[error(
        "only a part of the cgroup hierarchy is mounted, and process 1 is not in it: containers outside of that part \
         cannot be seen"
    )]
    Part,
    /// The whole hierarchy is watched from within a pid namespace.
    #[error("this process is not in the host's pid namespace: existing processes cannot be identified")]
    Whole,
    /// It is a container's on the node.
    #[error("this process is not in the node's pid namespace: existing processes cannot be identified")]
    Container,
}

impl PidNamespaceError {
    /// How to fix it.
    pub fn remedy(self) -> &'static str {
        match self {
            Self::Procfs => "run it with hostPID: true, or mount procfs on /proc in this pid namespace",
            Self::Part => "mount the node's whole /sys/fs/cgroup",
            Self::Whole => {
                "run it with hostPID: true; in a node that is a container, use a private cgroup namespace, or set \
                 kernel.subtree to the node's cgroup"
            }
            Self::Container => "run it with hostPID: true",
        }
    }
}

impl PidNamespace {
    /// Finds whether this process's pid namespace, and what is mounted, are the node's.
    ///
    /// # Errors
    /// See [`PidNamespaceError`].
    pub fn find(cgroups: &CgroupFs) -> Result<Self, PidNamespaceError> {
        if in_initial_pid_namespace() {
            let is_nodes = cgroups.is_whole() || cgroups.path_of(1).is_some();
            return if is_nodes { Ok(Self::Host) } else { Err(PidNamespaceError::Part) };
        }
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let namespace = pid_namespace().filter(|_| is_shown_by_own_pid(&status));
        let namespace = namespace.ok_or(PidNamespaceError::Procfs)?;
        if cgroups.is_whole() && cgroups.subtree() == &Subtree::default() {
            return Err(PidNamespaceError::Whole);
        }
        let is_first = std::process::id() == 1;
        let first = cgroups.path_in_subtree(1).filter(|path| !is_first && is_outside_containers(path));
        first.map(|_| Self::Node(namespace)).ok_or(PidNamespaceError::Container)
    }

    /// Has the kernel side report what this process sees of the machine.
    pub fn apply(self, settings: &mut Settings, cgroups: &CgroupFs) {
        settings.top = cgroups.top_id().0;
        settings.subtree = cgroups.subtree_id().0;
        settings.pid_namespace = match self {
            Self::Host => None,
            Self::Node(namespace) => Some(namespace),
        };
    }
}

/// Finds whose pids are reported, and has the kernel side report what this process sees of the machine. With `any`, a pid namespace
/// or a part that is not the node's is accepted: pids are the host's then, and outside the host's pid namespace no process that
/// exists is identified.
///
/// # Errors
/// See [`PidNamespaceError`], with what to do.
pub fn configure(settings: &mut Settings, cgroups: &CgroupFs, any: bool) -> anyhow::Result<()> {
    let pids = match PidNamespace::find(cgroups) {
        Ok(found) => found,
        Err(error) if any => {
            tracing::warn!("{error} (kernel.pid_namespace is \"any\")");
            PidNamespace::Host
        }
        Err(error) => anyhow::bail!(
            "{error}. Remedy: {}; or accept this with kernel.pid_namespace = \"any\"",
            error.remedy()
        ),
    };
    if let PidNamespace::Node(_) = pids {
        tracing::info!("this node is a container: paths and pids are reported as it has them");
    }
    pids.apply(settings, cgroups);
    Ok(())
}

/// Whether procfs shows a process, by its `status`, in the pid namespace that it is in: it lists the ids from the one that was
/// mounted for down to the process's own.
fn is_shown_by_own_pid(status: &str) -> bool {
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    ids.is_some_and(|ids| ids.split_whitespace().count() == 1)
}

fn is_outside_containers(path: &str) -> bool {
    classify(path) == Placement::Other
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn procfs_is_of_the_own_namespace_if_it_has_one_id() {
        assert!(is_shown_by_own_pid("Name:\tx\nNSpid:\t7\nNSpgid:\t7\t1\n"));
        assert!(!is_shown_by_own_pid("Name:\tx\nNSpid:\t4711\t7\n"));
        assert!(!is_shown_by_own_pid(""));
    }

    #[test]
    fn the_first_process_of_a_node_is_in_no_container() {
        for path in ["", "/init", "/init.scope", "/system.slice/k3s.service"] {
            assert!(is_outside_containers(path), "{path}");
        }
        let id = "7c1e0d5b9a3f48627c1e0d5b9a3f48627c1e0d5b9a3f48627c1e0d5b9a3f4862";
        let uid = "1b4f2a3c-0d5e-4f6a-8b7c-9d0e1f2a3b4c";
        for path in [
            format!("/kubelet/kubepods/burstable/pod{uid}/{id}"),
            format!("/kubelet.slice/kubelet-kubepods.slice/cri-containerd-{id}.scope"),
            format!("/system.slice/docker-{id}.scope/init.scope"),
        ] {
            assert!(!is_outside_containers(&path), "{path}");
        }
    }
}
