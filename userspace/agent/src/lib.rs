//! The node agent: probes, engine, journal, and the API server.
//!
//! `daemon` puts the parts together; each part's module says what it owns.

pub mod api;
pub mod cgroupfs;
pub mod clock;
pub mod config;
pub mod cri;
pub mod cri_events;
pub mod daemon;
pub mod engine;
pub mod hub;
#[cfg(feature = "kubernetes")]
pub mod kubernetes;
#[cfg(not(feature = "kubernetes"))]
#[path = "kubernetes_absent.rs"]
pub mod kubernetes;
pub mod metrics;
pub mod namespaces;
mod oldest_first;
pub mod pressure;
pub mod privileges;
#[expect(unsafe_code, reason = "maps that the kernel shares, and descriptors that aya hands out")]
pub mod probe;
pub mod reload;
pub mod reported;
pub mod usage;
pub mod verify;
pub mod wire;
