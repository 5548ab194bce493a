//! What is kept of the node's pods. Bounded in pods and bytes; what is not kept is counted by whoever fills it, and
//! reported to whoever requests it.
//!
//! Owns the times: since when a status is what it is, when a resize was completed, when a version was confirmed. The API has none of
//! them, but for the conditions'.

use std::collections::HashMap;
use std::sync::Arc;

use kwitness_core::model::{
    ApiLimit, ApiMissing, ApiPod, ApiSince, KernelTime, ResizeConditionKind, Resource,
};

use super::pod::{Amounts, Of, Pod};

/// A node has some hundred pods; a kubelet's default is 110.
const PODS_MAX: usize = 2048;
const BYTES_MAX: usize = 8 << 20;

/// How a pod was learned of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum By {
    /// A list: it may have been so for long.
    List,
    /// The watch.
    Watch,
    /// It was read for itself, by a request that began at that time.
    Read(KernelTime),
}

/// Whose limit is meant.
#[derive(Clone, Copy, Debug)]
pub(super) enum Whose<'a> {
    /// The pod's as a whole.
    Pod,
    /// A container's, by its ID; and its name, if it is known.
    Container { id: &'a str, name: Option<&'a str> },
}

/// The pods, by the UID that they have in the API.
#[derive(Debug, Default)]
pub(super) struct Store {
    pods: HashMap<Arc<str>, Stored>,
    /// By the UID of a static pod, that of its mirror.
    mirrors: HashMap<Arc<str>, Arc<str>>,
    bytes: usize,
    /// A pod was refused since the store was made.
    is_incomplete: bool,
}

#[derive(Debug)]
struct Stored {
    size: usize,
    pod: Pod,
    facts: Arc<ApiPod>,
    /// Of the pod as a whole, and of each container.
    whole_since: ApiSince,
    since: Vec<ApiSince>,
}

/// There is no room for this pod.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Full;

impl Store {
    pub(super) fn len(&self) -> usize {
        self.pods.len()
    }

    /// About how many bytes the pods take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Takes a pod in, unless a later version of it is known. `earlier` is what was known before this store was made: a list may be of
    /// an older state, and nothing but the list says which pods there are.
    pub(super) fn insert(
        &mut self,
        pod: Pod,
        by: By,
        at: KernelTime,
        earlier: Option<&Self>,
    ) -> Result<(), Full> {
        let is_newer = |known: &Stored| is_older(&pod.version, &known.pod.version);
        let known = self.pods.get(&pod.uid);
        if known.is_some_and(is_newer) {
            return Ok(());
        }
        let earlier = || earlier?.pods.get(&pod.uid).filter(|known| !is_newer(known));
        let before = known.or_else(earlier);
        let stored = Stored::new(pod, by, at, before);
        let replaced = self.pods.get(&stored.pod.uid).map(|stored| stored.size);
        let bytes = self.bytes - replaced.unwrap_or(0) + stored.size;
        if bytes > BYTES_MAX || (replaced.is_none() && self.pods.len() >= PODS_MAX) {
            // What was known of it holds no longer.
            self.remove(&stored.pod.uid);
            self.is_incomplete = true;
            return Err(Full);
        }
        self.bytes = bytes;
        if let Some(uid) = &stored.pod.mirrors {
            // Anyone who may make pods may write the annotation: the first is not replaced while it is there.
            self.mirrors.entry(uid.clone()).or_insert_with(|| stored.pod.uid.clone());
        }
        self.pods.insert(stored.pod.uid.clone(), stored);
        Ok(())
    }

    /// Removes a pod, by either UID.
    pub(super) fn remove(&mut self, uid: &str) {
        let Some(uid) = self.get(uid).map(|stored| stored.pod.uid.clone()) else { return };
        if let Some(removed) = self.pods.remove(&uid) {
            self.bytes -= removed.size;
            self.mirrors.retain(|_, mirror| *mirror != uid);
        }
    }

    /// By the UID that it has in the API or, of a mirror, that the node knows its static pod by.
    fn get(&self, uid: &str) -> Option<&Stored> {
        self.pods.get(uid).or_else(|| self.pods.get(self.mirrors.get(uid)?))
    }

    /// Its namespace and name, and when it was confirmed last.
    pub(super) fn names(&self, uid: &str) -> Option<(Arc<str>, Arc<str>, Option<KernelTime>)> {
        let Stored { pod, facts, .. } = self.get(uid)?;
        Some((pod.namespace.clone(), pod.name.clone(), facts.confirmed))
    }

    /// What the API says of a limit.
    pub(super) fn limit(
        &self,
        uid: &str,
        whose: Whose<'_>,
        resource: Resource,
    ) -> Result<Arc<ApiLimit>, ApiMissing> {
        let missing = if self.is_incomplete { ApiMissing::StoreFull } else { ApiMissing::Pod };
        let stored = self.get(uid).ok_or(missing)?;
        let (amounts, since) = stored.amounts(whose)?;
        let Of { spec, allocated, status } = match resource {
            Resource::Cpu | Resource::CpuWeight => amounts.cpu.clone(),
            Resource::Memory | Resource::MemoryHigh | Resource::Swap => amounts.memory.clone(),
        };
        let pod = stored.facts.clone();
        Ok(Arc::new(ApiLimit { pod, spec, allocated, status, status_since: since }))
    }
}

impl Stored {
    fn new(pod: Pod, by: By, at: KernelTime, before: Option<&Self>) -> Self {
        let unless = |same: Option<ApiSince>| same.unwrap_or(ApiSince { at, or_earlier: by == By::List });
        let is_same = |one: &Amounts, other: &Amounts| {
            (&one.cpu.status, &one.memory.status) == (&other.cpu.status, &other.memory.status)
        };
        let whole = before.filter(|before| is_same(&before.pod.whole, &pod.whole));
        let whole_since = unless(whole.map(|before| before.whole_since));
        let of_container = |container: &super::pod::Container| {
            let before = before?;
            let is_it = |(other, _): &(&super::pod::Container, &ApiSince)| other.name == container.name;
            let (other, since) = before.pod.containers.iter().zip(&before.since).find(is_it)?;
            (other.id == container.id && is_same(&other.amounts, &container.amounts)).then_some(*since)
        };
        let since = pod.containers.iter().map(|container| unless(of_container(container))).collect();

        let facts = before.map(|before| &before.facts);
        let was_under_way = facts.is_some_and(|facts| {
            facts.conditions.iter().any(|condition| condition.kind == ResizeConditionKind::InProgress)
        });
        let resized = if !pod.conditions.is_empty() {
            None
        } else if was_under_way {
            Some(at)
        } else {
            facts.filter(|facts| facts.generation == pod.generation).and_then(|facts| facts.resized)
        };
        let same_version = facts.filter(|facts| facts.resource_version == pod.version);
        let facts = ApiPod {
            resource_version: pod.version.clone(),
            generation: pod.generation,
            observed_generation: pod.observed_generation,
            received: same_version.map_or(at, |facts| facts.received),
            confirmed: match by {
                By::Read(began) => Some(began),
                By::List | By::Watch => same_version.and_then(|facts| facts.confirmed),
            },
            conditions: pod.conditions.clone(),
            resized,
            is_deleting: pod.is_deleting,
        };
        Self { size: pod.size(), pod, facts: Arc::new(facts), whole_since, since }
    }

    fn amounts(&self, whose: Whose<'_>) -> Result<(&Amounts, ApiSince), ApiMissing> {
        let Whose::Container { id, name } = whose else { return Ok((&self.pod.whole, self.whole_since)) };
        let mut all = self.pod.containers.iter().zip(&self.since);
        if let Some((container, since)) = all.find(|(container, _)| container.id.as_deref() == Some(id)) {
            return Ok((&container.amounts, *since));
        }
        let is_named = |name| self.pod.containers.iter().any(|container| &*container.name == name);
        Err(if name.is_some_and(is_named) { ApiMissing::OtherRun } else { ApiMissing::Container })
    }
}

/// Of versions that are numbers, as the API's are, the smaller one is older.
fn is_older(version: &str, than: &str) -> bool {
    let number = |version: &str| version.parse::<u64>().ok();
    number(version).zip(number(than)).is_some_and(|(version, than)| version < than)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::kubernetes::tests::pod;

    const AT: KernelTime = KernelTime(100);
    const LATER: KernelTime = KernelTime(200);

    fn parse(pod: serde_json::Value) -> Pod {
        serde_json::from_value(pod).unwrap()
    }

    fn store(pods: impl IntoIterator<Item = (serde_json::Value, By, KernelTime)>) -> Store {
        let mut store = Store::default();
        for (pod, by, at) in pods {
            store.insert(parse(pod), by, at, None).unwrap();
        }
        store
    }

    fn memory(store: &Store) -> Arc<ApiLimit> {
        store.limit("u-web", Whose::Container { id: "c1", name: Some("app") }, Resource::Memory).unwrap()
    }

    #[test]
    fn all_amounts_are_kept_as_they_are_written() {
        let store = store([(pod("web", 7, "256Mi"), By::List, AT)]);
        let of = memory(&store);
        assert_eq!(of.spec.limit.as_deref(), Some("256Mi"));
        assert_eq!(of.spec.request.as_deref(), Some("64Mi"));
        assert_eq!((of.allocated.limit.as_deref(), of.allocated.request.as_deref()), (None, Some("64Mi")));
        assert_eq!(of.status.limit.as_deref(), Some("256Mi"));
        assert_eq!(of.status_since, ApiSince { at: AT, or_earlier: true });
        assert_eq!((of.pod.generation, of.pod.observed_generation), (Some(2), Some(2)));
        let whole = store.limit("u-web", Whose::Pod, Resource::Cpu).unwrap();
        assert_eq!((&whole.spec, &whole.status), (&Default::default(), &Default::default()), "absent, not 0");
    }

    #[test]
    fn a_status_is_so_since_it_was_received_first() {
        let mut changed = pod("web", 9, "128Mi");
        let store = store([
            (pod("web", 7, "256Mi"), By::List, AT),
            (pod("web", 8, "256Mi"), By::Watch, KernelTime(150)),
        ]);
        assert_eq!(memory(&store).status_since, ApiSince { at: AT, or_earlier: true });
        let mut store = store;
        store.insert(parse(changed.clone()), By::Watch, LATER, None).unwrap();
        assert_eq!(memory(&store).status_since, ApiSince { at: LATER, or_earlier: false });
        // A later list knows what an earlier one has said.
        let mut next = Store::default();
        next.insert(parse(changed.clone()), By::List, KernelTime(300), Some(&store)).unwrap();
        assert_eq!(memory(&next).status_since, ApiSince { at: LATER, or_earlier: false });
        // Another run of the container begins anew.
        changed["metadata"]["resourceVersion"] = json!("10");
        changed["status"]["containerStatuses"][0]["containerID"] = json!("containerd://c2");
        next.insert(parse(changed), By::Watch, KernelTime(400), None).unwrap();
        let of = |id| next.limit("u-web", Whose::Container { id, name: Some("app") }, Resource::Memory);
        assert_eq!(of("c2").unwrap().status_since.at, KernelTime(400));
        assert_eq!(of("c1"), Err(ApiMissing::OtherRun));
    }

    #[test]
    fn a_resize_is_completed_when_its_condition_goes_and_until_the_spec_changes() {
        let mut under_way = pod("web", 8, "256Mi");
        under_way["status"]["conditions"] = json!([
            { "type": "Ready", "status": "False" },
            { "type": "PodResizeInProgress", "status": "True", "reason": "Error", "message": "no\u{7}",
              "lastTransitionTime": "2026-01-02T03:04:05Z", "observedGeneration": 2 },
            { "type": "PodResizePending", "status": "False" },
        ]);
        let mut store = store([(pod("web", 7, "256Mi"), By::Watch, AT), (under_way, By::Watch, AT)]);
        let of = memory(&store);
        let [condition] = &*of.pod.conditions else { panic!("{:?}", of.pod.conditions) };
        assert_eq!(condition.kind, ResizeConditionKind::InProgress);
        assert_eq!(
            (condition.reason.as_deref(), condition.message.as_deref()),
            (Some("Error"), Some("no\\x07"))
        );
        assert_eq!(condition.since, Some(1_767_323_045));
        assert_eq!(of.pod.resized, None);
        for version in [9, 10] {
            let at = KernelTime(LATER.0 + version - 9);
            store.insert(parse(pod("web", version, "256Mi")), By::Watch, at, None).unwrap();
            assert_eq!(memory(&store).pod.resized, Some(LATER));
        }
        let mut next = pod("web", 11, "256Mi");
        next["metadata"]["generation"] = json!(3);
        store.insert(parse(next), By::Watch, KernelTime(300), None).unwrap();
        assert_eq!(memory(&store).pod.resized, None);
    }

    #[test]
    fn a_version_is_confirmed_by_reading_it_and_no_other_is() {
        let mut store = store([(pod("web", 7, "256Mi"), By::Watch, AT)]);
        assert_eq!(memory(&store).pod.confirmed, None);
        store.insert(parse(pod("web", 7, "256Mi")), By::Read(KernelTime(150)), LATER, None).unwrap();
        store.insert(parse(pod("web", 7, "256Mi")), By::Watch, KernelTime(300), None).unwrap();
        let of = memory(&store);
        assert_eq!((of.pod.confirmed, of.pod.received), (Some(KernelTime(150)), AT));
        // The watch lags behind.
        store.insert(parse(pod("web", 6, "128Mi")), By::Watch, KernelTime(300), None).unwrap();
        assert_eq!(memory(&store).status.limit.as_deref(), Some("256Mi"));
        store.insert(parse(pod("web", 8, "256Mi")), By::Watch, KernelTime(300), None).unwrap();
        assert_eq!(memory(&store).pod.confirmed, None);
    }

    #[test]
    fn a_list_of_an_older_state_has_all_its_pods() {
        let mut store = store([(pod("web", 7, "256Mi"), By::Watch, AT)]);
        store.insert(parse(pod("web", 9, "128Mi")), By::Read(AT), AT, None).unwrap();
        // From the cache of an API server that lags behind, or after etcd was restored.
        let mut next = Store::default();
        next.insert(parse(pod("web", 8, "256Mi")), By::List, LATER, Some(&store)).unwrap();
        let of = memory(&next);
        assert_eq!((of.status.limit.as_deref(), of.pod.confirmed), (Some("256Mi"), None));
        assert_eq!(of.status_since, ApiSince { at: LATER, or_earlier: true });
    }

    #[test]
    fn the_store_is_bounded_and_what_is_missing_is_said() {
        let mut store = Store::default();
        let of = |store: &Store, uid: &str| store.limit(uid, Whose::Pod, Resource::Memory).map(drop);
        for number in 0..PODS_MAX {
            store.insert(parse(pod(&format!("p{number}"), 1, "1Mi")), By::List, AT, None).unwrap();
        }
        assert_eq!(of(&store, "u-other"), Err(ApiMissing::Pod));
        assert_eq!(store.insert(parse(pod("other", 1, "1Mi")), By::List, AT, None), Err(Full));
        assert_eq!(of(&store, "u-other"), Err(ApiMissing::StoreFull));
        store.insert(parse(pod("p1", 2, "2Mi")), By::Watch, AT, None).unwrap();
        (0..PODS_MAX).for_each(|number| store.remove(&format!("u-p{number}")));
        assert_eq!((store.len(), store.bytes()), (0, 0));

        let giant = |name: &str| {
            let containers: Vec<_> =
                (0..256).map(|number| json!({ "name": format!("{}{number}", "n".repeat(200)) })).collect();
            let mut pod = pod(name, 1, "1Mi");
            pod["spec"]["containers"] = json!(containers);
            parse(pod)
        };
        let refused = (0..PODS_MAX)
            .find(|number| store.insert(giant(&format!("g{number}")), By::List, AT, None).is_err());
        assert!(refused.is_some() && store.bytes() <= BYTES_MAX, "{refused:?}");
    }

    #[test]
    fn a_static_pod_is_found_by_its_mirror_and_no_other_pod_takes_its_place() {
        let mirror = |name: &str, of: &str, limit: &str| {
            let mut pod = pod(name, 7, limit);
            pod["metadata"]["annotations"] =
                json!({ "kubernetes.io/config.mirror": of, "kubernetes.io/config.source": "file" });
            pod
        };
        let web = pod("web", 7, "256Mi");
        let mut store = store([
            (web, By::List, AT),
            (mirror("etcd", "0123abcd", "64Mi"), By::List, AT),
            (mirror("forged", "0123abcd", "1Gi"), By::Watch, AT),
            (mirror("other", "u-web", "1Gi"), By::Watch, AT),
            (mirror("odd", "../..", "1Gi"), By::Watch, AT),
        ]);
        let of = |store: &Store, uid: &str| {
            let whose = Whose::Container { id: "c1", name: Some("app") };
            store.limit(uid, whose, Resource::Memory).map(|of| of.status.limit.as_deref().unwrap().to_owned())
        };
        assert_eq!(of(&store, "0123abcd").as_deref(), Ok("64Mi"));
        assert_eq!(of(&store, "u-etcd").as_deref(), Ok("64Mi"));
        assert_eq!(of(&store, "u-web").as_deref(), Ok("256Mi"), "a pod's own UID comes first");
        assert_eq!(of(&store, "../.."), Err(ApiMissing::Pod));
        let (_, name, _) = store.names("0123abcd").unwrap();
        assert_eq!(&*name, "etcd");
        store.remove("u-etcd");
        assert_eq!(of(&store, "0123abcd"), Err(ApiMissing::Pod));
        // The kubelet makes it again.
        store.insert(parse(mirror("etcd", "0123abcd", "128Mi")), By::Watch, LATER, None).unwrap();
        assert_eq!(of(&store, "0123abcd").as_deref(), Ok("128Mi"));
        store.remove("0123abcd");
        assert_eq!((of(&store, "u-etcd"), store.len()), (Err(ApiMissing::Pod), 4));
    }

    #[test]
    fn hostile_pods_are_refused_or_harmless() {
        let wrong = |change: fn(&mut serde_json::Value)| {
            let mut pod = pod("web", 7, "256Mi");
            change(&mut pod);
            serde_json::from_value::<Pod>(pod)
        };
        for change in [
            (|pod| pod["metadata"]["uid"] = json!("")) as fn(&mut serde_json::Value),
            |pod| pod["metadata"]["name"] = json!("../../secrets"),
            |pod| pod["metadata"]["namespace"] = json!("x".repeat(300)),
            |pod| pod["metadata"]["resourceVersion"] = json!("\u{1b}[31m"),
            |pod| pod["spec"]["containers"][0]["resources"] = json!("many"),
            |pod| pod["spec"]["containers"] = json!(vec![json!({ "name": "a" }); 10_000]),
        ] {
            assert!(wrong(change).is_err());
        }
        let long = wrong(|pod| {
            pod["spec"]["containers"][0]["resources"]["limits"]["memory"] = json!("1".repeat(1 << 20));
            pod["status"]["containerStatuses"][0]["resources"]["limits"]["memory"] = json!("\u{202e}1Mi");
            pod["status"]["conditions"] = json!(vec![
                json!({ "type": "PodResizePending", "status": "True", "message": "m".repeat(1 << 20),
                        "lastTransitionTime": "yesterday" });
                1000
            ]);
        });
        let pod = long.unwrap();
        assert!(pod.size() < 8192, "{}", pod.size());
        let of = &pod.containers[0].amounts.memory;
        assert!(of.spec.limit.as_ref().unwrap().ends_with('…'), "no quantity any more");
        assert_eq!(of.status.limit.as_deref(), Some("\\u{202e}1Mi"));
        assert_eq!(pod.conditions[0].since, None);
    }
}
