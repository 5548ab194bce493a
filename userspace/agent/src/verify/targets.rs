//! What is to be judged: each container's limits, and each pod's. Puts together what the sources say; never reads a file.

use std::collections::BTreeMap;
use std::sync::Arc;

use kwitness_core::model::{ApiView, CgroupId, DesiredLimit, Resource, Source, State, Subject, Wanted};
use kwitness_core::verdicts::kubernetes::is_compared;

use super::{App, Sources, Verifier, levels, now, pod_uid};
use crate::kubernetes::Kubernetes;
use crate::reported::desired::{self, Desired};

/// A limit that is to be judged.
pub(super) struct Target {
    pub(super) subject: Option<Arc<Subject>>,
    pub(super) pod: Option<Arc<str>>,
    pub(super) path: Arc<str>,
    /// None: whichever cgroup is there.
    pub(super) cgroup: Option<CgroupId>,
    pub(super) resource: Resource,
    pub(super) desired: Vec<DesiredLimit>,
    /// See [`Evidence::may_be_less`](kwitness_core::model::Evidence::may_be_less).
    pub(super) may_be_less: bool,
}

impl Target {
    /// What the Kubernetes API says of it; none: it has no say.
    pub(super) fn view(&self, kubernetes: &Kubernetes) -> Option<ApiView> {
        let uid = self.pod.as_deref().filter(|_| is_compared(self.resource))?;
        let container = self.subject.as_ref().map(|subject| (&*subject.container_id.0, name(subject)));
        Some(kubernetes.view(uid, container, self.resource))
    }
}

/// A container of a pod, with what is desired for it.
struct Member<'a> {
    app: &'a App,
    desired: Vec<Desired>,
}

impl Verifier {
    pub(super) fn targets(
        &self,
        apps: &[App],
        of_client: &[Desired],
        sources: &Sources,
        pods: bool,
    ) -> Vec<Target> {
        let at = now();
        let mut targets = Vec::new();
        let mut by_pod: BTreeMap<Arc<str>, Vec<Member<'_>>> = BTreeMap::new();
        for app in apps {
            let (subject, _) = app;
            let mut all = of_client.to_vec();
            let id = &subject.container_id;
            all.extend(sources.runtime.get(id).into_iter().flat_map(|of| of.iter()).copied());
            all.extend(sources.requested.get(&id.0).into_iter().flatten().copied());
            all.extend(self.reported.guard().desired(id));
            // Of itself the guard desires none: for the time of a hold it lowers what another source may desire.
            let is_high = |(resource, _): &(Resource, _)| *resource == Resource::MemoryHigh;
            if let Some(lowered) = self.reported.guard().high(id, at).filter(|_| all.iter().any(is_high)) {
                all.retain(|desired| !is_high(desired));
                all.push(lowered);
            }
            if let (Some(uid), Some(name)) = (pod_uid(subject), name(subject)) {
                let uid = &*uid.0;
                let actuated = sources.actuated.container(uid, name, Source::KubeletActuated, &all);
                all.extend(actuated);
                let allocated = sources.allocated.container(uid, name, Source::KubeletAllocated, &all);
                all.extend(allocated);
            }
            let (path, cgroup) = (&subject.cgroup_path, Some(subject.cgroup_id));
            targets.extend(about_one(&all, Some(subject), path, cgroup));
            if let Some(pod) = &subject.pod {
                by_pod.entry(pod.uid.0.clone()).or_default().push(Member { app, desired: all });
            }
        }
        for (uid, members) in by_pod.into_iter().filter(|_| pods) {
            let path = members.first().and_then(|Member { app: (subject, _), .. }| {
                levels::pod_around(&subject.cgroup_path).map(Arc::from)
            });
            let Some(path) = path else { continue };
            let desired = that_count(members);
            let mut all = sources.allocated.pod(&uid, Source::KubeletAllocated);
            all.extend(sources.actuated.pod(&uid, Source::KubeletActuated));
            // The limits of its containers may be more together than the pod's own.
            let of_kubelet: Vec<Resource> = all.iter().map(|(resource, _)| *resource).collect();
            all.extend(sources.pods_requested.get(&uid).into_iter().flatten().copied());
            let of_all: Vec<Resource> = all.iter().map(|(resource, _)| *resource).collect();
            for source in
                [Source::KubeletAllocated, Source::KubeletActuated, Source::CriRequest, Source::Runtime]
            {
                let sums = desired::of_pod(source, &desired);
                let is_kubelets = matches!(source, Source::KubeletAllocated | Source::KubeletActuated);
                let whole = if is_kubelets { &of_kubelet } else { &of_all };
                all.extend(sums.into_iter().filter(|(resource, _)| !whole.contains(resource)));
            }
            let records = sources.allocated.records_pod(&uid) || sources.actuated.records_pod(&uid);
            let of_pod = about_one(&all, None, &path, None);
            targets.extend(of_pod.map(|target| Target {
                pod: Some(uid.clone()),
                may_be_less: !records && !of_kubelet.contains(&target.resource),
                ..target
            }));
        }
        targets.sort_by(|a, b| (&a.path, a.resource).cmp(&(&b.path, b.resource)));
        targets
    }
}

/// What is desired for the containers that a pod's limits are the sum of: not for one that has ended, whose cgroup the runtime has
/// not removed yet; and of several with one name, for the one that was started in the others' place. That is the newest, which has
/// the greatest id: the kernel gives no cgroup a smaller one than those before.
fn that_count(mut members: Vec<Member<'_>>) -> Vec<Vec<Desired>> {
    members.retain(|Member { app: (_, state), .. }| *state != State::Stopped);
    let mut newest: BTreeMap<Arc<str>, CgroupId> = BTreeMap::new();
    for (subject, _) in members.iter().map(|member| member.app) {
        if let Some(name) = name(subject) {
            let id = newest.entry(name.into()).or_insert(subject.cgroup_id);
            *id = subject.cgroup_id.max(*id);
        }
    }
    let is_newest = |Member { app: (subject, _), .. }: &Member<'_>| {
        name(subject).is_none_or(|name| newest.get(name) == Some(&subject.cgroup_id))
    };
    members.into_iter().filter(is_newest).map(|member| member.desired).collect()
}

fn name(subject: &Subject) -> Option<&str> {
    subject.facts.as_ref()?.name.as_deref()
}

/// A target for each resource that any source names a desired limit of.
fn about_one<'a>(
    desired: &'a [Desired],
    subject: Option<&'a Arc<Subject>>,
    path: &'a Arc<str>,
    cgroup: Option<CgroupId>,
) -> impl Iterator<Item = Target> + 'a {
    Resource::ALL.into_iter().filter_map(move |resource| {
        let desired: Vec<DesiredLimit> =
            desired.iter().filter(|(of, _)| *of == resource).map(|(_, desired)| *desired).collect();
        let pod = subject.and_then(|subject| pod_uid(subject)).map(|uid| uid.0.clone());
        let (subject, path) = (subject.cloned(), path.clone());
        let target = Target { subject, pod, path, cgroup, resource, desired, may_be_less: false };
        // What only explains a file is nothing to judge it by.
        target.desired.iter().any(|desired| desired.wanted != Wanted::NoQuotaSent).then_some(target)
    })
}
