//! Daemons at one socket, one after the other: a standby waits for the one that runs, and the last one leaves nothing.
//!
//! ```text
//!  starts ──▶ standby ──▶ runs ──▶ signalled to stop ──┬─ a standby waits ──▶ the lock is left to it, with pins and ledger
//!                │                                      └─ none ──▶ pins and ledger are removed, then the lock
//!                └── signalled to stop ──▶ the same, if the daemon that it waited for has left all to it
//! ```
//!
//! Owns the lock from the wait for it until what is left has been removed, so that a daemon that starts meanwhile finds all of that or
//! nothing. A daemon that is killed decides nothing: what it leaves is for the next one.

use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::thread;

use anyhow::Context as _;
use kwitness_service::{InstanceLock, LockError, Role, Signal, Signals, Standby};
use tokio::sync::{Notify, oneshot};

use super::{ledger, lock_file};
use crate::config::Config;
use crate::metrics::{Metrics, Stage};
use crate::probe::environment::{PRIVILEGES_REMEDY, missing_privileges};
use crate::probe::{Advised, pins};

/// When a daemon that is signalled to stop removes what it keeps for the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unpin {
    /// It leaves all.
    Never,
    /// If no standby waits to go on with it.
    UnlessStandby,
    /// Whatever comes next.
    Always,
}

/// What has become of a daemon that starts.
pub(super) enum Turn {
    /// It is the only one at its socket, and is to run.
    Taken(InstanceLock),
    /// It was signalled to stop while it waited. With the lock, if what the other daemon left is its to decide on.
    Stopped(Option<InstanceLock>),
}

/// Takes the lock at that socket; a standby waits for it while another daemon has it, until it is signalled to stop. That it is one, its
/// probes say after `rehearse`: a rollout that sees it ready ends the other daemon.
pub(super) async fn take_turn(
    socket: &Path,
    is_standby: bool,
    rehearse: impl FnOnce() -> anyhow::Result<()>,
    stop_signal: impl Future<Output = ()>,
    metrics: &Metrics,
) -> anyhow::Result<Turn> {
    let path = lock_file(socket);
    if !is_standby {
        return Ok(Turn::Taken(InstanceLock::acquire(&path)?));
    }
    let mut stop_signal = pin!(stop_signal);
    let mut rehearse = Some(rehearse);
    loop {
        let standby = match InstanceLock::acquire_or_stand_by(&path)? {
            Role::Instance(lock) => return Ok(Turn::Taken(lock)),
            Role::Standby(standby) => standby,
        };
        if let Some(rehearse) = rehearse.take() {
            rehearse().context("another daemon runs, and this one could not take over from it")?;
        }
        metrics.reached(Stage::Standby);
        tracing::info!(running = standby.holder(), "standby: another daemon runs; taking over when it ends");
        let ended = ended(&standby).context("cannot wait for the other daemon's end")?;
        tokio::select! {
            biased;
            () = &mut stop_signal => {
                tracing::info!("stopping: the standby has not taken over");
                return Ok(Turn::Stopped(standby.give_up()?));
            }
            ended = ended => {
                ended.context("the thread that waits for the other daemon's end panicked")?
                    .context("cannot wait for the other daemon's end")?;
            }
        }
        metrics.reached(Stage::Loading);
        if let Some(lock) = standby.take_over()? {
            tracing::info!("the other daemon has ended: taking over");
            return Ok(Turn::Taken(lock));
        }
    }
}

/// Resolves when the other daemon has ended.
fn ended(standby: &Standby) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let wait = standby.waiter()?;
    let (report, reported) = oneshot::channel();
    thread::Builder::new().name("standby".to_owned()).spawn(move || {
        // Signalled to stop, this process does not listen any more.
        let _ = report.send(wait());
    })?;
    Ok(reported)
}

/// Resolves when a signal says so. One to reload is noted for the time when this daemon runs.
pub(super) async fn stop_signal(signals: &mut Signals, reload: &Notify) {
    loop {
        match signals.next().await {
            Signal::Stop => return,
            Signal::Reload => reload.notify_one(),
            Signal::LogCounters => tracing::info!("standby: there are no counters yet"),
        }
    }
}

/// Removes what is kept for the next daemon, if so decided, and releases the lock.
pub(super) fn end(config: &Config, lock: InstanceLock, unpin: Unpin) -> anyhow::Result<()> {
    let lock = match unpin {
        Unpin::Never => return Ok(()),
        Unpin::Always => lock,
        Unpin::UnlessStandby => match lock.hand_over()? {
            Some(lock) => lock,
            None => {
                tracing::info!("left to the standby");
                return Ok(());
            }
        },
    };
    // What one of them leaves is no reason to leave the others.
    let (pins, ledger) = (remove_pins(config), remove_ledger(config));
    for path in pins.iter().flatten().chain(ledger.iter().flatten()) {
        tracing::info!(path = %path.display(), "removed: no daemon goes on with it");
    }
    lock.remove().context("cannot remove the lock file")?;
    pins.and(ledger.map(drop))
}

/// Removes what daemons with this configuration left for the next one: what is pinned, and the ledger; their paths. The ledger of a daemon
/// that runs with other pins stays.
///
/// # Errors
/// This process may not see what is there, a daemon runs with these, or something cannot be removed.
pub fn uninstall(config: &Config) -> anyhow::Result<Vec<PathBuf>> {
    // What it may not see would look like nothing.
    let missing = missing_privileges();
    if !missing.is_empty() {
        let found = format!("what daemons leave cannot be seen or removed: missing {}", missing.join(", "));
        return Err(Advised { found, remedy: Some(PRIVILEGES_REMEDY), is_denied: true }.into());
    }
    let mut removed = remove_pins(config)?;
    if ledger(config).directory.exists() {
        match InstanceLock::acquire(&lock_file(&config.socket)) {
            Ok(lock) => {
                removed.extend(remove_ledger(config)?);
                lock.remove().context("cannot remove the lock file")?;
            }
            Err(LockError::AlreadyRunning { .. }) if !removed.is_empty() => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(removed)
}

fn remove_pins(config: &Config) -> anyhow::Result<Vec<PathBuf>> {
    let directory = &config.pin_directory;
    let sets = pins::uninstall(directory)
        .map_err(|error| Advised::from(&error))
        .context("cannot remove what is pinned")?;
    Ok(sets.iter().map(|set| directory.join(set)).collect())
}

fn remove_ledger(config: &Config) -> anyhow::Result<Option<PathBuf>> {
    let place = ledger(config);
    if !place.directory.exists() {
        return Ok(None);
    }
    place.remove().with_context(|| format!("cannot remove {}", place.directory.display()))?;
    Ok(Some(place.directory))
}

#[cfg(test)]
mod tests;
