//! Are the desired limits in force? Gathers what each source says and what the files say, and has the core judge.
//!
//! ```text
//!  caller, kubelet's checkpoints, CRI requests, runtime ──▶ desired limits ─┐
//!  cgroup files of every level ────────────────────────────▶ levels ────────┼──▶ Evidence ──▶ engine: core::verdicts ──▶ Judged
//!                                                         attempts to write ┘ (the engine's own memory)
//! ```
//!
//! There is one such look, for a `Verify` call (`wait`) and for what the core wants judged (`follow`).
//! Files are read on blocking threads, a source that does not answer is named, and the others are sources. A call that waits is
//! woken by changes of its containers' limits ([`JudgeQueue`]); what no event reports (a checkpoint, the runtime's word, memory
//! that is reclaimed) is looked at in intervals that grow with what a look costs and with how many wait. Changes nothing.

mod follow;
mod kept;
mod kubelet;
mod levels;
mod prove;
mod runtime;
mod selection;
mod targets;
mod turns;
mod wait;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use kwitness_core::cgroup_path::is_machine;
use kwitness_core::model::{
    ApiComparison, ContainerId, ContainerType, Evidence, Judged, KernelTime, NotCompared, PodUid, Reading,
    Requester, RuntimeFacts, State, Subject, Verdict, VerdictScope,
};
use kwitness_core::verdicts::proof::{Interval, Proof};
use kwitness_service::{Client, Origin};
use tokio::time::Instant;

use crate::cgroupfs::CgroupFs;
use crate::clock::Clock;
use crate::cri::Resolver;
use crate::engine::{Handle, JudgeQueue, Stopped};
use crate::hub::{Filter, selects};
use crate::kubernetes::Kubernetes;
use crate::reported::Reported;
use crate::reported::desired::Desired;
use kubelet::{Checkpoint, CheckpointFile};
use runtime::RuntimeLimits;
use selection::Selection;
use targets::Target;
use turns::{Turn, Turns};
use wait::{PAUSE_MIN, STATUS_AGE};

pub(crate) use levels::inner as inner_cgroup;

/// The share of the time that looks after events may take, of all calls that wait, and of those that no client asks for: one part in
/// so many and one. Whoever may write limits of its own decides how often they change.
const CHANGES_SHARE: u32 = 4;
/// For how long, in nanoseconds, what may come from answers that are too old is not final.
const NOT_FINAL: u64 = 1_000_000_000;

/// Gathers evidence and has it judged. Clones share what they know.
#[derive(Clone, Debug)]
pub struct Verifier {
    cgroups: CgroupFs,
    engine: Handle,
    queue: JudgeQueue,
    runtime: RuntimeLimits,
    reported: Reported,
    allocated: CheckpointFile,
    actuated: CheckpointFile,
    kubernetes: Option<Kubernetes>,
    turns: Arc<Turns>,
    /// Whose looks take turns.
    client: Client,
}

/// The answer to a `Verify` call.
#[derive(Debug, Default)]
pub struct VerifyReport {
    /// Each limit that any source knows of, sorted by path; with its container, unless it is a pod's.
    pub judged: Vec<(Option<Arc<Subject>>, Judged)>,
    /// Likewise, whether usage kept to it; none: that was not looked for, or cannot be said of this limit.
    pub proofs: Vec<Option<(Interval, Proof)>>,
    /// Sources that could not be queried, and why.
    pub unavailable: Vec<String>,
    /// How long the look waited for its turn.
    waited: Duration,
}

impl VerifyReport {
    fn all_in_force(&self) -> bool {
        self.judged.iter().all(|(_, judged)| judged.judgement.verdict == Verdict::InForce)
    }

    /// Whether any verdict may change without a write.
    fn is_open(&self) -> bool {
        let is_open =
            |verdict: &Verdict| matches!(verdict, Verdict::Pending { .. } | Verdict::OverLimit { .. });
        self.judged.iter().any(|(_, judged)| is_open(&judged.judgement.verdict))
    }

    /// The pods of which the Kubernetes API says something else than the kernel, as far as it was only watched; and what of them is
    /// to be judged again. Where pods have no cgroups of their own, that is each container by itself.
    fn unconfirmed(&self) -> BTreeMap<PodUid, BTreeSet<VerdictScope>> {
        const UNCONFIRMED: ApiComparison = ApiComparison::NotCompared(NotCompared::Unconfirmed);
        let mut unconfirmed: BTreeMap<PodUid, BTreeSet<VerdictScope>> = BTreeMap::new();
        for (subject, judged) in &self.judged {
            let subject = subject.as_deref();
            if !judged.kubernetes.as_ref().is_some_and(|view| view.comparison == UNCONFIRMED) {
                continue;
            }
            let of_pod = |uid: &PodUid| Some((uid.clone(), VerdictScope::Pod(uid.clone())));
            let again = match subject {
                None => judged.pod.as_ref().and_then(|names| of_pod(&names.pod.uid)),
                Some(Subject { pod: Some(pod), .. }) => of_pod(&pod.uid),
                Some(subject) => {
                    let scope = VerdictScope::Container(subject.container_id.clone());
                    pod_uid(subject).map(|uid| (uid.clone(), scope))
                }
            };
            if let Some((uid, scope)) = again {
                unconfirmed.entry(uid).or_default().insert(scope);
            }
        }
        unconfirmed
    }

    /// Puts newer verdicts of some containers and pods in the place of older ones; of two looks at the same, the later counts. All
    /// looks at once, because each time takes a walk through the whole report.
    fn renew(&mut self, looks: Vec<Self>) {
        let key = |judged: &Judged| (judged.path.clone(), judged.judgement.resource);
        let mut all: BTreeMap<_, _> =
            std::mem::take(&mut self.judged).into_iter().map(|of| (key(&of.1), of)).collect();
        for newer in looks {
            all.extend(newer.judged.into_iter().map(|of| (key(&of.1), of)));
            self.unavailable = newer.unavailable;
        }
        self.judged = all.into_values().collect();
    }
}

/// Why there are no verdicts.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// There is nothing to judge.
    #[error("no container matches the filter")]
    NoContainer,
    /// The daemon is going down.
    #[error(transparent)]
    Stopped(#[from] Stopped),
}

/// A container, and how far its life has come.
type App = (Arc<Subject>, State);

/// Whose limits are judged.
struct Subjects {
    /// The containers.
    apps: Vec<App>,
    /// The sandboxes of their pods, which the limits of a pod are requested for.
    sandboxes: Vec<Arc<Subject>>,
}

impl Subjects {
    fn new(all: Vec<App>, wants: impl Fn(&Subject) -> bool) -> Self {
        let (sandboxes, apps): (Vec<_>, Vec<_>) =
            all.into_iter().partition(|(subject, _)| is_sandbox(subject));
        Self {
            apps: apps.into_iter().filter(|(subject, _)| wants(subject)).collect(),
            sandboxes: sandboxes.into_iter().map(|(subject, _)| subject).collect(),
        }
    }
}

/// What the sources say.
#[derive(Default)]
struct Sources {
    runtime: HashMap<ContainerId, Arc<[Desired]>>,
    /// Limits requested for a container, by its ID.
    requested: BTreeMap<Arc<str>, Vec<Desired>>,
    /// Limits requested for a pod, by its UID.
    pods_requested: BTreeMap<Arc<str>, Vec<Desired>>,
    allocated: Arc<Checkpoint>,
    actuated: Arc<Checkpoint>,
    unavailable: Vec<String>,
}

/// What a look is for.
#[derive(Clone, Copy)]
struct Look<'a> {
    filter: &'a Filter,
    /// What a client desires of each of the containers.
    desired: &'a [Desired],
    requester: Requester,
    /// What does not agree yet may still do so until then; none: no longer.
    deadline: Option<KernelTime>,
    /// How old the runtime's answer may be.
    status_age: Duration,
    /// Whether a client waits for it: such looks take turns.
    is_clients: bool,
}

impl<'a> Look<'a> {
    /// A client's look that is the last. Where the client has no limits of its own, it finds what the node's own would.
    fn last(filter: &'a Filter, desired: &'a [Desired], status_age: Duration) -> Self {
        let requester = if desired.is_empty() { Requester::Node } else { Requester::Client };
        Self { filter, desired, requester, deadline: None, status_age, is_clients: true }
    }
}

impl Verifier {
    /// The hierarchy whose limits it reads.
    pub fn cgroups(&self) -> &CgroupFs {
        &self.cgroups
    }

    /// One that looks for the kubelet's checkpoints in that directory.
    pub fn new(
        cgroups: CgroupFs,
        engine: Handle,
        queue: JudgeQueue,
        resolver: Resolver,
        kubelet: PathBuf,
        reported: Reported,
    ) -> Self {
        let checkpoint = |name: &str| CheckpointFile::new(kubelet.join(name));
        Self {
            cgroups,
            engine,
            queue,
            runtime: RuntimeLimits::new(resolver),
            reported,
            allocated: checkpoint("allocated_pods_state"),
            actuated: checkpoint("actuated_pods_state"),
            kubernetes: None,
            turns: Arc::default(),
            client: Origin::default().into(),
        }
    }

    /// Shows what the Kubernetes API says beside each verdict.
    pub fn with_kubernetes(self, kubernetes: Option<Kubernetes>) -> Self {
        Self { kubernetes, ..self }
    }

    /// The same for that client, whose looks take turns with those of others.
    pub fn of_client(&self, client: Client) -> Self {
        Self { client, ..self.clone() }
    }

    /// The Kubernetes API, if it is a source.
    pub fn kubernetes(&self) -> Option<&Kubernetes> {
        self.kubernetes.as_ref()
    }

    /// What clients report of limits.
    pub fn reported(&self) -> &Reported {
        &self.reported
    }

    /// Judges the limits of the containers that pass the filter, and waits until all are in force, or so long. Where the Kubernetes
    /// API seems to disagree, its pods are read for themselves before that is said; but not for a client that waits for a limit of
    /// its own, as the guard does while a process is held: it is answered as soon as there is a verdict.
    ///
    /// # Errors
    /// No container passes, or the daemon is going down.
    pub async fn verify(
        &self,
        filter: &Filter,
        desired: &[Desired],
        wait: Duration,
    ) -> Result<VerifyReport, VerifyError> {
        let mut report = self.wait(filter, desired, wait).await?;
        if let Some(kubernetes) = &self.kubernetes {
            let waits_for_its_own = !wait.is_zero() && !desired.is_empty();
            let unconfirmed = report.unconfirmed();
            let reads = !waits_for_its_own && !unconfirmed.is_empty();
            if reads {
                kubernetes.confirm(unconfirmed.keys().map(|pod| pod.0.clone()).collect()).await;
                self.look_again(filter, desired, unconfirmed, &mut report).await?;
            }
            report.unavailable.extend(kubernetes.unavailable(reads).map(|why| format!("kubernetes: {why}")));
        }
        Ok(report)
    }

    /// Judges what was unconfirmed once more, and nothing else: its pods have been read since.
    async fn look_again(
        &self,
        filter: &Filter,
        desired: &[Desired],
        unconfirmed: BTreeMap<PodUid, BTreeSet<VerdictScope>>,
        report: &mut VerifyReport,
    ) -> Result<(), VerifyError> {
        let mut unavailable = std::mem::take(&mut report.unavailable);
        let look = Look::last(filter, desired, STATUS_AGE);
        let looks = self.look_at_each(look, unconfirmed.into_values().flatten()).await?;
        for why in looks.iter().flat_map(|newer| &newer.unavailable) {
            if !unavailable.contains(why) {
                unavailable.push(why.clone());
            }
        }
        report.renew(looks);
        report.unavailable = unavailable;
        Ok(())
    }

    /// Looks at each scope in turn; one without such a container, as of what has ended meanwhile, adds nothing.
    async fn look_at_each(
        &self,
        look: Look<'_>,
        scopes: impl IntoIterator<Item = VerdictScope>,
    ) -> Result<Vec<VerifyReport>, VerifyError> {
        let mut looks = Vec::new();
        for scope in scopes {
            match self.look(look, scope).await {
                Ok(newer) => looks.push(newer),
                Err(VerifyError::NoContainer) => {}
                Err(stopped) => return Err(stopped),
            }
        }
        Ok(looks)
    }

    /// Judges those in the scope that pass the filter, once.
    async fn look(&self, look: Look<'_>, scope: VerdictScope) -> Result<VerifyReport, VerifyError> {
        // A pod's verdict takes all its containers: one of them alone does not say what the pod needs.
        let pods = !matches!(scope, VerdictScope::Container(_));
        let subjects = self.subjects(look.filter, [scope]).await?;
        self.look_at_subjects(look, &subjects, pods).await
    }

    /// Judges what is selected, once, and notes what that is.
    async fn look_at_selected(
        &self,
        look: Look<'_>,
        selection: &mut Selection,
    ) -> Result<VerifyReport, VerifyError> {
        let mut subjects = self.subjects(look.filter, selection.scopes()).await?;
        if subjects.apps.is_empty() && selection.is_narrowed() {
            // All of it has ended: another pod may have the name now.
            *selection = Selection::of(look.filter);
            subjects = self.subjects(look.filter, selection.scopes()).await?;
        }
        selection.narrow(&subjects.apps);
        self.look_at_subjects(look, &subjects, true).await
    }

    async fn subjects(
        &self,
        filter: &Filter,
        scopes: impl IntoIterator<Item = VerdictScope>,
    ) -> Result<Subjects, Stopped> {
        let mut all = Vec::new();
        for scope in scopes {
            all.extend(self.engine.subjects(scope).await?);
        }
        Ok(Subjects::new(all, |subject| selects(filter, subject)))
    }

    /// Judges these containers, and with `pods` their pods, unless the filter selects single containers.
    async fn look_at_subjects(
        &self,
        look: Look<'_>,
        subjects: &Subjects,
        pods: bool,
    ) -> Result<VerifyReport, VerifyError> {
        if subjects.apps.is_empty() {
            return Err(VerifyError::NoContainer);
        }
        let pods = pods && !look.filter.asks_for_containers();
        let mut sources = self.sources(subjects, look.status_age).await;
        let began = Instant::now();
        let turn =
            if look.is_clients { self.turns.take(self.client, subjects.apps.len()).await } else { None };
        let waited = began.elapsed();
        let mut deadline = look.deadline;
        if waited > PAUSE_MIN {
            // What was desired before the wait may not be any more, and the files are read after it.
            match tokio::time::timeout(STATUS_AGE, self.sources(subjects, look.status_age)).await {
                Ok(again) => sources = again,
                // Others wait for the turn: what does not agree with the older answers is not final.
                Err(_) => deadline = deadline.or_else(|| Some(KernelTime(now().0.saturating_add(NOT_FINAL)))),
            }
        }
        let targets = self.targets(&subjects.apps, look.desired, &sources, pods);
        let judged = self.judge(targets, deadline, look.requester, turn).await?;
        Ok(VerifyReport { judged, proofs: Vec::new(), unavailable: sources.unavailable, waited })
    }

    /// Queries all sources; the runtime's status may be so old.
    async fn sources(&self, subjects: &Subjects, status_age: Duration) -> Sources {
        let mut sources = Sources::default();
        let ids = subjects.apps.iter().map(|(subject, _)| subject.container_id.clone()).collect();
        let (runtime, failure) = self.runtime.of(ids, status_age).await;
        sources.runtime = runtime;
        sources.unavailable.extend(failure.map(|error| format!("runtime: {error}")));
        // After the runtime: a call that it has answered is known by then, or will soon be.
        for (subject, _) in &subjects.apps {
            let id = &subject.container_id.0;
            sources.requested.insert(id.clone(), self.reported.requests().desired(id));
        }
        for sandbox in &subjects.sandboxes {
            let Some(pod) = &sandbox.pod else { continue };
            let desired = self.reported.requests().desired(&sandbox.container_id.0);
            sources.pods_requested.entry(pod.uid.0.clone()).or_default().extend(desired);
        }
        let (allocated, actuated) = tokio::join!(self.allocated.read(), self.actuated.read());
        let pods: BTreeSet<_> = subjects.apps.iter().filter_map(|(subject, _)| pod_uid(subject)).collect();
        for (read, checkpoint) in [(allocated, &mut sources.allocated), (actuated, &mut sources.actuated)] {
            match read {
                Ok(read) => {
                    let unread = pods.iter().filter_map(|uid| read.unread(&uid.0));
                    sources.unavailable.extend(unread.map(|why| format!("kubelet: {why}")));
                    *checkpoint = read;
                }
                Err(error) => sources.unavailable.push(format!("kubelet: {error}")),
            }
        }
        sources
    }

    /// Gathers what the files say, and has the engine judge all of it at once, within the turn.
    async fn judge(
        &self,
        targets: Vec<Target>,
        deadline: Option<KernelTime>,
        requester: Requester,
        turn: Option<Turn>,
    ) -> Result<Vec<(Option<Arc<Subject>>, Judged)>, Stopped> {
        let cgroups = self.cgroups.clone();
        let kubernetes = self.kubernetes.clone();
        let reported = self.reported.clone();
        let gathered = tokio::task::spawn_blocking(move || {
            let mut files = levels::Files::default();
            let page = procfs::page_size();
            let gather = |target: Target| {
                // Before the files: what they say is never the older one.
                let kubernetes = kubernetes.as_ref().and_then(|source| target.view(source));
                // A pod's limits are the kubelet's own: no request sets them.
                let of_container = |of: &Arc<Subject>| reported.unobserved(&of.container_id, target.resource);
                let unobserved = target.subject.as_ref().map(of_container).unwrap_or_default();
                let read = levels::read(&cgroups, &mut files, &target.path, target.cgroup, target.resource)?;
                let evidence = Evidence {
                    requester,
                    at: now(),
                    cgroup: read.cgroup,
                    inner: read.inner,
                    resource: target.resource,
                    desired: target.desired,
                    may_be_less: target.may_be_less,
                    unobserved,
                    levels: read.levels,
                    own: read.own,
                    usage: read.usage,
                    deadline,
                    page,
                    kubernetes,
                };
                Some((target.subject, evidence))
            };
            let gathered: (Vec<_>, Vec<_>) = targets.into_iter().filter_map(gather).unzip();
            (gathered, turn)
        });
        // A panic while reading is an error of ours, and nothing that was read.
        let ((subjects, evidence), _turn) = gathered.await.map_err(|_| Stopped)?;
        let judged = self.engine.judge(evidence).await?;
        let is_gone = |judged: &Judged| judged.judgement.in_force == Reading::Gone;
        // It went away meanwhile, as containers do: that is no verdict of the node's.
        let kept = |(_, judged): &(_, Judged)| requester == Requester::Client || !is_gone(judged);
        Ok(subjects.into_iter().zip(judged).filter(kept).collect())
    }
}

/// The UID of its pod: by its path, or, where pods have no cgroups of their own, by the runtime's word.
fn pod_uid(subject: &Subject) -> Option<&PodUid> {
    let of_runtime = || subject.facts.as_ref().and_then(|facts| facts.pod_uid.as_ref());
    subject.pod.as_ref().map(|pod| &pod.uid).or_else(of_runtime)
}

/// A pod's sandbox, by the runtime's word or by its name: its limits are not those of a container.
fn is_sandbox(subject: &Subject) -> bool {
    let by_runtime = |facts: &Arc<RuntimeFacts>| facts.container_type == ContainerType::Sandbox;
    subject.facts.as_ref().is_some_and(by_runtime) || is_machine(&subject.cgroup_path)
}

fn now() -> KernelTime {
    Clock::read().now()
}

#[cfg(test)]
mod tests;
