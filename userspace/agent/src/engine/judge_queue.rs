//! What the core wants judged, on its way from the engine to `verify`. Never waits, never drops.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use kwitness_core::model::VerdictScope;
use tokio::sync::{Notify, broadcast};

/// Scopes that are due at once; with more, all containers are.
const DUE_MAX: usize = 1024;
/// Scopes on their way to waiting `Verify` calls; one that lags further looks at all its containers.
const CHANGES: usize = 256;

/// The scopes that the core wants judged. Clones share it.
#[derive(Clone, Debug)]
pub struct JudgeQueue {
    due: Arc<Mutex<BTreeSet<VerdictScope>>>,
    pub(crate) added: Arc<Notify>,
    /// For calls that wait: whose limits have changed.
    changes: broadcast::Sender<VerdictScope>,
}

impl Default for JudgeQueue {
    fn default() -> Self {
        Self { due: Arc::default(), added: Arc::default(), changes: broadcast::Sender::new(CHANGES) }
    }
}

impl JudgeQueue {
    /// Has these limits judged. Returns at once.
    pub fn push(&self, scope: VerdictScope) {
        let mut due = self.lock();
        if due.len() >= DUE_MAX && !due.contains(&scope) {
            due.clear();
            due.insert(VerdictScope::All);
        } else {
            due.insert(scope.clone());
        }
        drop(due);
        self.added.notify_one();
        // No call waits: that is no error.
        let _ = self.changes.send(scope);
    }

    pub(crate) fn changes(&self) -> broadcast::Receiver<VerdictScope> {
        self.changes.subscribe()
    }

    /// How many calls wait for changes.
    pub(crate) fn waiting(&self) -> usize {
        self.changes.receiver_count()
    }

    /// What is due, which is then no longer.
    pub(crate) fn take(&self) -> BTreeSet<VerdictScope> {
        std::mem::take(&mut *self.lock())
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<VerdictScope>> {
        self.due.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use kwitness_core::model::ContainerId;

    use super::*;

    fn container(number: usize) -> VerdictScope {
        VerdictScope::Container(ContainerId(number.to_string().into()))
    }

    #[test]
    fn more_scopes_than_fit_become_all_of_them() {
        let queue = JudgeQueue::default();
        for number in 0..DUE_MAX {
            queue.push(container(number));
        }
        queue.push(container(0));
        assert_eq!(queue.lock().len(), DUE_MAX, "one that is due already");
        queue.push(container(DUE_MAX));
        assert_eq!(queue.take(), BTreeSet::from([VerdictScope::All]));
        assert_eq!(queue.take(), BTreeSet::new());
    }
}
