//! The user side of kwitness: the daemon (probes, engine, journal, API) and the command line.

pub mod probe;
pub mod proto;
