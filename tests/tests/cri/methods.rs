//! Every method as bytes, straight and through the proxy: those above all that critest never calls.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use kwitness_tests::cri::v1;
use kwitness_tests::prelude::*;
use kwitness_tests::proxy::RawClient;
use prost::Message as _;
use tonic::{Code, Status};

use crate::with_proxy;

/// The bytes of an answer without their order: Go writes a map's entries in another one each time.
fn sorted(bytes: &Bytes) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes.sort_unstable();
    bytes
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Compared {
    Bytes,
    /// It holds measured values: its size may differ a little, its status may not.
    Measured,
}
use Compared::{Bytes as Exactly, Measured};

/// Of a service that exists.
const UNKNOWN_METHOD: &str = "/runtime.v1.RuntimeService/FromTheYear2040";
/// Of a service that does not.
const UNKNOWN_SERVICE: &str = "/runtime.v2.RuntimeService/Version";

fn named(text: &str) -> Bytes {
    let mut message = Vec::new();
    prost::encoding::string::encode(1, &text.to_owned(), &mut message);
    message.into()
}

fn describe(answer: &Result<Bytes, Status>) -> String {
    match answer {
        Ok(bytes) => format!("{} bytes: {bytes:?}", bytes.len()),
        Err(status) => format!("{status:?}"),
    }
}

fn equal(expected: &Result<Bytes, Status>, found: &Result<Bytes, Status>, compared: Compared) -> bool {
    match (expected, found) {
        (Ok(expected), Ok(found)) if compared == Measured => expected.len().abs_diff(found.len()) <= 64,
        (Ok(expected), Ok(found)) => sorted(expected) == sorted(found),
        (Err(expected), Err(found)) => {
            expected.code() == found.code()
                && expected.message() == found.message()
                && expected.details() == found.details()
        }
        _ => false,
    }
}

/// Where messages are recorded, for the corpus of `cri_proxy::fuzz`.
const CORPUS: &str = "KWITNESS_CORPUS";

fn record(name: &str, message: &[u8]) -> Result<()> {
    let Some(directory) = std::env::var_os(CORPUS).map(PathBuf::from) else { return Ok(()) };
    std::fs::create_dir_all(&directory)?;
    let file = directory.join(name);
    std::fs::write(&file, message).with_context(|| format!("write {}", file.display()))
}

/// A container is made, updated and removed by way of the proxy: what passes is what is decoded here and in the daemon.
pub(crate) async fn what_is_decoded_passes(ctx: &Testbed<'_>) -> Result<()> {
    with_proxy(ctx, async |node, proxy| {
        let client = RawClient::connect(proxy.socket()).await?;
        let subscriber = client.clone();
        let events = tokio::spawn(async move { subscriber.events().await });
        let pod = node.run_pod(&PodSpec::new("decoded", ctx.combination.handler)?).await?;
        let mut spec = ContainerSpec::shell("main", "exit 3");
        spec.resources = Some(v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
        let called = async |method: &'static str, request: Vec<u8>| -> Result<Bytes> {
            let name = method.rsplit('/').next().unwrap_or(method);
            record(&format!("{name}.request"), &request)?;
            let answer = client.call(method, request.into()).await?.with_context(|| method.to_owned())?;
            record(&format!("{name}.answer"), &answer)?;
            Ok(answer)
        };
        let request = node.create_request(&pod, &spec).encode_to_vec();
        let made = called("/runtime.v1.RuntimeService/CreateContainer", request).await?;
        let id = v1::CreateContainerResponse::decode(made)?.container_id;
        node.start_container(&id).await?;
        node.wait_exited(&id).await?;
        let linux = Some(v1::LinuxContainerResources { cpu_shares: 300, ..Default::default() });
        let update = v1::UpdateContainerResourcesRequest { container_id: id.clone(), linux };
        record("UpdateContainerResources.request", &update.encode_to_vec())?;
        for (method, request) in [
            ("/runtime.v1.RuntimeService/Version", named("v1")),
            ("/runtime.v1.RuntimeService/ListPodSandbox", Bytes::new()),
            ("/runtime.v1.RuntimeService/ListContainers", Bytes::new()),
            ("/runtime.v1.RuntimeService/PodSandboxStatus", named(&pod.sandbox)),
            ("/runtime.v1.RuntimeService/ContainerStatus", named(&id)),
        ] {
            let answer = called(method, request.to_vec()).await?;
            ensure!(!answer.is_empty(), "{method}: an empty answer");
        }
        node.remove_container(&id).await?;
        node.remove_pod(&pod).await?;
        let mut events = events.await.context("the subscriber")??;
        let mut kinds = Vec::new();
        while kinds.last() != Some(&v1::ContainerEventType::ContainerDeletedEvent) {
            let next = tokio::time::timeout(std::time::Duration::from_secs(30), events.message());
            let bytes = next.await.context("the container's end")??.context("the stream ended")?;
            let event = v1::ContainerEventResponse::decode(bytes.clone())?;
            if event.container_id == id {
                record(&format!("GetContainerEvents.{}", kinds.len()), &bytes)?;
                kinds.push(event.container_event_type());
            }
        }
        ensure!(kinds.len() == 4, "{kinds:?}");
        Ok(())
    })
    .await
}

pub(crate) async fn every_method_answers_the_same(ctx: &Testbed<'_>) -> Result<()> {
    with_proxy(ctx, async |node, proxy| {
        let straight = RawClient::connect(Path::new(CONTAINERD_SOCKET)).await?;
        let proxied = RawClient::connect(proxy.socket()).await?;
        let pod = node.run_pod(&PodSpec::new("methods", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &ContainerSpec::new("main", &["/bin/sleep", "1000"])).await?;
        let update = v1::UpdateContainerResourcesRequest {
            container_id: id.clone(),
            linux: Some(v1::LinuxContainerResources { cpu_shares: 300, ..Default::default() }),
        };
        let of_nobody =
            v1::UpdateContainerResourcesRequest { container_id: "nobody".to_owned(), ..update.clone() };
        let (pod_id, id) = (named(&pod.sandbox), named(&id));
        let none = Bytes::new;
        let calls: Vec<(&'static str, Bytes, Compared)> = vec![
            ("/runtime.v1.RuntimeService/Version", none(), Exactly),
            ("/runtime.v1.RuntimeService/Status", none(), Exactly),
            ("/runtime.v1.RuntimeService/RuntimeConfig", none(), Exactly),
            ("/runtime.v1.RuntimeService/UpdateRuntimeConfig", none(), Exactly),
            ("/runtime.v1.RuntimeService/ListContainers", none(), Exactly),
            ("/runtime.v1.RuntimeService/ListPodSandbox", none(), Exactly),
            ("/runtime.v1.RuntimeService/StreamContainers", none(), Exactly),
            ("/runtime.v1.RuntimeService/StreamPodSandboxes", none(), Exactly),
            ("/runtime.v1.RuntimeService/ContainerStatus", id.clone(), Exactly),
            ("/runtime.v1.RuntimeService/PodSandboxStatus", pod_id.clone(), Exactly),
            ("/runtime.v1.RuntimeService/UpdateContainerResources", update.encode_to_vec().into(), Exactly),
            (
                "/runtime.v1.RuntimeService/UpdateContainerResources",
                of_nobody.encode_to_vec().into(),
                Exactly,
            ),
            ("/runtime.v1.RuntimeService/UpdatePodSandboxResources", pod_id.clone(), Exactly),
            ("/runtime.v1.RuntimeService/ListMetricDescriptors", none(), Exactly),
            ("/runtime.v1.RuntimeService/ListPodSandboxMetrics", none(), Exactly),
            ("/runtime.v1.RuntimeService/StreamPodSandboxMetrics", none(), Exactly),
            ("/runtime.v1.RuntimeService/CheckpointContainer", named("nobody"), Exactly),
            ("/runtime.v1.RuntimeService/CheckpointPod", pod_id.clone(), Exactly),
            ("/runtime.v1.RuntimeService/ContainerStats", id.clone(), Measured),
            ("/runtime.v1.RuntimeService/ListContainerStats", none(), Measured),
            ("/runtime.v1.RuntimeService/PodSandboxStats", pod_id.clone(), Measured),
            ("/runtime.v1.RuntimeService/ListPodSandboxStats", none(), Measured),
            ("/runtime.v1.RuntimeService/ReopenContainerLog", named("nobody"), Exactly),
            ("/runtime.v1.RuntimeService/StopContainer", named("nobody"), Exactly),
            ("/runtime.v1.ImageService/ListImages", none(), Exactly),
            ("/runtime.v1.ImageService/StreamImages", none(), Exactly),
            ("/runtime.v1.ImageService/ImageFsInfo", none(), Measured),
            ("/runtime.v1.ImageService/RemoveImage", none(), Exactly),
            // Malformed requests, and methods that do not exist.
            ("/runtime.v1.RuntimeService/ContainerStatus", Bytes::from_static(b"\xff\xff\xff"), Exactly),
            ("/runtime.v1.RuntimeService/ContainerStatus", named("caf\u{e9}"), Exactly),
            ("/runtime.v1.RuntimeService/ContainerStatus", Bytes::from_static(b"\x0a\x02\xc3\x28"), Exactly),
            (UNKNOWN_METHOD, none(), Exactly),
            (UNKNOWN_SERVICE, none(), Exactly),
        ];
        for (path, request, compared) in calls {
            let expected = straight.call(path, request.clone()).await?;
            let found = proxied.call(path, request).await?;
            if [UNKNOWN_METHOD, UNKNOWN_SERVICE].contains(&path) {
                let code = expected.as_ref().map_or_else(Status::code, |_| Code::Ok);
                ensure!(code == Code::Unimplemented, "{path}: {}", describe(&expected));
            }
            ensure!(
                equal(&expected, &found, compared),
                "{path}: {}\nand through the proxy: {}",
                describe(&expected),
                describe(&found)
            );
        }
        // Larger than gRPC's default limit (4 MiB), and than containerd's (16 MiB).
        for (size, code) in [(5 << 20, Code::Ok), (17 << 20, Code::ResourceExhausted)] {
            let path = "/runtime.v1.RuntimeService/Version";
            let request = named(&"x".repeat(size));
            let expected = straight.call(path, request.clone()).await?;
            let found = proxied.call(path, request).await?;
            ensure!(
                expected.as_ref().map_or_else(Status::code, |_| Code::Ok) == code,
                "{}",
                describe(&expected)
            );
            ensure!(equal(&expected, &found, Exactly), "{size}: {}", describe(&found));
        }
        Ok(())
    })
    .await
}
