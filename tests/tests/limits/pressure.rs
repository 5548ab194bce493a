//! Memory pressure of a real container: each crossing forced by a fill that waits for the event before the next.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kwitness_api::proto::PressureDirection::{Down, Up};
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Basis, CgroupRole, Event, Pressure, PressureDirection};
use kwitness_tests::agent::{Agent, from_now};
use kwitness_tests::context::Testbed;
use kwitness_tests::events::Seen;
use kwitness_tests::hog::limited_to;
use kwitness_tests::pod::PodSpec;
use kwitness_tests::process::wait_for;
use nix::libc;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MIB;
/// Far from each other, and from what a shell needs.
const SETTINGS: [&str; 2] = ["pressure.thresholds=[40, 60, 80]", "pressure.hysteresis=10"];
/// Ends a test that hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// Files in the container's memory, in percent of its limit: 46, 54, 63 and 84 with those before.
const FILES: [(&str, u64); 4] = [("a", 46), ("b", 8), ("c", 9), ("d", 21)];

type Crossing = (PressureDirection, u32);

/// Which files are added, which are removed, and the crossings that this must make. From 63 to 54 % and back, 60 % stays crossed.
const STEPS: [(&str, &str, &[Crossing]); 7] = [
    ("a", "", &[(Up, 40)]),
    ("bc", "", &[(Up, 60)]),
    ("d", "", &[(Up, 80)]),
    ("", "d", &[(Down, 80)]),
    ("", "c", &[]),
    ("cd", "", &[(Up, 80)]),
    ("", "abcd", &[(Down, 80), (Down, 60), (Down, 40)]),
];

/// More than there are levels. Levels are sampled in the order in which they are due, the container every 250 ms and those without
/// a limit every 5 s: one of so many samples is the container's.
const SAMPLES: u64 = 20;

/// The container's shell does what it reads from a pipe.
pub(crate) async fn each_crossing_is_reported_once(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        ctx.with_recorded_agent(&SETTINGS, async |agent| {
            let mut watcher = agent.watch(from_now()).await?;
            let directory = tempfile::tempdir_in("/run").context("make a directory for the pipe")?;
            let pod = node.run_pod(&PodSpec::new("filled", ctx.combination.handler)?).await?;
            let fill = format!("/dev/shm/{}", pod.sandbox);
            let line = "mkfifo /out/gate; while :; do while read line; do eval \"$line\"; echo $line >/out/done; done \
                        </out/gate; done";
            let id = node.run(&pod, &limited_to(LIMIT, "main", line, directory.path())).await?;

            let mut wanted = Vec::new();
            for (added, removed, crossings) in STEPS {
                let add = FILES.iter().filter(|(name, _)| added.contains(name)).map(|(name, percent)| {
                    format!("head -c {} /dev/zero >{fill}.{name};", LIMIT * percent / 100)
                });
                let remove = removed.chars().map(|name| format!("rm {fill}.{name};"));
                execute(directory.path(), &add.chain(remove).collect::<String>()).await?;
                wanted.extend_from_slice(crossings);
                let count = wanted.len();
                let what = format!("{count} crossings, after +{added} -{removed}");
                let seen = watcher.wait_until(&what, |seen| crossed(seen, &id).len() >= count).await?;
                let found: Vec<_> =
                    crossed(&seen, &id).iter().map(|(_, of)| (of.direction(), of.threshold_percent)).collect();
                ensure!(found == wanted, "{what}: {found:?}, not {wanted:?}");
                wait_sampled(agent).await?;
            }
            let seen = watcher.seen();
            ensure!(crossed(&seen, &id).len() == wanted.len(), "more crossings followed:\n{seen}");
            for (event, pressure) in crossed(&seen, &id) {
                check(&event, &pressure)?;
            }
            ensure!(seen.count("gap") == 0, "records were lost:\n{seen}");
            node.remove_pod(&pod).await
        })
        .await
    })
    .await
}

/// The crossings of a container's own limit.
fn crossed(seen: &Seen, id: &str) -> Vec<(Event, Pressure)> {
    let pressures = seen.of(id).filter_map(|event| match &event.kind {
        Some(Kind::Pressure(pressure)) => Some((event.clone(), (**pressure).clone())),
        _ => None,
    });
    pressures.collect()
}

fn check(event: &Event, pressure: &Pressure) -> Result<()> {
    ensure!(event.basis() == Basis::MemorySample, "{event:?}");
    ensure!(pressure.cgroup.as_ref().is_some_and(|of| of.role() == CgroupRole::Container), "{pressure:?}");
    ensure!(pressure.limit_bytes == Some(LIMIT), "{pressure:?}");
    let percent = pressure.usage_bytes * 100 / LIMIT;
    let threshold = u64::from(pressure.threshold_percent);
    let is_right = match pressure.direction() {
        Up => percent >= threshold,
        Down => percent < threshold - 10,
        PressureDirection::Unspecified => false,
    };
    ensure!(is_right, "{percent} %: {pressure:?}");
    ensure!(pressure.suppressed == 0, "{pressure:?}");
    Ok(())
}

/// Waits for the container to read, and until it has done what the line says.
async fn execute(directory: &Path, line: &str) -> Result<()> {
    let (gate, done) = (directory.join("gate"), directory.join("done"));
    wait_for("the container to read", PATIENCE, async || {
        // Without a reader, it cannot be opened.
        let Ok(mut pipe) = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&gate) else {
            return Ok(None);
        };
        writeln!(pipe, "{line}").context("write to the container")?;
        Ok(Some(()))
    })
    .await?;
    wait_for("the container's memory to be filled", PATIENCE, async || {
        let text = std::fs::read_to_string(&done).unwrap_or_default();
        Ok((text.trim() == line).then_some(()))
    })
    .await
}

/// Waits until the container has been sampled once more.
async fn wait_sampled(agent: &Agent) -> Result<()> {
    let samples = async || {
        let status = agent.status().await?;
        status.counters.get("pressure_samples").copied().context("memory is not sampled")
    };
    let until = samples().await? + SAMPLES;
    wait_for("samples", PATIENCE, async || Ok((samples().await? >= until).then_some(()))).await
}
