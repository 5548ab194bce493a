//! Are the limits that were asked for in force? Gathers what each source says and what the files say, and has the core judge.
//!
//! ```text
//!  caller, kubelet's checkpoints, CRI requests, runtime ──▶ claims ─┐
//!  cgroup files of every level ─────────────────────────▶ levels ───┼──▶ Evidence ──▶ engine: core::resize ──▶ Judged
//!                                                  attempts to write ┘ (the engine's own memory)
//! ```
//!
//! Files are read on a blocking thread, never on the engine's; a source that does not answer is named, and the others are
//! heard. Changes nothing.

mod claims;
mod kubelet;
mod levels;
mod prove;
mod requests;
mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kwitness_core::model::{
    CgroupId, ContainerType, DesiredLimit, Evidence, Judged, KernelTime, Reading, Requester, Resource,
    Source, Subject, Verdict,
};
use kwitness_core::verdicts::proof::{Interval, Proof};
use tokio::sync::{Mutex, watch};
use tokio::time::Instant;

use crate::cgroupfs::CgroupFs;
use crate::clock::Clock;
use crate::cri::{Connection, Resolver};
use crate::engine::{Handle, Snapshot, Stopped};
use crate::hub::Filter;
use claims::About;
use kubelet::Checkpoint;
use kwitness_api::proto;
use kwitness_cri::runtime as cri;

pub use requests::{Malformed, Requests};
pub use standing::{Touched, TouchedSender, touched};

/// Between two looks while one waits, at least and at most; in between, each event is a reason to look.
const PAUSE: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(50));
/// How long the runtime's word is taken for its last one while one waits.
const TOLD_FOR: Duration = Duration::from_millis(250);
/// The longest that a call of the runtime may take.
const CALL: Duration = Duration::from_secs(5);

/// Gathers and asks. Clones share the connection to the runtime.
#[derive(Clone, Debug)]
pub struct Verifier {
    cgroups: CgroupFs,
    engine: Handle,
    resolver: Resolver,
    /// The kubelet's root directory.
    kubelet: PathBuf,
    requests: Requests,
    connection: Arc<Mutex<Option<Connection>>>,
}

/// What came of it.
#[derive(Debug, Default)]
pub struct Verdicts {
    /// Each limit that any source knows of, sorted by path; with its container, unless it is a pod's.
    pub judged: Vec<(Option<Arc<Subject>>, Judged)>,
    /// Likewise, whether usage kept to it; none: that was not looked for, or cannot be said of this limit.
    pub proofs: Vec<Option<(Interval, Proof)>>,
    /// Sources that could not be asked, and why.
    pub unavailable: Vec<String>,
}

impl Verdicts {
    fn all_in_force(&self) -> bool {
        self.judged.iter().all(|(_, judged)| judged.judgement.verdict == Verdict::InForce)
    }
}

/// Why there are no verdicts.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// Nobody to judge.
    #[error("no container that is known passes the filter")]
    NoContainer,
    /// The daemon is going down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A limit that is to be judged.
struct Target {
    subject: Option<Arc<Subject>>,
    path: Arc<str>,
    cgroup: CgroupId,
    resource: Resource,
    claims: Vec<DesiredLimit>,
}

/// Whose limits are judged.
struct Subjects {
    /// All that pass the filter.
    apps: Vec<Arc<Subject>>,
    /// Of their pods.
    sandboxes: Vec<Arc<Subject>>,
}

/// A pod's containers, each with what is claimed of it.
type Members = Vec<(Arc<Subject>, Vec<About>)>;

/// What the sources said.
#[derive(Default)]
struct Heard {
    /// By container.
    runtime: BTreeMap<Arc<str>, Vec<About>>,
    /// By container.
    requested: BTreeMap<Arc<str>, Vec<About>>,
    /// By pod.
    pods_requested: BTreeMap<Arc<str>, Vec<About>>,
    allocated: Checkpoint,
    actuated: Checkpoint,
    unavailable: Vec<String>,
}

impl Verifier {
    /// One that looks for the kubelet's checkpoints in that directory.
    pub fn new(cgroups: CgroupFs, engine: Handle, resolver: Resolver, kubelet: PathBuf) -> Self {
        let requests = Requests::default();
        Self { cgroups, engine, resolver, kubelet, requests, connection: Arc::default() }
    }

    /// What the container runtime was asked for.
    pub fn requests(&self) -> &Requests {
        &self.requests
    }

    /// Forgets the requests of what has ended. Whose limits these requests were for, as far as that is there.
    ///
    /// # Errors
    /// The daemon is going down.
    pub async fn concerned(&self, ids: &BTreeSet<&str>) -> Result<Vec<Touched>, Stopped> {
        let snapshot = self.engine.snapshot().await?;
        self.forget_ended(&snapshot);
        let subjects = snapshot.containers.iter().map(|state| &state.subject);
        let concerned = subjects.filter(|subject| ids.contains(&*subject.container_id.0));
        Ok(concerned
            .map(|subject| match &subject.pod {
                Some(pod) if is_sandbox(subject) => Touched::Pod(pod.uid.clone()),
                _ => Touched::Container(subject.container_id.clone()),
            })
            .collect())
    }

    fn forget_ended(&self, snapshot: &Snapshot) {
        let there = snapshot.containers.iter().map(|state| &*state.subject.container_id.0).collect();
        self.requests.keep(&there, now());
    }

    /// Judges the limits of the containers that pass the filter, and waits until all are in force, or so long. `events` tells
    /// of every event, as a reason to look again.
    ///
    /// # Errors
    /// No container passes, or the daemon is going down.
    pub async fn verify(
        &self,
        filter: &Filter,
        wanted: &proto::Wanted,
        wait: Duration,
        mut events: watch::Receiver<u64>,
    ) -> Result<Verdicts, VerifyError> {
        let until = Instant::now() + wait;
        let until_kernel =
            KernelTime(now().0.saturating_add(u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX)));
        let mut heard: Option<(Instant, Heard)> = None;
        loop {
            let is_last = Instant::now() >= until;
            let subjects = self.subjects(filter).await?;
            let fresh = heard.as_ref().is_some_and(|(at, _)| at.elapsed() < TOLD_FOR && !is_last);
            if !fresh {
                heard = Some((Instant::now(), self.hear(&subjects).await));
            }
            let Some((_, heard)) = &heard else { return Err(VerifyError::NoContainer) };
            let pods = !filter.asks_for_containers();
            let targets = self.targets(&subjects.apps, wanted, heard, pods);
            let is_own = wanted.memory.is_some() || wanted.cpu.is_some();
            let requester = if is_own || !is_last { Requester::Client } else { Requester::Node };
            let verdicts = Verdicts {
                judged: self.judge(targets, (!is_last).then_some(until_kernel), requester).await?,
                proofs: Vec::new(),
                unavailable: heard.unavailable.clone(),
            };
            if is_last || verdicts.all_in_force() {
                return Ok(verdicts);
            }
            tokio::time::sleep(PAUSE.0).await;
            events.mark_unchanged();
            let pause = PAUSE.1.min(until.saturating_duration_since(Instant::now()));
            // An event, or time: either is a reason to look.
            let _ = tokio::time::timeout(pause, events.changed()).await;
        }
    }

    async fn subjects(&self, filter: &Filter) -> Result<Subjects, VerifyError> {
        let snapshot = self.engine.snapshot().await?;
        self.forget_ended(&snapshot);
        let all = snapshot.containers.into_iter().map(|state| state.subject);
        let (sandboxes, apps): (Vec<_>, Vec<_>) = all.partition(|subject| is_sandbox(subject));
        let apps: Vec<_> = apps.into_iter().filter(|subject| filter.wants_container(subject)).collect();
        if apps.is_empty() { Err(VerifyError::NoContainer) } else { Ok(Subjects { apps, sandboxes }) }
    }

    /// Asks all sources.
    async fn hear(&self, subjects: &Subjects) -> Heard {
        let mut heard = Heard::default();
        for subject in &subjects.apps {
            match self.told(&subject.container_id.0).await {
                Ok(Some(resources)) => {
                    let claims = claims::of_runtime(&resources, now());
                    heard.runtime.insert(subject.container_id.0.clone(), claims);
                }
                Ok(None) => {}
                Err(error) => {
                    heard.unavailable.push(format!("runtime: {error}"));
                    break;
                }
            }
        }
        // After the runtime: a call that it has answered is known by then, or will soon be.
        for subject in &subjects.apps {
            let id = &subject.container_id.0;
            heard.requested.insert(id.clone(), self.requests.claims(id));
        }
        for sandbox in &subjects.sandboxes {
            let Some(pod) = &sandbox.pod else { continue };
            let claims = self.requests.claims(&sandbox.container_id.0);
            heard.pods_requested.entry(pod.uid.0.clone()).or_default().extend(claims);
        }
        for (name, checkpoint) in
            [("allocated_pods_state", &mut heard.allocated), ("actuated_pods_state", &mut heard.actuated)]
        {
            match Checkpoint::read(&self.kubelet.join(name)) {
                Ok(found) => *checkpoint = found.unwrap_or_default(),
                Err(error) => heard.unavailable.push(format!("kubelet: {:#}", anyhow::Error::from(error))),
            }
        }
        heard
    }

    /// What the runtime was told of a container; none: it does not know it, or says nothing.
    async fn told(&self, container: &str) -> Result<Option<cri::LinuxContainerResources>, String> {
        let mut connection = self.connection.lock().await;
        if connection.is_none() {
            let endpoint = self.resolver.status().endpoint;
            let Some(socket) = endpoint.strip_prefix("unix://") else {
                return Err("no container runtime is connected".to_owned());
            };
            let opened = Connection::open(socket.as_ref(), CALL).await;
            *connection = Some(opened.map_err(|error| error.to_string())?);
        }
        let Some(open) = connection.as_mut() else { return Ok(None) };
        open.resources(container).await.map_err(|error| {
            *connection = None;
            error.to_string()
        })
    }

    fn targets(
        &self,
        subjects: &[Arc<Subject>],
        wanted: &proto::Wanted,
        heard: &Heard,
        pods: bool,
    ) -> Vec<Target> {
        let at = now();
        let mut targets = Vec::new();
        let mut by_pod: BTreeMap<Arc<str>, Members> = BTreeMap::new();
        for subject in subjects {
            let mut all = claims::of_client(wanted, at);
            for of in [&heard.runtime, &heard.requested] {
                all.extend(of.get(&subject.container_id.0).into_iter().flatten().copied());
            }
            let name = subject.facts.as_ref().and_then(|facts| facts.name.as_deref());
            if let (Some(pod), Some(name)) = (&subject.pod, name) {
                let uid = &*pod.uid.0;
                all.extend(heard.allocated.container(uid, name, Source::KubeletAllocated, at));
                all.extend(heard.actuated.container(uid, name, Source::KubeletActuated, at));
            }
            let (path, cgroup) = (&subject.cgroup_path, subject.cgroup_id);
            targets.extend(about_one(&all, Some(subject), path, cgroup));
            if let Some(pod) = &subject.pod {
                by_pod.entry(pod.uid.0.clone()).or_default().push((subject.clone(), all));
            }
        }
        for (uid, members) in by_pod.into_iter().filter(|_| pods) {
            let Some((first, _)) = members.first() else { continue };
            let Some((path, cgroup)) = levels::pod_around(&self.cgroups, &first.cgroup_path) else {
                continue;
            };
            let claims: Vec<Vec<About>> = members.into_iter().map(|(_, claims)| claims).collect();
            let mut all = Vec::new();
            let requested = heard.pods_requested.get(&uid).cloned().unwrap_or_default();
            for (source, whole) in [
                (Source::KubeletAllocated, heard.allocated.pod(&uid, Source::KubeletAllocated, at)),
                (Source::KubeletActuated, heard.actuated.pod(&uid, Source::KubeletActuated, at)),
                (Source::CriRequest, requested),
            ] {
                let sums = claims::of_pod(source, &claims, at);
                let unsaid = |(about, _): &About| !whole.iter().any(|(resource, _)| resource == about);
                all.extend(sums.into_iter().filter(unsaid));
                all.extend(whole.iter().copied());
            }
            all.extend(claims::of_pod(Source::Runtime, &claims, at));
            targets.extend(about_one(&all, None, &path, cgroup));
        }
        targets.sort_by(|a, b| (&a.path, a.resource).cmp(&(&b.path, b.resource)));
        targets
    }

    async fn judge(
        &self,
        targets: Vec<Target>,
        deadline: Option<KernelTime>,
        requester: Requester,
    ) -> Result<Vec<(Option<Arc<Subject>>, Judged)>, Stopped> {
        let cgroups = self.cgroups.clone();
        let gathered = tokio::task::spawn_blocking(move || {
            let gather = |target: Target| {
                let read = levels::read(&cgroups, &target.path, target.cgroup, target.resource);
                let evidence = Evidence {
                    requester,
                    at: now(),
                    cgroup: target.cgroup,
                    resource: target.resource,
                    desired: target.claims,
                    levels: read.levels,
                    own: read.own,
                    usage: read.usage,
                    deadline,
                    page: procfs::page_size(),
                };
                (target.subject, evidence)
            };
            targets.into_iter().map(gather).collect::<Vec<_>>()
        });
        // A panic while reading is a mistake of ours, and nothing that was read.
        let gathered = gathered.await.map_err(|_| Stopped)?;
        let mut judged = Vec::with_capacity(gathered.len());
        for (subject, evidence) in gathered {
            let is_gone = evidence.levels.get(evidence.own).is_some_and(|own| own.reading == Reading::Gone);
            if is_gone && requester == Requester::Node {
                // It went away meanwhile, as containers do: that is no verdict of the node's.
                continue;
            }
            judged.push((subject, self.engine.judge(evidence).await?));
        }
        Ok(judged)
    }
}

/// A target for each resource that anybody claims something of.
fn about_one<'a>(
    claims: &'a [About],
    subject: Option<&'a Arc<Subject>>,
    path: &'a Arc<str>,
    cgroup: CgroupId,
) -> impl Iterator<Item = Target> + 'a {
    Resource::ALL.into_iter().filter_map(move |resource| {
        let claims: Vec<DesiredLimit> =
            claims.iter().filter(|(about, _)| *about == resource).map(|(_, claim)| *claim).collect();
        let target = Target { subject: subject.cloned(), path: path.clone(), cgroup, resource, claims };
        (!target.claims.is_empty()).then_some(target)
    })
}

fn is_sandbox(subject: &Subject) -> bool {
    subject.facts.as_ref().is_some_and(|facts| facts.container_type == ContainerType::Sandbox)
}

fn now() -> KernelTime {
    Clock::read().now()
}
