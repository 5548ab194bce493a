//! The data of the domain: identifiers, limit files and their values, kernel records, containers, events, samples of memory
//! usage, desired limits and the evidence for a verdict.
//!
//! A leaf: nothing here depends on another module of the crate, and nothing decides anything but parsing, printing and
//! comparing a value. The machines ([`crate::lifecycle`], [`crate::limits`], [`crate::pressure`], [`crate::verdicts`]) share
//! these types and do not import each other's.

mod container;
mod event;
mod guard;
mod ids;
mod kernel;
mod kubernetes;
mod limit;
mod limit_file;
mod observation;
mod pressure;
mod problem;
mod value;
mod verdict;

pub use container::{
    CgroupIndex, CgroupInfo, ContainerState, ContainerType, LevelRole, PodNames, PodRef, Process, Role,
    RuntimeFacts, State, Subject,
};
pub use event::{Basis, Event, Gap, GapCause, Kind, OomExhausted, OomKilled};
pub use guard::{GuardAct, GuardAttempt, GuardReport, GuardedProcess, GuardedState};
pub use ids::{CgroupId, ContainerId, KernelTime, PodUid, ProcKey, QosClass, Runtime};
pub use kernel::{
    Actor, Caller, ExitStatus, Fact, KernelEvent, LimitWrite, MemoryCharge, OomChoice, OomKill, OomScope,
    OomUsage, PathText, TaskInfo, WriteHook, WritePhase, WriteResult, WrittenValue,
};
pub use kubernetes::{
    ApiAmounts, ApiComparison, ApiDisagreement, ApiDisagreementKind, ApiFinding, ApiLimit, ApiMissing,
    ApiOutage, ApiPod, ApiSince, ApiView, NotCompared, ResizeCondition, ResizeConditionKind,
};
pub use limit::{LimitChange, LimitsAnswer, ReadLimits, SeenWrite};
pub use limit_file::{HugePageSize, LimitFile, UnknownLimitFile};
pub use observation::{
    Action, Loss, Observation, Output, Scan, ScanReason, ScannedCgroup, ScannedProcess, Unreadable,
    UnreadableCgroup,
};
pub use pressure::{
    Charger, Direction, MemoryLevel, MemoryLevels, MemorySample, MemorySamples, Pressure, Thresholds,
    ThresholdsError,
};
pub use problem::Problem;
pub use value::{Bound, CpuMax, Format, FormatError, Reading, Value};
pub use verdict::{
    Attempt, DesiredLimit, Ended, Evidence, Judged, Judgement, LastVerdict, Level, Requester, Resource,
    Source, Tolerance, Unobserved, Verdict, VerdictScope, Wanted, Writer,
};
