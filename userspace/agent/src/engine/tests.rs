//! The engine without a kernel: a producer that never rests, and a tree that is walked meanwhile.

mod probes;

use std::collections::BTreeMap;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use kwitness_api::proto;
use kwitness_core::journal::Epoch;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{CgroupId, KernelTime, Scan, ScannedCgroup, VerdictScope};
use tokio::time::{Instant, timeout};

use super::*;
use crate::cgroupfs::{CgroupFs, ScanError};
use crate::config::RuntimeChoice;
use crate::cri;
use crate::hub::{Capacity, Filter, Hub};
use crate::probe::SetId;
use probes::{Flood, Upgrade, populated};

/// How long anything may take: many times what it does.
const SOON: Duration = Duration::from_secs(60);

struct Running {
    handle: Handle,
    read: Arc<AtomicU64>,
    ready: oneshot::Receiver<()>,
    stop: CancellationToken,
    engine: tokio::task::JoinHandle<anyhow::Result<()>>,
    _tree: tempfile::TempDir,
}

/// What an engine begins with.
struct Past {
    hub: Arc<Hub>,
    writer: Writer,
    memory: Memory,
    resumes: Option<Resumes>,
    place: Option<Place>,
}

impl Past {
    fn none() -> Self {
        let (hub, writer) = Hub::new(Epoch("now".into()), capacity());
        Self { hub, writer, memory: Memory::new(Bounds::default()), resumes: None, place: None }
    }

    /// What the engine before left there, if there was one.
    fn at(place: &Place) -> Self {
        let place = Some(place.clone());
        let Some(history) = place.as_ref().and_then(|place| place.read().unwrap()) else {
            return Self { place, ..Self::none() };
        };
        let (hub, mut writer) = Hub::resumed(history.position(), history.made(), capacity());
        let memory = history.replay(&mut writer).unwrap();
        let resumes = Some(Resumes { unrecorded: Vec::new(), same_maps: true });
        Self { hub, writer, memory, resumes, place }
    }
}

fn capacity() -> Capacity {
    Capacity { items: NonZeroUsize::new(64).unwrap(), bytes: 1 << 20 }
}

/// An engine whose rings always hold so many records.
fn start(backlog: u64) -> Running {
    start_after(Past::none(), backlog)
}

fn start_after(past: Past, backlog: u64) -> Running {
    let read = Arc::new(AtomicU64::new(0));
    start_with(past, Flood { read: read.clone(), backlog, adoptable: Arc::default() }, read)
}

fn start_with(past: Past, probe: impl Probe + 'static, read: Arc<AtomicU64>) -> Running {
    let empty = |reason| Ok(Scan::empty(reason, Clock::read().now()));
    start_scanned_by(empty, past, probe, read)
}

fn start_scanned_by(
    scan: impl Fn(ScanReason) -> Result<Scan, ScanError> + Send + Sync + 'static,
    past: Past,
    probe: impl Probe + 'static,
    read: Arc<AtomicU64>,
) -> Running {
    let (parts, handle, tree) = parts(scan, past, probe);
    let (ready, is_ready) = oneshot::channel();
    let stop = CancellationToken::new();
    let engine = tokio::spawn(Engine::new(parts, None).unwrap().run(ready, stop.clone()));
    Running { handle, read, ready: is_ready, stop, engine, _tree: tree }
}

fn parts<P: Probe>(
    scan: impl Fn(ScanReason) -> Result<Scan, ScanError> + Send + Sync + 'static,
    past: Past,
    probe: P,
) -> (Parts<P>, Handle, tempfile::TempDir) {
    let Past { hub: _, writer, memory, resumes, place } = past;
    let tree = tempfile::tempdir().unwrap();
    let (answer, answers) = mpsc::channel(INBOX);
    let (handle, requests) = Handle::new();
    let parts = Parts {
        probe,
        memory,
        resumes,
        place,
        scans: Scans::by(scan),
        outside: Outside::by(|_| Ok(BTreeMap::new())),
        unread_pins: UnreadPins::by(Vec::new, |_| true),
        writer,
        resolver: cri::start(RuntimeChoice::Never, answer.clone()).0,
        reader: LimitReader::start(CgroupFs::at(tree.path()), 1000, answer).unwrap(),
        watch: None,
        verdicts: JudgeQueue::default(),
        sampling: None,
        answers,
        requests,
    };
    (parts, handle, tree)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_requests_and_the_end_have_their_turn_under_a_producer_that_never_rests() {
    const BACKLOG: u64 = 100_000;
    let running = start(BACKLOG);
    timeout(SOON, running.ready).await.expect("the scan is observed").unwrap();
    assert!(running.read.load(Relaxed) >= BACKLOG, "after all that was there when it ended");
    let report = timeout(SOON, running.handle.report()).await.expect("a request is answered").unwrap();
    assert!(report.counters["records"] >= BACKLOG);
    assert!(
        report.lost["malformed_record/unknown"] >= BACKLOG,
        "an empty record is none that was seen before"
    );
    // Evidence waits for what was there when it came, and not for more.
    let before = running.read.load(Relaxed);
    assert_eq!(timeout(SOON, running.handle.judge(Vec::new())).await.expect("it is judged").unwrap(), []);
    assert!(running.read.load(Relaxed) >= before + BACKLOG);
    let stopped = Instant::now();
    running.stop.cancel();
    timeout(SOON, running.engine).await.expect("it ends").unwrap().unwrap();
    assert!(stopped.elapsed() < Duration::from_secs(2), "{:?}", stopped.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_goes_on_where_the_last_one_ended() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("ledger");
    let place = Place { directory, bytes: 64 << 20, bounds: Bounds::default() };
    let mut position = Past::none().hub.position();
    for _ in 0..3 {
        let past = Past::at(&place);
        assert_eq!(past.hub.position(), position, "the replay comes to the same events");
        let hub = Arc::clone(&past.hub);
        let running = start_after(past, 2_000);
        timeout(SOON, running.ready).await.expect("the scan is observed").unwrap();
        running.stop.cancel();
        timeout(SOON, running.engine).await.expect("it ends").unwrap().unwrap();
        assert!(hub.position().seq > position.seq);
        position = hub.position();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_new_programs_do_not_track_before_the_scan_is_in_the_gap() {
    const LONG: u64 = 1_000_000_000_000;
    let read = Arc::new(AtomicU64::new(0));
    let adoptable = Arc::<AtomicBool>::default();
    let probe = Flood { read: read.clone(), backlog: 0, adoptable: Arc::clone(&adoptable) };
    let resumes = Resumes { unrecorded: vec!["task_exec"], same_maps: false };
    let past = Past { resumes: Some(resumes), ..Past::none() };
    let mut reader = past.hub.reader();
    let began = Clock::read();
    let adopted_early = Arc::clone(&adoptable);
    let scan = move |reason| {
        assert!(!adopted_early.load(Relaxed), "another daemon would rely on what they do not track");
        let scan = Scan::empty(reason, Clock::read().now());
        Ok(Scan { ended: KernelTime(scan.ended.0 + LONG), ..scan })
    };
    let running = start_scanned_by(scan, past, probe, read);
    timeout(SOON, running.ready).await.expect("the scan is observed").unwrap();
    // After what the scan made known.
    running.handle.judge(Vec::new()).await.unwrap();
    assert!(adoptable.load(Relaxed));
    let mut gaps = Vec::new();
    reader.read(|event| {
        if let Some(proto::event::Kind::Gap(gap)) = event.decode().kind {
            gaps.push((gap.cause(), gap.capabilities.clone(), gap.to.unwrap().to_unix_nanos()));
        }
    });
    let [(proto::GapCause::AgentDown, capabilities, to)] = &*gaps else { panic!("{gaps:?}") };
    assert_eq!(capabilities, &["task_exec"]);
    let scanned = began.wall(KernelTime(began.now().0 + LONG)).to_unix_nanos();
    assert!(*to > scanned - LONG as i64 / 2, "{to} is before the scan");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_old_and_new_programs_both_recorded_is_observed_once() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("ledger");
    let place = Place { directory, bytes: 64 << 20, bounds: Bounds::default() };
    let began = Clock::read().now();
    let handed_over = Arc::<AtomicBool>::default();
    let probe = Upgrade {
        // The first was before the new programs, the last after the old ones were read.
        old: [populated(began.0, 1), populated(began.0 + 1, 2)].into(),
        new: [populated(began.0 + 2, 2), populated(began.0 + 3, 3)].into(),
        ..Upgrade::new(began, &handed_over)
    };
    let past = Past::at(&place);
    let hub = Arc::clone(&past.hub);
    let running = start_with(past, probe, Arc::default());
    timeout(SOON, running.ready).await.expect("the scan is observed").unwrap();
    let handle = running.handle.clone();
    let report = async {
        loop {
            // After all that is in the rings.
            handle.judge(Vec::new()).await.unwrap();
            let report = handle.report().await.unwrap();
            // What was lost is read later, at a tick.
            if handed_over.load(Relaxed) && report.counters["records"] >= 3 && !report.lost.is_empty() {
                return report;
            }
        }
    };
    let report = timeout(SOON, report).await.expect("the new programs take over");
    assert_eq!(report.counters["records"], 3, "without the double");
    let lost = BTreeMap::from([("ring_full/cgroup_mkdir".to_owned(), 1)]);
    assert_eq!(report.lost, lost, "what the new ones lost");
    running.stop.cancel();
    timeout(SOON, running.engine).await.expect("it ends").unwrap().unwrap();
    let mut past = Past::at(&place);
    assert_eq!(past.hub.position(), hub.position(), "the replay comes to the same events");
    past.memory.check_set(SetId(2), &place).unwrap();
    // Neither those that were replaced, nor those of a daemon that read other pins in between.
    for other in [SetId(1), SetId(3)] {
        let refusal = past.memory.check_set(other, &place).unwrap_err();
        assert!(matches!(refusal, Refusal::OtherSet { .. }), "{refusal}");
    }
    // What is left of the seam is no matter of other programs.
    past.memory.seam = Some(Seam::default());
    let probe = Flood { read: Arc::default(), backlog: 0, adoptable: Arc::default() };
    let (parts, ..) = parts(|reason| Ok(Scan::empty(reason, KernelTime(0))), past, probe);
    assert!(Engine::new(parts, None).unwrap().seam.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_old_programs_lose_before_the_first_scan_of_an_epoch_is_reported() {
    let handed_over = Arc::<AtomicBool>::default();
    let probe = Upgrade::new(Clock::read().now(), &handed_over);
    let (lost, looks, taken_over) = (probe.lost.clone(), probe.looks.clone(), handed_over.clone());
    // At the start, and at two ticks: the first of them has come to the question whether the new programs take over.
    let scan = move |reason| {
        while looks.load(Relaxed) < 3 {
            std::thread::yield_now();
        }
        assert!(reason != ScanReason::Initial || !taken_over.load(Relaxed), "before the scan");
        lost.store(6, Relaxed);
        Ok(Scan::empty(reason, Clock::read().now()))
    };
    let running = start_scanned_by(scan, Past::none(), probe, Arc::default());
    timeout(SOON, running.ready).await.expect("the scan is observed").unwrap();
    let handle = running.handle.clone();
    let report = async {
        loop {
            let report = handle.report().await.unwrap();
            // Of the old ones and of the new ones.
            if report.lost.get("ring_full/cgroup_mkdir") == Some(&2) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    timeout(SOON, report).await.expect("both losses are reported");
    assert!(handed_over.load(Relaxed));
    running.stop.cancel();
}

#[tokio::test]
async fn a_ledger_that_can_neither_be_continued_nor_removed_keeps_the_daemon_from_reading() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { directory: directory.path().join("ledger"), bytes: 1, bounds: Bounds::default() };
    let engine = |past| {
        let probe = Flood { read: Arc::default(), backlog: 0, adoptable: Arc::default() };
        let (parts, ..) = parts(|reason| Ok(Scan::empty(reason, KernelTime(0))), past, probe);
        Engine::new(parts, None)
    };
    drop(engine(Past::at(&place)).unwrap());
    let past = Past::at(&place);
    assert!(past.resumes.is_some());
    // In place of a segment, something that cannot be unlinked.
    let segment = std::fs::read_dir(&place.directory).unwrap().next().unwrap().unwrap().path();
    std::fs::remove_file(&segment).unwrap();
    std::fs::create_dir(&segment).unwrap();
    let error = engine(past).err().expect("it is refused");
    assert!(error.to_string().contains(place.directory.to_str().unwrap()), "{error}");
}

/// An engine that nothing is observed of but what a test has it observe.
fn still(past: Past) -> (Engine<Flood>, tempfile::TempDir) {
    let probe = Flood { read: Arc::default(), backlog: 0, adoptable: Arc::default() };
    let (parts, _, tree) = parts(|reason| Ok(Scan::empty(reason, KernelTime(0))), past, probe);
    (Engine::new(parts, None).unwrap(), tree)
}

#[tokio::test]
async fn an_outage_is_not_forgotten_between_two_segments() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("ledger");
    let place = Place { directory, bytes: 64 << 20, bounds: Bounds::default() };
    let (mut engine, _tree) = still(Past::at(&place));
    engine.outage = Some(KernelTime(5));
    while engine.keep(|ledger| ledger.record(&[0; 1 << 16])) {}
    while engine.keep(|ledger| ledger.record(&[])) {}
    engine.restarted(KernelTime(5));
    assert_eq!((engine.outage, Past::at(&place).memory.outage), (None, None));
    drop(engine);
    // As if it had ended before the observation was in: of the segment that it is in, only the head counts.
    let files = std::fs::read_dir(&place.directory).unwrap().map(|file| file.unwrap().path());
    let segment = files.max().unwrap();
    let mut bytes = std::fs::read(&segment).unwrap();
    // See the ledger's `format`: magic, bytes that count, length and tag of an entry.
    let head = u64::from(u32::from_ne_bytes(*bytes[16..].first_chunk().unwrap()));
    bytes[8..16].copy_from_slice(&(16 + 5 + head).to_ne_bytes());
    std::fs::write(&segment, &bytes).unwrap();
    assert_eq!(Past::at(&place).memory.outage, Some(KernelTime(5)));
}

#[tokio::test]
async fn a_ledger_that_is_given_up_is_begun_anew_at_once_and_again_after_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path().join("ledger");
    let place = Place { directory, bytes: 64 << 20, bounds: Bounds::default() };
    let (mut engine, _tree) = still(Past::at(&place));
    let fail = |engine: &mut Engine<Flood>| {
        engine.give_up_ledger(&std::io::ErrorKind::StorageFull.into());
        assert!(engine.ledger.is_none() && !place.directory.exists());
    };
    fail(&mut engine);
    let clock = Clock::read();
    engine.keep_again(clock);
    assert!(engine.ledger.is_some() && place.read().unwrap().is_some());
    fail(&mut engine);
    std::fs::write(&place.directory, "no directory").unwrap();
    engine.keep_again(clock);
    std::fs::remove_file(&place.directory).unwrap();
    engine.keep_again(clock);
    assert!(engine.ledger.is_none(), "a failed attempt is not repeated at once");
}

#[tokio::test]
async fn a_snapshot_is_of_the_containers_that_match_in_the_order_of_their_paths() {
    let scan = |reason| {
        let found = |(id, parent, path): (u64, u64, String)| ScannedCgroup {
            id: CgroupId(id),
            parent: CgroupId(parent),
            path: path.into(),
            beyond_share: false,
            populated: Some(false),
            processes: Vec::new(),
        };
        // The later a pod was found, the earlier is its path.
        let of_pod = |pod: u64| {
            let uid = format!("{:08x}-0000-4000-8000-000000000000", 20 - pod);
            let path = format!("/kubepods/pod{uid}");
            [(pod, 1, path.clone()), (100 + pod, pod, format!("{path}/{pod:064x}"))].map(found)
        };
        let cgroups = (10..20).flat_map(of_pod).collect();
        Ok(Scan { cgroups, ..Scan::empty(reason, Clock::read().now()) })
    };
    let probe = Flood { read: Arc::default(), backlog: 0, adoptable: Arc::default() };
    let running = start_scanned_by(scan, Past::none(), probe, Arc::default());
    timeout(SOON, running.ready).await.unwrap().unwrap();
    let handle = &running.handle;
    let found = async |filter| {
        let snapshot = timeout(SOON, handle.snapshot(filter)).await.unwrap().unwrap();
        snapshot.containers.iter().map(|of| of.subject.cgroup_id.0).collect::<Vec<_>>()
    };
    assert_eq!(found(Filter::default()).await, (110..120).rev().collect::<Vec<_>>());
    let pods = vec!["00000005-0000-4000-8000-000000000000".to_owned()];
    let one = proto::Filter { pods, ..Default::default() };
    assert_eq!(found(one.try_into().unwrap()).await, [115]);
    let (all, _) = timeout(SOON, handle.state()).await.unwrap().unwrap();
    assert!(all.containers.is_sorted_by_key(|of| &of.subject.cgroup_path) && all.containers.len() == 10);
    assert_eq!(timeout(SOON, handle.subjects(VerdictScope::All)).await.unwrap().unwrap().len(), 10);
    running.stop.cancel();
}
