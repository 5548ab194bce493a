//! The user side of kwitness: the daemon (probes, engine, journal, API) and the command line.

pub mod api;
pub mod cgroupfs;
pub mod cli;
pub mod clock;
pub mod config;
pub mod cri;
pub mod cri_events;
pub mod cri_proxy;
pub mod daemon;
pub mod engine;
pub mod hub;
mod memory;
pub mod probe;
pub mod proto;
pub mod verify;
