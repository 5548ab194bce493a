//! Raises that come late: until then another process continues what is held; or the runtime ends before it answers.
//!
//! What is held gets no more memory before its raise has come than a pipe holds: it is never near its limit.

use kwitness_api::proto::GuardedState;
use kwitness_api::proto::event::Kind;
use kwitness_tests::guard::{wait_continued, wait_stopped};
use kwitness_tests::hog::{POD, POLICY, Piped};
use kwitness_tests::late_runtime::LateRuntime;
use kwitness_tests::prelude::*;
use kwitness_tests::process::{Killed, signal};
use nix::sys::signal::Signal;
use tokio::io::AsyncReadExt as _;
use tokio::net::UnixListener;
use tokio::time::timeout;

use crate::returned::RAISED;

/// How long anything may take in an emulated guest.
const SOON: Duration = Duration::from_secs(300);

/// A process that is held, and what fills it, which is stopped as well.
struct Held {
    pid: u32,
    piped: Piped,
    filler: Killed,
}

impl Held {
    async fn begin(guard: &Guard, piped: Piped) -> Result<Self> {
        guard.wait_armed(1).await?;
        let filler = Killed(piped.fill()?);
        let pid = guard.wait_held().await?;
        wait_stopped(pid).await?;
        signal(filler.id(), Signal::SIGSTOP)?;
        wait_stopped(filler.id()).await?;
        Ok(Self { pid, piped, filler })
    }

    /// Has it get the rest, and waits until it has ended well.
    async fn finish(self, node: &Node) -> Result<()> {
        signal(self.filler.id(), Signal::SIGCONT)?;
        let ended = node.wait_exited(&self.piped.id).await?;
        ensure!(ended.exit_code == 0, "{ended:?}");
        Ok(())
    }
}

/// Another process continues what is held, stops it, and continues it again: while it runs it is slowed down, and its raise takes its
/// course.
pub(crate) async fn continued(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let piped = Piped::start(node, &pod, "continued").await?;
        let (id, cgroup) = (piped.id.clone(), node.cgroup_of(&piped.id).await?);
        let runtime = LateRuntime::serve(&cgroup)?;
        let guard = Guard::start(&ctx.environment, agent, POLICY, &runtime.socket()).await?;
        let done = async {
            let held = Held::begin(&guard, piped).await?;
            let wait_brake = async |is_on| {
                let is_so =
                    async || Ok(((cgroup::text(&cgroup, "memory.high")? != "max") == is_on).then_some(()));
                wait_for(&format!("the second brake to be {}", if is_on { "on" } else { "off" }), SOON, is_so)
                    .await
            };
            for (how, is_on) in [(Signal::SIGCONT, true), (Signal::SIGSTOP, false), (Signal::SIGCONT, true)] {
                signal(held.pid, how)?;
                wait_brake(is_on).await?;
            }
            runtime.answer();
            let both = |seen: &Seen| ["guardRaised", "guardContinued"].iter().all(|kind| seen.has(&id, kind));
            let seen = watcher.wait_until("the raise and the end of the hold", both).await?;
            let ends: Vec<_> = seen
                .of(&id)
                .filter_map(|event| match &event.kind {
                    Some(Kind::GuardContinued(end)) => Some((end.state(), end.reason.as_str())),
                    _ => None,
                })
                .collect();
            ensure!(ends == [(GuardedState::Running, "")], "{ends:?}");
            wait_brake(false).await?;
            held.finish(node).await
        };
        done.await.with_context(|| guard.log_tail())?;
        guard.stop()?;
        node.remove_pod(&pod).await
    })
    .await
}

/// The container runtime ends after it has read the request, and the kernel has the limit after that.
pub(crate) async fn lost(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let piped = Piped::start(node, &pod, "lost").await?;
        let (id, cgroup) = (piped.id.clone(), node.cgroup_of(&piped.id).await?);
        let out = Out::make()?;
        let socket = out.at("runtime.sock");
        let listener = UnixListener::bind(&socket).context("listen as a runtime")?;
        let guard = Guard::start(&ctx.environment, agent, POLICY, &socket).await?;
        let done = async {
            let held = Held::begin(&guard, piped).await?;
            let read = async {
                let (mut connection, _) = listener.accept().await?;
                let mut request = Vec::new();
                while !request.windows(id.len()).any(|part| part == id.as_bytes()) {
                    let count = connection.read_buf(&mut request).await?;
                    ensure!(count > 0, "the guard has ended the connection");
                }
                Ok(())
            };
            timeout(SOON, read).await.context("no request in time")??;
            drop(listener);
            let is_refused = |seen: &Seen| {
                seen.of(&id).any(|event| {
                    matches!(&event.kind, Some(Kind::GuardRefused(refused)) if refused.reason == "runtime")
                })
            };
            watcher.wait_until("the refusal", is_refused).await?;
            wait_continued(held.pid).await?;
            cgroup::write(&cgroup, "memory.max", RAISED)?;
            watcher.wait_until("the raise", |seen| seen.has(&id, "guardRaised")).await?;
            held.finish(node).await
        };
        done.await.with_context(|| guard.log_tail())?;
        // Its end waits for its reports.
        guard.stop()?;
        let seen = agent.replay().await?;
        let counts =
            ["guardHeld", "guardRefused", "guardRaised", "guardContinued"].map(|kind| seen.count(kind));
        ensure!(counts == [1; 4], "not one of each:\n{seen}");
        node.remove_pod(&pod).await
    })
    .await
}
