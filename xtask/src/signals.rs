//! Ctrl-C: tasks that started something end it first.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

/// Tells whether we were asked to end.
pub struct Signals(Arc<AtomicBool>);

impl Signals {
    /// From here on the signals that ask to end are only noted.
    pub fn catch() -> Result<Self> {
        let caught = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            flag::register(signal, Arc::clone(&caught)).context("catch a signal")?;
        }
        Ok(Self(caught))
    }

    /// Whether we were asked to end.
    pub fn caught(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}
