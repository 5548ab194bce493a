//! One node of a simulated fleet: the exporter, fed from memory instead of by a daemon. For `cargo xtask bench --fleet`.
//!
//! Everything behind the stream of events is the real one: records, queue, sender, retries, state file. Never runs in an exporter.

use std::path::Path;
use std::sync::Arc;

use kwitness_api::client::Item;
use kwitness_api::proto::Event;

use crate::collector::{Collector, CollectorOptions};
use crate::counters::Shared;
use crate::exporter::Exporter;
use crate::queue::{BYTES_MAX, Progress, Queue};
use crate::record::{Mapping, Node};
use crate::state::StateFile;

/// A node of the simulated fleet.
pub struct SimulatedNode {
    exporter: Exporter,
    shared: Arc<Shared>,
}

/// What became of a node's records so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Records that the collector took.
    pub accepted: u64,
    /// Those that it did not, and never will.
    pub lost: u64,
    /// Messages that it took.
    pub messages: u64,
    /// Attempts that failed, and were repeated.
    pub failed: u64,
}

impl SimulatedNode {
    /// A node of that name, whose state file is the one given. It connects with its first events.
    ///
    /// # Errors
    /// The options make no sense.
    pub fn new(
        name: String,
        options: &CollectorOptions,
        state: &Path,
        sentence: fn(&Event) -> String,
    ) -> anyhow::Result<Self> {
        let shared = Arc::<Shared>::default();
        let collector = Collector::new(options, Arc::clone(&shared))?;
        let mapping = Mapping { node: Node { name, cluster: Some("fleet".to_owned()) }, sentence };
        let queue = Queue::new(BYTES_MAX, Progress::default());
        let state = StateFile::new(state);
        let exporter = Exporter::new(mapping, Some(collector), None, queue, state, None, Arc::clone(&shared));
        Ok(Self { exporter, shared })
    }

    /// Exports these events in one message (unless they are too large for one), and waits until the collector has answered.
    pub async fn export(&mut self, events: Vec<Event>) {
        self.exporter.take(Item::Events(events));
        self.exporter.drain().await;
    }

    /// What it has come to.
    pub fn tally(&self) -> Tally {
        let counters = &self.shared.counters;
        Tally {
            accepted: counters.records_accepted.get(),
            lost: counters.records_rejected.get() + counters.records_refused.get(),
            messages: counters.requests_accepted.get(),
            failed: counters.requests_failed.get(),
        }
    }
}
