//! Where those Kubernetes Events begin that the API server has not answered for, in the order in which they are sent.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kwitness_api::proto::Position;

/// The positions of unanswered Kubernetes Events. Shared by who decides and who sends.
#[derive(Clone, Debug, Default)]
pub struct Pending(Arc<Mutex<VecDeque<Position>>>);

/// The oldest is answered for once this is dropped.
#[derive(Debug)]
pub struct Answered<'a>(&'a Pending);

impl Pending {
    /// One more, at the end.
    pub fn push(&self, since: Position) {
        self.places().push_back(since);
    }

    /// The oldest is being sent.
    pub fn answer(&self) -> Answered<'_> {
        Answered(self)
    }

    /// All positions, the oldest first.
    pub fn all(&self) -> Vec<Position> {
        self.places().iter().cloned().collect()
    }

    fn places(&self) -> MutexGuard<'_, VecDeque<Position>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Answered<'_> {
    fn drop(&mut self) {
        self.0.places().pop_front();
    }
}
