//! What the programs log with aya-log, handed on to `tracing`.
//!
//! Owns the ring of log messages and the task that reads it. For diagnostics only: no event rests on a message, and one that
//! finds the ring full is gone.

use aya::Ebpf;
use aya_log::EbpfLogger;
use tokio::{
    io::{Interest, unix::AsyncFd},
    task::JoinHandle,
};
use tracing_log::LogTracer;

use super::{
    error::{ProbeError, Result},
    settings::ProbeLog,
};

/// The task that reads; dropping it ends it.
pub(super) struct LogReader(JoinHandle<()>);

impl LogReader {
    /// Starts to read, unless nothing is logged. Within a tokio runtime.
    pub(super) fn start(ebpf: &mut Ebpf, log: ProbeLog) -> Result<Option<Self>> {
        if log == ProbeLog::Off {
            return Ok(None);
        }
        let logger = EbpfLogger::init_with_logger(ebpf, LogTracer::new()).map_err(ProbeError::Log)?;
        // SAFETY: the logger owns its descriptor, which stays open and the same until the `AsyncFd` is dropped.
        let mut logger = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .map_err(|error| ProbeError::Register(error.into()))?;
        let task = tokio::spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                // Readiness is cleared before the ring is read: a message that comes in between sets it again.
                ready.clear_ready();
                ready.get_inner_mut().flush();
            }
        });
        Ok(Some(Self(task)))
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.0.abort();
    }
}
