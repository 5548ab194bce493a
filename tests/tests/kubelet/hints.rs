//! Kubelet 1.37, to which an event is a hint: it asks the runtime about that pod at once. A hint that came before the runtime
//! agrees would be of no use: nothing is found then, and the next look is up to a second away.

use kwitness_tests::hints::{FoundBy, found_by};
use kwitness_tests::kubelet::Setup;
use kwitness_tests::prelude::*;

use crate::restart::{wait_running, with_kubelet};

/// The first such release.
const NEXT: &str = "1.37";
/// Each ends once: the second end of the same one would wait for a back-off.
const PODS: usize = 10;
/// Enough for what [`found_by`] reads.
const VERBOSITY: u8 = 5;
/// Without hints, a container would be started again half a second later on average, which is some three times the time that it takes.
const RATIO_MAX: f64 = 2.5;

pub(crate) async fn a_hint_comes_when_the_runtime_agrees(ctx: &Testbed<'_>) -> Result<()> {
    let (before, _) = ends(ctx, None).await?;
    let (after, found) = ends(ctx, Some(NEXT)).await?;
    println!("found by {found:?}");
    ensure!(!found.contains(&FoundBy::LateRelist), "a hint came before the runtime agreed: {found:?}");
    let hints = found.iter().filter(|by| **by == FoundBy::Hint).count();
    ensure!(2 * hints > PODS, "few ends were found by a hint: {found:?}");
    let (before, after) = (median(before), median(after));
    let ratio = after.as_secs_f64() / before.as_secs_f64();
    println!("running again {after:?} after the end, {before:?} with the usual release: {ratio:.2} times");
    ensure!(ratio < RATIO_MAX, "{after:?} is more than {RATIO_MAX} times {before:?}");
    Ok(())
}

/// How long it takes until each container that was killed runs again; with the next release, also what found its end.
async fn ends(ctx: &Testbed<'_>, release: Option<&'static str>) -> Result<(Vec<Duration>, Vec<FoundBy>)> {
    let (mut times, mut found) = (Vec::new(), Vec::new());
    let setup = Setup { release, verbosity: VERBOSITY, ..Pleg::Evented.into() };
    with_kubelet(ctx, setup, async |node, _, _, kubelet| {
        let pods: Vec<_> = (0..PODS).map(|number| format!("pod{number}")).collect();
        for pod in &pods {
            kubelet.add_pod(pod, &["/bin/sleep", "100000"])?;
        }
        for pod in &pods {
            let id = wait_running(node, pod, "").await?;
            let pid = node.pid(&id).await?;
            let logged = kubelet.log()?.len();
            let began = Instant::now();
            process::kill_pid(pid)?;
            wait_running(node, pod, &id).await?;
            times.push(began.elapsed());
            if release.is_some() {
                let log = kubelet.log()?;
                let found_by = found_by(log.get(logged..).unwrap_or_default(), &id);
                found.push(found_by.with_context(|| format!("the end of {id} is not in the log"))?);
            }
        }
        kubelet.check_events_in_use().await
    })
    .await?;
    Ok((times, found))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times.get(times.len() / 2).copied().unwrap_or_default()
}
