//! A node of a cluster with `kwitness guard --kubernetes`.
//!
//! A hold lasts ten seconds at most, in which an emulated machine gets little done.

use std::ops::Deref;

use anyhow::{Context as _, Result};
use serde_json::{Map, Value};

use crate::cluster_node::ClusterNode;
pub use crate::cluster_node::Terminated;
use crate::environment::Environment;
use crate::guard::Guard;
use crate::kubelet::NODE;

/// The node with its guard. What every node of a cluster can do, it can.
#[derive(Debug)]
pub struct GuardedNode {
    pub guard: Guard,
    cluster: ClusterNode,
}

impl Deref for GuardedNode {
    type Target = ClusterNode;

    fn deref(&self) -> &ClusterNode {
        &self.cluster
    }
}

impl GuardedNode {
    /// Starts everything, and waits until the node is registered.
    pub async fn start(environment: &Environment, policy: &str) -> Result<Self> {
        Self::start_with(environment, policy, Map::new()).await
    }

    /// The same, with further fields of the kubelet's configuration.
    pub async fn start_with(
        environment: &Environment,
        policy: &str,
        settings: Map<String, Value>,
    ) -> Result<Self> {
        let cluster = ClusterNode::start(environment, settings).await?;
        let kubeconfig = cluster.api.verifying_kubeconfig()?;
        let guard =
            Guard::start_on_kubernetes(environment, &cluster.agent, policy, &kubeconfig, NODE).await?;
        Ok(Self { guard, cluster })
    }

    pub fn explain<T>(&self, done: Result<T>) -> Result<T> {
        self.cluster.explain(done.with_context(|| self.guard.log_tail()))
    }

    pub async fn stop(self) -> Result<()> {
        let guarded = self.guard.stop();
        self.cluster.stop().await?;
        guarded
    }
}
