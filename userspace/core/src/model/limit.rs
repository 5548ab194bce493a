//! Limit files as they are read, and changes of them.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::container::{LevelRole, PodNames};
use super::ids::{CgroupId, KernelTime};
use super::kernel::{Caller, WriteHook, WriteResult, WrittenValue};
use super::limit_file::LimitFile;
use super::value::Reading;

/// Which limit files are to be read.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadLimits {
    /// The cgroup.
    pub cgroup: CgroupId,
    /// Its path; none: it is to be looked for.
    pub path: Option<Arc<str>>,
    /// `path` is the container's, and the cgroup lies below.
    pub inner: bool,
    /// Which; none: all.
    pub limit_file: Option<LimitFile>,
}

/// What reading limit files gave; the answer to [`ReadLimits`](crate::model::Action::ReadLimits).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitsAnswer {
    /// The cgroup.
    pub cgroup: CgroupId,
    /// Its path; none: it was not found.
    pub path: Option<Arc<str>>,
    /// When reading began: it includes every write that had returned by then.
    pub began: KernelTime,
    /// When it ended.
    pub ended: KernelTime,
    /// There was no such cgroup any more.
    pub gone: bool,
    /// All limit files were read, and those that are not listed are absent.
    pub whole: bool,
    /// What they say.
    pub readings: Vec<(LimitFile, Reading)>,
}

/// A limit was changed, or an attempt to change it refused.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LimitChange {
    /// Whose file it is.
    pub cgroup: CgroupId,
    /// Its path; none: the cgroup was gone before it was read, and had not been reported.
    pub path: Option<Arc<str>>,
    /// What it is, if it is known.
    pub role: Option<LevelRole>,
    /// The pod that it is, or is in.
    pub pod: Option<PodNames>,
    /// Which file.
    pub limit_file: LimitFile,
    /// What it said before.
    pub old: Reading,
    /// What it says now.
    pub new: Reading,
    /// `new` was read from the file; otherwise it is what was written, for another write followed before it could be read.
    pub read_back: bool,
    /// The write; none: the change was found, not seen.
    pub write: Option<SeenWrite>,
    /// Further writes that this change stands for, of which nothing else is known.
    pub coalesced: u64,
}

/// A write as it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SeenWrite {
    /// What was written.
    pub value: Option<WrittenValue>,
    /// The process that wrote it.
    pub writer: Caller,
    /// The path of the writer's cgroup, if it is known.
    pub writer_cgroup: Option<Arc<str>>,
    /// What became of it.
    pub result: WriteResult,
    /// When it began.
    pub began: Option<KernelTime>,
    /// When it returned; none: by the event's time at the latest, or that was not seen (and the result is not known).
    pub returned: Option<KernelTime>,
    /// How it was seen.
    pub hook: WriteHook,
}
