//! A client of `runtime.v1.RuntimeService/GetContainerEvents`, whoever serves it, and the contract that the stream has to keep.
//!
//! The statuses in an event are kept as the bytes that came: what a test compares is what was sent.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kwitness_cri::events::{self as wire, ContainerEventType as Type};
use kwitness_cri::wall_clock;
use prost::Message as _;
use tokio::sync::oneshot;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::agent::connect;
use crate::collector::Collector;
use crate::cri::v1;

/// How long a subscription may take. Far more than it ever takes: a test that runs into it has failed.
const SUBSCRIBE_LIMIT: Duration = Duration::from_secs(180);

#[derive(Clone, Debug)]
pub struct Received {
    pub event: wire::ContainerEventResponse,
    /// Nanoseconds since the Unix epoch.
    pub at: i64,
}

#[derive(Debug)]
pub struct Subscriber(Collector<Vec<Received>>);

#[derive(Clone, Debug)]
pub struct CriEvents(pub Vec<Received>);

pub async fn subscribe(
    channel: Channel,
    since: Option<i64>,
) -> Result<Streaming<wire::ContainerEventResponse>, Status> {
    let mut request = Request::new(wire::Nothing {});
    if let Some(since) = since {
        request.metadata_mut().insert("kwitness-since", since.into());
    }
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/GetContainerEvents");
    let codec = ProstCodec::<wire::Nothing, wire::ContainerEventResponse>::default();
    Ok(grpc.server_streaming(request, path, codec).await?.into_inner())
}

/// A sandbox's status as the runtime itself gives it, as bytes.
pub async fn sandbox_status(channel: Channel, id: &str) -> Result<bytes::Bytes> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.context("the runtime is not ready")?;
    let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/PodSandboxStatus");
    let codec = ProstCodec::<wire::PodSandboxStatusRequest, wire::PodSandboxStatusResponse>::default();
    let request = wire::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned() };
    Ok(grpc.unary(Request::new(request), path, codec).await?.into_inner().status)
}

impl Subscriber {
    /// Subscribes at a socket, and collects in the background. A runtime that answers with its first event is not waited for.
    pub async fn open(socket: &Path, since: Option<i64>) -> Result<Self> {
        let (this, is_subscribed) = Self::start(socket, since).await?;
        let _ = tokio::time::timeout(Duration::from_millis(500), is_subscribed).await;
        Ok(this)
    }

    /// The same at a server that answers at once, which is waited for.
    pub async fn subscribed(socket: &Path) -> Result<Self> {
        let (this, is_subscribed) = Self::start(socket, None).await?;
        tokio::time::timeout(SUBSCRIBE_LIMIT, is_subscribed).await.context("the subscription")??;
        Ok(this)
    }

    async fn start(socket: &Path, since: Option<i64>) -> Result<(Self, oneshot::Receiver<()>)> {
        let channel = connect(socket).await?;
        let (subscribed, is_subscribed) = oneshot::channel();
        let open = async move {
            let stream = subscribe(channel, since).await;
            // The receiver is gone.
            let _ = subscribed.send(());
            stream
        };
        let collector = Collector::start(open, |all: &mut Vec<Received>, event| {
            all.push(Received { event, at: wall_clock() });
        });
        Ok((Self(collector), is_subscribed))
    }

    pub fn reported(&self) -> CriEvents {
        CriEvents(self.0.look().all.clone())
    }

    /// How its stream ended; none: it has not.
    pub fn end(&self) -> Option<Result<(), Status>> {
        self.0.look().end.clone()
    }

    pub async fn until(&mut self, id: &str, kind: Type) -> Result<CriEvents> {
        let what = format!("{} of {id}", kind.as_str_name());
        self.wait_until(&what, |reported| reported.has(id, kind)).await
    }

    pub async fn wait_until(&mut self, what: &str, accept: impl Fn(&CriEvents) -> bool) -> Result<CriEvents> {
        let all = self.0.wait(what, |collected| Some(CriEvents(collected.all.clone())).filter(&accept)).await;
        all.with_context(|| format!("the subscriber received:\n{}", self.reported()))
    }
}

impl CriEvents {
    pub fn of(&self, id: &str) -> Vec<Type> {
        self.events()
            .filter(|event| event.container_id == id)
            .map(|event| event.container_event_type())
            .collect()
    }

    pub fn has(&self, id: &str, kind: Type) -> bool {
        self.of(id).contains(&kind)
    }

    pub fn find(&self, id: &str, kind: Type) -> Option<&Received> {
        self.0.iter().find(|received| {
            received.event.container_id == id && received.event.container_event_type() == kind
        })
    }

    pub fn events(&self) -> impl Iterator<Item = &wire::ContainerEventResponse> {
        self.0.iter().map(|received| &received.event)
    }

    pub fn check_contract(&self) -> Result<()> {
        let mut last: BTreeMap<String, i64> = BTreeMap::new();
        for Received { event, at } in &self.0 {
            let of = || format!("{event:?}");
            let kind = event.container_event_type();
            let sandbox = v1::PodSandboxStatus::decode(event.pod_sandbox_status.clone())?;
            let uid =
                sandbox.metadata.as_ref().with_context(|| format!("no metadata: {}", of()))?.uid.clone();
            ensure!(event.created_at <= *at, "from the future: {}", of());
            let before = last.insert(uid, event.created_at);
            ensure!(before.is_none_or(|before| before < event.created_at), "not in order: {}\n{self}", of());
            if event.container_id == sandbox.id {
                let ready = sandbox.state() == v1::PodSandboxState::SandboxReady;
                ensure!(!ready || kind != Type::ContainerStoppedEvent, "stopped and ready: {}", of());
            }
            for status in &event.containers_statuses {
                let status = v1::ContainerStatus::decode(status.clone())?;
                let running = status.state() == v1::ContainerState::ContainerRunning;
                let own = status.id == event.container_id;
                ensure!(
                    !(own && running && kind == Type::ContainerStoppedEvent),
                    "stopped and running: {}",
                    of()
                );
                let made = status.state() == v1::ContainerState::ContainerCreated;
                ensure!(!(own && made && kind == Type::ContainerStartedEvent), "started and not: {}", of());
            }
        }
        Ok(())
    }

    /// Checks that a whole life was reported once, in whatever order.
    pub fn check_whole(&self, id: &str) -> Result<()> {
        let mut kinds = self.of(id);
        kinds.sort();
        ensure!(kinds == LIFE, "{id}: {kinds:?}\n{self}");
        Ok(())
    }

    /// Checks that a life was reported whole, in order, once.
    pub fn check_life(&self, id: &str, expected: &[Type]) -> Result<()> {
        ensure!(self.of(id) == expected, "{id}: {:?} instead of {expected:?}\n{self}", self.of(id));
        Ok(())
    }
}

/// A container's or a sandbox's whole life.
pub const LIFE: [Type; 4] = [
    Type::ContainerCreatedEvent,
    Type::ContainerStartedEvent,
    Type::ContainerStoppedEvent,
    Type::ContainerDeletedEvent,
];

impl fmt::Display for CriEvents {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Received { event, at } in &self.0 {
            let id: String = event.container_id.chars().take(12).collect();
            let kind = event.container_event_type().as_str_name();
            let statuses = event.containers_statuses.iter().filter_map(|status| {
                let status = v1::ContainerStatus::decode(status.clone()).ok()?;
                Some(format!("{}:{}", status.id.get(..6)?, status.state().as_str_name()))
            });
            let statuses: Vec<_> = statuses.collect();
            let late = (at - event.created_at) / 1000;
            writeln!(f, "{} {id} {kind} received {late} µs later, {}", event.created_at, statuses.join(" "))?;
        }
        Ok(())
    }
}
