//! Looks that wait for their turn, and calls that end while files are read.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use futures_util::FutureExt as _;
use kwitness_core::model::Value;
use nix::libc::O_NONBLOCK;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use super::super::turns::{Turn, WATCHED_MAX};
use super::*;

/// More than a look that is small has.
const MANY: usize = 100;

/// All turns of looks at so many containers that are free.
fn all(turns: &Turns, containers: usize) -> Vec<Turn> {
    std::iter::from_fn(|| turns.take(containers).now_or_never().flatten()).collect()
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
    while verifier.turns.asked_for(1) == held.len() {
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
    assert!(verifier.turns.take(MANY).await.is_some());
}

#[tokio::test]
async fn the_usage_of_so_many_limits_is_watched_at_a_time() {
    let tree = tempfile::tempdir().unwrap();
    let verifier = verifier(tree.path(), Handle::new().0);
    let mut report = look(&[("/a", Verdict::InForce)], "");
    let others = verifier.turns.watch(WATCHED_MAX - 1).unwrap();
    verifier.prove(&mut report, Duration::ZERO).await.unwrap();
    let one = verifier.turns.watch(1).unwrap();
    assert!(matches!(verifier.prove(&mut report, Duration::ZERO).await, Err(ProveError::TooMany)));
    drop((others, one));
    assert!(verifier.turns.watch(10 * WATCHED_MAX).is_some(), "one alone may have more");
    verifier.prove(&mut report, Duration::ZERO).await.unwrap();
}
