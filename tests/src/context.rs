//! What the tests of one executable share: the environment, one asynchronous runtime, one containerd, one control plane.
//!
//! containerd and the control plane are each started by the first test that needs it and stopped by [`TestContext::finish`]; between two
//! tests both are emptied, so that what one leaves behind when it fails does not fail the next.

use std::future::Future;
use std::ops::Deref;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

use crate::agent::Agent;
use crate::control_plane::{ControlPlane, Extent};
use crate::environment::{Combination, Environment};
use crate::node::Node;
use crate::process::{self, wait_for};
use crate::recording::Recording;

const LIMIT: Duration = Duration::from_secs(30);

#[derive(Debug)]
pub struct TestContext {
    pub environment: Environment,
    runtime: Runtime,
    node: Mutex<Option<Node>>,
    api: Mutex<Option<ControlPlane>>,
}

/// The context of a row, and the OCI runtime and cgroup driver that it runs with.
#[derive(Clone, Copy, Debug)]
pub struct Testbed<'a> {
    context: &'a TestContext,
    pub combination: Combination,
}

impl Deref for Testbed<'_> {
    type Target = TestContext;

    fn deref(&self) -> &TestContext {
        self.context
    }
}

impl Testbed<'_> {
    /// Runs `body` with a node that has no pods, of its cgroup driver.
    pub async fn with_node(&self, body: impl AsyncFnOnce(&mut Node) -> Result<()>) -> Result<()> {
        let driver = self.combination.driver;
        let mut slot = self.node.lock().await;
        match &mut *slot {
            Some(node) if node.driver() == driver => node.remove_all_pods().await?,
            _ => {
                if let Some(other) = slot.take() {
                    other.shutdown().await?;
                }
                *slot = Some(Node::start(&self.environment, driver).await?);
            }
        }
        let node = slot.as_mut().context("no node")?;
        body(node).await.with_context(|| node.log_tail())
    }

    /// Runs `body` with such a node and a daemon.
    pub async fn with_both(
        &self,
        settings: &[&str],
        body: impl AsyncFnOnce(&mut Node, &Agent) -> Result<()>,
    ) -> Result<()> {
        self.with_node(async |node| self.with_agent(settings, async |agent| body(node, agent).await).await)
            .await
    }

    /// The same, with [`TestContext::with_recorded_agent`].
    pub async fn with_both_recorded(
        &self,
        settings: &[&str],
        body: impl AsyncFnOnce(&mut Node, &Agent) -> Result<()>,
    ) -> Result<()> {
        self.with_node(async |node| {
            self.with_recorded_agent(settings, async |agent| body(node, agent).await).await
        })
        .await
    }
}

impl TestContext {
    pub fn new() -> Result<Self> {
        let runtime = Runtime::new().context("start tokio")?;
        let environment = Environment::find()?;
        Ok(Self { environment, runtime, node: Mutex::new(None), api: Mutex::new(None) })
    }

    pub fn on(&self, combination: Combination) -> Testbed<'_> {
        Testbed { context: self, combination }
    }

    pub fn block_on<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }

    /// Runs `body` with a control plane where roles decide, and which has no pods and no nodes.
    pub async fn with_api(&self, body: impl AsyncFnOnce(&ControlPlane) -> Result<()>) -> Result<()> {
        let mut slot = self.api.lock().await;
        let api = match slot.take() {
            Some(api) => api,
            None => {
                let began = Instant::now();
                let api = ControlPlane::start_as(&self.environment, Extent::Roles).await?;
                println!("the API server is ready after {:.1} s", began.elapsed().as_secs_f64());
                api
            }
        };
        let done = body(&api).await.with_context(|| api.log_tail());
        // The next kubelet would run the pods of this one.
        let emptied = api.empty();
        if emptied.is_ok() {
            *slot = Some(api);
        }
        done.and(emptied)
    }

    pub async fn stop_api(&self) {
        drop(self.api.lock().await.take());
    }

    /// Runs `body` with a daemon of its own; a failure shows the end of the daemon's log.
    pub async fn with_agent(
        &self,
        settings: &[&str],
        body: impl AsyncFnOnce(&Agent) -> Result<()>,
    ) -> Result<()> {
        let agent = Agent::start(&self.environment, settings).await?;
        match body(&agent).await {
            Ok(()) => agent.stop(),
            Err(error) => Err(error.context(agent.log_tail())),
        }
    }

    /// The same as [`Self::with_agent`], and what the daemon recorded must replay to the events that it served. `body` leaves
    /// nothing behind that makes events.
    pub async fn with_recorded_agent(
        &self,
        settings: &[&str],
        body: impl AsyncFnOnce(&Agent) -> Result<()>,
    ) -> Result<()> {
        let recording = Recording::new()?;
        let agent = Agent::start_recording(&self.environment, settings, &recording.path()).await?;
        let done = async {
            body(&agent).await?;
            recording.check(&agent).await
        };
        match done.await {
            Ok(()) => agent.stop(),
            Err(error) => Err(error.context(agent.log_tail())),
        }
    }

    /// Stops what is shared; nothing of it may be left behind.
    pub fn finish(&self) -> Result<()> {
        self.block_on(async {
            self.stop_api().await;
            let Some(node) = self.node.lock().await.take() else { return Ok(()) };
            node.shutdown().await?;
            ensure!(!Path::new("/run/containerd").exists(), "/run/containerd is left behind");
            let is_runtimes =
                |words: &[String]| words.first().is_some_and(|word| word.contains("containerd"));
            wait_for("the end of containerd's processes", LIMIT, async || {
                Ok(process::find(is_runtimes)?.is_empty().then_some(()))
            })
            .await
        })
    }
}
