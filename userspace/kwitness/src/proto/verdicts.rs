//! Verdicts in the API's shape.

use kwitness_core::resize::proof::{Interval, Proof};
use kwitness_core::resize::{self, Attempt, Claim, Ended, Judged, Source, Tolerance, Writer};

use super::limits::{errno_name, outcome, pod, reading, role};
use super::v1;
use crate::clock::Clock;

/// A verdict with all that it rests on.
pub fn verdict(judged: &Judged, clock: Clock) -> v1::Verdict {
    let judgement = &judged.judgement;
    let mut verdict = v1::Verdict {
        cgroup: Some(v1::Cgroup {
            id: judged.cgroup.0,
            path: Some(judged.path.to_string()),
            role: role(judged.role).into(),
            pod: judged.pod.as_ref().map(pod),
        }),
        file: judgement.resource.file().to_string(),
        reason: judgement.reason(errno_name),
        claims: judged.claims.iter().map(|of| claim(of, clock)).collect(),
        compared_with: judgement.claim.map_or(v1::Source::Unspecified, |claim| source(claim.source)).into(),
        disagreeing: judgement.disagreeing.iter().map(|of| source(*of).into()).collect(),
        tolerance: judgement.tolerance.map_or(v1::Tolerance::Unspecified, tolerance).into(),
        in_force: Some(reading(&judgement.in_force)),
        effective: judgement
            .effective
            .as_ref()
            .map(|(value, path)| v1::Effective { value: value.to_string(), cgroup_path: path.to_string() }),
        written: judged.attempt.as_ref().map(attempt),
        ..Default::default()
    };
    let kind = match &judgement.verdict {
        resize::Verdict::InForce => v1::VerdictKind::InForce,
        resize::Verdict::Pending { until } => {
            verdict.deadline = Some(clock.wall(*until));
            v1::VerdictKind::Pending
        }
        resize::Verdict::Diverged => v1::VerdictKind::Diverged,
        resize::Verdict::Rejected { errno, writer, .. } => {
            verdict.errno = Some(*errno);
            verdict.writer = writer.as_ref().map(self::writer);
            v1::VerdictKind::Rejected
        }
        // Who allows less is the effective level.
        resize::Verdict::Shadowed { .. } => v1::VerdictKind::Shadowed,
        resize::Verdict::OverLimit { usage } => {
            verdict.usage = Some(*usage);
            v1::VerdictKind::OverLimit
        }
        resize::Verdict::Killed { kills } => {
            verdict.kills = Some(*kills);
            v1::VerdictKind::Killed
        }
        resize::Verdict::Reverted { writer } => {
            verdict.writer = writer.as_ref().map(self::writer);
            v1::VerdictKind::Reverted
        }
        resize::Verdict::Unknown { .. } => v1::VerdictKind::Unknown,
    };
    verdict.verdict = kind.into();
    verdict
}

/// What usage proves of a limit.
pub fn proof(seen: &Interval, proof: &Proof) -> v1::Proof {
    let (kind, used, enforced) = match *proof {
        Proof::Kept { used, enforced } => (v1::ProofKind::Kept, Some(used), Some(enforced)),
        Proof::NotReached { used } => (v1::ProofKind::NotReached, Some(used), None),
        Proof::Exceeded { used } => (v1::ProofKind::Exceeded, Some(used), None),
        Proof::Unknown => (v1::ProofKind::Unknown, None, None),
    };
    v1::Proof {
        proof: kind.into(),
        began: seen.from.0,
        ended: seen.to.0,
        used: used.map(|used| used.usage),
        allowed: used.map(|used| used.allowed),
        enforced,
    }
}

fn claim(claim: &Claim, clock: Clock) -> v1::Claim {
    v1::Claim {
        source: source(claim.source).into(),
        value: claim.wanted.ideal().to_string(),
        time: Some(clock.wall(claim.at)),
    }
}

fn writer(writer: &Writer) -> v1::Writer {
    v1::Writer {
        pid: Some(writer.pid),
        comm: Some(writer.comm.to_string()),
        cgroup_path: writer.cgroup.as_deref().map(str::to_owned),
        ..Default::default()
    }
}

fn attempt(attempt: &Attempt) -> v1::LimitWrite {
    v1::LimitWrite {
        value: attempt.value.as_deref().map(str::to_owned),
        writer: attempt.writer.as_ref().map(writer),
        errno: attempt.result.errno(),
        errno_name: attempt.result.errno().map(errno_name),
        began: attempt.began.map(|at| at.0),
        returned: attempt.ended.and_then(Ended::returned).map(|at| at.0),
        outcome: attempt.ended.map_or(v1::WriteOutcome::Unspecified, |_| outcome(attempt.result)).into(),
        ..Default::default()
    }
}

fn source(source: Source) -> v1::Source {
    match source {
        Source::Client => v1::Source::Client,
        Source::KubeletAllocated => v1::Source::KubeletAllocated,
        Source::CriRequest => v1::Source::CriRequest,
        Source::KubeletActuated => v1::Source::KubeletActuated,
        Source::Runtime => v1::Source::Runtime,
    }
}

fn tolerance(tolerance: Tolerance) -> v1::Tolerance {
    match tolerance {
        Tolerance::Exact => v1::Tolerance::Exact,
        Tolerance::MinimumQuota => v1::Tolerance::MinimumQuota,
        Tolerance::RoundedToTenMilliseconds => v1::Tolerance::RoundedToTenMilliseconds,
        Tolerance::OldWeightFormula => v1::Tolerance::OldWeightFormula,
        Tolerance::NewWeightFormula => v1::Tolerance::NewWeightFormula,
        Tolerance::RoundedToPage => v1::Tolerance::RoundedToPage,
        Tolerance::RoomForMore => v1::Tolerance::RoomForMore,
    }
}
