//! What a watcher may ask for, and what it is reported when it cannot keep up.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use kwitness_api::EventKind;
use kwitness_api::proto::{Event, Filter, GapCause, WatchRequest, event};
use kwitness_tests::agent::{after, from_now};
use kwitness_tests::context::TestContext;
use kwitness_tests::environment::Combination;
use kwitness_tests::events::{Seen, kind};
use kwitness_tests::pod::{ContainerSpec, PodSpec};

/// Far more events than the replay window below and the sockets between can hold: each program is an exec and an exit.
const PROGRAMS: usize = 4000;

pub(crate) async fn a_slow_watcher_hurts_only_itself(
    ctx: &TestContext,
    combination: Combination,
) -> Result<()> {
    ctx.with_node(combination.driver, async |node| {
        ctx.with_agent(&["journal.replay_window=1024"], async |agent| {
            let mut fast = agent.watch(from_now()).await?;
            let mut slow = agent.client().await?.watch(from_now()).await.context("call Watch")?.into_inner();
            let pod = node.run_pod(&PodSpec::new("busy", combination.handler)?).await?;
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
                        let (first, last) =
                            gap.first_seq.zip(gap.last_seq).context("a gap without its ends")?;
                        ensure!(
                            expected.is_none_or(|expected| first == expected),
                            "{gap:?} after {expected:?}"
                        );
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
    })
    .await
}

pub(crate) async fn a_watcher_resumes_where_it_was(
    ctx: &TestContext,
    combination: Combination,
) -> Result<()> {
    ctx.with_node(combination.driver, async |node| {
        ctx.with_agent(&[], async |agent| {
            let mut whole = agent.watch(from_now()).await?;
            let mut first = agent.watch(from_now()).await?;
            let pod = node.run_pod(&PodSpec::new("resume", combination.handler)?).await?;
            let seen = first.wait_until("the sandbox", |seen| seen.has(&pod.sandbox, "started")).await?;
            drop(first);
            let id = node.run(&pod, &ContainerSpec::shell("main", "exit 1")).await?;
            node.wait_exited(&id).await?;
            let last =
                seen.events().next_back().and_then(|event| event.position.clone()).context("no position")?;
            let mut second = agent.watch(after(&last)).await?;
            node.remove_pod(&pod).await?;

            let end = |seen: &Seen| seen.has(&pod.sandbox, "deleted");
            let rest = second.wait_until("the end", end).await?;
            let all = whole.wait_until("the end", end).await?;
            all.check_unbroken()?;
            let joined: Vec<_> = seen.events().chain(rest.events()).collect();
            let all_events: Vec<_> = all.events().take(joined.len()).collect();
            ensure!(joined == all_events, "resumed:\n{rest}\nand not the rest of:\n{all}");

            // A place in the future is refused or begins there; it never makes up events.
            let replay = agent.replay().await?;
            replay.check_unbroken()?;
            for id in [&id, &pod.sandbox] {
                ensure!(
                    replay.milestones(id) == ["created", "started", "stopped", "deleted"],
                    "the replay of {id}:\n{replay}"
                );
            }
            Ok(())
        })
        .await
    })
    .await
}

pub(crate) async fn a_filter_passes_what_matches(ctx: &TestContext, combination: Combination) -> Result<()> {
    ctx.with_node(combination.driver, async |node| {
        ctx.with_agent(&[], async |agent| {
            let mut unfiltered = agent.watch(from_now()).await?;
            let mut wanted = PodSpec::new("wanted", combination.handler)?;
            wanted.namespace = "here".to_owned();
            let mut other = PodSpec::new("other", combination.handler)?;
            other.namespace = "there".to_owned();
            let request = |filter| WatchRequest { filter: Some(filter), ..from_now() };
            let kinds = vec![EventKind::Exited.into(), EventKind::Deleted.into()];
            let by_uid = Filter { pods: vec![wanted.uid.clone()], kinds, ..Filter::default() };
            let mut by_uid = agent.watch(request(by_uid)).await?;
            let by_namespace = Filter { namespaces: vec!["here".to_owned()], ..Filter::default() };
            let mut by_namespace = agent.watch(request(by_namespace)).await?;
            for kinds in [vec![99], vec![0]] {
                let refused = agent.watch(request(Filter { kinds, ..Filter::default() })).await;
                if refused.is_ok() {
                    bail!("a kind that does not exist was accepted");
                }
            }

            for spec in [&wanted, &other] {
                let pod = node.run_pod(spec).await?;
                let id = node.run(&pod, &ContainerSpec::shell("main", "exit 2")).await?;
                node.wait_exited(&id).await?;
                node.remove_pod(&pod).await?;
            }
            let end = |seen: &Seen, wanted: &str, count: usize| seen.count(wanted) >= count;
            let all = unfiltered.wait_until("the ends", |seen| end(seen, "deleted", 4)).await?;
            let of_uid = |uid: &str| {
                let uid = uid.to_owned();
                move |event: &&Event| {
                    let pod = event.container.as_ref().and_then(|container| container.pod.as_ref());
                    pod.is_some_and(|pod| pod.uid == uid)
                }
            };
            let seen = by_uid.wait_until("the ends", |seen| end(seen, "deleted", 2)).await?;
            let expected: Vec<_> = all.events().filter(of_uid(&wanted.uid)).collect();
            let expected: Vec<_> =
                expected.into_iter().filter(|event| matches!(kind(event), "exited" | "deleted")).collect();
            ensure!(seen.events().collect::<Vec<_>>() == expected, "by uid and kind:\n{seen}\nof:\n{all}");

            // The namespace becomes known after the first events; what came before comes late, but comes.
            let all_of_pod: Vec<_> = all.events().filter(of_uid(&wanted.uid)).collect();
            let complete = |seen: &Seen| seen.0.len() >= all_of_pod.len();
            let seen = by_namespace.wait_until("the ends", complete).await?;
            let seqs = |events: &mut dyn Iterator<Item = &Event>| {
                let mut seqs: Vec<_> =
                    events.filter_map(|event| event.position.as_ref()).map(|at| at.seq).collect();
                seqs.sort_unstable();
                seqs
            };
            let (got, expected) = (seqs(&mut seen.events()), seqs(&mut all_of_pod.iter().copied()));
            ensure!(got == expected, "by namespace:\n{seen}\nof:\n{all}");
            Ok(())
        })
        .await
    })
    .await
}
