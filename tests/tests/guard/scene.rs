//! What most tests of the guard begin and end with.

use std::path::Path;

use kwitness_tests::hog::POD;
use kwitness_tests::prelude::*;

/// A node, its daemon and its guard, with an empty pod that the guard's policy selects.
pub(crate) struct Scene<'a> {
    pub(crate) node: &'a Node,
    pub(crate) agent: &'a Agent,
    pub(crate) guard: &'a Guard,
    pub(crate) pod: &'a Pod,
}

/// Runs `body` with all of it; a failure shows the end of the guard's log. The guard must end well after it.
pub(crate) async fn with_guard(
    ctx: &Testbed<'_>,
    policy: &str,
    body: impl AsyncFnOnce(&Scene<'_>) -> Result<()>,
) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let guard = Guard::start(&ctx.environment, agent, policy, Path::new(CONTAINERD_SOCKET)).await?;
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let scene = Scene { node, agent, guard: &guard, pod: &pod };
        body(&scene).await.with_context(|| guard.log_tail())?;
        guard.stop()?;
        node.remove_pod(&pod).await
    })
    .await
}
