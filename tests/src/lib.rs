//! Test support: a node's worth of real parts under the tests' control.
//!
//! | Module | Knows |
//! |---|---|
//! | [`environment`] | where the tests run and what that place offers |
//! | [`context`] | what the tests of one executable share |
//! | [`suite`] | how a table of tests is run and reported |
//! | [`process`] | child processes with their logs, and what procfs says of any process |
//! | [`agent`] | the `kwitness daemon` under test, and clients that watch it |
//! | [`outage`] | a daemon that comes and goes while containers do |
//! | [`events`] | what a watcher has seen, and what a container's life must look like in it |
//! | [`handmade`] | containers without a runtime, by the hundred |
//! | [`cgroup`] | cgroup trees, made and removed in every hierarchy |
//! | [`cri`] | the container runtime's API, as a kubelet calls it |
//! | [`cri_events`] | a client of the CRI's event stream, and the stream's contract |
//! | [`pod`] | what a test wants to run, as CRI requests |
//! | [`kubelet`] | a real kubelet, standalone or joined to a control plane |
//! | [`control_plane`] | a real API server and its etcd |
//! | [`registry`] | container images, as a registry serves them |
//! | [`node`] | a real containerd with images, started and stopped, and pods on it |
//! | [`guard`] | the `kwitness guard` under test, and what it has stopped |
//! | [`hog`] | a process that fills its container's memory, and how that ends |
//! | [`prometheus`] | a real Prometheus with the alert rules |
//! | [`proxy`] | the `kwitness cri-proxy` under test |
//! | [`recording`] | what a daemon recorded, replayed without a kernel |
//! | [`hostile`] | a client that makes a server keep as much as it will |
//! | [`matrix`] | the pods of the verdict matrix, and the verdicts that they must get |
//! | [`resizes`] | a series of resizes, many of them sabotaged, and the verdict that each must get |
//!
//! Nothing here is a substitute for a real part: what cannot run in a place is left out of the table of tests
//! there, by name.

pub mod agent;
pub mod cgroup;
pub mod context;
pub mod control_plane;
pub mod cri;
pub mod cri_events;
pub mod environment;
pub mod events;
pub mod guard;
pub mod handmade;
pub mod hog;
pub mod hostile;
pub mod kubelet;
pub mod matrix;
pub mod node;
pub mod outage;
pub mod pod;
pub mod process;
pub mod prometheus;
pub mod proxy;
pub mod recording;
pub mod registry;
pub mod resizes;
pub mod suite;
