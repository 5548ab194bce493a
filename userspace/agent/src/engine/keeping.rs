//! What the engine keeps for the next daemon: what is written to the ledger when, when a segment begins, and what becomes of a ledger
//! that cannot be written, because no memory is left where it is, or something there is not the daemon's.
//!
//! Owns the engine's side of the ledger. Never knows its format.

use std::io;

use kwitness_core::model::{KernelTime, Observation};

use super::ledger::{Before, Ledger, MemoryOf, Place};
use super::{Engine, Probe};
use crate::clock::Clock;

/// A ledger that cannot be written. It is no reason to stop: it is begun anew once that can be done, and a daemon that comes
/// before begins a new epoch.
#[derive(Debug)]
pub(super) struct Unkept {
    place: Place,
    /// When it could not be begun, if that was tried.
    tried: Option<KernelTime>,
}

impl Unkept {
    /// Between two attempts, at least: in nanoseconds.
    const PAUSE: u64 = 30_000_000_000;

    /// One that could not be begun: of an earlier one, there is nothing any more.
    pub(super) fn new(place: Place, error: &io::Error) -> Self {
        tracing::error!(
            path = %place.directory.display(),
            %error,
            "cannot write the ledger; retrying"
        );
        Self { place, tried: Some(Clock::read().now()) }
    }

    /// One that could not be gone on with. Whether it can be begun anew shows at the next tick.
    pub(super) fn given_up(ledger: Ledger, error: &io::Error) -> Self {
        let place = ledger.give_up();
        if let Err(error) = place.remove() {
            tracing::error!(path = %place.directory.display(), %error, "cannot remove an incomplete ledger");
        }
        Self { tried: None, ..Self::new(place, error) }
    }

    fn is_due(&self, now: KernelTime) -> bool {
        self.tried.is_none_or(|tried| now.0.saturating_sub(tried.0) >= Self::PAUSE)
    }
}

impl<P: Probe> Engine<P> {
    /// What the next daemon has to know.
    pub(super) fn memory(&self) -> MemoryOf<'_> {
        let mut asked = self.asked.clone();
        self.output.actions.iter().for_each(|action| asked.note(action));
        MemoryOf {
            node: &self.node,
            reorder: &self.reorder,
            events: &self.output.events,
            seen: self.losses.seen(&self.suppressed),
            asked,
            reported: &self.reported,
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
    pub(super) fn keep(&mut self, write: impl FnOnce(&mut Ledger) -> bool) -> bool {
        self.ledger.as_mut().is_none_or(write)
    }

    /// The same of an observation, with a segment of its own if it is as large as that: a scan of a large node.
    pub(super) fn keep_observation(&mut self, observation: &Observation) -> bool {
        if self.keep(|ledger| ledger.observation(observation)) {
            return true;
        }
        self.turn();
        self.keep(|ledger| ledger.observation(observation))
    }

    /// Begins a new segment if this one may not have room for what comes next.
    pub(super) fn make_room(&mut self) {
        let is_nearly_full =
            match self.ledger.as_mut().map(|ledger| (ledger.look_after_base(), ledger.is_nearly_full())) {
                Some((Ok(()), is_nearly_full)) => is_nearly_full,
                Some((Err(error), _)) => return self.give_up_ledger(&error),
                None => false,
            };
        if is_nearly_full {
            self.turn();
        }
    }

    pub(super) fn give_up_ledger(&mut self, error: &io::Error) {
        self.unkept = self.ledger.take().map(|ledger| Unkept::given_up(ledger, error));
    }

    /// Begins a new segment of the ledger.
    pub(super) fn turn(&mut self) {
        self.turn_after(Before::Whole);
    }

    /// The same without a base: another turn follows at once, which might have to wait for it.
    pub(super) fn turn_without_base(&mut self) {
        self.turn_by(|ledger, engine| {
            ledger.turn_without_base(engine.writer.position(), &engine.memory(), &engine.writer)
        });
    }

    fn turn_after(&mut self, before: Before) {
        self.turn_by(|ledger, engine| {
            ledger.turn(engine.writer.position(), &engine.memory(), before, &engine.writer)
        });
    }

    fn turn_by(&mut self, turn: impl FnOnce(&mut Ledger, &Self) -> io::Result<()>) {
        let Some(mut ledger) = self.ledger.take() else { return };
        match turn(&mut ledger, self) {
            Ok(()) => self.ledger = Some(ledger),
            Err(error) => self.unkept = Some(Unkept::given_up(ledger, &error)),
        }
    }

    /// Of what a segment has no room for, the ledger has what followed from it.
    pub(super) fn turn_unless(&mut self, is_kept: bool) {
        if !is_kept {
            self.turn_after(Before::Broken);
        }
    }

    /// Begins the ledger anew that could not be written, if it can be by now.
    pub(super) fn keep_again(&mut self, clock: Clock) {
        let Some(Unkept { place, .. }) = self.unkept.take_if(|unkept| unkept.is_due(clock.now())) else {
            return;
        };
        match place.clone().begin(self.writer.position(), &self.memory(), &self.writer) {
            Ok(ledger) => {
                tracing::info!(path = %place.directory.display(), "recovered: what is observed is kept again");
                self.ledger = Some(ledger);
            }
            Err(_) => self.unkept = Some(Unkept { place, tried: Some(clock.now()) }),
        }
    }
}
