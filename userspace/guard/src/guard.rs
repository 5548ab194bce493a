//! The guard at work: one task that owns every hold, arms containers, renews the lease and performs the steps of the
//! pure state machine.
//!
//! ```text
//!  HEARTBEAT ─── hear the watchdog, renew the lease ──┐
//!  the ring ──── a process is held ───────────────────┤
//!  RETRY ─────── while anything is held ──────────────┼──▶ look: what HELD says ──▶ Episode ──▶ raise, verify, continue
//!  answers ───── of runtime and daemon ────────────────┘
//!  SAMPLE ────── what was raised, and is to be given back ──▶ GiveBack ──▶ lower, verify
//!  containers ── arm, disarm
//!  each step ──▶ Reporter ──▶ the daemon's stream
//!  a held process that has not stopped ──▶ Brakes
//! ```
//!
//! What is held is always read from the map. The ring only says when. Nothing here waits: raising and verifying are tasks of
//! their own, whose answers carry their episode's number.

mod answers;
mod arming;
mod holds;
mod in_force;
mod late;
mod pods;
mod raises;
mod returns;
mod room;
mod shares;
mod times;
mod watched;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_abi::{Hold, Lease};
use kwitness_api::client::Address;
use kwitness_service::http::{CONNECTIONS, HttpAddress, HttpCounters, HttpLimits, HttpServer};
use kwitness_service::{Signal, Signals, notify_ready};
use signal_hook::consts::SIGURG;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::brake::Brakes;
use crate::cgroup;
use crate::continued::{self, Continued};
use crate::daemon::{self, Container};
use crate::episode::{Episode, Input};
use crate::give_back::{GiveBack, Loan};
use crate::loans::{Lent, Loans};
use crate::metrics::{Counts, Metrics, Snapshot};
use crate::orphans::Recovered;
use crate::plan::Change;
use crate::policy::{Bytes, Policy, Rule};
use crate::process::{HoldId, hold_id};
use crate::program::{self, LEASE, Program, level_bit, nanos};
use crate::raise::Raiser;
use crate::reporter::Reporter;
use crate::share::NoShare;
use crate::status::{self, Ended, Status};
use crate::watchdog::Ending;
use crate::watchdog::link::Link;
use crate::{BRAKES_FILE, CONTINUED_FILE, LOANS_FILE};
use arming::{NotArmed, Suspended};
use pods::Pods;
use raises::Raises;
pub(crate) use room::NodeMemory;
pub(crate) use shares::sizes;
use times::Times;

/// Between two heartbeats.
pub const HEARTBEAT: Duration = Duration::from_millis(200);
/// Between two looks while anything is held, and between two SIGCONTs to a process that is still stopped.
const RETRY: Duration = Duration::from_millis(25);
/// Between two looks at containers whose raises are to be given back.
const SAMPLE: Duration = Duration::from_secs(1);
/// How long the end of the program waits until everything runs.
const STOP_LIMIT: Duration = Duration::from_secs(1);
/// How long it waits then until the daemon has taken the last reports.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// What the guard is started with.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is guarded, and how.
    pub policy: Policy,
    /// Where the daemon listens.
    pub daemon: Address,
    /// How limits are raised.
    pub raiser: Raiser,
    /// Where `kwitness guard status` is answered.
    pub status_socket: PathBuf,
    /// Where lease and holds are pinned: a directory in a BPF file system.
    pub pin_directory: PathBuf,
    /// Where metrics and probes are served, if anywhere.
    pub http: Option<HttpAddress>,
}

/// A container, or a pod, that is armed.
struct Guarded {
    container: Container,
    rule: Rule,
    raises: Raises,
    /// What it has been lent by raises.
    loan: Option<Loan>,
    give_back: GiveBack,
    /// A change whose answer has not come: the limit may still become what it says.
    unanswered: bool,
    /// A raise that the kubelet has put off is being taken out of the spec.
    is_taking_back: bool,
    /// A change of which the API is to say what has become of it.
    open: returns::Open,
    /// `CLOCK_BOOTTIME` in nanoseconds: nothing of it is held before.
    quiet_until: u64,
    /// Why nothing of it is held until its limit is another one.
    suspended: Option<Suspended>,
    /// From what share of its limit on it is held, in thousandths.
    share: Result<u32, NoShare>,
    episode: Option<Running>,
}

impl Guarded {
    fn new(container: Container, rule: Rule) -> Self {
        Self {
            share: Ok(rule.threshold.per_mille()),
            container,
            rule,
            raises: Raises::default(),
            loan: None,
            give_back: GiveBack::default(),
            unanswered: false,
            is_taking_back: false,
            open: returns::Open::default(),
            quiet_until: 0,
            suspended: None,
            episode: None,
        }
    }

    /// Raises that it may still have.
    fn budget_left(&self) -> u32 {
        self.rule.budget.saturating_sub(self.raises.count())
    }
}

/// An episode under way.
struct Running {
    /// Names it in answers.
    number: u64,
    episode: Episode,
    /// When the first of its holds must end.
    until: u64,
    first: Hold,
    times: Times,
}

/// An answer to an episode.
struct Answer {
    cgroup_id: u64,
    episode: u64,
    /// When the first of its holds began.
    since: u64,
    raise: Change,
    input: Input,
}

struct Guard {
    options: Options,
    program: Program,
    watchdog: Link,
    /// What runs.
    running: daemon::Running,
    /// The cgroup of this process.
    own_cgroup: Option<String>,
    pods: Pods,
    guarded: HashMap<u64, Guarded>,
    /// What the policy selects, or may select, and is not armed.
    not_armed: HashMap<u64, NotArmed>,
    /// What is armed no more and still exists.
    retired: HashMap<u64, Guarded>,
    /// The container whose share was looked at last.
    last_share: u64,
    /// Holds that are being continued: decided, and not yet seen running.
    continuing: HashSet<HoldId>,
    /// Holds that have been reported.
    reported: HashSet<HoldId>,
    /// Holds of processes that have been seen stopped.
    still: HashSet<HoldId>,
    /// A thread of others that had not stopped when it was last looked at.
    movers: HashMap<HoldId, u32>,
    /// Holds that the watchdog has ended, or is about to end.
    ended_by_watchdog: HashMap<HoldId, Ending>,
    /// Holds that ended without a guard, and are still to be reported.
    left: Vec<Continued>,
    brakes: Brakes,
    answers: JoinSet<Answer>,
    returns: JoinSet<answers::Answer>,
    /// What an earlier guard has lent to containers that are not armed yet, by cgroup.
    inherited: HashMap<u64, Lent>,
    loans: Loans,
    reporter: Reporter,
    episodes: u64,
    history: VecDeque<Ended>,
    counts: Counts,
    metrics: Option<Arc<Metrics>>,
}

/// Guards until a signal ends it.
///
/// # Errors
/// The program cannot be used, or no watchdog can be started at first. Everything that was held runs again by then.
pub async fn run(options: Options, _only: Recovered) -> anyhow::Result<()> {
    // What every hold needs must not fail for the first time in one.
    NodeMemory::read()?;
    let mut signals = Signals::handle()?;
    let mut clients = status::Clients::new(&options.status_socket);
    let is_daemon_up = Arc::<AtomicBool>::default();
    let served = options.http.as_ref().map(|address| serve(address, Arc::clone(&is_daemon_up)));
    let (metrics, _http) = served.transpose()?.unzip();
    // A brake that is released need not wait for the kernel to reclaim memory.
    signal_hook::flag::register(SIGURG, Arc::default()).context("cannot handle signals")?;
    let program = Program::load(&options.pin_directory)?;
    let watchdog = Link::start(&options.pin_directory).await?;
    let (to, mut running) = mpsc::channel(1);
    let follow = tokio::spawn(daemon::follow(options.daemon.clone(), to, is_daemon_up));
    let reporter = Reporter::new();
    let reporting = tokio::spawn(reporter.clone().run(options.daemon.clone()));
    let raises_by = options.raiser.name();
    tracing::info!(hook = program.hook, watchdog = watchdog.pid(), raises_by, "guard ready");
    notify_ready();
    let mut guard = Guard::new(options, program, watchdog, metrics, reporter.clone());
    let mut heartbeat = tokio::time::interval(HEARTBEAT);
    let mut retry = tokio::time::interval(RETRY);
    let mut sample = tokio::time::interval(SAMPLE);
    for interval in [&mut heartbeat, &mut retry, &mut sample] {
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    }
    let ended = loop {
        let is_busy = guard.is_busy();
        let step = tokio::select! {
            _ = heartbeat.tick() => guard.beat().and_then(|()| guard.look()),
            _ = retry.tick(), if is_busy => guard.look(),
            woken = guard.program.woken() => woken.context("cannot wait for the ring").and_then(|()| {
                guard.program.drain();
                guard.look()
            }),
            Some(answer) = guard.answers.join_next() => match answer {
                Ok(answer) => guard.answered(answer),
                Err(error) => Err(error).context("a call's task failed"),
            },
            _ = sample.tick() => guard
                .look_at_pods()
                .and_then(|()| guard.look_at_suspended())
                .and_then(|()| guard.look_at_shares())
                .and_then(|()| guard.sample()),
            Some(answer) = guard.returns.join_next() => match answer {
                Ok(answer) => guard.return_answered(answer).and_then(|()| guard.look()),
                Err(error) => Err(error).context("a call's task failed"),
            },
            Some(running) = running.recv() => guard.arm(running),
            client = clients.next() => guard.status().map(|status| client.answer(&status)),
            signal = signals.next() => match signal {
                Signal::Stop => break Ok(()),
                Signal::LogCounters => {
                    tracing::info!("counters: {}", guard.counts);
                    Ok(())
                }
                Signal::Reload => {
                    tracing::info!("SIGHUP ignored: restart to apply another policy");
                    Ok(())
                }
            },
        };
        if let Err(error) = step {
            break Err(error);
        }
    };
    follow.abort();
    // A watchdog that hangs is waited for longer than a program may take to stop, and then killed.
    signals.suspend_deadline();
    let stopped = guard.stop().await;
    if !reporter.flush(FLUSH_LIMIT).await {
        tracing::warn!("the daemon did not take the last reports: its stream misses them");
    }
    reporting.abort();
    ended.and(stopped)
}

/// Serves metrics and probes until what it returns is dropped.
fn serve(address: &HttpAddress, is_daemon_up: Arc<AtomicBool>) -> anyhow::Result<(Arc<Metrics>, HttpServer)> {
    let http = Arc::<HttpCounters>::default();
    let program = kwitness_service::program::Program::new(Arc::clone(&http));
    let metrics = Arc::new(Metrics::new(program, is_daemon_up));
    let limits = HttpLimits::with_connections(CONNECTIONS);
    let server = HttpServer::start("--http-listen", address, limits, Arc::clone(&metrics), http)?;
    Ok((metrics, server))
}

/// Has the daemon know that a container's limit will be the guard's doing. What is desired of a pod, it hears from the kubelet.
async fn announce(reporter: &Reporter, container: &Container, limit: Bytes) {
    if !container.is_pod() {
        reporter.announce(&container.id, limit.0).await;
    }
}

impl Guard {
    fn new(
        options: Options,
        program: Program,
        watchdog: Link,
        metrics: Option<Arc<Metrics>>,
        reporter: Reporter,
    ) -> Self {
        let loans = Loans::new(LOANS_FILE.into());
        let inherited = loans.load().into_iter().map(|lent| (lent.cgroup_id, lent)).collect();
        Self {
            returns: JoinSet::new(),
            inherited,
            loans,
            brakes: Brakes::recovered(BRAKES_FILE.into(), reporter.clone()),
            reporter,
            options,
            program,
            watchdog,
            running: daemon::Running::default(),
            own_cgroup: cgroup::own_path(),
            pods: Pods::default(),
            guarded: HashMap::new(),
            not_armed: HashMap::new(),
            retired: HashMap::new(),
            last_share: 0,
            continuing: HashSet::new(),
            reported: HashSet::new(),
            still: HashSet::new(),
            movers: HashMap::new(),
            ended_by_watchdog: HashMap::new(),
            left: continued::load(Path::new(CONTINUED_FILE)),
            answers: JoinSet::new(),
            episodes: 0,
            history: VecDeque::new(),
            counts: Counts::default(),
            metrics,
        }
    }

    /// A brake that is released is interrupted until its file is restored.
    fn is_busy(&self) -> bool {
        !self.reported.is_empty() || !self.brakes.is_idle()
    }

    /// A container that is or was armed.
    fn known(&self, cgroup_id: u64) -> Option<&Guarded> {
        self.guarded.get(&cgroup_id).or(self.retired.get(&cgroup_id))
    }

    fn known_mut(&mut self, cgroup_id: u64) -> Option<&mut Guarded> {
        self.guarded.get_mut(&cgroup_id).or(self.retired.get_mut(&cgroup_id))
    }

    /// Renews the lease; without a watchdog that looks on, ends it.
    fn beat(&mut self) -> anyhow::Result<()> {
        let until = if self.is_watched() { program::now() + nanos(LEASE) } else { 0 };
        let levels = self.guarded.values().filter_map(|guarded| level_bit(&guarded.container.cgroup_path));
        let levels = levels.fold(0, |all, level| all | level);
        self.program.records.set_lease(Lease { until, levels })?;
        if let Some(metrics) = &self.metrics {
            metrics.publish(self.snapshot()?);
        }
        Ok(())
    }

    fn snapshot(&self) -> anyhow::Result<Snapshot> {
        let containers = || self.guarded.values().filter(|guarded| !guarded.container.is_pod());
        let left = || containers().map(Guarded::budget_left);
        Ok(Snapshot {
            counts: self.counts.clone(),
            held: self.program.records.held()?.len(),
            armed: containers().filter(|guarded| guarded.not_held().is_none()).count(),
            not_armed: self.not_armed(),
            not_held: self.program.spared()?,
            brakes: self.brakes.count(),
            reports: self.reporter.counts(),
            is_watched: self.watchdog.looks_on(),
            watchdog_restarts: self.watchdog.restarts(),
            lent: containers().filter(|guarded| guarded.loan.is_some()).count(),
            budget_left: left().map(u64::from).sum(),
            budget_spent: left().filter(|left| *left == 0).count(),
        })
    }

    /// How many containers are not armed, by reason.
    fn not_armed(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = BTreeMap::new();
        let not_held = self.guarded.values().filter_map(Guarded::not_held);
        for reason in self.not_armed.values().map(|reason| reason.name()).chain(not_held) {
            *counts.entry(reason).or_default() += 1;
        }
        counts
    }

    fn status(&self) -> anyhow::Result<Status> {
        let held = self.program.records.held()?;
        let armed = self.guarded.iter().map(|(id, guarded)| status::Armed {
            container_id: guarded.container.id.clone(),
            name: guarded.container.display_name(),
            held: held.iter().filter(|(_, hold)| hold.cgroup_id == *id).map(|(key, _)| key.pid).collect(),
            raises: guarded.raises.count(),
            budget: guarded.rule.budget,
            original_limit: guarded.loan.map(|loan| loan.original.0),
            suspended: guarded.not_held().map(str::to_owned),
        });
        let named = |(name, count): (&'static str, u64)| (name.to_owned(), count);
        let Counts { raises, refusals, returns, return_refusals, .. } = self.counts.clone();
        Ok(Status {
            pid: std::process::id(),
            watchdog_pid: self.watchdog.pid(),
            watchdog_restarts: self.watchdog.restarts(),
            hook: self.program.hook.to_owned(),
            armed: armed.collect(),
            not_armed: self.not_armed().into_iter().map(named).collect(),
            history: self.history.iter().cloned().collect(),
            raised: raises,
            refused: refusals.into_iter().map(named).collect(),
            returned: returns,
            not_returned: return_refusals.into_iter().map(named).collect(),
            not_held: self.program.spared()?.into_iter().map(named).collect(),
        })
    }

    /// Ends the lease, continues everything, and lets the watchdog go.
    async fn stop(mut self) -> anyhow::Result<()> {
        self.program.records.set_lease(Lease::default())?;
        let give_up = tokio::time::Instant::now() + STOP_LIMIT;
        loop {
            let held = self.program.records.held()?;
            self.continuing.extend(held.iter().map(|(key, hold)| hold_id(*key, hold)));
            self.resume(&held)?;
            self.brakes.set([]);
            let is_done = self.program.records.held()?.is_empty() && self.brakes.is_idle();
            // The watchdog goes on with what is left.
            if is_done || tokio::time::Instant::now() >= give_up {
                break;
            }
            tokio::time::sleep(RETRY).await;
        }
        // What is left can be ended by the next guard only where it is pinned.
        if self.watchdog.end().await {
            self.program.unload()?;
        }
        Ok(())
    }
}
