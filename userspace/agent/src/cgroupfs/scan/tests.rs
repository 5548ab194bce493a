use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Mutex;

use super::*;
use crate::cgroupfs::directory::testing::Nest;
use crate::probe::Listed;

/// More than any test makes.
const CAPACITY: usize = 65_536;

/// What is tracked and what is above it, and what happens just before a cgroup is tracked.
#[derive(Default)]
struct Set<'a> {
    tracked: Mutex<BTreeSet<u64>>,
    above: Mutex<BTreeSet<u64>>,
    ancestries: Mutex<BTreeMap<CgroupId, Ancestry>>,
    before: Option<&'a (dyn Fn(CgroupId) + Sync)>,
}

impl Track for Set<'_> {
    fn track(&self, id: CgroupId, ancestry: Ancestry) -> io::Result<bool> {
        self.ancestries.lock().unwrap().insert(id, ancestry);
        self.before.iter().for_each(|before| before(id));
        Ok(self.tracked.lock().unwrap().insert(id.0))
    }

    fn is_tracked(&self, id: CgroupId) -> bool {
        self.tracked.lock().unwrap().contains(&id.0)
    }

    fn untrack(&self, id: CgroupId) -> io::Result<()> {
        self.tracked.lock().unwrap().remove(&id.0);
        Ok(())
    }

    fn track_above(&self, id: CgroupId) -> io::Result<()> {
        self.above.lock().unwrap().insert(id.0);
        Ok(())
    }

    fn listed(&self, most: usize) -> Listed {
        let listed = |set: &Mutex<BTreeSet<u64>>| set.lock().unwrap().iter().take(most).copied().collect();
        Listed { tracked: listed(&self.tracked), above: listed(&self.above) }
    }
}

fn ino(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// Who owns what the tests make.
fn own_uid() -> u32 {
    nix::unistd::geteuid().as_raw()
}

#[test]
fn a_root_that_another_user_made_is_none() {
    let root = tree(&[("user.slice/x-kubepods/kubepods/podfake", ""), ("kubepods", "")]);
    let set = Set::default();
    let scanned = |roots: &Roots| {
        let scan = scan(&CgroupFs::at(root.path()), roots, &set, CAPACITY, ScanReason::Initial).unwrap();
        scan.cgroups.iter().map(|cgroup| cgroup.path.to_string()).collect::<Vec<_>>()
    };
    assert!(scanned(&Roots::trusting(&[], own_uid() + 1)).is_empty());
    let configured = Roots::trusting(&["/user.slice/x-kubepods"], own_uid() + 1);
    assert_eq!(scanned(&configured).len(), 3);
}

/// A directory tree that looks like cgroupfs.
fn tree(paths: &[(&str, &str)]) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, pids) in paths {
        let directory = root.path().join(path);
        fs::create_dir_all(&directory).unwrap();
        for above in directory.ancestors().take_while(|above| *above != root.path()) {
            if !above.join("cgroup.events").exists() {
                fs::write(above.join("cgroup.events"), "populated 0\nfrozen 0\n").unwrap();
            }
        }
        let populated = u8::from(!pids.is_empty());
        fs::write(directory.join("cgroup.events"), format!("populated {populated}\nfrozen 0\n")).unwrap();
        fs::write(directory.join("cgroup.procs"), pids).unwrap();
    }
    root
}

#[test]
fn all_below_the_roots_is_found_parents_first_and_tracked() {
    let me = format!("{}\n", std::process::id());
    let root = tree(&[
        ("system.slice", ""),
        ("system.slice/sshd.service", &me),
        ("system.slice/docker-abc.scope/kubelet.slice/kubelet-kubepods.slice", ""),
        ("kubepods.slice", ""),
        ("kubepods.slice/kubepods-pod1.slice", ""),
        ("kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope", &me),
        ("kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope/container", ""),
        ("machine.slice/libpod-1.scope", ""),
    ]);
    let set = Set::default();
    let roots = Roots::trusting(&["/machine.slice/libpod-"], own_uid());
    let scan = scan(&CgroupFs::at(root.path()), &roots, &set, CAPACITY, ScanReason::Initial).unwrap();
    assert_eq!((scan.untracked, scan.unreadable.count), (0, 0));
    let above = ["machine.slice", "system.slice", "system.slice/docker-abc.scope"]
        .into_iter()
        .chain(["system.slice/docker-abc.scope/kubelet.slice"])
        .map(|path| fs::metadata(root.path().join(path)).unwrap().ino());
    assert_eq!(*set.above.lock().unwrap(), above.chain([ino(root.path())]).collect());
    let mut paths: Vec<&str> = scan.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
    for (index, cgroup) in scan.cgroups.iter().enumerate() {
        let on_disk = root.path().join(&cgroup.path[1..]);
        assert_eq!(cgroup.id.0, fs::metadata(&on_disk).unwrap().ino());
        if let Some(parent) = scan.cgroups.iter().position(|other| other.id == cgroup.parent) {
            assert!(parent < index, "{} before its parent", cgroup.path);
        } else if on_disk.parent() != Some(root.path()) {
            assert_eq!(cgroup.parent.0, fs::metadata(on_disk.parent().unwrap()).unwrap().ino());
        }
    }
    paths.sort_unstable();
    assert_eq!(
        paths,
        [
            "/kubepods.slice",
            "/kubepods.slice/kubepods-pod1.slice",
            "/kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope",
            "/kubepods.slice/kubepods-pod1.slice/cri-containerd-x.scope/container",
            "/machine.slice/libpod-1.scope",
            "/system.slice/docker-abc.scope/kubelet.slice/kubelet-kubepods.slice",
        ]
    );
    assert_eq!(set.tracked.lock().unwrap().len(), paths.len());
    let container = scan.cgroups.iter().find(|cgroup| cgroup.path.ends_with("x.scope")).unwrap();
    assert_eq!(container.populated, Some(true));
    assert_eq!(container.processes[0].task.key.pid, std::process::id());
    assert!(scan.began <= scan.ended);
}

#[test]
fn a_cgroup_that_goes_away_is_left_out_and_taken_out() {
    let root = tree(&[("kubepods", ""), ("kubepods/a", ""), ("kubepods/b", "")]);
    let going = root.path().join("kubepods/a");
    let before = |id: CgroupId| {
        if going.exists() && ino(&going) == id.0 {
            fs::remove_dir_all(&going).unwrap();
        }
    };
    let set = Set { before: Some(&before), ..Set::default() };
    let scan = scan(
        &CgroupFs::at(root.path()),
        &Roots::trusting(&[], own_uid()),
        &set,
        CAPACITY,
        ScanReason::Repair,
    )
    .unwrap();
    let paths: Vec<&str> = scan.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
    assert_eq!(paths, ["/kubepods", "/kubepods/b"]);
    assert_eq!(set.tracked.lock().unwrap().len(), 2);
}

#[test]
fn nothing_beside_the_subtree_is_found() {
    let root =
        tree(&[("kubepods/pod1", ""), ("node/kubelet/kubepods/pod2", ""), ("node2/kubepods/pod3", "")]);
    let scanned = |subtree: &str| {
        let cgroups = CgroupFs::below(root.path(), subtree).unwrap();
        let set = Set::default();
        let scan =
            scan(&cgroups, &Roots::trusting(&[], own_uid()), &set, CAPACITY, ScanReason::Initial).unwrap();
        let paths: Vec<String> = scan.cgroups.iter().map(|cgroup| cgroup.path.to_string()).collect();
        let above = set.above.into_inner().unwrap();
        assert_eq!(set.tracked.lock().unwrap().len(), paths.len());
        (paths, above)
    };
    let ids = |paths: &[&str]| -> BTreeSet<u64> {
        let ids = paths.iter().map(|path| fs::metadata(root.path().join(path)).unwrap().ino());
        ids.chain([ino(root.path())]).collect()
    };
    let (paths, above) = scanned("/node");
    assert_eq!(paths, ["/node/kubelet/kubepods", "/node/kubelet/kubepods/pod2"]);
    assert_eq!(above, ids(&["node", "node/kubelet"]));
    // What is above the subtree limits it, too; and it may lie within a root.
    let (paths, above) = scanned("/node/kubelet");
    assert_eq!(paths, ["/node/kubelet/kubepods", "/node/kubelet/kubepods/pod2"]);
    assert_eq!(above, ids(&["node", "node/kubelet"]));
    let (paths, above) = scanned("/node2/kubepods/pod3");
    assert_eq!(paths, ["/node2/kubepods/pod3"]);
    assert!(above.is_superset(&ids(&["node2", "node2/kubepods"])));
}

#[test]
fn one_containers_groups_leave_room_in_the_tracked_set() {
    let id = "7c1e0d5b9a3f48627c1e0d5b9a3f48627c1e0d5b9a3f48627c1e0d5b9a3f4862";
    let other = id.replace('7', "6");
    let groups: Vec<String> = (0..40).map(|group| format!("kubepods/poda/{id}/{group}")).collect();
    let late = format!("kubepods/podz/{other}");
    let mut all: Vec<(&str, &str)> = groups.iter().map(|path| (&**path, "")).collect();
    all.push((&late, ""));
    let root = tree(&all);
    let set = Set::default();
    let cgroups = CgroupFs::at(root.path());
    let roots = Roots::trusting(&[], own_uid());
    let scanned = || scan(&cgroups, &roots, &set, 25, ScanReason::Initial).unwrap();
    let first = scanned();
    let beyond = |scan: &Scan| scan.cgroups.iter().filter(|cgroup| cgroup.beyond_share).count();
    // kubepods, a pod and the container are three, the other pod and its container two: of what is left, half at most.
    let followed = 40 - beyond(&first);
    assert!((9..=11).contains(&followed), "{followed}");
    assert!(first.cgroups.iter().any(|cgroup| cgroup.path.ends_with(&other) && !cgroup.beyond_share));
    assert_eq!((first.untracked, set.tracked.lock().unwrap().len()), (0, followed + 5));
    assert_eq!(beyond(&scanned()), 40 - followed, "what is tracked stays so");
}

#[test]
fn the_kernel_side_learns_whose_a_cgroup_is() {
    let [node, first, second] = ["1", "2", "3"].map(|digit| digit.repeat(64));
    let pod = "kubepods/burstable/podp".to_owned();
    let inner = format!("{pod}/{first}/inner/kubepods/podq/{second}");
    let plain = format!("docker-{node}.scope/kubelet/{inner}");
    let paths = [&inner, &plain].map(|path| (&**path, ""));
    let root = tree(&paths);
    let set = Set::default();
    let roots = Roots::trusting(&["docker-"], own_uid());
    scan(&CgroupFs::at(root.path()), &roots, &set, CAPACITY, ScanReason::Initial).unwrap();
    let ancestries = set.ancestries.into_inner().unwrap();
    let id = |path: &str| CgroupId(ino(&root.path().join(path)));
    let ancestry = |path: &str| {
        let ancestry = ancestries[&id(path)];
        (ancestry.in_pods, ancestry.within.container())
    };
    assert_eq!(ancestry("kubepods"), (true, None));
    assert_eq!(ancestry(&pod), (true, None));
    let container = id(&format!("{pod}/{first}"));
    assert_eq!(ancestry(&format!("{pod}/{first}")), (true, Some(container)));
    assert_eq!(ancestry(&inner), (true, Some(container)), "what lies in it is the container's");
    let scope = format!("docker-{node}.scope");
    assert_eq!(ancestry(&scope), (false, Some(id(&scope))));
    assert_eq!(ancestry(&format!("{scope}/kubelet")), (false, Some(id(&scope))));
    assert_eq!(ancestry(&format!("{scope}/kubelet/{pod}")), (true, Some(id(&scope))));
    let container = id(&format!("{scope}/kubelet/{pod}/{first}"));
    assert_eq!(ancestry(&plain), (true, Some(container)), "a pod in a node in a container is a pod");
}

#[test]
fn containers_outside_of_all_roots_are_found_by_their_cgroups_names() {
    let id = |digit: &str| ContainerId(digit.repeat(64).into());
    let [tracked, plain, scope, elsewhere] = ["1", "2", "3", "4"].map(id);
    let paths = [
        format!("kubepods/pod1/{tracked}"),
        format!("k8s.io/{plain}"),
        format!("system.slice/cri-containerd-{scope}.scope/init"),
        format!("node/cri-containerd-{elsewhere}.scope"),
    ];
    let root = tree(&paths.each_ref().map(|path| (&**path, "")));
    let all = [&tracked, &plain, &scope, &elsewhere].map(Clone::clone).into();
    let outside = |roots: &[&str], subtree: &str, sought: &BTreeSet<ContainerId>| {
        let cgroups = CgroupFs::below(root.path(), subtree).unwrap();
        let found = outside_roots(&cgroups, &Roots::trusting(roots, own_uid()), sought).unwrap();
        found.into_iter().map(|(id, path)| (id, path.to_string())).collect::<Vec<_>>()
    };
    let of_plain = (plain.clone(), format!("/k8s.io/{plain}"));
    let of_scope = (scope.clone(), format!("/system.slice/cri-containerd-{scope}.scope"));
    let of_elsewhere = (elsewhere.clone(), format!("/node/cri-containerd-{elsewhere}.scope"));
    assert_eq!(outside(&[], "/", &all), [of_plain.clone(), of_scope, of_elsewhere.clone()]);
    assert_eq!(outside(&["cri-containerd-"], "/", &all), *std::slice::from_ref(&of_plain), "the remedy");
    assert_eq!(outside(&[], "/", &[plain].into()), [of_plain], "only what the runtime runs");
    assert_eq!(outside(&[], "/node", &all), [of_elsewhere], "only in what is watched");
}

/// As a user without privileges, on a thread of its own: the kernel keeps that user for each thread.
#[test]
fn what_cannot_be_read_is_left_out_and_named_and_the_rest_is_right() {
    use std::os::unix::fs::PermissionsExt as _;
    let root = tree(&[("kubepods/pod1/c/locked/inner", ""), ("kubepods/pod2", ""), ("locked", "")]);
    let locked = ["kubepods/pod1/c/locked", "locked"].map(|path| root.path().join(path));
    let mode = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    locked.iter().for_each(|path| mode(path, 0));
    mode(root.path(), 0o755);
    let set = Set::default();
    let cgroups = CgroupFs::at(root.path());
    let roots = Roots::trusting(&[], own_uid());
    let walk = || {
        nix::unistd::setfsuid(nix::unistd::Uid::from_raw(65_534));
        scan(&cgroups, &roots, &set, CAPACITY, ScanReason::Initial)
    };
    let scan = std::thread::scope(|scope| scope.spawn(walk).join()).unwrap().unwrap();
    locked.iter().for_each(|path| mode(path, 0o755));
    let mut unreadable: Vec<&str> = scan.unreadable.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
    unreadable.sort_unstable();
    assert_eq!(unreadable, ["/kubepods/pod1/c/locked", "/locked"]);
    assert!(scan.unreadable.cgroups.iter().all(|cgroup| cgroup.error.contains("ermission denied")));
    let mut paths: Vec<&str> = scan.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
    paths.sort_unstable();
    assert_eq!(paths, ["/kubepods", "/kubepods/pod1", "/kubepods/pod1/c", "/kubepods/pod2"]);
}

#[test]
fn of_a_path_that_is_not_kept_no_name_counts() {
    let (node, container) = (CgroupId(1), CgroupId(2));
    let [id, other] = ["a", "b"].map(|digit| digit.repeat(64));
    let within =
        |nest: &str| Within::Plain(node).of(container, &format!("/docker/{other}{nest}/kubepods/podx/{id}"));
    assert_eq!(within("/kubelet"), Within::Pod(container));
    assert_eq!(within(&"/kubelet".repeat(PATH_LIMIT / 8)), Within::Plain(node));
    // What lies in a pod's container is that container's.
    assert_eq!(Within::Pod(node).of(container, &format!("/kubepods/podx/{id}")), Within::Pod(node));
}

#[test]
fn a_nest_that_no_path_reaches_is_walked_with_one_descriptor() {
    let open = || fs::read_dir("/proc/self/fd").unwrap().count();
    for (name, depth) in [("x".repeat(250), 18), ("y".repeat(250), 40), ("x".to_owned(), 1500)] {
        let root = tree(&[("user.slice", ""), ("kubepods/pod1", ""), ("zzz/kubepods", "")]);
        let outside_top = root.path().join("user.slice");
        let _outside = Nest::make(&outside_top, &name, depth);
        let inside_top = root.path().join("kubepods/pod1");
        let inside = Nest::make(&inside_top, &name, depth);
        let most = Mutex::new(0);
        let count = |_| {
            let now = fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
            let mut most = most.lock().unwrap();
            *most = now.max(*most);
        };
        let set = Set { before: Some(&count), ..Set::default() };
        let before = open();
        let roots = Roots::trusting(&[], own_uid());
        let scan = scan(&CgroupFs::at(root.path()), &roots, &set, CAPACITY, ScanReason::Initial).unwrap();
        // Other tests run beside this one and open files, too; a descriptor a level would show all the same.
        assert!(*most.lock().unwrap() < before + 100, "a descriptor a level");
        assert!(scan.unreadable.is_empty(), "{:?}", scan.unreadable);
        let paths: Vec<&str> = scan.cgroups.iter().map(|cgroup| &*cgroup.path).collect();
        assert!(paths.contains(&"/zzz/kubepods") && paths.contains(&"/kubepods/pod1"));
        assert_eq!((scan.cgroups.len(), set.tracked.lock().unwrap().len()), (3 + depth, 3 + depth));
        assert!(paths.iter().all(|path| path.len() <= PATH_LIMIT + 4), "paths take memory");
        let innermost = scan.cgroups.iter().find(|cgroup| cgroup.id == inside.innermost().id().unwrap());
        assert!(innermost.is_some_and(|cgroup| cgroup.path.starts_with("/kubepods/pod1/")));
    }
}
