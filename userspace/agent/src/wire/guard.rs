//! What the guard did, in the API's shape.

use kwitness_core::model::{GuardAct, GuardAttempt, GuardedProcess, GuardedState};

use super::limits::role;
use kwitness_api::proto;
use kwitness_api::proto::event::Kind;

/// An act as an event's content.
pub(super) fn content(act: &GuardAct) -> Kind {
    match act {
        GuardAct::Held { process, level, usage, limit } => Kind::GuardHeld(Box::new(proto::GuardHeld {
            process: Some(self::process(process)),
            level: role(*level).into(),
            usage_bytes: *usage,
            limit_bytes: *limit,
        })),
        GuardAct::Raised { level, from, to, held } => Kind::GuardRaised(proto::GuardRaised {
            level: role(*level).into(),
            limit_before: *from,
            limit_after: *to,
            held_ns: *held,
        }),
        GuardAct::Continued { process, held, state, reason } => {
            Kind::GuardContinued(Box::new(proto::GuardContinued {
                process: Some(self::process(process)),
                held_ns: *held,
                state: match state {
                    GuardedState::Running => proto::GuardedState::Running,
                    GuardedState::Gone => proto::GuardedState::Gone,
                    GuardedState::Stopped => proto::GuardedState::Stopped,
                }
                .into(),
                reason: reason.as_deref().unwrap_or_default().to_owned(),
            }))
        }
        GuardAct::Refused { attempt, reason, detail, level, limit, held } => {
            Kind::GuardRefused(Box::new(proto::GuardRefused {
                attempt: match attempt {
                    GuardAttempt::Raise => proto::GuardAttempt::Raise,
                    GuardAttempt::Return => proto::GuardAttempt::Return,
                }
                .into(),
                reason: reason.to_string(),
                detail: detail.to_string(),
                level: role(*level).into(),
                limit_bytes: *limit,
                held_ns: *held,
            }))
        }
        GuardAct::Returned { level, from, to, original } => Kind::GuardReturned(proto::GuardReturned {
            level: role(*level).into(),
            limit_before: *from,
            limit_after: *to,
            original_limit: *original,
        }),
    }
}

fn process(process: &GuardedProcess) -> proto::GuardedProcess {
    proto::GuardedProcess {
        pid: process.key.pid,
        start_time: process.key.start.0,
        comm: process.comm.to_string(),
    }
}
