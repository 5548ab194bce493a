//! The watch: list, then follow, and begin again after a pause whatever fails.
//!
//! ```text
//!  connect ──▶ list, page by page ──▶ watch from that version ──ends──▶ watch from the last version
//!     ▲              ▲                        │
//!     │              └── 410: expired ────────┤
//!     └── 0.5 s, 1 s, … 60 s, by chance less ─┘ any failure; credentials are read anew
//! ```
//!
//! Lists are served from the API server's cache (`resourceVersion=0`), as a kubelet's are: a list of one node costs etcd nothing.
//! While the watch is open, pods are read one after the other as [`confirm`](super::Kubernetes::confirm) requests.

use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::{GetParams, ListParams, WatchParams};
use kube::client::Body;
use kube::core::Request;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout};

use super::failure::Failure;
use super::lines::{Line, Lines, whole};
use super::pod::Pod;
use super::store::{By, Store};
use super::{Connection, Read, Shared, access, count, now};

/// The largest object that is taken in. The API server's own limit is 3 MiB, etcd's 1.5 MiB.
const OBJECT_MAX: usize = 4 << 20;
/// The largest page of a list, and the most pages. Where it serves from its cache, the API server makes no pages.
const PAGE_MAX: usize = 32 << 20;
const PAGES_MAX: usize = 32;
/// The largest error that is read.
const ERROR_MAX: usize = 64 << 10;
/// Pods that one request has read again, at most.
const READS_MAX: usize = 64;
/// A pod that was read so shortly before is not read again, in nanoseconds.
const READ_AGE: u64 = 1_000_000_000;

/// How long things may take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// The first pause after a failure, and the longest.
    pub(super) pause: (Duration, Duration),
    /// A list's page, or the beginning of a watch.
    pub(super) answer: Duration,
    /// A pod that is read.
    pub(super) read: Duration,
    /// What the API server is asked to end a watch after; it is over when that and `answer` have passed.
    pub(super) watch: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self {
            pause: (Duration::from_millis(500), seconds(60)),
            answer: seconds(30),
            read: seconds(3),
            watch: seconds(290),
        }
    }
}

/// An object's metadata of a list, a bookmark or an error.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    resource_version: String,
    r#continue: String,
}

#[derive(Deserialize)]
struct Page<'a> {
    metadata: Meta,
    /// One that is no pod costs the list no other.
    #[serde(borrow)]
    items: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Kind {
    r#type: String,
}

#[derive(Deserialize)]
struct Of<T> {
    object: T,
}

#[derive(Deserialize)]
struct Bookmark {
    metadata: Meta,
}

/// An error of the API server.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Status {
    code: u16,
    message: String,
}

/// What a watch goes on with.
#[derive(Default)]
struct Progress {
    /// The last version that was seen; none: the pods are to be listed.
    version: Option<String>,
    /// Failures in a row without anything in between.
    failures: u32,
}

/// Watches until it is aborted.
pub(super) async fn run(shared: Arc<Shared>, mut reads: mpsc::Receiver<Read>, timing: Timing) {
    let mut progress = Progress::default();
    loop {
        let failure = match access::client(&shared.settings).await {
            Ok((client, server)) => {
                shared.lock().server = server;
                tokio::select! {
                    failure = follow(&client, &shared, &mut progress, timing) => failure,
                    () = read_again(&client, &shared, &mut reads, timing) => return,
                }
            }
            Err(failure) => failure,
        };
        if failure == Failure::ResourceExpired {
            progress.version = None;
        }
        progress.failures = progress.failures.saturating_add(1);
        shared.failed(failure);
        let (least, most) = timing.pause;
        let pause = least.saturating_mul(1 << (progress.failures - 1).min(16)).min(most);
        // Between half and all of it: a fleet does not return all at once.
        tokio::time::sleep(pause.mul_f64(0.5 + fastrand::f64() / 2.0)).await;
    }
}

/// Lists if need be, and watches, until something fails.
async fn follow(client: &Client, shared: &Shared, progress: &mut Progress, timing: Timing) -> Failure {
    loop {
        if progress.version.is_none() {
            match list(client, shared, timing).await {
                Ok(version) => progress.version = Some(version),
                Err(failure) => return failure,
            }
        }
        if let Err(failure) = watch(client, shared, progress, timing).await {
            return failure;
        }
    }
}

fn request(shared: &Shared) -> (Request, String) {
    (Request::new("/api/v1/pods"), format!("spec.nodeName={}", shared.settings.node))
}

/// Sends a request, and gives the body of a good answer.
async fn send(
    client: &Client,
    request: Result<http::Request<Vec<u8>>, kube::core::request::Error>,
    limit: Duration,
) -> Result<Body, Failure> {
    let request = request.map_err(|error| Failure::Configuration(error.to_string()))?;
    let answer = timeout(limit, client.send(request.map(Body::from))).await;
    let answer = answer.map_err(|_| Failure::Timeout(limit))?.map_err(|error| Failure::of_call(&error))?;
    let code = answer.status().as_u16();
    if code == 200 {
        return Ok(answer.into_body());
    }
    let body =
        timeout(limit, whole(answer.into_body(), ERROR_MAX)).await.map_err(|_| Failure::Timeout(limit))?;
    let body = body?.unwrap_or_default();
    let message = serde_json::from_slice::<Status>(&body)
        .map_or_else(|_| String::from_utf8_lossy(&body).into_owned(), |status| status.message);
    Err(Failure::of_answer(code, &message))
}

/// Puts what is listed in the place of what is known; the version to watch from.
async fn list(client: &Client, shared: &Shared, timing: Timing) -> Result<String, Failure> {
    let (request, selector) = request(shared);
    let mut next = Store::default();
    let mut parameters = ListParams {
        field_selector: Some(selector),
        resource_version: Some("0".to_owned()),
        ..ListParams::default()
    };
    count(&shared.counters.lists, 1);
    for _ in 0..PAGES_MAX {
        let body = send(client, request.list(&parameters), timing.answer).await?;
        let page = timeout(timing.answer, whole(body, PAGE_MAX)).await;
        let page = page.map_err(|_| Failure::Timeout(timing.answer))??;
        let page = page.ok_or_else(|| Failure::TooLarge(format!("{PAGE_MAX} bytes in a page")))?;
        count(&shared.counters.bytes, page.len() as u64);
        let Page { metadata, items } = parse(&page)?;
        let at = now();
        for item in items.into_iter().flatten() {
            match serde_json::from_str(item.get()) {
                Err(_) => count(&shared.counters.malformed, 1),
                Ok(pod) => {
                    if next.insert(pod, By::List, at, Some(&shared.lock().store)).is_err() {
                        count(&shared.counters.refused, 1);
                    }
                }
            }
        }
        if metadata.r#continue.is_empty() {
            if metadata.resource_version.is_empty() {
                return Err(Failure::Malformed("a list without a version".to_owned()));
            }
            shared.lock().store = next;
            return Ok(metadata.resource_version);
        }
        parameters.continue_token = Some(metadata.r#continue);
        parameters.resource_version = None;
    }
    Err(Failure::TooLarge(format!("{PAGES_MAX} pages")))
}

/// Follows one watch until the API server ends it.
async fn watch(
    client: &Client,
    shared: &Shared,
    progress: &mut Progress,
    timing: Timing,
) -> Result<(), Failure> {
    let (request, selector) = request(shared);
    let seconds = u32::try_from(timing.watch.as_secs()).unwrap_or(u32::MAX);
    let parameters =
        WatchParams { field_selector: Some(selector), timeout: Some(seconds), ..WatchParams::default() };
    let version = progress.version.as_deref().unwrap_or("0");
    count(&shared.counters.watches, 1);
    let body = send(client, request.watch(&parameters, version), timing.answer).await?;
    shared.connected();
    // A connection that has died says nothing, whatever the server does.
    let until = Instant::now() + timing.watch + timing.answer;
    let mut lines = Lines::new(body, OBJECT_MAX);
    let mut is_empty = true;
    loop {
        let line = tokio::time::timeout_at(until, lines.next()).await;
        let line = line.map_err(|_| Failure::Timeout(timing.watch + timing.answer))??;
        let Some((line, received)) = line else { break };
        count(&shared.counters.bytes, received as u64);
        let Line::Whole(line) = line else {
            count(&shared.counters.malformed, 1);
            continue;
        };
        match take(shared, &line)? {
            Some(version) => progress.version = Some(version),
            None => count(&shared.counters.malformed, 1),
        }
        progress.failures = 0;
        is_empty = false;
    }
    // A server that ends each watch at once is not asked again at once.
    if is_empty && until.saturating_duration_since(Instant::now()) > timing.watch {
        return Err(Failure::Unreachable("it ends each watch at once".to_owned()));
    }
    Ok(())
}

/// Takes a line of a watch in; the version that it brings, none if it is not understood.
fn take(shared: &Shared, line: &[u8]) -> Result<Option<String>, Failure> {
    let Ok(Kind { r#type: kind }) = serde_json::from_slice(line) else { return Ok(None) };
    let at = now();
    let version = match &*kind {
        "ADDED" | "MODIFIED" => {
            let Ok(Of { object: pod }) = serde_json::from_slice::<Of<Pod>>(line) else { return Ok(None) };
            let version = pod.version.to_string();
            if shared.lock().store.insert(pod, By::Watch, at, None).is_err() {
                count(&shared.counters.refused, 1);
            }
            version
        }
        "DELETED" => {
            let Ok(Of { object: pod }) = serde_json::from_slice::<Of<Pod>>(line) else { return Ok(None) };
            shared.lock().store.remove(&pod.uid);
            pod.version.to_string()
        }
        "BOOKMARK" => {
            let Ok(Of { object: Bookmark { metadata } }) = serde_json::from_slice(line) else {
                return Ok(None);
            };
            metadata.resource_version
        }
        "ERROR" => {
            let Of { object: Status { code, message } } = parse(line)?;
            return Err(Failure::of_answer(code, &message));
        }
        _ => return Ok(None),
    };
    count(&shared.counters.events, 1);
    shared.lock().last_event = Some(at);
    Ok((!version.is_empty()).then_some(version))
}

/// Reads pods for themselves, as long as it is asked to.
async fn read_again(client: &Client, shared: &Shared, reads: &mut mpsc::Receiver<Read>, timing: Timing) {
    while let Some(Read { uids, done }) = reads.recv().await {
        for uid in uids.iter().take(READS_MAX) {
            // No call waits any more.
            if done.is_closed() || !matches!(shared.lock().connection, Connection::Watching { .. }) {
                break;
            }
            let Some((namespace, name, confirmed)) = shared.lock().store.names(uid) else { continue };
            let began = now();
            if confirmed.is_some_and(|at| began.0 < at.0.saturating_add(READ_AGE)) {
                continue;
            }
            count(&shared.counters.reads, 1);
            let read = read(client, &namespace, &name, timing).await;
            let mut state = shared.lock();
            state.read_failure = match read {
                Ok(pod) if pod.as_ref().is_some_and(|pod| pod.is(uid)) => {
                    let inserted = pod.map(|pod| state.store.insert(pod, By::Read(began), now(), None));
                    if inserted.is_some_and(|inserted| inserted.is_err()) {
                        count(&shared.counters.refused, 1);
                    }
                    None
                }
                Ok(_) => {
                    state.store.remove(uid);
                    None
                }
                Err(failure) => Some(failure),
            };
        }
        // Whoever waited may have gone.
        done.send(()).unwrap_or_default();
    }
}

/// The pod of that name now, by the API server's word and not its cache's; none: there is none.
async fn read(client: &Client, namespace: &str, name: &str, timing: Timing) -> Result<Option<Pod>, Failure> {
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/pods"));
    let body = match send(client, request.get(name, &GetParams::default()), timing.read).await {
        Err(Failure::Server(404, _)) => return Ok(None),
        body => body?,
    };
    let body = timeout(timing.read, whole(body, OBJECT_MAX)).await;
    let body = body.map_err(|_| Failure::Timeout(timing.read))??;
    let body = body.ok_or_else(|| Failure::TooLarge(format!("{OBJECT_MAX} bytes in a pod")))?;
    parse(&body).map(Some)
}

fn parse<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Failure> {
    let malformed =
        |error: serde_json::Error| Failure::Malformed(super::failure::text(&error.to_string(), 256));
    serde_json::from_slice(body).map_err(malformed)
}
