//! The container runtime's API, as a kubelet calls it.
//!
//! Each method is one call; what a failed one says names the call and the runtime's own words.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Endpoint, Server};

use crate::process;

/// The generated messages, clients and servers of `proto/cri.proto`.
#[expect(
    missing_docs,
    clippy::doc_markdown,
    clippy::allow_attributes,
    reason = "generated code; the proto is documented"
)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

use v1::image_service_client::ImageServiceClient;
use v1::runtime_service_client::RuntimeServiceClient;
use v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};

/// The kubelet's own limit for a message.
const MAX_MESSAGE: usize = 16 << 20;

#[derive(Clone, Debug)]
pub struct Cri {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
}

/// Defines unary methods that take the request and give what matters of the answer.
macro_rules! calls {
    ($($name:ident($request:ident) -> $answer:ident;)*) => {
        $(
            pub async fn $name(&self, request: v1::$request) -> Result<v1::$answer> {
                let answer = self.runtime.clone().$name(request).await;
                Ok(answer.map_err(words).context(concat!("CRI call ", stringify!($name)))?.into_inner())
            }
        )*
    };
}

impl Cri {
    pub async fn connect(socket: &Path) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
            .with_context(|| format!("{} as an endpoint", socket.display()))?
            .connect_timeout(Duration::from_secs(5));
        let channel = endpoint.connect().await.with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MAX_MESSAGE),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE),
        })
    }

    calls! {
        version(VersionRequest) -> VersionResponse;
        run_pod_sandbox(RunPodSandboxRequest) -> RunPodSandboxResponse;
        stop_pod_sandbox(StopPodSandboxRequest) -> StopPodSandboxResponse;
        remove_pod_sandbox(RemovePodSandboxRequest) -> RemovePodSandboxResponse;
        list_pod_sandbox(ListPodSandboxRequest) -> ListPodSandboxResponse;
        create_container(CreateContainerRequest) -> CreateContainerResponse;
        start_container(StartContainerRequest) -> StartContainerResponse;
        stop_container(StopContainerRequest) -> StopContainerResponse;
        remove_container(RemoveContainerRequest) -> RemoveContainerResponse;
        list_containers(ListContainersRequest) -> ListContainersResponse;
        container_status(ContainerStatusRequest) -> ContainerStatusResponse;
        update_container_resources(UpdateContainerResourcesRequest) -> UpdateContainerResourcesResponse;
        exec_sync(ExecSyncRequest) -> ExecSyncResponse;
    }

    pub async fn has_image(&self, name: &str) -> Result<bool> {
        let image = Some(v1::ImageSpec { image: name.to_owned() });
        let answer = self.images.clone().image_status(v1::ImageStatusRequest { image }).await;
        Ok(answer.map_err(words).context("CRI call image_status")?.into_inner().image.is_some())
    }
}

/// A stand-in for a runtime, at a socket of its own until it is dropped.
#[derive(Debug)]
pub struct StandIn {
    directory: TempDir,
    server: JoinHandle<Result<(), tonic::transport::Error>>,
}

impl StandIn {
    pub fn serve(service: impl RuntimeService) -> Result<Self> {
        let directory = process::directory("runtime")?;
        let listener =
            UnixListener::bind(directory.path().join("cri.sock")).context("listen as a runtime")?;
        let server = Server::builder().add_service(RuntimeServiceServer::new(service));
        let server = tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Ok(Self { directory, server })
    }

    pub fn socket(&self) -> PathBuf {
        self.directory.path().join("cri.sock")
    }
}

impl Drop for StandIn {
    fn drop(&mut self) {
        self.server.abort();
    }
}

/// What the runtime said, without the transport's decoration.
fn words(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{:?}: {}", status.code(), status.message())
}
