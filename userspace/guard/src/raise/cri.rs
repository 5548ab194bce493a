//! A raise by the container runtime: `UpdateContainerResources`, which sets the container's own limit, and no other.
//!
//! For nodes without a kubelet. The pod's cgroup is the kubelet's, and stays as it is: where its limit is the lower one,
//! the daemon's verification says `SHADOWED` and the raise counts as refused. A kubelet that runs the pod sees a limit that it
//! has not set, and sets its own again at its next look.

use std::io;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_api::causes;
use kwitness_api::transport::unix_endpoint;
use kwitness_cri::runtime::{LinuxContainerResources, UpdateContainerResourcesRequest};
use kwitness_cri::{CANDIDATES, Failure, find_socket};
use tokio::time::Instant;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use crate::cgroup::Cgroup;
use crate::daemon::Container;
use crate::plan::{Change, Refusal};

/// The one mutating call of the CRI that the guard makes. It is named here and nowhere else, so that no other program of
/// kwitness can make it.
const UPDATE: &str = "/runtime.v1.RuntimeService/UpdateContainerResources";
const CONNECT_LIMIT: Duration = Duration::from_secs(5);
/// After this long an answer is no longer waited for; the hold has ended long before. Whether the limit is still going to
/// change is not known then, so it is never raised again.
const RAISE_LIMIT: Duration = Duration::from_secs(30);
/// Between two looks at a limit whose change the runtime has not answered.
const LOOK: Duration = Duration::from_millis(250);

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

    /// Waits until the kernel has a change whose answer was lost with the connection; whether it has. After `RAISE_LIMIT` the runtime
    /// is not at it any more: its end has ended the call.
    pub async fn is_accepted(&self, container: &Container, change: Change) -> bool {
        is_made(|| Cgroup::find(&container.cgroup_path, container.cgroup_id), change).await
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
            Err(status) => {
                let why = format!("{}: {}", status.code().description(), status.message());
                let is_sent = !causes(&status).any(|cause| cause.is::<tonic::ConnectError>());
                Err(match Failure::of(&status, container_id) {
                    Failure::Gone => Refusal::Gone,
                    Failure::Unanswered if is_sent => Refusal::Lost(why),
                    Failure::Unanswered | Failure::Refused => failed(why),
                })
            }
        }
    }
}

async fn is_made(find: impl Fn() -> io::Result<Option<Cgroup>>, change: Change) -> bool {
    let (end, page) = (Instant::now() + RAISE_LIMIT, procfs::page_size());
    loop {
        let limit = match find().and_then(|cgroup| cgroup.map(|cgroup| cgroup.limit()).transpose()) {
            Ok(None) => return false,
            Ok(Some(limit)) => limit,
            Err(_) => None,
        };
        let rest = limit.and_then(|limit| change.to.0.checked_sub(limit.0));
        if rest.is_some_and(|rest| rest < page) {
            return true;
        }
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(LOOK).await;
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt as _;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::UnixListener;

    use super::*;
    use crate::policy::Bytes;

    const ID: &str = "the-container";
    const CHANGE: Change = Change { from: Bytes(64 << 20), to: Bytes(128 << 20) };

    /// A runtime that ends after it has read the request.
    #[tokio::test]
    async fn a_change_whose_answer_is_lost_is_not_one_that_was_refused() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("runtime.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let runtime = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut seen = Vec::new();
            while !seen.windows(ID.len()).any(|part| part == ID.as_bytes()) {
                assert_ne!(stream.read_buf(&mut seen).await.unwrap(), 0);
            }
        };
        let cri = async {
            let cri = Cri::connect(Some(&socket)).await.unwrap();
            let lost = cri.set(ID, CHANGE).await.unwrap_err();
            assert!(matches!(lost, Refusal::Lost(_)) && lost.is_open(), "{lost:?}");
            cri
        };
        let (cri, ()) = tokio::join!(cri, runtime);
        drop(listener);
        // Its end may be seen by a request that is not on its way yet.
        let away = async {
            loop {
                match cri.set(ID, CHANGE).await.unwrap_err() {
                    Refusal::Lost(_) => tokio::task::yield_now().await,
                    away => break away,
                }
            }
        };
        let away = tokio::time::timeout(RAISE_LIMIT, away).await.unwrap();
        assert!(matches!(away, Refusal::Runtime(_)) && !away.may_come_later(), "{away:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_become_of_a_change_is_what_the_kernel_has() {
        let root = tempfile::tempdir().unwrap();
        let limit = root.path().join("c/memory.max");
        fs::create_dir(root.path().join("c")).unwrap();
        fs::write(&limit, CHANGE.from.0.to_string()).unwrap();
        let id = fs::metadata(root.path().join("c")).unwrap().ino();
        let made = || is_made(|| Cgroup::below(root.path(), "/c", id), CHANGE);
        let began = Instant::now();
        assert!(!made().await && began.elapsed() >= RAISE_LIMIT);
        let later = async {
            tokio::time::sleep(RAISE_LIMIT / 2).await;
            fs::write(&limit, CHANGE.to.0.to_string()).unwrap();
        };
        assert!(tokio::join!(made(), later).0);
        fs::remove_dir_all(root.path().join("c")).unwrap();
        assert!(!made().await);
    }
}
