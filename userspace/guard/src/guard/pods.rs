//! Pods whose own limit is hit before those of their containers: they are guarded like containers.
//!
//! That is so where the containers may have more together than the pod: where the pod's spec has a limit for the pod as a whole. A
//! limit that is their sum rises with theirs.
//!
//! Owns the look at these limits: when the containers of a pod change, and again now and then, so many pods at a time.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::ops::Bound;

use crate::cgroup::Cgroup;
use crate::daemon::{self, Container};
use crate::policy::{Bytes, Policy, Selection};

/// Pods that are looked at again at a time.
const LOOKS: usize = 64;

/// The pods of which the policy selects a container.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// By cgroup path.
    known: BTreeMap<String, Known>,
    /// The one that was looked at again last.
    last: String,
}

/// A pod that may be guarded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pod {
    /// It, with the names of one of its containers that the policy selects.
    pub container: Container,
    /// Its limit is hit first.
    pub is_hit_first: bool,
}

#[derive(Debug)]
struct Known {
    selected: Container,
    /// The paths and ids of the cgroups of all its containers.
    members: Vec<(String, u64)>,
    found: Option<Pod>,
}

impl Pods {
    /// Takes the containers that run now, and looks at the pods whose containers have changed. As long as one of a pod may be its
    /// sandbox, the pod stays as it is.
    pub fn update(&mut self, policy: &Policy, containers: &[Container]) {
        let mut members: BTreeMap<&str, Vec<&Container>> = BTreeMap::new();
        let mut unsettled = BTreeSet::new();
        for container in containers {
            let Some(pod) = around(&container.cgroup_path) else { continue };
            if container.is_identified {
                members.entry(pod).or_default().push(container);
            } else {
                unsettled.insert(pod);
            }
        }
        let is_there = |path: &str| members.contains_key(path) || unsettled.contains(path);
        self.known.retain(|path, _| is_there(path));
        for (path, mut members) in members {
            if unsettled.contains(path) && self.known.contains_key(path) {
                continue;
            }
            members.sort_by(|a, b| (&a.name, &a.id).cmp(&(&b.name, &b.id)));
            let is_selected =
                |container: &&&Container| matches!(container.select(policy), Selection::Rule(_));
            let Some(selected) = members.iter().find(is_selected) else {
                self.known.remove(path);
                continue;
            };
            let selected = (*selected).clone();
            let members: Vec<_> =
                members.iter().map(|member| (member.cgroup_path.clone(), member.cgroup_id)).collect();
            let is_same = |known: &Known| known.selected == selected && known.members == members;
            if !self.known.get(path).is_some_and(is_same) {
                let mut known = Known { selected, members, found: None };
                known.look(Cgroup::find);
                self.known.insert(path.to_owned(), known);
            }
        }
    }

    /// Looks at some again; whether anything has changed.
    pub fn look_again(&mut self) -> bool {
        let last = self.last.as_str();
        let after = self.known.range::<str, _>((Bound::Excluded(last), Bound::Unbounded));
        let before = self.known.range::<str, _>((Bound::Unbounded, Bound::Included(last)));
        let due: Vec<String> = after.chain(before).take(LOOKS).map(|(path, _)| path.clone()).collect();
        let mut is_changed = false;
        for path in due {
            if let Some(known) = self.known.get_mut(&path) {
                is_changed |= known.look(Cgroup::find);
            }
            self.last = path;
        }
        is_changed
    }

    /// Those that there are.
    pub fn found(&self) -> impl Iterator<Item = &Pod> {
        self.known.values().filter_map(|known| known.found.as_ref())
    }
}

impl Known {
    /// Reads the limits; whether anything has changed. What cannot be read, as of a container that ends, is as it was.
    fn look(&mut self, find: impl Fn(&str, u64) -> io::Result<Option<Cgroup>>) -> bool {
        let Ok(found) = self.read(find) else { return false };
        let is_changed = found != self.found;
        self.found = found;
        is_changed
    }

    fn read(&self, find: impl Fn(&str, u64) -> io::Result<Option<Cgroup>>) -> io::Result<Option<Pod>> {
        let Container { cgroup_path, cgroup_id, .. } = &self.selected;
        let pod = find(cgroup_path, *cgroup_id)?.and_then(|cgroup| cgroup.pod());
        let (Some(pod), Some(path)) = (pod, around(cgroup_path)) else { return Ok(None) };
        let mut limits = Vec::new();
        for (path, id) in &self.members {
            if let Some(cgroup) = find(path, *id)? {
                limits.push(cgroup.limit()?);
            }
        }
        let is_hit_first = is_hit_first(pod.limit()?, &limits);
        let container =
            Container { cgroup_id: pod.id()?, cgroup_path: path.to_owned(), ..self.selected.clone() };
        Ok(Some(Pod { container, is_hit_first }))
    }
}

/// The pod's cgroup directly above that one.
fn around(cgroup_path: &str) -> Option<&str> {
    let (pod, _) = cgroup_path.trim_end_matches('/').rsplit_once('/')?;
    daemon::is_pod(pod).then_some(pod)
}

/// Whether a pod's limit can be hit while none of its containers is at its own.
fn is_hit_first(pod: Option<Bytes>, containers: &[Option<Bytes>]) -> bool {
    let together = containers.iter().try_fold(0_u64, |all, limit| all.checked_add((*limit)?.0));
    pod.is_some_and(|pod| together.is_none_or(|together| pod.0 < together))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;
    use std::path::Path;

    use super::*;

    const POD: &str = "/kubepods/burstable/podu";

    /// A directory that stands for a cgroup with that limit; its id.
    fn cgroup(root: &Path, path: &str, limit: &str) -> u64 {
        let directory = root.join(path.trim_start_matches('/'));
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join("memory.max"), limit).unwrap();
        fs::metadata(directory).unwrap().ino()
    }

    fn container(name: &str, cgroup_path: &str, cgroup_id: u64) -> Container {
        let known = |text: &str| Some(text.to_owned());
        Container {
            id: format!("id-{name}"),
            is_identified: true,
            cgroup_id,
            cgroup_path: cgroup_path.to_owned(),
            namespace: known("dev"),
            pod: known("web"),
            pod_uid: known("u"),
            name: known(name),
        }
    }

    #[test]
    fn a_pods_limit_is_hit_first_where_its_containers_may_have_more_together() {
        let bytes = |limits: &[u64]| limits.iter().map(|limit| Some(Bytes(*limit))).collect::<Vec<_>>();
        let pod = Some(Bytes(100));
        assert!(is_hit_first(pod, &bytes(&[60, 60])) && is_hit_first(pod, &bytes(&[u64::MAX, u64::MAX])));
        assert!(is_hit_first(pod, &[None]) && is_hit_first(pod, &[Some(Bytes(1)), None]));
        assert!(!is_hit_first(pod, &bytes(&[60, 40])) && !is_hit_first(pod, &bytes(&[])));
        assert!(!is_hit_first(None, &[None]) && !is_hit_first(None, &bytes(&[1])));
    }

    #[test]
    fn a_pod_stands_with_the_first_container_that_is_selected_and_is_looked_at_again() {
        let root = tempfile::tempdir().unwrap();
        let find = |path: &str, id: u64| Cgroup::below(root.path(), path, id);
        let pod_id = cgroup(root.path(), POD, "100");
        let paths = ["a", "b"].map(|name| format!("{POD}/{name}"));
        let [a, b] = ["60", "max"];
        let ids = [cgroup(root.path(), &paths[0], a), cgroup(root.path(), &paths[1], b)];
        let mut known = Known {
            selected: container("b", &paths[1], ids[1]),
            members: paths.iter().cloned().zip(ids).collect(),
            found: None,
        };
        assert!(known.look(find) && !known.look(find));
        let found = known.found.clone().unwrap();
        assert!(found.is_hit_first && found.container.is_pod());
        assert_eq!((found.container.cgroup_id, &*found.container.cgroup_path), (pod_id, POD));
        assert_eq!(found.container.name.as_deref(), Some("b"));
        cgroup(root.path(), &paths[1], "40");
        assert!(known.look(find) && !known.found.as_ref().unwrap().is_hit_first);
        // What cannot be read changes nothing, and what is gone has no limit.
        fs::write(root.path().join(&paths[1][1..]).join("memory.max"), "x").unwrap();
        assert!(!known.look(find));
        fs::remove_dir_all(root.path().join(&paths[1][1..])).unwrap();
        assert!(known.look(find) && known.found.is_none(), "the selected one is gone");
    }

    #[test]
    fn only_pods_with_a_container_that_is_selected_are_known() {
        let policy = "[[rule]]\ncontainer = \"b*\"\nstep = \"64Mi\"\nceiling = \"1Gi\"\n";
        let policy = Policy::parse(policy).unwrap();
        let other = format!("{POD}2");
        let of = |name: &str, pod: &str, id| container(name, &format!("{pod}/{name}"), id);
        let mut pods = Pods::default();
        let unknown = Container { is_identified: false, ..of("bx", &other, 5) };
        let outside = container("b", "/system.slice/b", 6);
        let all = [of("a", POD, 1), of("bc", POD, 2), of("bb", POD, 3), of("a", &other, 4), unknown, outside];
        pods.update(&policy, &all);
        let known: Vec<_> = pods.known.iter().map(|(path, known)| (path.as_str(), known)).collect();
        let [(path, known)] = known[..] else { panic!("{known:?}") };
        let ids: Vec<_> = known.members.iter().map(|(_, id)| *id).collect();
        assert_eq!((path, known.selected.cgroup_id, ids), (POD, 3, vec![1, 3, 2]));
        assert_eq!(pods.found().count(), 0, "there are no such cgroups");
        assert!(!pods.look_again());
        assert_eq!(pods.last, POD);
        // The daemon was started again, and asks for the names again.
        let again = Container { is_identified: false, ..of("bb", POD, 3) };
        pods.update(&policy, &[of("a", POD, 1), again]);
        assert_eq!(pods.known[POD].members.len(), 3);
        pods.update(&policy, &all[..1]);
        assert!(pods.known.is_empty());
    }
}
