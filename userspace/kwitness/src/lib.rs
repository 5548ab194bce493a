//! The user side of kwitness: the daemon (probes, engine, journal, API) and the command line.

pub mod clock;
pub mod config;
pub mod hub;
pub mod probe;
pub mod proto;
