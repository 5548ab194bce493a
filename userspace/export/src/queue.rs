//! Records between the daemon and the collector, and how far the collector has come.
//!
//! ```text
//!  push ──▶ waiting (bounded in bytes) ──▶ take: one batch ──▶ in flight ──┬─ accepted: the position moves after it
//!                                             ▲                            └─ refused: likewise, and the loss is remembered
//!                                             └── remembered losses go first, as gaps
//! ```
//!
//! A full queue loses nothing: whoever fills it stops reading, and the daemon's journal keeps what it has room for. What it has not is
//! a gap in the daemon's own stream. Owns the rule that the position never passes a record without an answer. Pure.
//!
//! Numbers of two epochs do not compare, so a message has records of one epoch, and what was refused is remembered for each.

use std::collections::{HashMap, VecDeque};

use kwitness_api::proto::Position;
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::common::v1::InstrumentationScope;
use opentelemetry_proto::tonic::logs::v1::{LogRecord, ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;
use serde::{Deserialize, Serialize};

use crate::waiting::Waiting;

/// Above so many bytes, in flight or not, no more are read from the daemon; one of its messages (1 MiB of events) may exceed it.
pub const BYTES_MAX: usize = 8 << 20;
/// The most that one message to the collector holds: a quarter of what gRPC servers accept by default.
const BATCH_BYTES: usize = 1 << 20;
const BATCH_RECORDS: usize = 512;
/// The most bytes of a collector's reason that are kept.
const REASON_BYTES: usize = 256;
/// Epochs whose refused records are remembered apart; of older ones, how many there were is.
const REFUSED_EPOCHS: usize = 32;

/// A log record on its way.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    /// What it is about.
    pub resource: Resource,
    /// The record.
    pub log: LogRecord,
    /// Where it stands in the journal; a gap of this exporter's stands nowhere.
    pub position: Option<Position>,
    /// The number of the first event that it stands for, if it is a gap in the place of events.
    pub begins: Option<u64>,
    /// What it takes.
    pub bytes: usize,
}

/// How far the collector has come: what a restarted exporter goes on with.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The collector has answered for everything up to there.
    pub position: Option<Position>,
    /// What it refused, by epoch; no gap with that has arrived yet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<Refused>,
    /// The last event before the first that was read, where no state said what had been exported; no gap with that has arrived yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unaccounted: Option<Position>,
    /// Kubernetes Events that were lost on the way to the API server; no gap with these has arrived yet.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub kubernetes_lost: u64,
    /// What is yet to become a Kubernetes Event.
    #[serde(default, skip_serializing_if = "Waiting::is_empty")]
    pub kubernetes: Waiting,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// Records of one epoch that the collector refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The daemon's epoch.
    pub epoch: String,
    /// The first number in the first batch.
    pub first: u64,
    /// The last number in the last batch.
    pub last: u64,
    /// The number of records.
    pub records: u64,
    /// What the collector said last.
    pub reason: String,
}

/// The queue of records.
#[derive(Debug)]
pub struct Queue {
    limit: usize,
    waiting: VecDeque<Record>,
    bytes: usize,
    in_flight: Option<InFlight>,
    progress: Progress,
    /// No event was read yet, and nothing says what was exported before.
    is_new: bool,
}

/// What a batch without an answer stands for.
#[derive(Debug)]
struct InFlight {
    /// The first number that it stands for.
    first: u64,
    last: Position,
    records: u64,
    bytes: usize,
    /// The time of its first record.
    oldest: u64,
    /// The Kubernetes Events whose loss it reports.
    kubernetes_lost: u64,
}

impl Queue {
    /// Empty, of an exporter that goes on from there.
    pub fn new(limit: usize, progress: Progress) -> Self {
        let is_new = progress.position.is_none();
        Self { limit, waiting: VecDeque::new(), bytes: 0, in_flight: None, progress, is_new }
    }

    /// The number of an event that was read, or the first of those that a gap stands for. If nothing says what was exported before, then
    /// neither is it known of what came before the first one.
    pub fn begin(&mut self, epoch: &str, first: u64) {
        if std::mem::take(&mut self.is_new) && first > 1 {
            self.progress.unaccounted = Some(Position { epoch: epoch.to_owned(), seq: first - 1 });
        }
    }

    /// So many Kubernetes Events were lost.
    pub fn lose_kubernetes(&mut self, events: u64) {
        self.progress.kubernetes_lost = self.progress.kubernetes_lost.saturating_add(events);
    }

    /// What is yet to become a Kubernetes Event; whether that is new.
    pub fn set_kubernetes(&mut self, waiting: Waiting) -> bool {
        let is_new = self.progress.kubernetes != waiting;
        self.progress.kubernetes = waiting;
        is_new
    }

    /// Whether there is room for more.
    pub fn has_room(&self) -> bool {
        self.bytes < self.limit
    }

    /// Records on their way to the collector.
    pub fn in_flight(&self) -> u64 {
        self.in_flight.as_ref().map_or(0, |batch| batch.records)
    }

    /// Bytes and records that have no answer.
    pub fn size(&self) -> (usize, u64) {
        (self.bytes, self.waiting.len() as u64 + self.in_flight())
    }

    /// The time of the oldest record without an answer, in nanoseconds since the Unix epoch.
    pub fn oldest(&self) -> Option<u64> {
        let in_flight = self.in_flight.as_ref().map(|batch| batch.oldest);
        in_flight.or_else(|| self.waiting.front().map(|record| record.log.time_unix_nano))
    }

    /// How far the collector has come.
    pub fn progress(&self) -> &Progress {
        &self.progress
    }

    /// Adds a record at the end.
    pub fn push(&mut self, record: Record) {
        self.bytes += record.bytes;
        self.waiting.push_back(record);
    }

    /// The next message for the collector, unless one is on its way or there is nothing to send; `gaps` makes the records of losses.
    pub fn take(&mut self, gaps: impl FnOnce(&Progress) -> Vec<Record>) -> Option<ExportLogsServiceRequest> {
        let first = self.waiting.front()?;
        if self.in_flight.is_some() {
            return None;
        }
        let position = first.position.clone().unwrap_or_default();
        let begins = first.begins.unwrap_or(position.seq);
        let mut batch = InFlight {
            first: begins,
            last: position,
            records: 0,
            bytes: 0,
            oldest: first.log.time_unix_nano,
            kubernetes_lost: self.progress.kubernetes_lost,
        };
        let mut request = Grouped::default();
        gaps(&self.progress).into_iter().for_each(|gap| request.add(gap));
        while let Some(record) = self.waiting.front() {
            let is_full = batch.records >= BATCH_RECORDS as u64 || batch.bytes + record.bytes > BATCH_BYTES;
            let is_of_another =
                record.position.as_ref().is_some_and(|position| position.epoch != batch.last.epoch);
            if (is_full || is_of_another) && batch.records > 0 {
                break;
            }
            let Some(record) = self.waiting.pop_front() else { break };
            batch.records += 1;
            batch.bytes += record.bytes;
            if let Some(position) = &record.position {
                batch.last = position.clone();
            }
            request.add(record);
        }
        self.in_flight = Some(batch);
        Some(request.into_request())
    }

    /// The collector took the batch, or all but so many of its records.
    pub fn accepted(&mut self, rejected: u64, reason: &str) {
        let Some(batch) = self.answered() else { return };
        let rejected = rejected.min(batch.records);
        // Which ones were rejected is not known: a gap that was in the batch may be one of them, and is sent again with them.
        if rejected == 0 {
            self.progress.refused.clear();
            self.progress.unaccounted = None;
            self.progress.kubernetes_lost -= batch.kubernetes_lost;
        } else {
            self.lose(batch, rejected, reason);
        }
    }

    /// The collector will never take the batch.
    pub fn refused(&mut self, reason: &str) {
        if let Some(batch) = self.answered() {
            let records = batch.records;
            self.lose(batch, records, reason);
        }
    }

    /// Forgets what waits, as if a collector had taken it: where there is none.
    pub fn skip(&mut self) {
        if let Some(position) = self.waiting.iter().rev().find_map(|record| record.position.clone()) {
            self.progress.position = Some(position);
        }
        // The log has these.
        self.progress.unaccounted = None;
        self.progress.kubernetes_lost = 0;
        self.bytes -= self.waiting.drain(..).map(|record| record.bytes).sum::<usize>();
    }

    fn answered(&mut self) -> Option<InFlight> {
        let batch = self.in_flight.take()?;
        self.bytes -= batch.bytes;
        self.progress.position = Some(batch.last.clone());
        Some(batch)
    }

    /// One gap stands for all that was refused of an epoch since one arrived.
    fn lose(&mut self, batch: InFlight, records: u64, reason: &str) {
        let reason = reason[..reason.floor_char_boundary(REASON_BYTES)].to_owned();
        let InFlight { first, last: Position { epoch, seq: last }, .. } = batch;
        let refused = &mut self.progress.refused;
        match refused.last_mut().filter(|refused| refused.epoch == epoch) {
            Some(refused) => {
                (refused.last, refused.reason) = (last, reason);
                refused.records = refused.records.saturating_add(records);
            }
            None => refused.push(Refused { epoch, first, last, records, reason }),
        }
        if refused.len() > REFUSED_EPOCHS {
            let oldest = refused.remove(0);
            refused[0].records = refused[0].records.saturating_add(oldest.records);
        }
    }
}

/// Records by what they are about; those about the same stay in order.
#[derive(Default)]
struct Grouped {
    groups: Vec<ResourceLogs>,
    by_resource: HashMap<Vec<u8>, usize>,
}

impl Grouped {
    fn add(&mut self, record: Record) {
        let at = *self.by_resource.entry(record.resource.encode_to_vec()).or_insert_with(|| {
            let scope = InstrumentationScope {
                name: "kwitness".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                ..Default::default()
            };
            self.groups.push(ResourceLogs {
                resource: Some(record.resource),
                scope_logs: vec![ScopeLogs { scope: Some(scope), ..Default::default() }],
                ..Default::default()
            });
            self.groups.len() - 1
        });
        self.groups[at].scope_logs[0].log_records.push(record.log);
    }

    fn into_request(self) -> ExportLogsServiceRequest {
        ExportLogsServiceRequest { resource_logs: self.groups }
    }
}

#[cfg(test)]
mod tests;
