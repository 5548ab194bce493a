//! Verdicts in the API's shape.

use kwitness_core::model::{Attempt, DesiredLimit, Ended, Judged, Source, Tolerance, Verdict, Writer};
use kwitness_core::verdicts::proof::{Interval, Proof, Unproved};

use super::limits::{errno_name, outcome, pod, reading, role};
use crate::clock::Clock;
use kwitness_api::proto;

/// A verdict with all that it rests on.
pub fn verdict(judged: &Judged, clock: Clock) -> proto::Verdict {
    let judgement = &judged.judgement;
    let mut verdict = proto::Verdict {
        cgroup: Some(proto::Cgroup {
            id: judged.cgroup.0,
            path: Some(judged.path.to_string()),
            role: role(judged.role).into(),
            pod: judged.pod.as_ref().map(pod),
        }),
        file: judgement.resource.file().to_string(),
        reason: judgement.reason(errno_name),
        desired: judged.desired.iter().map(|of| desired_limit(of, clock)).collect(),
        compared_with: judgement
            .desired
            .map_or(proto::Source::Unspecified, |desired| source(desired.source))
            .into(),
        disagreeing: judgement.disagreeing.iter().map(|of| source(*of).into()).collect(),
        tolerance: judgement.tolerance.map_or(proto::Tolerance::Unspecified, tolerance).into(),
        in_force: Some(reading(&judgement.in_force)),
        effective: judgement.effective.as_ref().map(|(value, path)| proto::Effective {
            value: value.to_string(),
            cgroup_path: path.to_string(),
        }),
        written: judged.attempt.as_ref().map(attempt),
        kubernetes: judged.kubernetes.as_ref().map(|found| super::kubernetes::limit(found, clock)),
        ..Default::default()
    };
    verdict.verdict = kind(&judgement.verdict).into();
    match &judgement.verdict {
        Verdict::Pending { until } => verdict.deadline = Some(clock.wall(*until)),
        Verdict::Rejected { errno, writer, .. } => {
            verdict.errno = Some(*errno);
            verdict.writer = writer.as_ref().map(self::writer);
        }
        Verdict::OverLimit { usage } => verdict.usage = Some(*usage),
        Verdict::Killed { kills } => verdict.kills = Some(*kills),
        Verdict::Reverted { writer } => verdict.writer = writer.as_ref().map(self::writer),
        // Who allows less is the effective level.
        Verdict::InForce | Verdict::Diverged | Verdict::Shadowed { .. } | Verdict::Unknown { .. } => {}
    }
    verdict
}

/// A verdict without what it rests on.
pub fn kind(verdict: &Verdict) -> proto::VerdictKind {
    match verdict {
        Verdict::InForce => proto::VerdictKind::InForce,
        Verdict::Pending { .. } => proto::VerdictKind::Pending,
        Verdict::Diverged => proto::VerdictKind::Diverged,
        Verdict::Rejected { .. } => proto::VerdictKind::Rejected,
        Verdict::Shadowed { .. } => proto::VerdictKind::Shadowed,
        Verdict::OverLimit { .. } => proto::VerdictKind::OverLimit,
        Verdict::Killed { .. } => proto::VerdictKind::Killed,
        Verdict::Reverted { .. } => proto::VerdictKind::Reverted,
        Verdict::Unknown { .. } => proto::VerdictKind::Unknown,
    }
}

/// What usage proves of a limit.
pub fn proof(seen: &Interval, proof: &Proof) -> proto::Proof {
    let (kind, used, enforced) = match *proof {
        Proof::Kept { used, enforced } => (proto::ProofKind::Kept, Some(used), Some(enforced)),
        Proof::NotReached { used } => (proto::ProofKind::NotReached, Some(used), None),
        Proof::Exceeded { used } => (proto::ProofKind::Exceeded, Some(used), None),
        Proof::Unknown(_) => (proto::ProofKind::Unknown, None, None),
    };
    proto::Proof {
        proof: kind.into(),
        began: seen.from.0,
        ended: seen.to.0,
        used: used.map(|used| used.usage),
        allowed: used.map(|used| used.allowed),
        enforced,
        unproved: match proof {
            Proof::Unknown(why) => unproved(*why).into(),
            Proof::Kept { .. } | Proof::NotReached { .. } | Proof::Exceeded { .. } => {
                proto::Unproved::Unspecified.into()
            }
        },
    }
}

fn unproved(why: Unproved) -> proto::Unproved {
    match why {
        Unproved::Unreadable => proto::Unproved::Unreadable,
        Unproved::LimitChanged => proto::Unproved::LimitChanged,
        Unproved::TooManyWatched => proto::Unproved::TooManyWatched,
    }
}

fn desired_limit(of: &DesiredLimit, clock: Clock) -> proto::DesiredLimit {
    proto::DesiredLimit {
        source: source(of.source).into(),
        value: of.wanted.ideal().to_string(),
        time: Some(clock.wall(of.at)),
    }
}

fn writer(writer: &Writer) -> proto::Writer {
    proto::Writer {
        pid: Some(writer.pid),
        comm: Some(writer.comm.to_string()),
        cgroup_path: writer.cgroup.as_deref().map(str::to_owned),
        ..Default::default()
    }
}

fn attempt(attempt: &Attempt) -> proto::LimitWrite {
    proto::LimitWrite {
        value: attempt.value.as_deref().map(str::to_owned),
        writer: attempt.writer.as_ref().map(writer),
        errno: attempt.result.errno(),
        errno_name: attempt.result.errno().map(errno_name),
        began: attempt.began.map(|at| at.0),
        returned: attempt.ended.and_then(Ended::returned).map(|at| at.0),
        outcome: attempt.ended.map_or(proto::WriteOutcome::Unspecified, |_| outcome(attempt.result)).into(),
        ..Default::default()
    }
}

fn source(source: Source) -> proto::Source {
    match source {
        Source::Client => proto::Source::Client,
        Source::KubeletAllocated => proto::Source::KubeletAllocated,
        Source::CriRequest => proto::Source::CriRequest,
        Source::KubeletActuated => proto::Source::KubeletActuated,
        Source::Runtime => proto::Source::Runtime,
        Source::Guard => proto::Source::Guard,
    }
}

fn tolerance(tolerance: Tolerance) -> proto::Tolerance {
    match tolerance {
        Tolerance::Exact => proto::Tolerance::Exact,
        Tolerance::MinimumQuota => proto::Tolerance::MinimumQuota,
        Tolerance::RoundedToTenMilliseconds => proto::Tolerance::RoundedToTenMilliseconds,
        Tolerance::OldWeightFormula => proto::Tolerance::OldWeightFormula,
        Tolerance::NewWeightFormula => proto::Tolerance::NewWeightFormula,
        Tolerance::RoundedToPage => proto::Tolerance::RoundedToPage,
        Tolerance::RoomForMore => proto::Tolerance::RoomForMore,
    }
}
