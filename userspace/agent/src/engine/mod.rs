//! The one owner of the core: drains the rings, feeds the node, performs its actions, writes the journal.
//!
//! ```text
//!  rings ──drain──▶ decode ──▶ reorder ──┐
//!  scans, answers, losses, evidence ─────┼──▶ Node ──▶ events ──▶ hub::Writer
//!  once a second: Tick, counters ────────┘      └────▶ actions: ask the runtime, scan, read limit files, judge
//! ```
//!
//! Does I/O and nothing else: what follows from what is the [`Node`]'s. Nothing here waits for another task: there is no channel
//! between a ring and the engine (the ring itself is the bounded one, and the kernel counts its overflow); a question to the
//! runtime is put down and answered by a later observation; a scan runs on a thread of its own.
//!
//! What was read from files (a scan, limits, evidence) is observed only after every record that the kernel had made until then:
//! it waits in a queue with the rings' positions of that moment, and the rings are drained past them in steps, so that ticks,
//! requests and the end of the daemon have their turn whatever the load.
//!
//! After an upgrade to another layout of the maps, the old programs' records are read on until the new ones have run beside them for
//! longer than doubles may lie apart; then the new ones' are, and what was taken already is left out.

mod asked;
mod judge_queue;
mod ledger;
mod losses;
mod outside;
mod recorder;
mod scans;
mod seam;
#[cfg(test)]
mod tests;
mod unkept;

pub use judge_queue::JudgeQueue;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_abi::Counters;
use kwitness_core::decode::Decoder;
use kwitness_core::journal::Position;
use kwitness_core::model::{
    Action, CgroupId, ContainerState, Evidence, Fact, GapCause, Judged, KernelEvent, KernelTime, LastVerdict,
    Loss, Observation, Output, Problem, Scan, ScanReason, Subject, VerdictScope,
};
use kwitness_core::node::Node;
use kwitness_core::reorder::ReorderBuffer;
use kwitness_core::seam::Seam;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cgroupfs::LimitReader;
use crate::clock::Clock;
use crate::cri::Resolver;
use crate::hub::Writer;
use crate::probe::{Drained, Overlap, Produced, ProgramStats, RingState, Running, SetId};
use crate::wire::problem;
use asked::Asked;
use kwitness_api::proto;
use kwitness_service::metrics::Histogram;
use ledger::{Accounted, Before, Ledger, MemoryOf, Series};
use losses::{Look, Losses, Seen, SuppressedWrites};
use recorder::Recorder;
use unkept::Unkept;

pub(crate) use ledger::{History, Memory, Place, Refusal};
pub(crate) use outside::Outside;
pub(crate) use scans::Scans;

/// Records read from the rings before others get their turn: about a millisecond's work.
const DRAIN_BUDGET: usize = 1024;
/// Between looks at what no record reports.
const TICK: Duration = Duration::from_secs(1);
/// How long records wait that were made while a drain ran.
const HELD_FOR: Duration = Duration::from_millis(1);
/// Requests and answers on their way to the engine, and what waits for the rings.
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
    Snapshot(oneshot::Sender<Snapshot>),
    State(oneshot::Sender<(Snapshot, Vec<LastVerdict>)>),
    Report(oneshot::Sender<Report>),
    Subjects(VerdictScope, oneshot::Sender<Vec<Arc<Subject>>>),
    Judge(Vec<Evidence>, oneshot::Sender<Vec<Judged>>),
    Observe(Observation),
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

    /// The containers and the last verdicts on their limits, as of the same place in the journal.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn state(&self) -> Result<(Snapshot, Vec<LastVerdict>), Stopped> {
        self.ask(Request::State).await
    }

    /// What was counted.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn report(&self) -> Result<Report, Stopped> {
        self.ask(Request::Report).await
    }

    /// The containers in that scope whose cgroup exists, sandboxes included.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn subjects(&self, scope: VerdictScope) -> Result<Vec<Arc<Subject>>, Stopped> {
        self.ask(|answer| Request::Subjects(scope, answer)).await
    }

    /// Judges limits: a judgement for each, in the same order.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn judge(&self, evidence: Vec<Evidence>) -> Result<Vec<Judged>, Stopped> {
        self.ask(|answer| Request::Judge(evidence, answer)).await
    }

    /// Has the node observe what a client reports.
    ///
    /// # Errors
    /// [`Stopped`].
    pub async fn observe(&self, observation: Observation) -> Result<(), Stopped> {
        self.requests.send(Request::Observe(observation)).await.map_err(|_| Stopped)
    }

    async fn ask<T>(&self, request: impl FnOnce(oneshot::Sender<T>) -> Request) -> Result<T, Stopped> {
        let (answer, answered) = oneshot::channel();
        self.requests.send(request(answer)).await.map_err(|_| Stopped)?;
        answered.await.map_err(|_| Stopped)
    }
}

/// What the engine needs of the probes.
pub(crate) trait Probe: Send {
    /// How far the kernel has written into the rings.
    type Produced: Send;

    /// Waits until there is something to drain.
    fn readable(&mut self) -> impl Future<Output = io::Result<()>> + Send;
    /// Hands out at most so many records.
    fn drain(&mut self, budget: usize, take: impl FnMut(&[u8])) -> Drained;
    /// How far the kernel has written by now.
    fn produced(&self) -> Self::Produced;
    /// Whether all that was written by then has been handed out.
    fn has_drained(&self, until: &Self::Produced) -> bool;
    /// Takes a cgroup out of the tracked set.
    fn untrack(&self, cgroup: CgroupId) -> io::Result<()>;
    /// What the kernel side could not deliver.
    fn counters(&self) -> Counters;
    /// How often the kernel did not run a program, by capability.
    fn skipped(&self) -> BTreeMap<&'static str, u64>;
    /// How many writes to each cgroup's limit files were only counted.
    fn suppressed_writes(&self) -> io::Result<BTreeMap<u64, u64>>;
    /// What the kernel says about the programs.
    fn program_stats(&self) -> Vec<ProgramStats>;
    /// The rings.
    fn rings(&self) -> Vec<RingState>;
    /// From now on, the next daemon may go on with what is recorded: the ledger says what was not.
    fn may_be_adopted(&mut self);
    /// Since when records of old programs are handed out beside which the new ones run already; none if they are not.
    fn overlap(&self) -> Option<Overlap>;
    /// From now on, the new programs' records are handed out, from the first; the next daemon may go on with those.
    fn hand_over(&mut self);
    /// The sets of programs that a daemon may go on with from here: the one whose records are handed out, then, as long as they are not
    /// yet, the new ones'.
    fn sets(&self) -> Vec<SetId>;
}

impl Probe for Running {
    type Produced = Produced;

    fn readable(&mut self) -> impl Future<Output = io::Result<()>> + Send {
        Running::readable(self)
    }

    fn drain(&mut self, budget: usize, take: impl FnMut(&[u8])) -> Drained {
        Running::drain(self, budget, take)
    }

    fn produced(&self) -> Produced {
        Running::produced(self)
    }

    fn has_drained(&self, until: &Produced) -> bool {
        Running::has_drained(self, until)
    }

    fn untrack(&self, cgroup: CgroupId) -> io::Result<()> {
        self.tracker().untrack(cgroup.0)
    }

    fn counters(&self) -> Counters {
        Running::counters(self)
    }

    fn skipped(&self) -> BTreeMap<&'static str, u64> {
        Running::skipped(self)
    }

    fn suppressed_writes(&self) -> io::Result<BTreeMap<u64, u64>> {
        self.suppressed_writes()
    }

    fn program_stats(&self) -> Vec<ProgramStats> {
        Running::program_stats(self)
    }

    fn rings(&self) -> Vec<RingState> {
        Running::rings(self).collect()
    }

    fn may_be_adopted(&mut self) {
        Running::may_be_adopted(self);
    }

    fn overlap(&self) -> Option<Overlap> {
        Running::overlap(self)
    }

    fn hand_over(&mut self) {
        Running::hand_over(self);
    }

    fn sets(&self) -> Vec<SetId> {
        Running::sets(self)
    }
}

/// What was read from files, and waits for the records that the kernel had made until then.
struct Waiting<P> {
    produced: P,
    at: Clock,
    what: Read,
}

enum Read {
    Scanned(Scan),
    Answer(Observation),
    Evidence(Vec<Evidence>, oneshot::Sender<Vec<Judged>>),
    /// What the rings held when this daemon took over from one that had ended by then.
    Restarted {
        from: KernelTime,
    },
    /// What the old programs recorded until the new ones take over.
    Replaced,
    /// What the new programs recorded that the old ones may have recorded, too.
    Doubled,
}

/// The engine; see the module's description.
pub(crate) struct Engine<P: Probe> {
    probe: P,
    decoder: Decoder,
    reorder: ReorderBuffer,
    node: Node,
    output: Output,
    waiting: VecDeque<Waiting<P::Produced>>,
    writer: Writer,
    resolver: Resolver,
    reader: LimitReader,
    verdicts: JudgeQueue,
    answers: mpsc::Receiver<Observation>,
    requests: mpsc::Receiver<Request>,
    scans: Scans,
    losses: Losses,
    suppressed: SuppressedWrites,
    outside: Outside,
    /// What could not be done at the last look.
    problems: Vec<Problem>,
    /// Why the last scan failed.
    scan_error: Option<String>,
    recorder: Option<Recorder>,
    /// What is taken in is written there first, if it is to survive the process.
    ledger: Option<Ledger>,
    /// The ledger that should be written, and cannot.
    unkept: Option<Unkept>,
    asked: Asked,
    /// The last record that the ledger has of an earlier daemon, as long as it may be in its ring still.
    last_record: Option<Vec<u8>>,
    /// What was taken from programs that are replaced, as long as the new ones' records may have it, too.
    seam: Option<Seam>,
    /// When the outage began that has not been reported yet.
    outage: Option<KernelTime>,
    /// Whether an earlier daemon's work goes on.
    resumes: Option<Resumes>,
    /// Until the first scan has made new programs track the cgroups.
    untracked: Option<Untracked>,
    records: u64,
    /// Until the initial scan has been observed.
    ready: Option<oneshot::Sender<()>>,
}

/// How an earlier daemon's work goes on.
#[derive(Clone, Debug)]
pub(crate) struct Resumes {
    /// What was not recorded meanwhile, by capability; everything, if the programs ended with that daemon.
    pub(crate) unrecorded: Vec<&'static str>,
    /// Whether the maps are that daemon's, the counters with them.
    pub(crate) same_maps: bool,
}

/// New programs that track no cgroup yet: a container that comes and goes before the first scan, they do not record.
struct Untracked {
    /// Since when nothing is recorded that an earlier daemon did, and by which capabilities.
    outage: Option<(KernelTime, Vec<&'static str>)>,
}

/// What the engine works with.
pub(crate) struct Parts<P> {
    /// The programs, attached.
    pub(crate) probe: P,
    /// What is known already.
    pub(crate) memory: Memory,
    /// By whom, if by an earlier daemon.
    pub(crate) resumes: Option<Resumes>,
    /// Where what is taken in is kept.
    pub(crate) place: Option<Place>,
    /// Who walks the cgroup tree.
    pub(crate) scans: Scans,
    /// Who looks for containers outside of all roots.
    pub(crate) outside: Outside,
    /// Where events go.
    pub(crate) writer: Writer,
    /// Resolves names.
    pub(crate) resolver: Resolver,
    /// Who reads limit files.
    pub(crate) reader: LimitReader,
    /// Who gathers evidence for verdicts.
    pub(crate) verdicts: JudgeQueue,
    /// Where the answers come from.
    pub(crate) answers: mpsc::Receiver<Observation>,
    /// Where requests come from.
    pub(crate) requests: mpsc::Receiver<Request>,
}

impl<P: Probe> Engine<P> {
    /// Puts the parts together; writes observations to `record` if given.
    ///
    /// # Errors
    /// The file cannot be made.
    pub(crate) fn new(parts: Parts<P>, record: Option<&Path>) -> anyhow::Result<Self> {
        let Parts {
            probe,
            memory,
            resumes,
            place,
            scans,
            outside,
            writer,
            resolver,
            reader,
            verdicts,
            answers,
            requests,
        } = parts;
        let Memory { node, reorder, events, mut seen, asked, last_record, seam, outage, sets, looked, until } =
            memory;
        // One that an earlier daemon did not come to the end of, begins anew. It is of the new programs: records of the old ones that
        // came after it are no doubles.
        let seam = match probe.overlap() {
            Some(_) => Some(Seam::default()),
            None => seam.filter(|_| sets.last() == probe.sets().last()),
        };
        let since = match &resumes {
            Some(Resumes { unrecorded, same_maps }) => {
                seen.forget(unrecorded, *same_maps);
                // Of two outages without a report in between, there is one report.
                outage.unwrap_or(until)
            }
            None => {
                let suppressed = probe.suppressed_writes().unwrap_or_else(|error| {
                    tracing::error!(%error, "cannot read which limit writes were only counted");
                    BTreeMap::new()
                });
                seen = Seen::all(probe.counters(), probe.skipped(), suppressed);
                Clock::read().now()
            }
        };
        // The earlier daemon may have worked on after its last look: what was lost meanwhile was lost after the look.
        let losses = Losses::resumed(&seen, looked.map_or(since, |looked| looked.min(since)));
        let mut engine = Self {
            losses,
            probe,
            decoder: Decoder::default(),
            reorder,
            node,
            output: Output { events, actions: Vec::new() },
            waiting: VecDeque::new(),
            writer,
            resolver,
            reader,
            verdicts,
            answers,
            requests,
            scans,
            suppressed: seen.suppressed(),
            outside,
            problems: Vec::new(),
            scan_error: None,
            recorder: record.map(Recorder::create).transpose()?,
            ledger: None,
            unkept: None,
            asked,
            last_record,
            seam,
            outage: resumes.is_some().then_some(since),
            resumes,
            untracked: None,
            records: 0,
            ready: None,
        };
        if let Some(place) = place {
            let series = if engine.resumes.is_some() { Series::Continued } else { Series::New };
            match place.clone().begin(engine.writer.position(), &engine.memory(), series) {
                Ok(ledger) => engine.ledger = Some(ledger),
                Err(error) => {
                    // What stayed would be gone on with by the next daemon, which would miss all that this one takes from the rings.
                    place.remove_segments().with_context(|| {
                        let path = place.directory.display();
                        format!("the ledger {path} can neither be continued ({error}) nor removed. Remedy: make it writable, or remove it")
                    })?;
                    engine.unkept = Some(Unkept::new(place, &error));
                }
            }
        }
        Ok(engine)
    }

    /// What the next daemon has to know.
    fn memory(&self) -> MemoryOf<'_> {
        let mut asked = self.asked.clone();
        self.output.actions.iter().for_each(|action| asked.note(action));
        MemoryOf {
            node: &self.node,
            reorder: &self.reorder,
            events: &self.output.events,
            seen: self.losses.seen(&self.suppressed),
            asked,
            last_record: self.last_record.as_deref(),
            seam: self.seam.as_ref(),
            outage: self.outage,
            sets: self.probe.sets(),
            looked: Some(self.losses.looked()),
            until: Clock::read().now(),
        }
    }

    /// Writes what is about to be observed to the ledger. False: it has no room for it, so that a new segment has to begin with
    /// what followed from it ([`Self::turn_unless`]).
    fn keep(&mut self, write: impl FnOnce(&mut Ledger) -> bool) -> bool {
        self.ledger.as_mut().is_none_or(write)
    }

    /// Begins a new segment if this one may not have room for what comes next.
    fn make_room(&mut self) {
        if self.ledger.as_ref().is_some_and(Ledger::is_nearly_full) {
            self.turn();
        }
    }

    /// Begins a new segment of the ledger.
    fn turn(&mut self) {
        self.turn_after(Before::Whole);
    }

    fn turn_after(&mut self, before: Before) {
        let Some(mut ledger) = self.ledger.take() else { return };
        match ledger.turn(self.writer.position(), &self.memory(), before) {
            Ok(()) => self.ledger = Some(ledger),
            Err(error) => self.unkept = Some(Unkept::given_up(ledger, &error)),
        }
    }

    /// Goes on with what an earlier daemon had begun.
    fn resume(&mut self) {
        let Some(Resumes { unrecorded, same_maps }) = self.resumes.take() else {
            self.untracked = Some(Untracked { outage: None });
            self.scans.want(ScanReason::Initial);
            return;
        };
        let clock = Clock::read();
        let from = self.outage.unwrap_or_else(|| self.losses.looked());
        let is_tracked = same_maps || self.probe.overlap().is_some();
        if is_tracked {
            self.report_outage(from, clock.now(), unrecorded);
            self.probe.may_be_adopted();
        } else {
            self.untracked = Some(Untracked { outage: Some((from, unrecorded)) });
        }
        self.output.actions.extend(self.asked.actions());
        self.asked = Asked::default();
        self.publish(clock);
        self.scans.want(ScanReason::Repair);
        self.verdicts.push(VerdictScope::All);
        if is_tracked {
            self.wait_for_records(Read::Restarted { from });
        }
    }

    fn report_outage(&mut self, from: KernelTime, to: KernelTime, unrecorded: Vec<&'static str>) {
        if unrecorded.is_empty() {
            return;
        }
        self.observe(Observation::Lost(Loss {
            from,
            to,
            cause: GapCause::AgentDown,
            lost: BTreeMap::new(),
            capabilities: unrecorded.into_iter().map(str::to_owned).collect(),
        }));
    }

    /// Observes a scan; the first one ends what new programs did not track.
    fn scanned(&mut self, scan: Scan) {
        let Some(Untracked { outage }) = self.untracked.take() else {
            return self.observe(Observation::Scan(scan));
        };
        let from = outage.map(|(from, unrecorded)| {
            self.report_outage(from, scan.ended, unrecorded);
            from
        });
        self.observe(Observation::Scan(scan));
        // Not earlier: a daemon that adopts them relies on what they track.
        self.probe.may_be_adopted();
        if let Some(from) = from {
            self.restarted(from);
        }
    }

    fn restarted(&mut self, from: KernelTime) {
        let (to, records) = (Clock::read().now(), self.records);
        tracing::info!(records, "goes on where the earlier daemon ended");
        // It goes with the observation: a segment that is begun now has it.
        self.outage = None;
        self.observe(Observation::AgentRestarted { from, to, records });
    }

    /// Runs until cancelled. `ready` is sent once the initial scan has been observed; until then no request is answered.
    ///
    /// # Errors
    /// The rings cannot be read, or the initial scan fails: there is no going on.
    pub(crate) async fn run(
        mut self,
        ready: oneshot::Sender<()>,
        stop: CancellationToken,
    ) -> anyhow::Result<()> {
        self.ready = Some(ready);
        self.resume();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_room = self.waiting.len() < INBOX;
            let draining = self.reorder.held() > 0 || !self.waiting.is_empty();
            tokio::select! {
                readable = self.probe.readable() => {
                    readable.context("cannot wait for the kernel's rings")?;
                    self.drain();
                }
                () = tokio::time::sleep(HELD_FOR), if draining => self.drain(),
                scanned = self.scans.next(), if has_room => match scanned {
                    Ok(scanned) => self.wait_for_records(Read::Scanned(scanned)),
                    Err(error) if self.ready.is_some() => return Err(error).context("the initial scan failed"),
                    Err(error) => self.scan_failed(&error),
                },
                Some(observation) = self.answers.recv(), if has_room => match observation {
                    // What was written before the files were read explains what they say.
                    Observation::LimitsRead(_) => self.wait_for_records(Read::Answer(observation)),
                    other => {
                        self.observe(other);
                        self.publish(Clock::read());
                    }
                },
                Some(request) = self.requests.recv(), if self.ready.is_none() && has_room => self.answer(request),
                _ = tick.tick() => {
                    let clock = Clock::read();
                    self.keep_again(clock);
                    self.make_room();
                    self.observe(Observation::Tick { at: clock.now() });
                    self.look_for_losses();
                    self.look_for_skipped();
                    self.look_for_suppressed(clock);
                    self.note_look(clock);
                    self.look_at_seam(clock.now());
                    self.ask_again();
                    self.look_for_problems();
                    self.publish(clock);
                }
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Takes what is in the rings, within the budget, and observes what has waited for it.
    fn drain(&mut self) {
        let clock = Clock::read();
        self.make_room();
        let Self { probe, decoder, reorder, losses, ledger, last_record, records, seam, .. } = self;
        let overlap = probe.overlap();
        let mut is_kept = true;
        let drained = probe.drain(DRAIN_BUDGET, |bytes| {
            if last_record.take_if(|last| last.as_slice() == bytes).is_some() {
                // The earlier daemon ended between writing it down and consuming it.
                return;
            }
            let decoded = decoder.decode(bytes);
            if let (Some(seam), Ok(event)) = (seam.as_mut(), &decoded) {
                match overlap {
                    Some(Overlap { began, .. }) => seam.take(event, began),
                    None if seam.is_double(event) => {
                        is_kept &= ledger.as_mut().is_none_or(|ledger| ledger.double(bytes));
                        return;
                    }
                    None => {}
                }
            }
            *records += 1;
            is_kept &= ledger.as_mut().is_none_or(|ledger| ledger.record(bytes));
            match decoded {
                Ok(event) => reorder.push(event),
                Err(error) => losses.malformed(&error),
            }
        });
        self.turn_unless(is_kept);
        if !drained.more {
            self.last_record = None;
        }
        self.release(clock);
        self.publish(clock);
        while let Some(next) = self.waiting.front()
            && self.probe.has_drained(&next.produced)
            && let Some(Waiting { at, what, .. }) = self.waiting.pop_front()
        {
            self.release(at);
            self.observe_read(what);
        }
        if drained.records > 0 {
            self.look_for_losses();
            self.publish(Clock::read());
        }
    }

    /// Observes the records that are not younger than that.
    fn release(&mut self, until: Clock) {
        if self.reorder.held() == 0 {
            return;
        }
        let is_kept = self.keep(|ledger| ledger.release(until.now()));
        let Self { reorder, node, output, recorder, .. } = self;
        for event in reorder.release(until.now()) {
            let observation = Observation::Kernel(event);
            if let Some(recorder) = recorder {
                recorder.write(&observation);
            }
            node.observe(observation, output);
        }
        self.turn_unless(is_kept);
    }

    /// A failure is logged once, not at each attempt.
    fn scan_failed(&mut self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        if self.scan_error.as_ref() != Some(&error) {
            tracing::error!(error, "the repair scan failed; it is repeated");
        }
        self.scan_error = Some(error);
    }

    /// Asks for the names that were not asked for because there were too many questions.
    fn ask_again(&self) {
        if self.resolver.ask_again() {
            self.node.unnamed().for_each(|container| self.resolver.ask(container.clone()));
        }
    }

    /// What cannot be done at present.
    fn problems(&self) -> Vec<Problem> {
        let unnamed = self.resolver.has_turned_away().then_some(Problem::TooManyUnnamed);
        // Those of the whole node first.
        Problem::bounded(self.outside.problems().chain(unnamed).chain(self.node.problems()))
    }

    /// Logs what cannot be done and could be at the last look, and what can be done again.
    fn look_for_problems(&mut self) {
        let Self { outside, resolver, node, .. } = self;
        outside.look(&resolver.running(), |container| node.knows(container));
        let problems = self.problems();
        let is_news = |problem: &&Problem| !self.problems.iter().any(|known| known.is_same_as(problem));
        for proto::Problem { name, found, remedy } in problems.iter().filter(is_news).map(problem) {
            tracing::warn!(problem = name, remedy, "{found}");
        }
        let names: Vec<_> = problems.iter().map(|present| problem(present).name).collect();
        for proto::Problem { name, .. } in self.problems.iter().map(problem) {
            if !names.contains(&name) {
                tracing::info!(problem = name, "recovered");
            }
        }
        self.problems = problems;
    }

    /// Has something observed once all records have been that the kernel has made by now.
    fn wait_for_records(&mut self, what: Read) {
        self.waiting.push_back(Waiting { produced: self.probe.produced(), at: Clock::read(), what });
        self.drain();
    }

    fn observe_read(&mut self, what: Read) {
        match what {
            Read::Scanned(scan) => {
                tracing::info!(
                    reason = ?scan.reason,
                    cgroups = scan.cgroups.len(),
                    untracked = scan.untracked,
                    unreadable = scan.unreadable.count,
                    took_ms = (scan.ended.0 - scan.began.0) / 1_000_000,
                    "scanned the cgroup tree"
                );
                if self.scan_error.take().is_some() {
                    tracing::info!("recovered: the cgroup tree can be scanned");
                }
                self.scanned(scan);
                if let Some(ready) = self.ready.take() {
                    // That no task waits for it is no reason to stop.
                    let _ = ready.send(());
                }
            }
            Read::Answer(observation) => self.observe(observation),
            Read::Restarted { from } => self.restarted(from),
            Read::Replaced => self.hand_over(),
            Read::Doubled => self.seam = None,
            Read::Evidence(evidence, answer) => {
                let judged = evidence.into_iter().map(|evidence| self.judge(evidence)).collect();
                // The client may have gone.
                drop(answer.send(judged));
            }
        }
        self.publish(Clock::read());
    }

    fn judge(&mut self, evidence: Evidence) -> Judged {
        if self.recorder.is_none() && self.ledger.is_none() {
            return self.node.judge(&evidence, &mut self.output);
        }
        let observation = Observation::Evidence(Box::new(evidence));
        let is_kept = self.keep(|ledger| ledger.observation(&observation));
        if let Some(recorder) = &mut self.recorder {
            recorder.write(&observation);
        }
        let Observation::Evidence(evidence) = observation else { unreachable!("it was put in above") };
        let judged = self.node.judge(&evidence, &mut self.output);
        self.turn_unless(is_kept);
        judged
    }

    fn look_for_losses(&mut self) {
        if self.untracked.is_some() {
            // Until then everything is lost: the gap begins where the last daemon looked.
            return;
        }
        let (counters, look) = Look::at(|| self.probe.counters());
        let losses = self.losses.since_last(counters, look);
        for loss in &losses {
            tracing::warn!(cause = ?loss.cause, lost = ?loss.lost, "records were lost; a scan follows");
        }
        self.account(losses.into_iter().map(Observation::Lost).collect());
    }

    /// Notes for the next daemon that all losses until then are accounted for.
    fn note_look(&mut self, clock: Clock) {
        if self.untracked.is_none() {
            // A new segment begins with it.
            if !self.keep(|ledger| ledger.look(clock.now())) {
                self.turn();
            }
        }
    }

    fn look_for_skipped(&mut self) {
        let (skipped, look) = Look::at(|| self.probe.skipped());
        if let Some(loss) = self.losses.skipped_since_last(skipped, look) {
            tracing::warn!(lost = ?loss.lost, "the kernel skipped programs; a scan follows");
            self.account(vec![Observation::Lost(loss)]);
        }
    }

    /// A cgroup's limit files were written to faster than is reported.
    fn look_for_suppressed(&mut self, clock: Clock) {
        let total = self.probe.counters().suppressed;
        if !self.suppressed.is_more(total) {
            return;
        }
        match self.probe.suppressed_writes() {
            Ok(suppressed) => {
                let observed = self.suppressed.since_last(total, suppressed).into_iter().map(|(cgroup, writes)| {
                    tracing::warn!(%cgroup, writes, "limits are written to too fast: writes were only counted");
                    let fact = Fact::LimitWritesSuppressed(writes);
                    Observation::Kernel(KernelEvent { at: clock.now(), cgroup, fact })
                });
                let observed = observed.collect();
                self.account(observed);
            }
            Err(error) => tracing::error!(%error, "cannot read which limit writes were only counted"),
        }
    }

    /// Observes what the kernel's counters showed, and has that accounted for.
    fn account(&mut self, observations: Vec<Observation>) {
        if observations.is_empty() {
            return;
        }
        let accounted = Accounted { observations, seen: self.losses.seen(&self.suppressed) };
        let is_kept = self.keep(|ledger| ledger.account(&accounted));
        accounted.observations.into_iter().for_each(|observation| self.take_in(observation));
        self.turn_unless(is_kept);
    }

    fn observe(&mut self, observation: Observation) {
        let is_kept = self.keep(|ledger| ledger.observation(&observation));
        self.take_in(observation);
        self.turn_unless(is_kept);
    }

    /// Observes what is in the ledger.
    fn take_in(&mut self, observation: Observation) {
        if let Some(recorder) = &mut self.recorder {
            recorder.write(&observation);
        }
        self.asked.answered(&observation);
        self.node.observe(observation, &mut self.output);
    }

    /// Of what a segment has no room for, the ledger has what followed from it.
    fn turn_unless(&mut self, is_kept: bool) {
        if !is_kept {
            self.turn_after(Before::Broken);
        }
    }

    /// Writes the journal, then does what is to be done.
    fn publish(&mut self, clock: Clock) {
        if !self.output.events.is_empty() {
            let seq = self.writer.position().seq + self.output.events.len() as u64;
            if !self.keep(|ledger| ledger.publish(seq, clock)) {
                self.turn();
                // Without it, the next daemon publishes the same events again, with the same numbers.
                self.keep(|ledger| ledger.publish(seq, clock));
            }
            self.writer.append(self.output.events.drain(..), clock);
        }
        for action in self.output.actions.drain(..) {
            self.asked.note(&action);
            match action {
                Action::Resolve(container) => self.resolver.ask(container),
                Action::Rescan => self.scans.want(ScanReason::Repair),
                // Its place stays taken: there is less room for others, and nothing else to be done.
                Action::Untrack(cgroup) => {
                    if let Err(error) = self.probe.untrack(cgroup) {
                        tracing::debug!(%cgroup, %error, "cannot take a cgroup out of the tracked set");
                    }
                }
                Action::ReadLimits(request) => self.reader.ask(request),
                Action::Judge(scope) => self.verdicts.push(scope),
            }
        }
    }

    fn answer(&mut self, request: Request) {
        // The client may have gone: that is no error.
        match request {
            Request::Snapshot(answer) => drop(answer.send(self.snapshot())),
            Request::State(answer) => drop(answer.send((self.snapshot(), self.node.last_verdicts()))),
            Request::Report(answer) => drop(answer.send(self.report())),
            Request::Subjects(scope, answer) => drop(answer.send(self.node.subjects(&scope))),
            // Writes and kills that led to what was read come first.
            Request::Judge(evidence, answer) => self.wait_for_records(Read::Evidence(evidence, answer)),
            Request::Observe(observation) => {
                self.observe(observation);
                self.publish(Clock::read());
            }
        }
    }

    fn snapshot(&self) -> Snapshot {
        Snapshot { position: self.writer.position(), containers: self.node.snapshot() }
    }

    fn report(&self) -> Report {
        let mut counters = self.node.counters();
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
