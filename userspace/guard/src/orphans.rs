//! Holds whose guard is gone: ended by its watchdog, or by the next guard before it does anything else.
//!
//! The records outlive both, because they are pinned. Continues what is recorded, and nothing else.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use kwitness_abi::Lease;
use kwitness_service::{InstanceLock, Socket};

use crate::brake;
use crate::continued::{self, Continued, Reason};
use crate::process::{self, HoldId, State, hold_id};
use crate::program::{self, LEASE, ProgramError, Records};
use crate::{BRAKES_FILE, CONTINUED_FILE, LOCK_FILE};

/// Between two attempts.
const RETRY: Duration = Duration::from_millis(25);

/// Ends every hold that is recorded, and adds it to `ended`. Returns how many processes are still stopped: they need another attempt.
/// `earlier` are those that have ended before and were not removed from the records: when, and why.
///
/// # Errors
/// The records cannot be read or changed.
pub(crate) fn end_all(
    records: &mut Records,
    reason: Reason,
    earlier: &HashMap<HoldId, (u64, Reason)>,
    ended: &mut Vec<Continued>,
) -> Result<usize, ProgramError> {
    let mut left = 0;
    for (key, hold) in records.held()? {
        match process::end_hold(key, &hold) {
            Ok(State::Stopped) => left += 1,
            Ok(state) => {
                records.release(key)?;
                let now = (program::now(), reason);
                let (at, reason) = earlier.get(&hold_id(key, &hold)).copied().unwrap_or(now);
                ended.push(Continued::new(key, &hold, at, state, reason));
                let (reason, held_ms) = (reason.name(), at.saturating_sub(hold.since) / 1_000_000);
                tracing::warn!(pid = key.pid, reason, held_ms, ?state, "guardContinued");
            }
            Err(error) => {
                left += 1;
                tracing::error!(pid = key.pid, %error, "cannot continue a process; trying again");
            }
        }
    }
    Ok(left)
}

/// The only guard of this node, after what an earlier one left has ended.
#[derive(Debug)]
pub struct Recovered {
    _lock: InstanceLock,
}

/// Ends what an earlier guard that pinned its records in that directory has left: its holds, and its second brakes. To be called
/// before anything that can fail, so that nothing stays stopped for a policy with an error or a runtime that is away.
///
/// # Errors
/// Another guard is running. This process may not continue what is held, or cannot use the records.
pub async fn recover(directory: &Path) -> anyhow::Result<Recovered> {
    process::check()?;
    Socket::make_directory(Path::new(LOCK_FILE))?;
    let lock = InstanceLock::acquire(Path::new(LOCK_FILE)).context("one node has one guard")?;
    let ended = end_left(directory).await;
    brake::recover(Path::new(BRAKES_FILE), None);
    ended.map(|()| Recovered { _lock: lock })
}

async fn end_left(directory: &Path) -> anyhow::Result<()> {
    let Some(mut records) = Records::pinned(directory)? else { return Ok(()) };
    let began = Instant::now();
    while program::now() < records.lease()?.until {
        if began.elapsed() > LEASE + RETRY {
            bail!("another guard is running: it renews the lease in {}", directory.display());
        }
        tokio::time::sleep(RETRY).await;
    }
    records.set_lease(Lease::default())?;
    let mut ended = Vec::new();
    let done = loop {
        match end_all(&mut records, Reason::GuardRestarted, &HashMap::new(), &mut ended) {
            Ok(0) => break Ok(()),
            Ok(_) => tokio::time::sleep(RETRY).await,
            Err(error) => break Err(error.into()),
        }
    };
    continued::add(Path::new(CONTINUED_FILE), ended);
    done
}
