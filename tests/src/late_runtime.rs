//! A container runtime that sets a limit when a test lets it, and not before: by a write to `memory.max` of one container. Or accepts
//! it and sets nothing, as a kubelet does at first.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

use crate::cgroup;
use crate::cri::StandIn;
use crate::cri::v1::runtime_service_server::RuntimeService;
use crate::cri::v1::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};

#[derive(Debug)]
pub struct LateRuntime {
    conduct: watch::Sender<Conduct>,
    accepted: watch::Receiver<u64>,
    server: StandIn,
}

/// What it does with a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conduct {
    Wait,
    Accept,
    Write,
}

struct Service {
    cgroup: PathBuf,
    conduct: watch::Receiver<Conduct>,
    accepted: watch::Sender<u64>,
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let limit = request.into_inner().linux.map(|linux| linux.memory_limit_in_bytes);
        let limit = limit.ok_or_else(|| Status::invalid_argument("no memory limit"))?;
        let mut conduct = self.conduct.clone();
        let conduct = conduct.wait_for(|conduct| *conduct != Conduct::Wait).await.map(|conduct| *conduct);
        if conduct.map_err(|_| Status::unavailable("the test is over"))? == Conduct::Accept {
            self.accepted.send_modify(|accepted| *accepted += 1);
            return Ok(Response::new(UpdateContainerResourcesResponse {}));
        }
        let written = cgroup::write(&self.cgroup, "memory.max", limit);
        written.map_err(|error| Status::unknown(format!("{error:#}")))?;
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }
}

impl LateRuntime {
    pub fn serve(cgroup: &Path) -> Result<Self> {
        let (conduct, receiver) = watch::channel(Conduct::Wait);
        let (sender, accepted) = watch::channel(0);
        let service = Service { cgroup: cgroup.to_owned(), conduct: receiver, accepted: sender };
        Ok(Self { conduct, accepted, server: StandIn::serve(service)? })
    }

    pub fn socket(&self) -> PathBuf {
        self.server.socket()
    }

    /// From now on it answers, also what was requested before.
    pub fn answer(&self) {
        self.conduct.send_replace(Conduct::Write);
    }

    /// From now on it accepts what is requested, and sets nothing.
    pub fn accept(&self) {
        self.conduct.send_replace(Conduct::Accept);
    }

    /// Waits until it has accepted a request so.
    pub async fn accepted(&self) -> Result<()> {
        let mut accepted = self.accepted.clone();
        accepted.wait_for(|accepted| *accepted > 0).await.context("the runtime has ended").map(drop)
    }
}
