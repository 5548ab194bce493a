//! How a limit is raised and given back: through the Kubernetes API, which has the kubelet do it, or by the container runtime
//! itself.
//!
//! Owns the calls and how long they may take. Whether a limit may be raised is for [`crate::plan`] to say, whether it may be given
//! back for [`crate::give_back`], whether it is in force for [`crate::daemon`].

mod cri;
#[cfg(feature = "kubernetes")]
mod kubernetes;
#[cfg(feature = "kubernetes")]
mod resize;

use std::time::Duration;

pub use cri::Cri;
#[cfg(feature = "kubernetes")]
pub use kubernetes::Kubernetes;

use crate::daemon::Container;
use crate::plan::{Change, Refusal};
use crate::policy::Bytes;

/// Who makes a raise.
#[derive(Clone, Debug)]
pub enum Raiser {
    /// The container runtime: for nodes without a kubelet.
    Cri(Cri),
    /// The Kubernetes API: for nodes with one.
    #[cfg(feature = "kubernetes")]
    Kubernetes(Kubernetes),
}

impl Raiser {
    /// Its name in the log.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Cri(_) => "cri",
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(_) => "kubernetes",
        }
    }

    /// Whether the limit of the container's pod is raised with its own: the kubelet's sum of its containers', or the one that the
    /// pod's spec has for the pod itself.
    pub fn raises_pod(&self) -> bool {
        !matches!(self, Self::Cri(_))
    }

    /// Changes a container's limit. The answer is that the change was accepted, not that it is in force. `asked` is the limit that
    /// the guard has requested before, if any; `limit` is how long the Kubernetes API may take.
    ///
    /// # Errors
    /// It was not.
    #[cfg_attr(
        not(feature = "kubernetes"),
        expect(unused_variables, reason = "the CRI has a limit of its own")
    )]
    pub async fn set(
        &self,
        container: &Container,
        change: Change,
        asked: Option<Bytes>,
        limit: Duration,
    ) -> Result<(), Refusal> {
        match self {
            Self::Cri(cri) => cri.set(&container.id, change).await,
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => kubernetes.set(container, change, asked, limit).await,
        }
    }

    /// Waits until it is known whether a change without an answer was accepted.
    pub async fn is_accepted(&self, container: &Container, change: Change) -> bool {
        match self {
            Self::Cri(cri) => cri.is_accepted(container, change).await,
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => kubernetes.is_accepted(container, change).await,
        }
    }

    /// Takes a raise out of the spec again that the kubelet has put off; whether it still had. `limit` is how long that may take.
    ///
    /// # Errors
    /// Why it is still there.
    #[cfg_attr(not(feature = "kubernetes"), expect(unused_variables, reason = "the CRI puts nothing off"))]
    pub async fn take_back(
        &self,
        container: &Container,
        raise: Change,
        limit: Duration,
    ) -> Result<bool, Refusal> {
        match self {
            Self::Cri(_) => Ok(false),
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => kubernetes.take_back(container, raise, limit).await,
        }
    }

    /// Waits until a change that was accepted is refused after all; for ever, if it is not.
    #[cfg_attr(not(feature = "kubernetes"), expect(unused_variables, reason = "the CRI answers once"))]
    pub async fn refused(&self, container: &Container) -> Refusal {
        match self {
            Self::Cri(_) => std::future::pending().await,
            #[cfg(feature = "kubernetes")]
            Self::Kubernetes(kubernetes) => kubernetes.refused(container).await,
        }
    }
}
