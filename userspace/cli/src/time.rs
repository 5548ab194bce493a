//! Times as people read them: in which zone, with the date where it matters. Ages are kubectl's, see [`crate::text`].

use chrono::{DateTime, Datelike as _, FixedOffset, Local, Offset as _, SecondsFormat, Utc};
use clap::ValueEnum;
use kwitness_api::Timestamp;

use crate::text::{UNKNOWN, age};

/// How times are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TimeFormat {
    /// 15:04:05.000, with the date if it is not today
    Clock,
    /// 2006-01-02T15:04:05.000000Z
    Rfc3339,
    /// How long ago: 5m3s
    Relative,
}

/// What a time is shown relative to.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    format: TimeFormat,
    zone: FixedOffset,
    /// None: the present, which goes on while a stream is printed.
    as_of: Option<DateTime<Utc>>,
    has_millis: bool,
}

impl Times {
    /// From the options, relative to the present.
    pub fn new(format: TimeFormat, utc: bool) -> Self {
        let zone = if utc { Utc.fix() } else { Local::now().offset().fix() };
        Self { format, zone, as_of: None, has_millis: true }
    }

    /// As of that time: times of its day have no date.
    pub fn as_of(self, now: DateTime<Utc>) -> Self {
        Self { as_of: Some(now), ..self }
    }

    /// Clock times of that day have no date. Ages stay what they are.
    pub fn on_the_day_of(self, day: DateTime<Utc>) -> Self {
        if self.format == TimeFormat::Clock { self.as_of(day) } else { self }
    }

    /// Clock times without milliseconds, for a narrow terminal.
    pub fn to_seconds(self) -> Self {
        Self { has_millis: false, ..self }
    }

    #[cfg(test)]
    pub fn at(format: TimeFormat, now: &str) -> Self {
        let now = DateTime::parse_from_rfc3339(now).unwrap();
        Self { format, zone: *now.offset(), as_of: Some(now.to_utc()), has_millis: true }
    }

    fn now(&self) -> DateTime<FixedOffset> {
        self.as_of.unwrap_or_else(Utc::now).with_timezone(&self.zone)
    }

    /// The heading of a column of times, with the zone: the client's is not always the node's.
    pub fn heading(&self) -> String {
        match self.format {
            TimeFormat::Relative => "AGE".to_owned(),
            TimeFormat::Clock | TimeFormat::Rfc3339 if self.has_millis => format!("TIME ({})", self.zone()),
            TimeFormat::Clock | TimeFormat::Rfc3339 => self.zone(),
        }
    }

    /// The zone of the times: "UTC", "+02:00".
    fn zone(&self) -> String {
        if self.zone.local_minus_utc() == 0 { "UTC".to_owned() } else { self.zone.to_string() }
    }

    /// A time that stands below no heading: with the zone, unless the format has it.
    pub fn show_alone(&self, time: Option<Timestamp>) -> String {
        match self.format {
            TimeFormat::Clock if time.is_some() => format!("{} {}", self.show(time), self.zone()),
            TimeFormat::Clock | TimeFormat::Rfc3339 | TimeFormat::Relative => self.show(time),
        }
    }

    /// A time.
    pub fn show(&self, time: Option<Timestamp>) -> String {
        let Some(at) = time.and_then(Timestamp::to_utc) else { return UNKNOWN.to_owned() };
        let local = at.with_timezone(&self.zone);
        match self.format {
            TimeFormat::Relative => age(time, self.now().to_utc()),
            TimeFormat::Rfc3339 => {
                local.to_rfc3339_opts(SecondsFormat::Micros, self.zone.local_minus_utc() == 0)
            }
            TimeFormat::Clock => {
                let now = self.now();
                let date = if local.date_naive() == now.date_naive() {
                    ""
                } else if local.year() == now.year() {
                    "%b %d "
                } else {
                    "%Y-%m-%d "
                };
                let clock = if self.has_millis { "%H:%M:%S%.3f" } else { "%H:%M:%S" };
                local.format(&format!("{date}{clock}")).to_string()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_present_goes_on_while_a_stream_is_printed() {
        let times = Times::new(TimeFormat::Clock, true);
        let later = Utc::now();
        assert!(times.now() >= later, "after midnight, the new day's times would have its date");
    }

    #[test]
    fn the_date_and_the_zone_are_shown_where_they_matter() {
        let time = |text: &str| {
            let at = DateTime::parse_from_rfc3339(text).unwrap();
            Some(Timestamp { seconds: at.timestamp(), nanos: at.timestamp_subsec_nanos().cast_signed() })
        };
        let clock = Times::at(TimeFormat::Clock, "2026-03-02T12:00:00+02:00");
        assert_eq!(clock.heading(), "TIME (+02:00)");
        assert_eq!(clock.show(time("2026-03-02T09:59:59.5Z")), "11:59:59.500");
        assert_eq!(clock.show(time("2026-03-01T21:59:59Z")), "Mar 01 23:59:59.000");
        assert_eq!(clock.show(time("2025-12-31T12:00:00Z")), "2025-12-31 14:00:00.000");
        assert_eq!((clock.show(None).as_str(), clock.show_alone(None).as_str()), ("-", "-"));
        assert_eq!(clock.show_alone(time("2026-03-02T09:59:59.5Z")), "11:59:59.500 +02:00");
        assert_eq!(clock.to_seconds().heading(), "+02:00");
        assert_eq!(clock.to_seconds().show(time("2026-03-02T09:59:59.5Z")), "11:59:59");
        let utc = Times::at(TimeFormat::Rfc3339, "2026-03-02T12:00:00Z");
        assert_eq!(utc.heading(), "TIME (UTC)");
        assert_eq!(utc.show(time("2026-03-02T09:59:59.5Z")), "2026-03-02T09:59:59.500000Z");
        let relative = Times::at(TimeFormat::Relative, "2026-03-02T12:00:00Z");
        assert_eq!(
            (relative.heading().as_str(), relative.show(time("2026-03-02T11:54:00Z")).as_str()),
            ("AGE", "6m")
        );
    }
}
