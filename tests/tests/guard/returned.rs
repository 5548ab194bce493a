//! What the guard has raised is given back, also by the next guard; and each step is an event of the daemon's.

use std::path::Path;

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Basis, Source, VerdictKind};
use kwitness_tests::hog::{Keeping, LIMIT, POD, POLICY, SIZE, limited, returning_policy};
use kwitness_tests::late_runtime::LateRuntime;
use kwitness_tests::prelude::*;

use crate::scene::{Scene, with_guard};

/// [`LIMIT`] after one raise by [`POLICY`], and after two.
pub(crate) const RAISED: u64 = 128 << 20;
const RAISED_AGAIN: u64 = 224 << 20;
/// How long the guard may take to report to a daemon that is back, in an emulated guest.
const WAIT: Duration = Duration::from_secs(180);

/// A hog takes more than its limit, is raised, and ends; its container is quiet from then on.
pub(crate) async fn after_a_quiet_time(ctx: &Testbed<'_>) -> Result<()> {
    with_guard(ctx, &returning_policy(), async |&Scene { node, agent, guard, pod }| {
        let mut watcher = agent.watch(from_now()).await?;
        let hog = Keeping::start(node, pod, "lent", guard).await?;
        hog.take().await?;
        // As long as it keeps its memory, no lower limit is enough.
        let status = guard.status().await?;
        let lent: Vec<_> = status.armed.iter().map(|armed| armed.original_limit).collect();
        ensure!(lent == [Some(LIMIT)] && status.returned == 0, "{status:?}");
        let code = hog.end().await?;
        ensure!(code == 0, "the hog ended with {code}");

        hog.wait_limit(LIMIT).await?;
        let returned = |seen: &Seen| seen.has(&hog.id, "guardReturned");
        let seen = watcher.wait_until("the return's event", returned).await?;
        check(&seen, &hog.id)?;
        let verdict = limit::own(agent.verify(limit::of_container(&hog.id)).await?, "memory.max")?;
        let is_guards = verdict.compared_with() == Source::Guard && verdict.verdict() == VerdictKind::InForce;
        ensure!(is_guards, "not in force by the guard's word: {verdict:?}");
        let status = guard.status().await?;
        ensure!(status.returned == 1, "{status:?}");
        ensure!(status.armed.iter().all(|armed| armed.original_limit.is_none()), "{status:?}");
        ensure!(memory_event(&hog.cgroup, "oom_kill")? == 0, "OOM-killed");
        Ok(())
    })
    .await
}

/// The events of a container that was held, raised and is back.
fn check(seen: &Seen, id: &str) -> Result<()> {
    let of_guard: Vec<_> = seen.of(id).filter(|event| event.basis() == Basis::Guard).collect();
    let at = |kind: &str| of_guard.iter().position(|event| event.r#type == kind);
    let (held, continued) = (at("guardHeld"), at("guardContinued"));
    ensure!(held.is_some() && held < continued, "not held and continued:\n{seen}");
    // In an emulated guest a raise may come after the hold, which was refused as too late then.
    let decided = at("guardRaised").or(at("guardRefused"));
    ensure!(held < decided && decided < at("guardReturned"), "not decided in between:\n{seen}");
    for event in of_guard {
        match event.kind.as_ref().context("no kind")? {
            Kind::GuardHeld(held) => ensure!(held.limit_bytes == LIMIT, "{held:?}"),
            Kind::GuardRaised(raised) => {
                ensure!(raised.limit_before == LIMIT && raised.limit_after > LIMIT, "{raised:?}");
            }
            Kind::GuardReturned(returned) => {
                ensure!((returned.limit_after, returned.original_limit) == (LIMIT, LIMIT), "{returned:?}");
            }
            _ => {}
        }
    }
    // The guard's own doing is nothing that another process has reverted.
    let verdicts = seen.of(id).filter_map(|event| match &event.kind {
        Some(Kind::Verdict(verdict)) if verdict.file == "memory.max" => Some(verdict),
        _ => None,
    });
    let wrong = |kind| matches!(kind, VerdictKind::Reverted | VerdictKind::Diverged);
    let wrong: Vec<_> = verdicts.filter(|verdict| wrong(verdict.verdict())).collect();
    ensure!(wrong.is_empty(), "{wrong:?}");
    Ok(())
}

/// The guard is killed while a limit is raised. What it has recorded, the next one gives back.
pub(crate) async fn by_the_next_guard(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let runtime = Path::new(CONTAINERD_SOCKET);
        let mut guard = Guard::start(&ctx.environment, agent, &returning_policy(), runtime).await?;
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let hog = Keeping::start(node, &pod, "inherited", &guard).await?;
        hog.take().await.with_context(|| guard.log_tail())?;
        guard.kill()?;
        let guard = guard.start_again().await?;
        guard.wait_armed(1).await?;
        ensure!(hog.end().await? == 0, "{}", guard.log_tail());
        hog.wait_limit(LIMIT).await.with_context(|| guard.log_tail())?;
        guard.wait("the return", |status| (status.returned == 1).then_some(())).await?;
        guard.stop()?;
        node.remove_pod(&pod).await
    })
    .await
}

/// A return is accepted, and the kernel has the higher limit still, when the container needs it again: the raise takes the place of the
/// return, and gives no less than there was.
pub(crate) async fn not_while_it_is_needed_again(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&[], async |node, agent| {
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let out = Out::make()?;
        let hog = |name: &str, bytes: u64| {
            let (go, end) = (until(&format!("{name}-go")), until(&format!("{name}-end")));
            format!("{go}; (head -c {bytes} /dev/zero; : >/out/{name}-taken; {end}) | tail >/dev/null")
        };
        // The second takes more than half of the raised limit, which is the threshold.
        let line = format!("{}; {}; {LEAVE_CODE}", hog("first", SIZE), hog("second", 80_000_000));
        let id = node.run(&pod, &limited("again", &line, &out)).await?;
        let cgroup = node.cgroup_of(&id).await?;
        let runtime = LateRuntime::serve(&cgroup)?;
        runtime.answer();
        let guard = Guard::start(&ctx.environment, agent, &returning_policy(), &runtime.socket()).await?;
        guard.wait_armed(1).await?;
        let done = async {
            out.signal("first-go")?;
            out.wait("first-taken", WAIT).await?;
            let limit = || cgroup::number(&cgroup, "memory.max");
            ensure!(limit()? == RAISED, "raised to {}", limit()?);
            runtime.accept();
            out.signal("first-end")?;
            runtime.accepted().await?;
            runtime.answer();
            out.signal("second-go")?;
            out.wait("second-taken", WAIT).await?;
            ensure!(limit()? == RAISED_AGAIN, "{}", limit()?);
            out.signal("second-end")?;
            let code = out.code(WAIT).await?;
            let oom_kills = memory_event(&cgroup, "oom_kill")?;
            ensure!(code == 0 && oom_kills == 0, "ended with {code}, {oom_kills} OOM kills");
            // On a slow machine the daemon says first that the return is not in force.
            let status = guard.status().await?;
            let reasons: Vec<_> = status.not_returned.keys().map(String::as_str).collect();
            ensure!(
                ["inUse", "notInForce", "unverified"].iter().any(|of| reasons.contains(of)),
                "{status:?}"
            );
            Ok(())
        };
        done.await.with_context(|| guard.log_tail())?;
        guard.stop()?;
        node.remove_pod(&pod).await
    })
    .await
}

/// Another process sets another limit: it stays.
pub(crate) async fn not_what_another_process_has_set(ctx: &Testbed<'_>) -> Result<()> {
    with_guard(ctx, &returning_policy(), async |&Scene { node, agent, guard, pod }| {
        let mut watcher = agent.watch(from_now()).await?;
        let hog = Keeping::start(node, pod, "changed", guard).await?;
        hog.take().await?;
        let other = 5 * LIMIT;
        cgroup::write(&hog.cgroup, "memory.max", other)?;
        let refused = |seen: &Seen| {
            seen.of(&hog.id).any(|event| {
                let kind = event.kind.as_ref();
                matches!(kind, Some(Kind::GuardRefused(refused)) if refused.reason == "limitChanged")
            })
        };
        watcher.wait_until("the refusal's event", refused).await?;
        let status = guard.status().await?;
        ensure!(status.not_returned.get("limitChanged") == Some(&1), "{status:?}");
        ensure!(status.armed.iter().all(|armed| armed.original_limit.is_none()), "{status:?}");
        hog.wait_limit(other).await
    })
    .await
}

/// No daemon runs while a process is held: it continues in time, once the guard has seen the raise itself, and the next daemon's
/// stream has the events.
pub(crate) async fn events_wait_for_the_daemon(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        let mut agent = Agent::start(&ctx.environment, &[]).await?;
        let runtime = Path::new(CONTAINERD_SOCKET);
        let guard = Guard::start(&ctx.environment, &agent, POLICY, runtime).await?;
        let pod = node.run_pod(&PodSpec::new(POD, ctx.combination.handler)?).await?;
        let hog = Keeping::start(node, &pod, "waiting", &guard).await?;
        agent.kill()?;
        hog.take().await.with_context(|| guard.log_tail())?;
        agent.start_again().await?;
        let reported = async || {
            let seen = agent.replay().await?;
            Ok((seen.has(&hog.id, "guardHeld") && seen.has(&hog.id, "guardContinued")).then_some(seen))
        };
        let seen = wait_for("the guard's events", WAIT, reported).await;
        let seen = seen.with_context(|| guard.log_tail())?;
        let decided = seen.of(&hog.id).any(|event| match &event.kind {
            Some(Kind::GuardRaised(_)) => true,
            // In a guest in which the runtime needs longer than the hold.
            Some(Kind::GuardRefused(refused)) => ["unverified", "tooLate"].contains(&refused.reason.as_str()),
            _ => false,
        });
        ensure!(decided, "neither raised nor refused without a daemon:\n{seen}");
        ensure!(hog.end().await? == 0, "{}", guard.log_tail());
        guard.stop()?;
        node.remove_pod(&pod).await?;
        agent.stop()
    })
    .await
}
