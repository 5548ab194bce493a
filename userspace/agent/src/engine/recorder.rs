//! Observations written to a file, one JSON object a line, to be replayed by tests. The file is written by a thread of its own:
//! one that cannot be written, or not as fast as is observed, ends the recording, not the daemon.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use anyhow::Context as _;
use kwitness_core::model::Observation;

/// Observations on their way to the file.
const QUEUE: usize = 16_384;
/// How long the end of the daemon waits for what is on its way.
const END: Duration = Duration::from_secs(1);

/// The recording, as long as it can be written.
#[derive(Debug)]
pub(super) struct Recorder {
    queue: Option<SyncSender<Observation>>,
    ended: Receiver<()>,
}

impl Recorder {
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let mut options = File::options();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(nix::libc::O_NOFOLLOW);
        let file = options.open(path).with_context(|| format!("cannot record to {}", path.display()))?;
        let (queue, observations) = sync_channel(QUEUE);
        let (end, ended) = sync_channel(1);
        let path = path.to_owned();
        let write = move || {
            if let Err(error) = write_all(&observations, BufWriter::new(file)) {
                tracing::error!(path = %path.display(), %error, "the recording has ended: it cannot be written");
            }
            // The recorder is gone already.
            let _ = end.send(());
        };
        std::thread::Builder::new()
            .name("recorder".to_owned())
            .spawn(write)
            .context("cannot start the thread that records")?;
        Ok(Self { queue: Some(queue), ended })
    }

    /// Records one. Never waits.
    pub(super) fn write(&mut self, observation: &Observation) {
        let Some(queue) = &self.queue else { return };
        match queue.try_send(observation.clone()) {
            Ok(()) => return,
            Err(TrySendError::Full(_)) => {
                tracing::error!(
                    queue = QUEUE,
                    "the recording has ended: it is written slower than is observed"
                );
            }
            // The thread has said why.
            Err(TrySendError::Disconnected(_)) => {}
        }
        self.queue = None;
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        if self.queue.take().is_some() {
            let _ = self.ended.recv_timeout(END);
        }
    }
}

fn write_all(observations: &Receiver<Observation>, mut file: BufWriter<File>) -> std::io::Result<()> {
    while let Ok(first) = observations.recv() {
        for observation in std::iter::once(first).chain(observations.try_iter()) {
            serde_json::to_writer(&mut file, &observation)?;
            file.write_all(b"\n")?;
        }
        file.flush()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use kwitness_core::model::KernelTime;

    use super::*;

    fn tick(at: u64) -> Observation {
        Observation::Tick { at: KernelTime(at) }
    }

    #[test]
    fn what_was_observed_is_in_the_file_when_the_recorder_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("recording");
        let mut recorder = Recorder::create(&path).unwrap();
        (0..100).for_each(|at| recorder.write(&tick(at)));
        drop(recorder);
        let text = std::fs::read_to_string(&path).unwrap();
        let read: Vec<Observation> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(read, (0..100).map(tick).collect::<Vec<_>>());
    }

    #[test]
    fn a_link_is_not_followed() {
        let directory = tempfile::tempdir().unwrap();
        let (path, victim) = (directory.path().join("recording"), directory.path().join("victim"));
        std::fs::write(&victim, "precious").unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        Recorder::create(&path).unwrap_err();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "precious");
    }

    #[test]
    fn a_file_that_takes_nothing_ends_the_recording_and_nothing_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("fifo");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A reader that never reads: the pipe fills, then the queue.
        let _reader = File::options().read(true).write(true).open(&path).unwrap();
        let mut recorder = Recorder::create(&path).unwrap();
        for at in 0.. {
            recorder.write(&tick(at));
            if recorder.queue.is_none() {
                return;
            }
            assert!(at < 1_000_000, "the queue is bounded");
        }
    }
}
