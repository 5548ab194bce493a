//! Label values for what the API reports: the same words as in its JSON where there are such. Each list holds every value that the
//! function beside it returns, so that counters exist from the start and `increase()` sees the first step.

use kwitness_core::model::{Resource, ScanReason};

use kwitness_api::proto::{self, GapCause, VerdictKind};

pub(super) const GAP_CAUSES: &[&str] = &[
    "ring_full",
    "tracked_set_full",
    "malformed_record",
    "program_skipped",
    "watch_overflow",
    "capacity_exceeded",
    "cgroup_unreadable",
    "agent_down",
    "guard_reports_dropped",
    "cri_requests_missed",
];

pub(super) fn gap_cause(cause: GapCause) -> &'static str {
    match cause {
        GapCause::RingFull => "ring_full",
        GapCause::TrackedSetFull => "tracked_set_full",
        GapCause::MalformedRecord => "malformed_record",
        GapCause::ProgramSkipped => "program_skipped",
        GapCause::WatchOverflow => "watch_overflow",
        GapCause::CapacityExceeded => "capacity_exceeded",
        GapCause::CgroupUnreadable => "cgroup_unreadable",
        GapCause::AgentDown => "agent_down",
        GapCause::GuardReportsDropped => "guard_reports_dropped",
        GapCause::CriRequestsMissed => "cri_requests_missed",
        // A watcher's own; the journal has none.
        GapCause::WatcherLagged | GapCause::ReplayExpired | GapCause::Unspecified => "unknown",
    }
}

pub(super) const OOM_SCOPES: &[&str] = &["container", "pod", "qos", "kubepods", "other", "node", "unknown"];

/// Whose memory was exhausted.
pub(super) fn oom_scope(kill: &proto::OomKill) -> &'static str {
    use proto::CgroupRole;
    match &kill.exhausted {
        None => "unknown",
        Some(proto::oom_kill::Exhausted::Machine(_)) => "node",
        Some(proto::oom_kill::Exhausted::LimitOf(cgroup)) => match cgroup.role() {
            CgroupRole::Inner | CgroupRole::Container => "container",
            CgroupRole::Pod => "pod",
            CgroupRole::Qos => "qos",
            CgroupRole::Kubepods => "kubepods",
            CgroupRole::Other | CgroupRole::Unspecified => "other",
        },
    }
}

/// The first three are the kubelet's words.
pub(super) const STOP_REASONS: &[&str] = &["Completed", "Error", "OOMKilled", "Signal", "Unknown"];

pub(super) fn stop_reason(stopped: &proto::Stopped) -> &'static str {
    use proto::exit_status::Status;
    if stopped.main_oom_killed {
        return "OOMKilled";
    }
    match stopped.main_status.as_ref().and_then(|status| status.status) {
        Some(Status::Code(0)) => "Completed",
        Some(Status::Code(_)) => "Error",
        Some(Status::Signal(_)) => "Signal",
        None => "Unknown",
    }
}

pub(super) const OUTCOMES: &[&str] = &["accepted", "refused", "unknown"];

/// A change without a write was found by reading.
pub(super) fn outcome(write: Option<&proto::LimitWrite>) -> &'static str {
    match write.map(proto::LimitWrite::outcome) {
        Some(proto::WriteOutcome::Accepted) => "accepted",
        Some(proto::WriteOutcome::Refused) => "refused",
        Some(proto::WriteOutcome::Unknown | proto::WriteOutcome::Unspecified) | None => "unknown",
    }
}

pub(super) fn scan_reason(reason: ScanReason) -> &'static str {
    match reason {
        ScanReason::Initial => "initial",
        ScanReason::Repair => "repair",
    }
}

pub(super) fn resource(resource: Resource) -> &'static str {
    match resource {
        Resource::Cpu => "cpu",
        Resource::CpuWeight => "cpu_weight",
        Resource::Memory => "memory",
        Resource::MemoryHigh => "memory_high",
        Resource::Swap => "swap",
    }
}

pub(super) fn verdict(verdict: VerdictKind) -> &'static str {
    match verdict {
        VerdictKind::InForce => "in_force",
        VerdictKind::Pending => "pending",
        VerdictKind::Diverged => "diverged",
        VerdictKind::Rejected => "rejected",
        VerdictKind::Shadowed => "shadowed",
        VerdictKind::OverLimit => "over_limit",
        VerdictKind::Killed => "killed",
        VerdictKind::Reverted => "reverted",
        VerdictKind::Unknown | VerdictKind::Unspecified => "unknown",
    }
}
