//! A container runtime that knows nothing but names: it lists the containers that it was made with, each in a pod.

use std::path::PathBuf;

use anyhow::{Context as _, Result};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::cri::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use crate::cri::v1::{
    Container, ContainerMetadata, ContainerState, ListContainersRequest, ListContainersResponse,
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxMetadata, VersionRequest,
    VersionResponse,
};
use crate::handmade::HandMade;

#[derive(Debug)]
pub struct NamingRuntime {
    directory: tempfile::TempDir,
    server: tokio::task::JoinHandle<Result<(), tonic::transport::Error>>,
}

struct Service {
    containers: Vec<Container>,
    sandboxes: Vec<PodSandbox>,
}

impl NamingRuntime {
    /// Each container is named like its pod, which is in that namespace.
    pub fn serve(containers: &[(&HandMade, &str)], namespace: &str) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run").context("make a directory for a socket")?;
        let listener =
            UnixListener::bind(directory.path().join("cri.sock")).context("listen as a runtime")?;
        let sandbox_of = |container: &HandMade| format!("sandbox-of-{}", container.id);
        let sandbox = |&(container, name): &(&HandMade, &str)| PodSandbox {
            id: sandbox_of(container),
            metadata: Some(PodSandboxMetadata {
                name: name.to_owned(),
                uid: container.pod_uid.clone(),
                namespace: namespace.to_owned(),
                attempt: 0,
            }),
            ..PodSandbox::default()
        };
        let listed = |&(container, name): &(&HandMade, &str)| Container {
            id: container.id.clone(),
            pod_sandbox_id: sandbox_of(container),
            metadata: Some(ContainerMetadata { name: name.to_owned(), attempt: 0 }),
            state: ContainerState::ContainerRunning.into(),
            ..Container::default()
        };
        let service = Service {
            containers: containers.iter().map(listed).collect(),
            sandboxes: containers.iter().map(sandbox).collect(),
        };
        let server = Server::builder().add_service(RuntimeServiceServer::new(service));
        let server = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Ok(Self { directory, server })
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cri.sock")
    }
}

impl Drop for NamingRuntime {
    fn drop(&mut self) {
        self.server.abort();
    }
}

#[tonic::async_trait]
impl RuntimeService for Service {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        let (runtime_name, runtime_version) = ("names".to_owned(), "1".to_owned());
        Ok(Response::new(VersionResponse { runtime_name, runtime_version, ..VersionResponse::default() }))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        Ok(Response::new(ListContainersResponse { containers: self.containers.clone() }))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        Ok(Response::new(ListPodSandboxResponse { items: self.sandboxes.clone() }))
    }
}
