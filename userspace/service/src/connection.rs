//! One accepted connection: a Unix stream whose client may send a path as `:authority`, and has to begin within a time.
//!
//! Owns what is held back until the rewriter can judge it, at most a few kilobytes. Never changes what the server sends.
//! A client that stays silent gets an error of kind `TimedOut` from its first read, which ends the connection.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tonic::transport::server::Connected;

use crate::authority::Rewriter;
use crate::beginning::{Beginning, ConnectionCounters};
use crate::slots::{Origin, Peer, Slot};

/// How much is read at a time while something is held back.
const READ: usize = 4096;

/// A client's connection, as the HTTP/2 server reads and writes it.
#[derive(Debug)]
pub struct Connection {
    // Dropped before the stream, whose descriptor it knows.
    slot: Slot,
    stream: UnixStream,
    rewriter: Rewriter,
    /// Read, and not passed on yet. Empty but for the moments when a header block has come in part.
    held: Vec<u8>,
    /// How much of it has been judged.
    judged: usize,
    beginning: Beginning,
}

impl Connection {
    /// A connection of which nothing has been read.
    pub(crate) fn new(
        stream: UnixStream,
        slot: Slot,
        silence: Duration,
        counters: Arc<ConnectionCounters>,
    ) -> Self {
        Self {
            slot,
            stream,
            rewriter: Rewriter::default(),
            held: Vec::new(),
            judged: 0,
            beginning: Beginning::within(silence, counters),
        }
    }

    /// Who is connected.
    pub fn peer(&self) -> Peer {
        self.slot.peer()
    }

    /// Reads straight into the server's buffer, which is the usual case.
    fn poll_read_through(
        &mut self,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        ready!(self.beginning.poll_read(&mut self.stream, context, buffer))?;
        let read = &mut buffer.filled_mut()[before..];
        let judged = self.rewriter.rewrite(read);
        if judged < read.len() {
            self.held = read[judged..].to_vec();
            buffer.set_filled(before + judged);
        }
        Poll::Ready(Ok(()))
    }

    /// Reads more of what is held back; at the end of the stream all of it is passed on.
    fn poll_read_more(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let before = self.held.len();
        self.held.resize(before + READ, 0);
        let mut buffer = ReadBuf::new(&mut self.held[before..]);
        let polled = self.beginning.poll_read(&mut self.stream, context, &mut buffer);
        let read = buffer.filled().len();
        self.held.truncate(before + read);
        ready!(polled)?;
        self.judged = if read == 0 { self.held.len() } else { self.rewriter.rewrite(&mut self.held) };
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = &mut *self;
        loop {
            if this.held.is_empty() {
                let before = buffer.filled().len();
                ready!(this.poll_read_through(context, buffer))?;
                if buffer.filled().len() > before || this.held.is_empty() {
                    return Poll::Ready(Ok(()));
                }
            } else if this.judged > 0 {
                let passed = this.judged.min(buffer.remaining());
                buffer.put_slice(&this.held[..passed]);
                this.held.drain(..passed);
                this.judged -= passed;
                if this.held.is_empty() {
                    this.held = Vec::new();
                }
                return Poll::Ready(Ok(()));
            } else {
                ready!(this.poll_read_more(context))?;
            }
        }
    }
}

impl AsyncWrite for Connection {
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

impl Connected for Connection {
    type ConnectInfo = Origin;

    fn connect_info(&self) -> Origin {
        Origin { connection: self.slot.id(), peer: self.slot.peer() }
    }
}

#[cfg(test)]
mod tests;
