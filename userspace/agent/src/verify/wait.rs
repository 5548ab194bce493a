//! How a call waits: what wakes it, and how often it looks without that.
//!
//! Owns the pauses. Never judges.

use std::collections::BTreeSet;
use std::time::Duration;

use kwitness_core::model::{KernelTime, VerdictScope};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::{RecvError, TryRecvError};
use tokio::time::Instant;

use super::{CHANGES_SHARE, Look, Verifier, VerifyError, VerifyReport, now};
use crate::hub::Filter;
use kwitness_api::proto;

/// Between two looks of a call that waits, at least: changes that follow each other fast are one.
pub(super) const PAUSE_MIN: Duration = Duration::from_millis(2);
/// Between two looks without an event, at least.
const RECHECK_MIN: Duration = Duration::from_millis(50);
/// The share of a core that looks without an event may take, of all calls that wait: one part in so many.
const RECHECK_SHARE: u32 = 20;
/// How old the runtime's answer may be for a call that waits, and for what is judged again within one call.
pub(super) const STATUS_AGE: Duration = Duration::from_millis(250);

impl Verifier {
    /// Waits until all are in force, or so long.
    pub(super) async fn wait(
        &self,
        filter: &Filter,
        wanted: &proto::Wanted,
        wait: Duration,
    ) -> Result<VerifyReport, VerifyError> {
        let until = Instant::now() + wait;
        let nanos = u64::try_from(wait.as_nanos()).unwrap_or(u64::MAX);
        let deadline = Some(KernelTime(now().0.saturating_add(nanos)));
        if wait.is_zero() {
            return self.look_last(filter, wanted).await;
        }
        let mut changes = self.queue.changes();
        let look = Look { filter, wanted, deadline };
        let began = Instant::now();
        let mut report = self.look(look, VerdictScope::All, STATUS_AGE).await?;
        let mut cost = began.elapsed();
        // No look after an event comes before.
        let mut earliest = Instant::now();
        while !report.all_in_force() && Instant::now() < until {
            let waiting = u32::try_from(self.queue.waiting()).unwrap_or(u32::MAX);
            let pause = RECHECK_MIN.max(cost.saturating_mul(RECHECK_SHARE).saturating_mul(waiting));
            let recheck = Instant::now() + pause;
            match changed(&mut changes, earliest, recheck.min(until)).await {
                None if Instant::now() >= until => break,
                None => {
                    let began = Instant::now();
                    report = self.look(look, VerdictScope::All, STATUS_AGE).await?;
                    cost = began.elapsed();
                }
                Some(scopes) => {
                    let began = Instant::now();
                    let mut looks = Vec::with_capacity(scopes.len());
                    for scope in scopes {
                        match self.look(look, scope, STATUS_AGE).await {
                            Ok(newer) => looks.push(newer),
                            // Not of these containers.
                            Err(VerifyError::NoContainer) => {}
                            Err(stopped) => return Err(stopped),
                        }
                    }
                    report.renew(looks);
                    earliest = Instant::now()
                        + began.elapsed().saturating_mul(CHANGES_SHARE).saturating_mul(waiting);
                }
            }
        }
        if report.all_in_force() {
            return Ok(report);
        }
        self.look_last(filter, wanted).await
    }
}

/// The scopes that change until then, all of those that change at the same time or before a look may come; none: nothing does.
pub(super) async fn changed(
    changes: &mut broadcast::Receiver<VerdictScope>,
    earliest: Instant,
    until: Instant,
) -> Option<Vec<VerdictScope>> {
    let all = || Some(vec![VerdictScope::All]);
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
    if scopes.contains(&VerdictScope::All) { all() } else { Some(scopes.into_iter().collect()) }
}
