//! What makes a cgroup a root of the tracked set: the rule, for the scan. The kernel side has the same one for what is made
//! later (`tracked_below` of `ebpf/probes/src/cgroup.rs`).
//!
//! | A cgroup is a root if | and |
//! |---|---|
//! | its name begins with `kubepods` or contains `-kubepods`, as the kubelet's do with any `cgroupRoot` | root owns it |
//! | its name begins with a configured name (`docker-`) | root owns it |
//! | its path begins with a configured path (`/machine.slice/libpod-`) | nothing more |
//!
//! Any user with a delegated cgroup (systemd's `user@UID.service`) may make a cgroup of any name in it, and below that one
//! with another pod's UID and another container's id. A name is therefore believed only if root chose it: the owner of a
//! cgroup's directory is whoever made it, unless root has given it away since. A path is a place, where only those can make
//! anything whom the place belongs to, so naming it in the configuration is trust enough. That is how a rootless runtime's
//! containers are watched. Below a root everything is tracked: who may make cgroups there was decided by the root's owner.

use crate::probe::RootPattern;

/// root, in the initial user namespace.
const ROOT_UID: u32 = 0;

/// What makes a cgroup a root of the tracked set; see the module's description.
#[derive(Clone, Debug)]
pub struct Roots {
    patterns: Vec<RootPattern>,
    trusted: u32,
}

impl Roots {
    /// The kubelet's, and the configured ones.
    pub fn new(patterns: Vec<RootPattern>) -> Self {
        Self { patterns, trusted: ROOT_UID }
    }

    /// Whether the cgroup of that path is one if root owns it.
    pub(super) fn may_contain(&self, path: &str) -> bool {
        let name = path.rsplit('/').next().unwrap_or(path);
        is_of_pods(name) || self.patterns.iter().any(|root| root.matches(path))
    }

    /// Whether the cgroup of that path, owned by that user, is one.
    pub(super) fn contain(&self, path: &str, owner: u32) -> bool {
        let by_path = |root: &RootPattern| root.is_path() && root.matches(path);
        (owner == self.trusted && self.may_contain(path)) || self.patterns.iter().any(by_path)
    }

    /// The same rule with another user in root's place.
    #[cfg(test)]
    pub(crate) fn trusting(patterns: &[&str], trusted: u32) -> Self {
        Self { patterns: patterns.iter().map(|text| text.parse().expect("a pattern")).collect(), trusted }
    }
}

/// Whether the cgroup of that path lies in, or is, one that is named as the kubelet's are.
pub(super) fn is_in_pods(path: &str) -> bool {
    path.split('/').any(is_of_pods)
}

fn is_of_pods(name: &str) -> bool {
    name.starts_with("kubepods") || name.contains("-kubepods")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_counts_if_root_chose_it_and_a_path_always() {
        let roots = Roots::trusting(&["docker-", "/user.slice/libpod-"], ROOT_UID);
        for path in ["/kubepods", "/kubepods.slice", "/x/kubelet-kubepods.slice", "/a/docker-1.scope"] {
            assert!(roots.contain(path, ROOT_UID), "{path}");
            assert!(!roots.contain(path, 65_534), "{path} of another user");
        }
        for path in ["/kubelet", "/system.slice", "/a-docker-1", "/xkubepods", "/x/user.slice/libpod-1"] {
            assert!(!roots.contain(path, ROOT_UID), "{path}");
        }
        assert!(roots.contain("/user.slice/libpod-1.scope", 1000));
    }
}
