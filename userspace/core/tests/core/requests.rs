//! Requests for limits that were missed: gaps, and requests for a verdict.

use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{
    Action, CgroupId, ContainerId, GapCause, KernelEvent, KernelTime, Kind, Observation, Output, Scan,
    ScanReason, VerdictScope,
};
use kwitness_core::node::Node as WholeNode;

use crate::common::*;

fn missed(container: Option<ContainerId>) -> Observation {
    let (at, from, to) = (KernelTime(9), KernelTime(3), KernelTime(5));
    Observation::RequestsMissed { at, container, from, to, count: 4 }
}

#[test]
fn missed_requests_are_a_gap_of_their_container_without_a_scan() {
    let mut node = Node::new();
    node.start(7, 50);
    node.events();
    node.actions();
    for (container, subject) in
        [(Some(container_id(7)), Some(container_id(7))), (Some(container_id(8)), None), (None, None)]
    {
        node.observe(missed(container));
        let event = node.output.events.pop().expect("an event");
        assert_eq!(event.subject.map(|subject| subject.container_id.clone()), subject);
        let Kind::Gap(gap) = event.kind else { panic!("{:?}", event.kind) };
        assert_eq!(
            (gap.cause, gap.from, gap.to),
            (GapCause::CriRequestsMissed, KernelTime(3), KernelTime(5))
        );
        assert_eq!(gap.lost["cri_request"], 4);
        assert!(node.actions().is_empty());
    }
}

#[test]
fn what_a_missed_request_may_explain_is_judged() {
    let (mut node, mut output) = (WholeNode::new(Bounds::default()), Output::default());
    let scan = Scan { cgroups: vec![pod()], ..Scan::empty(ScanReason::Initial, KernelTime(1)) };
    node.observe(Observation::Scan(scan), &mut output);
    let fact = mkdir(POD, &container_path(7));
    let made = KernelEvent { at: KernelTime(2), cgroup: CgroupId(7), fact };
    node.observe(Observation::Kernel(made), &mut output);
    for (container, expected) in [
        (Some(container_id(7)), vec![Action::Judge(VerdictScope::Container(container_id(7)))]),
        (Some(container_id(8)), vec![]),
        (None, vec![Action::Judge(VerdictScope::All)]),
    ] {
        output.actions.clear();
        node.observe(missed(container), &mut output);
        assert_eq!(output.actions, expected);
    }
}
