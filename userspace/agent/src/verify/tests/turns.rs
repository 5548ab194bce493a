//! Looks that wait for their turn, and calls that end while files are read.

use std::cell::RefCell;
use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::pin::pin;

use futures_util::FutureExt as _;
use kwitness_core::model::{Tolerance, Value};
use kwitness_core::verdicts::proof::Unproved;
use kwitness_service::Peer;
use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::super::turns::{Turn, WATCHED_MAX};
use super::*;

/// More than a look that is small has.
const MANY: usize = 100;

fn client(process: i32) -> Client {
    Origin { peer: Peer { user: Some(0), process: Some(process) }, ..Origin::default() }.into()
}

/// All turns of looks at so many containers that are free.
fn all(turns: &Turns, containers: usize) -> Vec<Turn> {
    std::iter::from_fn(|| turns.take(client(1), containers).now_or_never().flatten()).collect()
}

#[tokio::test]
async fn of_clients_that_wait_each_has_a_turn_before_any_has_another() {
    let turns = Turns::default();
    let held = turns.take(client(1), MANY).await;
    let had = RefCell::new(Vec::new());
    let call = |process| {
        let (turns, had) = (&turns, &had);
        async move {
            let _turn = turns.take(client(process), MANY).await.unwrap();
            had.borrow_mut().push(process);
        }
    };
    let mut calls = pin!(join_all([1, 1, 1, 2, 2, 3].map(call)));
    assert_eq!(calls.as_mut().now_or_never(), None);
    assert_eq!(turns.waiting(MANY), (6, 6));
    drop(held);
    calls.await;
    assert_eq!(*had.borrow(), [2, 3, 1, 2, 1, 1]);
    assert_eq!(all(&turns, MANY).len(), 1, "it is free again");
}

#[tokio::test]
async fn calls_that_end_while_they_wait_leave_nothing_and_pass_their_turn_on() {
    let turns = Turns::default();
    let held = turns.take(client(1), MANY).await;
    for process in 2..9 {
        assert!(turns.take(client(process), MANY).now_or_never().is_none());
        assert_eq!(turns.waiting(MANY), (1, 0), "not those before");
    }
    let mut ending = Box::pin(turns.take(client(2), MANY));
    let mut waiting = Box::pin(turns.take(client(3), MANY));
    assert!(ending.as_mut().now_or_never().is_none() && waiting.as_mut().now_or_never().is_none());
    drop(held);
    // It has the turn by now, and does not know.
    drop(ending);
    assert!(waiting.now_or_never().flatten().is_some());
}

#[tokio::test]
async fn a_look_at_few_containers_waits_for_none_at_many() {
    let turns = Turns::default();
    let large = all(&turns, MANY);
    assert_eq!(large.len(), 1, "one after the other");
    let small = all(&turns, 16);
    assert!(small.len() >= 2 && all(&turns, 1).len() == small.len());
    drop(large);
    assert_eq!((all(&turns, MANY).len(), all(&turns, 2).len()), (1, 0));
}

/// A container whose cgroup exists, and its directory.
fn container(tree: &std::path::Path) -> (Arc<Subject>, PathBuf) {
    let subject = member(7, "app");
    let directory = tree.join(subject.cgroup_path.trim_start_matches('/'));
    std::fs::create_dir_all(&directory).unwrap();
    let cgroup_id = CgroupFs::at(tree).open(&subject.cgroup_path).unwrap().id().unwrap();
    (Arc::new(Subject { cgroup_id, ..Subject::clone(&subject) }), directory)
}

/// That the container's memory limit was changed so.
fn requested(subject: &Subject, bytes: i64) -> LimitReport {
    let at = now().0;
    LimitReport::Requested(proto::CriRequest {
        method: proto::CriMethod::UpdateContainerResources.into(),
        id: subject.container_id.0.to_string(),
        received: at,
        answered: at,
        code: Some(0),
        resources: Some(proto::CriResources { memory_limit_in_bytes: bytes, ..Default::default() }),
    })
}

#[tokio::test(start_paused = true)]
async fn a_look_that_waited_compares_with_what_is_desired_after_the_wait() {
    let tree = tempfile::tempdir().unwrap();
    let (subject, directory) = container(tree.path());
    let (engine, requests) = Handle::new();
    let verifier = verifier(tree.path(), engine);
    let there = Arc::clone(&subject);
    let serving = serve(requests, move |_, _| vec![(Arc::clone(&there), State::Running)]);
    let change = |bytes: i64| {
        verifier.reported().take(requested(&subject, bytes));
        std::fs::write(directory.join("memory.max"), bytes.to_string()).unwrap();
    };
    change(8192);
    let held = all(&verifier.turns, 1);
    let looking = tokio::spawn({
        let verifier = verifier.clone();
        let containers = vec![subject.container_id.0.to_string()];
        let filter = Filter::try_from(proto::Filter { containers, ..Default::default() }).unwrap();
        async move { verifier.verify(&filter, &[], Duration::ZERO).await }
    });
    // Nor does time pass until then.
    while verifier.turns.waiting(1).1 == 0 {
        tokio::task::yield_now().await;
    }
    tokio::time::advance(STATUS_AGE * 2).await;
    change(4096);
    drop(held);
    while !looking.is_finished() {
        tokio::task::yield_now().await;
    }
    let report = looking.await.unwrap().unwrap();
    let found: Vec<_> = report.judged.iter().map(|(_, judged)| &judged.judgement).collect();
    assert!(report.waited > STATUS_AGE && report.all_in_force() && found.len() == 1, "{found:?}");
    assert_eq!(found[0].in_force, Reading::Is(Value::Bound(Bound::At(4096))));
    drop(verifier);
    serving.await.unwrap();
}

/// Opens it for writing once it has a reader, who waits for what is written then.
async fn writer_of(fifo: &std::path::Path) -> File {
    loop {
        match OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(fifo) {
            Ok(writer) => return writer,
            Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
        }
    }
}

#[tokio::test]
async fn a_turn_lasts_until_the_files_are_read_even_if_the_call_has_ended() {
    let tree = tempfile::tempdir().unwrap();
    let (subject, directory) = container(tree.path());
    let fifo = directory.join("memory.max");
    mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let (engine, _requests) = Handle::new();
    let verifier = verifier(tree.path(), engine);
    let looking = tokio::spawn({
        let verifier = verifier.clone();
        async move {
            let (filter, desired) = (Filter::default(), [memory_by(Source::Client, 4096)]);
            let apps = vec![(subject, State::Running); MANY];
            let subjects = Subjects { apps, sandboxes: Vec::new() };
            verifier
                .look_at_subjects(Look::last(&filter, &desired, Duration::ZERO), &subjects, false)
                .await
                .map(drop)
        }
    });
    let mut writer = writer_of(&fifo).await;
    looking.abort();
    assert!(looking.await.unwrap_err().is_cancelled());
    assert_eq!(all(&verifier.turns, MANY).len(), 0, "its files are still being read");
    writer.write_all(b"4096\n").unwrap();
    drop(writer);
    assert!(verifier.turns.take(client(1), MANY).await.is_some());
}

#[tokio::test]
async fn the_usage_of_so_many_limits_is_watched_at_a_time() {
    let tree = tempfile::tempdir().unwrap();
    let verifier = verifier(tree.path(), Handle::new().0);
    let mut report = look(&[("/a", Verdict::InForce)], "");
    let others = verifier.turns.watch(WATCHED_MAX - 1).unwrap();
    verifier.prove(&mut report, Duration::ZERO).await.unwrap();
    let one = verifier.turns.watch(1).unwrap();
    // The verdicts stay, and say of each limit whose usage could have been watched that it was not.
    let [limited, unlimited] =
        [Bound::At(4096), Bound::Unlimited].map(|bound| Reading::Is(Value::Bound(bound)));
    let mut unproved = look(&[("/a", Verdict::InForce), ("/b", Verdict::InForce)], "");
    for ((_, judged), in_force) in unproved.judged.iter_mut().zip([limited, unlimited]) {
        judged.judgement.tolerance = Some(Tolerance::Exact);
        judged.judgement.in_force = in_force;
    }
    verifier.prove(&mut unproved, Duration::from_secs(60)).await.unwrap();
    let found: Vec<_> = unproved.proofs.iter().map(|proof| proof.map(|(_, proof)| proof)).collect();
    assert_eq!(found, [Some(Proof::Unknown(Unproved::TooManyWatched)), None]);
    assert!(unproved.all_in_force());
    drop((others, one));
    assert!(verifier.turns.watch(10 * WATCHED_MAX).is_some(), "one alone may have more");
    verifier.prove(&mut report, Duration::ZERO).await.unwrap();
}
