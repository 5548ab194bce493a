//! An event as an OpenTelemetry log record.
//!
//! The resource is what the event concerns: the node, the pod, the container, by the semantic conventions for `k8s`, `container` and
//! `process`. What these have no name for is named `kwitness.*`; docs/export.md lists all names. The timestamp is the event's own, which
//! is the kernel's wherever a hook saw it, and the body is the sentence that `kwitness events` prints.
//!
//! Pure. Never sends anything, and never decides which events are sent: all are.

mod attributes;
mod gaps;
mod kinds;
#[cfg(test)]
mod tests;

use kwitness_api::proto;
use kwitness_api::proto::event::Kind;
use kwitness_api::text::escape;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use crate::queue::Record;
use attributes::Attributes;
pub use attributes::any_text;

/// The node that the events are of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Node {
    /// `k8s.node.name`.
    pub name: String,
    /// `k8s.cluster.name`, if it is known.
    pub cluster: Option<String>,
}

/// Makes records.
#[derive(Clone, Debug)]
pub struct Mapping {
    /// Whose events.
    pub node: Node,
    /// What an event says, in a sentence.
    pub sentence: fn(&proto::Event) -> String,
}

impl Mapping {
    /// The resource that is the node.
    pub fn node_resource(&self) -> Resource {
        self.resource(None, None)
    }

    /// The resource that is the daemon on the node: Prometheus' `job` and `instance` follow from the service's.
    pub fn agent_resource(&self) -> Resource {
        let mut attributes = Attributes::default();
        attributes.text("service.name", "kwitness");
        attributes.text("service.instance.id", &self.node.name);
        let mut resource = self.node_resource();
        resource.attributes.extend(attributes.into_inner());
        resource
    }

    /// The record of an event that was received at that time, in nanoseconds since the Unix epoch.
    pub fn record(&self, event: &proto::Event, observed: u64) -> Record {
        let mut attributes = Attributes::default();
        if let Some(position) = &event.position {
            attributes.text("log.record.uid", &unique(event, position));
            attributes.text("kwitness.epoch", &position.epoch);
            attributes.number("kwitness.seq", position.seq);
        }
        if event.kernel_time != 0 {
            attributes.number("kwitness.kernel_time", event.kernel_time);
        }
        attributes.word("kwitness.basis", event.basis().as_str_name(), "BASIS_");
        kinds::add(event, &mut attributes);
        let log = LogRecord {
            time_unix_nano: event.time.map_or(0, |time| u64::try_from(time.to_unix_nanos()).unwrap_or(0)),
            observed_time_unix_nano: observed,
            severity_number: severity(event).into(),
            body: Some(any_text(&escape(&(self.sentence)(event)))),
            attributes: attributes.into_inner(),
            event_name: kinds::name(event.kind.as_ref()).to_owned(),
            ..Default::default()
        };
        let resource = self.resource(event.container.as_ref(), pod(event));
        Record { begins: first_missed(event), ..record(resource, log, event.position.clone()) }
    }

    fn resource(&self, container: Option<&proto::Container>, pod: Option<&proto::Pod>) -> Resource {
        let mut attributes = Attributes::default();
        attributes.known_text("k8s.node.name", Some(self.node.name.as_str()).filter(|name| !name.is_empty()));
        attributes.known_text("k8s.cluster.name", self.node.cluster.as_deref());
        if let Some(pod) = pod {
            attributes.known_text("k8s.namespace.name", pod.namespace.as_deref());
            attributes.text("k8s.pod.uid", &pod.uid);
            attributes.known_text("k8s.pod.name", pod.name.as_deref());
        }
        if let Some(container) = container {
            attributes.known_text("k8s.container.name", container.name.as_deref());
            attributes.text("container.id", &container.id);
            attributes.word("container.runtime.name", container.runtime().as_str_name(), "RUNTIME_");
            if let Some(image) = &container.image {
                self::image(image, &mut attributes);
            }
            attributes.word("kwitness.container.type", container.r#type().as_str_name(), "CONTAINER_TYPE_");
        }
        Resource { attributes: attributes.into_inner(), ..Default::default() }
    }
}

fn record(resource: Resource, log: LogRecord, position: Option<proto::Position>) -> Record {
    let bytes = resource.encoded_len() + log.encoded_len();
    Record { resource, log, position, begins: None, bytes }
}

/// What identifies the record among all of the node. A gap that a watcher alone receives stands where an event would.
fn unique(event: &proto::Event, position: &proto::Position) -> String {
    format!("{}/{}{}", position.epoch, position.seq, if is_of_watcher(event) { "/gap" } else { "" })
}

/// Whether it stands for events that this watcher did not receive.
pub fn is_of_watcher(event: &proto::Event) -> bool {
    matches!(&event.kind, Some(Kind::Gap(gap))
        if matches!(gap.cause(), proto::GapCause::WatcherLagged | proto::GapCause::ReplayExpired))
}

/// The number of the first event that this watcher did not receive, if it stands for such events.
pub fn first_missed(event: &proto::Event) -> Option<u64> {
    match &event.kind {
        Some(Kind::Gap(gap)) if is_of_watcher(event) => gap.first_seq,
        _ => None,
    }
}

/// The pod of a container, or of a cgroup that is no container's.
pub fn pod(event: &proto::Event) -> Option<&proto::Pod> {
    let cgroup = match &event.kind {
        Some(Kind::LimitChanged(changed)) => changed.cgroup.as_ref(),
        Some(Kind::Verdict(verdict)) => verdict.cgroup.as_ref(),
        Some(Kind::Pressure(pressure)) => pressure.cgroup.as_ref(),
        _ => None,
    };
    let of_container = event.container.as_ref().and_then(|container| container.pod.as_ref());
    of_container.or_else(|| cgroup.and_then(|cgroup| cgroup.pod.as_ref()))
}

/// `docker.io/library/nginx:1.29@sha256:…` in its parts.
fn image(image: &str, attributes: &mut Attributes) {
    if image.starts_with("sha256:") {
        return attributes.text("container.image.id", image);
    }
    let (named, digest) = match image.split_once('@') {
        Some((named, digest)) => (named, Some(digest)),
        None => (image, None),
    };
    // A colon before the last slash is a registry's port.
    let (name, tag) = match named.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (named, None),
    };
    attributes.text("container.image.name", name);
    attributes.texts("container.image.tags", &tag.map(str::to_owned).into_iter().collect::<Vec<_>>());
    let digest = digest.map(|digest| format!("{name}@{digest}"));
    attributes.texts("container.image.repo_digests", &digest.into_iter().collect::<Vec<_>>());
}

fn severity(event: &proto::Event) -> SeverityNumber {
    use proto::VerdictKind;
    match &event.kind {
        Some(Kind::OomKill(_) | Kind::Stopped(proto::Stopped { main_oom_killed: true, .. })) => {
            SeverityNumber::Error
        }
        Some(Kind::Verdict(verdict)) => match verdict.verdict() {
            VerdictKind::Unspecified | VerdictKind::InForce | VerdictKind::Pending | VerdictKind::Unknown => {
                SeverityNumber::Info
            }
            _ => SeverityNumber::Warn,
        },
        Some(Kind::LimitChanged(changed))
            if changed.write.as_ref().is_some_and(|write| write.errno.is_some()) =>
        {
            SeverityNumber::Warn
        }
        Some(Kind::Pressure(pressure)) if pressure.direction() == proto::PressureDirection::Up => {
            SeverityNumber::Warn
        }
        Some(Kind::Gap(_) | Kind::GuardRefused(_)) => SeverityNumber::Warn,
        Some(Kind::Exec(_) | Kind::Exited(_) | Kind::Updated(_)) => SeverityNumber::Debug,
        _ => SeverityNumber::Info,
    }
}
