//! `kwitness cri-proxy` before a runtime, and the CRI at either of them as bytes.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use kwitness_cri::Raw;
use nix::sys::signal::Signal;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::agent::connect;
use crate::environment::Environment;
use crate::node::CONTAINERD_SOCKET;
use crate::process::{self, Managed, wait_for};

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub struct Proxy {
    process: Managed,
    socket: PathBuf,
    /// A socket that outlives the proxy, as systemd's does.
    held: Option<Held>,
    directory: tempfile::TempDir,
}

#[derive(Debug)]
struct Held {
    listener: UnixListener,
    program: PathBuf,
    daemon: PathBuf,
}

impl Proxy {
    /// Starts one before containerd, with events from the daemon at `daemon`, or from containerd where there is no daemon.
    pub async fn start(environment: &Environment, daemon: &Path) -> Result<Self> {
        Self::before(environment, Path::new(CONTAINERD_SOCKET), daemon).await
    }

    pub async fn before(environment: &Environment, runtime: &Path, daemon: &Path) -> Result<Self> {
        Self::start_as(None, environment, runtime, daemon).await
    }

    /// Starts one as that user, of the group of the same number and no other, before whatever listens at `runtime`.
    pub async fn unprivileged(environment: &Environment, user: u32, runtime: &Path) -> Result<Self> {
        Self::start_as(Some(user), environment, runtime, Path::new("/run/there-is-no-daemon.sock")).await
    }

    async fn start_as(
        user: Option<u32>,
        environment: &Environment,
        runtime: &Path,
        daemon: &Path,
    ) -> Result<Self> {
        let directory = process::directory("proxy")?;
        let socket = directory.path().join("cri.sock");
        let mut command = Command::new(environment.kwitness());
        command.args(["cri-proxy", "--log-level", "debug", "--runtime-endpoint"]).arg(runtime);
        command.arg("--listen").arg(&socket).arg("--socket").arg(daemon);
        if let Some(user) = user {
            chown(directory.path(), Some(user), Some(user)).context("give the proxy its directory")?;
            command.uid(user).gid(user);
        }
        let mut process = Managed::spawn("kwitness cri-proxy", command, &directory.path().join("proxy.log"))?;
        // The file is there a moment before the proxy listens.
        let listens = async || Ok(UnixStream::connect(&socket).is_ok().then_some(()));
        process.wait_for("the proxy to listen", START_LIMIT, listens).await?;
        Ok(Self { process, socket, held: None, directory })
    }

    /// Starts one before containerd as systemd does: on a listening socket that is passed to it, and outlives it.
    pub fn activated(environment: &Environment, daemon: &Path) -> Result<Self> {
        let directory = process::directory("proxy")?;
        let socket = directory.path().join("cri.sock");
        let listener =
            UnixListener::bind(&socket).with_context(|| format!("listen at {}", socket.display()))?;
        let held = Held { listener, program: environment.kwitness(), daemon: daemon.to_owned() };
        let process = held.spawn(directory.path())?;
        Ok(Self { process, socket, held: Some(held), directory })
    }

    pub fn restart(&mut self) -> Result<()> {
        let held = self.held.as_ref().context("this proxy has a socket of its own, which ends with it")?;
        self.process.end(STOP_LIMIT)?;
        self.process = held.spawn(self.directory.path())?;
        Ok(())
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    pub async fn counts(&self) -> Result<BTreeMap<String, u64>> {
        let lines = |log: &str| log.lines().filter(|line| line.contains(" counters: ")).count();
        let before = lines(&self.process.log()?);
        self.process.signal(Signal::SIGUSR1)?;
        let log = wait_for("the proxy's counts", STOP_LIMIT, async || {
            Ok(Some(self.process.log()?).filter(|log| lines(log) > before && log.ends_with('\n')))
        });
        let log = log.await?;
        let line = log.lines().rfind(|line| line.contains(" counters: ")).context("the line")?;
        let pairs = line.split_whitespace().filter_map(|word| word.split_once('='));
        Ok(pairs.filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?))).collect())
    }

    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    pub fn stop(mut self) -> Result<()> {
        self.process.end(STOP_LIMIT)?;
        ensure!(self.socket.exists() == self.held.is_some(), "the proxy's socket: {}", self.socket.display());
        Ok(())
    }
}

impl Held {
    /// sd_listen_fds(3): the socket is descriptor 3 of the process that `LISTEN_PID` names.
    fn spawn(&self, directory: &Path) -> Result<Managed> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "LISTEN_FDS=1 LISTEN_PID=$$ exec \"$@\" 3<&0 </dev/null", "sh"]);
        command.arg(&self.program).args(["cri-proxy", "--log-level", "debug", "--runtime-endpoint"]);
        command.arg(CONTAINERD_SOCKET).arg("--socket").arg(&self.daemon);
        let listener = self.listener.try_clone().context("duplicate the proxy's socket")?;
        let stdin = Stdio::from(OwnedFd::from(listener));
        Managed::spawn_with("kwitness cri-proxy", command, stdin, &directory.join("proxy.log"))
    }
}

#[derive(Clone, Debug)]
pub struct RawClient(Channel);

impl RawClient {
    pub async fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(connect(socket).await?))
    }

    /// Subscribes to the runtime's events, as bytes. containerd answers with the first one.
    pub async fn events(&self) -> Result<Streaming<Bytes>, Status> {
        let mut client = tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(16 << 20);
        client.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/GetContainerEvents");
        let answer = client.server_streaming(Request::new(Bytes::new()), path, Raw).await;
        answer.map(tonic::Response::into_inner)
    }

    /// Calls a unary method of the runtime service: its answer, or its status.
    pub async fn call(&self, path: &'static str, request: Bytes) -> Result<Result<Bytes, Status>> {
        let mut client = tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(16 << 20);
        client.ready().await.context("the connection")?;
        let answer = client.unary(Request::new(request), PathAndQuery::from_static(path), Raw).await;
        Ok(answer.map(tonic::Response::into_inner))
    }
}
