//! A raise through the Kubernetes API: `pods/resize`, which the kubelet carries out at every level, and does not take back.
//!
//! Owns the calls: `get` of a pod and `patch` of `pods/resize`, and no other. What a pod must be like for it is for
//! [`Target`] to say.
//!
//! A patch names the version of the pod that it was planned for. One whose answer is lost, or that is late, changes nothing
//! that has changed meanwhile; and the next plan begins with the spec as it is then.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch, PatchParams};
use kube::config::{Config, KubeConfigOptions, Kubeconfig};
use kube::{Client, Error};
use tokio::time::Instant;

use super::resize::{Target, is_about_pod, text};
use crate::daemon::Container;
use crate::plan::{Change, Refusal, ResizeRefusal};
use crate::policy::Bytes;

/// The name under which the API records the guard's fields.
const FIELD_MANAGER: &str = "kwitness-guard";
/// How often a pod that changes between reading and writing is read again.
const ATTEMPTS: usize = 4;
/// Between two looks at what the kubelet makes of a resize.
const LOOK: Duration = Duration::from_millis(250);
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// The longest time between two looks at what has become of a change that has no answer.
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// After that the API server is not at a request any more: twice its `--request-timeout`, by default.
const LATE: Duration = Duration::from_secs(120);

/// Access to an API server.
#[derive(Clone)]
pub struct Kubernetes {
    client: Client,
    node: Option<Arc<str>>,
}

impl std::fmt::Debug for Kubernetes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kubernetes").field("node", &self.node).finish_non_exhaustive()
    }
}

impl Kubernetes {
    /// Access by that kubeconfig; without one, by `$KUBECONFIG`, `~/.kube/config` or a pod's service account. With a node's
    /// name, only its pods are raised. An API server that is away now may be back when it is needed.
    ///
    /// # Errors
    /// There is no such access.
    pub async fn connect(kubeconfig: Option<&Path>, node: Option<String>) -> anyhow::Result<Self> {
        let mut config = match kubeconfig {
            Some(file) => {
                let read = Kubeconfig::read_from(file);
                let read = read.with_context(|| format!("cannot read the kubeconfig {}", file.display()))?;
                let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await;
                config.with_context(|| format!("cannot use the kubeconfig {}", file.display()))?
            }
            None => Config::infer().await.context("no access to a Kubernetes API; name a --kubeconfig")?,
        };
        // It would run on the one thread that renews the lease, in the middle of a hold.
        if config.auth_info.exec.is_some() || config.auth_info.auth_provider.is_some() {
            bail!(
                "the kubeconfig runs a program for its credentials; use a token, a token file or a certificate"
            );
        }
        config.connect_timeout = Some(CONNECT_LIMIT);
        // The time of a hold is better spent on an answer.
        config.default_retry = false;
        let client = Client::try_from(config).context("cannot use the access to the Kubernetes API")?;
        let this = Self { client, node: node.map(Arc::from) };
        match tokio::time::timeout(CONNECT_LIMIT, this.client.apiserver_version()).await {
            Ok(Ok(version)) => tracing::info!(version = version.git_version, "Kubernetes API reached"),
            Ok(Err(error)) => {
                let error = refusal(error);
                tracing::warn!(%error, "Kubernetes API away: raises are refused until it is back");
            }
            Err(_) => tracing::warn!("Kubernetes API does not answer: raises are refused until it does"),
        }
        Ok(this)
    }

    /// Sets a container's limit by a resize of its pod; the answer is that the API server has accepted it, now or before. `asked` is
    /// the limit that the guard has requested before. A raise waits for the end of another client's resize.
    ///
    /// # Errors
    /// The pod may not have it, the API server does not accept it, or `hold` has passed.
    pub async fn set(
        &self,
        container: &Container,
        change: Change,
        asked: Option<Bytes>,
        hold: Duration,
    ) -> Result<(), Refusal> {
        let end = Instant::now() + hold;
        let answer = tokio::time::timeout_at(end, self.resize(container, change, asked, end)).await;
        answer.unwrap_or(Err(ResizeRefusal::NoAnswer.into()))
    }

    async fn resize(
        &self,
        container: &Container,
        change: Change,
        asked: Option<Bytes>,
        end: Instant,
    ) -> Result<(), Refusal> {
        let target = Target::of(container)?;
        let pods = self.pods(target);
        let mut conflicts = 0;
        while conflicts < ATTEMPTS {
            let pod = pods.get(target.pod).await.map_err(refusal)?;
            if asked == Some(change.to) && target.is_accepted(&pod, change) == Some(true) {
                return Ok(());
            }
            let patch = match target.patch(&pod, self.node.as_deref(), change, asked, procfs::page_size()) {
                // What is lowered is not needed soon, and a raise would wait for it.
                Err(Refusal::Resize(ResizeRefusal::Pending(_)))
                    if change.to > change.from && Instant::now() + 2 * LOOK < end =>
                {
                    tokio::time::sleep(LOOK).await;
                    continue;
                }
                patch => patch?,
            };
            let is_about_pod = is_about_pod(&patch);
            let patched = pods.patch_resize(target.pod, &params(), &Patch::Strategic(patch)).await;
            match patched.map_err(refusal) {
                Err(Refusal::Resize(ResizeRefusal::Conflict)) => conflicts += 1,
                // Before Kubernetes 1.36 no pod with resources of its own is resized, unless a feature gate is set.
                Err(Refusal::Resize(ResizeRefusal::Invalid(why))) if is_about_pod => {
                    return Err(ResizeRefusal::PodLimit(why).into());
                }
                answer => return answer.map(drop),
            }
        }
        Err(ResizeRefusal::Conflict.into())
    }

    /// Sets the limit of the spec to what it was before a raise that the kubelet has put off; whether it still had.
    ///
    /// # Errors
    /// The API server does not accept that, or `limit` has passed.
    pub async fn take_back(
        &self,
        container: &Container,
        raise: Change,
        limit: Duration,
    ) -> Result<bool, Refusal> {
        let Change { from, to } = raise;
        let taken_back = async {
            let target = Target::of(container)?;
            let pods = self.pods(target);
            for _ in 0..ATTEMPTS {
                let pod = pods.get(target.pod).await.map_err(refusal)?;
                if !target.is_put_off(&pod, raise) {
                    return Ok(false);
                }
                let back = Change { from: to, to: from };
                let patch = target.patch(&pod, self.node.as_deref(), back, Some(to), procfs::page_size())?;
                let patched = pods.patch_resize(target.pod, &params(), &Patch::Strategic(patch)).await;
                match patched.map_err(refusal) {
                    Err(Refusal::Resize(ResizeRefusal::Conflict)) => {}
                    answer => return answer.map(|_| true),
                }
            }
            Err(ResizeRefusal::Conflict.into())
        };
        let answer = tokio::time::timeout(limit, taken_back).await;
        answer.unwrap_or(Err(ResizeRefusal::NoAnswer.into()))
    }

    /// Waits until the kubelet refuses a resize that the API server has accepted, or the pod is going; for ever, if neither
    /// happens.
    pub async fn refused(&self, container: &Container) -> Refusal {
        let target = match Target::of(container) {
            Ok(target) => target,
            Err(refusal) => return refusal.into(),
        };
        let pods = self.pods(target);
        loop {
            tokio::time::sleep(LOOK).await;
            match pods.get(target.pod).await {
                Ok(pod) => {
                    if let Some(refusal) = target.refused(&pod) {
                        return refusal;
                    }
                }
                Err(error) => {
                    let refusal = refusal(error);
                    if refusal == Refusal::Gone {
                        return refusal;
                    }
                    // The kubelet may carry it out meanwhile: the daemon's verdict decides.
                    tracing::debug!(%refusal, "cannot look at a resize");
                }
            }
        }
    }

    /// Waits until it is known whether a change that has no answer was accepted. While the API server is away, that is for ever.
    ///
    /// The pod is read until it has the requested limit, is gone, or the request cannot arrive any more: the pod has another
    /// version, or two minutes have passed.
    pub async fn is_accepted(&self, container: &Container, change: Change) -> bool {
        // Without these names nothing was requested.
        let Ok(target) = Target::of(container) else { return false };
        let pods = self.pods(target);
        let began = Instant::now();
        let mut pause = LOOK;
        let mut version = None;
        loop {
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
            let read = tokio::time::timeout(CONNECT_LIMIT, pods.get(target.pod)).await;
            let pod = match read.map(|read| read.map_err(refusal)) {
                Ok(Ok(pod)) => pod,
                Ok(Err(Refusal::Gone)) => return false,
                Ok(Err(_)) | Err(_) => continue,
            };
            match target.is_accepted(&pod, change) {
                Some(false) => {}
                accepted => return accepted.unwrap_or(false),
            }
            let of_now = pod.metadata.resource_version;
            let is_later = *version.get_or_insert_with(|| of_now.clone()) != of_now;
            if is_later || began.elapsed() >= LATE {
                return false;
            }
        }
    }

    fn pods(&self, target: Target<'_>) -> Api<Pod> {
        Api::namespaced(self.client.clone(), target.namespace)
    }
}

fn params() -> PatchParams {
    PatchParams { field_manager: Some(FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

/// What an error of the API means for a raise.
fn refusal(error: Error) -> Refusal {
    let refusal = match error {
        Error::Api(status) => match status.code {
            404 => return Refusal::Gone,
            409 => ResizeRefusal::Conflict,
            400 | 422 => ResizeRefusal::Invalid(text(&status.message)),
            401 | 403 => ResizeRefusal::Forbidden(text(&status.message)),
            _ => ResizeRefusal::Unavailable(text(&status.message)),
        },
        other => ResizeRefusal::Unavailable(text(&format!("{:#}", anyhow::Error::from(other)))),
    };
    refusal.into()
}

#[cfg(test)]
mod tests {
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
        /// The kubelet has deferred what the spec has.
        is_deferred: bool,
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
                if self.is_deferred {
                    let condition =
                        json!({ "type": "PodResizePending", "status": "True", "reason": "Deferred" });
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
        let server = Server { is_deferred: true, ..Server::new(&[409, 200]) };
        assert_eq!(server.access().take_back(&container(), raise, HOLD).await, Ok(true));
        {
            let requests = server.requests.lock().unwrap();
            let [_, _, _, (method, _, _, patch)] = &requests[..] else { panic!("{requests:?}") };
            assert_eq!(*method, Method::PATCH);
            assert_eq!(patch["metadata"]["resourceVersion"], (VERSION + 1).to_string());
            assert_eq!(
                patch["spec"]["containers"][0]["resources"],
                json!({ "limits": { "memory": "32Mi" } })
            );
        }
        for (server, raise) in
            [(Server::new(&[]), raise), (Server { is_deferred: true, ..Server::new(&[]) }, RAISE)]
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
        let silent = tower::service_fn(|_: Request<Body>| {
            std::future::pending::<Result<Response<Body>, Infallible>>()
        });
        let access = Kubernetes { client: Client::new(silent, "default"), node: None };
        let refused = access.set(&container(), RAISE, None, Duration::from_millis(1)).await;
        assert_eq!(refused, Err(ResizeRefusal::NoAnswer.into()));
    }
}
