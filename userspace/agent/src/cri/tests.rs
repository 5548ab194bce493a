//! The resolver against a real server that behaves, and that does not.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use kwitness_core::model::{ContainerId, Observation, RuntimeFacts};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::mpsc;
use tokio::time::{sleep, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use super::resolver::{Resolver, Timing, start_with};
use crate::config::RuntimeChoice;
use kwitness_cri::runtime::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use kwitness_cri::runtime::*;

const TIMING: Timing = Timing {
    deadline: Duration::from_secs(1),
    list_pause: Duration::from_millis(20),
    retry_max: Duration::from_millis(80),
    give_up: Duration::from_secs(2),
    idle: Duration::from_millis(100),
    reconnect: (Duration::from_millis(20), Duration::from_millis(50)),
};

/// What the server does next.
#[derive(Clone, Debug, Default)]
struct Conduct {
    sandboxes: Vec<&'static str>,
    /// With their states.
    containers: Vec<(&'static str, i32)>,
    delay: Duration,
    refuse: bool,
}

#[derive(Clone, Debug, Default)]
struct Runtime(Arc<Mutex<Conduct>>);

impl Runtime {
    fn set(&self, change: impl FnOnce(&mut Conduct)) {
        change(&mut self.0.lock().unwrap());
    }

    async fn behave(&self) -> Result<Conduct, Status> {
        let conduct = self.0.lock().unwrap().clone();
        sleep(conduct.delay).await;
        if conduct.refuse { Err(Status::unknown("not now")) } else { Ok(conduct) }
    }

    /// Serves until the result is dropped; then its connections are gone, too, as those of a process are.
    fn serve(&self, socket: &Path) -> Serving {
        let _ = std::fs::remove_file(socket);
        let process =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let _within = process.enter();
        let connections = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let service = RuntimeServiceServer::new(self.clone());
        process.spawn(Server::builder().add_service(service).serve_with_incoming(connections));
        Serving(Some(process))
    }
}

struct Serving(Option<tokio::runtime::Runtime>);

impl Drop for Serving {
    fn drop(&mut self) {
        if let Some(process) = self.0.take() {
            process.shutdown_background();
        }
    }
}

#[tonic::async_trait]
impl RuntimeService for Runtime {
    async fn version(&self, _: Request<VersionRequest>) -> Result<Response<VersionResponse>, Status> {
        let answer = VersionResponse { runtime_name: "fake".into(), runtime_version: "1.0".into() };
        Ok(Response::new(answer))
    }

    async fn list_pod_sandbox(
        &self,
        _: Request<ListPodSandboxRequest>,
    ) -> Result<Response<ListPodSandboxResponse>, Status> {
        let items = self.behave().await?.sandboxes.into_iter().map(|id| PodSandbox {
            id: id.into(),
            metadata: Some(PodSandboxMetadata { name: format!("pod-of-{id}").into(), ..Default::default() }),
            ..Default::default()
        });
        Ok(Response::new(ListPodSandboxResponse { items: items.collect() }))
    }

    async fn list_containers(
        &self,
        _: Request<ListContainersRequest>,
    ) -> Result<Response<ListContainersResponse>, Status> {
        let containers = self.behave().await?.containers.into_iter();
        let containers =
            containers.map(|(id, state)| Container { id: id.into(), state, ..Default::default() });
        Ok(Response::new(ListContainersResponse { containers: containers.collect() }))
    }

    async fn container_status(
        &self,
        request: Request<ContainerStatusRequest>,
    ) -> Result<Response<ContainerStatusResponse>, Status> {
        match &*request.into_inner().container_id {
            "unknown" => return Err(Status::not_found("no such container")),
            // As cri-dockerd says it.
            "removed" => {
                return Err(Status::unknown("Error response from daemon: No such container: removed"));
            }
            _ => {}
        }
        let linux = LinuxContainerResources { memory_limit_in_bytes: 4096, ..Default::default() };
        let resources = Some(ContainerResources { linux: Some(linux) });
        Ok(Response::new(ContainerStatusResponse { status: Some(ContainerStatus { resources }) }))
    }
}

struct Bench {
    directory: tempfile::TempDir,
    resolver: Resolver,
    answers: mpsc::Receiver<Observation>,
}

impl Bench {
    fn new() -> Self {
        Self::with(TIMING)
    }

    fn with(timing: Timing) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let (sender, answers) = mpsc::channel(4);
        let socket = directory.path().join("cri.sock");
        let (resolver, work) = start_with(timing, RuntimeChoice::Socket(socket), sender);
        tokio::spawn(work);
        Self { directory, resolver, answers }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("cri.sock")
    }

    fn ask(&self, id: &str) {
        self.resolver.ask(ContainerId(id.into()));
    }

    async fn answer(&mut self) -> (ContainerId, Option<Arc<RuntimeFacts>>) {
        match timeout(Duration::from_secs(60), self.answers.recv()).await.unwrap().unwrap() {
            Observation::Runtime { container, facts, .. } => (container, facts),
            other => panic!("{other:?}"),
        }
    }

    async fn pod_of(&mut self, id: &str) -> String {
        let (container, facts) = self.answer().await;
        assert_eq!(&*container.0, id);
        facts.unwrap().pod_name.as_deref().unwrap().to_owned()
    }

    fn count(&self, name: &str) -> u64 {
        self.resolver.counters()[name]
    }

    /// Waits until that was counted so often.
    async fn counted(&self, name: &str, times: u64) {
        let is_so = async {
            while self.count(name) < times {
                sleep(Duration::from_millis(1)).await;
            }
        };
        timeout(Duration::from_secs(60), is_so).await.unwrap_or_else(|_| panic!("not {times} {name}"));
    }

    /// Waits until the status says that of the runtime.
    async fn error(&self, part: &str) {
        let says = async {
            while !self.resolver.status().error.contains(part) {
                sleep(Duration::from_millis(1)).await;
            }
        };
        let said = timeout(Duration::from_secs(60), says).await;
        said.unwrap_or_else(|_| panic!("not \"{part}\": {:?}", self.resolver.status()));
    }
}

#[tokio::test]
async fn what_is_listed_is_answered_and_the_runtime_is_shown() {
    let mut bench = Bench::new();
    let runtime = Runtime::default();
    runtime.set(|conduct| conduct.sandboxes = vec!["a", "b"]);
    let _serving = runtime.serve(&bench.socket());
    bench.ask("a");
    assert_eq!(bench.pod_of("a").await, "pod-of-a");
    let status = bench.resolver.status();
    assert_eq!((&*status.name, &*status.version, &*status.error), ("fake", "1.0", ""));
    assert_eq!(status.endpoint, format!("unix://{}", bench.socket().display()));
    assert_eq!(bench.count("cri_open"), 0);
}

#[tokio::test]
async fn what_runs_is_known_without_a_question() {
    let bench = Bench::new();
    let runtime = Runtime::default();
    let set = |containers: &[(&'static str, i32)]| {
        let containers = containers.to_vec();
        runtime
            .set(|conduct| *conduct = Conduct { sandboxes: vec!["pod"], containers, ..Conduct::default() });
    };
    let running = async |expected: &[&str]| {
        let expected = expected.iter().map(|id| ContainerId((*id).into())).collect();
        let is_so = async {
            while *bench.resolver.running() != expected {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), is_so).await.expect("it is listed");
    };
    set(&[("created", 0), ("a", 1), ("b", 1), ("exited", 2), ("unknown", 3)]);
    let _serving = runtime.serve(&bench.socket());
    running(&["a", "b"]).await;
    set(&[("a", 2), ("b", 1)]);
    running(&["b"]).await;
}

#[tokio::test]
async fn a_sandbox_that_is_listed_late_is_answered_then() {
    let mut bench = Bench::with(Timing { give_up: Duration::MAX, ..TIMING });
    let runtime = Runtime::default();
    let _serving = runtime.serve(&bench.socket());
    bench.ask("a");
    // The first of them is done with.
    bench.counted("cri_lists", 2).await;
    assert!(bench.answers.try_recv().is_err());
    runtime.set(|conduct| conduct.sandboxes = vec!["a"]);
    assert_eq!(bench.pod_of("a").await, "pod-of-a");
}

#[tokio::test]
async fn what_is_never_listed_is_given_up() {
    let mut bench = Bench::new();
    let _serving = Runtime::default().serve(&bench.socket());
    bench.ask("a");
    let (container, facts) = bench.answer().await;
    assert_eq!((&*container.0, facts), ("a", None));
    assert_eq!((bench.count("cri_unknown"), bench.count("cri_open")), (1, 0));
}

/// A busy node may take longer to start a sandbox than the resolver looks for it; until then it is not listed.
#[tokio::test]
async fn what_was_given_up_is_answered_when_it_is_listed_after_all() {
    let mut bench = Bench::new();
    let runtime = Runtime::default();
    let _serving = runtime.serve(&bench.socket());
    bench.ask("a");
    assert_eq!(bench.answer().await.1, None);
    runtime.set(|conduct| conduct.sandboxes = vec!["a"]);
    assert_eq!(bench.pod_of("a").await, "pod-of-a");
    assert_eq!((bench.count("cri_unknown"), bench.count("cri_resolved")), (1, 1));
}

#[tokio::test]
async fn a_runtime_that_is_away_is_waited_for_without_giving_up() {
    // One list without it would be enough to give up.
    let mut bench = Bench::with(Timing { give_up: Duration::ZERO, ..TIMING });
    bench.ask("a");
    bench.counted("cri_failures", 3).await;
    assert!(bench.answers.try_recv().is_err());
    bench.error("cannot connect").await;
    let runtime = Runtime::default();
    runtime.set(|conduct| conduct.sandboxes = vec!["a"]);
    let serving = runtime.serve(&bench.socket());
    assert_eq!(bench.pod_of("a").await, "pod-of-a");

    drop(serving);
    std::fs::remove_file(bench.socket()).unwrap();
    // No call is made meanwhile.
    bench.error("cannot connect").await;
    runtime.set(|conduct| conduct.sandboxes = vec!["b"]);
    bench.ask("b");
    let _serving = runtime.serve(&bench.socket());
    assert_eq!(bench.pod_of("b").await, "pod-of-b", "after a restart");
}

#[tokio::test]
async fn a_slow_or_failing_runtime_is_counted_and_queried_again() {
    let mut bench = Bench::new();
    let runtime = Runtime::default();
    runtime.set(|conduct| conduct.delay = TIMING.deadline * 2);
    let _serving = runtime.serve(&bench.socket());
    bench.ask("a");
    bench.error("no answer within").await;
    runtime.set(|conduct| *conduct = Conduct { refuse: true, ..Conduct::default() });
    bench.error("not now").await;
    assert!(bench.count("cri_failures") >= 2);
    runtime.set(|conduct| *conduct = Conduct { sandboxes: vec!["a"], ..Conduct::default() });
    assert_eq!(bench.pod_of("a").await, "pod-of-a");
    assert_eq!(bench.resolver.status().error, "");
}

#[tokio::test]
async fn what_talks_nonsense_is_no_runtime() {
    // HTTP/2's settings, and of an answer the beginning; the connection is closed then.
    const CUT_OFF: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\xff\xff\0\0\0\0\0\x01\0\0\0\x01\0abc";
    let mut bench = Bench::new();
    for nonsense in [&b"220 this is a mail server\r\n"[..], CUT_OFF] {
        let _ = std::fs::remove_file(bench.socket());
        let listener = UnixListener::bind(bench.socket()).unwrap();
        let talking = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.write_all(nonsense).await;
            }
        });
        bench.ask("a");
        bench.counted("cri_failures", bench.count("cri_failures") + 1).await;
        assert_ne!(bench.resolver.status().error, "");
        talking.abort();
    }
    let runtime = Runtime::default();
    runtime.set(|conduct| conduct.sandboxes = vec!["a"]);
    let _serving = runtime.serve(&bench.socket());
    assert_eq!(bench.pod_of("a").await, "pod-of-a");
}

#[tokio::test]
async fn an_answer_that_is_too_large_costs_that_answer() {
    let mut bench = Bench::new();
    let runtime = Runtime::default();
    let huge: &'static str = "x".repeat(super::ANSWER_MAX + 1).leak();
    runtime.set(|conduct| conduct.sandboxes = vec!["a", huge]);
    let _serving = runtime.serve(&bench.socket());
    bench.ask("a");
    bench.error("too large").await;
    // Few bytes on the wire, and very many once they are decoded.
    runtime.set(|conduct| *conduct = Conduct { containers: vec![("", 0); 1 << 18], ..Default::default() });
    bench.error("too many fields").await;
    runtime.set(|conduct| conduct.containers = Vec::new());
    runtime.set(|conduct| conduct.sandboxes = vec!["a", "a"]);
    assert_eq!(bench.pod_of("a").await, "pod-of-a", "what is listed twice is one");
}

#[tokio::test]
async fn many_questions_are_answered_by_few_lists() {
    let mut bench = Bench::new();
    let ids: Vec<&'static str> = (0..500).map(|id| &*format!("c{id}").leak()).collect();
    let runtime = Runtime::default();
    runtime.set(|conduct| conduct.sandboxes = ids.clone());
    for id in &ids {
        bench.ask(id);
        bench.ask(id);
    }
    assert_eq!(bench.count("cri_open"), 500);
    let _serving = runtime.serve(&bench.socket());
    for _ in &ids {
        assert!(bench.answer().await.1.is_some());
    }
    assert_eq!((bench.count("cri_resolved"), bench.count("cri_open")), (500, 0));
    assert!(bench.count("cri_lists") <= 2, "{}", bench.count("cri_lists"));
}

#[tokio::test]
async fn what_the_runtime_does_not_know_does_not_keep_it_listing() {
    let mut bench = Bench::new();
    let runtime = Runtime::default();
    let delay = TIMING.idle / 4;
    runtime.set(|conduct| conduct.delay = delay);
    let _serving = runtime.serve(&bench.socket());
    let began = std::time::Instant::now();
    const LISTS: u32 = 10;
    // One more each time: one of them is always due.
    for number in 0.. {
        bench.ask(&format!("c{number}"));
        let _given_up = timeout(Duration::from_millis(5), bench.answers.recv()).await;
        if bench.count("cri_lists") >= u64::from(LISTS) {
            break;
        }
    }
    // A list takes two delays at least, the pause until the next one four.
    let (took, least) = (began.elapsed(), delay * (2 + 6 * (LISTS - 1)));
    assert!(took >= least, "{LISTS} lists in {took:?}, less than {least:?}");
}

#[tokio::test]
async fn there_is_a_bound_on_questions() {
    let bench = Bench::new();
    for id in 0..20_000 {
        bench.ask(&format!("c{id}"));
    }
    assert_eq!((bench.count("cri_open"), bench.count("cri_refused")), (16_384, 20_000 - 16_384));
    assert!(bench.resolver.has_turned_away() && !bench.resolver.ask_again(), "there is no room yet");
}

#[tokio::test]
async fn what_was_turned_away_is_to_be_asked_again_once_there_is_room() {
    // However long the list takes.
    let (deadline, give_up) = (Duration::from_secs(60), Duration::from_secs(60));
    let mut bench = Bench::with(Timing { deadline, give_up, ..TIMING });
    let ids: Vec<&'static str> = (0..16_385).map(|id| &*format!("c{id}").leak()).collect();
    ids.iter().for_each(|id| bench.ask(id));
    assert!(bench.resolver.has_turned_away());
    let runtime = Runtime::default();
    runtime.set(|conduct| conduct.sandboxes = ids.clone());
    let _serving = runtime.serve(&bench.socket());
    for _ in 1..ids.len() {
        assert!(bench.answer().await.1.is_some());
    }
    assert!(bench.resolver.ask_again());
    assert!(!bench.resolver.has_turned_away() && !bench.resolver.ask_again(), "once");
    bench.ask(ids[16_384]);
    assert_eq!(bench.pod_of("c16384").await, "pod-of-c16384");
}

#[tokio::test]
async fn a_container_that_the_runtime_does_not_know_has_no_limits_of_it() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cri.sock");
    let _serving = Runtime::default().serve(&socket);
    let calls = super::Calls::default();
    let open = super::Connection::open(&socket, Duration::from_secs(5), calls.clone());
    let connection = open.await.unwrap();
    let known = connection.resources("a").await.unwrap();
    assert_eq!(known.map(|resources| resources.memory_limit_in_bytes), Some(4096));
    for gone in ["unknown", "removed"] {
        assert_eq!(connection.resources(gone).await.unwrap(), None, "{gone}");
    }
    let calls = calls.by_method();
    assert_eq!(calls["Version"].codes.get("OK"), Some(&1));
    assert_eq!(calls["ContainerStatus"].codes.values().sum::<u64>(), 3);
    assert_eq!(calls["ContainerStatus"].durations.count(), 3);
}
