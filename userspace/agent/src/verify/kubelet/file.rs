//! Reads of a checkpoint's file. A file system that does not answer costs one thread a file and no more: reads are made on a
//! thread of their own, by one for all calls, and none waits longer than [`DEADLINE`].

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Checkpoint, CheckpointError};

/// How long a read may take.
pub(super) const DEADLINE: Duration = Duration::from_secs(1);

/// What a read gave.
type Read = Result<Arc<Checkpoint>, Arc<CheckpointError>>;
/// When a read began, and what it gives when it is over.
type UnderWay = (Instant, watch::Receiver<Option<Read>>);

/// Reads one checkpoint for all who want to know. Clones share it.
#[derive(Clone, Debug)]
pub struct CheckpointFile {
    path: Arc<Path>,
    /// The read that is under way; it is over when its sender is gone.
    reading: Arc<Mutex<Option<UnderWay>>>,
}

impl CheckpointFile {
    pub fn new(path: PathBuf) -> Self {
        Self { path: path.into(), reading: Arc::default() }
    }

    /// What it says, by a read that began after this call; empty: there is no such file.
    pub async fn read(&self) -> Read {
        let slow = || Arc::new(CheckpointError::Slow { path: self.path.to_path_buf() });
        tokio::time::timeout(DEADLINE, self.next_read()).await.unwrap_or_else(|_| Err(slow()))
    }

    async fn next_read(&self) -> Read {
        let called = Instant::now();
        loop {
            let (began, mut reading) = self.join_or_start();
            // An error says that the thread has ended: what it had to say is there.
            let _ = reading.wait_for(Option::is_some).await;
            let read = reading.borrow().clone();
            if let Some(read) = read
                && began >= called
            {
                return read;
            }
        }
    }

    /// The read that is under way, or a new one.
    fn join_or_start(&self) -> UnderWay {
        let mut reading = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((began, under_way)) = &*reading
            && under_way.borrow().is_none()
            && under_way.has_changed().is_ok()
        {
            return (*began, under_way.clone());
        }
        let began = Instant::now();
        let (sender, receiver) = watch::channel(None);
        let path = self.path.clone();
        let read = move || {
            let read = Checkpoint::read(&path).map(Option::unwrap_or_default);
            sender.send_replace(Some(read.map(Arc::new).map_err(Arc::new)));
        };
        // Not one of the runtime's blocking threads: for those, the end of the process waits.
        if let Err(source) = std::thread::Builder::new().name("checkpoint-reader".to_owned()).spawn(read) {
            let error = CheckpointError::Unreadable { path: self.path.to_path_buf(), source };
            let (_, failed) = watch::channel(Some(Err(Arc::new(error))));
            return (began, failed);
        }
        *reading = Some((began, receiver.clone()));
        (began, receiver)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_file_that_does_not_answer_costs_one_bounded_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("allocated_pods_state");
        nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let checkpoint = CheckpointFile::new(path.clone());
        let error = tokio::time::timeout(DEADLINE / 2, checkpoint.read()).await.unwrap().unwrap_err();
        assert!(
            matches!(&*error, CheckpointError::Unreadable { source, .. } if source.to_string().contains("regular"))
        );

        // A read that hangs: no other is started, no call waits forever, and when it is over, reads succeed again.
        let (stuck, receiver) = watch::channel(None);
        *checkpoint.reading.lock().unwrap() = Some((Instant::now(), receiver));
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, r#"{"data":"{\"entries\":{\"u\":{}}}","checksum":0}"#).unwrap();
        tokio::time::pause();
        for _ in 0..2 {
            assert!(matches!(*checkpoint.read().await.unwrap_err(), CheckpointError::Slow { .. }));
        }
        tokio::time::resume();
        drop(stuck);
        assert!(!checkpoint.read().await.unwrap().records_pod("u"));
    }
}
