//! What follows an answer of the collector that is no success: another attempt, and when, or the loss of the records.
//!
//! By OTLP's table of gRPC codes, with one exception: what says nothing about the records (credentials, a receiver that is not there)
//! costs none. They wait, as they do for a collector that is away. An answer without a gRPC status has become one before: [`crate::reply`].

use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// The pause after the first failure, and the longest that is chosen here.
const PAUSE_MIN: Duration = Duration::from_millis(500);
const PAUSE_MAX: Duration = Duration::from_secs(30);
/// The longest pause that a collector may ask for.
const ASKED_MAX: Duration = Duration::from_secs(300);

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Send the same again, not before that time has passed.
    Again(Duration),
    /// The collector will never take these records.
    Refused,
}

/// After an answer.
pub fn next(status: &Status) -> Next {
    // What the collector itself answers has no source; what was found out on the way to it has.
    if std::error::Error::source(status).is_some() {
        return Next::Again(Duration::ZERO);
    }
    let asked = status.get_details_retry_info().map(|info| info.retry_delay.unwrap_or_default());
    match status.code() {
        Code::ResourceExhausted => asked.map_or(Next::Refused, Next::Again),
        Code::Cancelled
        | Code::DeadlineExceeded
        | Code::Aborted
        | Code::OutOfRange
        | Code::Unavailable
        | Code::DataLoss
        | Code::Unauthenticated
        | Code::PermissionDenied
        | Code::Unimplemented => Next::Again(asked.unwrap_or_default()),
        _ => Next::Refused,
    }
}

/// The pause after so many failures in a row: it doubles, and is between half and all of that, by chance, so that a fleet does not return
/// to its collector all at once. Never shorter than asked.
pub fn pause(failures: u32, asked: Duration, random: u32) -> Duration {
    let whole = PAUSE_MIN.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(PAUSE_MAX);
    let part = f64::from(random) / f64::from(u32::MAX);
    let asked = asked.min(ASKED_MAX);
    // What was requested is the same for all.
    asked + if asked.is_zero() { whole } else { PAUSE_MIN }.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use std::io;

    use tonic_types::ErrorDetails;

    use super::*;

    #[test]
    fn codes_are_judged_as_otlp_says() {
        let now = Next::Again(Duration::ZERO);
        for (code, expected) in [
            (Code::Cancelled, now),
            (Code::DeadlineExceeded, now),
            (Code::Aborted, now),
            (Code::OutOfRange, now),
            (Code::Unavailable, now),
            (Code::DataLoss, now),
            (Code::Unauthenticated, now),
            (Code::PermissionDenied, now),
            (Code::Unimplemented, now),
            (Code::ResourceExhausted, Next::Refused),
            (Code::InvalidArgument, Next::Refused),
            (Code::Internal, Next::Refused),
            (Code::Unknown, Next::Refused),
            (Code::FailedPrecondition, Next::Refused),
        ] {
            assert_eq!(next(&Status::new(code, "")), expected, "{code:?}");
        }
    }

    #[test]
    fn a_pause_that_the_collector_asks_for_is_kept() {
        let delay = Duration::from_secs(7);
        let details = ErrorDetails::with_retry_info(Some(delay));
        for code in [Code::Unavailable, Code::ResourceExhausted] {
            let status = Status::with_error_details(code, "busy", details.clone());
            assert_eq!(next(&status), Next::Again(delay));
        }
        let status = Status::with_error_details(Code::InvalidArgument, "", details);
        assert_eq!(next(&status), Next::Refused);
        assert!(pause(1, delay, 0) >= delay && pause(30, delay, u32::MAX) <= delay + PAUSE_MIN);
        assert!(pause(1, Duration::MAX, u32::MAX) <= ASKED_MAX + PAUSE_MIN);
    }

    #[test]
    fn a_broken_connection_costs_no_record() {
        let status = Status::from_error(Box::new(io::Error::from(io::ErrorKind::ConnectionReset)));
        assert_eq!(next(&status), Next::Again(Duration::ZERO));
    }

    #[test]
    fn pauses_double_with_jitter_up_to_a_bound() {
        let pauses =
            |random| [1, 2, 3, 40].map(|failures| pause(failures, Duration::ZERO, random).as_millis());
        assert_eq!(pauses(u32::MAX), [500, 1000, 2000, 30_000]);
        assert_eq!(pauses(0), [250, 500, 1000, 15_000]);
    }
}
