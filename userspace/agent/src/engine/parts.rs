//! What the engine works with, and how it is put together: fresh, or from what an earlier daemon had come to.
//!
//! Decides what of the kernel's counters is accounted for at the start. Never takes a record.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use kwitness_core::decode::Decoder;
use kwitness_core::model::{Observation, Output};
use kwitness_core::seam::Seam;
use tokio::sync::mpsc;

use super::keeping::Unkept;
use super::ledger::{Memory, Place};
use super::loss_owners::LossOwners;
use super::losses::{Losses, Seen};
use super::outside::Outside;
use super::recorder::Recorder;
use super::resume::Resumes;
use super::scans::Scans;
use super::{Engine, JudgeQueue, Probe, Request, UnreadPins};
use crate::cgroupfs::{LimitReader, WatchState};
use crate::clock::Clock;
use crate::cri::Resolver;
use crate::hub::Writer;
use crate::pressure::Sampling;

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
    /// Where programs are pinned that no daemon reads.
    pub(crate) unread_pins: UnreadPins,
    /// Where events go.
    pub(crate) writer: Writer,
    /// Resolves names.
    pub(crate) resolver: Resolver,
    /// Who reads limit files.
    pub(crate) reader: LimitReader,
    /// Whether limit writes can be read, where fanotify reports them.
    pub(crate) watch: Option<WatchState>,
    /// Who gathers evidence for verdicts.
    pub(crate) verdicts: JudgeQueue,
    /// What samples memory usage, if anything does.
    pub(crate) sampling: Option<Arc<Sampling>>,
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
            unread_pins,
            writer,
            resolver,
            reader,
            watch,
            verdicts,
            sampling,
            answers,
            requests,
        } = parts;
        let Memory {
            node,
            reorder,
            events,
            mut seen,
            asked,
            reported,
            last_record,
            seam,
            outage,
            sets,
            looked,
            until,
        } = memory;
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
                let lost = probe.lost_by_container().unwrap_or_else(|error| {
                    tracing::error!(%error, "cannot read whose the lost records are");
                    BTreeMap::new()
                });
                seen =
                    Seen::all(probe.counters(), probe.skipped(), suppressed).owned_by(LossOwners::new(lost));
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
            watch,
            verdicts,
            sampling,
            answers,
            requests,
            scans,
            suppressed: seen.suppressed(),
            outside,
            unread_pins,
            problems: Vec::new(),
            scan_error: None,
            recorder: record.map(Recorder::create).transpose()?,
            ledger: None,
            unkept: None,
            asked,
            reported,
            last_record,
            seam,
            outage: resumes.is_some().then_some(since),
            resumes,
            untracked: None,
            records: 0,
            ready: None,
        };
        if let Some(place) = place {
            match place.clone().begin(engine.writer.position(), &engine.memory(), &engine.writer) {
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
}
