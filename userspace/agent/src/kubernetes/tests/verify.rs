//! What a `Verify` call makes of a difference that was only watched.

use kwitness_core::lifecycle::Bounds;
use kwitness_core::model::{
    ApiComparison, ApiDisagreementKind, Bound, ContainerId, DesiredLimit, Judged, KernelTime, NotCompared,
    Observation, Output, PodRef, PodUid, QosClass, Source, Subject, Verdict, Wanted,
};
use kwitness_core::node::Node;

use super::*;
use crate::cgroupfs::CgroupFs;
use crate::config::RuntimeChoice;
use crate::cri;
use crate::engine::{Handle, JudgeQueue, Request};
use crate::hub::Filter;
use crate::reported::Reported;
use crate::verify::{Verifier, VerifyReport};

/// The container's limit: half of what the API's pods have.
const FILE: u64 = 128 << 20;

/// Asks whether the container `c1` of the pod `u-web` has its limit of 128Mi.
async fn verify(source: &Kubernetes) -> VerifyReport {
    verify_within(Duration::ZERO, source).await
}

/// The same, and waits so long for it.
async fn verify_within(wait: Duration, source: &Kubernetes) -> VerifyReport {
    let tree = tempfile::tempdir().unwrap();
    let path = "/kubepods/podu-web/c1";
    let directory = tree.path().join(path.trim_start_matches('/'));
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("memory.max"), FILE.to_string()).unwrap();
    let cgroups = CgroupFs::at(tree.path());
    let subject = Arc::new(Subject {
        cgroup_id: cgroups.open(path).unwrap().id().unwrap(),
        cgroup_path: path.into(),
        container_id: ContainerId("c1".into()),
        runtime: None,
        pod: Some(PodRef { uid: PodUid("u-web".into()), qos: QosClass::Guaranteed }),
        facts: None,
    });
    let (engine, mut requests) = Handle::new();
    tokio::spawn(async move {
        let mut node = Node::new(Bounds::default());
        while let Some(request) = requests.recv().await {
            match request {
                Request::Subjects(_, answer) => {
                    answer.send(vec![(subject.clone(), kwitness_core::model::State::Running)]).unwrap()
                }
                Request::Judge(evidence, answer) => {
                    let observe = |of| {
                        node.observe(Observation::Evidence(Box::new(of)), &mut Output::default()).unwrap()
                    };
                    let judged = evidence.into_iter().map(observe).collect();
                    answer.send(judged).unwrap();
                }
                other => panic!("{other:?}"),
            }
        }
    });
    let (resolver, _) = cri::start(RuntimeChoice::Never, mpsc::channel(1).0);
    let (queue, kubelet) = (JudgeQueue::default(), tree.path().to_owned());
    let verifier = Verifier::new(cgroups, engine, queue, resolver, kubelet, Reported::default());
    let verifier = verifier.with_kubernetes(Some(source.clone()));
    let wanted = Wanted::Memory(Bound::At(FILE));
    let desired = DesiredLimit { source: Source::Client, at: KernelTime(1), wanted };
    verifier.verify(&Filter::default(), &[(Resource::Memory, desired)], wait).await.unwrap()
}

fn memory(report: &VerifyReport) -> &Judged {
    let is_memory = |judged: &&Judged| judged.judgement.resource == Resource::Memory;
    report.judged.iter().map(|(_, judged)| judged).find(is_memory).unwrap()
}

fn comparison(report: &VerifyReport) -> &ApiComparison {
    &memory(report).kubernetes.as_ref().unwrap().comparison
}

/// What it says of the API, if that could not be asked. There is no runtime here, which it says, too.
fn of_the_api(report: &VerifyReport) -> Option<&str> {
    report.unavailable.iter().map(AsRef::as_ref).find(|words: &&str| words.starts_with("kubernetes"))
}

/// A server whose watch has the pod with 256Mi, and that gives this answer when the pod is read.
async fn server(read: Answer) -> Server {
    Server::start(move |request| match request.line {
        line if line.contains("/pods/web") => read.clone(),
        _ if request.is_watch() => Answer::Hold(Vec::new()),
        _ => list(10, &[pod("web", 7, "256Mi")]),
    })
    .await
}

#[tokio::test]
async fn a_stale_watch_is_never_taken_for_a_disagreement() {
    let server = server(Answer::Json(200, pod("web", 12, "128Mi"))).await;
    let watching = Watching::of(&server);
    watching.until_watching().await;
    let report = verify(&watching.source).await;
    assert_eq!(comparison(&report), &ApiComparison::Agrees);
    assert_eq!(watching.counter("kubernetes_reads"), 1);
    verify(&watching.source).await;
    assert_eq!(watching.counter("kubernetes_reads"), 1, "there is nothing to confirm");
}

#[tokio::test]
async fn a_status_that_is_confirmed_and_not_in_the_kernel_disagrees_and_changes_no_verdict() {
    let server = server(Answer::Json(200, pod("web", 7, "256Mi"))).await;
    let watching = Watching::of(&server);
    watching.until_watching().await;
    let report = verify(&watching.source).await;
    let ApiComparison::Disagrees(found) = comparison(&report) else { panic!("{report:?}") };
    assert_eq!((found[0].kind, &*found[0].says), (ApiDisagreementKind::Status, "256Mi"));
    assert_eq!(memory(&report).judgement.verdict, Verdict::InForce);
    assert_eq!(of_the_api(&report), None, "{:?}", report.unavailable);
}

#[tokio::test]
async fn what_cannot_be_confirmed_is_no_disagreement_and_the_reason_is_said() {
    let server = server(refusal(403)).await;
    let watching = Watching::of(&server);
    watching.until_watching().await;
    let report = verify(&watching.source).await;
    assert_eq!(comparison(&report), &ApiComparison::NotCompared(NotCompared::Unconfirmed));
    let refused = of_the_api(&report).unwrap();
    assert!(refused.starts_with("kubernetes: cannot read a pod: "), "{refused}");
    let report = verify_within(Duration::from_secs(60), &watching.source).await;
    assert_eq!(of_the_api(&report), None, "nothing was to be read");
    watching.source.0.failed(Failure::ResourceExpired);
    let report = verify(&watching.source).await;
    assert_eq!(comparison(&report), &ApiComparison::NotCompared(NotCompared::Unreachable));
    let expired = of_the_api(&report).unwrap();
    assert!(expired.contains("410"), "{expired}");
}

#[tokio::test]
async fn who_waits_for_a_limit_of_its_own_does_not_wait_for_the_api() {
    let server = server(Answer::Json(200, pod("web", 7, "256Mi"))).await;
    let watching = Watching::of(&server);
    watching.until_watching().await;
    let report = verify_within(Duration::from_secs(60), &watching.source).await;
    assert_eq!(memory(&report).judgement.verdict, Verdict::InForce);
    assert_eq!(comparison(&report), &ApiComparison::NotCompared(NotCompared::Unconfirmed));
    assert_eq!(watching.counter("kubernetes_reads"), 0);
}
