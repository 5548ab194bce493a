//! Events, and containers as a snapshot has them, to test with.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use kwitness_core::model::{
    Basis, CgroupId, ContainerId, ContainerState, ContainerType, Event, Gap, GapCause, Kind, PodNames,
    PodRef, PodUid, QosClass, RuntimeFacts, State, Subject,
};
use prost::Message as _;

use super::*;
use crate::clock::Clock;

pub(crate) fn hub(capacity: usize) -> (Arc<Hub>, Writer) {
    Hub::new(Epoch("epoch".into()), Capacity { items: NonZeroUsize::new(capacity).unwrap(), bytes: 64 << 20 })
}

pub(crate) fn clock() -> Clock {
    Clock::read()
}

pub(crate) fn facts(namespace: &str, pod: &str, name: &str) -> RuntimeFacts {
    RuntimeFacts {
        runtime: None,
        created_at: None,
        container_type: ContainerType::App,
        name: Some(name.into()),
        pod_name: Some(pod.into()),
        pod_namespace: Some(namespace.into()),
        pod_uid: None,
        image: None,
        labels: BTreeMap::from([("app".to_owned(), pod.to_owned())]),
    }
}

pub(crate) fn pod(uid: &str, name: Option<&str>) -> PodNames {
    let pod = PodRef { uid: PodUid(uid.into()), qos: QosClass::Burstable };
    PodNames { name: name.map(Into::into), ..PodNames::unnamed(pod) }
}

pub(crate) fn subject(id: u64, facts: Option<RuntimeFacts>) -> Arc<Subject> {
    Arc::new(Subject {
        cgroup_id: CgroupId(id),
        cgroup_path: format!("/kubepods/poduid-{id}/{id:064}").into(),
        container_id: ContainerId(format!("{id:04}{id:060}").into()),
        runtime: None,
        pod: Some(PodRef { uid: PodUid(format!("uid-{id}").into()), qos: QosClass::Burstable }),
        facts: facts.map(Arc::new),
    })
}

/// A container of which no more is known.
pub(crate) fn container(subject: &Arc<Subject>, state: State) -> ContainerState {
    ContainerState {
        subject: Arc::clone(subject),
        state,
        created_at: None,
        started_at: None,
        stopped_at: None,
        main: None,
        program: None,
        main_status: None,
        forks: 0,
        execs: 0,
        exits: 0,
    }
}

fn event(subject: Option<&Arc<Subject>>, kind: Kind) -> Event {
    Event { at: KernelTime(7), basis: Basis::CgroupMkdir, subject: subject.cloned(), kind }
}

pub(crate) fn created(subject: &Arc<Subject>) -> Event {
    event(Some(subject), Kind::Created { actor: None })
}

pub(crate) fn stopped(subject: &Arc<Subject>) -> Event {
    event(Some(subject), Kind::Stopped { main_status: None, never_started: true, main_oom_killed: false })
}

pub(crate) fn updated(subject: &Arc<Subject>) -> Event {
    event(Some(subject), Kind::Updated { fields: vec!["name".to_owned()] })
}

pub(crate) fn gap() -> Event {
    gap_of(None)
}

pub(crate) fn gap_of(subject: Option<&Arc<Subject>>) -> Event {
    let gap = Gap {
        cause: GapCause::RingFull,
        lost: BTreeMap::new(),
        capabilities: Vec::new(),
        from: KernelTime(1),
        to: KernelTime(2),
        path: None,
    };
    event(subject, Kind::Gap(gap))
}

pub(crate) fn decode(batch: Batch) -> Vec<proto::Event> {
    let mut bytes = Vec::new();
    batch.encode(&mut bytes).unwrap();
    proto::WatchResponse::decode(&*bytes).unwrap().events
}

pub(crate) async fn rest(watcher: &mut Watcher) -> Vec<proto::Event> {
    let mut events = decode(watcher.opening());
    while let Some(batch) = watcher.next().await {
        events.extend(decode(batch));
    }
    events
}

pub(crate) fn numbers(events: &[proto::Event]) -> Vec<u64> {
    events.iter().map(|event| event.position.as_ref().unwrap().seq).collect()
}
