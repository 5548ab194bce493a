//! What an earlier daemon left, observed again: it leads to the same state and the same events, or is refused.
//!
//! Never writes to a ledger.

use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};

use kwitness_core::decode::Decoder;
use kwitness_core::journal::Position;
use kwitness_core::model::{KernelTime, Observation, Output};

use super::format::{Accounted, Before, Published, Tag, entry};
use super::segment::{Segment, check_owner, numbers, parse};
use super::{BOOT_ID, Memory, Place, Refusal};
use crate::hub::Writer;

/// What an earlier daemon left.
#[derive(Debug)]
pub(crate) struct History {
    place: Place,
    boot: String,
    first: Segment,
    /// The numbers of those that follow.
    later: Vec<u64>,
}

impl Place {
    /// What an earlier daemon left; none if nothing.
    pub(crate) fn read(&self) -> Result<Option<History>, Refusal> {
        let failed = |source| Refusal::Io { path: self.directory.clone(), source };
        if !self.directory.exists() {
            return Ok(None);
        }
        check_owner(&self.directory)?;
        let boot = fs::read_to_string(BOOT_ID).map_err(failed)?;
        let mut series: Vec<u64> = Vec::new();
        for number in numbers(&self.directory).map_err(failed)? {
            // One that does not follow the one before: those before are older than a failure to remove one.
            if series.last().is_some_and(|last| number - last != 1) {
                series.clear();
            }
            series.push(number);
        }
        // With the last base. Those before it were about to be removed. Without one, it is of an earlier version, or there is no more.
        let mut begin = 0;
        for (index, number) in series.iter().enumerate().rev() {
            if Segment::is_base(self, *number, &boot)? {
                begin = index;
                break;
            }
        }
        let Some((first, later)) = series[begin..].split_first() else { return Ok(None) };
        let first = Segment::read(self, *first, &boot)?;
        Ok(Some(History { place: self.clone(), boot, first, later: later.to_vec() }))
    }
}

impl History {
    /// After which event the journal begins that it leads to.
    pub(crate) fn position(&self) -> Position {
        let Position { epoch, seq } = self.first.head.position.clone();
        Position { epoch, seq: self.first.head.journal_after.unwrap_or(seq) }
    }

    /// No event before [`Self::position`] is later.
    pub(crate) fn made(&self) -> KernelTime {
        self.first.head.made
    }

    /// Observes all of it again. The writer is that of an empty journal at [`Self::position`]; after a refusal it is of no use.
    pub(crate) fn replay(self, writer: &mut Writer) -> Result<Memory, Refusal> {
        let directory = self.place.directory.clone();
        unless_panicked(directory, || self.observe_again(writer))
    }

    fn observe_again(self, writer: &mut Writer) -> Result<Memory, Refusal> {
        let Self { place, boot, first, later } = self;
        let mut replay = Replay::of(&first)?;
        restore_journal(&first, writer)?;
        replay.segment(first, writer)?;
        for number in later {
            replay.segment(Segment::read(&place, number, &boot)?, writer)?;
        }
        Ok(replay.end())
    }
}

/// What ended the earlier daemon may be in its ledger: it must not end every later one at its start.
pub(super) fn unless_panicked<T>(
    path: PathBuf,
    replay: impl FnOnce() -> Result<T, Refusal>,
) -> Result<T, Refusal> {
    // Whatever the replay has changed is given up with the refusal.
    panic::catch_unwind(AssertUnwindSafe(replay)).unwrap_or(Err(Refusal::Panicked { path }))
}

/// What is observed again.
struct Replay {
    memory: Memory,
    decoder: Decoder,
    output: Output,
}

impl Replay {
    /// From the state that a segment begins with.
    fn of(segment: &Segment) -> Result<Self, Refusal> {
        let mut memory = segment.state()?;
        let output = Output { events: std::mem::take(&mut memory.events), actions: Vec::new() };
        Ok(Self { memory, decoder: Decoder::default(), output })
    }

    fn segment(&mut self, segment: Segment, writer: &mut Writer) -> Result<(), Refusal> {
        if segment.head.before == Before::Broken {
            *self = Self::of(&segment)?;
        }
        let Segment { path, head, bytes, mut next } = segment;
        check_number(&path, writer, head.position.seq)?;
        if writer.position().epoch != head.position.epoch {
            return Err(Refusal::Torn {
                path,
                what: "it has another epoch than the segment before".to_owned(),
            });
        }
        head.clock.restore();
        // Every record before has been consumed, but for that one.
        self.memory.last_record = head.last_record;
        self.memory.seen = head.seen;
        (self.memory.seam, self.memory.outage, self.memory.sets) = (head.seam, head.outage, head.sets);
        self.memory.looked = head.looked;
        while next < bytes.len() {
            let torn = || Refusal::Torn { path: path.clone(), what: format!("no entry at byte {next}") };
            let (tag, payload, after) = entry(&bytes, next).ok_or_else(torn)?;
            self.step(&path, tag, payload, writer)?;
            next = after;
        }
        Ok(())
    }

    fn step(&mut self, path: &Path, tag: Tag, payload: &[u8], writer: &mut Writer) -> Result<(), Refusal> {
        let Self { memory, decoder, output } = self;
        match tag {
            Tag::Record => {
                match decoder.decode(payload) {
                    Ok(event) => memory.reorder.push(event),
                    // If it has been reported, an account follows.
                    Err(error) => memory.seen.malformed(&error),
                }
                memory.consumed(payload);
            }
            Tag::Double => {
                if let (Some(seam), Ok(event)) = (&mut memory.seam, decoder.decode(payload)) {
                    seam.is_double(&event);
                }
                memory.consumed(payload);
            }
            Tag::Release => {
                let until = time(path, payload)?;
                for event in memory.reorder.release(until) {
                    memory.node.observe(Observation::Kernel(event), output);
                }
                memory.until = memory.until.max(until);
            }
            Tag::Observation => {
                let observation: Observation = parse(path, payload)?;
                match observation {
                    Observation::Tick { at } => memory.until = memory.until.max(at),
                    Observation::AgentRestarted { .. } => memory.outage = None,
                    _ => {}
                }
                memory.asked.answered(&observation);
                memory.reported.observe(&observation);
                memory.node.observe(observation, output);
            }
            Tag::Publish => {
                let Published { seq, clock } = parse(path, payload)?;
                clock.restore();
                memory.until = memory.until.max(clock.now());
                writer.append(output.events.drain(..), clock);
                check_number(path, writer, seq)?;
            }
            Tag::Account => {
                let Accounted { observations, seen } = parse(path, payload)?;
                for observation in observations {
                    memory.node.observe(observation, output);
                }
                memory.seen = seen;
            }
            Tag::Report => drop(memory.reported.take(parse(path, payload)?)),
            Tag::Look => memory.looked = Some(time(path, payload)?),
            // The replay has come to it already, or begins with it.
            Tag::Head | Tag::State | Tag::Journal => {}
        }
        output.actions.drain(..).for_each(|action| memory.asked.note(&action));
        Ok(())
    }

    fn end(self) -> Memory {
        Memory { events: self.output.events, ..self.memory }
    }
}

/// Puts back what the journal held when that segment was begun.
fn restore_journal(segment: &Segment, writer: &mut Writer) -> Result<(), Refusal> {
    let mut restoring = writer.restoring();
    let mut next = segment.next;
    while let Some((tag @ (Tag::State | Tag::Journal), payload, after)) = entry(&segment.bytes, next) {
        if tag == Tag::Journal {
            let torn = || Refusal::Torn {
                path: segment.path.clone(),
                what: format!("no event of the journal at byte {next}"),
            };
            restoring.row(payload).ok_or_else(torn)?;
        }
        next = after;
    }
    restoring.end();
    Ok(())
}

fn time(path: &Path, payload: &[u8]) -> Result<KernelTime, Refusal> {
    let time = payload.first_chunk().map(|bytes| KernelTime(u64::from_ne_bytes(*bytes)));
    let what = || "a time of another size".to_owned();
    time.ok_or_else(|| Refusal::Torn { path: path.to_owned(), what: what() })
}

/// Whether the replay has come to the event that the earlier daemon had.
fn check_number(path: &Path, writer: &Writer, written: u64) -> Result<(), Refusal> {
    let replayed = writer.position().seq;
    if replayed != written {
        return Err(Refusal::Differs { path: path.to_owned(), replayed, written });
    }
    Ok(())
}
