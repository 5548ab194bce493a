//! What the machine remembers, for how long, and what it does when that is not enough.

use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::ScanReason::Repair;
use kwitness_core::model::{
    Action, CgroupId, KernelTime, Observation, Problem, Scan, Unreadable, UnreadableCgroup,
};

use crate::common::*;

#[test]
fn the_runtimes_facts_are_told_once_and_kept() {
    let mut node = Node::new();
    node.start(7, 50);
    node.resolve(7, Some(facts("web")));
    node.resolve(7, Some(facts("web")));
    node.exit(7, entering(50, 7), 0);
    let named = node.output.events.last().and_then(|event| event.subject.clone()).expect("an exit");
    assert_eq!(named.facts, Some(facts("web")));
    node.resolve(7, Some(facts("db")));
    // The runtime does not know it, or the node does not.
    node.resolve(7, None);
    node.resolve(8, Some(facts("ghost")));
    assert_eq!(
        node.events(),
        [
            "106 updated name,type,pod.name,pod.namespace (runtime) 7",
            "108 exited main 50 code 0 (exit) 7",
            "109 updated name (runtime) 7",
        ]
    );
    assert_eq!(node.machine.counters().runtime_unmatched, 2);
}

#[test]
fn facts_that_come_after_the_end_are_told_until_the_end_is_forgotten() {
    let mut node = Node::new();
    node.start(7, 50);
    node.rmdir(7);
    node.release(7);
    node.events();
    node.resolve(7, Some(facts("web")));
    assert_eq!(node.events(), ["108 updated name,type,pod.name,pod.namespace (runtime) 7"]);
    let keep = u64::try_from(node.machine.bounds().removed_for.as_nanos()).expect("it fits");
    node.observe(Observation::Tick { at: KernelTime(106 + keep - 1) });
    node.resolve(7, Some(facts("db")));
    assert_eq!(node.events(), ["109 updated name (runtime) 7"]);
    node.observe(Observation::Tick { at: KernelTime(106 + keep) });
    node.resolve(7, Some(facts("web")));
    assert_eq!(node.events(), [""; 0]);
    assert_eq!(node.machine.counters().runtime_unmatched, 1);
}

#[test]
fn facts_go_to_the_newest_cgroup_of_a_container() {
    let mut node = Node::new();
    node.start(7, 50);
    node.rmdir(7);
    // The same container, started again in a new cgroup.
    node.mkdir_at(8, POD, &container_path(7));
    node.events();
    node.resolve(7, Some(facts("web")));
    assert_eq!(node.events(), ["108 updated name,type,pod.name,pod.namespace (runtime) 8"]);
    let keep = u64::try_from(node.machine.bounds().removed_for.as_nanos()).expect("it fits");
    node.observe(Observation::Tick { at: KernelTime(keep + 107) });
    node.resolve(7, Some(facts("db")));
    assert_eq!(node.events(), ["109 updated name (runtime) 8"]);
}

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
fn a_process_too_many_is_told_but_not_claimed_about() {
    let mut node = Node::with(Bounds { processes: 2, ..Bounds::default() });
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
fn a_mkdir_told_twice_is_one() {
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
    assert_eq!(node.events(), ["109 gap CapacityExceeded {\"process\": 1, \"record\": 2} (daemon)"]);
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
    node.observe(Observation::Scan(Scan {
        reason: Repair,
        began,
        ended: began,
        untracked: 1,
        unreadable: Unreadable::default(),
        cgroups: found,
    }));
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
    let at = KernelTime(node.now);
    node.observe(Observation::Scan(Scan {
        reason: Repair,
        began: at,
        ended: at,
        untracked: 0,
        unreadable,
        cgroups: met,
    }));
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
