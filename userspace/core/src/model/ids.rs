//! Names for things: newtypes, so that a cgroup id is never mistaken for a pid, nor the kernel's time for the wall
//! clock's.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// A cgroup v2 id: the inode number of the cgroup's directory, which the kernel does not use again while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct CgroupId(pub u64);

/// Nanoseconds of `CLOCK_BOOTTIME`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct KernelTime(pub u64);

/// A process for good: a pid is used again, a pid with its start time is not.
///
/// A record of the kernel has the start to the nanosecond, procfs has it cut off to a clock tick: two keys are the same
/// if pid and tick are. No pid is used twice within one.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct ProcKey {
    /// The thread-group id in the node's pid namespace.
    pub pid: u32,
    /// When its thread-group leader was started.
    pub start: KernelTime,
}

impl ProcKey {
    /// Nanoseconds in a clock tick of procfs: `USER_HZ` is 100 on every architecture with cgroups.
    const TICK: u64 = 10_000_000;

    /// Whether it is another process, started before that one. Of two that were started within a tick, a scan cannot say
    /// which came first.
    pub fn is_older_than(self, other: Self) -> bool {
        self != other && self.start < other.start
    }

    /// The start as procfs has it: cut off to a clock tick, and so the same from every source.
    pub fn start_tick(self) -> KernelTime {
        KernelTime(self.start.0 - self.start.0 % Self::TICK)
    }

    fn identity(self) -> (u32, u64) {
        (self.pid, self.start.0 / Self::TICK)
    }
}

impl PartialEq for ProcKey {
    fn eq(&self, other: &Self) -> bool {
        self.identity() == other.identity()
    }
}

impl Eq for ProcKey {}

impl Hash for ProcKey {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.identity().hash(state);
    }
}

/// The runtime's id of a container: 64 hexadecimal digits with every runtime that Kubernetes uses.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub Arc<str>);

/// A pod's UID as the API server writes it (with dashes); a static pod's has none.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PodUid(pub Arc<str>);

impl PodUid {
    /// Whether it is a static pod's, which the runtime may know by its mirror's.
    pub fn is_static(&self) -> bool {
        self.0.len() == 32 && !self.0.contains('-')
    }

    /// Whether both name one pod, by whatever spelling: with dashes or without.
    pub fn is_same(&self, other: &Self) -> bool {
        let digits = |uid: &Self| uid.0.bytes().filter(|byte| *byte != b'-').collect::<Vec<_>>();
        digits(self).eq_ignore_ascii_case(&digits(other))
    }
}

/// A pod's quality-of-service class, read off its cgroup's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QosClass {
    /// Directly below the `kubepods` cgroup.
    Guaranteed,
    /// Below `burstable`.
    Burstable,
    /// Below `besteffort`.
    BestEffort,
}

/// A container runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// containerd's CRI plugin.
    Containerd,
    /// CRI-O.
    Crio,
    /// Docker, by itself or behind cri-dockerd.
    Docker,
    /// podman.
    Podman,
}

impl fmt::Display for CgroupId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
