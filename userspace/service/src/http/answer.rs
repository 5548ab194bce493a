//! From a request to its response: the four pages, 405 for other methods, 404 for other paths.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};

use super::{Pages, Probe};
use crate::metrics::Format;

const PLAIN: &str = "text/plain; charset=utf-8";

enum Page {
    Metrics,
    Probe(Probe),
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        Some(match path {
            "/metrics" => Self::Metrics,
            "/livez" => Self::Probe(Probe::Live),
            "/readyz" => Self::Probe(Probe::Ready),
            "/startupz" => Self::Probe(Probe::Startup),
            _ => return None,
        })
    }
}

pub(super) fn answer<B>(request: &Request<B>, pages: &impl Pages) -> Response<Full<Bytes>> {
    let Some(page) = Page::at(request.uri().path()) else {
        return response(
            StatusCode::NOT_FOUND,
            PLAIN,
            "see /metrics, /livez, /readyz, /startupz\n".to_owned(),
        );
    };
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refused =
            response(StatusCode::METHOD_NOT_ALLOWED, PLAIN, "only GET and HEAD are served\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match page {
        Page::Metrics => {
            let accept = request.headers().get_all(ACCEPT).iter();
            let format = Format::accepted(accept.filter_map(|value| value.to_str().ok()));
            response(StatusCode::OK, format.content_type(), pages.metrics().text(format))
        }
        Page::Probe(probe) => match pages.probe(probe) {
            Ok(reason) => response(StatusCode::OK, PLAIN, format!("ok: {reason}\n")),
            Err(reason) => response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("failed: {reason}\n")),
        },
    }
}

fn response(status: StatusCode, content_type: &'static str, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(body));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
