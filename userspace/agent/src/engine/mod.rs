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
mod counters;
mod handle;
mod judge_queue;
mod keeping;
mod ledger;
mod loss_owners;
mod losses;
mod outside;
mod parts;
mod problems;
mod programs;
mod recorder;
mod resume;
mod scans;
mod seam;
#[cfg(test)]
mod tests;
mod unread;

pub use handle::{Handle, Report, Snapshot, Stopped};
pub use judge_queue::JudgeQueue;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use kwitness_core::decode::Decoder;
use kwitness_core::model::{
    Action, Evidence, Judged, KernelTime, Observation, Output, Problem, Scan, ScanReason,
};
use kwitness_core::node::Node;
use kwitness_core::reorder::ReorderBuffer;
use kwitness_core::seam::Seam;
use tokio::sync::{mpsc, oneshot};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::cgroupfs::{LimitReader, WatchState};
use crate::clock::Clock;
use crate::cri::Resolver;
use crate::hub::Writer;
use crate::pressure::Sampling;
use crate::probe::Overlap;
use crate::reported::Reported;
use asked::Asked;
use keeping::Unkept;
use ledger::Ledger;
use losses::{Losses, SuppressedWrites};
use programs::Probe;
use recorder::Recorder;
use resume::Untracked;

pub(crate) use handle::Request;
pub(crate) use ledger::{History, Memory, Place, Refusal};
pub(crate) use outside::Outside;
pub(crate) use parts::Parts;
pub(crate) use resume::Resumes;
pub(crate) use scans::Scans;
pub(crate) use unread::UnreadPins;

/// Records read from the rings before others get their turn: about a millisecond's work.
const DRAIN_BUDGET: usize = 1024;
/// Between looks at what no record reports.
const TICK: Duration = Duration::from_secs(1);
/// Events and actions that there is room for at rest.
const SPARE: usize = 64;
/// How long records wait that were made while a drain ran.
const HELD_FOR: Duration = Duration::from_millis(1);
/// Requests and answers on their way to the engine, and what waits for the rings.
const INBOX: usize = 256;

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
    watch: Option<WatchState>,
    verdicts: JudgeQueue,
    sampling: Option<Arc<Sampling>>,
    answers: mpsc::Receiver<Observation>,
    requests: mpsc::Receiver<Request>,
    scans: Scans,
    losses: Losses,
    suppressed: SuppressedWrites,
    outside: Outside,
    /// Where programs are pinned that no daemon reads.
    unread_pins: UnreadPins,
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
    reported: Reported,
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

impl<P: Probe> Engine<P> {
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
        if let Some(sampling) = &self.sampling {
            self.observe(sampling.begin());
        }
        self.resume();
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let has_room = self.waiting.len() < INBOX;
            let draining = self.reorder.held() > 0 || !self.waiting.is_empty();
            tokio::select! {
                readable = self.probe.readable() => {
                    readable.context("cannot wait for the kernel's rings")?;
                    if self.drain() {
                        if self.is_wanted_otherwise() {
                            // The tasks that send what was just published run on this thread, too: they come first.
                            tokio::task::yield_now().await;
                        }
                        self.look_for_losses();
                        self.publish(Clock::read());
                    }
                }
                () = tokio::time::sleep(HELD_FOR), if draining => self.drain_whole(),
                scanned = self.scans.next(), if has_room => match scanned {
                    Ok(scanned) => self.wait_for_records(Read::Scanned(scanned)),
                    Err(error) if self.ready.is_some() => return Err(error).context("the initial scan failed"),
                    Err(error) => self.scan_failed(&error),
                },
                Some(observation) = self.answers.recv(), if has_room => match observation {
                    // What was written, or charged, before the files were read explains what they say.
                    Observation::LimitsRead(_) | Observation::MemorySampled(_) => self.wait_for_records(Read::Answer(observation)),
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
                    self.give_back();
                }
                () = stop.cancelled() => return Ok(()),
            }
        }
    }

    /// Whether something waits for the engine that may take long. If nothing does, what was just published is sent as soon as
    /// the engine waits again; yielding for that would have the scheduler poll for I/O, look for work and wake its other thread.
    fn is_wanted_otherwise(&self) -> bool {
        !(self.requests.is_empty() && self.answers.is_empty())
    }

    /// Drains, and looks for losses at once.
    fn drain_whole(&mut self) {
        if self.drain() {
            self.look_for_losses();
            self.publish(Clock::read());
        }
    }

    /// Takes what is in the rings, within the budget, and observes what has waited for it; whether there was any record, so that
    /// losses are to be looked for.
    fn drain(&mut self) -> bool {
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
        drained.records > 0
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

    /// Requests the names that could not be requested because too many queries were open.
    fn ask_again(&self) {
        if self.resolver.ask_again() {
            self.node.unnamed().for_each(|container| self.resolver.ask(container.clone()));
        }
    }

    /// Has something observed once all records have been that the kernel has made by now.
    fn wait_for_records(&mut self, what: Read) {
        self.waiting.push_back(Waiting { produced: self.probe.produced(), at: Clock::read(), what });
        self.drain_whole();
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
            Read::Answer(observation) => drop(self.observe(observation)),
            Read::Restarted { from } => self.restarted(from),
            Read::Replaced => self.hand_over(),
            Read::Doubled => self.seam = None,
            Read::Evidence(evidence, answer) => {
                let observe = |of| self.observe(Observation::Evidence(Box::new(of)));
                let judged = evidence.into_iter().filter_map(observe).collect();
                // The client may have gone.
                drop(answer.send(judged));
            }
        }
        self.publish(Clock::read());
    }

    /// The judgement, if it is evidence.
    fn observe(&mut self, observation: Observation) -> Option<Judged> {
        let is_kept = self.keep_observation(&observation);
        let judged = self.take_in(observation);
        self.turn_unless(is_kept);
        judged
    }

    /// Observes what is in the ledger.
    fn take_in(&mut self, observation: Observation) -> Option<Judged> {
        if let Some(recorder) = &mut self.recorder {
            recorder.write(&observation);
        }
        if matches!(observation, Observation::AgentRestarted { .. }) {
            self.outage = None;
        }
        self.asked.answered(&observation);
        self.reported.observe(&observation);
        self.node.observe(observation, &mut self.output)
    }

    /// Gives back what a scan or a burst took, all of whose events have been published.
    fn give_back(&mut self) {
        self.output.events.shrink_to(SPARE);
        self.output.actions.shrink_to(SPARE);
        self.writer.shrink_to(SPARE);
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
}
