//! How many processes survive reaching the memory limit of their container, by what watches it and by how fast they fill it.
//!
//! ```text
//!   75 %          85 %         90 %              100 %      110 %             150 %
//!   ├─ paced ──────┼────────────┼──────────────────┼──────────┤                 │
//!   fills from     achieved     every way raises   the limit  done: survived    the limit after the raise
//!                  rate taken   from here on
//! ```
//!
//! All ways have the same containers, the same filler and the same raise, [`raise::raise`]: a write to `memory.max`. The guard
//! reaches it through a CRI server of the bench's; the others call it. So they differ in how they learn of the threshold, and the
//! guard alone pays for a call and for the daemon's verdict.
//!
//! Owns the order of the runs and what counts as survived. A container is `subject`'s, what watches it `watch`'s.

pub mod filler;
mod pace;
pub mod raise;
mod subject;
pub mod table;
pub mod tally;
mod watch;
mod way;

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use kwitness_core::units;
use kwitness_core::verdicts::quantity;
use kwitness_guard::policy::Policy;
use kwitness_guard::status::Ended;
use procfs::{Current as _, Meminfo};

use crate::agent::Agent;
use crate::environment::{Environment, Handler};
use crate::guard::Guard;
use crate::node::{CONTAINERD_SOCKET, Node};
use crate::pod::{Pod, PodSpec};

use raise::Raises;
use subject::Subject;
use tally::{Cell, Holds, Outcome, Ran, Tally};
pub use way::Way;
use way::order;

const MB: u64 = 1_000_000;
/// How long a container may take to be ready, or to be empty again, in an emulated guest.
const SOON: Duration = Duration::from_secs(120);

/// The policy's: as long as the longest hold, which is the shortest that there is for it.
const COOL_DOWN: Duration = Duration::from_secs(10);

/// How fast a container is filled, in bytes per second; none: at full speed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate(pub Option<u64>);

impl FromStr for Rate {
    type Err = String;

    /// Megabytes per second, or `max`.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("\"{text}\" is no rate: use megabytes per second such as 100, or max");
        match text {
            "max" => Ok(Self(None)),
            number => match number.parse::<u64>().ok().and_then(|rate| rate.checked_mul(MB)) {
                None | Some(0) => Err(wrong()),
                rate => Ok(Self(rate)),
            },
        }
    }
}

impl Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(rate) => write!(f, "{} MB/s", rate / MB),
            None => f.write_str("full speed"),
        }
    }
}

/// Below this, what a container needs for itself is more than what is left below the threshold.
const SMALLEST: u64 = 32 << 20;
const LARGEST: u64 = 8 << 30;

/// A limit from a quantity such as `64Mi`, in bytes.
pub fn limit(text: &str) -> Result<u64, String> {
    let limit = quantity::whole(text).map_err(|error| error.to_string())?;
    // What is raised by half must be whole pages: the kernel rounds other limits.
    let fits = (SMALLEST..=LARGEST).contains(&limit) && limit.is_multiple_of(8192);
    fits.then_some(limit).ok_or_else(|| "a limit is 32Mi to 8Gi, in steps of 8Ki".to_owned())
}

/// The amounts of a container, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Amounts {
    pub limit: u64,
}

impl Amounts {
    const fn percent(self, percent: u64) -> u64 {
        self.limit / 100 * percent
    }

    /// From here on the filler is paced.
    pub const fn start(self) -> u64 {
        self.percent(75)
    }

    /// Here it reports its rate. No way has acted by then.
    pub const fn mark(self) -> u64 {
        self.percent(85)
    }

    /// From here on every way acts.
    pub const fn threshold(self) -> u64 {
        self.percent(90)
    }

    pub const fn target(self) -> u64 {
        self.percent(110)
    }

    pub const fn raised(self) -> u64 {
        self.limit + self.limit / 2
    }

    /// What the node must have available for the filler and the raise.
    const fn needed(self) -> u64 {
        self.percent(220)
    }
}

#[derive(Clone, Debug)]
pub struct Settings {
    pub runs: u32,
    pub limits: Vec<u64>,
    pub rates: Vec<Rate>,
    /// Runs of the guard that raise through the container runtime instead, for the times of that.
    pub by_runtime: u32,
}

#[derive(Clone, Debug)]
pub struct Report {
    /// By limit and rate, each way in its order.
    pub cells: Vec<Cell>,
    /// The guard's holds in them.
    pub by_write: Holds,
    /// Its holds when the container runtime raises.
    pub by_runtime: Holds,
}

impl Default for Report {
    fn default() -> Self {
        Self { cells: Vec::new(), by_write: Holds::new("memory.max"), by_runtime: Holds::new("cri") }
    }
}

impl Report {
    /// Why it proves nothing, or what the guard has not done.
    pub fn wrong(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for cell in &self.cells {
            let at = || format!("{}, {}", units::bytes(cell.limit), Rate(cell.wanted));
            if cell.way == Way::Nothing && cell.survived > 0 {
                wrong.push(format!(
                    "{}: {} of {} survived although nothing raised",
                    at(),
                    cell.survived,
                    cell.runs
                ));
            }
            if cell.way == Way::Guard && cell.survived < cell.runs {
                wrong.push(format!("{}: the guard saved {} of {}", at(), cell.survived, cell.runs));
            }
        }
        let guarded = self.cells.iter().any(|cell| cell.way == Way::Guard && cell.runs > 0);
        if !guarded {
            wrong.push("the guard was not measured".to_owned());
        }
        wrong
    }
}

/// The guard's policy: one raise takes a container to [`Amounts::raised`], and no run has more than one.
fn policy(limit: u64, runs: usize) -> String {
    let raised = Amounts { limit }.raised();
    format!(
        "[[rule]]\ncontainer = \"{}\"\nthreshold = \"90%\"\nstep = \"{}\"\nceiling = \"{raised}\"\n\
         longest_hold = \"10s\"\ncool_down = \"{}s\"\nbudget = {runs}\n",
        Way::Guard.container(),
        raised - limit,
        COOL_DOWN.as_secs(),
    )
}

#[derive(Clone, Copy, Debug)]
pub struct Stage<'a> {
    pub environment: &'a Environment,
    pub node: &'a Node,
    pub agent: &'a Agent,
    /// Of the pods; crun is the quicker one where the runtime raises.
    pub handler: Handler,
}

/// Measures into `report`, which has what was measured before an error, too. Each line for people is given to `say` at once.
pub async fn measure(
    stage: Stage<'_>,
    settings: &Settings,
    report: &mut Report,
    say: impl Fn(&str),
) -> Result<()> {
    settings.limits.iter().try_for_each(|limit| enough_memory(Amounts { limit: *limit }))?;
    let runs = settings.runs as usize * settings.rates.len();
    for &limit in &settings.limits {
        // Hours before a guard would refuse it.
        Policy::parse(&policy(limit, runs))
            .with_context(|| format!("{runs} runs of a limit: use fewer --runs or --rates"))?;
    }
    for &limit in &settings.limits {
        let raises = Raises::serve()?;
        let guard =
            Guard::start(stage.environment, stage.agent, &policy(limit, runs), &raises.socket()).await?;
        let measured = of_limit(stage, settings, Amounts { limit }, (&raises, &guard), report, &say).await;
        measured.with_context(|| guard.log_tail())?;
        guard.stop()?;
        report.by_write.end_of_guard(&raises.times());
    }
    if settings.by_runtime > 0 {
        let limit = *settings.limits.iter().min().context("no limit")?;
        let rate = *settings.rates.first().context("no rate")?;
        by_runtime(stage, settings.by_runtime, Amounts { limit }, rate, &mut report.by_runtime).await?;
    }
    table::of_holds([&report.by_write, &report.by_runtime]).iter().for_each(|line| say(line));
    Ok(())
}

async fn of_limit(
    stage: Stage<'_>,
    settings: &Settings,
    amounts: Amounts,
    (raises, guard): (&Raises, &Guard),
    report: &mut Report,
    say: &impl Fn(&str),
) -> Result<()> {
    let pod = stage.node.run_pod(&PodSpec::new("survival", stage.handler)?).await?;
    let mut subjects = BTreeMap::new();
    for way in Way::ALL {
        subjects.insert(way, Subject::start(stage.node, &pod, way, amounts).await?);
    }
    let guarded = subjects.get(&Way::Guard).context("no container for the guard")?;
    raises.add(guarded.id(), guarded.cgroup())?;
    guard.wait_armed(1).await?;
    let first = report.cells.len();
    for &rate in &settings.rates {
        let mut tallies: BTreeMap<Way, Tally> = BTreeMap::new();
        for run in 0..settings.runs {
            for way in order(run) {
                let subject = subjects.get(&way).context("no container for the way")?;
                let tally = tallies.entry(way).or_default();
                if tally.missing.is_some() {
                    continue;
                }
                match subject.run(rate).await {
                    Ok(ran) if way == Way::Guard => {
                        report.by_write.add(&of_run(guard, report.by_write.seen(), ran).await?, ran);
                        tally.add(ran);
                    }
                    Ok(ran) => tally.add(ran),
                    // The kernel has no PSI, or the machine no inotify: the row says so.
                    Err(error) if error.downcast_ref::<watch::Unavailable>().is_some() => {
                        tally.missing = Some(format!("{error:#}"));
                    }
                    Err(error) => {
                        return Err(error.context(format!("{}, {rate}, run {run}", way.name())));
                    }
                }
            }
            let limit = units::bytes(amounts.limit);
            say(&format!("limit {limit}, {rate}: run {} of {}", run + 1, settings.runs));
        }
        report.cells.extend(tallies.iter().map(|(way, tally)| tally.cell(*way, amounts.limit, rate)));
    }
    table::of_limit(&report.cells[first..], settings).iter().for_each(|line| say(line));
    remove(stage, &pod, guard).await
}

/// The guard raises through the container runtime, as it does on a node without a kubelet.
async fn by_runtime(
    stage: Stage<'_>,
    runs: u32,
    amounts: Amounts,
    rate: Rate,
    holds: &mut Holds,
) -> Result<()> {
    let socket = Path::new(CONTAINERD_SOCKET);
    let policy = policy(amounts.limit, runs as usize);
    let guard = Guard::start(stage.environment, stage.agent, &policy, socket).await?;
    let measured = async {
        let pod = stage.node.run_pod(&PodSpec::new("survival", stage.handler)?).await?;
        let subject = Subject::start(stage.node, &pod, Way::Guard, amounts).await?;
        guard.wait_armed(1).await?;
        for _ in 0..runs {
            let ran = subject.run(rate).await?;
            holds.add(&of_run(&guard, holds.seen(), ran).await?, ran);
        }
        remove(stage, &pod, &guard).await
    };
    measured.await.with_context(|| guard.log_tail())?;
    guard.stop()
}

async fn remove(stage: Stage<'_>, pod: &Pod, guard: &Guard) -> Result<()> {
    stage.node.remove_pod(pod).await?;
    guard.wait_armed(0).await
}

/// The holds of a run, which is over; `seen` is how many there were before it. After a refusal, the guard holds again when this
/// returns.
async fn of_run(guard: &Guard, seen: u64, ran: Ran) -> Result<Vec<Ended>> {
    let status = guard.status().await?;
    let all = status.raised + status.refused.values().sum::<u64>();
    let new = usize::try_from(all.saturating_sub(seen)).unwrap_or(usize::MAX);
    ensure!(new <= status.history.len(), "{new} holds in one run, of which the guard remembers fewer");
    ensure!(new > 0 || ran.outcome != Outcome::Survived, "survived without a hold: {status:?}");
    let ended = status.history[status.history.len() - new..].to_vec();
    if ended.iter().any(|ended| ended.refused.is_some()) {
        tokio::time::sleep(COOL_DOWN).await;
    }
    Ok(ended)
}

/// Fails if the node cannot have that limit filled and raised.
fn enough_memory(amounts: Amounts) -> Result<()> {
    let memory = Meminfo::current().context("read /proc/meminfo")?;
    let available = memory.mem_available.context("/proc/meminfo has no MemAvailable")?;
    let needed = amounts.needed();
    ensure!(
        available >= needed,
        "a limit of {} needs {} of memory available; {} are: use smaller --limits",
        units::bytes(amounts.limit),
        units::bytes(needed),
        units::bytes(available)
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use kwitness_guard::policy::{Names, Selection};

    use super::*;

    #[test]
    fn rates_are_megabytes_or_full_speed() {
        assert_eq!("100".parse(), Ok(Rate(Some(100_000_000))));
        assert_eq!("max".parse(), Ok(Rate(None)));
        for wrong in ["0", "-1", "fast", "99999999999999999999"] {
            let error = wrong.parse::<Rate>().unwrap_err();
            assert!(error.contains(wrong) && error.contains("such as 100, or max"), "{error}");
        }
        assert_eq!(
            (Rate(Some(10 * MB)).to_string(), Rate(None).to_string()),
            ("10 MB/s".into(), "full speed".into())
        );
    }

    #[test]
    fn limits_are_quantities_in_bounds() {
        assert_eq!((limit("64Mi"), limit("1Gi")), (Ok(64 << 20), Ok(1 << 30)));
        for wrong in ["1Mi", "1Ti", "67108865", "many"] {
            limit(wrong).unwrap_err();
        }
    }

    #[test]
    fn one_raise_of_the_policy_is_the_raise_of_all_ways() {
        for limit in [64 << 20, 1 << 30] {
            let amounts = Amounts { limit };
            let policy = Policy::parse(&policy(limit, 80)).unwrap();
            let named = |container| Names { namespace: None, pod: None, container: Some(container) };
            let Selection::Rule(rule) = policy.select(named(Way::Guard.container())) else { panic!() };
            assert_eq!(limit + rule.step.0, amounts.raised());
            assert_eq!(rule.ceiling.0, amounts.raised());
            for way in &Way::ALL[..7] {
                assert_eq!(policy.select(named(way.container())), Selection::Nothing, "{way:?}");
            }
            // Done, it is below the threshold of the new limit: it is held once.
            assert!(amounts.target() < Amounts { limit: amounts.raised() }.threshold());
        }
    }

    #[test]
    fn a_baseline_that_survives_and_a_guard_that_loses_one_are_wrong() {
        let cell = |way, survived| {
            let mut tally = Tally::default();
            for run in 0..3 {
                tally.add(Ran {
                    outcome: if run < survived { Outcome::Survived } else { Outcome::Killed },
                    achieved: None,
                });
            }
            tally.cell(way, 64 << 20, Rate(None))
        };
        let report = |nothing, guard| Report {
            cells: vec![cell(Way::Nothing, nothing), cell(Way::Poll100ms, 1), cell(Way::Guard, guard)],
            ..Report::default()
        };
        assert_eq!(report(0, 3).wrong(), [""; 0]);
        assert_eq!(report(1, 3).wrong(), ["64Mi, full speed: 1 of 3 survived although nothing raised"]);
        assert_eq!(report(0, 2).wrong(), ["64Mi, full speed: the guard saved 2 of 3"]);
        assert_eq!(Report::default().wrong(), ["the guard was not measured"]);
    }
}
