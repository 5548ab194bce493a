//! The limits of a container: set before a run, and raised in it, by the same write for every way.
//!
//! For the guard, which raises through the CRI, there is a server with the one call that it makes. Its containers are those that
//! it was given; everything else is the container runtime's.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use tonic::{Request, Response, Status};

use crate::cgroup;
use crate::cri::StandIn;
use crate::cri::v1::runtime_service_server::RuntimeService;
use crate::cri::v1::{UpdateContainerResourcesRequest, UpdateContainerResourcesResponse};

/// As before each run; `high` none: no brake.
pub(super) fn set(cgroup: &Path, limit: u64, high: Option<u64>) -> Result<()> {
    cgroup::write(cgroup, "memory.max", limit)?;
    cgroup::write(cgroup, "memory.high", high.map_or_else(|| "max".to_owned(), |high| high.to_string()))
}

/// The raise. A brake that is set would go on braking below it.
pub fn raise(cgroup: &Path, limit: u64) -> Result<()> {
    cgroup::write(cgroup, "memory.max", limit)?;
    cgroup::write(cgroup, "memory.high", "max")
}

/// Containers that the server raises, by id, and how long each write took.
#[derive(Debug, Default)]
struct Shared {
    cgroups: HashMap<String, PathBuf>,
    times: Vec<Duration>,
}

#[derive(Clone, Debug)]
struct Service(Arc<Mutex<Shared>>);

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn update_container_resources(
        &self,
        request: Request<UpdateContainerResourcesRequest>,
    ) -> Result<Response<UpdateContainerResourcesResponse>, Status> {
        let UpdateContainerResourcesRequest { container_id, linux } = request.into_inner();
        let limit = linux.and_then(|linux| u64::try_from(linux.memory_limit_in_bytes).ok());
        let limit = limit.ok_or_else(|| Status::invalid_argument("no memory limit"))?;
        let mut shared = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let cgroup = shared.cgroups.get(&container_id).ok_or_else(|| Status::not_found(container_id))?;
        let began = Instant::now();
        raise(cgroup, limit).map_err(|error| Status::unknown(format!("{error:#}")))?;
        shared.times.push(began.elapsed());
        Ok(Response::new(UpdateContainerResourcesResponse {}))
    }
}

#[derive(Debug)]
pub(super) struct Raises {
    shared: Arc<Mutex<Shared>>,
    server: StandIn,
}

impl Raises {
    pub(super) fn serve() -> Result<Self> {
        let shared = Arc::<Mutex<Shared>>::default();
        let server = StandIn::serve(Service(Arc::clone(&shared)))?;
        Ok(Self { shared, server })
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.server.socket()
    }

    pub(super) fn add(&self, id: &str, cgroup: &Path) -> Result<()> {
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let former = shared.cgroups.insert(id.to_owned(), cgroup.to_owned());
        ensure!(former.is_none(), "container {id} is there already");
        Ok(())
    }

    pub(super) fn times(&self) -> Vec<Duration> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner).times.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cri::Cri;
    use crate::cri::v1::LinuxContainerResources;

    fn files() -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        for name in ["memory.max", "memory.high"] {
            std::fs::write(directory.path().join(name), "").unwrap();
        }
        directory
    }

    fn read(directory: &Path) -> [String; 2] {
        ["memory.max", "memory.high"].map(|name| std::fs::read_to_string(directory.join(name)).unwrap())
    }

    #[test]
    fn a_raise_ends_the_brake() {
        let cgroup = files();
        set(cgroup.path(), 64, Some(57)).unwrap();
        assert_eq!(read(cgroup.path()), ["64", "57"]);
        let cgroup = files();
        raise(cgroup.path(), 96).unwrap();
        assert_eq!(read(cgroup.path()), ["96", "max"]);
        let error = raise(Path::new("/nowhere"), 96).unwrap_err();
        assert!(format!("{error:#}").contains("write 96 to /nowhere/memory.max"), "{error:#}");
    }

    #[tokio::test]
    async fn a_raise_over_the_cri_is_the_same_write() {
        let (cgroup, raises) = (files(), Raises::serve().unwrap());
        raises.add("c", cgroup.path()).unwrap();
        let cri = Cri::connect(&raises.socket()).await.unwrap();
        let update = async |id: &str, linux| {
            let request = UpdateContainerResourcesRequest { container_id: id.to_owned(), linux };
            cri.update_container_resources(request).await.map(drop)
        };
        let to = |memory_limit_in_bytes| {
            Some(LinuxContainerResources { memory_limit_in_bytes, ..LinuxContainerResources::default() })
        };
        update("c", to(96)).await.unwrap();
        assert_eq!(read(cgroup.path()), ["96", "max"]);
        assert_eq!(raises.times().len(), 1);
        assert!(format!("{:#}", update("d", to(96)).await.unwrap_err()).contains("NotFound"));
        assert!(format!("{:#}", update("c", to(-1)).await.unwrap_err()).contains("no memory limit"));
    }
}
