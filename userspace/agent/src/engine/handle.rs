//! What other tasks ask of the engine, and how: a bounded queue of requests, each with where its answer goes.
//!
//! Owns the requests and what is answered. Never changes the node by itself: what is to be judged or observed goes the way of everything
//! that is.

use std::collections::BTreeMap;
use std::sync::Arc;

use kwitness_core::journal::Position;
use kwitness_core::model::{
    ContainerId, ContainerState, Evidence, Judged, KernelTime, LastVerdict, MemoryLevels, Observation,
    Problem, ScanReason, State, Subject, VerdictScope,
};
use kwitness_core::node::LevelsRevision;
use kwitness_service::metrics::Histogram;
use tokio::sync::{mpsc, oneshot};

use super::{Engine, INBOX, Probe, Read};
use crate::clock::Clock;
use crate::hub::{Filter, selects};
use crate::probe::{ProgramStats, RingState};
use crate::reported::LimitReport;

/// The containers as of one place in the journal.
#[derive(Debug)]
pub struct Snapshot {
    /// After that event.
    pub position: Position,
    /// Sorted by path.
    pub containers: Vec<ContainerState>,
}

impl Snapshot {
    /// What the engine hands out is in no order: sorting is not its work.
    fn sorted(mut self) -> Self {
        self.containers.sort_unstable_by(|a, b| a.subject.cgroup_path.cmp(&b.subject.cgroup_path));
        self
    }
}

/// What the engine counted.
#[derive(Debug, Default)]
pub struct Report {
    /// Records lost since start, by cause and kind.
    pub lost: BTreeMap<String, u64>,
    /// Other counters, by name.
    pub counters: BTreeMap<String, u64>,
    /// The programs in the kernel.
    pub programs: Vec<ProgramStats>,
    /// How many containers there are.
    pub containers: usize,
    /// What cannot be done at present.
    pub problems: Vec<Problem>,
    /// Cgroups that are tracked.
    pub tracked: usize,
    /// The kernel's rings.
    pub rings: Vec<RingState>,
    /// How long scans took, in seconds, by why they were made.
    pub scans: Vec<(ScanReason, Histogram)>,
}

#[derive(Debug)]
pub(crate) enum Request {
    Snapshot(Filter, oneshot::Sender<Snapshot>),
    State(oneshot::Sender<(Snapshot, Vec<LastVerdict>)>),
    Report(oneshot::Sender<Report>),
    Subjects(VerdictScope, oneshot::Sender<Vec<(Arc<Subject>, State)>>),
    MemoryLevels(Option<LevelsRevision>, oneshot::Sender<Option<(LevelsRevision, MemoryLevels)>>),
    Judge(Vec<Evidence>, oneshot::Sender<Vec<Judged>>),
    Known(Vec<ContainerId>, oneshot::Sender<Vec<bool>>),
    Observe(Observation),
    LimitReports(KernelTime, Vec<LimitReport>, oneshot::Sender<()>),
}

/// The engine has ended: the daemon is going down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the engine has stopped")]
pub struct Stopped;

/// Asks the engine.
#[derive(Clone, Debug)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
}

impl Handle {
    /// A handle, and where its requests come out.
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, receiver) = mpsc::channel(INBOX);
        (Self { requests }, receiver)
    }

    /// The containers that match, and the place in the journal that they are as of.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn snapshot(&self, filter: Filter) -> Result<Snapshot, Stopped> {
        Ok(self.ask(|answer| Request::Snapshot(filter, answer)).await?.sorted())
    }

    /// All containers and the last verdicts on their limits, as of the same place in the journal.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn state(&self) -> Result<(Snapshot, Vec<LastVerdict>), Stopped> {
        let (snapshot, verdicts) = self.ask(Request::State).await?;
        Ok((snapshot.sorted(), verdicts))
    }

    /// What was counted.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn report(&self) -> Result<Report, Stopped> {
        self.ask(Request::Report).await
    }

    /// The containers in that scope whose cgroup exists, sandboxes included, each with how far its life has come.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn subjects(&self, scope: VerdictScope) -> Result<Vec<(Arc<Subject>, State)>, Stopped> {
        self.ask(|answer| Request::Subjects(scope, answer)).await
    }

    /// The cgroups whose memory usage is to be sampled, or what has changed of them since that revision, if anything has. Waits, so not
    /// for a task.
    ///
    /// # Errors
    /// [`Stopped`].
    pub(crate) fn memory_levels(
        &self,
        known: Option<LevelsRevision>,
    ) -> Result<Option<(LevelsRevision, MemoryLevels)>, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.requests.blocking_send(Request::MemoryLevels(known, answer)).map_err(|_| Stopped)?;
        answered.blocking_recv().map_err(|_| Stopped)
    }

    /// Judges limits: a judgement for each, in the same order.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn judge(&self, evidence: Vec<Evidence>) -> Result<Vec<Judged>, Stopped> {
        self.ask(|answer| Request::Judge(evidence, answer)).await
    }

    /// Whether each of these containers is known, also if it was removed a while ago.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn known(&self, containers: Vec<ContainerId>) -> Result<Vec<bool>, Stopped> {
        self.ask(|answer| Request::Known(containers, answer)).await
    }

    /// Has the node observe what a client reports.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn observe(&self, observation: Observation) -> Result<(), Stopped> {
        self.requests.send(Request::Observe(observation)).await.map_err(|_| Stopped)
    }

    /// Has the engine take in what a client reports of limits, at that time, and waits until it has.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn report_limits(&self, at: KernelTime, reports: Vec<LimitReport>) -> Result<(), Stopped> {
        self.ask(|answer| Request::LimitReports(at, reports, answer)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

impl<P: Probe> Engine<P> {
    pub(super) fn answer(&mut self, request: Request) {
        // The client may have gone: that is no error.
        match request {
            Request::Snapshot(filter, answer) => {
                drop(answer.send(self.snapshot(|subject| selects(&filter, subject))));
            }
            Request::State(answer) => {
                drop(answer.send((self.snapshot(|_| true), self.node.last_verdicts())));
            }
            Request::Report(answer) => drop(answer.send(self.report())),
            Request::Subjects(scope, answer) => drop(answer.send(self.node.subjects(&scope))),
            Request::MemoryLevels(known, answer) => drop(answer.send(self.node.memory_levels_after(known))),
            // Writes and kills that led to what was read come first.
            Request::Judge(evidence, answer) => self.wait_for_records(Read::Evidence(evidence, answer)),
            Request::Known(containers, answer) => {
                let known = containers.iter().map(|container| self.node.knows(container)).collect();
                drop(answer.send(known));
            }
            Request::Observe(observation) => {
                self.observe(observation);
                self.publish(Clock::read());
            }
            Request::LimitReports(at, reports, answer) => {
                self.take_reports(at, reports);
                self.publish(Clock::read());
                // Who reported may have gone.
                let _ = answer.send(());
            }
        }
    }

    fn take_reports(&mut self, at: KernelTime, reports: Vec<LimitReport>) {
        let (mut containers, mut forgotten) = (Vec::new(), Vec::new());
        for report in reports {
            if let LimitReport::Requested(request) = &report {
                containers.push(ContainerId(request.id.as_str().into()));
            }
            let is_kept = self.keep(|ledger| ledger.report(&report));
            forgotten.extend(self.reported.take(report));
            self.turn_unless(is_kept);
        }
        if !containers.is_empty() {
            self.observe(Observation::LimitsRequested { at, containers, forgotten });
        }
    }

    fn snapshot(&self, is_wanted: impl Fn(&Subject) -> bool) -> Snapshot {
        let containers = self.node.containers(is_wanted).collect();
        Snapshot { position: self.writer.position(), containers }
    }

    fn report(&self) -> Report {
        let mut counters = self.node.counters();
        let sampled = self.sampling.iter().flat_map(|sampling| sampling.counters());
        counters.extend(sampled.map(|(name, count)| (name.to_owned(), count)));
        counters.insert("limits_open".to_owned(), self.reader.open() as u64);
        counters.insert("records".to_owned(), self.records);
        counters.insert("scans".to_owned(), self.scans.made());
        Report {
            lost: self.losses.total().clone(),
            counters,
            programs: self.probe.program_stats(),
            containers: self.node.container_count(),
            problems: self.problems(),
            tracked: self.node.cgroup_count(),
            rings: self.probe.rings(),
            scans: self.scans.durations().to_vec(),
        }
    }
}
