use std::convert::Infallible;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use kube::client::Body;
use serde_json::{Value, json};
use tonic::codegen::http::{Method, Request, Response, StatusCode};

use super::*;
use crate::raise::resize::tests::{RAISE, container, pod};

/// An API server that has one pod, answers patches in turn, and records what was requested. Each patch that it refuses came
/// after another change: the pod's next version is one more.
#[derive(Clone, Default)]
struct Server {
    answers: Arc<Vec<u16>>,
    patches: Arc<AtomicUsize>,
    requests: Arc<Mutex<Vec<Seen>>>,
    /// The pod has a limit of its own.
    pod_limit: bool,
    /// The pod has another version each time that it is read.
    is_changing: bool,
    /// Another client's resize is under way for so many reads.
    pending_reads: usize,
    /// For what reason the kubelet has put off what the spec has, if it has.
    put_off: Option<&'static str>,
}

/// A request: its method, path with query, type of content and body.
type Seen = (Method, String, String, Value);

/// The version of the pod before any change.
const VERSION: usize = 42;

impl Server {
    fn new(answers: &[u16]) -> Self {
        Self { answers: Arc::new(answers.to_vec()), ..Self::default() }
    }

    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let (head, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let content = head.headers.get("content-type").map(|content| content.to_str().unwrap());
        let seen = (
            head.method.clone(),
            head.uri.to_string(),
            content.unwrap_or_default().to_owned(),
            if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() },
        );
        self.requests.lock().unwrap().push(seen);
        let code = match head.method {
            Method::PATCH => self.answers[self.patches.fetch_add(1, Ordering::Relaxed)],
            _ => 200,
        };
        let body: Value = if code == 200 {
            let mut pod = pod();
            let reads = if self.is_changing { self.requests.lock().unwrap().len() } else { 0 };
            let version = VERSION + self.patches.load(Ordering::Relaxed) + reads;
            if self.pod_limit {
                pod["spec"]["resources"] = json!({ "limits": { "memory": "1Gi" } });
            }
            pod["metadata"]["resourceVersion"] = json!(version.to_string());
            if self.requests.lock().unwrap().len() <= self.pending_reads {
                let condition = json!({ "type": "PodResizeInProgress", "status": "True" });
                pod["status"]["conditions"] = json!([condition]);
            }
            if let Some(reason) = self.put_off {
                let condition = json!({ "type": "PodResizePending", "status": "True", "reason": reason });
                pod["status"]["conditions"] = json!([condition]);
            }
            pod
        } else {
            json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "message": "no\x07",
                    "reason": "Why", "code": code })
        };
        let mut response = Response::new(Body::from(body.to_string().into_bytes()));
        *response.status_mut() = StatusCode::from_u16(code).unwrap();
        response
    }

    fn access(&self) -> Kubernetes {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        Kubernetes { client: Client::new(service, "default"), node: None }
    }
}

const HOLD: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_raise_reads_the_pod_and_patches_its_resize_and_nothing_else() {
    let server = Server::new(&[200]);
    assert_eq!(server.access().set(&container(), RAISE, None, HOLD).await, Ok(()));
    assert_eq!(*server.requests.lock().unwrap(), [read(), patch(VERSION)]);
}

const POD: &str = "/api/v1/namespaces/dev/pods/web";

/// The request that reads the pod.
fn read() -> Seen {
    (Method::GET, POD.to_owned(), String::new(), Value::Null)
}

/// The request that raises the container's limit in that version of the pod: all that it changes.
fn patch(version: usize) -> Seen {
    let resources = json!({ "limits": { "memory": "128Mi" } });
    let body = json!({
        "metadata": { "resourceVersion": version.to_string() },
        "spec": { "containers": [{ "name": "main", "resources": resources }] },
    });
    let uri = format!("{POD}/resize?&fieldManager=kwitness-guard");
    (Method::PATCH, uri, "application/strategic-merge-patch+json".to_owned(), body)
}

#[tokio::test]
async fn a_pod_that_changed_meanwhile_is_read_again_and_not_for_ever() {
    let server = Server::new(&[409, 409, 200]);
    assert_eq!(server.access().set(&container(), RAISE, None, HOLD).await, Ok(()));
    let expected = (0..3).flat_map(|changes| [read(), patch(VERSION + changes)]);
    assert_eq!(*server.requests.lock().unwrap(), expected.collect::<Vec<_>>());
    let server = Server::new(&[409; ATTEMPTS]);
    let refused = server.access().set(&container(), RAISE, None, HOLD).await;
    assert_eq!(refused, Err(ResizeRefusal::Conflict.into()));
}

#[tokio::test(start_paused = true)]
async fn a_raise_waits_for_another_clients_resize_as_long_as_the_hold_lasts() {
    let server = Server { pending_reads: 2, ..Server::new(&[200]) };
    assert_eq!(server.access().set(&container(), RAISE, None, HOLD).await, Ok(()));
    assert_eq!(*server.requests.lock().unwrap(), [read(), read(), read(), patch(VERSION)]);

    let (began, hold) = (Instant::now(), Duration::from_secs(3));
    let server = Server { pending_reads: usize::MAX, ..Server::new(&[]) };
    let refused = server.access().set(&container(), RAISE, None, hold).await.unwrap_err();
    assert_eq!(refused.name(), "resizePending");
    assert!((hold - 2 * LOOK..hold).contains(&began.elapsed()), "{:?}", began.elapsed());

    let (began, server) = (Instant::now(), Server { pending_reads: usize::MAX, ..Server::new(&[]) });
    let lower = Change { from: RAISE.from, to: Bytes(RAISE.from.0 / 2) };
    let refused = server.access().set(&container(), lower, None, HOLD).await.unwrap_err();
    assert_eq!((refused.name(), began.elapsed()), ("resizePending", Duration::ZERO), "lowered");
}

#[tokio::test]
async fn what_the_guard_has_requested_before_and_the_spec_has_is_accepted_without_a_patch() {
    let again = Change { from: Bytes(RAISE.from.0 / 2), to: RAISE.from };
    let server = Server { pending_reads: usize::MAX, ..Server::new(&[]) };
    assert_eq!(server.access().set(&container(), again, Some(again.to), HOLD).await, Ok(()));
    assert_eq!(*server.requests.lock().unwrap(), [read()]);
    let others = Server::new(&[]).access().set(&container(), again, None, HOLD).await.unwrap_err();
    assert_eq!(others.name(), "specDiffers", "another client's");
}

#[tokio::test]
async fn what_the_kubelet_has_put_off_is_taken_back_and_nothing_else() {
    let raise = Change { from: Bytes(RAISE.from.0 / 2), to: RAISE.from };
    let server = Server { put_off: Some("Deferred"), ..Server::new(&[409, 200]) };
    assert_eq!(server.access().take_back(&container(), raise, HOLD).await, Ok(true));
    {
        let requests = server.requests.lock().unwrap();
        let [_, _, _, (method, _, _, patch)] = &requests[..] else { panic!("{requests:?}") };
        assert_eq!(*method, Method::PATCH);
        assert_eq!(patch["metadata"]["resourceVersion"], (VERSION + 1).to_string());
        assert_eq!(patch["spec"]["containers"][0]["resources"], json!({ "limits": { "memory": "32Mi" } }));
    }
    for (server, raise) in
        [(Server::new(&[]), raise), (Server { put_off: Some("Deferred"), ..Server::new(&[]) }, RAISE)]
    {
        assert_eq!(server.access().take_back(&container(), raise, HOLD).await, Ok(false));
        assert_eq!(*server.requests.lock().unwrap(), [read()]);
    }
}

#[tokio::test]
async fn each_answer_has_its_own_reason_and_its_text_is_escaped() {
    let said = || "no\\x07".to_owned();
    for (code, expected) in [
        (404, Refusal::Gone),
        (422, ResizeRefusal::Invalid(said()).into()),
        (403, ResizeRefusal::Forbidden(said()).into()),
        (503, ResizeRefusal::Unavailable(said()).into()),
    ] {
        let refused = Server::new(&[code]).access().set(&container(), RAISE, None, HOLD).await;
        assert_eq!(refused, Err(expected), "{code}");
    }
}

#[tokio::test]
async fn a_server_that_resizes_no_pod_with_a_limit_of_its_own_is_refused_by_name() {
    let server = Server { pod_limit: true, ..Server::new(&[422]) };
    let refused = server.access().set(&container(), RAISE, None, HOLD).await;
    assert_eq!(refused, Err(ResizeRefusal::PodLimit("no\\x07".to_owned()).into()));
}

#[tokio::test(start_paused = true)]
async fn a_change_without_an_answer_is_looked_for_until_it_cannot_come_any_more() {
    let began = Instant::now();
    let server = Server::new(&[]);
    assert!(!server.access().is_accepted(&container(), RAISE).await, "the pod never changes");
    assert!((LATE..LATE + PAUSE_MAX).contains(&began.elapsed()), "{:?}", began.elapsed());
    let reads = server.requests.lock().unwrap().len();
    assert!((2..20).contains(&reads), "{reads} reads");

    let Change { from, .. } = RAISE;
    let accepted = Change { from: RAISE.to, to: from };
    assert!(Server::new(&[]).access().is_accepted(&container(), accepted).await, "the spec has it");
    let changing = Server { is_changing: true, ..Server::new(&[]) };
    assert!(!changing.access().is_accepted(&container(), RAISE).await, "another version");
    assert_eq!(changing.requests.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_server_that_does_not_answer_ends_with_the_hold() {
    let silent =
        tower::service_fn(|_: Request<Body>| std::future::pending::<Result<Response<Body>, Infallible>>());
    let access = Kubernetes { client: Client::new(silent, "default"), node: None };
    let refused = access.set(&container(), RAISE, None, Duration::from_millis(1)).await;
    assert_eq!(refused, Err(ResizeRefusal::NoAnswer.into()));
}

#[tokio::test(start_paused = true)]
async fn what_the_kubelet_refuses_after_the_patch_ends_the_wait_with_its_reason() {
    for (reason, name) in [("Deferred", "resizeDeferred"), ("Infeasible", "resizeInfeasible")] {
        let server = Server { put_off: Some(reason), ..Server::new(&[]) };
        let refused = tokio::time::timeout(HOLD, server.access().refused(&container())).await.unwrap();
        assert!(refused.name() == name && refused.is_put_off() && refused.is_failure(), "{refused:?}");
    }
    let server = Server::new(&[]);
    let access = server.access();
    let container = container();
    let refused = access.refused(&container);
    assert!(tokio::time::timeout(HOLD, refused).await.is_err(), "it is carried out");
}

#[tokio::test]
async fn an_error_does_not_quote_the_credentials() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("kubeconfig");
    std::fs::write(&file, "kind: Config\nusers: [{name: u, user: {token: SECRET}\nclusters: [\n").unwrap();
    let error = format!("{:#}", Kubernetes::connect(Some(&file), None).await.unwrap_err());
    assert!(error.contains("line ") && !error.contains("SECRET"), "{error}");
}
