//! Ctrl-C: tasks that started something end it before they end themselves.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::flag;

static CAUGHT: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From here on the signals that ask to end are only noted.
pub fn catch() -> Result<()> {
    let caught = CAUGHT.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        flag::register(signal, Arc::clone(caught)).context("catch a signal")?;
    }
    Ok(())
}

pub fn caught() -> bool {
    CAUGHT.get().is_some_and(|caught| caught.load(Ordering::Relaxed))
}
