//! Workloads that call themselves what the runtime's helper is called.

use crate::common::*;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::ScanReason::{Initial, Repair};
use kwitness_core::model::{Action, KernelTime, Observation, ProcKey, ScannedCgroup, State, TaskInfo};

const SECOND: u64 = 1_000_000_000;
/// What the helper of each runtime runs.
const PROGRAMS: [&str; 4] = ["/bin/app", "/usr/bin/crun", "/memfd:runc_cloned:/proc/self/exe (deleted)", "/"];

/// A process that calls itself so.
fn called(task: TaskInfo) -> TaskInfo {
    TaskInfo { comm: "runc:[x".into(), ..task }
}

/// A process that was started then.
fn started(at: u64, task: TaskInfo) -> TaskInfo {
    TaskInfo { key: ProcKey { start: KernelTime(at), ..task.key }, ..task }
}

fn tick(node: &mut Node, at: u64) {
    node.now = at;
    node.observe(Observation::Tick { at: KernelTime(at) });
}

fn scan(node: &mut Node, reason: kwitness_core::model::ScanReason, began: u64, container: ScannedCgroup) {
    node.now = began;
    node.scan(reason, began, vec![pod(), container]);
}

#[test]
fn a_container_that_runs_is_not_stopped_by_its_name() {
    for program in PROGRAMS {
        let mut node = Node::new();
        node.start(7, 50);
        node.lose(150, 160);
        node.events();
        scan(&mut node, Repair, 170, container(7, vec![(called(entering(50, 7)), program)]));
        assert_eq!(node.events(), ["171 resynced found 0 gone 0 corrected 0 (daemon)"], "{program}");
        assert_eq!(node.phase(7), Some(State::Running));
        // Nor by that of a child, when its main process has ended and left that behind.
        node.exit(7, entering(50, 7), 0);
        node.lose(180, 190);
        node.events();
        scan(&mut node, Repair, 200, container(7, vec![(called(child(51, 7)), program)]));
        assert_eq!(node.events(), ["201 resynced found 0 gone 0 corrected 0 (daemon)"], "{program}");
        assert_eq!(node.phase(7), Some(State::Running));
        // And what dies in it is not said to have executed nothing.
        node.exit(7, called(child(51, 7)), 0);
        assert_eq!(node.events(), ["202 exited child 51 code 0 (exit) 7"]);
    }
}

#[test]
fn forks_under_a_helpers_name_do_not_keep_a_repair_from_its_end() {
    let mut node = Node::new();
    node.start(7, 50);
    node.lose(150, 160);
    node.events();
    // A process comes during the scan, which met those before it.
    node.now = 180;
    node.fork(7, called(child(60, 7)));
    node.now = 190;
    node.actions();
    node.scan(Repair, 170, vec![pod(), container(7, vec![(called(entering(50, 7)), "/bin/app")])]);
    assert_eq!(node.events(), ["191 resynced found 0 gone 0 corrected 0 (daemon)"]);
    assert_eq!((node.phase(7), node.actions()), (Some(State::Running), vec![]));
}

/// It leaves its first process and that one's mount namespace behind, as it can in the node's pid namespace: what is seen of it
/// contradicts itself in every scan.
#[test]
fn a_container_that_contradicts_every_scan_does_not_keep_a_repair_from_its_end() {
    let mut node = Node::new();
    node.start(7, 50);
    node.exit(7, entering(50, 7), 0);
    node.lose(150, 160);
    node.events();
    node.actions();
    let mut scans = 0;
    let mut began = 170;
    loop {
        node.now = began + 5;
        node.fork(7, called(task(60)));
        node.scan(Repair, began, vec![pod(), container(7, vec![(called(task(55)), "/bin/app")])]);
        scans += 1;
        began = node.now + 1;
        if !node.actions().contains(&Action::Rescan) {
            break;
        }
        assert!(scans < 3, "{:?}", node.events());
    }
    assert!(node.events().iter().any(|line| line.contains("resynced")));
}

#[test]
fn in_a_new_epoch_a_process_that_is_too_old_for_a_helper_is_none() {
    for program in PROGRAMS {
        let mut node = Node::starting(Bounds::default());
        let old = started(SECOND, called(entering(50, 7)));
        let young = started(500 * SECOND, called(child(51, 7)));
        let now = 501 * SECOND;
        scan(&mut node, Initial, now, container(7, vec![(old, program), (young, program)]));
        let found = [
            format!("{now} created (initial scan) 7"),
            format!("{now} started main 50 {program} (initial scan) 7"),
        ];
        assert_eq!(node.events(), found);
        tick(&mut node, 1000 * SECOND);
        assert!(!node.actions().contains(&Action::Rescan), "nothing is open");
    }
}

#[test]
fn in_a_new_epoch_young_processes_hide_a_start_no_longer_than_a_helper_waits() {
    let mut node = Node::starting(Bounds::default());
    let (first, second) = (500 * SECOND, 630 * SECOND);
    let relay = |pid, at| container(7, vec![(started(at, called(child(pid, 7))), "/bin/app")]);
    scan(&mut node, Initial, first, relay(60, first - SECOND));
    assert_eq!(node.phase(7), Some(State::Created), "it may be the helper");
    node.events();
    node.actions();
    tick(&mut node, first + 100 * SECOND);
    assert_eq!(node.actions(), []);
    tick(&mut node, second);
    assert_eq!(node.actions(), [Action::Rescan]);
    tick(&mut node, second + SECOND);
    assert_eq!(node.actions(), [], "it is requested once");
    scan(&mut node, Repair, second + 2 * SECOND, relay(70, second));
    let now = second + 2 * SECOND + 1;
    assert_eq!(
        node.events(),
        [
            format!("{now} started ? (repair scan) 7"),
            format!("{now} resynced found 0 gone 0 corrected 1 (daemon)"),
        ]
    );
}

#[test]
fn in_a_new_epoch_processes_that_none_saw_hide_no_start() {
    let mut node = Node::starting(Bounds::default());
    let (first, second) = (500 * SECOND, 630 * SECOND);
    let unseen = || ScannedCgroup { populated: Some(true), ..container(7, vec![]) };
    scan(&mut node, Initial, first, unseen());
    assert_eq!(node.phase(7), Some(State::Created));
    tick(&mut node, second);
    scan(&mut node, Repair, second + SECOND, unseen());
    assert_eq!(node.phase(7), Some(State::Running));
}

#[test]
fn a_helper_that_waits_comes_to_its_start() {
    let mut node = Node::starting(Bounds::default());
    let helper = started(499 * SECOND, called(entering(50, 7)));
    scan(&mut node, Initial, 500 * SECOND, container(7, vec![(helper.clone(), "/usr/bin/runc")]));
    node.now = 501 * SECOND;
    node.exec(7, helper, "/bin/app");
    let now = 501 * SECOND + 1;
    assert_eq!(
        node.events(),
        [
            format!("{} created (initial scan) 7", 500 * SECOND),
            format!("{now} started main 50 /bin/app (exec) 7"),
        ]
    );
    node.actions();
    tick(&mut node, 700 * SECOND);
    assert_eq!(node.actions(), [], "there is nothing left to look at");
}
