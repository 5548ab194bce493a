//! One connection to one runtime: what it is, and all it knows of containers. Never retries, that is
//! [`super::resolver`]'s.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use kwitness_core::model::{ContainerId, ContainerType, PodUid, Runtime, RuntimeFacts};
use tonic::Code;
use tonic::client::Grpc;
use tonic::codec::Codec;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;

use super::AnswerCodec;
use super::calls::Calls;
use crate::config::RuntimeChoice;
use kwitness_api::innermost;
use kwitness_api::transport::{DialError, unix_endpoint};
use kwitness_cri::runtime as cri;
use kwitness_cri::{CANDIDATES, Failure, Raw, is_answer};

/// The largest answer that is accepted, the kubelet's own limit.
pub const ANSWER_MAX: usize = 16 << 20;
/// Bytes of the runtime's name, and of its version; those that exist have some ten.
const WORD_MAX: usize = 128;
/// Bytes of a name, a UID or an image. Of Kubernetes' names, the longest have 253; every answer about a pod's containers has the pod's.
const NAME_MAX: usize = 1024;

const VERSION: &str = "/runtime.v1.RuntimeService/Version";
const CONTAINER_STATUS: &str = "/runtime.v1.RuntimeService/ContainerStatus";
const LIST_CONTAINERS: &str = "/runtime.v1.RuntimeService/ListContainers";
const LIST_SANDBOXES: &str = "/runtime.v1.RuntimeService/ListPodSandbox";

/// `CONTAINER_RUNNING` of the CRI's `ContainerState`.
const RUNNING: i32 = 1;

/// Everything that a runtime lists.
#[derive(Debug)]
pub struct Listing {
    /// What it knows, by id.
    pub facts: HashMap<ContainerId, Arc<RuntimeFacts>>,
    /// The containers that it says are running; sandboxes are not among them.
    pub running: BTreeSet<ContainerId>,
}

/// Why the runtime did not answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No known socket exists.
    #[error("no socket found at {}; name it with runtime.endpoint", CANDIDATES.join(", "))]
    NoSocket,
    /// Connecting failed.
    #[error("cannot connect to {}: {source}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// Why connecting failed.
        source: DialError,
    },
    /// A call failed.
    #[error("{method}: {}", said(status))]
    Call {
        /// The method.
        method: &'static str,
        /// What the runtime answered, or what came in between.
        status: Box<tonic::Status>,
    },
    /// No answer within the deadline.
    #[error("{method}: no answer within {deadline:?}")]
    Slow {
        /// The method.
        method: &'static str,
        /// The longest that a call may take.
        deadline: Duration,
    },
}

impl Error {
    /// Whether the runtime did not answer, so that the next call would not be answered either.
    pub fn is_unanswered(&self) -> bool {
        match self {
            Self::NoSocket | Self::Connect { .. } | Self::Slow { .. } => true,
            Self::Call { status, .. } => !is_answer(status),
        }
    }
}

/// What the runtime answered, or why the call failed.
fn said(status: &tonic::Status) -> String {
    let message = status.message();
    let cause = std::error::Error::source(status).map(innermost).filter(|cause| !message.contains(&**cause));
    let words = [message.to_owned()].into_iter().chain(cause);
    let words: Vec<_> = words.filter(|text| !text.is_empty()).collect();
    format!("{} ({})", words.join(": "), status.code().description()).trim_start().to_owned()
}

/// Where to look for the runtime.
pub(super) fn sockets(choice: &RuntimeChoice) -> Vec<PathBuf> {
    match choice {
        RuntimeChoice::Never => Vec::new(),
        RuntimeChoice::Auto => CANDIDATES.map(PathBuf::from).to_vec(),
        RuntimeChoice::Socket(socket) => vec![socket.clone()],
    }
}

/// What the runtime lists now; none: no runtime is to be used.
///
/// # Errors
/// It does not answer within the deadline of each call.
pub async fn list_once(choice: &RuntimeChoice, deadline: Duration) -> Result<Option<Listing>, Error> {
    let sockets = sockets(choice);
    if sockets.is_empty() {
        return Ok(None);
    }
    connect(&sockets, deadline, &Calls::default()).await?.list().await.map(Some)
}

/// Connects to the first that is there and answers.
///
/// # Errors
/// None does; what the last one said.
pub(super) async fn connect(
    sockets: &[PathBuf],
    deadline: Duration,
    calls: &Calls,
) -> Result<Connection, Error> {
    let mut refused = Error::NoSocket;
    for socket in sockets {
        if sockets.len() > 1 && !socket.exists() {
            continue;
        }
        match Connection::open(socket, deadline, calls.clone()).await {
            Ok(connection) => return Ok(connection),
            Err(error) => refused = error,
        }
    }
    Err(refused)
}

/// A connection to a runtime that has said what it is. Clones share it.
#[derive(Clone, Debug)]
pub struct Connection {
    channel: Channel,
    deadline: Duration,
    calls: Calls,
    /// Where it listens.
    pub socket: PathBuf,
    /// What it calls itself.
    pub name: String,
    /// Its version.
    pub version: String,
}

impl Connection {
    /// Connects, and asks for the version. No call takes longer than the deadline; each is noted in `calls`.
    ///
    /// # Errors
    /// Connecting failed, or what listens there is no runtime.
    pub async fn open(socket: &Path, deadline: Duration, calls: Calls) -> Result<Self, Error> {
        let dial = async { Ok(unix_endpoint(socket)?.connect_timeout(deadline).connect().await?) };
        let channel = dial.await.map_err(|source| Error::Connect { socket: socket.to_owned(), source })?;
        let request = cri::VersionRequest { version: "v1".into() };
        let version: cri::VersionResponse =
            call(&channel, deadline, &calls, VERSION, request, AnswerCodec::default()).await?;
        let (name, version) = (word(version.runtime_name), word(version.runtime_version));
        Ok(Self { channel, deadline, calls, socket: socket.to_owned(), name, version })
    }

    /// For calls that are not made here.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Where such calls are noted.
    pub fn calls(&self) -> &Calls {
        &self.calls
    }

    /// What it says it is, as the bytes that it says it with.
    ///
    /// # Errors
    /// The call fails or takes too long.
    pub async fn version_as_it_is(&self, request: Bytes) -> Result<Bytes, Error> {
        self.call(VERSION, request, Raw).await
    }

    /// A container's limits as the runtime reports them; none: it does not know the container, or does not report them.
    ///
    /// # Errors
    /// The call fails or takes too long.
    pub async fn resources(&self, container: &str) -> Result<Option<cri::LinuxContainerResources>, Error> {
        let request = cri::ContainerStatusRequest { container_id: container.to_owned() };
        match self.call(CONTAINER_STATUS, request, AnswerCodec::default()).await {
            Ok(cri::ContainerStatusResponse { status }) => {
                Ok(status.and_then(|status| status.resources?.linux))
            }
            Err(Error::Call { status, .. }) if Failure::of(&status, container) == Failure::Gone => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Everything the runtime knows.
    ///
    /// # Errors
    /// A call fails or takes too long.
    pub async fn list(&self) -> Result<Listing, Error> {
        // Sandboxes last: one that is listed as a container's is then there, unless it is gone.
        let cri::ListContainersResponse { containers } =
            self.call(LIST_CONTAINERS, cri::ListContainersRequest {}, AnswerCodec::default()).await?;
        let cri::ListPodSandboxResponse { items } =
            self.call(LIST_SANDBOXES, cri::ListPodSandboxRequest {}, AnswerCodec::default()).await?;
        let running = containers.iter().filter(|container| container.state == RUNNING);
        let running = running.map(|container| ContainerId(text(container.id.clone()).into())).collect();
        Ok(Listing { running, facts: facts(runtime(&self.name), items, containers) })
    }

    async fn call<C>(&self, path: &'static str, request: C::Encode, codec: C) -> Result<C::Decode, Error>
    where
        C: Codec<Encode: Sync, Decode: Sync>,
    {
        call(&self.channel, self.deadline, &self.calls, path, request, codec).await
    }
}

async fn call<C: Codec<Encode: Sync, Decode: Sync>>(
    channel: &Channel,
    deadline: Duration,
    calls: &Calls,
    path: &'static str,
    request: C::Encode,
    codec: C,
) -> Result<C::Decode, Error> {
    let method = path.rsplit('/').next().unwrap_or(path);
    let answer = async {
        let mut grpc = Grpc::new(channel.clone()).max_decoding_message_size(ANSWER_MAX);
        let away = |error| tonic::Status::unavailable(DialError::from(error).to_string());
        grpc.ready().await.map_err(away)?;
        grpc.unary(tonic::Request::new(request), PathAndQuery::from_static(path), codec).await
    };
    let began = Instant::now();
    let answered = tokio::time::timeout(deadline, answer).await;
    let code = match &answered {
        Ok(Ok(_)) => Code::Ok,
        Ok(Err(status)) => status.code(),
        Err(_) => Code::DeadlineExceeded,
    };
    calls.note(method, began.elapsed(), code);
    match answered {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(Error::Call { method, status: Box::new(status) }),
        Err(_) => Err(Error::Slow { method, deadline }),
    }
}

/// A runtime by what it calls itself (`RuntimeName` of `VersionResponse`).
fn runtime(name: &str) -> Option<Runtime> {
    match name {
        "containerd" => Some(Runtime::Containerd),
        "cri-o" => Some(Runtime::Crio),
        // cri-dockerd.
        "docker" => Some(Runtime::Docker),
        _ => None,
    }
}

/// Everything by id. What the runtime leaves empty is unknown; an entry without an id is ignored.
fn facts(
    runtime: Option<Runtime>,
    sandboxes: Vec<cri::PodSandbox>,
    containers: Vec<cri::Container>,
) -> HashMap<ContainerId, Arc<RuntimeFacts>> {
    let known = |bytes: Vec<u8>| (!bytes.is_empty()).then(|| Arc::<str>::from(cut(bytes, NAME_MAX)));
    // Once for all containers of a pod: there may be very many.
    let pods: HashMap<Vec<u8>, [Option<Arc<str>>; 3]> = sandboxes
        .iter()
        .filter_map(|sandbox| {
            let cri::PodSandboxMetadata { name, namespace, uid, .. } = sandbox.metadata.clone()?;
            Some((sandbox.id.clone(), [name, namespace, uid].map(known)))
        })
        .collect();
    let of_pod = |sandbox: &[u8], container_type, created_at: i64, name, image, labels: Vec<cri::Label>| {
        let [pod_name, pod_namespace, pod_uid] = pods.get(sandbox).cloned().unwrap_or_default();
        let labels = labels.into_iter().map(|cri::Label { key, value }| (text(key), text(value)));
        Arc::new(RuntimeFacts {
            runtime,
            created_at: Some(created_at).filter(|at| *at > 0),
            container_type,
            name,
            pod_name,
            pod_namespace,
            pod_uid: pod_uid.map(PodUid),
            image,
            labels: labels.collect::<BTreeMap<_, _>>(),
        })
    };
    let mut all = HashMap::with_capacity(sandboxes.len() + containers.len());
    for sandbox in sandboxes {
        let created_at = sandbox.created_at;
        let facts = of_pod(&sandbox.id, ContainerType::Sandbox, created_at, None, None, sandbox.labels);
        all.insert(ContainerId(text(sandbox.id).into()), facts);
    }
    for container in containers {
        let name = known(container.metadata.unwrap_or_default().name);
        let image = container.image.unwrap_or_default();
        let image = known(image.user_specified_image).or_else(|| known(image.image));
        let (sandbox, created_at) = (&container.pod_sandbox_id, container.created_at);
        let facts = of_pod(sandbox, ContainerType::App, created_at, name, image, container.labels);
        all.insert(ContainerId(text(container.id).into()), facts);
    }
    all.remove(&ContainerId("".into()));
    all
}

/// A text of the runtime's; what is not UTF-8 in it is replaced.
fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// A text of the runtime's, at most so many bytes of it.
fn cut(bytes: Vec<u8>, most: usize) -> String {
    let mut text = text(bytes);
    text.truncate(text.floor_char_boundary(most));
    text
}

/// A text of the runtime's about itself, which is kept and shown as long as it answers.
fn word(bytes: Vec<u8>) -> String {
    cut(bytes, WORD_MAX)
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;

    #[test]
    fn what_the_runtime_answered_is_said_in_its_words() {
        let status = Box::new(tonic::Status::unimplemented("unknown method ContainerStatus"));
        let error = Error::Call { method: "ContainerStatus", status }.to_string();
        let words =
            "ContainerStatus: unknown method ContainerStatus (Operation is not implemented or not supported)";
        assert_eq!(error, words);
    }

    #[test]
    fn why_a_call_was_not_answered_is_said_once() {
        let lost = |message: &str| {
            let mut status = tonic::Status::unknown(message);
            status.set_source(std::sync::Arc::new(std::io::Error::other("broken pipe")));
            Error::Call { method: "Version", status: Box::new(status) }.to_string()
        };
        let code = tonic::Code::Unknown.description();
        assert_eq!(lost("transport error"), format!("Version: transport error: broken pipe ({code})"));
        assert_eq!(lost("broken pipe"), format!("Version: broken pipe ({code})"));
        assert_eq!(lost("h2: broken pipe"), format!("Version: h2: broken pipe ({code})"));
        assert_eq!(lost(""), format!("Version: broken pipe ({code})"));
        let status = Box::new(tonic::Status::unknown(""));
        assert_eq!(Error::Call { method: "Version", status }.to_string(), format!("Version: ({code})"));
    }

    #[test]
    fn a_container_is_joined_with_its_pod() {
        let sandbox = cri::PodSandbox {
            id: "s".into(),
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "u".into(),
                namespace: "prod".into(),
                attempt: 0,
            }),
            created_at: 0,
            labels: vec![cri::Label { key: "app".into(), value: "web".into() }],
        };
        let container = |id: &str, sandbox: &str| cri::Container {
            id: id.into(),
            pod_sandbox_id: sandbox.into(),
            metadata: Some(cri::ContainerMetadata { name: "nginx".into(), attempt: 1 }),
            image: Some(cri::ImageSpec { image: "sha256:1".into(), user_specified_image: "nginx:1".into() }),
            state: RUNNING,
            created_at: 1_767_357_000_000_000_000,
            labels: Default::default(),
        };
        let all = facts(
            runtime("containerd"),
            vec![sandbox, cri::PodSandbox::default()],
            vec![container("c", "s"), container("o", "x")],
        );
        let of = |id: &str| &all[&ContainerId(id.into())];
        assert_eq!(all.len(), 3, "an entry without an id is ignored");
        assert_eq!(
            (of("s").runtime, of("s").container_type),
            (Some(Runtime::Containerd), ContainerType::Sandbox)
        );
        assert_eq!((of("s").name.as_deref(), of("s").pod_name.as_deref()), (None, Some("web")));
        assert_eq!(of("s").labels["app"], "web");
        assert_eq!(of("c").container_type, ContainerType::App);
        assert_eq!(
            (of("s").created_at, of("c").created_at),
            (None, Some(1_767_357_000_000_000_000)),
            "0 is unknown"
        );
        assert_eq!(
            (of("c").name.as_deref(), of("c").pod_namespace.as_deref()),
            (Some("nginx"), Some("prod"))
        );
        assert_eq!(of("c").image.as_deref(), Some("nginx:1"));
        assert_eq!(
            (of("o").pod_name.as_deref(), of("o").pod_uid.as_ref()),
            (None, None),
            "unknown is not empty"
        );
    }

    #[test]
    fn what_the_runtime_calls_itself_is_cut_and_need_not_be_utf8() {
        let (runtime_name, runtime_version) = (b"c\xffri".into(), vec![b'9'; 1 << 20]);
        let answer = cri::VersionResponse { runtime_name, runtime_version };
        let answer = cri::VersionResponse::decode(&*answer.encode_to_vec()).unwrap();
        assert_eq!(word(answer.runtime_name), "c\u{fffd}ri");
        assert_eq!(word(answer.runtime_version).len(), WORD_MAX);
    }

    #[test]
    fn a_pods_texts_are_cut_and_shared_by_all_its_containers() {
        let name = vec![b'n'; 8 << 20];
        let metadata = cri::PodSandboxMetadata { name, uid: "u".into(), ..Default::default() };
        let sandbox = cri::PodSandbox { id: "s".into(), metadata: Some(metadata), ..Default::default() };
        let containers = ["a", "b"].map(|id| cri::Container {
            id: id.into(),
            pod_sandbox_id: "s".into(),
            image: Some(cri::ImageSpec { image: vec![b'i'; 1 << 20], ..Default::default() }),
            ..Default::default()
        });
        let all = facts(None, vec![sandbox], containers.into());
        let [of_a, of_b] = ["a", "b"].map(|id| &all[&ContainerId(id.into())]);
        let [name_a, name_b] = [of_a, of_b].map(|of| of.pod_name.as_ref().unwrap());
        assert!(Arc::ptr_eq(name_a, name_b));
        assert_eq!((name_a.len(), of_a.image.as_ref().unwrap().len()), (NAME_MAX, NAME_MAX));
    }

    #[test]
    fn a_text_of_the_runtimes_that_is_not_utf8_costs_that_text() {
        let container = cri::Container {
            id: "c".into(),
            metadata: Some(cri::ContainerMetadata { name: "nginx".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image: b"\xff\xfe".into(), ..Default::default() }),
            labels: vec![
                cri::Label { key: "app".into(), value: "web".into() },
                cri::Label { key: "note".into(), value: b"a\xff\xfe".into() },
            ],
            ..Default::default()
        };
        let mut bytes = cri::ListContainersResponse { containers: vec![container] }.encode_to_vec();
        // A container that has nothing but an id, which is none.
        bytes.extend(b"\x0a\x06\x0a\x04\xff\xfe\xfd\xfc");
        let listed = cri::ListContainersResponse::decode(&*bytes).unwrap();
        let all = facts(None, Vec::new(), listed.containers);
        let found = &all[&ContainerId("c".into())];
        assert_eq!(found.name.as_deref(), Some("nginx"));
        assert_eq!(found.image.as_deref(), Some("\u{fffd}\u{fffd}"));
        assert_eq!((&*found.labels["app"], &*found.labels["note"]), ("web", "a\u{fffd}\u{fffd}"));
    }
}
