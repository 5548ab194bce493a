//! What each turn of a container's life gives: one test a turn.

use crate::common::*;
use kwitness_core::model::{Action, CgroupId, ExitStatus, Fact, KernelTime, OomScope, State};

#[test]
fn a_life_under_runc() {
    let mut node = Node::new();
    node.mkdir(7);
    assert_eq!(node.phase(7), Some(State::Created));
    assert_eq!(node.actions(), [Action::Resolve(container_id(7))]);
    node.populated(7, true);
    // The helper is moved in, forks twice as it goes through the namespaces, and waits for the order to start.
    node.attach(7, task(50));
    node.fork(7, task(51));
    node.fork(7, task(52));
    node.exit(7, task(50), 0);
    node.exit(7, task(51), 0);
    assert_eq!(node.phase(7), Some(State::Created));
    node.first_exec(7, entering(52, 7), "/bin/app");
    assert_eq!(node.phase(7), Some(State::Running));
    node.fork(7, child(53, 7));
    node.exec(7, child(53, 7), "/bin/worker");
    node.exit(7, child(53, 7), 1);
    node.exit(7, entering(52, 7), 3);
    node.populated(7, false);
    assert_eq!(node.phase(7), Some(State::Stopped));
    node.rmdir(7);
    node.release(7);
    assert_eq!(node.phase(7), None);
    assert_eq!(
        node.events(),
        [
            "102 created by runc (mkdir) 7",
            "107 exited entered 50 code 0 before_exec (exit) 7",
            "108 exited child 51 code 0 before_exec (exit) 7",
            "109 started main 52 /bin/app (exec) 7",
            "111 exec child 53 /bin/worker (exec) 7",
            "112 exited child 53 code 1 (exit) 7",
            "113 exited main 52 code 3 (exit) 7",
            "114 stopped code 3 (populated) 7",
            "115 deleted by runc (rmdir) 7",
        ]
    );
    assert_eq!(node.actions(), []);
    assert_eq!(node.machine.counters(), Default::default());
}

#[test]
fn an_oom_kill_names_whose_limit_it_was_and_so_does_the_stop() {
    let mut node = Node::new();
    node.start(7, 52);
    node.fork(7, child(53, 7));
    // A child that the runtime never hears of, by a limit above; then the main process, by the container's own.
    node.oom_kill(7, child(53, 7), Some(OomScope::Limit(CgroupId(POD))));
    node.exit(7, child(53, 7), 137);
    node.oom_kill(7, entering(52, 7), Some(OomScope::Limit(CgroupId(7))));
    node.exit(7, entering(52, 7), 137);
    node.populated(7, false);
    node.rmdir(7);
    // A record that is late, of a cgroup that is gone; and one of which nothing but the victim is known.
    node.oom_kill(7, child(54, 7), Some(OomScope::Machine));
    node.oom_kill(7, child(55, 7), None);
    let events = node.events();
    let events: Vec<_> = events.iter().map(|line| line.split_once(' ').unwrap().1).collect();
    assert_eq!(
        events,
        [
            "oom kill child 53 Pod (oom kill) 7",
            "exited child 53 code 137 before_exec (exit) 7",
            "oom kill main 52 Container (oom kill) 7",
            "exited main 52 code 137 (exit) 7",
            "stopped code 137 oom (populated) 7",
            "deleted by runc (rmdir) 7",
            "oom kill child 54 machine (oom kill) 7",
            "oom kill child 55 ? (oom kill) 7",
        ]
    );
}

#[test]
fn another_processs_kill_is_not_the_main_ones() {
    let mut node = Node::new();
    node.start(7, 52);
    node.fork(7, child(53, 7));
    node.oom_kill(7, child(53, 7), None);
    node.exit(7, child(53, 7), 137);
    node.exit(7, entering(52, 7), 1);
    node.populated(7, false);
    assert!(node.events().iter().any(|line| line.ends_with("stopped code 1 (populated) 7")));
}

#[test]
fn the_state_shows_the_whole_life() {
    let mut node = Node::new();
    node.start(7, 52);
    node.fork(7, child(53, 7));
    node.exit(7, child(53, 7), 0);
    node.exit(7, entering(52, 7), 3);
    node.populated(7, false);
    let state = node.state(7).expect("it exists");
    assert_eq!(state.created_at, Some(KernelTime(102)));
    assert_eq!(state.started_at, Some(KernelTime(105)));
    assert_eq!(state.stopped_at, Some(KernelTime(109)));
    assert_eq!(state.main.map(|main| main.key.pid), Some(52));
    assert_eq!(state.program.as_deref(), Some("/bin/app"));
    assert_eq!(state.main_status, Some(ExitStatus::Code(3)));
    assert_eq!((state.forks, state.execs, state.exits), (1, 1, 2));
    assert_eq!(&*state.subject.cgroup_path, container_path(7));
}

#[test]
fn what_enters_a_running_container_is_distinguished_from_its_children() {
    let mut node = Node::new();
    node.start(7, 52);
    // runc exec: the helper is moved in, its grandchild executes the command.
    node.attach(7, task(60));
    node.fork(7, task(61));
    node.exec(7, entering(61, 7), "/bin/probe");
    node.exit(7, task(60), 0);
    node.exit(7, entering(61, 7), 0);
    // Made straight into the cgroup.
    node.kernel(7, Fact::Fork { child: task(62), entered: true });
    node.exit(7, task(62), 1);
    // A process of the container that makes a mount namespace for itself comes from nowhere else.
    node.fork(7, child(63, 7));
    let mut unshared = child(63, 7);
    unshared.mnt_ns = Some(4711);
    node.exec(7, unshared, "/bin/nested");
    // The main process executes another program: it stays the main process.
    node.exec(7, entering(52, 7), "/bin/app2");
    assert_eq!(
        node.events(),
        [
            "108 exec entered 61 /bin/probe (exec) 7",
            "109 exited entered 60 code 0 before_exec (exit) 7",
            "110 exited entered 61 code 0 (exit) 7",
            "112 exited entered 62 code 1 before_exec (exit) 7",
            "114 exec child 63 /bin/nested (exec) 7",
            "115 exec main 52 /bin/app2 (exec) 7",
        ]
    );
}

#[test]
fn a_pid_used_again_is_another_process() {
    let mut node = Node::new();
    node.start(7, 52);
    node.fork(7, child(60, 7));
    node.exec(7, child(60, 7), "/bin/one");
    node.exit(7, child(60, 7), 0);
    let mut again = child(60, 7);
    again.key.start = KernelTime(999 * TICK);
    node.fork(7, again.clone());
    node.exit(7, again, 5);
    // Even the main process's pid.
    let mut like_main = child(52, 7);
    like_main.key.start = KernelTime(1000 * TICK);
    node.fork(7, like_main.clone());
    node.exit(7, like_main, 6);
    assert_eq!(
        node.events(),
        [
            "107 exec child 60 /bin/one (exec) 7",
            "108 exited child 60 code 0 (exit) 7",
            "110 exited child 60 code 5 before_exec (exit) 7",
            "112 exited child 52 code 6 before_exec (exit) 7",
        ]
    );
    assert_eq!(node.state(7).and_then(|state| state.main_status), None);
}

#[test]
fn a_first_process_that_dies_before_it_executes_anything() {
    let mut node = Node::new();
    node.mkdir(7);
    node.populated(7, true);
    node.attach(7, task(50));
    node.exit(7, task(50), 1);
    node.populated(7, false);
    node.rmdir(7);
    assert_eq!(
        node.events(),
        [
            "102 created by runc (mkdir) 7",
            "105 exited entered 50 code 1 before_exec (exit) 7",
            "106 stopped ? never_started (populated) 7",
            "107 deleted by runc (rmdir) 7",
        ]
    );
}

#[test]
fn a_program_without_mounts_of_its_own_ran_all_the_same() {
    for (program, never_started) in [("/bin/app", ""), ("/dev/fd/6", " never_started")] {
        let mut node = Node::new();
        node.mkdir(7);
        node.populated(7, true);
        node.attach(7, task(50));
        node.exec(7, task(50), program);
        node.exit(7, task(50), 3);
        node.populated(7, false);
        // What ran in a life before is nothing to this one.
        node.populated(7, true);
        node.populated(7, false);
        assert_eq!(
            node.events()[1..],
            [
                format!("105 exec entered 50 {program} (exec) 7"),
                "106 exited entered 50 code 3 (exit) 7".to_owned(),
                format!("107 stopped ?{never_started} (populated) 7"),
                "109 stopped ? never_started (populated) 7".to_owned(),
            ]
        );
    }
}

#[test]
fn a_sandbox_without_a_process_is_never_stopped() {
    let mut node = Node::new();
    let path = format!("{POD_PATH}/crio-{}", container_id(7));
    node.mkdir_at(7, POD, &path);
    assert_eq!(node.phase(7), Some(State::Created));
    node.rmdir(7);
    assert_eq!(node.events(), ["102 created by runc (mkdir) 7", "103 deleted by runc (rmdir) 7"]);
}

#[test]
fn a_sandbox_is_a_container_like_any_other() {
    let mut node = Node::new();
    node.mkdir(7);
    node.populated(7, true);
    node.attach(7, task(50));
    node.first_exec(7, entering(50, 7), "/pause");
    node.kernel(
        7,
        Fact::Exit {
            process: entering(50, 7),
            status: ExitStatus::Signal { signal: 9, core_dumped: false },
            first: true,
        },
    );
    node.populated(7, false);
    assert_eq!(
        node.events(),
        [
            "102 created by runc (mkdir) 7",
            "105 started main 50 /pause (exec) 7",
            "106 exited main 50 signal 9 (exit) 7",
            "107 stopped signal 9 (populated) 7",
        ]
    );
}

#[test]
fn cruns_inner_group_is_the_container() {
    let mut node = Node::new();
    let scope = format!("{POD_PATH}/crio-{}.scope", container_id(7));
    node.mkdir_at(7, POD, &scope);
    // systemd puts crun into the scope, crun goes on into its inner group.
    node.populated(7, true);
    node.attach(7, task(50));
    node.mkdir_at(8, 7, &format!("{scope}/container"));
    node.populated(8, true);
    node.attach(8, task(50));
    node.first_exec(8, entering(50, 7), "/bin/app");
    node.exit(8, entering(50, 7), 0);
    node.populated(8, false);
    node.populated(7, false);
    node.rmdir(8);
    node.rmdir(7);
    assert_eq!(
        node.events(),
        [
            "102 created by runc (mkdir) 7",
            "108 started main 50 /bin/app (exec) 7",
            "109 exited main 50 code 0 (exit) 7",
            "111 stopped code 0 (populated) 7",
            "113 deleted by runc (rmdir) 7",
        ]
    );
    assert_eq!(node.actions(), [Action::Resolve(container_id(7))]);
}

#[test]
fn systemd_in_a_container() {
    let mut node = Node::new();
    node.start(7, 50);
    let inner = |name: &str| format!("{}/{name}", container_path(7));
    node.mkdir_at(8, 7, &inner("init.scope"));
    node.populated(8, true);
    node.attach(8, child(50, 7));
    node.mkdir_at(9, 7, &inner("system.slice"));
    // Too long a path: its name alone.
    node.mkdir_at(10, 9, "db.service");
    node.populated(9, true);
    node.populated(10, true);
    node.fork(8, child(51, 7));
    node.attach(10, child(51, 7));
    // The first of this group, in a mount namespace of its own: not the container's start.
    let mut service = child(51, 7);
    service.mnt_ns = Some(4711);
    node.first_exec(10, service.clone(), "/bin/db");
    node.exit(10, service, 2);
    // The service's groups are empty; systemd still runs.
    node.populated(10, false);
    node.populated(9, false);
    node.rmdir(10);
    assert_eq!(node.phase(7), Some(State::Running));
    node.exit(8, child(50, 7), 0);
    node.populated(8, false);
    node.populated(7, false);
    assert_eq!(
        node.events(),
        [
            "115 exec child 51 /bin/db (exec) 7",
            "116 exited child 51 code 2 (exit) 7",
            "120 exited main 50 code 0 (exit) 7",
            "122 stopped code 0 (populated) 7",
        ]
    );
}

#[test]
fn a_cgroup_emptied_and_filled_again_lives_again() {
    let mut node = Node::new();
    node.start(7, 50);
    node.exit(7, entering(50, 7), 1);
    node.populated(7, false);
    node.populated(7, true);
    assert_eq!(node.phase(7), Some(State::Created));
    node.attach(7, task(60));
    // Not the container's own yet: still in the node's mount namespace. The kernel's mark is spent.
    node.exec(7, task(60), "/bin/runc");
    node.exec(7, entering(60, 7), "/bin/app");
    assert_eq!(node.phase(7), Some(State::Running));
    node.exit(7, entering(60, 7), 2);
    node.populated(7, false);
    node.populated(7, true);
    node.populated(7, false);
    assert_eq!(
        node.events(),
        [
            "106 exited main 50 code 1 (exit) 7",
            "107 stopped code 1 (populated) 7",
            "110 exec entered 60 /bin/runc (exec) 7",
            "111 started main 60 /bin/app (exec) 7",
            "112 exited main 60 code 2 (exit) 7",
            "113 stopped code 2 (populated) 7",
            "115 stopped ? never_started (populated) 7",
        ]
    );
}

#[test]
fn a_container_outlives_its_main_process() {
    let mut node = Node::new();
    node.start(7, 50);
    node.fork(7, child(51, 7));
    node.exit(7, entering(50, 7), 4);
    assert_eq!(node.phase(7), Some(State::Running));
    node.exit(7, child(51, 7), 0);
    node.populated(7, false);
    assert_eq!(
        node.events(),
        [
            "107 exited main 50 code 4 (exit) 7",
            "108 exited child 51 code 0 before_exec (exit) 7",
            "109 stopped code 4 (populated) 7",
        ]
    );
}

#[test]
fn an_exit_that_comes_late_is_reported_with_its_own_time() {
    let mut node = Node::new();
    node.start(7, 50);
    node.fork(7, child(51, 7));
    node.populated(7, false);
    node.kernel_at(106, 7, Fact::Exit { process: entering(50, 7), status: ExitStatus::Code(4), first: true });
    assert_eq!(node.state(7).and_then(|state| state.main_status), Some(ExitStatus::Code(4)));
    node.rmdir(7);
    node.kernel_at(106, 7, Fact::Exit { process: child(51, 7), status: ExitStatus::Code(0), first: false });
    assert_eq!(
        node.events(),
        [
            "107 stopped ? (populated) 7",
            "106 exited main 50 code 4 (exit) 7",
            "108 deleted by runc (rmdir) 7",
            "106 exited child 51 code 0 before_exec (exit) 7",
        ]
    );
    // A late exec does not start what has ended.
    node.kernel_at(
        106,
        7,
        Fact::Exec { process: entering(53, 7), program: "/bin/probe".into(), first: false },
    );
    assert_eq!(node.events(), ["106 exec entered 53 /bin/probe (exec) 7"]);
    assert_eq!(node.machine.counters(), Default::default());
}

#[test]
fn removed_while_thought_to_run() {
    let mut node = Node::new();
    node.start(7, 50);
    node.rmdir(7);
    assert_eq!(node.events(), ["106 stopped ? (rmdir) 7", "106 deleted by runc (rmdir) 7"]);
}

#[test]
fn a_release_shows_a_removal_that_was_lost_and_only_then() {
    let mut node = Node::new();
    node.start(7, 50);
    node.release(7);
    assert_eq!(node.events(), ["106 stopped ? (release) 7", "106 deleted (release) 7"]);
    node.release(7);
    node.rmdir(7);
    assert_eq!(node.events(), [""; 0]);
}

#[test]
fn containers_are_not_mixed_up() {
    let mut node = Node::new();
    node.start(7, 50);
    node.start(8, 51);
    node.exit(8, entering(51, 8), 8);
    node.populated(8, false);
    node.exit(7, entering(50, 7), 7);
    node.populated(7, false);
    assert_eq!(
        node.events(),
        [
            "110 exited main 51 code 8 (exit) 8",
            "111 stopped code 8 (populated) 8",
            "112 exited main 50 code 7 (exit) 7",
            "113 stopped code 7 (populated) 7",
        ]
    );
}

#[test]
fn groups_outside_containers_give_no_events() {
    let mut node = Node::new();
    node.populated(POD, true);
    let conmon = format!("{POD_PATH}/crio-conmon-{}.scope", container_id(7));
    node.mkdir_at(8, POD, &conmon);
    node.populated(8, true);
    node.attach(8, task(50));
    node.exec(8, task(50), "/usr/bin/conmon");
    node.exit(8, task(50), 0);
    node.rmdir(8);
    node.rmdir(POD);
    assert_eq!(node.events(), [""; 0]);
    assert_eq!(node.actions(), []);
    assert_eq!(node.machine.counters(), Default::default());
}

#[test]
fn a_pod_in_kinds_node_is_its_own_and_the_rest_is_the_nodes() {
    let mut node = Node::new();
    let outer = format!("/system.slice/docker-{}.scope", container_id(7));
    node.mkdir_at(7, 99, &outer);
    node.mkdir_at(8, 7, &format!("{outer}/kubelet"));
    node.mkdir_at(9, 8, "kubepods");
    node.mkdir_at(10, 9, "pod1b4f2a3c-0d5e-4f6a-8b7c-9d0e1f2a3b4c");
    node.mkdir_at(11, 10, &container_id(11).0);
    node.first_exec(11, entering(50, 11), "/bin/app");
    node.exec(8, entering(51, 7), "/usr/bin/kubelet");
    assert_eq!(
        node.events(),
        [
            "102 created by runc (mkdir) 7",
            "106 created by runc (mkdir) 11",
            "107 started main 50 /bin/app (exec) 11",
            "108 exec child 51 /usr/bin/kubelet (exec) 7",
        ]
    );
    let subject = node.state(11).expect("it exists").subject;
    assert_eq!(
        &*subject.cgroup_path,
        format!("{outer}/kubelet/kubepods/pod1b4f2a3c-0d5e-4f6a-8b7c-9d0e1f2a3b4c/{}", container_id(11))
    );
    assert!(subject.pod.is_some());
}
