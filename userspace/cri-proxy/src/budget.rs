//! Memory that clients cost, in bytes: measured at the allocator, not estimated from what was sent.
//!
//! ```text
//!   a connection's tasks ── Metered: bytes allocated less bytes freed, poll by poll ──▶ its Meter ──▶ Budget
//!   a connection reads   ── Guarded: is the Budget exceeded?  ── yes ──▶ the largest connection of the largest client is closed
//!   a call begins        ── is its connection above its share? ── yes ──▶ RESOURCE_EXHAUSTED
//! ```
//!
//! The proxy is one thread, so what the counter of the thread grew by while a task was polled is that task's. What one side allocated and
//! another frees (a line for the log, a message that is reported) drifts away from the truth; a connection without a call in flight
//! begins again at zero.
//!
//! Owns the bound of all memory that clients and runtime can fill. Never holds a connection up: it goes on, or it is closed.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::task::{Context, Poll, ready};

use hyper::rt::Executor;
use pin_project_lite::pin_project;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::sync::CancellationToken;

use super::counters::Counters;
use kwitness_service::memory::allocated;

/// All connections' memory.
#[derive(Debug)]
pub struct Budget {
    meters: Mutex<Vec<Weak<Meter>>>,
    used: AtomicI64,
    limit: i64,
    calls_limit: i64,
    counters: Arc<Counters>,
}

impl Budget {
    /// A budget of `limit` bytes, of which one connection's calls may hold `calls_limit`.
    pub fn new(limit: i64, calls_limit: i64, counters: Arc<Counters>) -> Arc<Self> {
        Arc::new(Self { meters: Mutex::default(), used: AtomicI64::new(0), limit, calls_limit, counters })
    }

    /// Bytes of all connections.
    pub fn used(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }

    /// For one more connection, of the client with that process id.
    pub fn meter(self: &Arc<Self>, client: i32) -> Arc<Meter> {
        let meter = Arc::new(Meter {
            budget: Arc::clone(self),
            client,
            used: AtomicI64::new(0),
            settled: AtomicI64::new(0),
            calls: AtomicUsize::new(0),
            closed: CancellationToken::new(),
        });
        let mut meters = self.meters();
        meters.retain(|meter| meter.strong_count() > 0);
        meters.push(Arc::downgrade(&meter));
        meter
    }

    /// Closes the largest connection of the client that uses most.
    fn shed(&self) {
        let meters: Vec<_> = self.meters().iter().filter_map(Weak::upgrade).collect();
        if meters.iter().any(|meter| meter.closed.is_cancelled()) {
            // It has not been dropped yet.
            return;
        }
        let mut clients: HashMap<i32, i64> = HashMap::new();
        for meter in &meters {
            *clients.entry(meter.client).or_default() += meter.used();
        }
        let of_client = |meter: &&Arc<Meter>| clients.get(&meter.client).copied().unwrap_or_default();
        if let Some(largest) = meters.iter().max_by_key(|meter| (of_client(meter), meter.used())) {
            self.counters.connections_exhausted.count();
            tracing::warn!(
                peer = largest.client,
                bytes = largest.used(),
                all = self.used(),
                limit = self.limit,
                "out of memory for clients: closing the largest connection of the client that uses most"
            );
            largest.closed.cancel();
        }
    }

    fn meters(&self) -> std::sync::MutexGuard<'_, Vec<Weak<Meter>>> {
        self.meters.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One connection's memory.
#[derive(Debug)]
pub struct Meter {
    budget: Arc<Budget>,
    client: i32,
    used: AtomicI64,
    /// What the thread's counter was when it was last charged, within a poll.
    settled: AtomicI64,
    calls: AtomicUsize,
    /// Cancelled when the connection must end.
    pub closed: CancellationToken,
}

impl Meter {
    fn used(&self) -> i64 {
        self.used.load(Ordering::Relaxed)
    }

    fn charge(&self, bytes: i64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.budget.used.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Charges what was allocated since the last time, within a poll.
    fn settle(&self) {
        let now = allocated();
        self.charge(now - self.settled.swap(now, Ordering::Relaxed));
    }

    /// A call in flight; none where the connection's calls hold too much already.
    pub fn call(self: &Arc<Self>) -> Option<CallInFlight> {
        if self.used() > self.budget.calls_limit {
            self.budget.counters.calls_exhausted.count();
            return None;
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        Some(CallInFlight(Arc::clone(self)))
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.charge(-self.used());
    }
}

/// Ends with the call.
#[derive(Debug)]
pub struct CallInFlight(Arc<Meter>);

impl Drop for CallInFlight {
    fn drop(&mut self) {
        if self.0.calls.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.charge(-self.0.used());
        }
    }
}

/// Charges what happens within to the meter.
fn measured<T>(meter: &Meter, within: impl FnOnce() -> T) -> T {
    meter.settled.store(allocated(), Ordering::Relaxed);
    let done = within();
    meter.settle();
    done
}

pin_project! {
    /// A task whose memory is measured, to its end.
    pub struct Metered<F> {
        // Always there, until it is dropped.
        #[pin]
        task: Option<F>,
        meter: Arc<Meter>,
    }

    impl<F> PinnedDrop for Metered<F> {
        fn drop(this: Pin<&mut Self>) {
            let mut this = this.project();
            let meter = Arc::clone(this.meter);
            measured(&meter, || this.task.set(None));
        }
    }
}

impl<F> Metered<F> {
    /// Measures a task.
    pub fn new(task: F, meter: Arc<Meter>) -> Self {
        Self { task: Some(task), meter }
    }
}

impl<F: Future> Future for Metered<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        match this.task.as_pin_mut() {
            Some(task) => measured(this.meter, || task.poll(context)),
            None => Poll::Pending,
        }
    }
}

/// Spawns the tasks of a connection.
#[derive(Clone, Debug)]
pub struct MeteredExecutor(pub Arc<Meter>);

impl<F> Executor<F> for MeteredExecutor
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let before = allocated();
        tokio::spawn(Metered::new(task, Arc::clone(&self.0)));
        // What the task itself takes is freed where nothing is measured.
        self.0.charge(before - allocated());
    }
}

/// A stream whose reader stops when the memory for clients is used up.
#[derive(Debug)]
pub struct Guarded<S> {
    stream: S,
    meter: Arc<Meter>,
}

impl<S> Guarded<S> {
    /// Guards a connection's stream, to the client or to the runtime.
    pub fn new(stream: S, meter: Arc<Meter>) -> Self {
        Self { stream, meter }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        // One poll may read often.
        self.meter.settle();
        let budget = &self.meter.budget;
        if budget.used() > budget.limit {
            budget.shed();
        }
        if self.meter.closed.is_cancelled() {
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::OutOfMemory, "out of memory for clients")));
        }
        let this = &mut *self;
        ready!(Pin::new(&mut this.stream).poll_read(context, buffer))?;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
