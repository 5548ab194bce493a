//! How many calls of each kind may be active at a time: the one table of what is long-lived or expensive, and a limit on all others.
//!
//! ```text
//!  request ──▶ the kind by its path ──┬── fewer of its connection's than are free: served; the place is held until the
//!                                     │   response body is gone, and so are the bytes of the request (byte_budget)
//!                                     └── else: RESOURCE_EXHAUSTED, which names the setting
//! ```
//!
//! So one connection has half of the calls of a kind at most, further ones half of what is left each, and the last is for one that has
//! none. A call counts until its client has read the response or has left, so that slow readers are counted, too. Never looks into
//! requests.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::future::{Either, Ready, ready};
use http_body::{Frame, SizeHint};
use tonic::Status;
use tonic::body::Body;
use tonic::codegen::{BoxFuture, Service, http};
use tower::Layer;

use super::byte_budget::{ByteBudget, Charge, Metered};
use crate::config::{Call, MaxCalls};
use kwitness_api::proto;
use kwitness_service::ConnectionId;

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
    active: u32,
    /// Without those that have none.
    by_connection: HashMap<ConnectionId, u32>,
    refused: u64,
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
        self.slots[call as usize].lock().active
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
                active: taken.active,
                refused: taken.refused,
            }
        };
        self.slots.iter().map(limit).collect()
    }

    /// What was refused because requests, or unread answers, of active calls had too many bytes; by the counter's name.
    pub fn bytes_refused(&self) -> [(&'static str, u64); 2] {
        [("request_bytes_refused", self.requests.refused()), ("answer_bytes_refused", self.answers.refused())]
    }

    /// A place for a call of a connection, if it may have one more.
    fn admit(&self, path: &str, connection: ConnectionId) -> Result<TakenSlot, Status> {
        let listed = Call::ALL.into_iter().find(|call| row(*call).2.contains(&path));
        let call = listed.unwrap_or(Call::Other);
        self.slots[call as usize].take(connection)?;
        Ok(TakenSlot { slots: Arc::clone(&self.slots), call, connection })
    }
}

impl Slot {
    fn new(call: Call, max: u32) -> Self {
        Self { call, max, taken: Mutex::default() }
    }

    fn take(&self, connection: ConnectionId) -> Result<(), Status> {
        let mut taken = self.lock();
        let free = self.max.saturating_sub(taken.active);
        let held = taken.by_connection.get(&connection).copied().unwrap_or_default();
        if held < free {
            taken.active += 1;
            taken.by_connection.insert(connection, held + 1);
            return Ok(());
        }
        taken.refused += 1;
        let (max, (name, setting, _)) = (self.max, row(self.call));
        Err(Status::resource_exhausted(match free {
            0 => format!("{max} {name} calls are active, the maximum; end one or raise {setting}"),
            _ => format!(
                "this connection has its share of {name} calls: {held} of {max}, and the {free} that are free are for others; end one \
                 or raise {setting}"
            ),
        }))
    }

    fn give_back(&self, connection: ConnectionId) {
        let mut taken = self.lock();
        taken.active -= 1;
        if let Some(held) = taken.by_connection.get_mut(&connection) {
            *held -= 1;
            if *held == 0 {
                taken.by_connection.remove(&connection);
            }
        }
    }

    /// Nothing that could panic runs while it is held.
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A slot, until this is gone.
#[derive(Debug)]
struct TakenSlot {
    slots: Arc<[Slot; Call::ALL.len()]>,
    call: Call,
    connection: ConnectionId,
}

impl Drop for TakenSlot {
    fn drop(&mut self) {
        self.slots[self.call as usize].give_back(self.connection);
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
        let connection = request.extensions().get::<ConnectionId>().copied().unwrap_or_default();
        match self.admission.admit(request.uri().path(), connection) {
            Err(status) => Either::Left(ready(Ok(status.into_http()))),
            Ok(slot) => {
                let (head, body) = request.into_parts();
                let (body, request) = Metered::wrap(body, self.admission.requests.open(connection));
                let unread = self.admission.answers.open(connection);
                let response = self.inner.call(http::Request::from_parts(head, body));
                let held = |body| {
                    let rest = Bytes::new();
                    Held { body, rest, unread, _slot: slot, _request: request }
                };
                Either::Right(Box::pin(async move { Ok(response.await?.map(|body| Body::new(held(body)))) }))
            }
        }
    }
}

/// A response body that holds a place in the table, and its request's bytes. What is large in it is handed out in pieces, as the client
/// reads them: what it has not read is charged to its connection.
struct Held {
    body: Body,
    /// Of the frame that is being handed out.
    rest: Bytes,
    unread: Charge,
    _slot: TakenSlot,
    _request: Arc<Charge>,
}

impl Held {
    /// Ends the response because there is no room for what comes next.
    fn refuse(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.body = Body::empty();
        let mut trailers = http::HeaderMap::new();
        let added = status.add_header(&mut trailers);
        Poll::Ready(Some(added.map(|()| Frame::trailers(trailers))))
    }
}

impl http_body::Body for Held {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.rest.is_empty() {
            match std::task::ready!(Pin::new(&mut self.body).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) if data.len() > PIECE => {
                        if let Err(status) = self.unread.add(data.len()) {
                            return self.refuse(&status);
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

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() { self.body.size_hint() } else { SizeHint::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body::Body as _;
    use http_body_util::BodyExt as _;
    use tonic::Code;
    use tower::{ServiceExt as _, service_fn};

    use super::*;

    async fn call(
        service: &(impl Service<http::Request<Body>, Response = http::Response<Body>, Error = Infallible> + Clone),
        path: &str,
    ) -> http::Response<Body> {
        let request = http::Request::builder().uri(path).body(Body::empty()).unwrap();
        service.clone().oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn each_kind_has_its_own_limit_and_a_refusal_names_the_setting() {
        let admission = Admission::new(MaxCalls::all(1));
        let served = admission.layer(service_fn(async |_: http::Request<Body>| {
            let body = http_body_util::Full::new(Bytes::from_static(b"response"));
            Ok::<_, Infallible>(http::Response::new(Body::new(body)))
        }));
        let mut held = Vec::new();
        for kind in Call::ALL {
            let (name, setting, paths) = row(kind);
            let path = paths.last().copied();
            let path = path.unwrap_or("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo");
            held.push(call(&served, path).await);
            let refused = call(&served, path).await;
            let status = Status::from_header_map(refused.headers()).unwrap();
            assert_eq!(status.code(), Code::ResourceExhausted);
            assert!(status.message().contains(setting), "{status}");
            let row = &admission.limits()[kind as usize];
            assert_eq!((&*row.name, row.max, row.active, row.refused), (name, 1, 1, 1));
        }
        // As long as the response has not been read, it counts.
        held.clear();
        assert!(Call::ALL.iter().all(|kind| admission.active(*kind) == 0));
        let _other = call(&served, "/x").await;
        let refused = call(&served, "/y").await;
        assert!(Status::from_header_map(refused.headers()).is_some(), "all others together");
    }

    #[test]
    fn one_connection_has_half_of_the_calls_of_a_kind_and_leaves_others_theirs() {
        const MAX: u32 = 64;
        let admission = Admission::new(MaxCalls::all(MAX));
        let watch = row(Call::Watch).2[0];
        let fill = |connection| -> (Vec<TakenSlot>, Status) {
            let mut held = Vec::new();
            loop {
                match admission.admit(watch, ConnectionId(connection)) {
                    Ok(place) => held.push(place),
                    Err(refused) => return (held, refused),
                }
            }
        };
        let (first, refused) = fill(1);
        assert_eq!(first.len() as u32, MAX / 2);
        assert_eq!(refused.code(), Code::ResourceExhausted);
        assert!(refused.message().contains("this connection has its share"), "{refused}");
        assert!(refused.message().contains("api.max_watchers"), "{refused}");
        let (second, _) = fill(2);
        assert_eq!(second.len() as u32, MAX / 4);
        assert!(admission.admit(watch, ConnectionId(3)).is_ok(), "whoever needs one has it");
        let status = row(Call::Status).2[0];
        assert!(admission.admit(status, ConnectionId(1)).is_ok(), "another kind");
        let others: Vec<_> = (3..100).map(fill).collect();
        assert_eq!(admission.active(Call::Watch), MAX);
        let full = &others.last().unwrap().1;
        assert!(full.message().starts_with("64 watch calls are active, the maximum"), "{full}");
        drop((second, others));
        assert_eq!(fill(2).0.len() as u32, MAX / 4, "what has ended is given back");
        drop(first);
        let slot = &admission.slots[Call::Watch as usize];
        assert!(slot.lock().by_connection.is_empty() && slot.lock().active == 0);
    }

    #[tokio::test]
    async fn an_answer_comes_in_pieces_and_unread_ones_are_bounded_by_connection() {
        const LENGTH: usize = 30 << 20;
        let admission = Admission::new(MaxCalls::all(1000));
        let served = admission.layer(service_fn(async |_: http::Request<Body>| {
            let body = http_body_util::Full::new(Bytes::from(vec![7; LENGTH]));
            Ok::<_, Infallible>(http::Response::new(Body::new(body)))
        }));
        let begin = async |connection| {
            let mut request = http::Request::new(Body::empty());
            request.extensions_mut().insert(ConnectionId(connection));
            let mut body = served.clone().oneshot(request).await.unwrap().into_body();
            let first = body.frame().await.unwrap().unwrap();
            (first, body)
        };
        let (first, one) = begin(1).await;
        assert_eq!(first.into_data().unwrap().len(), PIECE);
        let (refused, ended) = begin(1).await;
        let refused = Status::from_header_map(refused.trailers_ref().unwrap()).unwrap();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        assert!(ended.is_end_stream());
        let (_, other) = begin(2).await;
        assert_eq!(admission.bytes_refused(), [("request_bytes_refused", 0), ("answer_bytes_refused", 1)]);
        let rest = one.collect().await.unwrap().to_bytes();
        assert!(rest.len() == LENGTH - PIECE && rest.iter().all(|byte| *byte == 7));
        drop(other);
        assert!(begin(1).await.0.is_data(), "what was read is given back");
    }
}
