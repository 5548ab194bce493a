//! How many bytes the requests of all active calls may have, half-sent ones included.
//!
//! ```text
//!  a piece of a request ──▶ has its connection more than is left for all others? ──┬── no: charged to it until the call has ended
//!                                                                                  └── yes: RESOURCE_EXHAUSTED, the call ends
//! ```
//!
//! So one connection has half of the budget at most, n that take what they can leave one more than that many each, and whoever sends
//! little is served beside any number of them (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
//! switches", 1998).
//!
//! Owns the account. Never looks into requests.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use kwitness_service::ConnectionId;
use tonic::Status;
use tonic::body::Body;

use super::REQUEST_BYTES_MAX;

/// Of all connections: 64 of the largest requests. What a request has decoded takes up to some ten times as much, until it is refused.
const BUDGET: usize = 32 << 20;

/// The account. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct RequestBytes(Arc<Mutex<Account>>);

#[derive(Debug, Default)]
struct Account {
    all: usize,
    /// Without those that have none.
    by_connection: HashMap<ConnectionId, usize>,
    refused: u64,
}

impl RequestBytes {
    /// A request's body that is charged to its connection as it comes, and what holds the charge.
    pub(super) fn meter(&self, connection: ConnectionId, body: Body) -> (Body, Arc<Charge>) {
        let charge = Arc::new(Charge { account: self.clone(), connection, bytes: Mutex::default() });
        (Body::new(Metered { body, charge: charge.clone() }), charge)
    }

    /// Requests that were refused.
    pub(super) fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Account> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// Whether there is room for so much more of a connection, which is charged then.
    fn charge(&mut self, connection: ConnectionId, bytes: usize) -> bool {
        let held = self.by_connection.get(&connection).copied().unwrap_or_default();
        let is_fair = held + bytes <= BUDGET.saturating_sub(self.all + bytes);
        if is_fair {
            self.all += bytes;
            self.by_connection.insert(connection, held + bytes);
        } else {
            self.refused += 1;
        }
        is_fair
    }

    fn release(&mut self, connection: ConnectionId, bytes: usize) {
        self.all -= bytes;
        if let Some(held) = self.by_connection.get_mut(&connection) {
            *held -= bytes;
            if *held == 0 {
                self.by_connection.remove(&connection);
            }
        }
    }
}

/// What one call has of the budget, until this is gone.
#[derive(Debug)]
pub(super) struct Charge {
    account: RequestBytes,
    connection: ConnectionId,
    bytes: Mutex<usize>,
}

impl Charge {
    fn add(&self, bytes: usize) -> Result<(), Status> {
        let mut charged = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        // A stream of requests never keeps more than the largest one.
        let more = bytes.min(REQUEST_BYTES_MAX.saturating_sub(*charged));
        if !self.account.lock().charge(self.connection, more) {
            return Err(Status::resource_exhausted(format!(
                "the requests of active calls have too many bytes: at most {} MiB, and one connection no more than is left \
                 for all others; end a call or narrow a filter",
                BUDGET >> 20
            )));
        }
        *charged += more;
        Ok(())
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        let charged = *self.bytes.get_mut().unwrap_or_else(PoisonError::into_inner);
        self.account.lock().release(self.connection, charged);
    }
}

struct Metered {
    body: Body,
    charge: Arc<Charge>,
}

impl http_body::Body for Metered {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if let Some(data) = frame.as_ref().and_then(|frame| frame.as_ref().ok()?.data_ref()) {
            self.charge.add(data.len())?;
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Charges one call after the other of a connection, each with the largest request; gives those for which there was room.
    fn fill(all: &RequestBytes, connection: u64) -> Vec<Arc<Charge>> {
        let mut charges = Vec::new();
        loop {
            let (_, charge) = all.meter(ConnectionId(connection), Body::empty());
            match charge.add(REQUEST_BYTES_MAX) {
                Ok(()) => charges.push(charge),
                Err(status) => {
                    assert_eq!(status.code(), tonic::Code::ResourceExhausted);
                    return charges;
                }
            }
        }
    }

    #[test]
    fn one_connection_has_half_and_each_further_one_its_share_of_the_rest() {
        let all = RequestBytes::default();
        let most = BUDGET / REQUEST_BYTES_MAX;
        let first = fill(&all, 1);
        assert_eq!(first.len(), most / 2);
        let second = fill(&all, 2);
        assert_eq!(second.len(), most / 4);
        // However many there are: small requests are served.
        let _others: Vec<_> = (3..200).map(|connection| fill(&all, connection)).collect();
        let (_, small) = all.meter(ConnectionId(1000), Body::empty());
        small.add(4096).unwrap();
        assert_eq!(all.refused(), 199);
        drop((first, second));
        assert!(fill(&all, 2).len() > most / 4);
    }

    #[test]
    fn what_ended_leaves_nothing_and_a_stream_costs_no_more_than_its_largest_request() {
        let all = RequestBytes::default();
        let unread = Body::new(http_body_util::Full::new(Bytes::from_static(b"a request")));
        let (body, charge) = all.meter(ConnectionId(1), unread);
        for _ in 0..1000 {
            charge.add(REQUEST_BYTES_MAX / 10).unwrap();
        }
        assert_eq!(all.lock().all, REQUEST_BYTES_MAX);
        drop(charge);
        assert_eq!(all.lock().all, REQUEST_BYTES_MAX, "the body may still come");
        drop(body);
        let account = all.lock();
        assert!(account.all == 0 && account.by_connection.is_empty());
    }
}
