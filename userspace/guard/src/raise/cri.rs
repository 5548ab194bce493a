//! A raise by the container runtime: `UpdateContainerResources`, which sets the container's own limit, and no other.
//!
//! For nodes without a kubelet. The pod's cgroup is the kubelet's, and stays as it is: where its limit is the lower one,
//! the daemon's verification says `SHADOWED` and the raise counts as refused. A kubelet that runs the pod sees a limit that it
//! has not set, and sets its own again at its next look.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_api::transport::unix_endpoint;
use kwitness_cri::runtime::{LinuxContainerResources, UpdateContainerResourcesRequest};
use kwitness_cri::{CANDIDATES, Failure, find_socket};
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use crate::plan::{Change, Refusal};

/// The one mutating call of the CRI that the guard makes. It is named here and nowhere else, so that no other program of
/// kwitness can make it.
const UPDATE: &str = "/runtime.v1.RuntimeService/UpdateContainerResources";
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// After this long an answer is no longer waited for; the hold has ended long before. Whether the limit is still going to
/// change is not known then, so it is never raised again.
const RAISE_LIMIT: Duration = Duration::from_secs(30);

/// A connection to a container runtime.
#[derive(Clone, Debug)]
pub struct Cri(Channel);

impl Cri {
    /// Connects to the runtime at that socket, or to the first that is there.
    ///
    /// # Errors
    /// None answers.
    pub async fn connect(socket: Option<&Path>) -> anyhow::Result<Self> {
        let socket = socket.or(find_socket()).with_context(|| {
            format!(
                "no container runtime found at {}; name its socket with --runtime-endpoint",
                CANDIDATES.join(", ")
            )
        })?;
        let connect = async {
            Ok::<_, anyhow::Error>(unix_endpoint(socket)?.connect_timeout(CONNECT_LIMIT).connect().await?)
        };
        Ok(Self(connect.await.with_context(|| format!("cannot connect to {}", socket.display()))?))
    }

    /// Sets a container's limit; the answer is that the runtime accepted it, not that it is in force.
    ///
    /// # Errors
    /// The runtime's words, or that it gave no answer.
    pub async fn set(&self, container_id: &str, change: Change) -> Result<(), Refusal> {
        let answer = tokio::time::timeout(RAISE_LIMIT, self.update(container_id, change)).await;
        answer.unwrap_or(Err(Refusal::Unanswered))
    }

    async fn update(&self, container_id: &str, change: Change) -> Result<(), Refusal> {
        let failed = Refusal::Runtime;
        let memory_limit_in_bytes = i64::try_from(change.to.0)
            .map_err(|_| failed(format!("{} does not fit into the CRI's message", change.to)))?;
        // What is 0 stays as it is.
        let linux = LinuxContainerResources { memory_limit_in_bytes, ..Default::default() };
        let request =
            UpdateContainerResourcesRequest { container_id: container_id.to_owned(), linux: Some(linux) };
        let mut grpc = tonic::client::Grpc::new(self.0.clone());
        grpc.ready().await.map_err(|error| failed(error.to_string()))?;
        let codec = tonic_prost::ProstCodec::<UpdateContainerResourcesRequest, ()>::default();
        match grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(UPDATE), codec).await {
            Ok(_) => Ok(()),
            Err(status) if Failure::of(&status, container_id) == Failure::Gone => Err(Refusal::Gone),
            Err(status) => Err(failed(format!("{}: {}", status.code().description(), status.message()))),
        }
    }
}
