//! Some of the API server's pods, as it can list them. Owns what a list, a watch and an error have in common.

use kube::api::ListParams;

use super::failure::Request;

/// Some of the API server's pods: those with a label, in a namespace or in all.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scope {
    pub namespace: Option<String>,
    /// As the API server takes it; empty: all.
    pub selector: String,
    /// The workload (`deploy/web`) whose pods these are.
    pub workload: Option<String>,
}

impl Scope {
    /// Pods that are no workload's.
    pub const fn new(namespace: Option<String>, selector: String) -> Self {
        Self { namespace, selector, workload: None }
    }

    /// These pods, in a list.
    pub fn list_params(&self) -> ListParams {
        ListParams::default().labels(&self.selector)
    }

    /// A request for these pods.
    pub fn request(&self, verb: &'static str) -> Request<'_> {
        Request { verb, resource: "pods", namespace: self.namespace.as_deref() }
    }
}
