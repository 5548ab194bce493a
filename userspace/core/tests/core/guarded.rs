//! The guard's reports: events of the containers that they are about, and requests for a verdict.

use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{
    Action, Basis, CgroupId, ContainerId, GapCause, GuardAct, GuardReport, GuardedProcess, GuardedState,
    KernelEvent, KernelTime, Kind, LevelRole, Observation, Output, ProcKey, Scan, ScanReason, VerdictScope,
};
use kwitness_core::node::Node as WholeNode;

use crate::common::*;

fn report(container: ContainerId, act: GuardAct) -> Observation {
    Observation::Guard(GuardReport { at: KernelTime(200), container, act })
}

fn raised() -> GuardAct {
    GuardAct::Raised { level: LevelRole::Container, from: 64, to: 128, held: 5 }
}

fn continued() -> GuardAct {
    let process = GuardedProcess { key: ProcKey { pid: 50, start: KernelTime(1) }, comm: "java".into() };
    GuardAct::Continued { process, held: 5, state: GuardedState::Running, reason: None }
}

#[test]
fn a_report_is_an_event_of_its_container_also_after_its_end_and_of_no_other() {
    let mut node = Node::new();
    node.start(7, 50);
    node.events();
    node.observe(report(container_id(8), raised()));
    assert!(node.output.events.is_empty(), "not known");
    for end in [false, true] {
        if end {
            node.rmdir(7);
            node.release(7);
            node.output.events.clear();
        }
        node.observe(report(container_id(7), raised()));
        let event = node.output.events.pop().expect("an event");
        assert_eq!((event.at, event.basis), (KernelTime(200), Basis::Guard));
        assert_eq!(event.kind, Kind::Guard(Box::new(raised())));
        assert_eq!(event.subject.expect("a container").container_id, container_id(7));
    }
}

#[test]
fn dropped_reports_are_a_gap_without_a_scan() {
    let mut node = Node::new();
    let (at, from, to) = (KernelTime(9), KernelTime(3), KernelTime(5));
    node.observe(Observation::GuardReportsDropped { at, from, to, count: 4 });
    let event = node.output.events.pop().expect("an event");
    let Kind::Gap(gap) = event.kind else { panic!("{:?}", event.kind) };
    assert_eq!((gap.cause, gap.from, gap.to), (GapCause::GuardReportsDropped, from, to));
    assert_eq!(gap.lost["guard_report"], 4);
    assert!(node.actions().is_empty());
}

#[test]
fn what_decides_the_guards_limit_is_judged() {
    let actions = |act| {
        let (mut node, mut output) = (WholeNode::new(Bounds::default()), Output::default());
        let scan = Scan { cgroups: vec![pod()], ..Scan::empty(ScanReason::Initial, KernelTime(1)) };
        node.observe(Observation::Scan(scan), &mut output);
        let fact = mkdir(POD, &container_path(7));
        let made = KernelEvent { at: KernelTime(2), cgroup: CgroupId(7), fact };
        node.observe(Observation::Kernel(made), &mut output);
        output.actions.clear();
        node.observe(report(container_id(7), act), &mut output);
        output.actions
    };
    assert_eq!(actions(raised()), [Action::Judge(VerdictScope::Container(container_id(7)))]);
    assert_eq!(actions(continued()), []);
}
