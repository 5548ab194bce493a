//! The API: `kwitness.v1alpha1`, the CRI's event stream, health and reflection over one Unix socket; and the first of them on a
//! loopback port, if one is configured.
//!
//! Owns the socket, the limits on calls, and the answers' shape. Knows events and containers only as the hub and the
//! engine give them; never changes anything.

mod admission;
mod byte_budget;
mod cri_reports;
mod forwarded;
mod guard_reports;
mod list;
mod service;
mod wanted;
#[expect(
    clippy::allow_attributes,
    clippy::default_constructed_unit_structs,
    reason = "generated; the protobuf files document it"
)]
mod server {
    include!(concat!(env!("OUT_DIR"), "/kwitness.v1alpha1.Kwitness.rs"));
}
#[cfg(test)]
mod tests;

use std::time::Duration;

use anyhow::Context as _;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

pub use admission::Admission;
pub use forwarded::Loopback;
pub use list::{ListCodec, Listed};
pub use service::{DaemonInfo, Service};

use crate::cri_events::{RuntimeEvents, Unserved};
use kwitness_api::SERVICE;
use kwitness_api::proto;
use kwitness_server::KwitnessServer;
use kwitness_service::Listener;
pub use server::kwitness_server;

/// The most bytes in a request. The largest that makes sense is a filter with all its lists full, some 400 KiB.
const REQUEST_BYTES_MAX: usize = 512 << 10;
/// Bytes of one request that may wait to be looked at, as in HTTP/2 without a word about it (RFC 9113, 6.9.2).
const WINDOW: u32 = 65_535;
/// What h2 takes a small frame of data to cost (`DEFAULT_DATA_FRAME_OVERHEAD_THRESHOLD`). It ends a connection with
/// `ENHANCE_YOUR_CALM` once those that wait to be looked at cost half of the connection's window.
const FRAME_COST: u32 = 256;
/// How long clients get to read what they were sent, once the daemon stops: half of what [`kwitness_service::Signals`] allow for
/// all of it. The other half is for the kernel, which detaches the probes.
const GRACE: Duration = Duration::from_secs(1);

/// The health service's answer: whether the daemon serves.
#[derive(Clone, Debug)]
pub struct Health(HealthReporter);

impl Health {
    /// From now on: yes.
    pub async fn ready(&self) {
        self.set(ServingStatus::Serving).await;
    }

    async fn set(&self, status: ServingStatus) {
        for service in ["", SERVICE] {
            self.0.set_service_status(service, status).await;
        }
    }
}

/// Bytes of all requests of a connection that may wait to be looked at: room for a small frame of each call that it may have.
fn connection_window(calls: u32) -> u32 {
    WINDOW.max(calls.saturating_mul(2 * FRAME_COST))
}

/// Serves until stopped, and not much longer.
///
/// # Errors
/// The socket cannot be served.
pub async fn serve(
    listener: Listener,
    loopback: Option<Loopback>,
    service: Service,
    runtime_events: RuntimeEvents,
    stop: CancellationToken,
) -> anyhow::Result<(Health, impl Future<Output = anyhow::Result<()>>)> {
    let (reporter, health_service) = tonic_health::server::health_reporter();
    let health = Health(reporter);
    health.set(ServingStatus::NotServing).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()
        .context("cannot serve reflection")?
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    // grpcio's reflection client and older grpcurl know only this one.
    let reflection_v1alpha = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()
        .context("cannot serve reflection")?
        .max_decoding_message_size(REQUEST_BYTES_MAX);
    let (forwarded, until) = (service.clone(), stop.clone());
    let forwarding = async move {
        match loopback {
            Some(loopback) => loopback.serve(forwarded, until).await,
            None => Ok(()),
        }
    };
    let server = Server::builder()
        .initial_connection_window_size(connection_window(service.admission().max()))
        .initial_stream_window_size(WINDOW)
        // An answer counts here until it is written, a few kilobytes each. Of more calls at a time all would be refused.
        .max_concurrent_streams(service.admission().max())
        .layer(service.admission().clone())
        .add_service(KwitnessServer::new(service).max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(runtime_events)
        .add_service(Unserved)
        .add_service(health_service.max_decoding_message_size(REQUEST_BYTES_MAX))
        .add_service(reflection)
        .add_service(reflection_v1alpha);
    let closing = health.clone();
    let on_socket = async move {
        let server =
            server.serve_with_incoming_shutdown(listener.into_stream(), stop.clone().cancelled_owned());
        tokio::pin!(server);
        let served = tokio::select! {
            served = &mut server => served,
            () = stop.cancelled() => {
                closing.set(ServingStatus::NotServing).await;
                match tokio::time::timeout(GRACE, server).await {
                    Ok(served) => served,
                    Err(_) => {
                        tracing::warn!("some clients did not read what they were sent in time");
                        Ok(())
                    }
                }
            }
        };
        served.context("cannot serve the API")
    };
    let serving = async move { tokio::try_join!(on_socket, forwarding).map(drop) };
    Ok((health, serving))
}
