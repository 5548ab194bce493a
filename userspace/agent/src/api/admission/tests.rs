//! Who is served, who is refused, and who gives a call up.

use std::convert::Infallible;

use http_body_util::BodyExt as _;
use kwitness_service::{ConnectionId, Peer};
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

const fn origin(process: i32, connection: u64) -> Origin {
    let peer = Peer { user: Some(0), process: Some(process) };
    Origin { connection: ConnectionId(connection), peer }
}

#[test]
fn a_client_that_takes_all_calls_keeps_no_other_out_however_many_connections_it_has() {
    const MAX: u32 = 64;
    let admission = Admission::new(MaxCalls::all(MAX));
    let watch = row(Call::Watch).2[0];
    let begin = |process, connection| admission.admit(watch, Client::from(origin(process, connection)));
    let is_ended = |slot: &TakenSlot| slot.active.ended.is_cancelled();
    let honest = begin(1, 1).unwrap();
    let many: Vec<_> = (2..=MAX).map(|connection| begin(2, connection.into()).unwrap()).collect();
    let refused = begin(2, 1000).unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "its own is one too many");
    assert!(refused.message().starts_with("64 watch calls are active, the maximum"), "{refused}");
    assert!(refused.message().contains("api.max_watchers"), "{refused}");
    let other = begin(3, 1001).unwrap();
    let (newest, rest) = many.split_last().unwrap();
    assert!(is_ended(newest) && !rest.iter().chain([&honest, &other]).any(is_ended));
    assert!(newest.given_up().message().contains("api.max_watchers"));
    assert_eq!((admission.active(Call::Watch), admission.limits()[0].refused), (MAX, 2));
    let status = row(Call::Status).2[0];
    assert!(admission.admit(status, origin(2, 2).into()).is_ok(), "another kind");
    drop((honest, many, other));
    let slot = &admission.slots[Call::Watch as usize];
    assert_eq!(slot.lock().calls.held().count(), 0);
    assert_eq!(slot.lock().active(), 0);
    // Of whom nothing is known but the connection.
    let unknown =
        |connection| Client::from(Origin { connection: ConnectionId(connection), ..Origin::default() });
    let many: Vec<_> = (0..MAX).map(|_| admission.admit(watch, unknown(1)).unwrap()).collect();
    assert!(admission.admit(watch, unknown(1)).is_err() && admission.admit(watch, unknown(2)).is_ok());
    assert!(is_ended(many.last().unwrap()));
}

/// What never comes to an end.
struct Endless {
    _held: Arc<()>,
}

impl http_body::Body for Endless {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        Poll::Pending
    }
}

#[tokio::test]
async fn a_call_that_is_given_up_says_so_and_holds_nothing_though_its_client_does_not_read() {
    let admission = Admission::new(MaxCalls::all(2));
    let held = Arc::new(());
    let body = Arc::clone(&held);
    let streams = admission.layer(service_fn(move |_: http::Request<Body>| {
        let response = http::Response::new(Body::new(Endless { _held: Arc::clone(&body) }));
        std::future::ready(Ok::<_, Infallible>(response))
    }));
    let never = admission.layer(service_fn(|_: http::Request<Body>| {
        std::future::pending::<Result<http::Response<Body>, Infallible>>()
    }));
    let request = |process| {
        let mut request = http::Request::new(Body::empty());
        request.extensions_mut().insert(origin(process, 1));
        request
    };
    let call = async |process| streams.clone().oneshot(request(process)).await.unwrap().into_body();
    let first = call(1).await;
    let mut second = call(1).await;
    assert_eq!(Arc::strong_count(&held), 4);
    let other = call(2).await;
    assert_eq!(Arc::strong_count(&held), 4, "what the second held is gone");
    let last = second.frame().await.unwrap().unwrap();
    let status = Status::from_header_map(last.trailers_ref().unwrap()).unwrap();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.message().contains("another client calls other"), "{status}");
    assert!(second.frame().await.is_none() && second.is_end_stream());
    drop((first, other));
    // Before it is answered, too.
    let waiting: Vec<_> = (0..2).map(|_| tokio::spawn(never.clone().oneshot(request(1)))).collect();
    while admission.active(Call::Other) < 2 {
        tokio::task::yield_now().await;
    }
    let _other = call(2).await;
    let [_, newest] = <[_; 2]>::try_from(waiting).expect("two");
    let refused: http::Response<Body> = newest.await.unwrap().unwrap();
    assert_eq!(Status::from_header_map(refused.headers()).unwrap().code(), Code::ResourceExhausted);
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
        let origin = Origin { connection: ConnectionId(connection), ..Origin::default() };
        request.extensions_mut().insert(origin);
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
