//! Memory pressure: from the charge that crosses a threshold to a client, and what the program at each charge costs whoever faults
//! pages in, far from a threshold and near one.
//!
//! The kernel calls the program once per 64 pages, so the dearest case is memory that is touched one byte a page, without huge
//! pages. What is compared is the CPU time of that.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Event, PressureDirection};
use kwitness_tests::agent::{Agent, boottime, from_now};
use kwitness_tests::cgroup;
use kwitness_tests::environment::{CgroupLayout, Environment, Tier};
use kwitness_tests::handmade::{HandMade, Kubepods};
use nix::sys::prctl::set_thp_disable;
use nix::time::{ClockId, clock_gettime};
use tokio::time::timeout;

use crate::latency;
use crate::overhead::time;
use crate::report::{Row, Target, quantile};

const NAME: &str = "pressure: at each charge";
/// Leaves the program out.
pub(crate) const EXCLUDED: &str = r#"kernel.excluded_hooks=["memory_charge_fentry", "memory_charge_kprobe"]"#;
pub(crate) const QUIET: &str = "log.level=warn";

/// Rounds, and events in each of them.
const ROUNDS: (usize, u32) = (8, 60);
const ROUNDS_IN_A_GUEST: (usize, u32) = (4, 30);
/// Rounds of page faults, and passes over the memory in each.
pub(crate) const FAULTS: (usize, u32) = (24, 40);
pub(crate) const FAULTS_IN_A_GUEST: (usize, u32) = (6, 8);
/// Bytes that a pass touches.
pub(crate) const PASS: u64 = 40 << 20;
/// A gigabyte a second, in bytes.
const PACE: u64 = 1_000_000_000;
/// Between the crossings of one container.
const REST: Duration = Duration::from_millis(10);
const LIMIT: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    if environment.layout != CgroupLayout::Unified {
        return Ok(vec![Row::missing(NAME, "memory is accounted in cgroup v1")]);
    }
    let agent = Agent::start(environment, &[QUIET]).await?;
    let way = hook(&agent).await?;
    agent.stop()?;
    if !is_program(&way) {
        return Ok(vec![Row::missing(NAME, &format!("the kernel allows no program there: {way}"))]);
    }
    let kubepods = Kubepods::make(environment)?;
    kubepods.enable("+memory")?;
    let mut rows = vec![to_client(environment, &kubepods, &way).await?];
    rows.extend(of_faults(environment, &kubepods, &way).await?);
    Ok(rows)
}

/// By what charges are seen.
pub(crate) async fn hook(agent: &Agent) -> Result<String> {
    let capabilities = agent.status().await?.capabilities;
    let found = capabilities.into_iter().find(|capability| capability.name == "memory_charge");
    Ok(found.context("no capability for charges")?.hook)
}

/// Whether that is a program of the kernel's, and not sampling.
pub(crate) fn is_program(way: &str) -> bool {
    way.ends_with("page_counter_try_charge")
}

/// The 99th percentile from the hook to a client, less that of a floor from its own hook.
async fn to_client(environment: &Environment, kubepods: &Kubepods, way: &str) -> Result<Row> {
    let (rounds, events) = match environment.tier {
        Tier::Host => ROUNDS,
        Tier::Vm => ROUNDS_IN_A_GUEST,
    };
    let (mut floor, mut full) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        floor.push(quantile(&latency::of_floor(kubepods, events).await.context("of the floor")?, 0.99));
        let agent = Agent::start(environment, &[QUIET]).await?;
        full.push(quantile(&crossings(&agent, kubepods, events).await.context("of crossings")?, 0.99));
        agent.stop()?;
    }
    let beyond: Vec<_> = full.iter().zip(&floor).map(|(full, floor)| (full - floor) / 1e6).collect();
    let note = format!(
        "{way}: {:.2} ms, floor from its own hook {:.2} ms; {rounds} rounds of {events}",
        quantile(&full, 0.5) / 1e6,
        quantile(&floor, 0.5) / 1e6
    );
    Ok(Row::of(
        "pressure: threshold crossed to client, p99, beyond floor",
        &beyond,
        "ms",
        Target::AtMost(1.0),
        note,
    ))
}

/// From the charge that crosses to a client, in nanoseconds: three crossings of each container.
async fn crossings(agent: &Agent, kubepods: &Kubepods, events: u32) -> Result<Vec<f64>> {
    let mut stream = agent.client().await?.watch(from_now()).await.context("call Watch")?.into_inner();
    let mut delays = Vec::new();
    while delays.len() < events as usize {
        let container = limited(kubepods, 32 * MIB)?;
        let usage = container.cgroup().directory().join("memory.current").display().to_string();
        let mut child = container.start("/proc/self/exe", &["fill", &usage, &(32 * MIB).to_string()])?;
        let own = |event: &Event| event.container.as_ref().is_some_and(|of| of.id == container.id);
        loop {
            let message = timeout(LIMIT, stream.message()).await.context("kwitness is silent")?;
            let at = boottime();
            let message = message.context("kwitness's stream")?.context("kwitness's stream ended")?;
            let single = message.events.len() == 1;
            let mut is_over = false;
            for event in message.events.iter().filter(|event| own(event)) {
                match &event.kind {
                    Some(Kind::Pressure(pressure))
                        if pressure.direction() == PressureDirection::Up && single =>
                    {
                        delays.push(at.saturating_sub(event.kernel_time) as f64);
                    }
                    Some(Kind::Stopped(_)) => is_over = true,
                    _ => {}
                }
            }
            if is_over {
                break;
            }
        }
        child.wait().context("wait for the container")?;
    }
    Ok(delays)
}

/// A container with a limit.
fn limited(kubepods: &Kubepods, limit: u64) -> Result<HandMade> {
    let container = kubepods.limited_container()?;
    cgroup::write(container.cgroup().directory(), "memory.max", limit)?;
    Ok(container)
}

/// CPU time of page faults with the program against without it.
async fn of_faults(environment: &Environment, kubepods: &Kubepods, way: &str) -> Result<Vec<Row>> {
    let (rounds, passes) = match environment.tier {
        Tier::Host => FAULTS,
        Tier::Vm => FAULTS_IN_A_GUEST,
    };
    // Near, usage goes from 81 % of the limit to 97 and back in each pass.
    let case = |name, limit, base, pace| -> Result<Case> {
        let container = limited(kubepods, limit)?;
        let words = [base, PASS, u64::from(passes), pace].map(|number: u64| number.to_string());
        Ok(Case { name, container, words, on: Vec::new(), off: Vec::new() })
    };
    let mut cases = [
        case("far from a threshold, at full speed", 1024 * MIB, 0, 0)?,
        case("far from a threshold, 1 GB/s", 1024 * MIB, 0, PACE)?,
        case("near a threshold, at full speed", 256 * MIB, 208 * MIB, 0)?,
        case("near a threshold, 1 GB/s", 256 * MIB, 208 * MIB, PACE)?,
    ];
    // The first round warms caches and is not counted.
    for round in 0..=rounds {
        for settings in [&[QUIET, EXCLUDED][..], &[QUIET]] {
            let agent = Agent::start(environment, settings).await?;
            for case in &mut cases {
                let took = case.run()?;
                if round > 0 {
                    let side = if settings.contains(&EXCLUDED) { &mut case.off } else { &mut case.on };
                    side.push(took);
                }
            }
            agent.stop()?;
        }
    }
    let pages = (u64::from(passes) * PASS / page_size()) as f64;
    let row = |Case { name, on, off, .. }: &Case| {
        let note = format!(
            "{way}: {:.0} ns of CPU a page without, {:.0} with; {rounds} rounds of {passes} passes over {} MiB",
            quantile(off, 0.5) / pages,
            quantile(on, 0.5) / pages,
            PASS / MIB
        );
        Row::ratio(&format!("pressure: page faults, {name}"), on, off, Target::AtMost(1.01), note)
    };
    Ok(cases.iter().map(row).collect())
}

/// Page faults in a container.
struct Case {
    name: &'static str,
    container: HandMade,
    /// What is there all the time, what a pass touches, how many there are, and the pace.
    words: [String; 4],
    /// CPU time in nanoseconds, with the program and without.
    on: Vec<f64>,
    off: Vec<f64>,
}

impl Case {
    fn run(&self) -> Result<f64> {
        let words: Vec<_> = ["faults"].into_iter().chain(self.words.iter().map(String::as_str)).collect();
        time(self.container.start("/proc/self/exe", &words)?)
    }
}

fn page_size() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|size| u64::try_from(size).ok())
        .unwrap_or(4096)
}

/// Touches `bytes` of memory of its own, a byte a page, and gives it back; so often, at so many bytes a second (0: as fast as it
/// can), while it has `base` bytes besides. Prints the nanoseconds of CPU time that the passes took.
pub(crate) fn faults(base: u64, bytes: u64, passes: u32, pace: u64) -> Result<()> {
    set_thp_disable(true).context("do without huge pages")?;
    let page = usize::try_from(page_size())?;
    let base = touched(usize::try_from(base)?, page);
    let cpu = || clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).context("read the CPU time");
    let (before, began) = (cpu()?, Instant::now());
    for pass in 0..passes {
        drop(touched(usize::try_from(bytes)?, page));
        if let Some(nanos) =
            (u128::from(pass + 1) * u128::from(bytes) * 1_000_000_000).checked_div(pace.into())
        {
            let due = began + Duration::from_nanos(u64::try_from(nanos)?);
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
    }
    let took = Duration::from(cpu()?) - Duration::from(before);
    drop(base);
    println!("{}", took.as_nanos());
    Ok(())
}

/// Memory of which each page has been touched.
fn touched(bytes: usize, page: usize) -> Vec<u8> {
    let mut memory = Vec::<u8>::with_capacity(bytes);
    for page in memory.spare_capacity_mut()[..bytes].chunks_mut(page) {
        page[0].write(1);
    }
    std::hint::black_box(memory)
}

/// Takes memory until usage is above 80, 90 and 95 % of the limit, with a rest after each.
pub(crate) fn fill(usage: &Path, limit: u64) -> Result<()> {
    let mut memory = Vec::new();
    for percent in [81, 91, 96] {
        std::thread::sleep(REST);
        let charged = || -> Result<u64> {
            let text = fs::read_to_string(usage).with_context(|| format!("read {}", usage.display()))?;
            Ok(text.trim_end().parse()?)
        };
        while charged()? < limit * percent / 100 {
            memory.push(vec![1_u8; 128 << 10]);
        }
    }
    std::thread::sleep(REST);
    drop(memory);
    Ok(())
}
