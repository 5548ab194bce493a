//! The OpenTelemetry Collector: the connection, and delivering one message until there is an answer.
//!
//! ```text
//!  request ──▶ Export ──┬─ success ──▶ Accepted       (some records may have been rejected)
//!     ▲                 ├─ never ────▶ Refused
//!     └── pause ◀───────┴─ again
//! ```
//!
//! Connects when there is something to send, and again after a failure. Never gives up on what the collector has not judged.

use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use kwitness_api::text::escape;
use kwitness_api::{causes, innermost};
use kwitness_service::{ConfigurationError, configuration};
use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use percent_encoding::percent_decode_str;
use tonic::body::Body;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Request, Status};
use tower::ServiceExt;
use tower::util::MapResponse;

use crate::counters::Shared;
use crate::reply;
use crate::retry::{self, Next};

/// The longest that a collector takes to accept a connection, or to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// The most characters of a status that are logged.
const MESSAGE_MAX: usize = 256;

/// Where the collector is.
#[derive(Clone, Debug)]
pub struct CollectorOptions {
    /// `http://HOST:4317` or `https://HOST:4317`.
    pub endpoint: String,
    /// Certificates in PEM that vouch for an `https` endpoint; without, the system's.
    pub ca: Option<PathBuf>,
    /// What every call carries.
    pub headers: Vec<Header>,
}

/// A header of a call: `NAME=VALUE`, where the value may be percent-encoded, as in `OTEL_EXPORTER_OTLP_HEADERS`.
#[derive(Clone, PartialEq, Eq)]
pub struct Header {
    name: MetadataKey<Ascii>,
    value: MetadataValue<Ascii>,
}

impl std::fmt::Debug for Header {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Values are credentials.
        write!(f, "{}=…", self.name)
    }
}

impl FromStr for Header {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
        let name = name.trim().to_lowercase().parse().map_err(|_| "not the name of a header".to_owned())?;
        let value = percent_decode_str(value.trim()).decode_utf8_lossy();
        let value = value.parse().map_err(|_| "not the value of a header".to_owned())?;
        Ok(Self { name, value })
    }
}

/// What became of a message.
#[derive(Debug)]
pub enum Delivered {
    /// The collector has it.
    Accepted {
        /// But for so many of its records.
        rejected: u64,
        /// The collector's reason.
        reason: String,
    },
    /// The collector will never take it.
    Refused(String),
}

/// A connection on which every answer has a status of gRPC.
pub type Connection = MapResponse<Channel, fn(http::Response<Body>) -> http::Response<Body>>;

/// A connection to a collector.
#[derive(Clone, Debug)]
pub struct Collector {
    connection: Connection,
    headers: MetadataMap,
    shared: Arc<Shared>,
}

impl Collector {
    /// It connects with the first message.
    ///
    /// # Errors
    /// The options make no sense, or the certificates cannot be read.
    pub fn new(options: &CollectorOptions, shared: Arc<Shared>) -> Result<Self, ConfigurationError> {
        let CollectorOptions { endpoint, ca, headers } = options;
        let is_tls = match endpoint.split_once("://") {
            Some(("https", _)) => true,
            Some(("http", _)) => false,
            _ => {
                return Err(invalid(format!(
                    "the endpoint {endpoint:?} begins with neither http:// nor https://"
                )));
            }
        };
        let mut channel = Endpoint::from_shared(endpoint.clone())
            .and_then(|endpoint| endpoint.user_agent(concat!("kwitness/", env!("CARGO_PKG_VERSION"))))
            .map_err(|error| {
                invalid(format!(
                    "{endpoint:?} is no endpoint: {}; expected http://HOST:4317",
                    innermost(&error)
                ))
            })?
            .connect_timeout(CONNECT_LIMIT)
            .timeout(ANSWER_LIMIT)
            .keep_alive_while_idle(true)
            .http2_keep_alive_interval(ANSWER_LIMIT);
        if is_tls {
            let mut tls = ClientTlsConfig::new();
            tls = match ca {
                Some(path) => {
                    let pem = configuration::read("the certificates", path, "--otlp-ca")?;
                    tls.ca_certificate(Certificate::from_pem(pem))
                }
                None => tls.with_native_roots(),
            };
            channel = channel.tls_config(tls).map_err(|error| {
                invalid(format!("cannot use the certificates for the collector: {}", innermost(&error)))
            })?;
        } else if let Some(path) = ca {
            let path = path.display();
            return Err(invalid(format!("{path} is for an https:// endpoint; {endpoint} has no TLS")));
        }
        let mut map = MetadataMap::new();
        for Header { name, value } in headers {
            map.append(name.clone(), value.clone());
        }
        let judged: fn(http::Response<Body>) -> http::Response<Body> = reply::judged;
        let connection = ServiceExt::<http::Request<Body>>::map_response(channel.connect_lazy(), judged);
        Ok(Self { connection, headers: map, shared })
    }

    /// A call with the headers that every call has, and what it is sent on.
    pub fn call<T>(&self, message: T) -> (Connection, Request<T>) {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.headers.clone();
        (self.connection.clone(), request)
    }

    /// Sends a message until there is an answer.
    pub async fn deliver(self, message: ExportLogsServiceRequest) -> Delivered {
        let mut failures: u32 = 0;
        loop {
            let status = match self.send(&message).await {
                Ok(delivered) => {
                    if failures > 0 {
                        tracing::info!(failures, "the collector answers again");
                    }
                    return delivered;
                }
                Err(status) => status,
            };
            failures = failures.saturating_add(1);
            self.shared.counters.requests_failed.count();
            self.shared.collector_up.set(0);
            let reason = words(&status);
            let asked = match retry::next(&status) {
                Next::Again(asked) => asked,
                Next::Refused => return Delivered::Refused(reason),
            };
            // Without randomness all wait for the whole pause.
            let pause = retry::pause(failures, asked, getrandom::u32().unwrap_or(u32::MAX));
            if failures == 1 {
                tracing::warn!(reason, "the collector does not take records: trying again");
            } else {
                tracing::debug!(reason, failures, ?pause, "the collector does not take records");
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn send(&self, message: &ExportLogsServiceRequest) -> Result<Delivered, Status> {
        let (connection, request) = self.call(message.clone());
        let answer = LogsServiceClient::new(connection).export(request).await?.into_inner();
        self.shared.counters.requests_accepted.count();
        self.shared.collector_up.set(1);
        let partial = answer.partial_success.unwrap_or_default();
        let rejected = u64::try_from(partial.rejected_log_records).unwrap_or(0);
        Ok(Delivered::Accepted { rejected, reason: short(&partial.error_message) })
    }
}

fn invalid(why: String) -> ConfigurationError {
    ConfigurationError::Invalid(why)
}

/// What went wrong, in a line.
pub fn words(status: &Status) -> String {
    let cause = causes(status).skip(1).last();
    let text = cause.map_or_else(|| status.message().to_owned(), ToString::to_string);
    format!("{}: {}", status.code().description(), short(&text))
}

/// Foreign text for the log.
pub fn short(text: &str) -> String {
    escape(text).chars().take(MESSAGE_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn new(endpoint: &str, ca: Option<&str>) -> Result<(), String> {
        let options = CollectorOptions {
            endpoint: endpoint.to_owned(),
            ca: ca.map(PathBuf::from),
            headers: Vec::new(),
        };
        Collector::new(&options, Arc::default()).map(drop).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn an_endpoint_that_makes_no_sense_is_named() {
        new("http://127.0.0.1:4317", None).unwrap();
        for (endpoint, ca, expected) in [
            ("collector:4317", None, "neither http:// nor https://"),
            ("http://", None, "is no endpoint"),
            (
                "https://collector:4317",
                Some("/does/not/exist.pem"),
                "cannot read the certificates /does/not/exist.pem: ",
            ),
            ("https://collector:4317", Some("/dev/zero"), "/dev/zero: not a regular file; name another"),
            ("http://collector:4317", Some("/etc/ca.pem"), "has no TLS"),
        ] {
            let error = new(endpoint, ca).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn a_header_hides_its_value() {
        let header: Header = "Authorization=Bearer secret=".parse().unwrap();
        assert_eq!(format!("{header:?}"), "authorization=…");
        assert_eq!(header.value, "Bearer secret=");
        assert_eq!("a=Bearer%20x".parse::<Header>().unwrap().value, "Bearer x");
        for wrong in ["authorization", "a b=c", "=x", "a=\n\u{7}x"] {
            assert!(wrong.parse::<Header>().is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn a_foreign_message_is_bounded_and_escaped() {
        let status = Status::invalid_argument(format!("\x1b[31m{}", "x".repeat(10_000)));
        let words = words(&status);
        assert!(
            words.starts_with("Client specified an invalid argument: \\x1b[31mx") && words.len() < 300,
            "{words}"
        );
    }
}
