//! `kwitness cri-proxy` before a runtime, and the CRI at either of them as bytes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use kwitness::proto::Raw;
use nix::sys::signal::Signal;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::Channel;
use tonic::{Request, Status};

use crate::agent::connect;
use crate::environment::Environment;
use crate::node::CONTAINERD_SOCKET;
use crate::process::{Managed, wait_for};

const START_LIMIT: Duration = Duration::from_secs(30);
const STOP_LIMIT: Duration = Duration::from_secs(10);

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    process: Managed,
    socket: PathBuf,
    _directory: tempfile::TempDir,
}

impl Proxy {
    /// Starts one before containerd, with events from the daemon at `daemon`, or from containerd where nobody is there.
    pub async fn start(environment: &Environment, daemon: &Path) -> Result<Self> {
        Self::before(environment, Path::new(CONTAINERD_SOCKET), daemon).await
    }

    /// Starts one before whatever listens at `runtime`.
    pub async fn before(environment: &Environment, runtime: &Path, daemon: &Path) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("kwitness-proxy-").tempdir_in("/run");
        let directory = directory.context("make the proxy's directory in /run")?;
        let socket = directory.path().join("cri.sock");
        let mut command = Command::new(environment.kwitness());
        command.args(["cri-proxy", "--log-level", "debug", "--runtime-endpoint"]).arg(runtime);
        command.arg("--listen").arg(&socket).arg("--socket").arg(daemon);
        let mut process = Managed::spawn("kwitness cri-proxy", command, &directory.path().join("proxy.log"))?;
        wait_for("the proxy to listen", START_LIMIT, async || {
            process.check_running()?;
            Ok(socket.exists().then_some(()))
        })
        .await?;
        Ok(Self { process, socket, _directory: directory })
    }

    /// Its socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it has counted.
    pub async fn counts(&self) -> Result<BTreeMap<String, u64>> {
        let lines = |log: &str| log.lines().filter(|line| line.contains(" counts ")).count();
        let before = lines(&self.process.log()?);
        self.process.signal(Signal::SIGUSR1)?;
        let log = wait_for("the proxy's counts", STOP_LIMIT, async || {
            Ok(Some(self.process.log()?).filter(|log| lines(log) > before && log.ends_with('\n')))
        });
        let log = log.await?;
        let line = log.lines().rfind(|line| line.contains(" counts ")).context("the line")?;
        let pairs = line.split_whitespace().filter_map(|word| word.rsplit_once('='));
        Ok(pairs
            .filter_map(|(name, count)| {
                let name = name.rsplit_once('=').map_or(name, |(_, name)| name);
                Some((name.to_owned(), count.parse().ok()?))
            })
            .collect())
    }

    /// The end of its log.
    pub fn log_tail(&self) -> String {
        self.process.log_tail()
    }

    /// Ends it; fails if it does not end well.
    pub fn stop(mut self) -> Result<()> {
        let status = self.process.terminate(STOP_LIMIT)?;
        ensure!(status.success(), "the proxy ended badly: {status}\n{}", self.process.log_tail());
        ensure!(!self.socket.exists(), "the proxy left its socket behind");
        Ok(())
    }
}

/// A client that sends and gets bytes.
#[derive(Clone, Debug)]
pub struct RawClient(Channel);

impl RawClient {
    /// Connects to the runtime, or to the proxy.
    pub async fn connect(socket: &Path) -> Result<Self> {
        Ok(Self(connect(socket).await?))
    }

    /// Calls a unary method of the runtime service: its answer, or its status.
    pub async fn call(&self, path: &'static str, request: Bytes) -> Result<Result<Bytes, Status>> {
        let mut client = tonic::client::Grpc::new(self.0.clone()).max_decoding_message_size(16 << 20);
        client.ready().await.context("the connection")?;
        let answer = client.unary(Request::new(request), PathAndQuery::from_static(path), Raw).await;
        Ok(answer.map(tonic::Response::into_inner))
    }
}
