//! Deaths that are easily attributed wrongly: which limit was reached, and whether the process was OOM-killed at all.

use crate::common::*;
use kwitness_core::model::{CgroupId, ExitStatus, Fact, OomScope, TaskInfo};

fn limit(cgroup: u64) -> Option<OomScope> {
    Some(OomScope::Limit(CgroupId(cgroup)))
}

fn dies(node: &mut Node, cgroup: u64, process: TaskInfo, signal: u8) {
    let status = ExitStatus::Signal { signal, core_dumped: false };
    node.kernel(cgroup, Fact::Exit { process, status, first: false });
}

/// The events without their times.
fn events(node: &mut Node) -> Vec<String> {
    node.events().iter().map(|line| line.split_once(' ').expect("a time").1.to_owned()).collect()
}

/// crun makes a group in the scope that systemd gave it, and sets the limits of both: that group is the container, whatever an
/// annotation calls it.
#[test]
fn the_limit_of_the_group_that_the_runtime_made_is_the_containers() {
    for name in ["container", "app"] {
        let mut node = Node::new();
        let scope = format!("{POD_PATH}/crio-{}.scope", container_id(7));
        node.mkdir_at(7, POD, &scope);
        node.attach(7, task(50));
        node.mkdir_at(8, 7, &format!("{scope}/{name}"));
        node.attach(8, task(50));
        node.first_exec(8, entering(50, 7), "/bin/app");
        node.events();
        node.oom_kill(8, entering(50, 7), limit(8));
        assert_eq!(events(&mut node), ["oom kill main 50 Container (oom kill) 7"], "{name}");
        // What the workload limits within is its own matter.
        node.mkdir_at(9, 8, &format!("{scope}/{name}/job"));
        node.fork(9, child(51, 7));
        node.oom_kill(9, child(51, 7), limit(9));
        assert_eq!(events(&mut node), ["oom kill child 51 Inner (oom kill) 7"], "{name}");
    }
}

#[test]
fn a_units_limit_in_a_container_is_not_the_containers() {
    let mut node = Node::new();
    node.start(7, 50);
    node.mkdir_at(8, 7, &format!("{}/system.slice", container_path(7)));
    node.mkdir_at(9, 8, &format!("{}/system.slice/app.service", container_path(7)));
    node.fork(9, child(51, 7));
    node.exec(9, child(51, 7), "/bin/app");
    node.events();
    node.oom_kill(9, child(51, 7), limit(9));
    assert_eq!(events(&mut node), ["oom kill child 51 Inner (oom kill) 7"]);
}

/// Sysbox: the first process lives in a group of its own, which has no memory controller.
#[test]
fn a_main_process_in_a_group_without_limits_is_killed_by_the_containers() {
    let mut node = Node::new();
    node.start(7, 50);
    node.mkdir_at(8, 7, &format!("{}/init.scope", container_path(7)));
    node.attach(8, entering(50, 7));
    node.events();
    node.oom_kill(8, entering(50, 7), limit(7));
    dies(&mut node, 8, entering(50, 7), 9);
    node.populated(8, false);
    node.populated(7, false);
    assert_eq!(
        events(&mut node),
        [
            "oom kill main 50 Container (oom kill) 7",
            "exited main 50 signal 9 (exit) 7",
            "stopped signal 9 oom (populated) 7",
        ]
    );
}

/// Without huge pages left there is SIGBUS; systemd-oomd and `cgroup.kill` send SIGKILL: 135 and 137, and no OOM kill.
#[test]
fn a_signal_alone_is_no_oom_kill() {
    for signal in [7, 9] {
        let mut node = Node::new();
        node.start(7, 50);
        node.fork(7, child(51, 7));
        dies(&mut node, 7, child(51, 7), signal);
        dies(&mut node, 7, entering(50, 7), signal);
        node.populated(7, false);
        let events = events(&mut node);
        assert!(!events.iter().any(|line| line.contains("oom")), "{events:?}");
        assert_eq!(events.last().unwrap(), &format!("stopped signal {signal} (populated) 7"));
    }
}
