//! `google.protobuf.Timestamp`, written by hand: the canonical JSON wants it as RFC 3339 with a `Z`.

use chrono::{DateTime, SecondsFormat, Utc};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// `google.protobuf.Timestamp`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Message)]
pub struct Timestamp {
    /// Of UTC, since the Unix epoch.
    #[prost(int64, tag = "1")]
    pub seconds: i64,
    /// Of the second, never negative.
    #[prost(int32, tag = "2")]
    pub nanos: i32,
}

impl Timestamp {
    /// From nanoseconds since the Unix epoch.
    pub fn from_unix_nanos(nanos: i64) -> Self {
        Self { seconds: nanos.div_euclid(1_000_000_000), nanos: nanos.rem_euclid(1_000_000_000) as i32 }
    }

    /// As nanoseconds since the Unix epoch; what does not fit becomes the nearest that does.
    pub fn to_unix_nanos(self) -> i64 {
        self.seconds.saturating_mul(1_000_000_000).saturating_add(i64::from(self.nanos))
    }

    /// As chrono's type; none if it is out of range.
    pub fn to_utc(self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp(self.seconds, u32::try_from(self.nanos).ok()?)
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let time = self
            .to_utc()
            .ok_or_else(|| serde::ser::Error::custom(format!("timestamp out of range: {self:?}")))?;
        serializer.serialize_str(&time.to_rfc3339_opts(SecondsFormat::AutoSi, true))
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = DateTime::parse_from_rfc3339(&text).map_err(D::Error::custom)?;
        Ok(Self { seconds: time.timestamp(), nanos: time.timestamp_subsec_nanos() as i32 })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::{Deleted, Event, Position, event};

    #[test]
    fn json_is_the_canonical_one() {
        let event = Event {
            position: Some(Position { epoch: "e".into(), seq: 18_446_744_073_709_551_615 }),
            time: Some(Timestamp::from_unix_nanos(1_700_000_000_120_000_000)),
            kernel_time: 7,
            container: None,
            basis: crate::proto::Basis::CgroupRmdir.into(),
            r#type: "deleted".into(),
            kind: Some(event::Kind::Deleted(Deleted { actor: None })),
        };
        let json = serde_json::to_string(&event).unwrap();
        assert_eq!(
            json,
            r#"{"position":{"epoch":"e","seq":"18446744073709551615"},"time":"2023-11-14T22:13:20.120Z","kernelTime":"7","basis":"BASIS_CGROUP_RMDIR","type":"deleted","deleted":{}}"#
        );
        assert_eq!(serde_json::from_str::<Event>(&json).unwrap(), event);
    }

    #[test]
    fn times_before_the_epoch_have_positive_nanos() {
        let time = Timestamp::from_unix_nanos(-1);
        assert_eq!(time, Timestamp { seconds: -1, nanos: 999_999_999 });
        assert_eq!(time.to_unix_nanos(), -1);
    }
}
