//! A client that connects has to begin with HTTP/2 within a time: only then it is asked whether it is there.
//!
//! Owns the time of one connection, and the counters of all. One that stays silent gets an error of kind `TimedOut` from its
//! read, which ends it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::time::{Sleep, sleep};

crate::counters! {
    /// Connections of clients.
    ConnectionCounters {
        /// Accepted since the start.
        connections,
        /// Of those: closed because there were too many, when they came or later.
        connections_refused,
        /// Of those: closed because the client did not begin with HTTP/2 in time.
        connections_silent,
    }
}

/// Bytes of the HTTP/2 preface and of a frame's head (RFC 9113, 3.4 and 4.1).
const BEGINNING: usize = 24 + 9;

/// Whether a client has begun.
#[derive(Debug)]
pub struct Beginning(Option<Waiting>);

/// Until it has.
#[derive(Debug)]
struct Waiting {
    read: usize,
    timer: Pin<Box<Sleep>>,
    silence: Duration,
    counters: Arc<ConnectionCounters>,
}

impl Beginning {
    /// Of a client that has sent nothing yet. Within a tokio runtime.
    pub fn within(silence: Duration, counters: Arc<ConnectionCounters>) -> Self {
        Self(Some(Waiting { read: 0, timer: Box::pin(sleep(silence)), silence, counters }))
    }

    /// Reads from the client; one that has not begun has to in time.
    pub fn poll_read(
        &mut self,
        stream: &mut (impl AsyncRead + Unpin),
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(stream).poll_read(context, buffer);
        if let Some(waiting) = &mut self.0 {
            waiting.read += buffer.filled().len() - before;
            if waiting.read >= BEGINNING {
                self.0 = None;
            } else if polled.is_pending() {
                return waiting.poll(context).map(Err);
            }
        }
        polled
    }
}

impl Waiting {
    /// An error once the client has been silent for too long.
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<io::Error> {
        ready!(self.timer.as_mut().poll(context));
        self.counters.connections_silent.count();
        let silence = self.silence.as_secs();
        tracing::warn!(silence, "a client connected and did not begin with HTTP/2: closed");
        Poll::Ready(io::Error::new(io::ErrorKind::TimedOut, "the client did not begin with HTTP/2"))
    }
}
