//! Scans after a loss, against records that are older, younger and missing.

use std::collections::BTreeMap;

use crate::common::*;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::ScanReason::Repair;
use kwitness_core::model::{
    Action, CgroupId, GapCause, KernelTime, LimitsAnswer, Loss, Observation, Output, Scan, ScanReason, State,
};

const NOTHING: [&str; 0] = [];

#[test]
fn a_loss_is_reported_at_once_and_requests_one_scan() {
    let mut node = Node::new();
    node.start(7, 50);
    node.lose(110, 120);
    assert_eq!(node.events(), ["120 gap RingFull {\"task_exec\": 3} (daemon)"]);
    assert_eq!(node.actions(), [Action::Rescan]);
    node.lose(120, 130);
    assert_eq!(node.events(), ["130 gap RingFull {\"task_exec\": 3} (daemon)"]);
    assert_eq!(node.actions(), []);
    // Too early a scan corrects what it can, and is not the end.
    node.now = 140;
    node.scan(Repair, 125, vec![pod()]);
    assert_eq!(node.events(), ["141 stopped ? (repair scan) 7", "141 deleted (repair scan) 7"]);
    assert_eq!(node.actions(), [Action::Rescan]);
    node.scan(Repair, 142, vec![pod(), container(8, vec![])]);
    assert_eq!(
        node.events(),
        ["142 created (repair scan) 8", "142 resynced found 1 gone 1 corrected 0 (daemon)"]
    );
    assert_eq!(node.actions(), [Action::Resolve(container_id(8))]);
}

#[test]
fn after_a_loss_of_limit_writes_the_limits_of_all_are_read() {
    let mut node = kwitness_core::node::Node::new(Bounds::default());
    let mut output = Output::default();
    let scan = |reason, at| {
        let empty = Scan::empty(reason, KernelTime(at));
        Observation::Scan(Scan { cgroups: vec![pod(), container(7, vec![]), container(8, vec![])], ..empty })
    };
    let mut observe = |observation| {
        node.observe(observation, &mut output);
        let events: Vec<_> = output.events.drain(..).map(|event| line(&event)).collect();
        (events, std::mem::take(&mut output.actions))
    };
    // The first reading may have begun before the loss: its answer does not end the matter.
    observe(scan(ScanReason::Initial, 100));
    let answer = |cgroup| {
        let (began, ended) = (KernelTime(101), KernelTime(102));
        let cgroup = CgroupId(cgroup);
        LimitsAnswer { cgroup, path: None, began, ended, gone: false, whole: true, readings: Vec::new() }
    };
    for cgroup in [POD, 7] {
        observe(Observation::LimitsRead(answer(cgroup)));
    }
    let (cause, lost, by_container) = (GapCause::WatchOverflow, BTreeMap::new(), BTreeMap::new());
    let (from, to) = (KernelTime(200), KernelTime(210));
    let loss = Loss { from, to, cause, lost, by_container, capabilities: Vec::new() };
    let (events, actions) = observe(Observation::Lost(loss));
    assert_eq!(events, ["210 gap WatchOverflow {} (daemon)"], "whose they were, nothing says");
    assert_eq!(actions, [Action::Rescan]);
    let (events, mut actions) = observe(scan(Repair, 220));
    assert!(events.iter().any(|line| line.contains("resynced")), "{events:?}");
    actions.extend(observe(Observation::LimitsRead(answer(8))).1);
    let is_read = |cgroup: u64| {
        actions.iter().any(|action| match action {
            Action::ReadLimits(read) => read.cgroup == CgroupId(cgroup) && read.limit_file.is_none(),
            _ => false,
        })
    };
    assert!(is_read(POD) && is_read(7) && is_read(8), "{actions:?}");
}

#[test]
fn a_loss_names_the_containers_whose_it_was_and_the_rest_may_be_any_ones() {
    let mut node = Node::new();
    let young = 3 << 32 | 8;
    node.start(7, 50);
    node.start(young, 51);
    node.lose_of(200, 6, &[(7, 2), (young, 3)]);
    let gap =
        |count: u64, whose: &str| format!("200 gap RingFull {{\"task_exec\": {count}}} (daemon){whose}");
    assert_eq!(node.events(), [gap(2, " 7"), gap(3, &format!(" {young}")), gap(1, "")]);
    assert_eq!(node.actions(), [Action::Rescan]);
    node.lose_of(200, 2, &[(7, 2)]);
    assert_eq!(node.events(), [gap(2, " 7")], "nothing is left");
    node.lose_of(200, 2, &[(9, 2)]);
    assert_eq!(node.events(), [gap(2, "")], "of one that is not known");
    // One that was removed is remembered for a while.
    node.rmdir(7);
    node.events();
    node.lose_of(200, 2, &[(7, 1)]);
    assert_eq!(node.events(), [gap(1, " 7"), gap(1, "")]);
}

#[test]
fn a_scan_corrects_what_the_lost_records_changed() {
    let mut node = Node::new();
    node.mkdir(7); // its start is lost
    node.start(8, 51); // its end is lost
    node.start(9, 52); // its removal is lost
    node.start(10, 53); // nothing is lost
    node.start(11, 54); // its end and its second start are lost
    node.exit(11, entering(54, 11), 0);
    node.populated(11, false);
    node.events();
    node.actions();
    node.now = 200;
    node.lose(150, 200);
    node.scan(
        Repair,
        200,
        vec![
            pod(),
            container(7, vec![(entering(50, 7), "/bin/app"), (child(60, 7), "/bin/w")]),
            container(8, vec![]),
            container(10, vec![(entering(53, 10), "/bin/app")]),
            container(11, vec![(entering(70, 11), "/bin/app")]),
        ],
    );
    assert_eq!(
        node.events(),
        [
            "200 gap RingFull {\"task_exec\": 3} (daemon)",
            "201 stopped ? (repair scan) 9",
            "201 deleted (repair scan) 9",
            "201 started main 50 /bin/app (repair scan) 7",
            "201 stopped ? (repair scan) 8",
            "201 started main 70 /bin/app (repair scan) 11",
            "201 resynced found 0 gone 1 corrected 3 (daemon)",
        ]
    );
    // Nothing is left to correct.
    node.scan(
        Repair,
        202,
        vec![
            pod(),
            container(7, vec![(entering(50, 7), "/bin/app"), (child(60, 7), "/bin/w")]),
            container(8, vec![]),
            container(10, vec![(entering(53, 10), "/bin/app")]),
            container(11, vec![(entering(70, 11), "/bin/app")]),
        ],
    );
    assert_eq!(node.events(), NOTHING);
    // What the scan found is known as if it had been seen.
    node.exit(7, child(60, 7), 0);
    node.exit(7, entering(50, 7), 9);
    node.populated(7, false);
    assert_eq!(
        node.events(),
        [
            "203 exited child 60 code 0 (exit) 7",
            "204 exited main 50 code 9 (exit) 7",
            "205 stopped code 9 (populated) 7",
        ]
    );
}

#[test]
fn a_scan_does_not_replace_a_main_process_by_itself() {
    let mut node = Node::new();
    node.start(7, 50);
    let main =
        |node: &Node| node.state(7).map(|state| (state.main.map(|main| main.key.start), state.program));
    let known = main(&node);
    node.lose(110, 120);
    node.now = 130;
    // The scan has its start to the tick only, which is earlier, and its program's path without symbolic links.
    node.scan(Repair, 121, vec![pod(), container(7, vec![(entering(50, 7), "/usr/bin/app")])]);
    assert_eq!(main(&node), known);
}

#[test]
fn younger_records_weigh_more_than_a_scan() {
    let mut node = Node::new();
    node.start(7, 50);
    node.mkdir(8);
    node.events();
    node.actions();
    node.lose(110, 120);
    node.now = 130;
    // The scan began at 121; what it met has changed since.
    node.exit(7, entering(50, 7), 1);
    node.populated(7, false);
    node.populated(8, true);
    node.first_exec(8, entering(51, 8), "/bin/app");
    node.mkdir(9);
    node.rmdir(7);
    node.events();
    node.actions();
    node.scan(
        Repair,
        121,
        // 7 was met before it was removed, 8 before it was started, and 9 was not made yet.
        vec![pod(), container(7, vec![(entering(50, 7), "/bin/app")]), container(8, vec![])],
    );
    assert_eq!(node.events(), ["137 resynced found 0 gone 0 corrected 0 (daemon)"]);
    assert_eq!(node.phase(7), None);
    assert_eq!(node.phase(8), Some(State::Running));
    assert_eq!(node.phase(9), Some(State::Created));
}

#[test]
fn a_released_group_does_not_come_back_either() {
    let mut node = Node::new();
    node.start(7, 50);
    let inner = format!("{}/inner", container_path(7));
    node.mkdir_at(8, 7, &inner);
    node.lose(110, 120);
    node.now = 121;
    node.rmdir(8);
    node.release(8);
    node.events();
    node.scan(
        Repair,
        120,
        vec![
            pod(),
            container(7, vec![(entering(50, 7), "/bin/app")]),
            scanned(8, 7, &inner, vec![(child(51, 7), "/bin/w")]),
        ],
    );
    assert_eq!(node.events(), ["124 resynced found 0 gone 0 corrected 0 (daemon)"]);
    // Nothing is known of the process that the scan had met there.
    node.exit(7, child(51, 7), 0);
    assert_eq!(node.events(), ["125 exited child 51 code 0 (exit) 7"]);
}

#[test]
fn a_container_whose_making_was_lost_is_found_and_its_records_replayed() {
    let mut node = Node::new();
    node.lose(100, 110);
    node.now = 110;
    node.populated(7, true);
    node.attach(7, task(50));
    node.first_exec(7, entering(50, 7), "/bin/app");
    assert_eq!(node.events(), ["110 gap RingFull {\"task_exec\": 3} (daemon)"]);
    node.scan(Repair, 114, vec![pod(), container(7, vec![(entering(50, 7), "/bin/app")])]);
    assert_eq!(
        node.events(),
        [
            "111 created (repair scan) 7",
            "113 started main 50 /bin/app (exec) 7",
            "114 resynced found 1 gone 0 corrected 0 (daemon)",
        ]
    );
    let counters = node.machine.counters();
    assert_eq!((counters.unknown_cgroup, counters.unknown_dropped), (3, 0));
}

#[test]
fn a_container_that_comes_and_goes_within_a_loss_is_not_found() {
    let mut node = Node::new();
    node.lose(100, 110);
    node.now = 110;
    node.exit(7, entering(50, 7), 0);
    node.rmdir(7);
    node.events();
    node.scan(Repair, 113, vec![pod()]);
    assert_eq!(node.events(), ["113 resynced found 0 gone 0 corrected 0 (daemon)"]);
    assert_eq!(node.machine.counters().unknown_dropped, 2);
    assert_eq!(node.actions(), [Action::Rescan]);
}

#[test]
fn cruns_inner_group_whose_making_was_lost() {
    let mut node = Node::new();
    node.mkdir(7);
    node.populated(7, true);
    node.lose(100, 110);
    node.now = 110;
    node.first_exec(8, entering(50, 7), "/bin/app");
    let inner = format!("{}/container", container_path(7));
    node.scan(
        Repair,
        112,
        vec![pod(), container(7, vec![]), scanned(8, 7, &inner, vec![(entering(50, 7), "/bin/app")])],
    );
    assert_eq!(
        node.events(),
        [
            "102 created by runc (mkdir) 7",
            "110 gap RingFull {\"task_exec\": 3} (daemon)",
            "111 started main 50 /bin/app (exec) 7",
            "112 resynced found 0 gone 0 corrected 0 (daemon)",
        ]
    );
}

#[test]
fn an_unknown_cgroup_asks_for_a_scan_without_a_gap() {
    let mut node = Node::new();
    // Nothing that a scan could still find.
    node.exit(7, child(50, 7), 0);
    node.rmdir(7);
    node.release(7);
    assert_eq!(node.actions(), []);
    // A group in an unknown container.
    node.mkdir_at(9, 8, &format!("{}/inner", container_path(8)));
    node.fork(9, child(52, 8));
    assert_eq!(node.actions(), [Action::Rescan]);
    let began = node.now + 1;
    node.scan(
        Repair,
        began,
        vec![
            pod(),
            container(8, vec![(entering(51, 8), "/bin/app")]),
            scanned(9, 8, &format!("{}/inner", container_path(8)), vec![(child(52, 8), "/bin/w")]),
        ],
    );
    assert_eq!(
        node.events(),
        [
            "105 created (repair scan) 8",
            "105 started main 51 /bin/app (repair scan) 8",
            "107 resynced found 1 gone 0 corrected 0 (daemon)",
        ]
    );
    assert_eq!(node.state(8).map(|state| state.forks), Some(1));
    assert_eq!(node.machine.counters().unknown_dropped, 2);
}

#[test]
fn a_record_younger_than_the_scan_waits_for_the_next() {
    let mut node = Node::new();
    node.lose(100, 110);
    node.now = 120;
    node.first_exec(7, entering(50, 7), "/bin/app");
    node.events();
    node.actions();
    // Began before the record; the cgroup may have been made after the scan came by.
    node.scan(Repair, 115, vec![pod()]);
    assert_eq!(node.events(), NOTHING);
    assert_eq!(node.actions(), [Action::Rescan]);
    node.scan(Repair, 123, vec![pod(), container(7, vec![(entering(50, 7), "/bin/app")])]);
    assert_eq!(
        node.events(),
        [
            "121 created (repair scan) 7",
            "121 started main 50 /bin/app (exec) 7",
            "123 resynced found 1 gone 0 corrected 0 (daemon)",
        ]
    );
}

#[test]
fn after_a_loss_nothing_is_reported_that_rests_on_the_lost_records() {
    let mut node = Node::new();
    node.start(7, 50);
    node.fork(7, child(51, 7));
    node.lose(107, 120); // the exec of 51, perhaps
    node.events();
    node.exit(7, child(51, 7), 0);
    node.now = 130;
    node.fork(7, child(52, 7));
    node.exit(7, child(52, 7), 0);
    assert_eq!(
        node.events(),
        ["107 exited child 51 code 0 (exit) 7", "132 exited child 52 code 0 before_exec (exit) 7"]
    );
}

#[test]
fn a_command_is_not_taken_for_the_start_that_was_lost() {
    let mut node = Node::new();
    node.mkdir(7);
    node.populated(7, true);
    node.attach(7, task(50));
    node.lose(105, 110); // the start
    node.now = 110;
    node.exec(7, entering(60, 7), "/bin/probe");
    node.scan(
        Repair,
        111,
        vec![pod(), container(7, vec![(entering(50, 7), "/bin/app"), (entering(60, 7), "/bin/probe")])],
    );
    assert_eq!(
        node.events()[2..],
        [
            "111 exec child 60 /bin/probe (exec) 7",
            "112 started main 50 /bin/app (repair scan) 7",
            "112 resynced found 0 gone 0 corrected 1 (daemon)",
        ]
    );
}

#[test]
fn parked_records_are_bounded() {
    // Two are as many as one cgroup may have.
    let mut node = Node::with(Bounds { parked: 3, ..Bounds::default() });
    for pid in 50..55 {
        node.fork(7, child(pid, 7));
    }
    assert_eq!(node.actions(), [Action::Rescan]);
    let began = node.now + 1;
    node.scan(Repair, began, vec![pod(), container(7, vec![(entering(40, 7), "/bin/app")])]);
    assert_eq!(node.state(7).map(|state| state.forks), Some(2));
    let counters = node.machine.counters();
    assert_eq!((counters.unknown_cgroup, counters.unknown_dropped), (5, 3));
}

#[test]
fn a_record_that_is_dropped_is_a_gap() {
    let gap = |node: &mut Node, count: u64| {
        node.now += 1;
        let at = KernelTime(node.now);
        node.observe(Observation::Tick { at });
        let expected = format!("{} gap CapacityExceeded {{\"record\": {count}}} (daemon)", at.0);
        assert_eq!(node.events(), [expected]);
    };
    // Of a cgroup that no scan can find any more.
    let mut node = Node::new();
    node.exit(7, child(50, 7), 0);
    node.rmdir(7);
    gap(&mut node, 2);
    // Of one that a scan did not find, before it began and while it was under way.
    node.lose(200, 210);
    node.now = 220;
    node.exit(7, child(50, 7), 0);
    node.now = 230;
    node.exit(8, child(51, 8), 0);
    node.events();
    node.scan(Repair, 225, vec![pod()]);
    assert_eq!(node.events(), ["232 resynced found 0 gone 0 corrected 0 (daemon)"]);
    gap(&mut node, 2);
    // Where nothing more fits.
    let mut node = Node::with(Bounds { cgroups: 1, ..Bounds::default() });
    node.fork(7, child(50, 7));
    gap(&mut node, 1);
    // What was gone before the first scan came by was never reported, so nothing is missing.
    let mut node = Node::starting(Bounds::default());
    node.exit(7, child(50, 7), 0);
    node.scan(ScanReason::Initial, 105, vec![pod()]);
    assert_eq!(node.machine.counters().unknown_dropped, 1);
    node.observe(Observation::Tick { at: KernelTime(300) });
    assert_eq!(node.events(), NOTHING);
}

#[test]
fn a_start_in_a_group_that_was_not_known_is_no_start_after_the_end() {
    let mut node = Node::new();
    node.mkdir(8);
    node.populated(8, true);
    node.lose(100, 110); // the making of crun's inner group, and the end of all in it
    node.now = 110;
    node.first_exec(9, entering(50, 8), "/bin/app");
    let inner = format!("{}/container", container_path(8));
    node.now = 120;
    node.rmdir(8);
    node.events();
    node.scan(
        Repair,
        115,
        vec![pod(), container(8, vec![]), scanned(9, 8, &inner, vec![(entering(50, 8), "/bin/app")])],
    );
    assert_eq!(
        node.events(),
        ["111 exec child 50 /bin/app (exec) 8", "122 resynced found 0 gone 0 corrected 0 (daemon)"]
    );
    // The group went with its container: the next scan does not miss it.
    node.scan(Repair, 123, vec![pod()]);
    assert_eq!(node.events(), NOTHING);
}
