//! Whether an answer is a gRPC server's at all, or that of what stands before it.
//!
//! A proxy, a load balancer or a server of another kind answers with HTTP alone: another status than 200, another content type, or an end
//! without `grpc-status`. gRPC's mapping of such answers (doc/http-grpc-status-mapping.md) makes most of them `INTERNAL` or
//! `UNKNOWN`, which OTLP does not retry: as if the collector had judged the records. It has not, so here they become
//! `UNAVAILABLE`, with the pause of a `Retry-After`. One is about the message: 413, which stays one however often the same is
//! sent.
//!
//! OTLP over HTTP (opentelemetry-proto, docs/specification.md) retries 429, 502, 503 and 504 alone, because there every other answer is the
//! receiver's own.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use http_body::Frame;
use tonic::body::Body;
use tonic::codegen::Bytes;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// A response with a `grpc-status`, whoever answered.
pub fn judged(response: http::Response<Body>) -> http::Response<Body> {
    // A message without a body has its status in the head.
    if response.headers().contains_key(Status::GRPC_STATUS) {
        return response;
    }
    let content = response.headers().get(http::header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_grpc = content.is_some_and(|content| content.starts_with("application/grpc"));
    match response.status() {
        http::StatusCode::OK if is_grpc => {
            response.map(|body| Body::new(Ended { body, has_trailers: false }))
        }
        http::StatusCode::PAYLOAD_TOO_LARGE => {
            Status::invalid_argument("HTTP status 413: the message is too large for a proxy").into_http()
        }
        status => {
            let text =
                format!("HTTP status {} without grpc-status: no gRPC server answered", status.as_u16());
            let details = ErrorDetails::with_retry_info(retry_after(response.headers()));
            Status::with_error_details(Code::Unavailable, text, details).into_http()
        }
    }
}

/// In seconds; a date is not understood, as if there were none.
fn retry_after(headers: &http::HeaderMap) -> Option<Duration> {
    let seconds = headers.get(http::header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

/// A body that ends with a status: what is cut off on its way has none.
struct Ended {
    body: Body,
    has_trailers: bool,
}

impl http_body::Body for Ended {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        if frame.is_none() && !self.has_trailers {
            self.has_trailers = true;
            let mut trailers = http::HeaderMap::new();
            let status = Status::unavailable("the answer was cut off: it has no grpc-status");
            return Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))));
        }
        if let Some(Ok(frame)) = &frame {
            self.has_trailers |= frame.is_trailers();
        }
        Poll::Ready(frame)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::retry::{Next, next};

    /// What follows an answer of this kind.
    fn after(status: u16, headers: &[(&str, &str)]) -> Option<Next> {
        let mut response = http::Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = judged(response.body(Body::empty()).unwrap());
        Status::from_header_map(response.headers()).map(|status| next(&status))
    }

    #[test]
    fn an_answer_of_http_alone_costs_no_record() {
        for status in
            [200, 301, 400, 401, 403, 404, 408, 421, 429, 431, 500, 501, 502, 503, 504, 505, 520, 599]
        {
            assert_eq!(after(status, &[]), Some(Next::Again(Duration::ZERO)), "{status}");
            let html = after(status, &[("content-type", "text/html"), ("retry-after", "7")]);
            assert_eq!(html, Some(Next::Again(Duration::from_secs(7))), "{status}");
        }
        let dated = after(503, &[("retry-after", "Sun, 29 Nov 2026 20:00:00 GMT")]);
        assert_eq!(dated, Some(Next::Again(Duration::ZERO)));
        assert_eq!(after(413, &[]), Some(Next::Refused), "the same message would always be too large");
    }

    #[test]
    fn the_answer_of_a_server_is_left_as_it_is() {
        let grpc = ("content-type", "application/grpc");
        assert_eq!(after(200, &[grpc, ("grpc-status", "3")]), Some(Next::Refused));
        assert_eq!(after(503, &[("grpc-status", "3")]), Some(Next::Refused), "a status of gRPC comes first");
        assert_eq!(after(200, &[grpc]), None, "its status follows the body");
    }
}
