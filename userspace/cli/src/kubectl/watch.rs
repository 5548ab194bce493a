//! The API server's pods as they change, for a command that keeps running.
//!
//! ```text
//!  a task a scope: list, then watch (bookmarks; from the last version) ──▶ queue ──▶ Known, a scope each
//!                    ▲  failed: said once, tried again after a while │
//!                    └────────────────────────────────────────────────┘
//! ```
//!
//! Owns what is known of the pods: the few fields that select one and say where it is, of [`MOST`] pods a scope at most. Never decides
//! which of them a command is about.

use std::collections::{BTreeMap, BTreeSet};
use std::pin::pin;

use futures_util::StreamExt as _;
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, PodStatus};
use kube::api::{Api, ObjectMeta};
use kube::runtime::watcher::{self, DefaultBackoff, Event};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::cluster::Cluster;
use super::failure::Failure;
use super::scope::Scope;
use crate::exit::Code;

/// Pods of a scope that are held, a kilobyte or two each; a cluster has 150,000 at most. Those beyond are not followed, and a note says so.
pub const MOST: usize = 20_000;
/// Changes that wait, and that are looked at together.
const QUEUE: usize = 256;

/// What a task has to say of its scope.
type Said = (usize, Result<Event<Pod>, Failure>);

/// Watches of some scopes.
pub struct Pods {
    scopes: Vec<(Scope, Known)>,
    /// Whose watch has failed, and has not come back.
    failed: BTreeSet<usize>,
    /// Whose pods may not be watched, or listed. A list may still come.
    denied: BTreeSet<usize>,
    said: mpsc::Receiver<Said>,
    _watching: JoinSet<()>,
}

/// What has become of the pods, or of the watch of them.
#[derive(Debug, PartialEq, Eq)]
pub enum Change {
    /// There are others, or they are elsewhere.
    Pods,
    /// They cannot be watched.
    Failed(Failure),
    /// They can again.
    Recovered,
    /// A scope has more than are held.
    Full,
}

impl Pods {
    /// Begins to watch.
    pub fn watch(cluster: &Cluster, scopes: Vec<Scope>) -> Self {
        let (send, said) = mpsc::channel(QUEUE);
        let mut watching = JoinSet::new();
        for (index, scope) in scopes.iter().enumerate() {
            watching.spawn(follow(cluster.api(scope), scope.clone(), index, send.clone()));
        }
        let scopes = scopes.into_iter().map(|scope| (scope, Known::default())).collect();
        let (failed, denied) = (BTreeSet::new(), BTreeSet::new());
        Self { scopes, failed, denied, said, _watching: watching }
    }

    /// Waits for changes. Loses none if it is dropped meanwhile.
    pub async fn changed(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut said = Vec::new();
        while changes.is_empty() {
            if self.said.recv_many(&mut said, QUEUE).await == 0 {
                // A task ends only if it panicked.
                std::future::pending::<()>().await;
            }
            changes = self.take(said.drain(..));
        }
        changes
    }

    fn take(&mut self, said: impl Iterator<Item = Said>) -> Vec<Change> {
        let (mut is_changed, mut changes) = (false, Vec::new());
        for (index, said) in said {
            match said {
                Ok(event) => {
                    if self.failed.remove(&index) && self.failed.is_empty() {
                        changes.push(Change::Recovered);
                    }
                    let known = &mut self.scopes[index].1;
                    is_changed |= known.apply(event);
                    if std::mem::take(&mut known.has_left_out)
                        && !std::mem::replace(&mut known.is_noted, true)
                    {
                        changes.push(Change::Full);
                    }
                }
                Err(failure) if failure.is_denied() => {
                    if self.denied.insert(index) {
                        changes.push(Change::Failed(failure));
                    }
                }
                Err(failure) => {
                    if self.failed.is_empty() {
                        changes.push(Change::Failed(failure));
                    }
                    self.failed.insert(index);
                }
            }
        }
        changes.extend(is_changed.then_some(Change::Pods));
        changes
    }

    /// The pods of each scope, in the order of the scopes; none, until each has been listed.
    pub fn known(&self) -> Option<Vec<(Scope, Vec<Pod>)>> {
        let pods = |(scope, known): &(Scope, Known)| {
            known.is_listed.then(|| (scope.clone(), known.pods.values().cloned().collect()))
        };
        self.scopes.iter().map(pods).collect()
    }
}

/// The pods of a scope.
#[derive(Default)]
struct Known {
    /// By UID.
    pods: BTreeMap<String, Pod>,
    /// What is being listed.
    list: BTreeMap<String, Pod>,
    is_listed: bool,
    has_left_out: bool,
    is_noted: bool,
}

impl Known {
    /// Whether that changes what is known.
    fn apply(&mut self, event: Event<Pod>) -> bool {
        match event {
            Event::Init => {
                self.list.clear();
                false
            }
            Event::InitApply(pod) => {
                self.has_left_out |= insert(&mut self.list, pod).is_none();
                false
            }
            Event::InitDone => {
                let list = std::mem::take(&mut self.list);
                let is_first = !std::mem::replace(&mut self.is_listed, true);
                let before = std::mem::replace(&mut self.pods, list);
                is_first || before != self.pods
            }
            Event::Apply(pod) => {
                let inserted = insert(&mut self.pods, pod);
                self.has_left_out |= inserted.is_none();
                inserted.unwrap_or(false)
            }
            Event::Delete(pod) => pod.metadata.uid.is_some_and(|uid| self.pods.remove(&uid).is_some()),
        }
    }
}

/// Whether the pod was another one before; none: there is no room for it.
fn insert(pods: &mut BTreeMap<String, Pod>, pod: Pod) -> Option<bool> {
    let pod = essence(pod);
    let Some(uid) = pod.metadata.uid.clone() else { return Some(false) };
    if pods.len() >= MOST && !pods.contains_key(&uid) {
        return None;
    }
    let is_same = pods.get(&uid) == Some(&pod);
    pods.insert(uid, pod);
    Some(!is_same)
}

/// What selects a pod, and where it is.
fn essence(pod: Pod) -> Pod {
    let Pod { metadata, spec, status } = pod;
    let named = |containers: Vec<Container>| -> Vec<Container> {
        let named = |container: Container| Container { name: container.name, ..Container::default() };
        containers.into_iter().map(named).collect()
    };
    Pod {
        metadata: ObjectMeta {
            uid: metadata.uid,
            namespace: metadata.namespace,
            name: metadata.name,
            labels: metadata.labels,
            deletion_timestamp: metadata.deletion_timestamp,
            ..ObjectMeta::default()
        },
        spec: spec.map(|spec| PodSpec {
            node_name: spec.node_name,
            containers: named(spec.containers),
            init_containers: spec.init_containers.map(named),
            ..PodSpec::default()
        }),
        status: status.map(|status| PodStatus { phase: status.phase, ..PodStatus::default() }),
    }
}

/// Sends what becomes of a scope's pods, until nothing takes it any more.
async fn follow(api: Api<Pod>, scope: Scope, index: usize, send: mpsc::Sender<Said>) {
    let (mut pauses, mut failures) = (DefaultBackoff::default(), 0);
    loop {
        let config = watcher::Config::default().labels(&scope.selector);
        let mut events = pin!(watcher::watcher(api.clone(), config));
        while let Some(event) = events.next().await {
            let said = match event {
                Ok(event) => {
                    failures = 0;
                    Ok(event)
                }
                // What has changed is not kept that long: it lists again.
                Err(watcher::Error::WatchError(status)) if status.code == 410 => continue,
                Err(error) => {
                    failures += 1;
                    Err(failure(error, &scope))
                }
            };
            let is_failed = said.is_err();
            // Connections end all the time; that it cannot be watched is what the next attempt says.
            let is_said = failures != 1 || matches!(&said, Err(failure) if failure.is_denied());
            if is_said && send.send((index, said)).await.is_err() {
                return;
            }
            // The next attempt begins with a list, which shows that the API server answers again.
            if is_failed {
                break;
            }
        }
        tokio::time::sleep(pauses.next().unwrap_or_default()).await;
    }
}

fn failure(error: watcher::Error, scope: &Scope) -> Failure {
    use watcher::Error::{InitialListFailed, NoResourceVersion, WatchError, WatchFailed, WatchStartFailed};
    match error {
        InitialListFailed(error) => Failure::of(&error, scope.request("list")),
        WatchStartFailed(error) | WatchFailed(error) => Failure::of(&error, scope.request("watch")),
        WatchError(status) => Failure::of(&kube::Error::Api(status), scope.request("watch")),
        NoResourceVersion => Failure::new(Code::Failure, error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(uid: &str, node: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "uid": uid, "name": uid, "namespace": "prod", "labels": { "app": "web" },
                "annotations": { "large": "x" }, "resourceVersion": "7",
            },
            "spec": { "nodeName": node, "containers": [{ "name": "app", "image": "web:1" }] },
            "status": { "phase": "Pending", "message": "x" },
        }))
        .unwrap()
    }

    /// Of two scopes.
    fn pods() -> Pods {
        let scope =
            |namespace: &str| (Scope::new(Some(namespace.to_owned()), String::new()), Known::default());
        Pods {
            scopes: vec![scope("kwitness"), scope("prod")],
            failed: BTreeSet::new(),
            denied: BTreeSet::new(),
            said: mpsc::channel(1).1,
            _watching: JoinSet::new(),
        }
    }

    fn listed(index: usize, listed: Vec<Pod>) -> Vec<Said> {
        let listed = listed.into_iter().map(Event::InitApply);
        [Event::Init]
            .into_iter()
            .chain(listed)
            .chain([Event::InitDone])
            .map(|event| (index, Ok(event)))
            .collect()
    }

    #[test]
    fn pods_are_known_once_each_scope_has_been_listed() {
        let mut pods = pods();
        assert_eq!(pods.take(listed(0, vec![pod("daemon", Some("worker-1"))]).into_iter()), [Change::Pods]);
        assert!(pods.known().is_none());
        assert_eq!(pods.take(listed(1, vec![pod("web", None)]).into_iter()), [Change::Pods]);
        let mut apply = |event| pods.take([(1, Ok(event))].into_iter());
        assert_eq!(apply(Event::Apply(pod("web", Some("worker-1")))), [Change::Pods]);
        let mut heartbeat = pod("web", Some("worker-1"));
        heartbeat.status.as_mut().unwrap().message = Some("y".to_owned());
        assert_eq!(apply(Event::Apply(heartbeat)), [], "nothing that counts");
        assert_eq!(apply(Event::Delete(pod("other", None))), []);
        let known = pods.known().unwrap();
        let [(_, daemons), (scope, web)] = &known[..] else { panic!("{} scopes", known.len()) };
        assert_eq!((daemons.len(), scope.namespace.as_deref(), web.len()), (1, Some("prod"), 1));
        assert_eq!(web[0].spec.as_ref().unwrap().node_name.as_deref(), Some("worker-1"));
        assert_eq!(web[0].metadata.annotations, None);
        // A list has what is there, and nothing else.
        assert_eq!(pods.take(listed(1, Vec::new()).into_iter()), [Change::Pods]);
        assert_eq!(pods.known().unwrap()[1].1, []);
    }

    #[test]
    fn an_outage_is_said_once_and_its_end_too_but_a_missing_right_is_no_outage() {
        let mut pods = pods();
        let gone = || Failure::new(Code::Unreachable, "gone");
        let failed = [(0, Err(gone())), (1, Err(gone())), (0, Err(gone()))];
        assert_eq!(pods.take(failed.into_iter()), [Change::Failed(gone())]);
        assert_eq!(pods.take([(0, Ok(Event::Init))].into_iter()), []);
        assert_eq!(pods.take([(1, Ok(Event::Init))].into_iter()), [Change::Recovered]);
        let denied = || Failure::new(Code::Denied, "not allowed to watch");
        assert_eq!(pods.take([(1, Err(denied()))].into_iter()), [Change::Failed(denied())]);
        // It may be listed.
        assert_eq!(pods.take(listed(1, Vec::new()).into_iter()), [Change::Pods]);
        assert_eq!(pods.take([(1, Err(denied()))].into_iter()), []);
    }

    #[test]
    fn pods_beyond_the_bound_are_said_once_to_be_left_out() {
        let mut pods = pods();
        let all: Vec<_> = (0..=MOST).map(|number| pod(&number.to_string(), None)).collect();
        assert_eq!(pods.take(listed(1, all).into_iter()), [Change::Full, Change::Pods]);
        assert_eq!(pods.take([(1, Ok(Event::Apply(pod("new", None))))].into_iter()), []);
        let known = &pods.scopes[1].1.pods;
        assert!(known.len() == MOST && !known.contains_key("new"));
        assert_eq!(
            pods.take([(1, Ok(Event::Apply(pod("7", Some("worker-1")))))].into_iter()),
            [Change::Pods]
        );
    }
}
