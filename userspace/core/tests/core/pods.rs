//! Which containers a pod has, and whose names it goes by.

use kwitness_core::model::{CgroupId, CgroupIndex as _, PodUid, State, VerdictScope};

use crate::common::*;

const POD_UID: &str = "1b4f2a3c-0d5e-4f6a-8b7c-9d0e1f2a3b4c";
const OTHER_UID: &str = "6e7d8c9b-1a2b-4c3d-9e8f-0a1b2c3d4e5f";
const OTHER_POD: u64 = 2;

/// Two pods: one has the containers 7 and 8, the other one 9.
fn two_pods() -> Node {
    let mut node = Node::new();
    node.mkdir(7);
    node.mkdir(8);
    let other = format!("/kubepods/burstable/pod{OTHER_UID}");
    node.mkdir_at(OTHER_POD, 0, &other);
    node.mkdir_at(9, OTHER_POD, &format!("{other}/{}", container_id(9)));
    node
}

fn containers(node: &Node, uid: &str) -> Vec<u64> {
    let subjects = node.machine.subjects(&VerdictScope::Pod(PodUid(uid.into())));
    let mut ids: Vec<_> = subjects.iter().map(|(subject, _)| subject.cgroup_id.0).collect();
    ids.sort_unstable();
    ids
}

fn pod_name(node: &Node, pod: u64) -> Option<String> {
    let info = node.machine.info(CgroupId(pod)).expect("it is known");
    info.pod.expect("it is a pod's").name.map(|name| name.to_string())
}

#[test]
fn a_pod_has_those_of_its_containers_whose_cgroup_exists() {
    let mut node = two_pods();
    assert_eq!((containers(&node, POD_UID), containers(&node, OTHER_UID)), (vec![7, 8], vec![9]));
    node.rmdir(7);
    node.rmdir(9);
    assert_eq!((containers(&node, POD_UID), containers(&node, OTHER_UID)), (vec![8], vec![]));
    // The kernel's second report of the same end changes nothing.
    node.release(7);
    assert_eq!(containers(&node, POD_UID), [8]);
    node.mkdir_at(10, OTHER_POD, &format!("/kubepods/burstable/pod{OTHER_UID}/{}", container_id(10)));
    assert_eq!(containers(&node, OTHER_UID), [10]);
}

#[test]
fn how_far_a_containers_life_has_come_is_said_with_it() {
    let mut node = Node::new();
    node.mkdir(7);
    node.start(8, 50);
    node.start(9, 51);
    node.populated(9, false);
    let mut lives: Vec<_> = node.machine.subjects(&VerdictScope::All);
    lives.sort_unstable_by_key(|(subject, _)| subject.cgroup_id);
    let lives: Vec<_> = lives.into_iter().map(|(subject, state)| (subject.cgroup_id.0, state)).collect();
    assert_eq!(lives, [(7, State::Created), (8, State::Running), (9, State::Stopped)]);
}

#[test]
fn what_was_written_and_read_again_knows_the_same_of_pods() {
    let mut node = two_pods();
    node.rmdir(8);
    let written = serde_json::to_string(&node.machine).expect("it can be written");
    node.machine = serde_json::from_str(&written).expect("it can be read");
    assert_eq!((containers(&node, POD_UID), containers(&node, OTHER_UID)), (vec![7], vec![9]));
    node.rmdir(7);
    assert_eq!(containers(&node, POD_UID), [0; 0]);
}

#[test]
fn a_pod_has_the_names_of_a_container_of_its_own_that_has_some() {
    let mut node = two_pods();
    assert_eq!(pod_name(&node, POD), None);
    node.resolve(8, Some(facts("web")));
    assert_eq!((pod_name(&node, POD).as_deref(), pod_name(&node, OTHER_POD)), (Some("web-0"), None));
    node.rmdir(8);
    assert_eq!(pod_name(&node, POD), None, "no container is left that was named");
}
