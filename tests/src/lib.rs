//! Test support: a node's worth of real parts under the tests' control.
//!
//! Nothing here is a substitute for a real part: what cannot run in a place is left out of the table of tests
//! there, by name.
#![expect(missing_docs, reason = "read beside its source only: a comment says what the name does not")]

pub mod agent;
pub mod boost;
pub mod cgroup;
pub mod chart;
pub mod claims;
pub mod cluster_node;
mod collector;
pub mod container_node;
pub mod context;
pub mod control_plane;
pub mod cri;
pub mod cri_events;
pub mod environment;
pub mod events;
pub mod fit;
pub mod guard;
pub mod guarded;
pub mod handmade;
pub mod hints;
pub mod hog;
pub mod hostile;
pub mod kubelet;
pub mod late_runtime;
pub mod limit;
pub mod matrix;
pub mod naming_runtime;
pub mod node;
pub mod oom;
pub mod otel;
pub mod out;
pub mod outage;
pub mod pod;
pub mod prelude;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod pty;
pub mod recording;
pub mod registry;
pub mod resizes;
pub mod scrape;
pub mod standby;
pub mod suite;
pub mod survival;
