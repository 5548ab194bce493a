//! How many calls of each kind may be active at a time: the one table of what is long-lived or expensive, and a limit on all others.
//!
//! ```text
//!  request ──▶ the kind by its path ──┬── one is free, or can be made so: served; it is held until the response body is
//!                                     │   gone, and so are the bytes of the request (byte_budget)
//!                                     └── else: RESOURCE_EXHAUSTED, which names the setting
//! ```
//!
//! Where none is free, the client with most calls of that kind gives up its newest one, with the same status, as the client with most
//! connections gives up one of those ([`gives_way`]): a client that begins calls without end ends its own. A client is a process, however
//! many connections it has; of one that the kernel does not name, each connection is a client. A call counts until its client has read
//! the response or has left, so that slow readers are counted, too. Never looks into requests.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::future::{self, Either, Ready};
use http_body::{Body as _, Frame, SizeHint};
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tower::Layer;

use super::byte_budget::{ByteBudget, Charge, Metered};
use crate::config::{Call, MaxCalls};
use kwitness_api::proto;
use kwitness_service::{Client, Origin, Shares, gives_way};

/// A call's name in `Status`, its setting, and its paths; none: every other.
const fn row(call: Call) -> (&'static str, &'static str, &'static [&'static str]) {
    match call {
        Call::Watch => ("watch", "api.max_watchers", &["/kwitness.v1alpha1.Kwitness/Watch"]),
        Call::Verify => ("verify", "api.max_verify_calls", &["/kwitness.v1alpha1.Kwitness/Verify"]),
        Call::List => ("list", "api.max_list_calls", &["/kwitness.v1alpha1.Kwitness/List"]),
        Call::Status => ("status", "api.max_status_calls", &["/kwitness.v1alpha1.Kwitness/Status"]),
        Call::WatchUsage => {
            ("watch_usage", "api.max_usage_watchers", &["/kwitness.v1alpha1.Kwitness/WatchUsage"])
        }
        Call::Report => (
            "report",
            "api.max_report_calls",
            &[
                "/kwitness.v1alpha1.Kwitness/ReportCriRequests",
                "/kwitness.v1alpha1.Kwitness/ReportGuardEvents",
            ],
        ),
        Call::HealthCheck => ("health_check", "api.max_health_checks", &["/grpc.health.v1.Health/Check"]),
        Call::HealthWatch => ("health_watch", "api.max_health_watchers", &["/grpc.health.v1.Health/Watch"]),
        Call::ContainerEvents => (
            "container_events",
            "api.max_cri_subscribers",
            &["/runtime.v1.RuntimeService/GetContainerEvents"],
        ),
        Call::Other => ("other", "api.max_other_calls", &[]),
    }
}

/// Bytes of a response that the HTTP/2 server gets at a time: it keeps what it has got until the client reads it.
const PIECE: usize = 64 << 10;
/// Calls of a kind that a process keeps whatever others of its user do.
const KEPT: usize = 1;

/// The table. Clones share it.
#[derive(Clone, Debug)]
pub struct Admission {
    slots: Arc<[Slot; Call::ALL.len()]>,
    requests: ByteBudget,
    answers: ByteBudget,
}

/// The calls of one kind.
#[derive(Debug)]
struct Slot {
    call: Call,
    max: u32,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    calls: Shares<Client, Arc<Active>>,
    refused: u64,
}

/// An active call: what can be taken away from it.
#[derive(Debug, Default)]
struct Active {
    ended: CancellationToken,
    /// None: the call has not been answered, or has ended.
    answer: Mutex<Option<Answer>>,
}

impl Active {
    /// It is being answered, unless it has been ended meanwhile.
    fn begin(&self, answer: Answer) {
        let mut begun = self.answer();
        if !self.ended.is_cancelled() {
            *begun = Some(answer);
        }
    }

    /// Ends it. What it holds is freed at once, whether or not its client reads.
    fn end(&self) {
        self.ended.cancel();
        let answer = self.answer().take();
        drop(answer);
    }

    fn answer(&self) -> MutexGuard<'_, Option<Answer>> {
        self.answer.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Admission {
    /// No client is admitted yet.
    pub fn new(max: MaxCalls) -> Self {
        let slots = Call::ALL.map(|call| Slot::new(call, max.get(call)));
        Self {
            slots: Arc::new(slots),
            requests: ByteBudget::of_requests(),
            answers: ByteBudget::of_answers(),
        }
    }

    /// As many calls for other clients, who take none of these; the bytes are shared.
    pub fn apart(&self) -> Self {
        let slots = Call::ALL.map(|call| Slot::new(call, self.slots[call as usize].max));
        Self { slots: Arc::new(slots), ..self.clone() }
    }

    /// How many calls of a kind are active.
    pub fn active(&self, call: Call) -> u32 {
        self.slots[call as usize].lock().active()
    }

    /// How many calls of all kinds may be active.
    pub fn max(&self) -> u32 {
        self.slots.iter().map(|slot| slot.max).sum()
    }

    /// The table for `Status`.
    pub fn limits(&self) -> Vec<proto::CallLimit> {
        let limit = |slot: &Slot| {
            let (name, setting, _) = row(slot.call);
            let taken = slot.lock();
            proto::CallLimit {
                name: name.to_owned(),
                setting: setting.to_owned(),
                max: slot.max,
                active: taken.active(),
                refused: taken.refused,
            }
        };
        self.slots.iter().map(limit).collect()
    }

    /// What was refused because requests, or unread answers, of active calls had too many bytes; by the counter's name.
    pub fn bytes_refused(&self) -> [(&'static str, u64); 2] {
        [("request_bytes_refused", self.requests.refused()), ("answer_bytes_refused", self.answers.refused())]
    }

    /// A place for a call, if there is or can be made one.
    fn admit(&self, path: &str, client: Client) -> Result<TakenSlot, Status> {
        let listed = Call::ALL.into_iter().find(|call| row(*call).2.contains(&path));
        let call = listed.unwrap_or(Call::Other);
        let (number, active) = self.slots[call as usize].take(client)?;
        Ok(TakenSlot { slots: Arc::clone(&self.slots), call, client, number, active })
    }
}

impl Slot {
    fn new(call: Call, max: u32) -> Self {
        Self { call, max, taken: Mutex::default() }
    }

    fn take(&self, client: Client) -> Result<(u64, Arc<Active>), Status> {
        let mut taken = self.lock();
        let mut ended = None;
        if taken.active() >= self.max {
            taken.refused += 1;
            let other = gives_way(taken.calls.held(), client, KEPT);
            ended = other.and_then(|other| taken.calls.remove_newest(other));
            if ended.is_none() {
                let (max, (name, setting, _)) = (self.max, row(self.call));
                return Err(Status::resource_exhausted(format!(
                    "{max} {name} calls are active, the maximum, and no client has more than this one; end one or raise {setting}"
                )));
            }
        }
        let active = Arc::<Active>::default();
        let number = taken.calls.add(client, Arc::clone(&active));
        drop(taken);
        if let Some(ended) = ended {
            ended.end();
        }
        Ok((number, active))
    }

    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Taken {
    fn active(&self) -> u32 {
        u32::try_from(self.calls.count()).unwrap_or(u32::MAX)
    }
}

/// A slot, until this is gone.
#[derive(Debug)]
struct TakenSlot {
    slots: Arc<[Slot; Call::ALL.len()]>,
    call: Call,
    client: Client,
    number: u64,
    active: Arc<Active>,
}

impl TakenSlot {
    fn slot(&self) -> &Slot {
        &self.slots[self.call as usize]
    }

    /// Why it was ended.
    fn given_up(&self) -> Status {
        let (max, (name, setting, _)) = (self.slot().max, row(self.call));
        Status::resource_exhausted(format!(
            "another client calls {name}, {max} calls are the maximum, and this client has most of them; end some or raise {setting}"
        ))
    }
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        self.slot().lock().calls.remove(self.client, self.number);
    }
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        Admitted { inner, admission: self.clone() }
    }
}

/// A service behind the table.
#[derive(Clone, Debug)]
pub struct Admitted<S> {
    inner: S,
    admission: Admission,
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Either<Ready<Result<Self::Response, S::Error>>, BoxFuture<Self::Response, S::Error>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let origin = request.extensions().get::<Origin>().copied().unwrap_or_default();
        let slot = match self.admission.admit(request.uri().path(), origin.into()) {
            Ok(slot) => slot,
            Err(status) => return Either::Left(future::ready(Ok(status.into_http()))),
        };
        let (head, body) = request.into_parts();
        let (body, request) = Metered::wrap(body, self.admission.requests.open(origin.connection));
        let unread = self.admission.answers.open(origin.connection);
        let response = self.inner.call(http::Request::from_parts(head, body));
        Either::Right(Box::pin(async move {
            let answered = slot.active.ended.run_until_cancelled(response).await;
            match answered {
                Some(response) => Ok(response?.map(|body| {
                    let answer = Answer { body, rest: Bytes::new(), unread, _request: request };
                    Body::new(Reading::new(slot, answer))
                })),
                None => Ok(slot.given_up().into_http()),
            }
        }))
    }
}

/// A response that is being read, with its request's bytes. What is large in it is handed out in pieces, as the client reads them: what
/// it has not read is charged to its connection.
#[derive(Debug)]
struct Answer {
    body: Body,
    /// Of the frame that is being handed out.
    rest: Bytes,
    unread: Charge,
    _request: Arc<Charge>,
}

impl Answer {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() > PIECE => {
                        if let Err(status) = self.unread.add(data.len()) {
                            // There is no room for what comes next.
                            self.body = Body::empty();
                            return Poll::Ready(Some(trailers(&status)));
                        }
                        self.rest = data;
                    }
                    Ok(data) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Err(frame) => return Poll::Ready(Some(Ok(frame))),
                },
                ended => return Poll::Ready(ended),
            }
        }
        let length = self.rest.len().min(PIECE);
        let piece = self.rest.split_to(length);
        self.unread.give_back(length);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

fn trailers(status: &Status) -> Result<Frame<Bytes>, Status> {
    let mut trailers = http::HeaderMap::new();
    status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))
}

/// A response body that holds a place in the table.
struct Reading {
    slot: TakenSlot,
    ended: Pin<Box<WaitForCancellationFutureOwned>>,
    /// The client was sent why it was ended.
    is_over: bool,
}

impl Reading {
    fn new(slot: TakenSlot, answer: Answer) -> Self {
        let ended = Box::pin(slot.active.ended.clone().cancelled_owned());
        slot.active.begin(answer);
        Self { slot, ended, is_over: false }
    }
}

impl http_body::Body for Reading {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Self { slot, ended, is_over } = &mut *self;
        if *is_over {
            return Poll::Ready(None);
        }
        let is_ended = ended.as_mut().poll(context).is_ready();
        if let Some(answer) = slot.active.answer().as_mut().filter(|_| !is_ended) {
            return answer.poll_frame(context);
        }
        *is_over = true;
        Poll::Ready(Some(trailers(&slot.given_up())))
    }

    fn is_end_stream(&self) -> bool {
        let is_read = |answer: &Answer| answer.rest.is_empty() && answer.body.is_end_stream();
        self.is_over || self.slot.active.answer().as_ref().is_some_and(is_read)
    }

    fn size_hint(&self) -> SizeHint {
        let answer = self.slot.active.answer();
        let whole = answer.as_ref().filter(|answer| answer.rest.is_empty());
        whole.map_or_else(SizeHint::default, |answer| answer.body.size_hint())
    }
}

#[cfg(test)]
mod tests;
