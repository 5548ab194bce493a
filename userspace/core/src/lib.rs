//! The pure domain of kwitness: kernel records decoded, cgroup paths understood, container lifecycles and limits
//! followed, verdicts judged, memory pressure noticed, events numbered.
//!
//! Nothing here does I/O, reads a clock or knows a runtime: what happens comes in as an
//! [`Observation`](model::Observation), what follows from it goes out as [events](model::Event) and
//! [actions](model::Action). So any recorded stream of observations replays to the same events.

#![forbid(unsafe_code)]

pub mod cgroup_path;
pub mod decode;

mod intern;
pub mod journal;
pub mod lifecycle;

pub mod limits;
pub mod model;
pub mod node;
mod overflow;
mod pairs;
pub mod pressure;
pub mod reorder;
pub mod seam;
pub mod shares;
pub mod units;
pub mod usage;
pub mod verdicts;
