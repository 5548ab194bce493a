//! What the guard never holds although a rule selects it: what it depends on itself, and what keeps the node and the cluster going.
//!
//! Pure.

use kwitness_core::model::PodUid;

use crate::daemon::Container;
use crate::policy::Rule;

/// The namespace that a rule must name.
const SYSTEM_NAMESPACE: &str = "kube-system";

/// Why a container that a rule selects is not guarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Protected {
    /// Held, it could not verify a raise, or continue what is held.
    #[error("the daemon or the guard itself runs in it")]
    Needed,
    /// The API server may be one, and the API cannot resize it.
    #[error("it is of a static pod")]
    StaticPod,
    /// Patterns may match more than was meant.
    #[error("it is in {SYSTEM_NAMESPACE}, and its rule does not name that namespace without a *")]
    SystemNamespace,
}

impl Protected {
    /// Its name in the log and in the status.
    pub fn name(self) -> &'static str {
        match self {
            Self::Needed => "needed",
            Self::StaticPod => "staticPod",
            Self::SystemNamespace => "systemNamespace",
        }
    }

    /// Whether a container, or a pod, is protected. `needed` are the cgroups of the processes that the guard depends on.
    pub(crate) fn of<'a>(
        container: &Container,
        rule: &Rule,
        needed: impl IntoIterator<Item = &'a String>,
    ) -> Option<Self> {
        let is_static = container.pod_uid.as_deref().is_some_and(|uid| PodUid(uid.into()).is_static());
        let is_system = container.namespace.as_deref() == Some(SYSTEM_NAMESPACE);
        if needed.into_iter().any(|path| is_in(path, &container.cgroup_path)) {
            Some(Self::Needed)
        } else if is_static {
            Some(Self::StaticPod)
        } else if is_system && !rule.is_for_namespace(SYSTEM_NAMESPACE) {
            Some(Self::SystemNamespace)
        } else {
            None
        }
    }
}

/// Whether a cgroup is that other one, or one below it.
fn is_in(path: &str, other: &str) -> bool {
    let (path, other) = (path.trim_matches('/'), other.trim_matches('/'));
    path.strip_prefix(other).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::tests::rule;
    use crate::policy::{Policy, Selection};

    const POD: &str = "/kubepods/burstable/pod0a1b2c3d-0000-1111-2222-333344445555";

    fn container(namespace: &str, uid: &str) -> Container {
        Container {
            id: "c".to_owned(),
            is_identified: true,
            cgroup_id: 7,
            cgroup_path: format!("{POD}/c"),
            namespace: Some(namespace.to_owned()),
            pod: Some("web".to_owned()),
            pod_uid: Some(uid.to_owned()),
            name: Some("main".to_owned()),
        }
    }

    #[test]
    fn what_the_guard_needs_and_static_pods_are_never_guarded() {
        let uid = "0a1b2c3d-0000-1111-2222-333344445555";
        let of =
            |container: &Container, needed: &str| Protected::of(container, &rule(), [&needed.to_owned()]);
        let app = container("dev", uid);
        for other in ["/", "/system.slice/kwitness.service", POD, "/kubepods/burstable/podx/c"] {
            assert_eq!(of(&app, other), None, "{other}");
        }
        for needed in [format!("{POD}/c"), format!("{POD}/c/init")] {
            assert_eq!(of(&app, &needed), Some(Protected::Needed));
        }
        let pod = Container { cgroup_path: POD.to_owned(), ..app };
        assert_eq!(of(&pod, &format!("{POD}/daemon")), Some(Protected::Needed), "its pod");
        let of_static = container("dev", &uid.replace('-', ""));
        assert_eq!(of(&of_static, "/"), Some(Protected::StaticPod));
    }

    #[test]
    fn the_systems_namespace_must_be_named() {
        let system = container(SYSTEM_NAMESPACE, "0a1b2c3d-0000-1111-2222-333344445555");
        let with = |namespace: &str| {
            let text = format!("[[rule]]\n{namespace}step = \"64Mi\"\nceiling = \"1Gi\"\n");
            let policy = Policy::parse(&text).unwrap();
            let Selection::Rule(rule) = system.select(&policy) else { panic!("{text}") };
            Protected::of(&system, rule, [])
        };
        for pattern in ["", "namespace = \"*\"\n", "namespace = \"kube-*\"\n"] {
            assert_eq!(with(pattern), Some(Protected::SystemNamespace), "{pattern}");
        }
        assert_eq!(with("namespace = \"kube-system\"\n"), None);
    }
}
