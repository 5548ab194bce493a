//! The daemon as the guard sees it: which containers there are, and whether a limit is in force.
//!
//! Owns the calls. Never decides what a verdict means for a process: [`Refusal`] says that.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use kwitness_api::Client;
use kwitness_api::client::{Address, Error};
use kwitness_api::proto::{self, CgroupRole, VerdictKind, wanted::Memory};
use kwitness_core::cgroup_path::{self, Placement};
use procfs::process::Process;
use tokio::net::UnixStream;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::cgroup;
use crate::plan::Refusal;
use crate::policy::{Bytes, Names, Policy, Selection};

/// The file whose verdict counts.
const MEMORY_MAX: &str = "memory.max";
/// The longest that a `Verify` call waits.
const WAIT_MAX: Duration = Duration::from_secs(10);
/// Between two attempts to reach a daemon that is away, and between two lists: changes that follow each other are one.
const RETRY: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(50);
/// Between two looks at a pod's limit.
const LOOK: Duration = Duration::from_millis(100);

/// A container that runs; or its pod, as far as it is guarded: then the cgroup is the pod's, and id and name are one of its containers'.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id of the runtime.
    pub id: String,
    /// The container runtime has reported what it is. Until then it may be a sandbox, and has no names.
    pub is_identified: bool,
    /// Its cgroup v2 id.
    pub cgroup_id: u64,
    /// Its cgroup, from the root of the hierarchy.
    pub cgroup_path: String,
    /// Its pod's namespace.
    pub namespace: Option<String>,
    /// Its pod's name.
    pub pod: Option<String>,
    /// Its pod's UID.
    pub pod_uid: Option<String>,
    /// Its name.
    pub name: Option<String>,
}

impl Container {
    /// A container whose program runs. A sandbox, and one in which only the runtime's own process is, which its caller waits for,
    /// is none. Nor is one without a cgroup of its own: the program would take the root for it, which is everything's.
    fn of(state: proto::ContainerState) -> Option<Self> {
        let is_running = state.state() == proto::State::Running;
        let container = state.container?;
        let r#type = container.r#type();
        let has_cgroup = container.cgroup_id != 0 && !container.cgroup_path.trim_matches('/').is_empty();
        let pod = container.pod.unwrap_or_default();
        (is_running && r#type != proto::ContainerType::Sandbox && has_cgroup).then_some(Self {
            id: container.id,
            is_identified: r#type == proto::ContainerType::App,
            cgroup_id: container.cgroup_id,
            cgroup_path: container.cgroup_path,
            namespace: pod.namespace,
            pod: pod.name,
            pod_uid: (!pod.uid.is_empty()).then_some(pod.uid),
            name: container.name,
        })
    }

    /// Whether it stands for its pod.
    pub fn is_pod(&self) -> bool {
        is_pod(&self.cgroup_path)
    }

    /// For people; a pod's is without a container.
    pub fn display_name(&self) -> String {
        let names = [&self.namespace, &self.pod, &self.name].map(|name| name.as_deref().unwrap_or("-"));
        names[..if self.is_pod() { 2 } else { 3 }].join("/")
    }

    /// Whose its limit is.
    pub fn level(&self) -> CgroupRole {
        if self.is_pod() { CgroupRole::Pod } else { CgroupRole::Container }
    }

    /// What a policy says of it.
    pub fn select<'a>(&self, policy: &'a Policy) -> Selection<'a> {
        if self.is_identified { policy.select(self.names()) } else { Selection::Undecided }
    }

    /// By which a policy selects.
    pub fn names(&self) -> Names<'_> {
        Names {
            namespace: self.namespace.as_deref(),
            pod: self.pod.as_deref(),
            container: self.name.as_deref(),
        }
    }
}

/// Whether that is a pod's cgroup.
pub(crate) fn is_pod(cgroup_path: &str) -> bool {
    matches!(cgroup_path::classify(cgroup_path), Placement::Pod(_))
}

/// What runs on the node.
#[derive(Clone, Debug, Default)]
pub struct Running {
    /// The containers.
    pub containers: Vec<Container>,
    /// The cgroup of the daemon; none: that is not known.
    pub daemon: Option<String>,
}

/// The cgroup of the process that listens on the daemon's socket (`SO_PEERCRED`); none: it is not on this node, or cannot be found.
pub async fn cgroup(address: &Address) -> Option<String> {
    let stream = UnixStream::connect(address.unix_path()?).await.ok()?;
    let pid = stream.peer_cred().ok()?.pid()?;
    cgroup::path_of(&Process::new(pid).ok()?)
}

/// The containers that run now.
///
/// # Errors
/// The daemon does not answer.
pub async fn containers(client: &mut Client) -> Result<Vec<Container>, Error> {
    let all = client.list(proto::Filter::default()).await?.containers;
    Ok(all.into_iter().filter_map(Container::of).collect())
}

/// Sends what runs now and whenever that changes, until the receiver is gone. While the daemon is away, nothing; `is_up` says
/// whether it is.
pub async fn follow(address: Address, to: mpsc::Sender<Running>, is_up: Arc<AtomicBool>) {
    let mut reported = false;
    loop {
        let Err(error) = follow_once(&address, &to, &is_up, &mut reported).await else { return };
        is_up.store(false, Ordering::Relaxed);
        if !std::mem::replace(&mut reported, true) {
            tracing::warn!(%error, "daemon away: containers that start now are not guarded");
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Until the connection breaks (an error) or the receiver is gone.
async fn follow_once(
    address: &Address,
    to: &mpsc::Sender<Running>,
    is_up: &AtomicBool,
    reported: &mut bool,
) -> Result<(), Error> {
    use kwitness_api::client::Item;
    let mut client = Client::connect(address.clone()).await?;
    let daemon = cgroup(address).await;
    let kinds = [
        proto::EventKind::Created,
        proto::EventKind::Started,
        proto::EventKind::Updated,
        proto::EventKind::Stopped,
        proto::EventKind::Deleted,
    ];
    let filter = proto::Filter { kinds: kinds.map(Into::into).to_vec(), ..Default::default() };
    // Opened before the list is read: what happens meanwhile is not missed.
    let request = proto::WatchRequest { filter: Some(filter), ..Default::default() };
    let mut watch = client.watch(request).await?;
    loop {
        let running = Running { containers: containers(&mut client).await?, daemon: daemon.clone() };
        if to.send(running).await.is_err() {
            return Ok(());
        }
        is_up.store(true, Ordering::Relaxed);
        if std::mem::take(reported) {
            tracing::info!("daemon is back");
        }
        tokio::time::sleep(PAUSE).await;
        match watch.next().await? {
            Some(Item::Disconnected(error)) => return Err(error),
            Some(_) => {}
            None => return Ok(()),
        }
    }
}

/// Whether the limit of the container, or of the pod that it stands for, is in force at every level, after at most that long.
///
/// # Errors
/// It is not, or the daemon cannot decide.
pub async fn verify(
    client: &mut Client,
    container: &Container,
    limit: Bytes,
    wait: Duration,
) -> Result<(), Refusal> {
    if container.is_pod() {
        return verify_pod(client, container, limit, wait).await;
    }
    let request = proto::VerifyRequest {
        filter: Some(proto::Filter { containers: vec![container.id.clone()], ..Default::default() }),
        wanted: Some(proto::Wanted { memory: Some(Memory::MemoryBytes(limit.0)), cpu: None }),
        wait_ms: u32::try_from(wait.min(WAIT_MAX).as_millis()).unwrap_or(u32::MAX),
        prove_ms: 0,
    };
    in_force(&container.id, verdicts(client, request).await?)
}

/// A caller desires limits of containers only. What is desired of a pod is known from the kubelet, which may not have heard of the new
/// limit when the daemon is first called.
async fn verify_pod(
    client: &mut Client,
    pod: &Container,
    limit: Bytes,
    wait: Duration,
) -> Result<(), Refusal> {
    let uid = pod.pod_uid.clone();
    let uid = uid.ok_or_else(|| Refusal::Unverified("the pod's UID is not known".to_owned()))?;
    let filter = proto::Filter { pods: vec![uid], ..Default::default() };
    let end = Instant::now() + wait;
    loop {
        let request = proto::VerifyRequest { filter: Some(filter.clone()), ..Default::default() };
        let response = verdicts(client, request).await?;
        let answer = in_force_of_pod(&pod.cgroup_path, limit, procfs::page_size(), response);
        if answer.is_ok() || Instant::now() + LOOK >= end {
            return answer;
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn verdicts(
    client: &mut Client,
    request: proto::VerifyRequest,
) -> Result<proto::VerifyResponse, Refusal> {
    client.verify(request).await.map_err(|error| match error {
        Error::NotFound { .. } => Refusal::Gone,
        error => Refusal::Unverified(error.to_string()),
    })
}

/// What the answer says of the container's own limit.
fn in_force(container_id: &str, response: proto::VerifyResponse) -> Result<(), Refusal> {
    let of_container =
        |of: &proto::VerdictOf| of.container.as_ref().is_some_and(|container| container.id == container_id);
    let verdicts = response.verdicts.into_iter().filter(of_container).filter_map(|of| of.verdict);
    decided(verdicts).map(drop)
}

/// What the answer says of a pod's own limit: in force, and the one that was requested. The kernel rounds it down to a page.
fn in_force_of_pod(
    cgroup_path: &str,
    limit: Bytes,
    page: u64,
    response: proto::VerifyResponse,
) -> Result<(), Refusal> {
    let is_pods = |verdict: &proto::Verdict| {
        let path = verdict.cgroup.as_ref().and_then(|cgroup| cgroup.path.as_deref());
        path.is_some_and(|path| path.trim_matches('/') == cgroup_path.trim_matches('/'))
    };
    let verdicts = response.verdicts.into_iter().filter(|of| of.container.is_none());
    let verdict = decided(verdicts.filter_map(|of| of.verdict).filter(is_pods))?;
    let value = match verdict.in_force.and_then(|reading| reading.reading) {
        Some(proto::reading::Reading::Value(value)) => value,
        _ => return Err(Refusal::Unverified("the daemon has not read the pod's limit".to_owned())),
    };
    let is_it = |bytes: u64| limit.0.checked_sub(bytes).is_some_and(|rest| rest < page);
    if value.parse().is_ok_and(is_it) {
        Ok(())
    } else {
        Err(Refusal::NotInForce(format!("the pod's limit is {value}")))
    }
}

/// The verdict on the memory limit, if that is in force.
fn decided(mut verdicts: impl Iterator<Item = proto::Verdict>) -> Result<proto::Verdict, Refusal> {
    let verdict = verdicts.find(|verdict| verdict.file == MEMORY_MAX);
    let none = || Refusal::Unverified(format!("the daemon has no verdict on {MEMORY_MAX}"));
    let verdict = verdict.ok_or_else(none)?;
    match verdict.verdict() {
        VerdictKind::InForce => Ok(verdict),
        VerdictKind::Unknown | VerdictKind::Unspecified => Err(Refusal::Unverified(verdict.reason)),
        _ => Err(Refusal::NotInForce(verdict.reason)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn response(id: &str, file: &str, kind: VerdictKind) -> proto::VerifyResponse {
        let container = proto::Container { id: id.to_owned(), ..Default::default() };
        let verdict = proto::Verdict {
            file: file.to_owned(),
            verdict: kind.into(),
            reason: "why".to_owned(),
            ..Default::default()
        };
        let of =
            proto::VerdictOf { container: Some(container), verdict: Some(verdict), ..Default::default() };
        proto::VerifyResponse { verdicts: vec![of], unavailable: Vec::new() }
    }

    #[test]
    fn only_the_containers_own_memory_limit_counts_and_only_in_force() {
        let of = |id, file, kind| in_force("c", response(id, file, kind));
        assert_eq!(of("c", MEMORY_MAX, VerdictKind::InForce), Ok(()));
        for kind in [
            VerdictKind::Pending,
            VerdictKind::Diverged,
            VerdictKind::Rejected,
            VerdictKind::Shadowed,
            VerdictKind::OverLimit,
            VerdictKind::Killed,
            VerdictKind::Reverted,
        ] {
            assert_eq!(of("c", MEMORY_MAX, kind), Err(Refusal::NotInForce("why".to_owned())));
        }
        assert_eq!(of("c", MEMORY_MAX, VerdictKind::Unknown), Err(Refusal::Unverified("why".to_owned())));
        for (id, file) in [("d", MEMORY_MAX), ("c", "cpu.max")] {
            assert!(matches!(of(id, file, VerdictKind::InForce), Err(Refusal::Unverified(_))), "{id} {file}");
        }
    }

    #[test]
    fn a_pods_limit_is_in_force_by_its_own_verdict_and_not_before_it_is_the_requested_one() {
        let path = "/kubepods/burstable/podu";
        let answer = |path: &str, kind: VerdictKind, value: &str| {
            let verdict = proto::Verdict {
                cgroup: Some(proto::Cgroup { path: Some(path.to_owned()), ..Default::default() }),
                file: MEMORY_MAX.to_owned(),
                verdict: kind.into(),
                reason: "why".to_owned(),
                in_force: Some(proto::Reading {
                    reading: Some(proto::reading::Reading::Value(value.to_owned())),
                }),
                ..Default::default()
            };
            let mut response = response("c", MEMORY_MAX, VerdictKind::InForce);
            response.verdicts.push(proto::VerdictOf { verdict: Some(verdict), ..Default::default() });
            in_force_of_pod("/kubepods/burstable/podu", Bytes(8192), 4096, response)
        };
        for value in ["8192", "4097"] {
            assert_eq!(answer(path, VerdictKind::InForce, value), Ok(()), "{value}");
        }
        for value in ["4096", "8193", "max", "", "-1"] {
            let answer = answer(path, VerdictKind::InForce, value);
            assert!(matches!(answer, Err(Refusal::NotInForce(_))), "{value}: {answer:?}");
        }
        let diverged = answer(path, VerdictKind::Diverged, "8192");
        assert_eq!(diverged, Err(Refusal::NotInForce("why".to_owned())));
        let other = answer("/kubepods/burstable/podv", VerdictKind::InForce, "8192");
        assert!(matches!(other, Err(Refusal::Unverified(_))), "another pod's: {other:?}");
    }

    #[test]
    fn only_running_containers_are_guarded_and_none_before_the_runtime_has_named_it() {
        let with_cgroup = |cgroup_id,
                           cgroup_path: &str,
                           r#type: proto::ContainerType,
                           state: proto::State| {
            let container = proto::Container {
                id: "c".to_owned(),
                r#type: r#type.into(),
                cgroup_id,
                cgroup_path: cgroup_path.to_owned(),
                ..Default::default()
            };
            proto::ContainerState { container: Some(container), state: state.into(), ..Default::default() }
        };
        let state = |r#type, state| with_cgroup(7, "/pod/c", r#type, state);
        let policy = Policy::parse("[[rule]]\nstep = \"64Mi\"\nceiling = \"1Gi\"\n").unwrap();
        let running = |of_type| Container::of(state(of_type, proto::State::Running)).unwrap();
        let app = running(proto::ContainerType::App);
        assert!(matches!(app.select(&policy), Selection::Rule(_)));
        let unknown = running(proto::ContainerType::Unspecified);
        assert_eq!(unknown.select(&policy), Selection::Undecided, "it may be a sandbox");
        for (of_type, of_state) in [
            (proto::ContainerType::Sandbox, proto::State::Running),
            (proto::ContainerType::App, proto::State::Created),
            (proto::ContainerType::App, proto::State::Stopped),
        ] {
            assert_eq!(Container::of(state(of_type, of_state)), None);
        }
        for (id, path) in [(0, "/pod/c"), (1, "/"), (7, "")] {
            let state = with_cgroup(id, path, proto::ContainerType::App, proto::State::Running);
            assert_eq!(Container::of(state), None, "{id} {path}");
        }
    }
}
