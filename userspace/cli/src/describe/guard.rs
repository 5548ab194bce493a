//! What the guard did, in words.

use super::limits::{duration, whose_level};
use crate::text::UNKNOWN;
use kwitness_api::proto;
use kwitness_core::units;

/// A hold, in a line.
pub fn held(held: &proto::GuardHeld) -> String {
    let (usage, limit) = (units::amount(held.usage_bytes), units::bytes(held.limit_bytes));
    format!("held at {usage} of {limit}{}: {}", whose(held.level()), process(held.process.as_ref()))
}

/// A raise.
pub fn raised(raised: &proto::GuardRaised) -> String {
    let (before, after) = (units::bytes(raised.limit_before), units::bytes(raised.limit_after));
    let whose = whose(raised.level());
    format!("memory.max {before} → {after}{whose}, in force after {}", duration(raised.held_ns))
}

/// The end of a hold.
pub fn continued(continued: &proto::GuardContinued) -> String {
    let what = match continued.state() {
        proto::GuardedState::Gone => "gone",
        proto::GuardedState::Stopped => "stopped again by another process",
        proto::GuardedState::Running | proto::GuardedState::Unspecified => "continued",
    };
    let why = match continued.reason.as_str() {
        "" => String::new(),
        reason => format!(" ({reason})"),
    };
    format!("{what}{why} after {}: {}", duration(continued.held_ns), process(continued.process.as_ref()))
}

/// Why a limit stays.
pub fn refused(refused: &proto::GuardRefused) -> String {
    let attempt = match refused.attempt() {
        proto::GuardAttempt::Return => "not given back",
        proto::GuardAttempt::Raise | proto::GuardAttempt::Unspecified => "not raised",
    };
    let level = whose(refused.level());
    let limit = refused.limit_bytes.map_or_else(|| "max".to_owned(), units::bytes);
    format!("{attempt}, {}{level}: {}; memory.max is {limit}", refused.reason, refused.detail)
}

/// What was given back.
pub fn returned(returned: &proto::GuardReturned) -> String {
    let (before, after) = (units::bytes(returned.limit_before), units::bytes(returned.limit_after));
    let rest = match returned.original_limit {
        original if original < returned.limit_after => format!(" in part: it was {}", units::bytes(original)),
        _ => String::new(),
    };
    format!("memory.max {before} → {after}{}, given back{rest}", whose(returned.level()))
}

/// Whose limit it is, unless the container's own.
fn whose(level: proto::CgroupRole) -> String {
    match level {
        proto::CgroupRole::Container | proto::CgroupRole::Unspecified => String::new(),
        level => format!(" ({})", whose_level(level).unwrap_or("ancestor")),
    }
}

fn process(process: Option<&proto::GuardedProcess>) -> String {
    process.map_or_else(|| UNKNOWN.to_owned(), |process| format!("{} ({})", process.comm, process.pid))
}

#[cfg(test)]
pub(crate) mod testing {
    use super::*;
    use kwitness_api::proto::event::Kind;

    /// One of each kind.
    pub fn kinds() -> Vec<Kind> {
        let process = || Some(proto::GuardedProcess { pid: 812, start_time: 1, comm: "java".into() });
        let level = proto::CgroupRole::Container.into();
        vec![
            Kind::GuardHeld(Box::new(proto::GuardHeld {
                process: process(),
                level,
                usage_bytes: 60 << 20,
                limit_bytes: 64 << 20,
            })),
            Kind::GuardRaised(proto::GuardRaised {
                level,
                limit_before: 64 << 20,
                limit_after: 128 << 20,
                held_ns: 52_000_000,
            }),
            Kind::GuardContinued(Box::new(proto::GuardContinued {
                process: process(),
                held_ns: 54_000_000,
                state: proto::GuardedState::Running.into(),
                reason: String::new(),
            })),
            Kind::GuardRefused(Box::new(proto::GuardRefused {
                attempt: proto::GuardAttempt::Raise.into(),
                reason: "limitAbove".into(),
                detail: "no room".into(),
                level: proto::CgroupRole::Pod.into(),
                limit_bytes: Some(64 << 20),
                held_ns: Some(3_000_000),
            })),
            Kind::GuardReturned(proto::GuardReturned {
                level,
                limit_before: 192 << 20,
                limit_after: 128 << 20,
                original_limit: 64 << 20,
            }),
        ]
    }
}
