//! What the doctor finds of the daemon's watch of the Kubernetes API.

use kwitness_agent::probe::environment::CheckVerdict;
use kwitness_api::proto;
use kwitness_api::proto::KubernetesFailure;

use super::Finding;
use crate::describe::kubernetes::cost;

/// The daemon's watch of the Kubernetes API.
pub(super) fn watch(status: &proto::KubernetesStatus) -> Finding {
    const NAME: &str = "kubernetes";
    let proto::KubernetesStatus { server, node_name, pods, error, not_stored, .. } = status;
    let cost = cost(status);
    match (status.connected, *pods, *not_stored) {
        (true, 0, 0) => Finding::new(
            NAME,
            CheckVerdict::Degraded,
            format!("{server} has no pod of the node \"{node_name}\""),
            "set node.name to the node's name in the API",
        ),
        (true, pods, 0) => Finding::good(NAME, format!("watching {pods} pods at {server}: {cost}")),
        (true, pods, count) => Finding::new(
            NAME,
            CheckVerdict::Degraded,
            format!("watching {pods} pods at {server}; {count} were not stored: {cost}"),
            "see kubernetes_pods_refused and kubernetes_objects_malformed in `kwitness status -o wide`",
        ),
        (false, ..) if error.is_empty() => Finding::good(NAME, "the daemon is connecting"),
        (false, ..) => Finding::new(NAME, CheckVerdict::Degraded, error.as_str(), remedy(status.failure())),
    }
}

/// What to do about a failure of the watch.
fn remedy(failure: KubernetesFailure) -> &'static str {
    match failure {
        KubernetesFailure::Configuration => {
            "name a kubeconfig with kubernetes.kubeconfig, or mount a service account's token"
        }
        KubernetesFailure::Unauthorized => "renew the token or the client certificate",
        KubernetesFailure::Forbidden => {
            "allow get, list and watch of pods: the chart does with kubernetes.enabled"
        }
        KubernetesFailure::CertificateExpired => {
            "renew the certificate that has expired, and check the clocks"
        }
        KubernetesFailure::Tls => "check certificate-authority and server of the kubeconfig",
        KubernetesFailure::Dns => "check the server's name in the kubeconfig, and the node's resolver",
        KubernetesFailure::Unreachable | KubernetesFailure::Timeout => {
            "check that the API server runs and that the network allows it (networkPolicy of the chart)"
        }
        KubernetesFailure::ResourceExpired => "wait: the pods are being listed again",
        KubernetesFailure::TooLarge => "report it: a node has fewer pods than that",
        KubernetesFailure::Malformed | KubernetesFailure::Server | KubernetesFailure::Unspecified => {
            "see the API server's log"
        }
    }
}
