//! The guard's reports: other people's text, checked before the core or the verifier gets it.
//!
//! Never decides whether a container is known: the engine does.

use kwitness_api::{
    GUARD_DETAIL_BYTES_MAX as DETAIL_MAX, GUARD_REASON_BYTES_MAX as REASON_MAX,
    REQUEST_ID_BYTES_MAX as ID_MAX, proto,
};
use kwitness_core::model::{
    ContainerId, GuardAct, GuardAttempt, GuardReport, GuardedProcess, GuardedState, KernelTime, LevelRole,
    Observation, ProcKey,
};

/// `TASK_COMM_LEN` without the NUL.
const COMM_MAX: usize = 15;

/// A report that is as it should be.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Report {
    /// What the guard did.
    Act(GuardReport),
    /// The limit that it is about to set, in bytes.
    SetsLimit { container: ContainerId, at: KernelTime, bytes: u64 },
    /// What `memory.high` is lowered to, in bytes; none: no longer.
    SetsHigh { container: ContainerId, at: KernelTime, bytes: Option<u64> },
}

impl Report {
    /// Whom it is about.
    pub(super) fn container(&self) -> &ContainerId {
        match self {
            Self::Act(report) => &report.container,
            Self::SetsLimit { container, .. } | Self::SetsHigh { container, .. } => container,
        }
    }
}

/// Why a report is rejected.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Malformed {
    #[error("`container_id` is empty, or longer than {ID_MAX} bytes")]
    Id,
    #[error("`time` is 0 or in the future: it is CLOCK_BOOTTIME in nanoseconds")]
    Time,
    #[error("`report` is missing, or of a kind that this daemon does not know")]
    Kind,
    #[error("`process` is missing, its `pid` is 0, or its `comm` is longer than {COMM_MAX} bytes")]
    Process,
    #[error("`{0}` is unspecified or unknown: {1}")]
    Word(&'static str, i32),
    #[error("`reason` is not a word of 1 to {REASON_MAX} ASCII letters")]
    Reason,
    #[error("`detail` is longer than {DETAIL_MAX} bytes")]
    Detail,
    #[error("a limit of 0 bytes")]
    Limit,
    #[error("`dropped` is of 0 reports, or `from` is 0 or after `to`, or `to` is in the future")]
    Dropped,
}

/// Reads a report.
pub(super) fn read(report: proto::GuardReport, now: KernelTime) -> Result<Report, Malformed> {
    use proto::guard_report::Report as Api;
    let proto::GuardReport { container_id, time, report } = report;
    if container_id.is_empty() || container_id.len() > ID_MAX {
        return Err(Malformed::Id);
    }
    if time == 0 || time > now.0 {
        return Err(Malformed::Time);
    }
    let (container, at) = (ContainerId(container_id.into()), KernelTime(time));
    let act = match report.ok_or(Malformed::Kind)? {
        Api::SetsLimit(bytes) => {
            return Ok(Report::SetsLimit { container, at, bytes: limit(bytes)? });
        }
        Api::SetsHigh(bytes) => {
            return Ok(Report::SetsHigh { container, at, bytes: Some(bytes).filter(|bytes| *bytes > 0) });
        }
        Api::Held(of) => GuardAct::Held {
            process: process(of.process)?,
            level: level(of.level)?,
            usage: of.usage_bytes,
            limit: limit(of.limit_bytes)?,
        },
        Api::Raised(of) => GuardAct::Raised {
            level: level(of.level)?,
            from: limit(of.limit_before)?,
            to: limit(of.limit_after)?,
            held: of.held_ns,
        },
        Api::Continued(of) => GuardAct::Continued {
            state: match of.state() {
                proto::GuardedState::Running => GuardedState::Running,
                proto::GuardedState::Gone => GuardedState::Gone,
                proto::GuardedState::Stopped => GuardedState::Stopped,
                proto::GuardedState::Unspecified => return Err(Malformed::Word("state", of.state)),
            },
            process: process(of.process)?,
            held: of.held_ns,
            reason: Some(of.reason).filter(|word| !word.is_empty()).map(reason).transpose()?,
        },
        Api::Refused(of) => GuardAct::Refused {
            attempt: match of.attempt() {
                proto::GuardAttempt::Raise => GuardAttempt::Raise,
                proto::GuardAttempt::Return => GuardAttempt::Return,
                proto::GuardAttempt::Unspecified => return Err(Malformed::Word("attempt", of.attempt)),
            },
            level: level(of.level)?,
            reason: reason(of.reason)?,
            detail: Some(of.detail).filter(|text| text.len() <= DETAIL_MAX).ok_or(Malformed::Detail)?.into(),
            limit: of.limit_bytes,
            held: of.held_ns,
        },
        Api::Returned(of) => GuardAct::Returned {
            level: level(of.level)?,
            from: limit(of.limit_before)?,
            to: limit(of.limit_after)?,
            original: limit(of.original_limit)?,
        },
    };
    Ok(Report::Act(GuardReport { at, container, act }))
}

/// Reads what was dropped.
pub(super) fn read_dropped(
    dropped: &proto::GuardReportsDropped,
    now: KernelTime,
) -> Result<Observation, Malformed> {
    let proto::GuardReportsDropped { count, from, to } = *dropped;
    if count == 0 || from == 0 || from > to || to > now.0 {
        return Err(Malformed::Dropped);
    }
    let (from, to) = (KernelTime(from), KernelTime(to));
    Ok(Observation::GuardReportsDropped { at: now, from, to, count })
}

fn limit(bytes: u64) -> Result<u64, Malformed> {
    if bytes == 0 { Err(Malformed::Limit) } else { Ok(bytes) }
}

fn process(process: Option<proto::GuardedProcess>) -> Result<GuardedProcess, Malformed> {
    let process = process.filter(|process| process.pid != 0 && process.comm.len() <= COMM_MAX);
    let proto::GuardedProcess { pid, start_time, comm } = process.ok_or(Malformed::Process)?;
    Ok(GuardedProcess { key: ProcKey { pid, start: KernelTime(start_time) }, comm: comm.into() })
}

fn reason(reason: String) -> Result<std::sync::Arc<str>, Malformed> {
    let is_word = (1..=REASON_MAX).contains(&reason.len()) && reason.bytes().all(|b| b.is_ascii_alphabetic());
    if is_word { Ok(reason.into()) } else { Err(Malformed::Reason) }
}

fn level(level: i32) -> Result<LevelRole, Malformed> {
    let unknown = Malformed::Word("level", level);
    match proto::CgroupRole::try_from(level) {
        Ok(proto::CgroupRole::Container) => Ok(LevelRole::Container),
        Ok(proto::CgroupRole::Inner) => Ok(LevelRole::Inner),
        Ok(proto::CgroupRole::Pod) => Ok(LevelRole::Pod),
        Ok(proto::CgroupRole::Qos) => Ok(LevelRole::Qos),
        Ok(proto::CgroupRole::Kubepods) => Ok(LevelRole::Kubepods),
        Ok(proto::CgroupRole::Other) => Ok(LevelRole::Other),
        Ok(proto::CgroupRole::Unspecified) | Err(_) => Err(unknown),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::guard_report::Report as Api;

    const NOW: KernelTime = KernelTime(1000);

    fn report(report: Api) -> proto::GuardReport {
        proto::GuardReport { container_id: "c".to_owned(), time: 500, report: Some(report) }
    }

    fn held(comm: &str) -> Api {
        Api::Held(proto::GuardHeld {
            process: Some(proto::GuardedProcess { pid: 7, start_time: 3, comm: comm.to_owned() }),
            level: proto::CgroupRole::Container.into(),
            usage_bytes: 60,
            limit_bytes: 64,
        })
    }

    fn refused(reason: &str, detail: &str) -> Api {
        Api::Refused(proto::GuardRefused {
            attempt: proto::GuardAttempt::Return.into(),
            reason: reason.to_owned(),
            detail: detail.to_owned(),
            level: proto::CgroupRole::Pod.into(),
            limit_bytes: Some(64),
            held_ns: None,
        })
    }

    #[test]
    fn a_report_becomes_what_it_says() {
        let Ok(Report::Act(GuardReport { at, container, act })) = read(report(held("java")), NOW) else {
            panic!()
        };
        assert_eq!((at, &*container.0), (KernelTime(500), "c"));
        let GuardAct::Held { process, level, usage, limit } = act else { panic!("{act:?}") };
        assert_eq!((process.key.pid, &*process.comm, level), (7, "java", LevelRole::Container));
        assert_eq!((usage, limit), (60, 64));
        let sets = read(report(Api::SetsLimit(128)), NOW);
        let container = || ContainerId("c".into());
        assert_eq!(sets, Ok(Report::SetsLimit { container: container(), at: KernelTime(500), bytes: 128 }));
        for (said, bytes) in [(56, Some(56)), (0, None)] {
            let sets = read(report(Api::SetsHigh(said)), NOW);
            assert_eq!(sets, Ok(Report::SetsHigh { container: container(), at: KernelTime(500), bytes }));
        }
        let level = read(report(refused("limitAbove", "why")), NOW).map(|report| match report {
            Report::Act(GuardReport { act: GuardAct::Refused { level, held, .. }, .. }) => (level, held),
            other => panic!("{other:?}"),
        });
        assert_eq!(level, Ok((LevelRole::Pod, None)));
    }

    fn continued(reason: &str) -> Api {
        Api::Continued(proto::GuardContinued {
            process: Some(proto::GuardedProcess { pid: 7, start_time: 3, comm: "java".to_owned() }),
            held_ns: 5,
            state: proto::GuardedState::Running.into(),
            reason: reason.to_owned(),
        })
    }

    #[test]
    fn a_hold_that_another_process_than_the_guard_ended_has_a_reason() {
        for (said, expected) in [("", None), ("leaseEnded", Some("leaseEnded"))] {
            let Ok(Report::Act(GuardReport { act, .. })) = read(report(continued(said)), NOW) else {
                panic!()
            };
            let GuardAct::Continued { reason, .. } = act else { panic!("{act:?}") };
            assert_eq!(reason.as_deref(), expected);
        }
        assert_eq!(read(report(continued("lease ended\x1b[31m")), NOW), Err(Malformed::Reason));
    }

    #[test]
    fn what_is_malformed_is_rejected_with_its_field() {
        let long = |bytes| "x".repeat(bytes);
        for (wrong, expected) in [
            (proto::GuardReport { container_id: String::new(), ..report(held("a")) }, Malformed::Id),
            (proto::GuardReport { container_id: long(ID_MAX + 1), ..report(held("a")) }, Malformed::Id),
            (proto::GuardReport { time: 0, ..report(held("a")) }, Malformed::Time),
            (proto::GuardReport { time: NOW.0 + 1, ..report(held("a")) }, Malformed::Time),
            (proto::GuardReport { report: None, ..report(held("a")) }, Malformed::Kind),
            (report(held(&long(COMM_MAX + 1))), Malformed::Process),
            (report(Api::Held(proto::GuardHeld::default())), Malformed::Process),
            (report(Api::Raised(proto::GuardRaised::default())), Malformed::Word("level", 0)),
            (report(Api::Continued(proto::GuardContinued::default())), Malformed::Word("state", 0)),
            (report(Api::Refused(proto::GuardRefused::default())), Malformed::Word("attempt", 0)),
            (report(refused("", "")), Malformed::Reason),
            (report(refused("at\x1b[31m", "")), Malformed::Reason),
            (report(refused(&long(REASON_MAX + 1), "")), Malformed::Reason),
            (report(refused("runtime", &long(DETAIL_MAX + 1))), Malformed::Detail),
            (report(Api::SetsLimit(0)), Malformed::Limit),
        ] {
            assert_eq!(read(wrong, NOW), Err(expected));
        }
        let dropped = |count, from, to| read_dropped(&proto::GuardReportsDropped { count, from, to }, NOW);
        assert!(dropped(3, 1, 1000).is_ok());
        for (count, from, to) in [(0, 1, 2), (1, 0, 2), (1, 3, 2), (1, 1, 1001)] {
            assert_eq!(dropped(count, from, to), Err(Malformed::Dropped));
        }
    }
}
