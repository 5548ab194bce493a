//! How many bytes the requests of all active calls may have, half-sent ones included, and how many their answers that clients have not
//! read: two budgets, one rule.
//!
//! ```text
//!  more bytes ──▶ has the connection more than is left for all others? ──┬── no: charged to it until they are gone
//!                                                                        └── yes: RESOURCE_EXHAUSTED, the call ends
//! ```
//!
//! So one connection has half of a budget at most, n that take what they can leave one more than that many each, and whoever needs
//! little is served beside any number of them (Choudhury and Hahne, "Dynamic queue length thresholds for shared-memory packet
//! switches", 1998).
//!
//! Owns the accounts. Never looks into requests or answers.

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

/// Of the requests: 64 of the largest. What a request has decoded takes some four times as much, and
/// 128 KiB for each call ([`crate::wire::RequestCodec`]), until it is refused.
const REQUESTS: usize = 32 << 20;
/// Of the answers: three of the largest, so that one connection may have one.
const ANSWERS: usize = 96 << 20;

/// An account that all connections share. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct ByteBudget(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    of: &'static str,
    bytes: usize,
    account: Mutex<Account>,
}

#[derive(Debug, Default)]
struct Account {
    all: usize,
    /// Without those that have none.
    by_connection: HashMap<ConnectionId, usize>,
    refused: u64,
}

impl ByteBudget {
    /// Of requests.
    pub(super) fn of_requests() -> Self {
        Self::new("requests", REQUESTS)
    }

    /// Of answers.
    pub(super) fn of_answers() -> Self {
        Self::new("unread answers", ANSWERS)
    }

    fn new(of: &'static str, bytes: usize) -> Self {
        Self(Arc::new(Shared { of, bytes, account: Mutex::default() }))
    }

    /// What one call of a connection has of it: nothing yet.
    pub(super) fn open(&self, connection: ConnectionId) -> Charge {
        Charge { budget: self.clone(), connection, bytes: Mutex::default() }
    }

    /// How often there was no room.
    pub(super) fn refused(&self) -> u64 {
        self.lock().refused
    }

    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Account> {
        self.0.account.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Account {
    /// Whether there is room for so much more of a connection, which is charged then.
    fn charge(&mut self, connection: ConnectionId, bytes: usize, budget: usize) -> bool {
        let held = self.by_connection.get(&connection).copied().unwrap_or_default();
        let is_fair = held + bytes <= budget.saturating_sub(self.all + bytes);
        if !is_fair {
            self.refused += 1;
        } else if bytes > 0 {
            self.all += bytes;
            self.by_connection.insert(connection, held + bytes);
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

/// What one call has of a budget, until this is gone.
#[derive(Debug)]
pub(super) struct Charge {
    budget: ByteBudget,
    connection: ConnectionId,
    bytes: Mutex<usize>,
}

impl Charge {
    /// Charges so much more.
    ///
    /// # Errors
    /// There is no room.
    pub(super) fn add(&self, more: usize) -> Result<(), Status> {
        let mut charged = self.lock();
        let Shared { of, bytes, .. } = &*self.budget.0;
        if !self.budget.lock().charge(self.connection, more, *bytes) {
            return Err(Status::resource_exhausted(format!(
                "the {of} of active calls have too many bytes: at most {} MiB, and one connection no more than is left for all \
                 others; end a call or narrow a filter",
                bytes >> 20
            )));
        }
        *charged += more;
        Ok(())
    }

    /// Gives back so much of what was charged.
    pub(super) fn give_back(&self, bytes: usize) {
        let mut charged = self.lock();
        let bytes = bytes.min(*charged);
        *charged -= bytes;
        self.budget.lock().release(self.connection, bytes);
    }

    fn held(&self) -> usize {
        *self.lock()
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.give_back(usize::MAX);
    }
}

/// A request's body, which is charged as it comes.
pub(super) struct Metered {
    body: Body,
    charge: Arc<Charge>,
}

impl Metered {
    /// The body, and what holds its bytes until the call has ended.
    pub(super) fn wrap(body: Body, charge: Charge) -> (Body, Arc<Charge>) {
        let charge = Arc::new(charge);
        (Body::new(Self { body, charge: Arc::clone(&charge) }), charge)
    }
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
            // A stream of requests never keeps more than the largest one.
            self.charge.add(data.len().min(REQUEST_BYTES_MAX.saturating_sub(self.charge.held())))?;
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
    use http_body_util::{BodyExt as _, Full};

    use super::*;

    /// Charges one call after the other of a connection, each with the largest request; gives those for which there was room.
    fn fill(budget: &ByteBudget, connection: u64) -> Vec<Charge> {
        let mut charges = Vec::new();
        loop {
            let charge = budget.open(ConnectionId(connection));
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
        let budget = ByteBudget::of_requests();
        let most = REQUESTS / REQUEST_BYTES_MAX;
        let first = fill(&budget, 1);
        assert_eq!(first.len(), most / 2);
        let second = fill(&budget, 2);
        assert_eq!(second.len(), most / 4);
        // However many there are: small requests are served.
        let _others: Vec<_> = (3..200).map(|connection| fill(&budget, connection)).collect();
        let small = budget.open(ConnectionId(1000));
        small.add(4096).unwrap();
        assert_eq!(budget.refused(), 199);
        drop((first, second));
        assert!(fill(&budget, 2).len() > most / 4);
    }

    #[tokio::test]
    async fn what_ended_leaves_nothing_and_a_stream_costs_no_more_than_its_largest_request() {
        let budget = ByteBudget::of_requests();
        let stream = Body::new(Full::new(Bytes::from(vec![7; 3 * REQUEST_BYTES_MAX])));
        let (mut body, charge) = Metered::wrap(stream, budget.open(ConnectionId(1)));
        assert_eq!(body.frame().await.unwrap().unwrap().into_data().unwrap().len(), 3 * REQUEST_BYTES_MAX);
        assert_eq!(budget.lock().all, REQUEST_BYTES_MAX);
        drop(body);
        assert_eq!(budget.lock().all, REQUEST_BYTES_MAX, "the call has not ended");
        drop(charge);
        let account = budget.lock();
        assert!(account.all == 0 && account.by_connection.is_empty());
    }
}
