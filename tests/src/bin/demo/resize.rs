//! The scene `resize`: the tests' own series, reported as it happens, with each OCI runtime that this place can run.

use kwitness_tests::prelude::*;
use kwitness_tests::resizes::{self, Account};

use crate::stage;

/// Plays it. The first wrong verdict ends it as an error.
pub(crate) async fn play(environment: &Environment, fast: bool) -> Result<bool> {
    ensure!(
        environment.layout == CgroupLayout::Unified,
        "limits need cgroup v2 with its controllers: run this in a guest, with `cargo xtask demo resize --vm 6.12`"
    );
    let pause = if fast { Duration::ZERO } else { Duration::from_millis(700) };
    let runnable = |combination: &Combination| environment.refuses(*combination).is_none();
    let mut accounts = Vec::new();
    for combination in Combination::ALL.into_iter().filter(runnable) {
        let handler = combination.handler.name();
        stage::say(&format!("A node comes up: containerd with {handler}, and the kwitness daemon."));
        let kubelet = tempfile::tempdir().context("make the kubelet's directory")?;
        let setting = format!("kubelet.directory={}", kubelet.path().display());
        let node = Node::start(environment, combination.driver).await?;
        let agent = Agent::start(environment, &[&setting]).await?;
        stage::introduce(&node, &agent).await?;
        let mut account = Account::with_pause(pause);
        let stage = resizes::Stage { node: &node, agent: &agent, combination };
        let played = resizes::play(stage, kubelet.path(), &mut account).await;
        played.with_context(|| format!("{}\n{}", agent.log_tail(), node.log_tail()))?;
        agent.stop()?;
        node.shutdown().await?;
        accounts.push((handler, account));
    }
    stage::say("Every verdict was right.");
    for (handler, account) in accounts {
        let (steps, sabotaged) = (account.steps(), account.sabotaged());
        stage::item(handler, &format!("{steps} resizes, {sabotaged} of them sabotaged"));
    }
    Ok(true)
}
