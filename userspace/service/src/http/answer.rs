//! From a request to its response: the four pages, 405 for other methods, 404 for other paths.
//!
//! Owns the text of the last scrape, which those that come right after it get as well: its cost does not grow with their number.

use std::cell::RefCell;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use hyper::{Method, Request, Response, StatusCode};

use super::{Pages, Probe};
use crate::metrics::Format;

const PLAIN: &str = "text/plain; charset=utf-8";

/// How old the text of a scrape may be: far less than any interval of scrapes.
const SCRAPE_AGE: Duration = Duration::from_secs(1);

/// The last text in each format, and when it was made.
#[derive(Default)]
pub(super) struct Scrapes(RefCell<Vec<(Format, Instant, Bytes)>>);

impl Scrapes {
    fn text(&self, format: Format, pages: &impl Pages) -> Bytes {
        let mut kept = self.0.borrow_mut();
        kept.retain(|(_, made, _)| made.elapsed() < SCRAPE_AGE);
        if let Some((.., text)) = kept.iter().find(|(of, ..)| *of == format) {
            return text.clone();
        }
        let text = Bytes::from(pages.metrics().text(format));
        kept.push((format, Instant::now(), text.clone()));
        text
    }
}

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

pub(super) fn answer<B>(
    request: &Request<B>,
    pages: &impl Pages,
    scrapes: &Scrapes,
) -> Response<Full<Bytes>> {
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
            response(StatusCode::OK, format.content_type(), scrapes.text(format, pages))
        }
        Page::Probe(probe) => match pages.probe(probe) {
            Ok(reason) => response(StatusCode::OK, PLAIN, format!("ok: {reason}\n")),
            Err(reason) => response(StatusCode::SERVICE_UNAVAILABLE, PLAIN, format!("failed: {reason}\n")),
        },
    }
}

fn response(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
