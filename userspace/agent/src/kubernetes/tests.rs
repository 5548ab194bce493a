//! The watch against an API server that says what a test has it say, over HTTP.

mod server;
mod verify;

use std::path::Path;

use kwitness_api::proto::KubernetesFailure;
use kwitness_core::model::{ApiLimit, ApiMissing};
use serde_json::{Value, json};

use super::*;
use server::{Answer, Server};

/// A pod of one container whose status has that limit.
pub(super) fn pod(name: &str, version: u64, status: &str) -> Value {
    json!({
        "metadata": { "uid": format!("u-{name}"), "namespace": "dev", "name": name,
                      "resourceVersion": version.to_string(), "generation": 2,
                      "managedFields": [{ "fieldsV1": { "f:spec": {} } }] },
        "spec": { "nodeName": "node-1", "containers": [{ "name": "app", "image": "app",
            "resources": { "limits": { "memory": "256Mi" }, "requests": { "memory": "64Mi" } } }] },
        "status": { "phase": "Running", "observedGeneration": 2, "containerStatuses": [{
            "name": "app", "containerID": "containerd://c1",
            "allocatedResources": { "memory": "64Mi" },
            "resources": { "limits": { "memory": status }, "requests": { "memory": "64Mi" } } }] },
    })
}

fn list(version: u64, pods: &[Value]) -> Answer {
    Answer::Json(
        200,
        json!({ "kind": "PodList", "metadata": { "resourceVersion": version.to_string() }, "items": pods }),
    )
}

fn event(kind: &str, object: Value) -> Value {
    json!({ "type": kind, "object": object })
}

fn bookmark(version: u64) -> Value {
    event(
        "BOOKMARK",
        json!({ "kind": "Pod", "metadata": { "resourceVersion": version.to_string() }, "spec": {} }),
    )
}

fn refusal(code: u16) -> Answer {
    let status = json!({ "kind": "Status", "code": code, "message": "no\u{7}", "status": "Failure" });
    Answer::Json(code, status)
}

/// A watch that runs, fast to try again.
struct Watching {
    source: Kubernetes,
    task: JoinHandle<()>,
    _directory: tempfile::TempDir,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Watching {
    fn of(server: &Server) -> Self {
        Self::at(&format!("http://{}", server.address), json!({ "token": "t" }))
    }

    fn at(url: &str, user: Value) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("kubeconfig");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{ "name": "c", "cluster": { "server": url, "insecure-skip-tls-verify": true } }],
            "users": [{ "name": "u", "user": user }],
            "contexts": [{ "name": "c", "context": { "cluster": "c", "user": "u" } }],
        });
        std::fs::write(&file, config.to_string()).unwrap();
        Self::start(&file, directory)
    }

    fn start(file: &Path, directory: tempfile::TempDir) -> Self {
        let settings = Settings { kubeconfig: Some(file.to_owned()), node: "node-1".to_owned() };
        let (source, reads) = Kubernetes::new(settings, KernelTime(0));
        let seconds = Duration::from_secs;
        let timing = watch::Timing {
            pause: (Duration::from_millis(1), Duration::from_millis(5)),
            answer: seconds(20),
            read: seconds(20),
            watch: seconds(60),
        };
        let task = tokio::spawn(watch::run(Arc::clone(&source.0), reads, timing));
        Self { source, task, _directory: directory }
    }

    /// Waits until that is so.
    async fn until<T>(&self, what: &str, look: impl Fn(&Self) -> Option<T>) -> T {
        let looking = async {
            loop {
                match look(self) {
                    Some(found) => return found,
                    None => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        };
        let found = tokio::time::timeout(Duration::from_secs(60), looking).await;
        found.unwrap_or_else(|_| panic!("never {what}: {:?}", self.source))
    }

    async fn until_failed(&self) -> proto::KubernetesStatus {
        let failed = |of: &Self| Some(of.status()).filter(|status| !status.error.is_empty());
        self.until("failed", failed).await
    }

    async fn until_status_is(&self, name: &str, limit: &str) -> Arc<ApiLimit> {
        let is_so = |of: &Self| of.memory(name).ok().filter(|of| of.status.limit.as_deref() == Some(limit));
        self.until(limit, is_so).await
    }

    async fn until_watching(&self) {
        self.until("watching", |of| of.status().connected.then_some(())).await;
    }

    fn status(&self) -> proto::KubernetesStatus {
        self.source.status(Clock::read())
    }

    fn view(&self, name: &str) -> ApiView {
        self.source.view(&format!("u-{name}"), Some(("c1", Some("app"))), Resource::Memory)
    }

    fn memory(&self, name: &str) -> Result<Arc<ApiLimit>, ApiMissing> {
        self.view(name).said
    }

    fn counter(&self, name: &str) -> u64 {
        self.source.counters()[name]
    }
}

#[tokio::test]
async fn it_lists_and_watches_this_nodes_pods_and_nothing_else() {
    let server = Server::start(|request| match (request.is_watch(), request.number) {
        (false, _) => list(10, &[pod("web", 7, "256Mi")]),
        (true, 1) => Answer::Lines(vec![event("MODIFIED", pod("web", 11, "128Mi")), bookmark(40)]),
        _ => Answer::Hold(vec![
            event("ADDED", pod("new", 41, "1Mi")),
            event("DELETED", pod("web", 42, "128Mi")),
        ]),
    })
    .await;
    let watching = Watching::of(&server);
    watching.until_status_is("new", "1Mi").await;
    watching.until("deleted", |of| of.memory("web").err()).await;
    let requests = server.requests();
    let paths: Vec<_> = requests.iter().map(|request| request.split_once('?').unwrap().0).collect();
    assert_eq!(paths, ["GET /api/v1/pods"; 3]);
    assert!(
        requests.iter().all(|request| request.contains("fieldSelector=spec.nodeName%3Dnode-1")),
        "{requests:?}"
    );
    assert!(requests[0].contains("resourceVersion=0"), "{requests:?}");
    assert!(
        requests[1].contains("resourceVersion=10") && requests[1].contains("allowWatchBookmarks=true"),
        "{requests:?}"
    );
    // From the bookmark, and without a second list.
    assert!(requests[2].contains("watch=true") && requests[2].contains("resourceVersion=40"), "{requests:?}");
    assert_eq!((watching.counter("kubernetes_lists"), watching.counter("kubernetes_watches")), (1, 2));
    let status = watching.status();
    assert!(status.connected && status.last_event.is_some() && status.bytes_received > 0, "{status:?}");
    assert_eq!((status.pods, &*status.node_name), (1, "node-1"));
}

#[tokio::test]
async fn a_list_is_read_page_by_page_and_not_for_ever() {
    let server = Server::start(|request| match request.number {
        1 => Answer::Json(200, json!({ "metadata": { "resourceVersion": "9", "continue": "a/b" }, "items": [pod("one", 1, "1Mi")] })),
        2 if request.line.contains("continue=a%2Fb") => list(9, &[json!("no pod"), pod("two", 2, "2Mi")]),
        _ => Answer::Hold(Vec::new()),
    })
    .await;
    let watching = Watching::of(&server);
    watching.until_watching().await;
    assert!(watching.memory("one").is_ok() && watching.memory("two").is_ok());
    assert_eq!(watching.counter("kubernetes_objects_malformed"), 1);

    let endless = Server::start(|_| {
        Answer::Json(
            200,
            json!({ "metadata": { "resourceVersion": "9", "continue": "more" }, "items": null }),
        )
    })
    .await;
    let watching = Watching::of(&endless);
    assert_eq!(watching.until_failed().await.failure(), KubernetesFailure::TooLarge);
}

#[tokio::test]
async fn an_expired_version_has_the_pods_listed_again() {
    let gone =
        json!({ "kind": "Status", "code": 410, "message": "too old resource version", "status": "Failure" });
    let server = Server::start(move |request| match (request.is_watch(), request.number) {
        (false, 1) => list(10, &[pod("web", 7, "256Mi"), pod("old", 8, "1Mi")]),
        (true, 1) => Answer::Lines(vec![bookmark(20), event("ERROR", gone.clone())]),
        (false, 2) => list(30, &[pod("web", 21, "128Mi")]),
        (true, 2) => refusal(410),
        (false, _) => list(40, &[pod("web", 31, "64Mi")]),
        (true, _) => Answer::Hold(Vec::new()),
    })
    .await;
    let watching = Watching::of(&server);
    let of = watching.until_status_is("web", "64Mi").await;
    assert!(of.status_since.or_earlier, "it changed while nothing was watched");
    watching.until_watching().await;
    assert_eq!(watching.memory("old"), Err(ApiMissing::Pod));
    assert_eq!((watching.counter("kubernetes_lists"), watching.counter("kubernetes_failures")), (3, 2));
}

#[tokio::test]
async fn a_lost_connection_is_said_and_goes_on_from_the_last_version() {
    let back = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let is_back = Arc::clone(&back);
    let server = Server::start(move |request| match (request.is_watch(), request.number) {
        (false, _) => list(10, &[pod("web", 7, "256Mi")]),
        // In the middle of a line.
        (true, 1) => Answer::Cut(vec![bookmark(20)], r#"{"type":"MODIFIED","object":{"metada"#),
        (true, _) if !is_back.load(Relaxed) => refusal(503),
        (true, _) => Answer::Hold(vec![event("MODIFIED", pod("web", 21, "128Mi"))]),
    })
    .await;
    let watching = Watching::of(&server);
    let is_away = |of: &Watching| of.view("web").outage.filter(|outage| outage.why.contains("503"));
    let outage = watching.until("away", is_away).await;
    assert!(outage.why.contains("no\\x07"), "{outage:?}");
    assert!(watching.memory("web").is_ok(), "what it said last is known");
    assert!(watching.source.unavailable(false).is_some());
    watching.source.confirm(BTreeSet::from(["u-web".into()])).await;
    assert_eq!(watching.counter("kubernetes_reads"), 0, "what cannot be read is not waited for");
    back.store(true, Relaxed);
    watching.until_status_is("web", "128Mi").await;
    watching.until_watching().await;
    assert_eq!(watching.view("web").outage, None);
    assert_eq!(watching.counter("kubernetes_lists"), 1);
    assert!(server.requests().last().unwrap().contains("resourceVersion=20"));
}

#[tokio::test]
async fn failures_are_distinguished() {
    use KubernetesFailure::{
        Configuration, Forbidden, Malformed, Server as OfServer, Tls, Unauthorized, Unreachable,
    };

    for (answer, kind) in [
        (refusal(401), Unauthorized),
        (refusal(403), Forbidden),
        (refusal(500), OfServer),
        (Answer::Json(200, json!("no list")), Malformed),
        (Answer::Json(200, json!({ "metadata": {}, "items": [] })), Malformed),
        (Answer::Cut(Vec::new(), ""), Malformed),
        (Answer::Nothing, Unreachable),
    ] {
        let server = Server::start(move |_| answer.clone()).await;
        let status = Watching::of(&server).until_failed().await;
        assert_eq!(status.failure(), kind, "{status:?}");
        assert!(!status.connected && !status.error.contains('\u{7}'), "{status:?}");
    }
    let server = Server::start(|_| refusal(500)).await;
    let over_tls = Watching::at(&format!("https://{}", server.address), json!({ "token": "t" }));
    assert_eq!(over_tls.until_failed().await.failure(), Tls, "it speaks no TLS");
    let program = json!({ "exec": { "apiVersion": "client.authentication.k8s.io/v1", "command": "touch" } });
    let program = Watching::at("http://127.0.0.1:1", program);
    assert_eq!(program.until_failed().await.failure(), Configuration, "no program is run");
    let directory = tempfile::tempdir().unwrap();
    let missing = Watching::start(&directory.path().join("missing"), directory);
    assert_eq!(missing.until_failed().await.failure(), Configuration);
}

#[tokio::test]
async fn giant_and_hostile_objects_are_passed_over_and_counted() {
    let mut giant = pod("giant", 12, "1Mi");
    giant["metadata"]["annotations"] = json!({ "a": "x".repeat(5 << 20) });
    let mut padded = pod("padded", 13, "2Mi");
    padded["metadata"]["annotations"] = json!({ "a": "x".repeat(1 << 20) });
    let mut deep = json!("bottom");
    (0..1000).for_each(|_| deep = json!([deep]));
    let mut hostile = pod("web", 14, "3Mi");
    hostile["metadata"]["name"] = json!("../../../secrets");
    let lines = vec![
        event("MODIFIED", giant),
        event("MODIFIED", padded),
        event("MODIFIED", hostile),
        event("ADDED", deep),
        event("ADDED", json!(null)),
        event("\u{1b}[31m", json!({})),
        json!([]),
        event("MODIFIED", pod("web", 15, "4Mi")),
    ];
    let server = Server::start(
        move |request| {
            if request.is_watch() { Answer::Hold(lines.clone()) } else { list(10, &[]) }
        },
    )
    .await;
    let watching = Watching::of(&server);
    watching.until_status_is("web", "4Mi").await;
    assert_eq!(watching.memory("giant"), Err(ApiMissing::Pod));
    assert!(watching.memory("padded").is_ok());
    assert_eq!(watching.counter("kubernetes_objects_malformed"), 6);
    assert!(watching.status().bytes < 8192, "what is not needed is not held");
}

#[tokio::test]
async fn what_is_to_be_confirmed_is_read_for_itself() {
    let server = Server::start(|request| match request.line {
        line if line.contains("/pods/web") => Answer::Json(200, pod("web", 12, "128Mi")),
        line if line.contains("/pods/gone") => refusal(404),
        // Another one of that name.
        line if line.contains("/pods/again") => Answer::Json(200, pod("other", 12, "1Mi")),
        line if line.contains("/pods/") => refusal(403),
        _ if request.is_watch() => Answer::Hold(Vec::new()),
        _ => list(10, &["web", "gone", "again", "secret"].map(|name| pod(name, 7, "256Mi"))),
    })
    .await;
    let watching = Watching::of(&server);
    watching.until_watching().await;
    assert_eq!(watching.memory("web").unwrap().pod.confirmed, None);
    let began = now();
    watching.source.confirm(["u-again", "u-gone", "u-unknown", "u-web"].map(Arc::from).into()).await;
    let of = watching.memory("web").unwrap();
    assert!(of.pod.confirmed >= Some(began) && of.status.limit.as_deref() == Some("128Mi"), "{of:?}");
    assert!(server.requests().iter().any(|request| request == "GET /api/v1/namespaces/dev/pods/web"));
    assert_eq!(
        (watching.memory("gone"), watching.memory("again")),
        (Err(ApiMissing::Pod), Err(ApiMissing::Pod))
    );
    assert_eq!(watching.source.unavailable(true), None);
    watching.source.confirm(["u-secret".into()].into()).await;
    assert!(watching.source.unavailable(true).unwrap().contains("403"));
    assert_eq!(watching.memory("secret").unwrap().pod.confirmed, None);
    assert_eq!(watching.counter("kubernetes_reads"), 4);
}
