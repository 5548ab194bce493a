//! Where a cgroup stands: its path, what it is to the containers, whose it is.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::event::{PodNames, Subject};
use crate::ids::CgroupId;

/// What a cgroup is to the container whose limits are looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LevelRole {
    /// Made inside a container: crun's `container`, or the container's own doing.
    Inner,
    /// A container's own cgroup.
    Container,
    /// A pod's.
    Pod,
    /// A class's.
    Qos,
    /// The parent of all pods.
    Kubepods,
    /// Above that, up to the root; or none of the kubelet's.
    Other,
}

impl LevelRole {
    /// In words.
    pub const fn phrase(self) -> &'static str {
        match self {
            Self::Inner => "the inner cgroup",
            Self::Container => "the container's cgroup",
            Self::Pod => "the pod's cgroup",
            Self::Qos => "the class's cgroup",
            Self::Kubepods => "the cgroup of all pods",
            Self::Other => "the cgroup",
        }
    }
}

/// A cgroup that is known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// What it is.
    pub role: LevelRole,
    /// Its path from the root of the hierarchy; of one that was made inside a container, the container's.
    pub path: Arc<str>,
    /// The container that it is, or is in.
    pub subject: Option<Arc<Subject>>,
    /// The pod that it is, or is in.
    pub pod: Option<PodNames>,
    /// It has not been removed.
    pub exists: bool,
}

/// Whoever knows where cgroups stand.
pub trait Places {
    /// Where that cgroup stands; none: it is not below a tracked root, or nobody told of it.
    fn place(&self, cgroup: CgroupId) -> Option<Place>;
}
