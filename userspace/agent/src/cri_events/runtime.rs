//! The calls to the container runtime that the machine asks for. Statuses stay the bytes that they came as.
//!
//! Owns the connection and the count of calls. Never retries: the worker does.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::{join_all, try_join_all};
use kwitness_core::model::ContainerId;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Code, Request, Status as GrpcStatus};

use super::entity::{Kind, Progress, Status};
use super::machine::{Answer, ListedContainer, ListedSandbox, Listing};
use super::pod::{Plan, Reading};
use crate::cri::{ANSWER_MAX, AnswerCodec, Calls};
use kwitness_cri::{Failure, events as wire, wall_clock};

/// The longest that a call may take.
const DEADLINE: Duration = Duration::from_secs(5);

/// Connected to a runtime. Clones share the connection.
#[derive(Clone, Debug)]
pub(super) struct Runtime {
    channel: Channel,
    /// All of the daemon's, for metrics.
    noted: Calls,
    calls: Arc<AtomicU64>,
}

type Result<T> = std::result::Result<T, GrpcStatus>;

impl Runtime {
    pub(super) fn new(channel: Channel, noted: Calls, calls: Arc<AtomicU64>) -> Self {
        Self { channel, noted, calls }
    }

    async fn call<Q, A>(&self, method: &'static str, request: Q) -> Result<A>
    where
        Q: prost::Message + 'static,
        A: prost::Message + Default + 'static,
    {
        self.calls.fetch_add(1, Relaxed);
        let mut grpc = Grpc::new(self.channel.clone()).max_decoding_message_size(ANSWER_MAX);
        let path = PathAndQuery::from_static(method);
        let answer = async {
            grpc.ready().await.map_err(|error| GrpcStatus::unavailable(error.to_string()))?;
            grpc.unary(Request::new(request), path, AnswerCodec::default()).await
        };
        let began = Instant::now();
        let answer = match tokio::time::timeout(DEADLINE, answer).await {
            Ok(answer) => answer.map(tonic::Response::into_inner),
            Err(_) => Err(GrpcStatus::deadline_exceeded(format!("{method}: no answer within {DEADLINE:?}"))),
        };
        let name = method.rsplit('/').next().unwrap_or(method);
        self.noted.note(name, began.elapsed(), answer.as_ref().map_or_else(GrpcStatus::code, |_| Code::Ok));
        answer
    }

    /// Whether it is still there.
    pub(super) async fn check(&self) -> Result<()> {
        let request = kwitness_cri::runtime::VersionRequest { version: "v1".into() };
        let answer: Result<kwitness_cri::runtime::VersionResponse> =
            self.call("/runtime.v1.RuntimeService/Version", request).await;
        answer.map(drop)
    }

    /// All sandboxes and containers, or those with an id.
    pub(super) async fn list(&self, id: Option<&ContainerId>) -> Result<Listing> {
        let sandboxes = wire::ListPodSandboxRequest {
            filter: id.map(|id| wire::PodSandboxFilter { id: id.0.to_string() }),
        };
        let containers = wire::ListContainersRequest {
            filter: id.map(|id| wire::ContainerFilter { id: id.0.to_string(), ..Default::default() }),
        };
        // In this order: the sandbox of a container that is listed is then known, unless it is gone.
        let containers = self.containers(containers).await?;
        let sandboxes: wire::ListPodSandboxResponse =
            self.call("/runtime.v1.RuntimeService/ListPodSandbox", sandboxes).await?;
        let mut listing =
            Listing { sandboxes: sandboxes.items.into_iter().filter_map(sandbox).collect(), containers };
        let known: HashSet<_> = listing.sandboxes.iter().map(|sandbox| sandbox.id.clone()).collect();
        if id.is_some() {
            for of in listing.containers.iter().map(|container| &container.sandbox) {
                if !known.contains(of) {
                    let filter = Some(wire::PodSandboxFilter { id: of.0.to_string() });
                    let found: wire::ListPodSandboxResponse = self
                        .call(
                            "/runtime.v1.RuntimeService/ListPodSandbox",
                            wire::ListPodSandboxRequest { filter },
                        )
                        .await?;
                    listing.sandboxes.extend(found.items.into_iter().filter_map(sandbox));
                }
            }
        }
        Ok(listing)
    }

    async fn containers(&self, request: wire::ListContainersRequest) -> Result<Vec<ListedContainer>> {
        let answer: wire::ListContainersResponse =
            self.call("/runtime.v1.RuntimeService/ListContainers", request).await?;
        Ok(answer.containers.into_iter().filter_map(container).collect())
    }

    /// A status; none: the runtime does not know it.
    async fn status(&self, kind: Kind, id: &ContainerId) -> Result<Option<Status>> {
        let bytes: Result<Bytes> = match kind {
            Kind::Sandbox => {
                let request = wire::PodSandboxStatusRequest { pod_sandbox_id: id.0.to_string() };
                let answer = self.call("/runtime.v1.RuntimeService/PodSandboxStatus", request).await;
                answer.map(|answer: wire::PodSandboxStatusResponse| answer.status)
            }
            Kind::Container => {
                let request = wire::ContainerStatusRequest { container_id: id.0.to_string() };
                let answer = self.call("/runtime.v1.RuntimeService/ContainerStatus", request).await;
                answer.map(|answer: wire::ContainerStatusResponse| answer.status)
            }
        };
        match bytes {
            Ok(bytes) => {
                Status::new(kind, bytes).map(Some).map_err(|error| GrpcStatus::data_loss(error.to_string()))
            }
            Err(status) => {
                let is_gone = match Failure::of(&status, &id.0) {
                    Failure::Gone => true,
                    // It may have other words for it: what it lists decides.
                    Failure::Refused => !self.lists(id).await?,
                    Failure::Unanswered => false,
                };
                if is_gone { Ok(None) } else { Err(status) }
            }
        }
    }

    /// Whether it lists that sandbox or container.
    async fn lists(&self, id: &ContainerId) -> Result<bool> {
        let Listing { sandboxes, containers } = self.list(Some(id)).await?;
        let mut listed = sandboxes.iter().map(|sandbox| &sandbox.id);
        Ok(listed.any(|listed| listed == id) || containers.iter().any(|container| container.id == *id))
    }

    /// A pod's statuses, if those that are to be checked say what is expected.
    pub(super) async fn read(&self, plan: Plan) -> Result<Answer> {
        let mut at = wall_clock();
        let mut statuses: Vec<(Kind, ContainerId, Option<Status>)> = Vec::new();
        if !plan.whole {
            let checks = plan.checks.iter().map(|(kind, id, progress)| async move {
                let status = self.status(*kind, id).await?;
                let agrees = status.as_ref().is_none_or(|status| agrees(status, *progress));
                Ok::<_, GrpcStatus>((agrees, *kind, id.clone(), status))
            });
            let checked = try_join_all(checks).await?;
            if !checked.iter().any(|(agrees, ..)| *agrees) {
                return Ok(Answer::NotYet);
            }
            statuses.extend(checked.into_iter().map(|(_, kind, id, status)| (kind, id, status)));
        } else {
            at = wall_clock();
        }
        let fetched: HashSet<ContainerId> = statuses.iter().map(|(_, id, _)| id.clone()).collect();
        let of = |kind, ids: Vec<ContainerId>| {
            let wanted = ids.into_iter().filter(|id| !fetched.contains(id));
            wanted.map(move |id| (kind, id)).collect::<Vec<_>>()
        };
        let lists = join_all(plan.sandboxes.iter().map(|sandbox| {
            let filter =
                wire::ContainerFilter { pod_sandbox_id: sandbox.0.to_string(), ..Default::default() };
            self.containers(wire::ListContainersRequest { filter: Some(filter) })
        }));
        let known: HashSet<ContainerId> = plan.containers.iter().chain(&plan.ended).cloned().collect();
        let mut wanted = of(Kind::Sandbox, plan.sandboxes.clone());
        wanted.extend(of(Kind::Container, plan.containers));
        let (lists, known_statuses) = tokio::join!(lists, self.statuses(wanted));
        statuses.extend(known_statuses?);
        let mut listed = HashSet::new();
        for list in lists {
            listed.extend(list?.into_iter().map(|container| container.id));
        }
        let mut rest: Vec<_> = listed.difference(&known).cloned().collect();
        rest.extend(plan.ended.into_iter().filter(|id| !listed.contains(id)));
        statuses.extend(self.statuses(of(Kind::Container, rest)).await?);
        Ok(Answer::Reading(Reading { at, statuses }))
    }

    async fn statuses(
        &self,
        wanted: Vec<(Kind, ContainerId)>,
    ) -> Result<Vec<(Kind, ContainerId, Option<Status>)>> {
        /// Calls at once for one pod.
        const AT_ONCE: usize = 8;
        let mut all = Vec::with_capacity(wanted.len());
        for some in wanted.chunks(AT_ONCE) {
            let calls = some.iter().map(|(kind, id)| async move {
                Ok::<_, GrpcStatus>((*kind, id.clone(), self.status(*kind, id).await?))
            });
            all.extend(try_join_all(calls).await?);
        }
        Ok(all)
    }
}

fn agrees(status: &Status, expected: Progress) -> bool {
    status.progress.is_some_and(|progress| progress >= expected)
}

fn sandbox(listed: wire::PodSandbox) -> Option<ListedSandbox> {
    let uid = listed.metadata.map(|metadata| metadata.uid).unwrap_or_default();
    Some(ListedSandbox {
        id: id(&listed.id)?,
        uid: String::from_utf8_lossy(&uid).into(),
        progress: Kind::Sandbox.progress(listed.state),
    })
}

fn container(listed: wire::Container) -> Option<ListedContainer> {
    Some(ListedContainer {
        id: id(&listed.id)?,
        sandbox: id(&listed.pod_sandbox_id)?,
        progress: Kind::Container.progress(listed.state),
    })
}

/// An id; none: it is not UTF-8, and no call can name it.
fn id(bytes: &[u8]) -> Option<ContainerId> {
    std::str::from_utf8(bytes).ok().map(|text| ContainerId(text.into()))
}

#[cfg(test)]
mod tests {
    use kwitness_api::transport::unix_endpoint;
    use kwitness_cri::runtime::runtime_service_server::{RuntimeService, RuntimeServiceServer};
    use kwitness_cri::runtime::*;
    use tokio::net::UnixListener;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::Response;
    use tonic::transport::Server;

    use super::*;

    /// Lists a sandbox and a container, and refuses every status as cri-dockerd does those of what is gone.
    struct Refusing;

    #[tonic::async_trait]
    impl RuntimeService for Refusing {
        async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>> {
            Ok(Response::new(VersionResponse::default()))
        }

        async fn list_pod_sandbox(
            &self,
            _: Request<ListPodSandboxRequest>,
        ) -> Result<Response<ListPodSandboxResponse>> {
            let items = vec![PodSandbox { id: "pod".into(), ..Default::default() }];
            Ok(Response::new(ListPodSandboxResponse { items }))
        }

        async fn list_containers(
            &self,
            _: Request<ListContainersRequest>,
        ) -> Result<Response<ListContainersResponse>> {
            let listed = Container { id: "there".into(), pod_sandbox_id: "pod".into(), ..Default::default() };
            Ok(Response::new(ListContainersResponse { containers: vec![listed] }))
        }

        async fn container_status(
            &self,
            _: Request<ContainerStatusRequest>,
        ) -> Result<Response<ContainerStatusResponse>> {
            Err(GrpcStatus::unknown("Error response from daemon: No such container"))
        }
    }

    #[tokio::test]
    async fn what_is_refused_without_a_code_is_gone_if_it_is_not_listed() {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cri.sock");
        let connections = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let server = Server::builder().add_service(RuntimeServiceServer::new(Refusing));
        tokio::spawn(server.serve_with_incoming(connections));
        let channel = unix_endpoint(&socket).unwrap().connect().await.unwrap();
        let runtime = Runtime::new(channel, Calls::default(), Arc::default());
        for (kind, id, is_listed) in [
            (Kind::Container, "gone", false),
            (Kind::Container, "there", true),
            (Kind::Sandbox, "gone", false),
            (Kind::Sandbox, "pod", true),
        ] {
            match runtime.status(kind, &ContainerId(id.into())).await {
                Ok(status) => assert_eq!((status, is_listed), (None, false), "{kind:?} {id}"),
                Err(refused) => {
                    assert!(is_listed && kwitness_cri::is_answer(&refused), "{kind:?} {id}: {refused}")
                }
            }
        }
    }

    #[test]
    fn of_a_list_what_has_no_text_for_an_id_is_left_out() {
        use prost::Message as _;
        let bad = b"\xff\xfe";
        let listed = |id: &[u8], sandbox: &[u8]| wire::Container {
            id: Bytes::copy_from_slice(id),
            pod_sandbox_id: Bytes::copy_from_slice(sandbox),
            ..Default::default()
        };
        let containers = vec![listed(bad, b"s"), listed(b"c", b"s"), listed(b"d", bad)];
        let bytes = wire::ListContainersResponse { containers }.encode_to_vec();
        let answer = wire::ListContainersResponse::decode(&*bytes).unwrap();
        let left: Vec<_> = answer.containers.into_iter().filter_map(container).map(|left| left.id).collect();
        assert_eq!(left, [ContainerId("c".into())]);
        let metadata = Some(wire::PodSandboxMetadata { uid: Bytes::from_static(bad) });
        let pod = wire::PodSandbox { id: "s".into(), metadata, ..Default::default() };
        assert_eq!(sandbox(pod).map(|pod| pod.uid).as_deref(), Some("\u{fffd}\u{fffd}"));
    }
}
