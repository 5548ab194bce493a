//! A container as it is now, for whoever asks.

use std::sync::Arc;

use crate::event::{ExitStatus, Process, Subject};
use crate::ids::KernelTime;

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// The cgroup exists; the container's own program does not run yet.
    Created,
    /// It runs.
    Running,
    /// No process is left.
    Stopped,
}

/// A container as it is now; the same shape as `kwitness.v1alpha1.ContainerState`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerState {
    /// Which.
    pub subject: Arc<Subject>,
    /// Where it is in its life.
    pub state: State,
    /// When its cgroup was made, if that was seen.
    pub created_at: Option<KernelTime>,
    /// When its own first program was executed, if that was seen.
    pub started_at: Option<KernelTime>,
    /// When its last process went, if that was seen.
    pub stopped_at: Option<KernelTime>,
    /// The process of its own first program, if known.
    pub main: Option<Process>,
    /// That program, if known.
    pub program: Option<Arc<str>>,
    /// How the main process ended, if that was seen.
    pub main_status: Option<ExitStatus>,
    /// Processes made in it, as far as seen.
    pub forks: u64,
    /// Programs executed in it, as far as seen.
    pub execs: u64,
    /// Processes gone from it, as far as seen.
    pub exits: u64,
}
