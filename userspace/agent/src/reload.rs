//! What SIGHUP changes in a running daemon: `log.level`.
//!
//! The whole configuration is read and checked as at the start, flags included, which still win. Everything else in it applies at
//! the next start. A configuration with an error changes nothing.
//!
//! Owns the way back to the configuration's sources. Never waits for a file on a worker of the runtime, nor reads it twice at a time.

use std::path::PathBuf;

use anyhow::Context as _;
use kwitness_service::log::LogFilter;
use tokio::sync::Notify;

use crate::config::{Config, Flag};

/// How the configuration was read, and what can be changed by it.
#[derive(Clone, Debug)]
pub struct Reload {
    /// The file that was named, if any.
    pub file: Option<PathBuf>,
    /// Settings of the command line.
    pub flags: Vec<Flag>,
    /// What is logged.
    pub filter: LogFilter,
}

impl Reload {
    /// Reads the configuration again whenever it is notified. Never returns.
    pub(crate) async fn follow(self, due: &Notify) {
        loop {
            due.notified().await;
            let reload = self.clone();
            let applied = tokio::task::spawn_blocking(move || reload.apply()).await;
            match applied.context("reading the configuration panicked").flatten() {
                Ok(level) => {
                    tracing::info!(log.level = level, "log.level applied; a restart applies other settings");
                }
                Err(error) => {
                    let error = format_args!("{error:#}");
                    tracing::error!(%error, "the configuration is not applied: everything stays as it is");
                }
            }
        }
    }

    fn apply(&self) -> anyhow::Result<String> {
        let level = Config::load(self.file.as_deref(), &self.flags)?.log_filter;
        self.filter.set(&level)?;
        Ok(level)
    }
}
