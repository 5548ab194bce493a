//! The verdict matrix: pods of all kinds as data, the kubelets that run them, and the verdicts that they must get.
//!
//! Owns the tables and the rows of `docs/verdicts.md`. Never runs anything: that is the target `matrix`.

mod kubelets;
mod pods;

use kwitness_api::proto::VerdictKind;
use serde_json::{Map, Value, json};

use crate::kubelet;

pub use kubelets::{KUBELETS, KubeletVariant, Origin};

/// Set of a container's or a pod's resources: "cpu=1 memory=64Mi".
type Quantities = &'static str;

/// A container of a pod: its name, limits and requests.
type Container = (&'static str, Quantities, Quantities);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Ends before the next container starts.
    Init,
    /// An init container with `restartPolicy: Always`.
    Sidecar,
    App,
    /// It ends at once, and is not restarted.
    Ended,
}

#[derive(Clone, Copy, Debug)]
struct Exception {
    /// The container; "": the pod.
    whose: &'static str,
    file: &'static str,
    verdict: VerdictKind,
    reason: &'static str,
}

#[derive(Clone, Debug)]
pub struct Spec {
    /// Its name, which says what is special.
    pub name: &'static str,
    /// The UID of the manifest; none: the kubelet gives it that of a static pod, by which a changed pod is another one.
    uid: Option<String>,
    /// An ephemeral container is added once the others run.
    pub ephemeral: bool,
    containers: Vec<(Kind, Container)>,
    pod: Option<(Quantities, Quantities)>,
    /// Its limits cannot be doubled.
    fixed: bool,
    /// See [`KubeletVariant::tiny`].
    tiny: &'static [Quantities],
    fields: Map<String, Value>,
    exceptions: Vec<Exception>,
}

impl Spec {
    fn new(name: &'static str, containers: &[Container]) -> Self {
        Self {
            name,
            uid: None,
            ephemeral: false,
            containers: containers.iter().map(|of| (Kind::App, *of)).collect(),
            pod: None,
            fixed: false,
            tiny: &[],
            fields: Map::new(),
            exceptions: Vec::new(),
        }
    }

    fn one(name: &'static str, limits: Quantities, requests: Quantities) -> Self {
        Self::new(name, &[("app", limits, requests)])
    }

    /// Before its other containers, and after the init containers that were added already.
    fn before(mut self, kind: Kind, container: Container) -> Self {
        let at = self.containers.iter().take_while(|(kind, _)| kind.is_init()).count();
        self.containers.insert(at, (kind, container));
        self
    }

    fn init(self, container: Container) -> Self {
        self.before(Kind::Init, container)
    }

    fn sidecar(self, container: Container) -> Self {
        self.before(Kind::Sidecar, container)
    }

    fn ended(mut self, container: Container) -> Self {
        self.containers.push((Kind::Ended, container));
        self.field("restartPolicy", "Never".into())
    }

    fn pod(self, limits: Quantities, requests: Quantities) -> Self {
        Self { pod: Some((limits, requests)), ..self }
    }

    fn field(mut self, name: &str, value: Value) -> Self {
        self.fields.insert(name.to_owned(), value);
        self
    }

    fn fixed(self) -> Self {
        Self { fixed: true, ..self }
    }

    /// Another verdict is right on a file of a container ("": of the pod), for that reason.
    fn expect(
        mut self,
        whose: &'static str,
        file: &'static str,
        verdict: VerdictKind,
        reason: &'static str,
    ) -> Self {
        self.exceptions.push(Exception { whose, file, verdict, reason });
        self
    }

    /// The verdict on a file of a container ("": of the pod), and part of its reason.
    pub fn expected(&self, whose: &str, file: &str) -> (VerdictKind, &'static str) {
        let exception = self.exceptions.iter().find(|of| of.whose == whose && of.file == file);
        exception.map_or((VerdictKind::InForce, ""), |of| (of.verdict, of.reason))
    }

    /// The containers that run in the end, but for an ephemeral one.
    pub fn running(&self) -> impl Iterator<Item = &'static str> {
        self.containers.iter().filter(|(kind, _)| kind.stays()).map(|(_, of)| of.0)
    }

    /// The pod as a manifest, with all limits that can be resized so many times what they are.
    pub fn manifest(&self, times: u64) -> Value {
        let container = |(kind, (name, limits, requests)): &(Kind, Container)| {
            let command: &[&str] = if kind.stays() { &["/bin/sleep", "100000"] } else { &["/bin/true"] };
            let mut container = kubelet::container(name, command);
            container["resources"] = resources(limits, requests, if kind.stays() { times } else { 1 });
            if *kind == Kind::Sidecar {
                container["restartPolicy"] = "Always".into();
            }
            container
        };
        let (init, others): (Vec<_>, Vec<_>) = self.containers.iter().partition(|(kind, _)| kind.is_init());
        let mut pod = kubelet::pod(self.name, &others.into_iter().map(container).collect::<Vec<_>>());
        let spec = &mut pod["spec"];
        spec["initContainers"] = init.into_iter().map(container).collect();
        spec["terminationGracePeriodSeconds"] = 0.into();
        if let Some((limits, requests)) = self.pod {
            spec["resources"] = resources(limits, requests, times);
        }
        for (name, value) in &self.fields {
            spec[name] = value.clone();
        }
        if let Some(uid) = &self.uid {
            pod["metadata"]["uid"] = uid.as_str().into();
        }
        pod
    }

    /// Whether a resize of it means something.
    pub fn can_resize(&self) -> bool {
        !self.fixed && self.manifest(1) != self.manifest(2)
    }

    /// Whether a resize changes that file of a container: what another limit of the pod's decides is not said.
    pub fn changes(&self, whose: &str, file: &str) -> bool {
        let Some(resource) = file.strip_suffix(".max") else { return false };
        let Some((_, (_, limits, _))) = self.containers.iter().find(|(_, (name, ..))| *name == whose) else {
            return false;
        };
        let limit = pairs(limits).find(|(name, _)| *name == resource);
        limit.is_some_and(|(_, limit)| !self.tiny.contains(&limit))
    }

    /// The beginning of its row in the documentation.
    pub fn row(&self, kubelet: &KubeletVariant) -> String {
        let one = |(kind, (name, limits, requests)): &(Kind, Container)| {
            let mark = match kind {
                Kind::Init => " (init)",
                Kind::Sidecar => " (sidecar)",
                Kind::App => "",
                Kind::Ended => " (ended)",
            };
            format!("{name}{mark}: {}", described(limits, requests))
        };
        let pod = self.pod.map(|(limits, requests)| format!("pod: {}", described(limits, requests)));
        let ephemeral = self.ephemeral.then(|| "ephemeral container".to_owned());
        let fields = self.fields.keys().cloned();
        let parts = fields.chain(pod).chain(self.containers.iter().map(one)).chain(ephemeral);
        let resources = parts.collect::<Vec<_>>().join("; ");
        let verdicts = self.exceptions.iter().map(|of| {
            let whose = if of.whose.is_empty() { "pod" } else { of.whose };
            format!("{whose} `{}` {}", of.file, short(of.verdict))
        });
        let mut verdicts = verdicts.collect::<Vec<_>>().join(", ");
        if !kubelet.tracked {
            verdicts = "not judged".to_owned();
        } else if verdicts.is_empty() {
            verdicts = "in force".to_owned();
        }
        format!("| {} | {} | {resources} | {verdicts} |", kubelet.name, self.name)
    }
}

impl Kind {
    fn is_init(self) -> bool {
        matches!(self, Self::Init | Self::Sidecar)
    }

    fn stays(self) -> bool {
        matches!(self, Self::Sidecar | Self::App)
    }
}

/// As `kwitness verify` prints it.
pub fn short(kind: VerdictKind) -> String {
    kind.as_str_name().trim_start_matches("VERDICT_KIND_").to_lowercase().replace('_', " ")
}

fn described(limits: Quantities, requests: Quantities) -> String {
    match (limits, requests) {
        ("", "") => "-".to_owned(),
        (limits, "") => limits.to_owned(),
        ("", requests) => format!("({requests})"),
        (limits, requests) => format!("{limits} ({requests})"),
    }
}

fn pairs(text: Quantities) -> impl Iterator<Item = (&'static str, &'static str)> {
    text.split_whitespace().filter_map(|pair| pair.split_once('='))
}

/// Requests that are not given are the limits.
fn resources(limits: Quantities, requests: Quantities, times: u64) -> Value {
    let limits = multiplied(limits, times);
    let requests = if requests.is_empty() { limits.clone() } else { multiplied(requests, 1) };
    json!({ "limits": limits, "requests": requests })
}

/// Only CPU and memory can be resized.
fn multiplied(text: Quantities, times: u64) -> Map<String, Value> {
    let all = pairs(text).map(|(name, quantity)| {
        if times == 1 || !matches!(name, "cpu" | "memory") {
            return (name.to_owned(), quantity.into());
        }
        let end = quantity.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(quantity.len());
        let (number, suffix) = quantity.split_at(end);
        // The table has whole numbers and binary fractions.
        let number: f64 = format!("0{number}").parse().unwrap_or_default();
        #[expect(clippy::cast_precision_loss, reason = "1 or 2")]
        let product = number * times as f64;
        (name.to_owned(), format!("{product}{suffix}").into())
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn there_are_at_least_sixty_pods_with_names_of_their_own() {
        let mut all = 0;
        for kubelet in &KUBELETS {
            let pods = kubelet.pods().unwrap();
            let names: BTreeSet<_> = pods.iter().map(|pod| pod.name).collect();
            assert_eq!(names.len(), pods.len(), "{}", kubelet.name);
            // Kubernetes takes no other names (RFC 1123), and a kubelet ignores such a file.
            let is_label = |name: &str| {
                name.bytes().all(|byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-'))
                    && !name.starts_with('-')
                    && !name.ends_with('-')
                    && name.len() < 64
            };
            assert_eq!(names.iter().find(|name| !is_label(name)), None);
            all += pods.len();
        }
        assert!(all >= 60, "{all}");
    }

    #[test]
    fn limits_are_multiplied_as_they_are_written() {
        let twice = |text| serde_json::to_string(&multiplied(text, 2)).unwrap();
        assert_eq!(
            twice("cpu=417m memory=129e6 hugepages-2Mi=4Mi"),
            r#"{"cpu":"834m","hugepages-2Mi":"4Mi","memory":"258e6"}"#
        );
        assert_eq!(twice("cpu=.5 memory=.25Gi"), r#"{"cpu":"1","memory":"0.5Gi"}"#);
    }

    /// `cargo xtask verdicts` writes it.
    #[test]
    fn the_documentation_has_every_pod_and_no_other() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/verdicts.md");
        let text = fs::read_to_string(path).unwrap();
        let (_, matrix) = text.split_once("\n## The matrix\n").unwrap();
        let mut documented: Vec<_> = matrix.lines().filter(|line| line.starts_with("| ")).collect();
        // The table's head.
        documented.retain(|line| !line.starts_with("| Kubelet |"));
        let mut missing = Vec::new();
        for kubelet in &KUBELETS {
            for row in kubelet.pods().unwrap().iter().map(|pod| pod.row(kubelet)) {
                match documented.iter().position(|line| line.starts_with(&row)) {
                    Some(found) => drop(documented.remove(found)),
                    None => missing.push(format!("{row} not run | not run |")),
                }
            }
        }
        assert!(missing.is_empty(), "not documented:\n{}", missing.join("\n"));
        assert!(documented.is_empty(), "no such pods:\n{}", documented.join("\n"));
    }
}
