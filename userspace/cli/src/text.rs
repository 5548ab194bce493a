//! Small texts: ages, durations, shortened IDs. The way kubectl writes them.

use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};

use kwitness_api::Timestamp;

/// For what is not known.
pub const UNKNOWN: &str = "-";
/// As many characters as every tool shows of an id.
const ID_LENGTH: usize = 12;
/// The first two groups of a UID.
const UID_LENGTH: usize = 13;

/// A container's id, shortened.
pub fn short_id(id: &str) -> &str {
    id.get(..ID_LENGTH).unwrap_or(id)
}

/// A pod's UID, shortened.
pub fn short_uid(uid: &str) -> &str {
    uid.get(..UID_LENGTH).unwrap_or(uid)
}

/// How long ago, as kubectl says it; a time to come is now.
pub fn age(time: Option<Timestamp>, now: DateTime<Utc>) -> String {
    let Some(time) = time.and_then(Timestamp::to_utc) else { return UNKNOWN.to_owned() };
    human((now - time).max(TimeDelta::zero()))
}

fn human(age: TimeDelta) -> String {
    let (seconds, minutes, hours, days) =
        (age.num_seconds(), age.num_minutes(), age.num_hours(), age.num_days());
    let pair =
        |first: String, rest: i64, unit: &str| if rest == 0 { first } else { format!("{first}{rest}{unit}") };
    match () {
        () if seconds < 120 => format!("{seconds}s"),
        () if minutes < 10 => pair(format!("{minutes}m"), seconds % 60, "s"),
        () if minutes < 180 => format!("{minutes}m"),
        () if hours < 8 => pair(format!("{hours}h"), minutes % 60, "m"),
        () if hours < 48 => format!("{hours}h"),
        () if days < 8 => pair(format!("{days}d"), hours % 24, "h"),
        () if days < 730 => format!("{days}d"),
        () => pair(format!("{}y", days / 365), days % 365, "d"),
    }
}

/// A time that a person names: an age, or a time of the calendar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// This long ago.
    Ago(Duration),
    /// At this time.
    At(Timestamp),
}

impl Moment {
    /// As a time; an age is relative to this one.
    pub fn before(self, now: DateTime<Utc>) -> Timestamp {
        match self {
            Self::At(time) => time,
            Self::Ago(age) => {
                let age = TimeDelta::from_std(age).unwrap_or(TimeDelta::MAX);
                let time = now.checked_sub_signed(age).unwrap_or(DateTime::UNIX_EPOCH);
                Timestamp { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos().cast_signed() }
            }
        }
    }
}

impl FromStr for Moment {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(time) = DateTime::parse_from_rfc3339(text) {
            let nanos = time.timestamp_subsec_nanos().cast_signed();
            return Ok(Self::At(Timestamp { seconds: time.timestamp(), nanos }));
        }
        duration(text).map(Self::Ago).ok_or_else(|| {
            "neither an age (\"90s\", \"5m\", \"1h30m\", \"2d\") nor an RFC 3339 time".to_owned()
        })
    }
}

/// Numbers with units, the way Go writes durations, with days.
pub fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit())?;
        let number: u64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let part = match &rest[..unit] {
            "ms" => Duration::from_millis(number),
            "s" => Duration::from_secs(number),
            "m" => Duration::from_secs(number.checked_mul(60)?),
            "h" => Duration::from_secs(number.checked_mul(3600)?),
            "d" => Duration::from_secs(number.checked_mul(86_400)?),
            _ => return None,
        };
        total = total.checked_add(part)?;
        rest = &rest[unit..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_are_kubectls() {
        let age = |seconds| human(TimeDelta::seconds(seconds));
        for (seconds, text) in [
            (0, "0s"),
            (119, "119s"),
            (120, "2m"),
            (125, "2m5s"),
            (601, "10m"),
            (3 * 3600, "3h"),
            (3 * 3600 + 65, "3h1m"),
            (9 * 3600 + 65, "9h"),
            (50 * 3600, "2d2h"),
            (9 * 86_400, "9d"),
            (800 * 86_400, "2y70d"),
        ] {
            assert_eq!(age(seconds), text, "{seconds}");
        }
    }

    #[test]
    fn moments() {
        let ago = |seconds| Ok(Moment::Ago(Duration::from_secs(seconds)));
        assert_eq!("5m".parse(), ago(300));
        assert_eq!("1h30m".parse(), ago(5400));
        assert_eq!("2d".parse(), ago(172_800));
        assert_eq!("1970-01-01T00:00:01Z".parse(), Ok(Moment::At(Timestamp { seconds: 1, nanos: 0 })));
        for wrong in ["", "5", "m", "5 m", "5x", "-5m", "99999999999999999999d"] {
            assert!(wrong.parse::<Moment>().is_err(), "{wrong}");
        }
    }
}
