//! The program under test: `kwitness daemon`, started and stopped as a service manager would, and its clients.
//!
//! Owns the daemon's process and its files. Knows the public API only: what a test learns of the daemon, any
//! client can learn.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use kwitness_api::proto;
use kwitness_api::proto::kwitness_client::KwitnessClient;
use nix::time::{ClockId, clock_gettime};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;

use crate::collector::{self, Collector};
use crate::environment::Environment;
use crate::events::{Received, Seen};
use crate::process::{self, Managed, Paused};

/// A guest without hardware virtualization verifies the programs twenty times slower than the machine itself.
const START_LIMIT: Duration = Duration::from_secs(180);
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// Twice what the daemon sends at most: the answer on twenty thousand containers is larger than tonic's own limit.
pub const MESSAGE_MAX: usize = 64 << 20;

/// What a failed test needs to know.
const DETAILS: [&str; 2] = ["--set", "log.level=info,kwitness=debug"];

#[derive(Debug)]
pub struct Agent {
    process: Managed,
    program: PathBuf,
    arguments: Vec<String>,
    socket: PathBuf,
    directory: tempfile::TempDir,
}

#[derive(Debug)]
pub struct Watcher(Collector<Collected>);

#[derive(Debug, Default)]
struct Collected {
    snapshot: Option<proto::Snapshot>,
    events: Vec<Received>,
}

impl Agent {
    /// Starts the daemon with the settings (`"kernel.lifecycle_ring=1MiB"`) and waits until it says it is ready.
    pub async fn start(environment: &Environment, settings: &[&str]) -> Result<Self> {
        let mut agent = Self::spawn(environment, settings)?;
        agent.wait_ready().await?;
        Ok(agent)
    }

    pub fn spawn(environment: &Environment, settings: &[&str]) -> Result<Self> {
        let settings = settings.iter().flat_map(|setting| ["--set", setting]);
        Self::spawn_with(environment, DETAILS.into_iter().chain(settings).collect())
    }

    /// Starts the daemon with a configuration file and nothing else, and waits until it says it is ready.
    pub async fn start_configured(environment: &Environment, file: &Path) -> Result<Self> {
        let file = file.to_str().context("a path in UTF-8")?;
        let mut agent = Self::spawn_with(environment, vec!["--config", file])?;
        agent.wait_ready().await?;
        Ok(agent)
    }

    /// Starts the daemon, which writes what its core observes to `recording`, and waits until it says it is ready.
    pub async fn start_recording(
        environment: &Environment,
        settings: &[&str],
        recording: &Path,
    ) -> Result<Self> {
        let mut arguments = vec!["--record", recording.to_str().context("a path in UTF-8")?];
        arguments.extend(DETAILS);
        arguments.extend(settings.iter().flat_map(|setting| ["--set", setting]));
        let mut agent = Self::spawn_with(environment, arguments)?;
        agent.wait_ready().await?;
        Ok(agent)
    }

    fn spawn_with(environment: &Environment, arguments: Vec<&str>) -> Result<Self> {
        let directory = process::directory("agent")?;
        let socket = directory.path().join("api/kwitness.sock");
        let program = environment.kwitness();
        // Of other cgroups on this machine, a test's daemon sees none.
        let subtree = environment.subtree.iter().map(|subtree| format!("--set=kernel.subtree={subtree}"));
        // Nothing that outlives a test, unless the test says where.
        let own = ["--set=kernel.pin=off".to_owned()].into_iter().chain(subtree);
        let arguments: Vec<_> = own.chain(arguments.into_iter().map(str::to_owned)).collect();
        let process = spawn(&program, &arguments, &socket, directory.path())?;
        Ok(Self { process, program, arguments, socket, directory })
    }

    /// Starts it again, after it has ended, at the same socket with the same settings.
    pub async fn start_again(&mut self) -> Result<()> {
        self.process = spawn(&self.program, &self.arguments, &self.socket, self.directory.path())?;
        self.wait_ready().await
    }

    /// Gives it one more argument, from its next start on.
    pub fn add_argument(&mut self, argument: &str) {
        self.arguments.push(argument.to_owned());
    }

    /// Starts another daemon at its socket, with its arguments and these, and a log of that name.
    pub fn spawn_beside(&self, name: &str, more: &[&str]) -> Result<Managed> {
        let mut command = Command::new(&self.program);
        command.arg("daemon").arg("--socket").arg(&self.socket).args(&self.arguments).args(more);
        Managed::spawn(name, command, &self.directory.path().join(format!("{name}.log")))
    }

    /// Has that process as its own; the one that it had.
    pub fn replace_process(&mut self, process: Managed) -> Managed {
        std::mem::replace(&mut self.process, process)
    }

    /// Ends it with SIGTERM and starts it again.
    pub async fn restart(&mut self) -> Result<()> {
        self.process.terminate(STOP_LIMIT)?;
        self.start_again().await
    }

    /// Waits until the daemon's health service says SERVING.
    pub async fn wait_ready(&mut self) -> Result<()> {
        let socket = &self.socket;
        let serves = async || {
            let Ok(channel) = connect(socket).await else { return Ok(None) };
            let answer = HealthClient::new(channel).check(HealthCheckRequest::default()).await;
            let serving = answer.is_ok_and(|answer| answer.get_ref().status() == ServingStatus::Serving);
            Ok(serving.then_some(()))
        };
        self.process.wait_for("the daemon to be ready", START_LIMIT, serves).await
    }

    /// Waits until the daemon has attached so many programs, or is further than that in its start.
    pub async fn wait_attached(&mut self, programs: usize) -> Result<()> {
        let (pid, socket) = (self.process.pid(), &self.socket);
        let attached = async || {
            let is_reached = socket.exists() || process::bpf_links(pid)? >= programs;
            Ok(is_reached.then_some(()))
        };
        self.process.wait_for("the daemon to attach programs", START_LIMIT, attached).await
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn process(&mut self) -> &mut Managed {
        &mut self.process
    }

    pub fn log(&self) -> Result<String> {
        self.process.log()
    }

    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    pub async fn client(&self) -> Result<KwitnessClient<Channel>> {
        client(&self.socket).await
    }

    pub async fn status(&self) -> Result<proto::StatusResponse> {
        let answer = self.client().await?.status(proto::StatusRequest {}).await;
        Ok(answer.context("call Status")?.into_inner())
    }

    pub async fn list(&self) -> Result<proto::ListResponse> {
        let answer = self.client().await?.list(proto::ListRequest { filter: None }).await;
        Ok(answer.context("call List")?.into_inner())
    }

    pub async fn verify(
        &self,
        request: proto::VerifyRequest,
    ) -> Result<proto::VerifyResponse, tonic::Status> {
        let mut client =
            self.client().await.map_err(|error| tonic::Status::unavailable(format!("{error:#}")))?;
        Ok(client.verify(request).await?.into_inner())
    }

    pub async fn watch(&self, request: proto::WatchRequest) -> Result<Watcher> {
        Watcher::open(self.client().await?, request).await
    }

    /// Everything that the replay window holds, up to now.
    pub async fn replay(&self) -> Result<Seen> {
        replay(&self.socket).await
    }

    pub fn stop(mut self) -> Result<()> {
        self.process.end(STOP_LIMIT)?;
        ensure!(!self.socket.exists(), "the daemon left its socket behind");
        Ok(())
    }

    pub fn kill(&mut self) -> Result<()> {
        self.process.kill(STOP_LIMIT)
    }

    /// Keeps it from reading what the kernel records until the guard is dropped.
    pub fn pause(&self) -> Result<Paused> {
        self.process.pause()
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

impl Watcher {
    pub async fn open(mut client: KwitnessClient<Channel>, request: proto::WatchRequest) -> Result<Self> {
        let stream = client.watch(request).await.context("call Watch")?.into_inner();
        Ok(Self(Collector::start(
            async { Ok(stream) },
            |all: &mut Collected, message: proto::WatchResponse| {
                let at = boottime();
                all.snapshot = message.snapshot.or(all.snapshot.take());
                all.events.extend(message.events.into_iter().map(|event| Received { event, at }));
            },
        )))
    }

    pub fn seen(&self) -> Seen {
        Seen(self.0.look().all.events.clone())
    }

    pub async fn snapshot(&mut self) -> Result<proto::Snapshot> {
        self.wait("the snapshot", |collected| collected.all.snapshot.clone()).await
    }

    pub async fn wait_until(&mut self, what: &str, accept: impl Fn(&Seen) -> bool) -> Result<Seen> {
        self.wait(what, |collected| Some(Seen(collected.all.events.clone())).filter(&accept)).await
    }

    pub async fn wait_end(&mut self) -> Result<Result<(), tonic::Status>> {
        self.wait("the end of the stream", |collected| collected.end.clone()).await
    }

    async fn wait<T>(
        &mut self,
        what: &str,
        probe: impl Fn(&collector::Collected<Collected>) -> Option<T>,
    ) -> Result<T> {
        let answer = self.0.wait(what, probe).await;
        answer.with_context(|| format!("the watcher has seen:\n{}", self.seen()))
    }
}

fn spawn(program: &Path, arguments: &[String], socket: &Path, directory: &Path) -> Result<Managed> {
    let mut command = Command::new(program);
    command.arg("daemon").arg("--socket").arg(socket);
    command.args(arguments);
    Managed::spawn("kwitness daemon", command, &directory.join("daemon.log"))
}

async fn client(socket: &Path) -> Result<KwitnessClient<Channel>> {
    Ok(KwitnessClient::new(connect(socket).await?).max_decoding_message_size(MESSAGE_MAX))
}

/// Everything that the replay window of the daemon at that socket holds, up to now.
pub async fn replay(socket: &Path) -> Result<Seen> {
    let request = proto::WatchRequest { no_follow: true, ..from_oldest() };
    let mut watcher = Watcher::open(client(socket).await?, request).await?;
    watcher.wait_end().await?.context("the replay ended with an error")?;
    Ok(watcher.seen())
}

pub fn from_now() -> proto::WatchRequest {
    proto::WatchRequest::default()
}

/// From the oldest event that is kept.
pub fn from_oldest() -> proto::WatchRequest {
    let since = Some(kwitness_api::Timestamp { seconds: 0, nanos: 0 });
    proto::WatchRequest { since, ..from_now() }
}

pub fn with_snapshot() -> proto::WatchRequest {
    proto::WatchRequest { snapshot: true, ..proto::WatchRequest::default() }
}

pub fn after(position: &proto::Position) -> proto::WatchRequest {
    proto::WatchRequest { after: Some(position.clone()), ..proto::WatchRequest::default() }
}

/// What a client buffers per stream: HTTP/2's own default. tonic's is large enough to
/// hide for thousands of events that a watcher does not read.
pub const STREAM_WINDOW: u32 = 65_535;
/// What it buffers per connection: hyper's own default.
const CONNECTION_WINDOW: u32 = 5 << 20;

pub async fn connect(socket: &Path) -> Result<Channel> {
    connect_with_window(socket, STREAM_WINDOW).await
}

/// The same with room for so many bytes of a stream, and of all, that have not been read.
pub async fn connect_with_window(socket: &Path, window: u32) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display()))
        .with_context(|| format!("{} as an endpoint", socket.display()))?
        .initial_stream_window_size(window)
        .initial_connection_window_size(CONNECTION_WINDOW.max(window));
    endpoint.connect().await.with_context(|| format!("connect to {}", socket.display()))
}

/// Now, as the kernel's records count time.
pub fn boottime() -> u64 {
    // The clock exists on every kernel since 2.6.39.
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    u64::try_from(now.as_nanos()).unwrap_or(u64::MAX)
}
