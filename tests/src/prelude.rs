//! What nearly every test and measurement of a node names: `use kwitness_tests::prelude::*`.

pub use std::time::{Duration, Instant};

pub use anyhow::{Context as _, Result, bail, ensure};

pub use crate::agent::{Agent, Watcher, boottime, from_now, with_snapshot};
pub use crate::context::{TestContext, Testbed};
pub use crate::control_plane::{ControlPlane, PAUSE};
pub use crate::environment::{CgroupDriver, CgroupLayout, Combination, Environment, Tier};
pub use crate::events::{End, Life, Seen, kind};
pub use crate::guard::{Guard, memory_event};
pub use crate::handmade::{HandMade, Kubepods};
pub use crate::kubelet::{Kubelet, NODE, Pleg};
pub use crate::node::{CONTAINERD_SOCKET, Node};
pub use crate::out::{KEEP, LEAVE_CODE, Out, until};
pub use crate::pod::{ContainerSpec, Pod, PodSpec};
pub use crate::process::{Managed, wait_for};
pub use crate::proxy::Proxy;
pub use crate::suite::Case;
pub use crate::{cgroup, handmade, limit, process, suite};
