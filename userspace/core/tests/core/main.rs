//! Tests of the core through its two doors: bytes and observations in, events, actions and state out.

mod cgroup_path;
mod common;
mod deaths;
mod decode;
mod guarded;
mod hostile_names;
mod journal;
mod lifecycle;
mod limits;
mod memory;
mod model;
mod pods;
mod pressure;
mod reorder;
mod repair;
mod replay;
mod requests;
mod runtime_facts;
mod start_up;
mod verdicts;
