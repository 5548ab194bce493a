//! The calls to the container runtime that the machine asks for. Statuses stay the bytes that they came as.
//!
//! Owns the connection and the count of calls. Never retries: the worker does.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use futures_util::future::Either;
use futures_util::stream::{self, StreamExt as _};
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
use kwitness_service::undecodable_answer;

/// The longest that a call may take.
const DEADLINE: Duration = Duration::from_secs(5);
/// Calls at once for one pod, of which few are read at a time: a runtime that is slow gets no burst of them.
const AT_ONCE: usize = 8;

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
            Ok(bytes) => Status::new(kind, bytes).map(Some).map_err(|error| undecodable_answer(&error)),
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
            let check = |(kind, id, progress): (Kind, ContainerId, Progress)| async move {
                let status = self.status(kind, &id).await?;
                let agrees = status.as_ref().is_none_or(|status| agrees(status, progress));
                Ok::<_, GrpcStatus>((agrees, kind, id, status))
            };
            let checked = at_once(plan.checks.into_iter().map(check).collect()).await?;
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
        let known: HashSet<ContainerId> = plan.containers.iter().chain(&plan.ended).cloned().collect();
        let mut wanted = of(Kind::Sandbox, plan.sandboxes.clone());
        wanted.extend(of(Kind::Container, plan.containers));
        let list = |sandbox: ContainerId| async move {
            let filter =
                wire::ContainerFilter { pod_sandbox_id: sandbox.0.to_string(), ..Default::default() };
            let request = wire::ListContainersRequest { filter: Some(filter) };
            self.containers(request).await.map(Either::Left)
        };
        let lists = plan.sandboxes.into_iter().map(|sandbox| Either::Left(list(sandbox)));
        let fetch =
            |(kind, id): (Kind, ContainerId)| async move { self.fetch(kind, id).await.map(Either::Right) };
        let fetches = wanted.into_iter().map(|wanted| Either::Right(fetch(wanted)));
        let mut listed = HashSet::new();
        for found in at_once(lists.chain(fetches).collect()).await? {
            match found {
                Either::Left(containers) => {
                    listed.extend(containers.into_iter().map(|container| container.id))
                }
                Either::Right(status) => statuses.push(status),
            }
        }
        let mut rest: Vec<_> = listed.difference(&known).cloned().collect();
        rest.extend(plan.ended.into_iter().filter(|id| !listed.contains(id)));
        let rest = of(Kind::Container, rest).into_iter().map(|(kind, id)| self.fetch(kind, id));
        statuses.extend(at_once(rest.collect()).await?);
        Ok(Answer::Reading(Reading { at, statuses }))
    }

    async fn fetch(&self, kind: Kind, id: ContainerId) -> Result<(Kind, ContainerId, Option<Status>)> {
        let status = self.status(kind, &id).await?;
        Ok((kind, id, status))
    }
}

/// What the calls give, in their order; the first that fails ends all.
async fn at_once<T>(calls: Vec<impl Future<Output = Result<T>>>) -> Result<Vec<T>> {
    stream::iter(calls).buffered(AT_ONCE).try_collect().await
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
    use std::sync::atomic::AtomicUsize;
    use tokio::net::UnixListener;
    use tokio::sync::Semaphore;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::Response;
    use tonic::transport::Server;

    use super::*;

    /// Lists a sandbox and a container, and refuses every status as cri-dockerd does those of what is gone. Its name is not UTF-8.
    struct Refusing;

    #[tonic::async_trait]
    impl RuntimeService for Refusing {
        async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>> {
            Ok(Response::new(VersionResponse { runtime_name: b"\xff".into(), ..Default::default() }))
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

    /// A connection to such a runtime.
    async fn connected_to(service: impl RuntimeService) -> Runtime {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("cri.sock");
        let connections = UnixListenerStream::new(UnixListener::bind(&socket).unwrap());
        let server = Server::builder().add_service(RuntimeServiceServer::new(service));
        tokio::spawn(server.serve_with_incoming(connections));
        let channel = unix_endpoint(&socket).unwrap().connect().await.unwrap();
        Runtime::new(channel, Calls::default(), Arc::default())
    }

    #[tokio::test]
    async fn what_is_refused_without_a_code_is_gone_if_it_is_not_listed() {
        let runtime = connected_to(Refusing).await;
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

    #[tokio::test]
    async fn an_answer_that_is_none_is_not_the_callers_fault() {
        let runtime = connected_to(Refusing).await;
        // Where it has its name, this has a message.
        let answer: Result<PodSandbox> =
            runtime.call("/runtime.v1.RuntimeService/Version", VersionRequest::default()).await;
        let status = answer.unwrap_err();
        assert_eq!((status.code(), Failure::of(&status, "")), (Code::Internal, Failure::Refused));
        assert!(status.message().starts_with("the answer cannot be decoded: "), "{status}");
        assert_eq!(runtime.noted.by_method()["Version"].codes, [("Internal", 1)].into());
    }

    /// Knows no container, and holds each call until it is let go.
    #[derive(Clone)]
    struct Holding(Arc<Held>);

    struct Held {
        released: Semaphore,
        now: AtomicUsize,
        most: AtomicUsize,
    }

    impl Holding {
        async fn hold(&self) {
            let Held { released, now, most } = &*self.0;
            most.fetch_max(now.fetch_add(1, Relaxed) + 1, Relaxed);
            released.acquire().await.unwrap().forget();
            now.fetch_sub(1, Relaxed);
        }
    }

    #[tonic::async_trait]
    impl RuntimeService for Holding {
        async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>> {
            Ok(Response::new(Default::default()))
        }

        async fn list_pod_sandbox(
            &self,
            _: Request<ListPodSandboxRequest>,
        ) -> Result<Response<ListPodSandboxResponse>> {
            Ok(Response::new(Default::default()))
        }

        async fn list_containers(
            &self,
            _: Request<ListContainersRequest>,
        ) -> Result<Response<ListContainersResponse>> {
            self.hold().await;
            Ok(Response::new(Default::default()))
        }

        async fn container_status(
            &self,
            _: Request<ContainerStatusRequest>,
        ) -> Result<Response<ContainerStatusResponse>> {
            self.hold().await;
            Err(GrpcStatus::not_found(""))
        }
    }

    #[tokio::test]
    async fn few_calls_for_a_pod_are_under_way_however_many_it_needs() {
        let held = Held { released: Semaphore::new(0), now: AtomicUsize::new(0), most: AtomicUsize::new(0) };
        let service = Holding(Arc::new(held));
        let Holding(held) = service.clone();
        let runtime = connected_to(service).await;
        let many = |of: &str| -> Vec<_> {
            (0..4 * AT_ONCE).map(|number| ContainerId(format!("{of}-{number}").into())).collect()
        };
        let (sandboxes, containers, ended) = (many("sandbox"), many("container"), many("ended"));
        let checks = containers.iter().map(|id| (Kind::Container, id.clone(), Progress::Started)).collect();
        let all = sandboxes.len() + containers.len() + ended.len();
        let plan = Plan { sandboxes, containers, ended, checks, whole: false };
        let reading = tokio::spawn({
            let runtime = runtime.clone();
            async move { runtime.read(plan).await }
        });
        while held.now.load(Relaxed) < AT_ONCE {
            tokio::task::yield_now().await;
        }
        while !reading.is_finished() {
            // Once this one is answered, the runtime has all that were sent before.
            runtime.check().await.unwrap();
            held.released.add_permits(1);
        }
        assert_eq!(held.most.load(Relaxed), AT_ONCE);
        let Ok(Answer::Reading(Reading { statuses, .. })) = reading.await.unwrap() else {
            panic!("everything is fetched")
        };
        assert!(statuses.len() == all && statuses.iter().all(|(.., status)| status.is_none()));
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
