//! Memory pressure of a real container: each crossing forced by a fill that waits for the event before the next. Upwards, it is the
//! kernel that reports it where it allows that, and it names the process. Without that, the kernel's notice of a limit that is reached
//! has usage sampled.

use std::fs::File;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;

use kwitness_agent::probe::capability::MEMORY_CHARGES;
use kwitness_api::proto::PressureDirection::{Down, Up};
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Basis, CgroupRole, Event, Pressure, PressureDirection};
use kwitness_tests::hog::limited_to;
use kwitness_tests::prelude::*;
use nix::libc;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MIB;
/// Far from each other, and from what a shell needs.
const SETTINGS: [&str; 2] = [THRESHOLDS, HYSTERESIS];
const THRESHOLDS: &str = "pressure.thresholds=[40, 60, 80]";
const HYSTERESIS: &str = "pressure.hysteresis=10";
/// Without the hook at charges.
const SAMPLING: [&str; 3] =
    [THRESHOLDS, HYSTERESIS, r#"kernel.excluded_hooks=["memory_charge_fentry", "memory_charge_kprobe"]"#];
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

/// What the container's shell does: what it reads from a pipe.
const OBEY: &str = "mkfifo /out/gate; while :; do while read line; do eval \"$line\"; echo $line >/out/done; done \
                    </out/gate; done";

pub(crate) async fn each_crossing_is_reported_once(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both_recorded(&SETTINGS, async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let is_recorded = records_charges(agent).await?;
        let out = Out::make()?;
        let pod = node.run_pod(&PodSpec::new("filled", ctx.combination.handler)?).await?;
        let fill = format!("/dev/shm/{}", pod.sandbox);
        let id = node.run(&pod, &limited_to(LIMIT, "main", OBEY, &out)).await?;

        let mut wanted = Vec::new();
        for (added, removed, crossings) in STEPS {
            let add = FILES.iter().filter(|(name, _)| added.contains(name)).map(|(name, percent)| {
                format!("head -c {} /dev/zero >{fill}.{name};", LIMIT * percent / 100)
            });
            let remove = removed.chars().map(|name| format!("rm {fill}.{name};"));
            execute(&out, &add.chain(remove).collect::<String>()).await?;
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
            check(&event, &pressure, is_recorded)?;
        }
        ensure!(seen.count("gap") == 0, "records were lost:\n{seen}");
        node.remove_pod(&pod).await
    })
    .await
}

/// Usage exceeds `memory.high`, which the kernel says in the file that it changes for `memory.max`, too, but without a kill.
pub(crate) async fn a_limit_that_is_reached_has_usage_sampled(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_both(&SAMPLING, async |node, agent| {
        let mut watcher = agent.watch(from_now()).await?;
        ensure!(!records_charges(agent).await?, "the hook is not excluded");
        let out = Out::make()?;
        let pod = node.run_pod(&PodSpec::new("noticed", ctx.combination.handler)?).await?;
        let id = node.run(&pod, &limited_to(LIMIT, "main", OBEY, &out)).await?;
        // Its first sample has it watched.
        wait_sampled(agent).await?;

        let own = node.own_cgroup_of(&id).await?;
        cgroup::write(&own, "memory.high", LIMIT * 42 / 100)?;
        // Beside the shell: the kernel has whoever exceeds it sleep, for as long as it sees fit.
        let fill = format!("head -c {} /dev/zero >/dev/shm/{}.a &", LIMIT * 46 / 100, pod.sandbox);
        execute(&out, &fill).await?;
        wait_for("the kernel's notice", PATIENCE, async || {
            Ok((counter(agent, "pressure_notices").await? > 0).then_some(()))
        })
        .await?;
        let seen = watcher.wait_until("a crossing", |seen| !crossed(seen, &id).is_empty()).await?;
        let [(event, pressure)] = &crossed(&seen, &id)[..] else { bail!("more than one crossing:\n{seen}") };
        ensure!((pressure.direction(), pressure.threshold_percent) == (Up, 40), "{pressure:?}");
        check(event, pressure, false)?;
        ensure!(counter(agent, "pressure_watches_failed").await? == 0, "a level is not watched");
        cgroup::write(&own, "memory.high", "max")?;
        node.remove_pod(&pod).await
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

/// Whether a program in the kernel sees charges.
async fn records_charges(agent: &Agent) -> Result<bool> {
    let status = agent.status().await?;
    let capability = status.capabilities.into_iter().find(|of| of.name == MEMORY_CHARGES);
    Ok(capability.context("no capability for charges")?.hook.ends_with("page_counter_try_charge"))
}

fn check(event: &Event, pressure: &Pressure, is_recorded: bool) -> Result<()> {
    // A fall is seen by whichever comes first: a sample, or the next charge.
    let is_right = match pressure.direction() {
        Up if is_recorded => event.basis() == Basis::MemoryCharge && pressure.charged_by.is_some(),
        _ if is_recorded => pressure.charged_by.is_none(),
        _ => event.basis() == Basis::MemorySample && pressure.charged_by.is_none(),
    };
    ensure!(is_right, "recorded by the kernel: {is_recorded}; {event:?}");
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
async fn execute(out: &Out, line: &str) -> Result<()> {
    wait_for("the container to read", PATIENCE, async || {
        // Without a reader, it cannot be opened.
        let pipe = File::options().write(true).custom_flags(libc::O_NONBLOCK).open(out.at("gate"));
        let Ok(mut pipe) = pipe else { return Ok(None) };
        writeln!(pipe, "{line}").context("write to the container")?;
        Ok(Some(()))
    })
    .await?;
    wait_for("the container's memory to be filled", PATIENCE, async || {
        Ok(out.left("done").is_some_and(|text| text.trim() == line).then_some(()))
    })
    .await
}

/// Waits until the container has been sampled once more.
async fn wait_sampled(agent: &Agent) -> Result<()> {
    const NAME: &str = "pressure_samples";
    let until = counter(agent, NAME).await? + SAMPLES;
    wait_for("samples", PATIENCE, async || Ok((counter(agent, NAME).await? >= until).then_some(()))).await
}

async fn counter(agent: &Agent, name: &str) -> Result<u64> {
    agent.status().await?.counters.get(name).copied().with_context(|| format!("no counter {name}"))
}
