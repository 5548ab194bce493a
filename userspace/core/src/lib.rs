//! The pure domain of kwitness: kernel records decoded, cgroup paths understood, container lifecycles followed,
//! events numbered.
//!
//! Nothing here does I/O, reads a clock or knows a runtime: what happens comes in as an
//! [`Observation`](observation::Observation), what follows from it goes out as [events](event::Event) and
//! [actions](observation::Action). So any recorded stream of observations replays to the same events.

#![forbid(unsafe_code)]

pub mod cgroup_path;
pub mod decode;
pub mod event;
pub mod ids;
mod intern;
pub mod journal;
pub mod lifecycle;
pub mod limit_file;
pub mod limits;
pub mod observation;
pub mod order;
pub mod resize;
