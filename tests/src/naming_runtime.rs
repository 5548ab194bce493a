//! A container runtime that knows nothing but names: it lists the containers that it was made with, each in a pod.

use std::path::PathBuf;

use anyhow::Result;
use tonic::{Request, Response, Status};

use crate::cri::StandIn;
use crate::cri::v1::runtime_service_server::RuntimeService;
use crate::cri::v1::{
    Container, ContainerMetadata, ContainerState, ListContainersRequest, ListContainersResponse,
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandbox, PodSandboxMetadata, VersionRequest,
    VersionResponse,
};
use crate::handmade::HandMade;

#[derive(Debug)]
pub struct NamingRuntime(StandIn);

struct Service {
    containers: Vec<Container>,
    sandboxes: Vec<PodSandbox>,
}

impl NamingRuntime {
    /// Each container is named like its pod, which is in that namespace.
    pub fn serve(containers: &[(&HandMade, &str)], namespace: &str) -> Result<Self> {
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
        Ok(Self(StandIn::serve(service)?))
    }

    pub fn socket(&self) -> PathBuf {
        self.0.socket()
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
