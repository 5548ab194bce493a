//! What a pod's events are in the rare cases.

use std::time::Duration;

use bytes::Bytes;
use kwitness_core::model::ContainerId;
use prost::Message as _;

use super::entity::{Kind, Progress, Shown, Status};
use super::machine::{Answer, ListedSandbox, Listing, Machine, PodKey, Request};
use super::pod::{AGREE_MAX, Origin, Outcome, Pod, Reading};
use kwitness_cri::events as wire;
use kwitness_cri::events::ContainerEventType as Type;

fn id(name: &str) -> ContainerId {
    ContainerId(name.into())
}

/// A status with a field that is unknown here, number 99: the name.
fn status(kind: Kind, name: &str, state: i32, created_at: i64) -> Status {
    let mut bytes = match kind {
        Kind::Sandbox => wire::PodSandboxStatus { state, created_at }.encode_to_vec(),
        Kind::Container => {
            let started_at = if state > 0 { created_at + 1 } else { 0 };
            wire::ContainerStatus { state, created_at, started_at, finished_at: 0 }.encode_to_vec()
        }
    };
    bytes.extend([0x9a, 0x06, name.len() as u8]);
    bytes.extend(name.as_bytes());
    Status::new(kind, bytes.into()).unwrap()
}

const SANDBOX: &str = "sandbox";
const MAIN: &str = "main";

fn after(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn read(pod: &mut Pod, now: u64, at: i64, statuses: &[(Kind, &str, Option<i32>)]) -> Outcome {
    pod.plan();
    let statuses = statuses.iter().map(|(kind, name, state)| {
        (
            *kind,
            id(name),
            state.map(|state| status(*kind, name, state, if *kind == Kind::Sandbox { 1 } else { 2 })),
        )
    });
    pod.read(after(now), Reading { at, statuses: statuses.collect() }, 0).0
}

/// A pod whose sandbox and container run, as reported at the time 1000.
fn running() -> Pod {
    let mut pod = Pod::default();
    for (kind, name) in [(Kind::Sandbox, SANDBOX), (Kind::Container, MAIN)] {
        pod.add(after(0), kind, &id(name), Origin::New, Shown::default());
    }
    let outcome =
        read(&mut pod, 1, 1000, &[(Kind::Sandbox, SANDBOX, Some(0)), (Kind::Container, MAIN, Some(1))]);
    let sent: Vec<_> =
        outcome.events.iter().map(|event| (&*event.container_id, event.container_event_type())).collect();
    assert_eq!(
        sent,
        [
            (SANDBOX, Type::ContainerCreatedEvent),
            (SANDBOX, Type::ContainerStartedEvent),
            (MAIN, Type::ContainerCreatedEvent),
            (MAIN, Type::ContainerStartedEvent),
        ]
    );
    assert_eq!(pod.due(), None, "at rest");
    pod
}

fn times(outcome: &Outcome) -> Vec<i64> {
    outcome.events.iter().map(|event| event.created_at).collect()
}

#[test]
fn the_bytes_are_the_runtimes_own() {
    let mut pod = running();
    pod.hint(after(10), &id(MAIN), Progress::Stopped);
    let outcome =
        read(&mut pod, 11, 2000, &[(Kind::Sandbox, SANDBOX, Some(0)), (Kind::Container, MAIN, Some(2))]);
    let [event] = &outcome.events[..] else { panic!("{outcome:?}") };
    assert_eq!(event.container_event_type(), Type::ContainerStoppedEvent);
    assert_eq!(event.pod_sandbox_status, status(Kind::Sandbox, SANDBOX, 0, 1).bytes);
    assert_eq!(event.containers_statuses, [status(Kind::Container, MAIN, 2, 2).bytes]);
}

#[test]
fn times_go_on_when_the_wall_clock_is_set_back() {
    let mut pod = running();
    pod.hint(after(10), &id(MAIN), Progress::Stopped);
    let outcome =
        read(&mut pod, 11, 500, &[(Kind::Sandbox, SANDBOX, Some(0)), (Kind::Container, MAIN, Some(2))]);
    assert_eq!((times(&outcome), outcome.clock_behind), (vec![1004], true));
    let outcome =
        read(&mut pod, 12, 1500, &[(Kind::Sandbox, SANDBOX, Some(1)), (Kind::Container, MAIN, Some(2))]);
    assert_eq!((times(&outcome), outcome.clock_behind), (vec![1500], false));
}

#[test]
fn what_the_runtime_does_not_confirm_is_withheld_and_sent_once_it_does() {
    let mut pod = running();
    pod.hint(after(10), &id(MAIN), Progress::Stopped);
    let (mut questions, mut withheld) = (0, 0);
    while let Some(due) = pod.due() {
        let plan = pod.plan();
        assert!(!plan.whole, "only the one container is fetched");
        assert_eq!(plan.checks, [(Kind::Container, id(MAIN), Progress::Stopped)]);
        questions += 1;
        withheld += pod.not_yet(due);
        assert!(due <= after(10) + AGREE_MAX + after(100));
    }
    assert_eq!(withheld, 1);
    assert!((90..120).contains(&questions), "{questions}");
    // A list shows it later.
    assert!(pod.differs(&id(MAIN), Some(Progress::Stopped)));
    let outcome =
        read(&mut pod, 60_000, 9000, &[(Kind::Sandbox, SANDBOX, Some(0)), (Kind::Container, MAIN, Some(2))]);
    assert_eq!(times(&outcome), [9000]);
}

#[test]
fn a_pod_that_was_removed_before_it_was_read_still_ends() {
    let mut pod = running();
    let outcome = read(&mut pod, 11, 2000, &[(Kind::Sandbox, SANDBOX, None), (Kind::Container, MAIN, None)]);
    let sent: Vec<_> =
        outcome.events.iter().map(|event| (&*event.container_id, event.container_event_type())).collect();
    assert_eq!(
        sent,
        [
            (MAIN, Type::ContainerStoppedEvent),
            (MAIN, Type::ContainerDeletedEvent),
            (SANDBOX, Type::ContainerStoppedEvent),
            (SANDBOX, Type::ContainerDeletedEvent),
        ]
    );
    assert!(pod.is_empty());
    assert_eq!(outcome.unread_ends, 2);
    for event in &outcome.events {
        let sandbox = wire::PodSandboxStatus::decode(event.pod_sandbox_status.clone()).unwrap();
        assert_eq!((sandbox.state, sandbox.created_at), (1, 1), "not ready, and otherwise as it was");
        let has_status = event.container_event_type() == Type::ContainerDeletedEvent;
        assert_eq!(event.containers_statuses.len(), usize::from(has_status));
    }
}

#[test]
fn the_newest_sandbox_is_the_pods() {
    let mut pod = running();
    pod.add(after(20), Kind::Sandbox, &id("second"), Origin::New, Shown::default());
    pod.plan();
    let old = status(Kind::Sandbox, SANDBOX, 1, 1);
    let new = status(Kind::Sandbox, "second", 0, 50);
    let statuses = vec![
        (Kind::Sandbox, id(SANDBOX), Some(old)),
        (Kind::Sandbox, id("second"), Some(new.clone())),
        (Kind::Container, id(MAIN), Some(status(Kind::Container, MAIN, 2, 2))),
    ];
    let outcome = pod.read(after(21), Reading { at: 3000, statuses }, 0).0;
    assert_eq!(outcome.events.len(), 4);
    assert!(outcome.events.iter().all(|event| event.pod_sandbox_status == new.bytes), "{outcome:?}");
    // The old one goes: the kubelet must not take the pod for gone.
    pod.plan();
    let outcome =
        pod.read(after(22), Reading { at: 4000, statuses: vec![(Kind::Sandbox, id(SANDBOX), None)] }, 0).0;
    let [event] = &outcome.events[..] else { panic!("{outcome:?}") };
    assert_eq!((&*event.container_id, event.container_event_type()), (SANDBOX, Type::ContainerDeletedEvent));
    assert_eq!(event.pod_sandbox_status, new.bytes);
}

#[test]
fn a_sandbox_that_is_not_ready_while_its_program_runs_has_not_stopped() {
    let sandbox = id(SANDBOX);
    // Of cri-dockerd, in the host's network.
    let not_ready = [(Kind::Sandbox, SANDBOX, Some(1)), (Kind::Container, MAIN, Some(1))];
    let ends = |pod: &mut Pod| {
        assert!(pod.differs(&sandbox, Some(Progress::Stopped)));
        let outcome = read(pod, 31, 3000, &not_ready);
        let [event] = &outcome.events[..] else { panic!("{outcome:?}") };
        assert_eq!(
            (&*event.container_id, event.container_event_type()),
            (SANDBOX, Type::ContainerStoppedEvent)
        );
    };
    let shown_running = || {
        let mut pod = running();
        pod.hint(after(10), &sandbox, Progress::Started);
        assert!(!pod.differs(&sandbox, Some(Progress::Stopped)), "no list asks for a reading");
        assert!(read(&mut pod, 20, 2000, &not_ready).events.is_empty());
        assert_eq!(pod.due(), None, "at rest");
        pod
    };
    let mut pod = shown_running();
    pod.hint(after(30), &sandbox, Progress::Stopped);
    ends(&mut pod);
    let mut pod = shown_running();
    pod.hurry(after(30), &sandbox);
    ends(&mut pod);
    let mut pod = shown_running();
    pod.gap(after(30));
    ends(&mut pod);
}

/// The events of a pod that the first list had so, and of which the kernel showed this, by its first reading.
fn first(
    listed: Progress,
    shown: &[Progress],
    statuses: &[(Kind, &'static str, Option<i32>)],
) -> Vec<(String, Type)> {
    let mut pod = Pod::default();
    let mut of_kernel = Shown::default();
    shown.iter().for_each(|progress| of_kernel.add(*progress));
    for (kind, name, _) in statuses {
        pod.add(after(0), *kind, &id(name), Origin::FirstList(Some(listed)), of_kernel);
    }
    let statuses = statuses.iter().map(|(kind, name, state)| {
        (
            *kind,
            id(name),
            state.map(|state| status(*kind, name, state, if *kind == Kind::Sandbox { 1 } else { 2 })),
        )
    });
    pod.plan();
    // All of them were made before.
    let outcome = pod.read(after(1), Reading { at: 1000, statuses: statuses.collect() }, 100).0;
    let of =
        |event: &wire::ContainerEventResponse| (event.container_id.clone(), event.container_event_type());
    outcome.events.iter().map(of).collect()
}

#[test]
fn a_sandbox_that_the_kernel_showed_to_stop_since_has_stopped() {
    let not_ready = [(Kind::Sandbox, SANDBOX, Some(1))];
    let stopped = vec![(SANDBOX.to_owned(), Type::ContainerStoppedEvent)];
    assert_eq!(first(Progress::Stopped, &[Progress::Stopped], &not_ready), stopped, "it was before the list");
    assert_eq!(first(Progress::Started, &[], &not_ready), stopped, "it was after the list");
    assert_eq!(first(Progress::Stopped, &[], &not_ready), [], "it was before all that is wanted");
    let ready = [(Kind::Sandbox, SANDBOX, Some(0))];
    assert_eq!(first(Progress::Started, &[], &ready), []);
}

#[test]
fn one_that_was_listed_and_is_gone_before_its_first_status_ends() {
    let gone = [(Kind::Sandbox, SANDBOX, Some(0)), (Kind::Container, MAIN, None)];
    let events = |kinds: &[Type]| kinds.iter().map(|kind| (MAIN.to_owned(), *kind)).collect::<Vec<_>>();
    let ended = events(&[Type::ContainerStoppedEvent, Type::ContainerDeletedEvent]);
    assert_eq!(first(Progress::Started, &[], &gone), ended);
    assert_eq!(first(Progress::Stopped, &[], &gone), events(&[Type::ContainerDeletedEvent]));
    assert_eq!(first(Progress::Created, &[], &gone), events(&[Type::ContainerDeletedEvent]));
    // Without the sandbox's status there is nothing to send with it.
    assert_eq!(first(Progress::Started, &[], &gone[1..]), []);
}

#[test]
fn nonsense_is_no_status() {
    assert!(Status::new(Kind::Container, Bytes::from_static(b"\xff\xff\xff")).is_err());
}

#[test]
fn a_runtime_that_fails_is_queried_less_and_less_often_until_it_answers() {
    let mut pod = running();
    let mut now = 1000;
    let mut pauses = Vec::new();
    for _ in 0..9 {
        pod.failed(after(now));
        let due = pod.due().expect("it is asked again").as_millis() as u64;
        pauses.push(due - now);
        now = due;
    }
    assert_eq!(pauses, [100, 200, 400, 800, 1600, 3200, 6400, 10_000, 10_000]);
    read(&mut pod, now, 2000, &[(Kind::Sandbox, SANDBOX, Some(0)), (Kind::Container, MAIN, Some(1))]);
    pod.failed(after(now));
    assert_eq!(pod.due(), Some(after(now + 100)));
}

#[test]
fn a_containers_gap_has_its_own_pod_read_and_no_other() {
    let sandboxes = ["a", "b"];
    let mut machine = Machine::new(0);
    machine.connected(after(0));
    assert_eq!(machine.poll(after(0)), Some(Request::List));
    let listed = |name: &&str| ListedSandbox {
        id: id(name),
        uid: format!("uid-{name}").into(),
        progress: Some(Progress::Started),
    };
    let listing = Listing { sandboxes: sandboxes.iter().map(listed).collect(), containers: Vec::new() };
    machine.list(after(1), &listing);
    // What is read until nothing else is, with the same answer each time.
    let reads = |machine: &mut Machine, now: u64| {
        let mut read: Vec<PodKey> = Vec::new();
        while let Some(Request::Read(key, _)) = machine.poll(after(now)) {
            let name = key.strip_prefix("uid-").unwrap();
            let statuses = vec![(Kind::Sandbox, id(name), Some(status(Kind::Sandbox, name, 0, 1)))];
            machine.answer(after(now), &key, Answer::Reading(Reading { at: 1000, statuses }));
            read.push(key);
        }
        read.sort();
        read
    };
    let both = ["uid-a", "uid-b"].map(PodKey::from);
    assert_eq!(reads(&mut machine, 100), both);
    machine.gap_of(after(200), &id("b"));
    assert_eq!(&reads(&mut machine, 300)[..], &both[1..]);
    machine.gap_of(after(300), &id("unknown"));
    assert!(reads(&mut machine, 310).is_empty());
    machine.gap(after(400));
    assert_eq!(reads(&mut machine, 400), both);
}
