//! How a call waits: what wakes it, and how often it looks without that.
//!
//! Owns the pauses. Never judges.

use std::collections::BTreeSet;
use std::time::Duration;

use kwitness_core::model::{KernelTime, Requester, VerdictScope};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::Instant;

use super::kept::Kept;
use super::{CHANGES_SHARE, Look, Selection, Verifier, VerifyError, VerifyReport, now};
use crate::hub::Filter;
use crate::reported::desired::Desired;

/// Between two looks of a call that waits, at least: changes that follow each other fast are one.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(2);
/// Between two looks without an event, at least.
const RECHECK_MIN: Duration = Duration::from_millis(50);
/// The share of a core that looks without an event may take, of all calls that wait: one part in so many.
const RECHECK_SHARE: u32 = 20;
/// How old the runtime's answer may be for a call that waits, and for what is judged again within one call.
pub(super) const STATUS_AGE: Duration = Duration::from_millis(250);

impl Verifier {
    /// Waits until all that pass the filter are in force, or so long; the last look is for good.
    pub(super) async fn wait(
        &self,
        filter: &Filter,
        desired: &[Desired],
        wait: Duration,
    ) -> Result<VerifyReport, VerifyError> {
        let mut selection = Selection::of(filter);
        let last = Look::last(filter, desired, Duration::ZERO);
        if wait.is_zero() {
            return self.look_at_selected(last, &mut selection).await;
        }
        let until = Instant::now() + wait;
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let deadline = Some(KernelTime(now().0.saturating_add(nanos)));
        let look = Look { requester: Requester::Client, deadline, status_age: STATUS_AGE, ..last };
        let mut changes = self.queue.changes();
        let began = Instant::now();
        let report = self.look_at_selected(look, &mut selection).await?;
        if report.all_in_force() {
            return Ok(report);
        }
        // Without the wait for its turn, as of all looks.
        let mut cost = began.elapsed().saturating_sub(report.waited);
        let mut kept = Kept::of(report);
        // No look after an event comes before; and events put the next look without one off no further.
        let (mut earliest, mut looked) = (Instant::now(), Instant::now());
        // Whether that is about all that passed the filter at the last look.
        let mut is_whole = true;
        loop {
            let waiting = u32::try_from(self.queue.waiting()).unwrap_or(u32::MAX);
            if kept.all_in_force() {
                if let (Kept::Whole(report), true) = (&mut kept, is_whole) {
                    return Ok(std::mem::take(report));
                }
                let began = Instant::now();
                selection = Selection::of(filter);
                let report = self.look_at_selected(look, &mut selection).await?;
                if report.all_in_force() {
                    return Ok(report);
                }
                (cost, looked) = (began.elapsed().saturating_sub(report.waited), Instant::now());
                (kept, is_whole) = (Kept::of(report), true);
                earliest = looked + cost.saturating_mul(CHANGES_SHARE).saturating_mul(waiting);
                continue;
            }
            if Instant::now() >= until {
                // Whatever passes the filter by now.
                return self.look_at_selected(last, &mut Selection::of(filter)).await;
            }
            let pause = RECHECK_MIN.max(cost.saturating_mul(RECHECK_SHARE).saturating_mul(waiting));
            let recheck = looked + pause;
            let changed = if Instant::now() < recheck {
                changed(&mut changes, earliest, recheck.min(until)).await
            } else {
                None
            };
            let began = Instant::now();
            match changed {
                None if began >= until => {}
                None => {
                    is_whole = !selection.is_narrowed();
                    let report = self.look_at_selected(look, &mut selection).await?;
                    if is_whole && report.all_in_force() {
                        return Ok(report);
                    }
                    (cost, looked) = (began.elapsed().saturating_sub(report.waited), Instant::now());
                    kept = Kept::of(report);
                }
                Some(changed) => {
                    is_whole &= !selection.misses_new();
                    let looks = self.look_at_each(look, selection.concerned(changed)).await?;
                    let waited: Duration = looks.iter().map(|newer| newer.waited).sum();
                    kept.renew(looks);
                    let cost = began.elapsed().saturating_sub(waited);
                    earliest = Instant::now() + cost.saturating_mul(CHANGES_SHARE).saturating_mul(waiting);
                }
            }
        }
    }
}

/// The scopes that change until then, all of those that change at the same time or before a look may come; none: nothing does.
pub(super) async fn changed(
    changes: &mut broadcast::Receiver<VerdictScope>,
    earliest: Instant,
    until: Instant,
) -> Option<BTreeSet<VerdictScope>> {
    let all = || Some(BTreeSet::from([VerdictScope::All]));
    let first = match tokio::time::timeout_at(until, changes.recv()).await {
        Ok(Ok(scope)) => scope,
        Ok(Err(RecvError::Lagged(_))) => return all(),
        // The engine has stopped: the next request to it fails.
        Ok(Err(RecvError::Closed)) => return all(),
        Err(_) => return None,
    };
    tokio::time::sleep_until(earliest.min(until).max(Instant::now() + PAUSE_MIN)).await;
    let mut scopes = BTreeSet::from([first]);
    loop {
        match changes.try_recv() {
            Ok(scope) => {
                scopes.insert(scope);
            }
            Err(TryRecvError::Lagged(_)) => return all(),
            Err(TryRecvError::Empty | TryRecvError::Closed) => break,
        }
    }
    if scopes.contains(&VerdictScope::All) { all() } else { Some(scopes) }
}
