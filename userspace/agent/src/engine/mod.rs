//! The one owner of the state machines: drains the rings, feeds the core, performs its actions, writes the journal.
//!
//! ```text
//!  rings ──drain──▶ decode ──▶ order ──┐
//!  scans, answers, losses ─────────────┼──▶ Lifecycle, LimitTracker, VerdictTracker ──▶ events ──▶ hub::Writer
//!  once a second: Tick, counters ──────┘           └──▶ actions: ask the runtime, scan, read limit files
//! ```
//!
//! Nothing here waits for anyone: there is no channel between a ring and the engine (the ring itself is the bounded one,
//! and the kernel counts its overflow); a question to the runtime is put down and answered by a later observation; a scan
//! runs on a thread of its own. Whoever wants to know something asks by [`Handle`].
//!
//! A scan is observed only after every record that the kernel had made until its end.

mod losses;
mod recorder;
mod scans;

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_core::decode::Decoder;
use kwitness_core::journal::Position;
use kwitness_core::lifecycle::{Bounds, Lifecycle};
use kwitness_core::limits::{LimitCounters, LimitTracker};
use kwitness_core::model::{
    Action, ContainerState, Event, Evidence, Fact, Judged, KernelEvent, Kind, Observation, Output, Resource,
    ScanReason,
};
use kwitness_core::reorder::ReorderBuffer;
use kwitness_core::verdicts::VerdictTracker;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cgroupfs::{CgroupFs, LimitReader, Roots, Scanned};
use crate::clock::Clock;
use crate::cri::Resolver;
use crate::hub::Writer;
use crate::probe::{ProgramStats, Running};
use crate::verify::{Touched, TouchedSender};
use losses::{Losses, Untold};
use recorder::Recorder;
use scans::Scans;

/// Records taken from the rings before others get their turn: about a millisecond's work.
const DRAIN_BUDGET: usize = 1024;
/// Between looks at what nobody tells of by itself.
const TICK: Duration = Duration::from_secs(1);
/// How long records wait that were made while a drain ran.
const HELD_FOR: Duration = Duration::from_millis(1);
/// Requests and answers on their way to the engine.
const INBOX: usize = 256;

/// The containers as of one place in the journal.
#[derive(Debug)]
pub struct Snapshot {
    /// After that event.
    pub position: Position,
    /// All of them, sorted by path.
    pub containers: Vec<ContainerState>,
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
}

#[derive(Debug)]
pub(crate) enum Request {
    Snapshot(oneshot::Sender<Snapshot>),
    Report(oneshot::Sender<Report>),
    Judge(Box<Evidence>, oneshot::Sender<Judged>),
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

    /// The containers, and the place in the journal that they are as of.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn snapshot(&self) -> Result<Snapshot, Stopped> {
        self.ask(Request::Snapshot).await
    }

    /// What was counted.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn report(&self) -> Result<Report, Stopped> {
        self.ask(Request::Report).await
    }

    /// Judges a limit.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn judge(&self, evidence: Evidence) -> Result<Judged, Stopped> {
        self.ask(|answer| Request::Judge(Box::new(evidence), answer)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

/// The engine; see the module's description.
pub struct Engine {
    probe: Running,
    decoder: Decoder,
    order: ReorderBuffer,
    lifecycle: Lifecycle,
    limit_files: LimitTracker,
    verdicts: VerdictTracker,
    reader: LimitReader,
    touched: TouchedSender,
    output: Output,
    writer: Writer,
    resolver: Resolver,
    answers: mpsc::Receiver<Observation>,
    requests: mpsc::Receiver<Request>,
    scans: Scans,
    losses: Losses,
    untold: Untold,
    recorder: Option<Recorder>,
    records: u64,
}

/// What the engine works with.
pub struct Parts {
    /// The programs, attached.
    pub probe: Running,
    /// What to scan.
    pub cgroups: CgroupFs,
    /// From where.
    pub roots: Roots,
    /// Where events go.
    pub writer: Writer,
    /// Who is asked for names.
    pub resolver: Resolver,
    /// Who reads limit files.
    pub reader: LimitReader,
    /// Who follows changes of limits.
    pub touched: TouchedSender,
    /// Where the answers come from.
    pub answers: mpsc::Receiver<Observation>,
}

impl Engine {
    /// Puts the parts together; writes observations to `record` if given.
    ///
    /// # Errors
    /// The file cannot be made.
    pub fn new(parts: Parts, record: Option<&Path>) -> anyhow::Result<(Self, Handle)> {
        let Parts { probe, cgroups, roots, writer, resolver, reader, touched, answers } = parts;
        let (handle, requests) = Handle::new();
        let engine = Self {
            scans: Scans::new(cgroups, roots, probe.tracker()),
            losses: Losses::new(probe.counters()),
            untold: Untold::default(),
            probe,
            decoder: Decoder::default(),
            order: ReorderBuffer::default(),
            lifecycle: Lifecycle::new(Bounds::default()),
            limit_files: LimitTracker::default(),
            verdicts: VerdictTracker::default(),
            reader,
            touched,
            output: Output::default(),
            writer,
            resolver,
            answers,
            requests,
            recorder: record.map(Recorder::create).transpose()?,
            records: 0,
        };
        Ok((engine, handle))
    }

    /// Runs until cancelled. `ready` is told once the initial scan has been observed; until then nobody is answered.
    ///
    /// # Errors
    /// The rings cannot be read, or the initial scan fails: there is no going on.
    pub async fn run(mut self, ready: oneshot::Sender<()>, stop: CancellationToken) -> anyhow::Result<()> {
        let mut ready = Some(ready);
        self.scans.want(ScanReason::Initial);
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                readable = self.probe.readable() => {
                    readable.context("cannot wait for the kernel's rings")?;
                    self.drain();
                }
                () = tokio::time::sleep(HELD_FOR), if self.order.held() > 0 => { self.drain(); }
                scanned = self.scans.next() => match scanned {
                    Ok(scanned) => {
                        self.observe_scan(scanned).await;
                        if let Some(ready) = ready.take() {
                            // Nobody waiting for it is no reason to stop.
                            let _ = ready.send(());
                        }
                    }
                    Err(error) if ready.is_some() => return Err(error).context("the initial scan failed"),
                    Err(error) => {
                        tracing::error!("the repair scan failed, trying again: {error:#}");
                        self.scans.want(ScanReason::Repair);
                    }
                },
                Some(observation) = self.answers.recv() => {
                    if matches!(observation, Observation::LimitsRead(_)) {
                        // What was written before the files were read explains what they say.
                        while self.drain() {
                            tokio::task::yield_now().await;
                        }
                    }
                    self.observe(observation);
                    self.publish(Clock::read());
                }
                Some(request) = self.requests.recv(), if ready.is_none() => self.answer(request),
                _ = tick.tick() => {
                    let clock = Clock::read();
                    self.observe(Observation::Tick { at: clock.now() });
                    self.look_for_losses(clock);
                    self.look_for_skipped(clock);
                    self.look_for_untold(clock);
                    self.publish(clock);
                    if let Some(recorder) = &mut self.recorder {
                        recorder.flush();
                    }
                }
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Takes what is in the rings, within the budget. Whether more is there.
    fn drain(&mut self) -> bool {
        let clock = Clock::read();
        let Self { probe, decoder, order, losses, .. } = self;
        let drained = probe.drain(DRAIN_BUDGET, |bytes| match decoder.decode(bytes) {
            Ok(event) => order.push(event),
            Err(error) => losses.malformed(&error),
        });
        self.records += drained.records as u64;
        self.release(clock);
        self.publish(clock);
        if drained.records > 0 {
            self.look_for_losses(clock);
            self.publish(clock);
        }
        drained.more
    }

    /// Observes the records that are not younger than the beginning of the drain that delivered them.
    fn release(&mut self, began: Clock) {
        let Self { order, lifecycle, limit_files, verdicts, output, recorder, .. } = self;
        for event in order.release(began.now()) {
            let observation = Observation::Kernel(event);
            if let Some(recorder) = recorder {
                recorder.write(&observation);
            }
            take(lifecycle, limit_files, verdicts, observation, output);
        }
    }

    fn look_for_losses(&mut self, clock: Clock) {
        for loss in self.losses.since_last(self.probe.counters(), clock.now()) {
            tracing::warn!(cause = ?loss.cause, lost = ?loss.lost, "records were lost; a scan follows");
            self.observe(Observation::Lost(loss));
        }
    }

    fn look_for_skipped(&mut self, clock: Clock) {
        if let Some(loss) = self.losses.skipped_since_last(self.probe.skipped(), clock.now()) {
            tracing::warn!(lost = ?loss.lost, "the kernel skipped programs; a scan follows");
            self.observe(Observation::Lost(loss));
        }
    }

    /// A cgroup's limit files were written to faster than is told.
    fn look_for_untold(&mut self, clock: Clock) {
        if !self.untold.is_more(self.probe.counters().suppressed) {
            return;
        }
        match self.probe.untold_writes() {
            Ok(untold) => {
                for (cgroup, writes) in self.untold.since_last(untold) {
                    tracing::warn!(%cgroup, writes, "limits are written to too fast: writes were only counted");
                    let fact = Fact::LimitWritesSuppressed(writes);
                    self.observe(Observation::Kernel(KernelEvent { at: clock.now(), cgroup, fact }));
                }
            }
            Err(error) => tracing::error!(%error, "cannot read which limit writes were not told"),
        }
    }

    /// Observes a scan, after all records that are older than its end.
    async fn observe_scan(&mut self, Scanned { scan, untracked }: Scanned) {
        while self.drain() {
            tokio::task::yield_now().await;
        }
        tracing::info!(
            reason = ?scan.reason,
            cgroups = scan.cgroups.len(),
            untracked,
            took_ms = (scan.ended.0 - scan.began.0) / 1_000_000,
            "scanned the cgroup tree"
        );
        self.observe(Observation::Scan(scan));
        self.publish(Clock::read());
    }

    fn observe(&mut self, observation: Observation) {
        if let Some(recorder) = &mut self.recorder {
            recorder.write(&observation);
        }
        let Self { lifecycle, limit_files, verdicts, output, .. } = self;
        take(lifecycle, limit_files, verdicts, observation, output);
    }

    /// Writes the journal, then does what is to be done.
    fn publish(&mut self, clock: Clock) {
        self.output.events.iter().filter_map(touched).for_each(|touched| self.touched.tell(touched));
        self.writer.append(self.output.events.drain(..), clock);
        for action in self.output.actions.drain(..) {
            match action {
                Action::Resolve(container) => self.resolver.ask(container),
                Action::Rescan => self.scans.want(ScanReason::Repair),
                Action::ReadLimits(request) => self.reader.ask(request),
            }
        }
    }

    fn answer(&mut self, request: Request) {
        // Whoever asked may have gone: that is their affair.
        match request {
            Request::Snapshot(answer) => drop(answer.send(self.snapshot())),
            Request::Report(answer) => drop(answer.send(self.report())),
            Request::Judge(evidence, answer) => {
                // Writes and kills that led to what was read.
                self.drain();
                let judged = self.verdicts.judge(&evidence, &self.limit_files, &self.lifecycle);
                self.observe(Observation::Evidence(evidence));
                self.publish(Clock::read());
                drop(answer.send(judged));
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        let mut containers: Vec<ContainerState> = self.lifecycle.containers().collect();
        containers.sort_by(|a, b| a.subject.cgroup_path.cmp(&b.subject.cgroup_path));
        Snapshot { position: self.writer.position(), containers }
    }

    fn report(&self) -> Report {
        let mut counters: BTreeMap<String, u64> = self
            .lifecycle
            .counters()
            .iter()
            .map(|(name, count)| (format!("lifecycle_{name}"), count))
            .collect();
        let LimitCounters { writes, unchanged, coalesced, found, unreturned, cgroups_full } =
            self.limit_files.counters();
        let limits = [
            ("limits_writes", writes),
            ("limits_unchanged", unchanged),
            ("limits_coalesced", coalesced),
            ("limits_found", found),
            ("limits_unreturned", unreturned),
            ("limits_cgroups_full", cgroups_full),
            ("limits_open", self.reader.open() as u64),
            ("limits_unjudged", self.touched.dropped()),
        ];
        counters.extend(limits.map(|(name, count)| (name.to_owned(), count)));
        counters.insert("records".to_owned(), self.records);
        counters.insert("scans".to_owned(), self.scans.made());
        Report {
            lost: self.losses.total().clone(),
            counters,
            programs: self.probe.program_stats(),
            containers: self.lifecycle.containers().count(),
        }
    }
}

/// Whose verdicts an event asks for.
fn touched(event: &Event) -> Option<Touched> {
    let Kind::LimitChanged(changed) = &event.kind else { return None };
    Resource::of(changed.limit_file)?;
    Some(match (&event.subject, &changed.pod, changed.role?) {
        (Some(subject), ..) => Touched::Container(subject.container_id.clone()),
        (None, Some(pod), _) => Touched::Pod(pod.pod.uid.clone()),
        (None, None, _) => Touched::All,
    })
}

/// The lifecycle goes first: what a limit is of, it knows.
fn take(
    lifecycle: &mut Lifecycle,
    limit_files: &mut LimitTracker,
    verdicts: &mut VerdictTracker,
    observation: Observation,
    output: &mut Output,
) {
    if VerdictTracker::concerns(&observation) {
        verdicts.observe(&observation, limit_files, lifecycle, output);
    }
    if !LimitTracker::concerns(&observation) {
        return lifecycle.observe(observation, output);
    }
    // What is still to be told of the limits is told before the removal.
    let is_removal = matches!(
        &observation,
        Observation::Kernel(KernelEvent { fact: Fact::Rmdir { .. } | Fact::Release, .. })
    );
    if is_removal {
        limit_files.observe(&observation, lifecycle, output);
        lifecycle.observe(observation, output);
    } else {
        lifecycle.observe(observation.clone(), output);
        limit_files.observe(&observation, lifecycle, output);
    }
}
