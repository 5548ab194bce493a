//! What the machine remembers, for how long, and what it does when that is not enough.

use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::ScanReason::Repair;
use kwitness_core::model::{
    Action, CgroupId, Fact, KernelTime, Observation, Problem, Scan, Unreadable, UnreadableCgroup,
};

use crate::common::*;

#[test]
fn removed_cgroups_are_remembered_up_to_a_number() {
    let mut node = Node::with(Bounds { removed: 2, ..Bounds::default() });
    for cgroup in 7..10 {
        node.mkdir(cgroup);
        node.rmdir(cgroup);
    }
    node.events();
    for cgroup in 7..10 {
        node.resolve(cgroup, Some(facts("web")));
    }
    assert_eq!(node.events().len(), 2);
    let counters = node.machine.counters();
    assert_eq!((counters.removed_forgotten, counters.runtime_unmatched), (1, 1));
}

#[test]
fn a_cgroup_too_many_is_counted_and_asks_for_no_scan() {
    let mut node = Node::with(Bounds { cgroups: 2, ..Bounds::default() });
    node.start(7, 50);
    node.mkdir(8);
    node.first_exec(8, entering(51, 8), "/bin/app");
    assert_eq!(node.events(), [""; 0]);
    assert_eq!(node.actions(), []);
    let counters = node.machine.counters();
    assert_eq!((counters.cgroups_full, counters.unknown_cgroup, counters.unknown_dropped), (1, 1, 1));
    // A place becomes free.
    node.rmdir(7);
    node.events();
    node.mkdir(9);
    assert_eq!(node.events(), ["109 created by runc (mkdir) 9"]);
}

#[test]
fn a_process_too_many_is_reported_without_what_is_not_known_of_it() {
    // Two are as many as the one container may have.
    let mut node = Node::with(Bounds { processes: 3, ..Bounds::default() });
    node.start(7, 50);
    node.fork(7, child(51, 7));
    node.fork(7, child(52, 7));
    node.exit(7, child(52, 7), 0);
    node.exit(7, child(51, 7), 0);
    assert_eq!(
        node.events(),
        ["108 exited child 52 code 0 (exit) 7", "109 exited child 51 code 0 before_exec (exit) 7"]
    );
    assert_eq!(node.machine.counters().processes_full, 1);
    // The place is free again, also after a removal that left processes behind.
    node.fork(7, child(53, 7));
    node.rmdir(7);
    node.release(7);
    node.start(8, 60);
    node.fork(8, child(61, 8));
    assert_eq!(node.machine.counters().processes_full, 1);
}

#[test]
fn a_mkdir_seen_twice_is_one() {
    let mut node = Node::new();
    node.mkdir(7);
    node.mkdir(7);
    node.rmdir(7);
    node.rmdir(7);
    // Nor does it come back to life.
    node.mkdir(7);
    assert_eq!(node.events(), ["102 created by runc (mkdir) 7", "104 deleted by runc (rmdir) 7"]);
    assert!(node.machine.containers().all(|container| container.subject.cgroup_id != CgroupId(7)));
}

#[test]
fn cgroups_that_do_not_fit_are_a_gap_that_says_whose_they_are() {
    // The pod, the container and one group in it.
    let mut node = Node::with(Bounds { cgroups: 3, ..Bounds::default() });
    node.start(7, 50);
    for group in 20..25 {
        node.mkdir_at(group, 7, &group.to_string());
    }
    node.observe(Observation::Tick { at: KernelTime(node.now) });
    assert_eq!(node.events(), ["110 gap CapacityExceeded {\"cgroup_mkdir\": 4} (daemon) 7"]);
    node.observe(Observation::Tick { at: KernelTime(node.now) });
    assert_eq!(node.events(), [""; 0], "once");
}

#[test]
fn processes_and_records_that_do_not_fit_are_a_gap() {
    let mut node = Node::with(Bounds { processes: 1, parked: 1, ..Bounds::default() });
    node.start(7, 50);
    node.fork(7, child(51, 7));
    for unknown in 30..33 {
        node.populated(unknown, true);
    }
    node.events();
    node.observe(Observation::Tick { at: KernelTime(node.now) });
    assert_eq!(node.events(), ["109 gap CapacityExceeded {\"process\": 1} (daemon) 7"]);
    // Whose the records were, a scan has to say; these are of cgroups that it does not find, also the one that fitted.
    node.scan(Repair, node.now, vec![pod(), container(7, vec![(entering(50, 7), "/bin/app")])]);
    tick(&mut node);
    let gap = format!("{} gap CapacityExceeded {{\"record\": 3}} (daemon)", node.now);
    let events = node.events();
    assert!(events.contains(&gap), "{events:?}");
}

#[test]
fn the_state_is_right_again_only_when_nothing_is_untracked_and_room_is_used() {
    let mut node = Node::with(Bounds { cgroups: 2, ..Bounds::default() });
    node.start(7, 50);
    node.mkdir(8);
    node.actions();
    node.lose(node.now, node.now);
    let both = || vec![pod(), container(7, vec![(entering(50, 7), "/bin/app")]), container(8, vec![])];
    node.scan(Repair, node.now, both());
    let events = node.events();
    assert!(
        !events.iter().any(|event| event.contains("resynced")),
        "container 8 is not followed: {events:?}"
    );
    node.actions();
    node.observe(Observation::Tick { at: KernelTime(node.now) });
    assert_eq!(node.actions(), [], "there is no room yet");
    // The first container goes, and makes room.
    node.rmdir(7);
    node.observe(Observation::Tick { at: KernelTime(node.now) });
    assert_eq!(node.actions(), [Action::Rescan]);
    node.scan(Repair, node.now, vec![pod(), container(8, vec![])]);
    let events = node.events();
    assert!(events.iter().any(|event| event.contains("resynced found 1")), "{events:?}");
    assert!(node.state(8).is_some());
}

#[test]
fn what_the_kernel_side_cannot_track_is_looked_for_again_and_is_never_a_ghost() {
    let mut node = Node::new();
    node.start(7, 50);
    node.lose(node.now, node.now);
    node.actions();
    let found = vec![pod(), container(7, vec![(entering(50, 7), "/bin/app")])];
    let began = KernelTime(node.now);
    node.observe(Observation::Scan(Scan { untracked: 1, cgroups: found, ..Scan::empty(Repair, began) }));
    assert!(!node.events().iter().any(|event| event.contains("resynced")));
    node.actions();
    // Nothing makes room: its end would not be seen, so it is looked for all the same.
    node.observe(Observation::Tick { at: KernelTime(began.0 + 10_000_000_000) });
    assert_eq!(node.actions(), [Action::Rescan]);
    node.scan(Repair, began.0 + 10_000_000_000, vec![pod()]);
    assert!(node.state(7).is_none(), "its cgroup is gone");
    assert!(node.events().iter().any(|event| event.contains("resynced")));
}

/// A scan that cannot read a cgroup within a container, and did not meet what follows.
fn half_blind(node: &mut Node, path: &str, parent: u64, met: Vec<kwitness_core::model::ScannedCgroup>) {
    let mut unreadable = Unreadable::default();
    unreadable.push(UnreadableCgroup {
        path: path.into(),
        parent: CgroupId(parent),
        error: "Permission denied".into(),
    });
    node.now += 1;
    let empty = Scan::empty(Repair, KernelTime(node.now));
    node.observe(Observation::Scan(Scan { unreadable, cgroups: met, ..empty }));
}

#[test]
fn what_cannot_be_read_is_named_once_and_not_taken_for_gone() {
    let mut node = Node::new();
    for (cgroup, pid) in [(7, 50), (8, 60), (9, 70)] {
        node.start(cgroup, pid);
    }
    node.mkdir_at(20, 7, "a");
    node.mkdir_at(21, 20, "b");
    let seven = || container(7, vec![(entering(50, 7), "/bin/app")]);
    let eight = format!("{POD_PATH}/{}", container_id(8));
    for _ in 0..2 {
        // Of the first container an inner cgroup; the second as a whole; the third is not there any more.
        half_blind(
            &mut node,
            &format!("{}/a", container_path(7)),
            7,
            vec![pod(), seven(), container(8, vec![])],
        );
        half_blind(&mut node, &eight, POD, vec![pod(), seven(), container(20, vec![])]);
    }
    let events = node.events();
    let gaps: Vec<&String> = events.iter().filter(|event| event.contains("gap CgroupUnreadable")).collect();
    assert_eq!(gaps.len(), 4, "what is read and then is not again, is news: {events:?}");
    assert!(gaps[0].ends_with("7") && gaps[1].ends_with("(daemon)"), "{gaps:?}");
    assert!(node.state(8).is_some() && node.state(9).is_none());
    assert!(matches!(&node.machine.problems()[..], [Problem::UnreadableCgroups(found)] if found.count == 1));
    let same = vec![pod(), seven(), container(20, vec![])];
    half_blind(&mut node, &eight, POD, same.clone());
    assert!(!node.events().iter().any(|event| event.contains("gap")), "once");
    // The second can be read again, and is gone.
    node.scan(Repair, node.now, same);
    let events = node.events();
    assert!(events.iter().any(|event| event.contains("resynced found 0 gone 1")), "{events:?}");
    assert!(node.machine.problems().is_empty() && node.state(8).is_none());
}

/// The events since one looked last that are about that cgroup's container.
fn lines_of(node: &mut Node, cgroup: u64) -> Vec<String> {
    let suffix = format!(" {cgroup}");
    node.events().into_iter().filter(|line| line.ends_with(&suffix)).collect()
}

fn tick(node: &mut Node) {
    node.observe(Observation::Tick { at: KernelTime(node.now) });
}

#[test]
fn one_container_that_makes_many_groups_costs_no_other_an_event() {
    let mut node = Node::with(Bounds { cgroups: 100, ..Bounds::default() });
    node.start(7, 50);
    for group in 1000..1200 {
        node.mkdir_at(group, 7, &group.to_string());
        // What is in a group that is not followed is no reason for a scan.
        node.populated(group, true);
    }
    let untracked = |action: &Action| matches!(action, Action::Untrack(_));
    let actions = node.actions();
    assert!(actions.iter().all(untracked), "no scan is requested");
    // The pod and the container are two: of 98, half is as much as is free then.
    assert_eq!(actions.len(), 200 - 49);
    tick(&mut node);
    assert_eq!(
        node.events(),
        [format!("{} gap CapacityExceeded {{\"cgroup_mkdir\": 151}} (daemon) 7", node.now)]
    );
    assert!(
        matches!(&node.machine.problems()[..], [Problem::BeyondShare(subject)] if subject.cgroup_id == CgroupId(7))
    );
    // Another container's whole life.
    node.mkdir(8);
    node.populated(8, true);
    node.attach(8, task(60));
    node.first_exec(8, entering(60, 8), "/bin/app");
    node.mkdir_at(2000, 8, "inner");
    node.exec(2000, child(61, 8), "/bin/inner");
    node.exit(8, entering(60, 8), 0);
    node.populated(8, false);
    node.rmdir(2000);
    node.rmdir(8);
    let events = lines_of(&mut node, 8);
    let kinds: Vec<&str> = events.iter().filter_map(|line| line.split(' ').nth(1)).collect();
    assert_eq!(kinds, ["created", "started", "exec", "exited", "stopped", "deleted"]);
}

#[test]
fn a_container_beyond_its_share_is_whole_again_once_there_is_room() {
    let mut node = Node::with(Bounds { cgroups: 10, ..Bounds::default() });
    node.start(7, 50);
    let groups =
        || (20..28).map(|group| scanned(group, 7, &format!("{}/{group}", container_path(7)), vec![]));
    for group in 20..28 {
        node.mkdir_at(group, 7, &group.to_string());
    }
    tick(&mut node);
    node.events();
    node.actions();
    // The node's own losses are repaired all the same, and the container's are reported once.
    node.lose(node.now, node.now);
    let running = || container(7, vec![(entering(50, 7), "/bin/app")]);
    node.scan(Repair, node.now, [pod(), running()].into_iter().chain(groups()).collect());
    tick(&mut node);
    let events = node.events();
    assert!(events.iter().any(|line| line.contains("resynced") && line.ends_with("(daemon)")), "{events:?}");
    assert!(!events.iter().any(|line| line.contains("CapacityExceeded")), "{events:?}");
    node.actions();
    // Two of its groups are removed: worth a look.
    node.rmdir(20);
    node.rmdir(21);
    tick(&mut node);
    assert_eq!(node.actions(), [Action::Rescan]);
    let left = groups().filter(|group| group.id.0 >= 24);
    node.scan(Repair, node.now, [pod(), running()].into_iter().chain(left).collect());
    let events = lines_of(&mut node, 7);
    assert!(events.iter().any(|line| line.contains("resynced")), "{events:?}");
    assert!(node.machine.problems().is_empty());
}

#[test]
fn a_scan_does_not_follow_what_the_kernel_side_does_not_track() {
    let mut node = Node::new();
    node.start(7, 50);
    node.lose(node.now, node.now);
    let running = container(7, vec![(entering(50, 7), "/bin/app")]);
    let mut group = scanned(20, 7, &format!("{}/20", container_path(7)), vec![]);
    group.beyond_share = true;
    node.scan(Repair, node.now, vec![pod(), running, group]);
    tick(&mut node);
    let events = lines_of(&mut node, 7);
    assert!(
        events.iter().any(|line| line.contains("gap CapacityExceeded {\"cgroup_mkdir\": 1}")),
        "{events:?}"
    );
    assert!(matches!(&node.machine.problems()[..], [Problem::BeyondShare(_)]));
}

#[test]
fn what_the_kernel_side_did_not_track_is_its_containers_loss() {
    let mut node = Node::new();
    node.start(7, 50);
    node.actions();
    for group in 20..23 {
        let Fact::Mkdir { parent, path, root, actor, .. } = mkdir(7, &group.to_string()) else {
            panic!("no mkdir")
        };
        node.kernel(group, Fact::Mkdir { parent, path, root, beyond_share: true, actor });
    }
    assert_eq!(node.actions(), [], "there is nothing to be taken out of the set");
    tick(&mut node);
    let events = lines_of(&mut node, 7);
    assert!(
        events.iter().any(|line| line.contains("gap CapacityExceeded {\"cgroup_mkdir\": 3}")),
        "{events:?}"
    );
    assert!(
        matches!(&node.machine.problems()[..], [Problem::BeyondShare(subject)] if subject.cgroup_id == CgroupId(7))
    );
    // A scan that finds them tracked by then makes it whole.
    let running = container(7, vec![(entering(50, 7), "/bin/app")]);
    let groups = (20..23).map(|group| scanned(group, 7, &format!("{}/{group}", container_path(7)), vec![]));
    node.scan(Repair, node.now, [pod(), running].into_iter().chain(groups).collect());
    let events = lines_of(&mut node, 7);
    assert!(events.iter().any(|line| line.contains("resynced")), "{events:?}");
    assert!(node.machine.problems().is_empty());
}

#[test]
fn a_fork_bomb_leaves_other_containers_their_processes() {
    let mut node = Node::with(Bounds { processes: 20, ..Bounds::default() });
    node.start(7, 50);
    for pid in 100..200 {
        node.fork(7, child(pid, 7));
    }
    tick(&mut node);
    let events = node.events();
    assert_eq!(events, [format!("{} gap CapacityExceeded {{\"process\": 91}} (daemon) 7", node.now)]);
    node.start(8, 300);
    node.fork(8, child(301, 8));
    node.exit(8, child(301, 8), 0);
    let events = node.events();
    assert!(events[0].contains("exited child 301 code 0 before_exec"), "it is remembered: {events:?}");
}

#[test]
fn removed_groups_of_one_container_do_not_make_others_forgotten() {
    let mut node = Node::with(Bounds { removed: 10, ..Bounds::default() });
    node.start(7, 50);
    node.start(8, 60);
    node.rmdir(8);
    for group in 1000..1100 {
        node.mkdir_at(group, 7, &group.to_string());
        node.rmdir(group);
    }
    tick(&mut node);
    let gaps = lines_of(&mut node, 7);
    assert!(gaps.iter().any(|line| line.contains("\"removed_cgroup\": 95")), "{gaps:?}");
    // The other's runtime answers late.
    node.resolve(8, Some(facts("web")));
    assert!(node.events().iter().any(|line| line.contains("updated") && line.ends_with(" 8")));
}

#[test]
fn whose_removed_groups_are_forgotten_is_who_has_most() {
    let mut node = Node::with(Bounds { removed: 10, ..Bounds::default() });
    node.start(7, 50);
    node.mkdir_at(1000, 7, "group");
    node.rmdir(1000);
    // Containers are in no other's share: these take what is left, and then of their own.
    for container in 20..40 {
        node.mkdir(container);
        node.rmdir(container);
    }
    node.start(8, 60);
    node.mkdir_at(1001, 8, "group");
    node.rmdir(1001);
    node.events();
    tick(&mut node);
    // Eleven of their own, and one more for the group of 8; the group of 7 is still remembered.
    assert_eq!(
        node.events(),
        [format!("{} gap CapacityExceeded {{\"removed_cgroup\": 12}} (daemon)", node.now)]
    );
}

#[test]
fn requests_that_are_forgotten_are_a_gap_of_their_containers() {
    let mut node = Node::new();
    node.start(7, 50);
    node.machine.forgot_requests(KernelTime(node.now), &[container_id(7), container_id(8)]);
    tick(&mut node);
    let now = node.now;
    let gap = |whose: &str| format!("{now} gap CapacityExceeded {{\"cri_request\": 1}} (daemon){whose}");
    assert_eq!(node.events(), [gap(""), gap(" 7")]);
}

#[test]
fn what_more_containers_lose_than_are_distinguished_is_reported_without_their_names() {
    const DISTINGUISHED: u64 = 64;
    let mut node = Node::new();
    let containers = 100..100 + DISTINGUISHED + 6;
    containers.clone().for_each(|container| node.mkdir(container));
    node.events();
    let ids: Vec<_> = containers.clone().map(container_id).collect();
    node.machine.forgot_requests(KernelTime(node.now), &ids);
    node.machine.forgot_requests(KernelTime(node.now), &ids);
    tick(&mut node);
    let now = node.now;
    let gap = |count: u64, whose: &str| {
        format!("{now} gap CapacityExceeded {{\"cri_request\": {count}}} (daemon){whose}")
    };
    let named = containers.take(DISTINGUISHED as usize).map(|container| gap(2, &format!(" {container}")));
    assert_eq!(node.events(), [gap(12, "")].into_iter().chain(named).collect::<Vec<_>>());
}

#[test]
fn records_of_one_unknown_cgroup_leave_room_for_those_of_another() {
    let mut node = Node::with(Bounds { parked: 20, ..Bounds::default() });
    node.lose(node.now, node.now);
    for pid in 100..200 {
        node.fork(30, child(pid, 30));
    }
    node.populated(31, true);
    node.events();
    tick(&mut node);
    assert_eq!(node.events(), [""; 0], "whose they were is not known yet");
    let found = container(30, vec![(entering(50, 30), "/bin/app")]);
    node.scan(Repair, node.now, vec![pod(), found, container(31, vec![])]);
    tick(&mut node);
    let gap = format!("{} gap CapacityExceeded {{\"record\": 90}} (daemon) 30", node.now);
    let events = node.events();
    assert!(events.contains(&gap), "{events:?}");
    assert_eq!(events.iter().filter(|line| line.contains("CapacityExceeded")).count(), 1, "{events:?}");
}
