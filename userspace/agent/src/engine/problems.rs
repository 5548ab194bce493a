//! What cannot be done at present: gathered from whom it concerns, logged when it begins and when it ends.
//!
//! Never mends anything.

use kwitness_api::proto;
use kwitness_core::model::Problem;

use super::{Engine, Probe};
use crate::cgroupfs::WatchState;
use crate::wire::problem;

impl<P: Probe> Engine<P> {
    /// What cannot be done at present.
    pub(super) fn problems(&self) -> Vec<Problem> {
        let unnamed = self.resolver.has_turned_away().then_some(Problem::TooManyUnnamed);
        // Those of the whole node first.
        let unread = self.watch.as_ref().and_then(WatchState::problem);
        let of_node = self.outside.problems().chain(self.unread_pins.problems()).chain(unread).chain(unnamed);
        Problem::bounded(of_node.chain(self.node.problems()))
    }

    /// Logs what cannot be done and could be at the last look, and what can be done again.
    pub(super) fn look_for_problems(&mut self) {
        let Self { outside, resolver, node, unread_pins, .. } = self;
        unread_pins.look();
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

    /// A failure is logged once, not at each attempt.
    pub(super) fn scan_failed(&mut self, error: &anyhow::Error) {
        let error = format!("{error:#}");
        if self.scan_error.as_ref() != Some(&error) {
            tracing::error!(error, "the repair scan failed; it is repeated");
        }
        self.scan_error = Some(error);
    }
}
