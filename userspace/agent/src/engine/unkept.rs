//! A ledger that should be written, and cannot: no memory is left where it is, or something there is not the daemon's.

use std::io;

use kwitness_core::model::KernelTime;

use super::ledger::{Ledger, Series};
use super::{Engine, Place, Probe};
use crate::clock::Clock;

/// A ledger that cannot be written. It is no reason to stop: it is begun anew once that can be done, and a daemon that comes
/// before begins a new epoch.
#[derive(Debug)]
pub(super) struct Unkept {
    place: Place,
    /// When it was tried last.
    tried: KernelTime,
}

impl Unkept {
    /// Between two attempts, at least: in nanoseconds.
    const PAUSE: u64 = 30_000_000_000;

    /// One that could not be begun: of an earlier one, there is nothing any more.
    pub(super) fn new(place: Place, error: &io::Error) -> Self {
        tracing::error!(
            path = %place.directory.display(),
            %error,
            "what is observed cannot be kept for the next daemon; it is tried again"
        );
        Self { place, tried: Clock::read().now() }
    }

    /// One that could not be gone on with.
    pub(super) fn given_up(ledger: Ledger, error: &io::Error) -> Self {
        let place = ledger.give_up();
        if let Err(error) = place.remove() {
            tracing::error!(path = %place.directory.display(), %error, "cannot remove an incomplete ledger");
        }
        Self::new(place, error)
    }

    fn is_due(&self, now: KernelTime) -> bool {
        now.0.saturating_sub(self.tried.0) >= Self::PAUSE
    }
}

impl<P: Probe> Engine<P> {
    /// Begins the ledger anew that could not be written, if it can be by now.
    pub(super) fn keep_again(&mut self, clock: Clock) {
        let Some(Unkept { place, .. }) = self.unkept.take_if(|unkept| unkept.is_due(clock.now())) else {
            return;
        };
        match place.clone().begin(self.writer.position(), &self.memory(), Series::New) {
            Ok(ledger) => {
                tracing::info!(path = %place.directory.display(), "recovered: what is observed is kept again");
                self.ledger = Some(ledger);
            }
            Err(_) => self.unkept = Some(Unkept { place, tried: clock.now() }),
        }
    }
}
