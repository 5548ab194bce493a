//! The first scan: what it finds, and what happens while it goes on.

use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::ScanReason::{Initial, Repair};
use kwitness_core::model::{Action, ExitStatus, Fact, KernelTime, ProcKey, State, TaskInfo};

use crate::common::*;

#[test]
fn what_runs_at_the_start_is_reported_as_found() {
    let mut node = Node::starting(Bounds::default());
    node.scan(
        Initial,
        100,
        vec![
            pod(),
            // Running; `kubectl exec` came later than its main process.
            container(
                7,
                vec![(entering(60, 7), "/bin/sh"), (entering(50, 7), "/bin/app"), (child(51, 7), "/bin/w")],
            ),
            // Created, and waiting for its start: the runtime's helper is in its namespaces already.
            container(8, vec![(entering(52, 8), "/usr/bin/runc")]),
            container(9, vec![(entering(53, 9), "/memfd:runc_cloned:/proc/self/exe (deleted)")]),
            // A sandbox without a process.
            container(10, vec![]),
            // In crun's inner group.
            container(11, vec![]),
            scanned(
                12,
                11,
                &format!("{}/container", container_path(11)),
                vec![(entering(54, 11), "/bin/app")],
            ),
            // Which is its main process is unknown.
            container(13, vec![(child(55, 13), "/bin/orphan")]),
        ],
    );
    let mut helper = entering(52, 8);
    helper.comm = "runc:[2:INIT]".into();
    assert_eq!(
        node.events(),
        [
            "100 created (initial scan) 7",
            "100 started main 50 /bin/app (initial scan) 7",
            "100 created (initial scan) 8",
            "100 created (initial scan) 9",
            "100 created (initial scan) 10",
            "100 created (initial scan) 11",
            "100 started main 54 /bin/app (initial scan) 11",
            "100 created (initial scan) 13",
            "100 started ? (initial scan) 13",
        ]
    );
    assert_eq!(node.actions().len(), 6, "each is to be resolved, and no rescan is needed");
    let state = node.state(7).expect("found");
    assert_eq!(state.created_at, None);
    let main = state.main.as_ref().expect("found, too");
    assert_eq!(
        (main.key.pid, state.started_at),
        (50, Some(main.key.start)),
        "its program came a little later"
    );
    assert_eq!(node.state(13).expect("found").started_at, None, "of an unknown process");
    assert_eq!(node.phase(13), Some(State::Running));
    assert_eq!(node.phase(8), Some(State::Created));

    // Life goes on: roles are known, and the start of what was waiting is not missed, marked or not.
    node.exec(8, entering(52, 8), "/bin/app");
    node.first_exec(9, entering(53, 9), "/bin/app");
    node.exit(7, entering(60, 7), 0);
    node.exit(7, entering(50, 7), 1);
    assert_eq!(
        node.events(),
        [
            "102 started main 52 /bin/app (exec) 8",
            "103 started main 53 /bin/app (exec) 9",
            "104 exited entered 60 code 0 (exit) 7",
            "105 exited main 50 code 1 (exit) 7",
        ]
    );
}

#[test]
fn a_process_that_a_scan_found_is_the_one_of_the_records() {
    // procfs cuts the start off to a clock tick.
    let started = |nanos| TaskInfo { key: ProcKey { pid: 50, start: KernelTime(nanos) }, ..entering(50, 7) };
    let mut node = Node::starting(Bounds::default());
    node.scan(Initial, 100, vec![pod(), container(7, vec![(started(40 * TICK), "/bin/app")])]);
    node.events();
    node.exit(7, started(41 * TICK), 1);
    node.exit(7, started(40 * TICK + 4_567_890), 2);
    assert_eq!(node.events(), ["102 exited child 50 code 1 (exit) 7", "103 exited main 50 code 2 (exit) 7"]);
}

#[test]
fn what_happens_during_the_first_scan_is_neither_lost_nor_doubled() {
    let mut node = Node::starting(Bounds::default());
    // All of these are older than the probes; the scan begins at 100.
    // 7 starts, 8 ends, 9 comes and goes, 10 runs a command, 11 ends before the scan comes by.
    node.first_exec(7, entering(50, 7), "/bin/app");
    node.exit(8, entering(51, 8), 3);
    node.populated(8, false);
    node.exec(10, entering(60, 10), "/bin/probe");
    node.exit(11, entering(53, 11), 4);
    node.populated(11, false);
    node.rmdir(8);
    // Made after the probes were attached: no need of a scan.
    node.mkdir_at(9, POD, &container_path(9));
    node.rmdir(9);
    assert_eq!(node.events(), ["108 created by runc (mkdir) 9", "109 deleted by runc (rmdir) 9"]);
    node.actions();
    node.scan(
        Initial,
        100,
        vec![
            pod(),
            container(7, vec![(entering(50, 7), "/bin/app")]),
            // Met before it ended.
            container(8, vec![(entering(51, 8), "/bin/app")]),
            // Met before it was removed.
            container(9, vec![]),
            container(10, vec![(entering(52, 10), "/bin/app"), (entering(60, 10), "/bin/probe")]),
            container(11, vec![]),
        ],
    );
    assert_eq!(
        node.events(),
        [
            "100 created (initial scan) 7",
            "100 created (initial scan) 8",
            "100 started main 51 /bin/app (initial scan) 8",
            "100 created (initial scan) 10",
            "100 started main 52 /bin/app (initial scan) 10",
            "100 created (initial scan) 11",
            "100 started ? (initial scan) 11",
            "101 started main 50 /bin/app (exec) 7",
            "102 exited main 51 code 3 (exit) 8",
            "103 stopped code 3 (populated) 8",
            "104 exec entered 60 /bin/probe (exec) 10",
            "105 exited child 53 code 4 (exit) 11",
            "106 stopped ? (populated) 11",
            "107 deleted by runc (rmdir) 8",
        ]
    );
    assert_eq!(node.actions().iter().filter(|action| **action == Action::Rescan).count(), 0);
    assert_eq!(node.machine.counters().unknown_dropped, 0);
}

#[test]
fn a_loss_before_the_first_scan_is_repaired_after_it() {
    let mut node = Node::starting(Bounds::default());
    node.lose(90, 100);
    assert_eq!(node.actions(), [Action::Rescan]);
    node.scan(Initial, 95, vec![pod(), container(7, vec![])]);
    node.scan(Repair, 102, vec![pod(), container(7, vec![])]);
    assert_eq!(
        node.events(),
        [
            "100 gap RingFull {\"task_exec\": 3} (daemon)",
            "95 created (initial scan) 7",
            "102 resynced found 0 gone 0 corrected 0 (daemon)",
        ]
    );
    assert_eq!(node.actions(), [Action::Resolve(container_id(7))]);
}

#[test]
fn a_main_process_whose_start_was_not_seen_is_known_by_the_kernels_mark() {
    let mut node = Node::starting(Bounds::default());
    node.scan(Initial, 100, vec![pod(), container(7, vec![(child(50, 7), "/bin/app")])]);
    node.events();
    node.kernel(7, Fact::Exit { process: child(50, 7), status: ExitStatus::Code(5), first: true });
    node.populated(7, false);
    assert_eq!(node.events(), ["102 exited main 50 code 5 (exit) 7", "103 stopped code 5 (populated) 7"]);
}
