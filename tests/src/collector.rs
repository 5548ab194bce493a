//! A stream that is read to its end in the background, and what has come of it so far.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tonic::{Status, Streaming};

/// How long something may take to come. Far more than it ever takes: a test that runs into it has failed.
const LIMIT: Duration = Duration::from_secs(180);

/// Collects messages into a `T` until it is dropped.
#[derive(Debug)]
pub(crate) struct Collector<T> {
    collected: Arc<Mutex<Collected<T>>>,
    changed: watch::Receiver<()>,
    task: JoinHandle<()>,
}

#[derive(Debug, Default)]
pub(crate) struct Collected<T> {
    pub(crate) all: T,
    /// How the stream ended; none: it has not.
    pub(crate) end: Option<Result<(), Status>>,
}

impl<T: Default + Send + 'static> Collector<T> {
    pub(crate) fn start<M: Send + 'static>(
        open: impl Future<Output = Result<Streaming<M>, Status>> + Send + 'static,
        add: impl Fn(&mut T, M) + Send + 'static,
    ) -> Self {
        let collected = Arc::new(Mutex::new(Collected::default()));
        let (sender, changed) = watch::channel(());
        let sink = Arc::clone(&collected);
        let task = tokio::spawn(async move {
            let mut stream = open.await;
            loop {
                let message = match &mut stream {
                    Ok(stream) => stream.message().await,
                    Err(status) => Err(status.clone()),
                };
                let ended = {
                    let mut sink = lock(&sink);
                    match message {
                        Ok(Some(message)) => add(&mut sink.all, message),
                        Ok(None) => sink.end = Some(Ok(())),
                        Err(status) => sink.end = Some(Err(status)),
                    }
                    sink.end.is_some()
                };
                // No waiter is left; the next lock shows what came.
                let _ = sender.send(());
                if ended {
                    return;
                }
            }
        });
        Self { collected, changed, task }
    }
}

impl<T> Collector<T> {
    pub(crate) fn look(&self) -> MutexGuard<'_, Collected<T>> {
        lock(&self.collected)
    }

    pub(crate) async fn wait<A>(
        &mut self,
        what: &str,
        probe: impl Fn(&Collected<T>) -> Option<A>,
    ) -> Result<A> {
        let all = async {
            loop {
                self.changed.borrow_and_update();
                let (answer, end) = {
                    let collected = lock(&self.collected);
                    (probe(&collected), collected.end.clone())
                };
                if let Some(answer) = answer {
                    return Ok(answer);
                }
                if end.is_some() || self.changed.changed().await.is_err() {
                    bail!("the stream ended before {what} came: {end:?}");
                }
            }
        };
        let answer = tokio::time::timeout(LIMIT, all).await;
        answer.unwrap_or_else(|_| bail!("{what} did not come within {LIMIT:?}"))
    }
}

impl<T> Drop for Collector<T> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(collected: &Mutex<Collected<T>>) -> MutexGuard<'_, Collected<T>> {
    collected.lock().unwrap_or_else(PoisonError::into_inner)
}
