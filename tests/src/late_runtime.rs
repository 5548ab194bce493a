//! A container runtime that raises a limit when a test lets it, and not before: by a write to `memory.max` of one container.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use crate::cri::v1::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};

#[derive(Debug)]
pub struct LateRuntime {
    may_answer: watch::Sender<bool>,
    directory: tempfile::TempDir,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

struct Service {
    cgroup: PathBuf,
    may_answer: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let limit = request.into_inner().linux.map(|linux| linux.memory_limit_in_bytes);
        let limit = limit.ok_or_else(|| Status::invalid_argument("no memory limit"))?;
        let opened = self.may_answer.clone().wait_for(|may| *may).await.map(drop);
        opened.map_err(|_| Status::unavailable("the test is over"))?;
        let written = fs::write(self.cgroup.join("memory.max"), limit.to_string());
        written.map_err(|error| Status::unknown(error.to_string()))?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }
}

impl LateRuntime {
    pub fn serve(cgroup: &Path) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run").context("make a directory for a socket")?;
        let listener =
            UnixListener::bind(directory.path().join("cri.sock")).context("listen as a runtime")?;
        let (may_answer, receiver) = watch::channel(false);
        let service = Service { cgroup: cgroup.to_owned(), may_answer: receiver };
        let server = Server::builder().add_service(RuntimeServiceServer::new(service));
        let server = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Ok(Self { may_answer, directory, server })
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cri.sock")
    }

    /// From now on it answers, also what was requested before.
    pub fn answer(&self) {
        self.may_answer.send_replace(true);
    }
}

impl Drop for LateRuntime {
    fn drop(&mut self) {
        self.server.abort();
    }
}
