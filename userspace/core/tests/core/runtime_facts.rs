//! What the runtime says of containers: reported once, kept as long as the container, and only of the pod that it is of.

use kwitness_core::model::{Action, CgroupId, KernelTime, Observation, PodUid, Problem, VerdictScope};

use crate::common::*;

#[test]
fn the_runtimes_facts_are_reported_once_and_kept() {
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
fn facts_that_come_after_the_end_are_reported_until_the_end_is_forgotten() {
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

fn facts_of_pod(name: &str, uid: &str) -> Option<std::sync::Arc<kwitness_core::model::RuntimeFacts>> {
    let facts = kwitness_core::model::RuntimeFacts {
        pod_uid: Some(kwitness_core::model::PodUid(uid.into())),
        ..(*facts(name)).clone()
    };
    Some(facts.into())
}

/// As its path spells it.
const POD_UID: &str = "1b4f2a3c-0d5e-4f6a-8b7c-9d0e1f2a3b4c";

#[test]
fn a_container_whose_path_and_runtime_name_different_pods_has_no_names() {
    let mut node = Node::new();
    node.mkdir(7);
    node.mkdir(8);
    node.events();
    node.resolve(7, facts_of_pod("web", "6e7d8c9b-1a2b-4c3d-9e8f-0a1b2c3d4e5f"));
    assert_eq!(node.events(), [""; 0]);
    assert!(matches!(
        &node.machine.problems()[..],
        [Problem::OtherPod { container, .. }] if container.cgroup_id == CgroupId(7)
    ));
    node.resolve(8, facts_of_pod("db", &POD_UID.replace('-', "")));
    assert_eq!(node.events().len(), 1, "the same pod");
    node.rmdir(7);
    assert!(node.machine.problems().is_empty());
}

#[test]
fn of_two_cgroups_with_one_containers_id_only_that_of_its_pod_has_its_names() {
    let fake = |pod: &str| format!("/kubepods/pod{pod}/{}", container_id(7));
    let other = "6e7d8c9b-1a2b-4c3d-9e8f-0a1b2c3d4e5f";
    let mut node = Node::new();
    node.mkdir(7);
    node.mkdir_at(2, 0, &format!("/kubepods/pod{other}"));
    node.mkdir_at(9, 2, &fake(other));
    let problems = node.machine.problems();
    assert!(
        matches!(&problems[..], [Problem::Ambiguous { container, paths }] if *container == container_id(7) && paths.len() == 2)
    );
    node.events();
    node.actions();
    node.resolve(7, Some(facts("web")));
    assert_eq!(node.events(), [""; 0], "the runtime does not say of which pod it is");
    let judged = |node: &Node, scope| {
        let subjects = node.machine.subjects(&scope);
        subjects.iter().map(|(subject, _)| subject.cgroup_id.0).collect::<Vec<_>>()
    };
    let scopes = || {
        let pods = [POD_UID, other].map(|uid| VerdictScope::Pod(PodUid(uid.into())));
        pods.into_iter().chain([VerdictScope::All, VerdictScope::Container(container_id(7))])
    };
    assert!(scopes().all(|scope| judged(&node, scope).is_empty()), "neither is known to be the container");
    node.resolve(7, facts_of_pod("web", POD_UID));
    let events = node.events();
    assert!(events.len() == 1 && events[0].ends_with(" 7"), "{events:?}");
    assert_eq!(node.machine.cgroup_of(&container_id(7)), Some(CgroupId(7)));
    let of_scopes: Vec<_> = scopes().map(|scope| judged(&node, scope)).collect();
    assert_eq!(of_scopes, [vec![7], vec![], vec![7], vec![7]], "it is the one that is judged");
    // The other one goes: nothing is unclear any more.
    node.rmdir(9);
    assert!(node.machine.problems().is_empty());
    assert_eq!(node.actions(), [Action::Resolve(container_id(7))]);
}
