//! What a watcher receives when it cannot keep up.

use kwitness_api::proto::{Event, GapCause, event};
use kwitness_tests::prelude::*;

/// Far more events than the replay window below and the sockets between can hold: each program is an exec and an exit.
const PROGRAMS: usize = 4000;

pub(crate) async fn a_slow_watcher_hurts_only_itself(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&["journal.replay_window=1024"], async |node, agent| {
        let mut fast = agent.watch(from_now()).await?;
        let mut slow = agent.client().await?.watch(from_now()).await.context("call Watch")?.into_inner();
        let pod = node.run_pod(&PodSpec::new("busy", ctx.combination.handler)?).await?;
        let line = format!("i=0; while [ $i -lt {PROGRAMS} ]; do /bin/true; i=$((i+1)); done");
        let id = node.run(&pod, &ContainerSpec::shell("main", &line)).await?;
        node.wait_exited(&id).await?;
        node.remove_pod(&pod).await?;

        let seen = fast.wait_until("the end", |seen| seen.has(&pod.sandbox, "deleted")).await?;
        seen.check_unbroken()?;
        seen.check_complete()?;
        let of_its_own = |event: &&Event| match &event.kind {
            Some(event::Kind::Exec(exec)) => exec.program == "/bin/true",
            _ => false,
        };
        let programs = seen.of(&id).filter(of_its_own).count();
        ensure!(programs == PROGRAMS, "the fast watcher got {programs} of {PROGRAMS} programs");
        let last =
            seen.events().next_back().and_then(|event| event.position.clone()).context("no position")?;

        // Now the slow one reads: a beginning without a hole, one gap that says exactly what is missing, and an
        // end without a hole.
        let mut expected = None;
        let mut gaps = 0;
        loop {
            let message = tokio::time::timeout(Duration::from_secs(30), slow.message()).await;
            let message =
                message.context("the slow watcher gets no more")?.context("the slow watcher's stream")?;
            for event in message.context("the slow watcher's stream ended")?.events {
                if let Some(event::Kind::Gap(gap)) = &event.kind {
                    ensure!(gap.cause() == GapCause::WatcherLagged, "{gap:?}");
                    let (first, last) = gap.first_seq.zip(gap.last_seq).context("a gap without its ends")?;
                    ensure!(expected.is_none_or(|expected| first == expected), "{gap:?} after {expected:?}");
                    ensure!(gap.lost.get("event") == Some(&(last - first + 1)), "{gap:?}");
                    expected = Some(last + 1);
                    gaps += 1;
                    continue;
                }
                let seq = event.position.context("no position")?.seq;
                ensure!(expected.is_none_or(|expected| seq == expected), "{seq} came, not {expected:?}");
                expected = Some(seq + 1);
            }
            if expected.is_some_and(|expected| expected > last.seq) {
                break;
            }
        }
        ensure!(gaps > 0, "the slow watcher was not slow enough: it got everything");
        Ok(())
    })
    .await
}
