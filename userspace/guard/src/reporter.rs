//! The guard's reports to the daemon: events for its stream, and the limits that the guard is about to set.
//!
//! ```text
//!  guard ──push──▶ queue ──batch──▶ ReportGuardEvents ──▶ the daemon
//!                    │ ▲                  │ no answer: the same again, a second later
//!                    │ └──────────────────┘
//!                    └── full: the oldest is dropped, and counted in the next batch: the daemon's gap
//! ```
//!
//! Owns the queue and the connection. Nothing of a hold waits for it but [`Reporter::announce`], and that not for long. What it
//! has reported is not kept: what a guard leaves behind when it is killed is lost.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use kwitness_api::client::{Address, Error};
use kwitness_api::proto::guard_report::Report;
use kwitness_api::{Client, GUARD_DETAIL_BYTES_MAX, GUARD_REPORTS_MAX, proto};
use tokio::sync::{Notify, watch};

use crate::program;

/// Reports that wait for the daemon.
const QUEUE: usize = 1024;
/// Between two attempts.
const RETRY: Duration = Duration::from_secs(1);
/// How long a raise waits until the daemon knows that the limit will be the guard's doing.
const ANNOUNCE_LIMIT: Duration = Duration::from_millis(100);
/// `TASK_COMM_LEN` without the NUL.
const COMM_MAX: usize = 15;

/// What became of the reports.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct ReportCounts {
    /// Accepted by the daemon.
    pub accepted: u64,
    /// Not: it knows no such container.
    pub rejected: u64,
    /// The queue was full.
    pub dropped: u64,
}

/// Where reports are put. Clones share the queue.
#[derive(Clone, Debug)]
pub(crate) struct Reporter(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    queue: Mutex<Queue>,
    news: Notify,
    /// The number of the first report that has not been answered.
    unanswered: watch::Sender<u64>,
    /// The last attempt failed.
    is_away: AtomicBool,
}

#[derive(Debug, Default)]
struct Queue {
    reports: VecDeque<proto::GuardReport>,
    /// The number of the first of them.
    first: u64,
    dropped: Option<proto::GuardReportsDropped>,
    counts: ReportCounts,
}

/// What is sent at a time.
struct Batch {
    request: proto::ReportGuardEventsRequest,
    /// The number of the first report after it.
    end: u64,
}

impl Reporter {
    /// An empty queue.
    pub fn new() -> Self {
        Self(Arc::new(Shared {
            queue: Mutex::default(),
            news: Notify::new(),
            unanswered: watch::Sender::new(0),
            is_away: AtomicBool::new(false),
        }))
    }

    /// Puts down what happens to a container now; returns the report's number.
    pub fn push(&self, container_id: &str, report: Report) -> u64 {
        self.push_at(program::now(), container_id, report)
    }

    /// The same of what happened then, by `CLOCK_BOOTTIME` in nanoseconds.
    pub fn push_at(&self, time: u64, container_id: &str, report: Report) -> u64 {
        let report = proto::GuardReport { container_id: container_id.to_owned(), time, report: Some(report) };
        let number = self.queue().push(report);
        self.0.news.notify_one();
        number
    }

    /// Puts down that a limit is about to be set, and waits a moment until the daemon knows, unless it takes no reports: a process is
    /// held meanwhile.
    pub async fn announce(&self, container_id: &str, bytes: u64) {
        let number = self.push(container_id, Report::SetsLimit(bytes));
        if !self.0.is_away.load(Ordering::Relaxed) {
            self.answered(number, ANNOUNCE_LIMIT).await;
        }
    }

    /// Waits until everything has been answered, or so long; whether it was.
    pub async fn flush(&self, limit: Duration) -> bool {
        let end = self.queue().end();
        end == 0 || self.answered(end - 1, limit).await
    }

    /// What became of the reports.
    pub fn counts(&self) -> ReportCounts {
        self.queue().counts
    }

    /// Waits until a report has been answered or dropped, or so long; whether it was.
    async fn answered(&self, number: u64, limit: Duration) -> bool {
        let mut unanswered = self.0.unanswered.subscribe();
        let answered = unanswered.wait_for(|first| *first > number);
        tokio::time::timeout(limit, answered).await.is_ok_and(|answered| answered.is_ok())
    }

    /// Reports until the task ends.
    pub async fn run(self, address: Address) {
        let mut client = None;
        loop {
            let Some(batch) = self.queue().batch() else {
                self.0.news.notified().await;
                continue;
            };
            match send(&mut client, &address, batch.request.clone()).await {
                Ok(answer) => {
                    if let Some(first) = answer.rejected.first() {
                        let count = answer.rejected.len();
                        tracing::warn!(count, first, "the daemon rejected reports");
                    }
                    let first = self.queue().answered(&batch, &answer);
                    self.0.unanswered.send_replace(first);
                    if self.0.is_away.swap(false, Ordering::Relaxed) {
                        tracing::info!("the daemon takes reports again");
                    }
                }
                Err(error) => {
                    client = None;
                    if !self.0.is_away.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, "the daemon takes no reports: they wait, {QUEUE} at most");
                    }
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Nothing that could panic runs while it is held.
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Queue {
    fn end(&self) -> u64 {
        self.first + self.reports.len() as u64
    }

    fn push(&mut self, report: proto::GuardReport) -> u64 {
        if self.reports.len() >= QUEUE
            && let Some(oldest) = self.reports.pop_front()
        {
            self.first += 1;
            self.counts.dropped += 1;
            let time = oldest.time;
            let dropped =
                self.dropped.unwrap_or(proto::GuardReportsDropped { count: 0, from: time, to: time });
            let (from, to) = (dropped.from.min(time), dropped.to.max(time));
            self.dropped = Some(proto::GuardReportsDropped { count: dropped.count + 1, from, to });
        }
        self.reports.push_back(report);
        self.end() - 1
    }

    fn batch(&self) -> Option<Batch> {
        let reports: Vec<_> = self.reports.iter().take(GUARD_REPORTS_MAX).cloned().collect();
        if reports.is_empty() {
            return None;
        }
        let end = self.first + reports.len() as u64;
        Some(Batch { request: proto::ReportGuardEventsRequest { reports, dropped: self.dropped }, end })
    }

    /// The daemon has answered; the number of the first report that waits still.
    fn answered(&mut self, batch: &Batch, answer: &proto::ReportGuardEventsResponse) -> u64 {
        self.counts.accepted += u64::from(answer.accepted);
        let sent = batch.request.reports.len() as u64;
        self.counts.rejected += sent.saturating_sub(answer.accepted.into());
        // What was dropped since then is for the next batch.
        self.dropped = match (self.dropped, batch.request.dropped) {
            (Some(now), Some(sent)) => (now.count > sent.count).then(|| proto::GuardReportsDropped {
                count: now.count - sent.count,
                from: sent.to,
                to: now.to,
            }),
            (now, _) => now,
        };
        // Some of them may have been dropped meanwhile.
        let left = batch.end.saturating_sub(self.first);
        self.reports.drain(..usize::try_from(left).unwrap_or(usize::MAX).min(self.reports.len()));
        self.first = self.first.max(batch.end);
        self.first
    }
}

async fn send(
    client: &mut Option<Client>,
    address: &Address,
    request: proto::ReportGuardEventsRequest,
) -> Result<proto::ReportGuardEventsResponse, Error> {
    let client = match client {
        Some(client) => client,
        None => client.insert(Client::connect(address.clone()).await?),
    };
    client.report_guard_events(request).await
}

/// A process in a report. Its name may be no text.
pub(crate) fn process(pid: u32, start_time: u64, comm: &[u8]) -> Option<proto::GuardedProcess> {
    let comm = comm.split(|byte| *byte == 0).next().unwrap_or_default();
    let comm = cut(String::from_utf8_lossy(comm).into_owned(), COMM_MAX);
    Some(proto::GuardedProcess { pid, start_time, comm })
}

/// A text for people in a report.
pub(crate) fn detail(text: String) -> String {
    cut(text, GUARD_DETAIL_BYTES_MAX)
}

fn cut(mut text: String, max: usize) -> String {
    text.truncate(text.floor_char_boundary(max));
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(time: u64) -> proto::GuardReport {
        proto::GuardReport { container_id: "c".to_owned(), time, report: Some(Report::SetsLimit(time)) }
    }

    fn accepted(count: usize) -> proto::ReportGuardEventsResponse {
        let accepted = u32::try_from(count).unwrap();
        proto::ReportGuardEventsResponse { accepted, rejected: Vec::new() }
    }

    #[test]
    fn what_overflows_is_the_oldest_and_reported_with_what_follows_it() {
        let mut queue = Queue::default();
        let all = QUEUE as u64 + 3;
        for time in 1..=all {
            assert_eq!(queue.push(report(time)), time - 1);
        }
        let batch = queue.batch().unwrap();
        assert_eq!(batch.request.dropped, Some(proto::GuardReportsDropped { count: 3, from: 1, to: 3 }));
        assert_eq!(batch.request.reports.len(), GUARD_REPORTS_MAX);
        assert_eq!(batch.request.reports[0].time, 4);
        // More is dropped before the daemon answers: of what was sent, and counted for the next batch.
        queue.push(report(all + 1));
        let first = queue.answered(&batch, &accepted(GUARD_REPORTS_MAX));
        assert_eq!(first, 3 + GUARD_REPORTS_MAX as u64);
        let next = queue.batch().unwrap();
        assert_eq!(next.request.dropped, Some(proto::GuardReportsDropped { count: 1, from: 3, to: 4 }));
        assert_eq!(next.request.reports[0].time, first + 1);
        assert_eq!(
            queue.counts,
            ReportCounts { accepted: GUARD_REPORTS_MAX as u64, rejected: 0, dropped: 4 }
        );
    }

    #[test]
    fn everything_is_sent_once_and_what_is_rejected_is_counted() {
        let mut queue = Queue::default();
        let numbers: Vec<_> = (1..=3).map(|time| queue.push(report(time))).collect();
        assert_eq!(numbers, [0, 1, 2]);
        let batch = queue.batch().unwrap();
        queue.push(report(4));
        assert_eq!(queue.answered(&batch, &accepted(2)), 3);
        assert_eq!(queue.counts, ReportCounts { accepted: 2, rejected: 1, dropped: 0 });
        let batch = queue.batch().unwrap();
        assert_eq!((batch.request.reports, batch.request.dropped), (vec![report(4)], None));
        queue.answered(&queue.batch().unwrap(), &accepted(1));
        assert!(queue.batch().is_none());
    }

    /// The clock runs only while everything waits.
    #[tokio::test(start_paused = true)]
    async fn a_daemon_that_is_away_delays_a_raise_by_a_moment_and_no_more() {
        let reporter = Reporter::new();
        let directory = tempfile::tempdir().unwrap();
        let running = tokio::spawn(reporter.clone().run(Address::Unix(directory.path().join("no.sock"))));
        let began = tokio::time::Instant::now();
        reporter.announce("c", 1).await;
        assert!(began.elapsed() <= 2 * ANNOUNCE_LIMIT, "{:?}", began.elapsed());
        assert!(!reporter.flush(RETRY).await);
        let again = tokio::time::Instant::now();
        reporter.announce("c", 2).await;
        assert_eq!(again.elapsed(), Duration::ZERO, "it is known to be away");
        assert_eq!(reporter.counts(), ReportCounts::default());
        running.abort();
    }

    #[test]
    fn names_that_are_no_text_and_long_texts_are_cut_to_what_the_daemon_accepts() {
        let comm = |bytes: &[u8]| process(1, 2, bytes).unwrap().comm;
        assert_eq!(comm(b"java\0\0"), "java");
        assert_eq!(comm(&[0xff; 15]).chars().count(), 5);
        assert_eq!(detail("é".repeat(GUARD_DETAIL_BYTES_MAX)).len(), GUARD_DETAIL_BYTES_MAX);
    }
}
