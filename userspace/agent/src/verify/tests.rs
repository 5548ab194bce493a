//! How calls wait, and whose limits are judged.

use std::sync::atomic::{AtomicU32, Ordering};

use futures_util::future::join_all;
use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{
    ApiFinding, ApiMissing, ApiView, Bound, CgroupId, DesiredLimit, Judgement, LevelRole, Observation,
    Output, PodRef, QosClass, Resource, Source, Wanted,
};
use kwitness_core::node::Node;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::kept::Kept;
use super::wait::{PAUSE_MIN, changed};
use super::*;
use crate::config::RuntimeChoice;
use crate::cri;
use crate::engine::Request;
use crate::reported::{LimitReport, Reported};
use kwitness_api::proto;

mod turns;

#[tokio::test(start_paused = true)]
async fn changes_that_come_before_a_look_may_come_are_one() {
    let container = |id: &str| VerdictScope::Container(ContainerId(id.into()));
    let queue = JudgeQueue::default();
    let mut changes = queue.changes();
    let began = Instant::now();
    let after = |milliseconds| began + Duration::from_millis(milliseconds);
    queue.push(container("a"));
    let these = |scopes: &[VerdictScope]| Some(BTreeSet::from_iter(scopes.iter().cloned()));
    assert_eq!(changed(&mut changes, began, after(1000)).await, these(&[container("a")]));
    assert_eq!(began.elapsed().as_millis(), PAUSE_MIN.as_millis(), "at once, if none came before");
    let pushing = async {
        for _ in 0..100 {
            queue.push(container("a"));
            queue.push(container("b"));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let (all, ()) = tokio::join!(changed(&mut changes, after(500), after(1000)), pushing);
    assert_eq!(all, these(&[container("a"), container("b")]));
    assert_eq!(began.elapsed().as_millis(), 500);
    assert_eq!(changed(&mut changes, after(5000), after(1000)).await, None, "nothing changes");
    queue.push(container("a"));
    assert_eq!(changed(&mut changes, after(5000), after(1000)).await, these(&[container("a")]));
    assert!(Instant::now() < after(1100), "no longer than the call waits");
    (0..1000).for_each(|number| queue.push(container(&number.to_string())));
    assert_eq!(changed(&mut changes, began, after(2000)).await, these(&[VerdictScope::All]), "it lags");
    queue.push(container("a"));
    let many = async { (0..1000).for_each(|number| queue.push(container(&number.to_string()))) };
    let (all, ()) = tokio::join!(changed(&mut changes, began, after(2000)), many);
    assert_eq!(all, these(&[VerdictScope::All]), "likewise, once the first has come");
}

/// After its first look, which found these.
fn selection(filter: proto::Filter, found: &[u64]) -> Selection {
    let mut selection = Selection::of(&Filter::try_from(filter).unwrap());
    let apps: Vec<App> = found.iter().map(|number| (member(*number, "app"), State::Running)).collect();
    selection.narrow(&apps);
    selection
}

#[test]
fn a_call_looks_at_what_it_is_about_and_at_no_other_when_limits_change() {
    use VerdictScope::{All, Container, Pod};
    let container = |number: u64| Container(member(number, "app").container_id.clone());
    let pod = |uid: &str| Pod(PodUid(uid.into()));
    let after = |selection: &Selection, changed: &[VerdictScope]| {
        selection.concerned(changed.iter().cloned().collect()).into_iter().collect::<Vec<_>>()
    };
    let id = member(7, "app").container_id.0.to_string();
    let one = selection(proto::Filter { containers: vec![id], ..Default::default() }, &[7]);
    assert_eq!(after(&one, &[container(8), pod("v")]), []);
    for changed in [container(7), pod("u"), All] {
        assert_eq!(after(&one, &[container(8), changed]), [container(7)]);
    }
    let by_pod = selection(proto::Filter { pods: vec!["u".to_owned()], ..Default::default() }, &[7, 8]);
    assert_eq!(after(&by_pod, &[container(9), pod("v")]), []);
    assert_eq!(after(&by_pod, &[container(9), container(8), pod("u")]), [container(8), pod("u")]);
    assert_eq!(after(&by_pod, &[All]), [pod("u")]);
    let everything = selection(proto::Filter::default(), &[7]);
    assert_eq!(after(&everything, &[container(9), pod("v")]), [container(9), pod("v")]);
}

#[test]
fn a_container_outside_of_pods_cgroups_is_of_the_runtimes_pod() {
    let facts = RuntimeFacts {
        runtime: None,
        created_at: None,
        container_type: ContainerType::App,
        name: Some("main".into()),
        pod_name: None,
        pod_namespace: None,
        pod_uid: Some(PodUid("of-runtime".into())),
        image: None,
        labels: BTreeMap::new(),
    };
    let outside = Subject {
        cgroup_id: CgroupId(7),
        cgroup_path: "/k8s.io/7".into(),
        container_id: ContainerId("7".into()),
        runtime: None,
        pod: None,
        facts: Some(Arc::new(facts)),
    };
    assert_eq!(pod_uid(&outside), Some(&PodUid("of-runtime".into())));
    let pod = Some(PodRef { uid: PodUid("of-path".into()), qos: QosClass::Burstable });
    assert_eq!(pod_uid(&Subject { pod, ..outside }), Some(&PodUid("of-path".into())));
}

/// A look that found these verdicts on memory limits.
fn look(verdicts: &[(&str, Verdict)], unavailable: &str) -> VerifyReport {
    let judged = |(path, verdict): &(&str, Verdict)| Judged {
        cgroup: CgroupId(path.bytes().fold(0, |id, byte| id << 8 | u64::from(byte))),
        path: Arc::from(*path),
        role: LevelRole::Container,
        pod: None,
        desired: Vec::new(),
        attempt: None,
        judgement: Judgement {
            resource: Resource::Memory,
            verdict: verdict.clone(),
            desired: None,
            disagreeing: Vec::new(),
            tolerance: None,
            in_force: Reading::Absent,
            effective: None,
        },
        kubernetes: None,
    };
    let judged = verdicts.iter().map(|of| (None, judged(of))).collect();
    VerifyReport { judged, unavailable: vec![unavailable.to_owned()], ..VerifyReport::default() }
}

#[test]
fn of_several_looks_the_later_one_counts_and_what_none_looked_at_stays() {
    let (good, bad) = (Verdict::InForce, Verdict::Diverged);
    let mut report = look(&[("/a", bad.clone()), ("/b", bad.clone()), ("/c", bad.clone())], "first");
    let looks = [&[("/b", bad.clone()), ("/d", good.clone())][..], &[("/b", good.clone())]];
    report.renew(looks.into_iter().zip(["second", "third"]).map(|(of, why)| look(of, why)).collect());
    let verdicts: Vec<_> =
        report.judged.iter().map(|(_, judged)| (&*judged.path, judged.judgement.verdict.clone())).collect();
    assert_eq!(verdicts, [("/a", bad.clone()), ("/b", good.clone()), ("/c", bad.clone()), ("/d", good)]);
    assert_eq!(report.unavailable, ["third"]);
    report.renew(Vec::new());
    assert_eq!(report.unavailable, ["third"], "no look changes nothing");
}

#[test]
fn of_many_verdicts_a_call_that_waits_keeps_those_that_are_open() {
    let paths: Vec<String> = (0..1000).map(|number| format!("/{number}")).collect();
    let found = |verdict: &Verdict| {
        let verdicts: Vec<_> = paths.iter().map(|path| (path.as_str(), verdict.clone())).collect();
        look(&verdicts, "")
    };
    let mut kept = Kept::of(found(&Verdict::InForce));
    assert!(kept.all_in_force() && matches!(&kept, Kept::Open(open) if open.is_empty()));
    kept.renew(vec![look(&[("/7", Verdict::Diverged), ("/8", Verdict::Diverged)], "")]);
    kept.renew(vec![look(&[("/8", Verdict::InForce)], "")]);
    assert!(!kept.all_in_force() && matches!(&kept, Kept::Open(open) if open.len() == 1));
    kept.renew(vec![look(&[("/7", Verdict::InForce)], "")]);
    assert!(kept.all_in_force());
    assert!(matches!(Kept::of(found(&Verdict::Diverged)), Kept::Open(open) if open.len() == 1000));
    let mut few = Kept::of(look(&[("/x", Verdict::Diverged)], ""));
    assert!(matches!(few, Kept::Whole(_)));
    few.renew(vec![found(&Verdict::InForce)]);
    assert!(!few.all_in_force() && matches!(&few, Kept::Open(open) if open.len() == 1), "it grows to many");
}

fn judge(node: &mut Node, evidence: Vec<Evidence>) -> Vec<Judged> {
    let observe = |of| node.observe(Observation::Evidence(Box::new(of)), &mut Output::default()).unwrap();
    evidence.into_iter().map(observe).collect()
}

/// The engine's part, one request after the other, each of which takes so long; gives how many there were.
fn slow_engine(
    takes: Duration,
    mut requests: mpsc::Receiver<Request>,
    subjects: Vec<Arc<Subject>>,
) -> Arc<AtomicU32> {
    let served = Arc::new(AtomicU32::new(0));
    let count = Arc::clone(&served);
    tokio::spawn(async move {
        let mut node = Node::new(Bounds::default());
        while let Some(request) = requests.recv().await {
            tokio::time::sleep(takes).await;
            count.fetch_add(1, Ordering::Relaxed);
            match request {
                Request::Subjects(_, answer) => {
                    let running = |subject: &Arc<Subject>| (Arc::clone(subject), State::Running);
                    answer.send(subjects.iter().map(running).collect()).unwrap();
                }
                Request::Judge(evidence, answer) => answer.send(judge(&mut node, evidence)).unwrap(),
                other => panic!("{other:?}"),
            }
        }
    });
    served
}

#[tokio::test]
async fn without_requests_there_is_nothing_to_forget_and_nothing_to_ask() {
    let tree = tempfile::tempdir().unwrap();
    let (engine, requests) = Handle::new();
    let served = slow_engine(Duration::ZERO, requests, Vec::new());
    let (resolver, _) = cri::start(RuntimeChoice::Never, mpsc::channel(1).0);
    let (cgroups, queue) = (CgroupFs::at(tree.path()), JudgeQueue::default());
    let verifier =
        Verifier::new(cgroups, engine, queue, resolver, tree.path().to_owned(), Reported::default());
    verifier.forget_ended().await.unwrap();
    assert_eq!(served.load(Ordering::Relaxed), 0);
    let request = proto::CriRequest {
        method: proto::CriMethod::UpdateContainerResources.into(),
        id: "gone".to_owned(),
        received: 1,
        answered: 1,
        code: Some(0),
        resources: Some(proto::CriResources { memory_limit_in_bytes: 4096, ..Default::default() }),
    };
    verifier.reported().take(LimitReport::Requested(request));
    verifier.forget_ended().await.unwrap();
    assert_eq!(served.load(Ordering::Relaxed), 1);
}

#[tokio::test(start_paused = true)]
async fn a_thousand_calls_that_wait_take_a_tenth_of_the_engine_at_most() {
    const CALLS: usize = 1000;
    const TAKES: Duration = Duration::from_millis(1);
    const WAIT: Duration = Duration::from_secs(120);
    let tree = tempfile::tempdir().unwrap();
    let subject = |number: u64| Subject {
        cgroup_id: CgroupId(number),
        cgroup_path: format!("/kubepods/{number}").into(),
        container_id: ContainerId(number.to_string().into()),
        runtime: None,
        pod: None,
        facts: None,
    };
    let (engine, requests) = Handle::new();
    let served = slow_engine(TAKES, requests, (1..=10).map(|number| Arc::new(subject(number))).collect());
    let (resolver, _) = cri::start(RuntimeChoice::Never, mpsc::channel(1).0);
    let (cgroups, queue) = (CgroupFs::at(tree.path()), JudgeQueue::default());
    let verifier =
        Verifier::new(cgroups, engine, queue, resolver, tree.path().to_owned(), Reported::default());
    // It never comes: there is no such file.
    let desired = [memory_by(Source::Client, 4096)];
    let filter = Filter::default();
    let began = Instant::now();
    let reports = join_all((0..CALLS).map(|_| verifier.verify(&filter, &desired, WAIT))).await;
    assert!(reports.iter().all(|report| !report.as_ref().unwrap().all_in_force()));
    assert!(began.elapsed() >= WAIT, "they wait");
    let busy = TAKES * served.load(Ordering::Relaxed);
    assert!(busy <= began.elapsed() / 10, "{busy:?} of {:?}", began.elapsed());
}

fn memory_by(source: Source, bytes: u64) -> Desired {
    let wanted = Wanted::Memory(Bound::At(bytes));
    (Resource::Memory, DesiredLimit { source, at: KernelTime(1), wanted })
}

/// A container of the pod `u`, by its name.
fn member(number: u64, name: &str) -> Arc<Subject> {
    let facts = RuntimeFacts {
        runtime: None,
        created_at: None,
        container_type: ContainerType::App,
        name: Some(name.into()),
        pod_name: None,
        pod_namespace: None,
        pod_uid: None,
        image: None,
        labels: BTreeMap::new(),
    };
    let id = format!("{number:064x}");
    Arc::new(Subject {
        cgroup_id: CgroupId(number),
        cgroup_path: format!("/kubepods/burstable/podu/{id}").into(),
        container_id: ContainerId(id.into()),
        runtime: None,
        pod: Some(PodRef { uid: PodUid("u".into()), qos: QosClass::Burstable }),
        facts: Some(Arc::new(facts)),
    })
}

fn verifier(tree: &std::path::Path, engine: Handle) -> Verifier {
    let (resolver, _) = cri::start(RuntimeChoice::Never, mpsc::channel(1).0);
    let kubelet = tree.to_owned();
    Verifier::new(CgroupFs::at(tree), engine, JudgeQueue::default(), resolver, kubelet, Reported::default())
}

#[tokio::test]
async fn a_pods_sum_counts_each_of_its_containers_once_and_none_that_has_ended() {
    use State::{Created, Running, Stopped};
    let tree = tempfile::tempdir().unwrap();
    let verifier = verifier(tree.path(), Handle::new().0);
    let sum = |apps: &[(u64, &str, State)]| {
        let apps: Vec<App> =
            apps.iter().map(|(number, name, state)| (member(*number, name), *state)).collect();
        let desired = |(subject, _): &App| {
            let desired: Arc<[_]> = [memory_by(Source::Runtime, 64)].into();
            (subject.container_id.clone(), desired)
        };
        let sources = Sources { runtime: apps.iter().map(desired).collect(), ..Sources::default() };
        let targets = verifier.targets(&apps, &[], &sources, true);
        assert_eq!(targets.iter().filter(|target| target.subject.is_some()).count(), apps.len());
        let pod = targets.into_iter().find(|target| target.subject.is_none())?;
        assert_eq!((&*pod.path, pod.cgroup), ("/kubepods/burstable/podu", None));
        pod.desired.first().map(|desired| desired.wanted)
    };
    let at_least = |bytes| Some(Wanted::MemoryAtLeast(Bound::At(bytes)));
    assert_eq!(sum(&[(7, "app", Running), (8, "sidecar", Running)]), at_least(128));
    assert_eq!(sum(&[(7, "app", Stopped), (9, "app", Running)]), at_least(64), "restarted");
    assert_eq!(sum(&[(9, "app", Created), (7, "app", Running)]), at_least(64), "whose end is not known yet");
    assert_eq!(sum(&[(7, "setup", Stopped), (9, "app", Running)]), at_least(64));
    assert_eq!(sum(&[(7, "app", Stopped)]), None, "nothing says what the pod needs");
}

#[tokio::test]
async fn only_what_was_unconfirmed_is_judged_again() {
    let tree = tempfile::tempdir().unwrap();
    let (engine, mut requests) = Handle::new();
    let verifier = verifier(tree.path(), engine);
    let unconfirmed = ApiComparison::NotCompared(NotCompared::Unconfirmed);
    let mut report = look(&[("/a", Verdict::InForce), ("/b", Verdict::Diverged)], "runtime: why");
    assert_eq!(report.unconfirmed(), BTreeMap::new());
    let (subject, judged) = &mut report.judged[1];
    *subject = Some(member(7, "app"));
    let view = ApiView { observed_from: KernelTime(0), outage: None, said: Err(ApiMissing::Pod) };
    judged.kubernetes = Some(ApiFinding { view, comparison: unconfirmed });
    let again = report.unconfirmed();
    let pod = PodUid("u".into());
    assert_eq!(again, BTreeMap::from([(pod.clone(), BTreeSet::from([VerdictScope::Pod(pod.clone())]))]));
    let serve = async {
        let Some(Request::Subjects(scope, answer)) = requests.recv().await else { panic!() };
        answer.send(Vec::new()).unwrap();
        scope
    };
    let filter = Filter::default();
    let (looked, scope) = tokio::join!(verifier.look_again(&filter, &[], again, &mut report), serve);
    looked.unwrap();
    assert_eq!((scope, report.judged.len()), (VerdictScope::Pod(pod), 2));
    assert_eq!(report.unavailable, ["runtime: why"]);
}

/// An engine that has these subjects, by the scope and whether it is the first request; the scopes, once there are no more requests.
fn serve(
    mut requests: mpsc::Receiver<Request>,
    mut subjects: impl FnMut(&VerdictScope, bool) -> Vec<(Arc<Subject>, State)> + Send + 'static,
) -> JoinHandle<Vec<VerdictScope>> {
    tokio::spawn(async move {
        let mut node = Node::new(Bounds::default());
        let mut scopes = Vec::new();
        while let Some(request) = requests.recv().await {
            match request {
                Request::Subjects(scope, answer) => {
                    answer.send(subjects(&scope, scopes.is_empty())).unwrap();
                    scopes.push(scope);
                }
                Request::Judge(evidence, answer) => answer.send(judge(&mut node, evidence)).unwrap(),
                other => panic!("{other:?}"),
            }
        }
        scopes
    })
}

#[tokio::test(start_paused = true)]
async fn a_call_that_names_one_container_requests_no_other_however_long_it_waits() {
    let tree = tempfile::tempdir().unwrap();
    let (engine, requests) = Handle::new();
    let verifier = verifier(tree.path(), engine);
    let subject = member(7, "app");
    let id = subject.container_id.clone();
    let filter = proto::Filter { containers: vec![id.0.to_string()], ..Default::default() };
    let filter = Filter::try_from(filter).unwrap();
    let serving = serve(requests, move |_, _| vec![(Arc::clone(&subject), State::Running)]);
    let desired = [memory_by(Source::Client, 4096)];
    let report = verifier.verify(&filter, &desired, Duration::from_secs(2)).await.unwrap();
    assert_eq!(report.judged.len(), 1);
    drop(verifier);
    let scopes = serving.await.unwrap();
    assert!(scopes.len() >= 2, "at first and for good: {scopes:?}");
    assert!(scopes.iter().all(|scope| *scope == VerdictScope::Container(id.clone())), "{scopes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_call_that_waits_for_a_pod_lists_all_containers_at_first_and_for_good_only() {
    let tree = tempfile::tempdir().unwrap();
    let (engine, requests) = Handle::new();
    let verifier = verifier(tree.path(), engine);
    let filter = proto::Filter { pods: vec!["u".to_owned()], ..Default::default() };
    let filter = Filter::try_from(filter).unwrap();
    let queue = verifier.queue.clone();
    let serving = serve(requests, move |_, is_first| {
        if is_first {
            // A change that concerns every call has it look again.
            queue.push(VerdictScope::All);
        }
        vec![(member(7, "app"), State::Running)]
    });
    let desired = [memory_by(Source::Client, 4096)];
    verifier.verify(&filter, &desired, Duration::from_secs(2)).await.unwrap();
    drop(verifier);
    let scopes = serving.await.unwrap();
    let (all, pod) = (VerdictScope::All, VerdictScope::Pod(PodUid("u".into())));
    assert_eq!((scopes.first(), scopes.last()), (Some(&all), Some(&all)));
    assert!(scopes.len() > 2 && scopes[1..scopes.len() - 1].iter().all(|scope| *scope == pod), "{scopes:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_while_a_call_waits_is_waited_for_too() {
    let tree = tempfile::tempdir().unwrap();
    let (engine, requests) = Handle::new();
    let verifier = verifier(tree.path(), engine);
    let filter = proto::Filter { pods: vec!["u".to_owned(), "v".to_owned()], ..Default::default() };
    let filter = Filter::try_from(filter).unwrap();
    let make = |number: u64, uid: &str| {
        let id = format!("{number:064x}");
        let path = format!("/kubepods/burstable/pod{uid}/{id}");
        let directory = tree.path().join(path.trim_start_matches('/'));
        std::fs::create_dir_all(&directory).unwrap();
        let file = directory.join("memory.max");
        std::fs::write(&file, "8192").unwrap();
        let subject = Subject {
            cgroup_id: verifier.cgroups().open(&path).unwrap().id().unwrap(),
            cgroup_path: path.into(),
            container_id: ContainerId(id.into()),
            runtime: None,
            pod: Some(PodRef { uid: PodUid(uid.into()), qos: QosClass::Burstable }),
            facts: None,
        };
        (Arc::new(subject), file)
    };
    let (first, second) = (make(7, "u"), make(8, "v"));
    let queue = verifier.queue.clone();
    let serving = serve(requests, move |scope, is_first| {
        let running = |subject: &Arc<Subject>| (Arc::clone(subject), State::Running);
        if let VerdictScope::Pod(uid) = scope {
            let (subject, file) = if &*uid.0 == "u" { &first } else { &second };
            std::fs::write(file, "4096").unwrap();
            return vec![running(subject)];
        }
        queue.push(VerdictScope::All);
        let there = if is_first { vec![&first] } else { vec![&first, &second] };
        there.into_iter().map(|(subject, _)| running(subject)).collect()
    });
    let desired = [memory_by(Source::Client, 4096)];
    let report = verifier.verify(&filter, &desired, Duration::from_secs(60)).await.unwrap();
    assert!(report.all_in_force() && report.judged.len() == 2, "{report:?}");
    drop(verifier);
    let pod = |uid: &str| VerdictScope::Pod(PodUid(uid.into()));
    let all = VerdictScope::All;
    let looks = [all.clone(), pod("u"), all.clone(), pod("u"), pod("v"), all];
    assert_eq!(serving.await.unwrap(), looks);
}
