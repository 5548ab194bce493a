//! Memory pressure in words.

use anstyle::Style;

use super::limits::{whose, writer};
use super::{BAD, GOOD, NOTICE};
use kwitness_api::proto;
use kwitness_api::proto::PressureDirection;
use kwitness_core::units;

/// From this share of the limit on, in percent, it is serious.
const SERIOUS: u32 = 95;

/// How it looks.
pub fn style(pressure: &proto::Pressure) -> Style {
    match pressure.direction() {
        PressureDirection::Up if pressure.threshold_percent >= SERIOUS => BAD,
        PressureDirection::Up | PressureDirection::Unspecified => NOTICE,
        PressureDirection::Down => GOOD,
    }
}

/// A crossing, in a line: which threshold comes first, for a narrow terminal shows no more.
pub fn sentence(pressure: &proto::Pressure) -> String {
    let whose = pressure.cgroup.as_ref().map_or("cgroup", whose);
    let crossed = match pressure.direction() {
        PressureDirection::Up => "reached",
        PressureDirection::Down => "fell below",
        PressureDirection::Unspecified => "crossed",
    };
    let limit = match pressure.limit_bytes {
        Some(limit) => format!("of {}", units::amount(limit)),
        None => "without a limit".to_owned(),
    };
    let rate = match pressure.fill_rate {
        None | Some(0) => String::new(),
        Some(rate) => {
            let sign = if rate < 0 { "-" } else { "+" };
            format!(", {sign}{}/s", units::amount(rate.unsigned_abs()))
        }
    };
    let full =
        pressure.time_to_limit_ms.map_or_else(String::new, |millis| format!(", full in {}", time(millis)));
    let by =
        pressure.charged_by.as_ref().map_or_else(String::new, |by| format!(", filled by {}", writer(by)));
    let more = match pressure.suppressed {
        0 => String::new(),
        1 => " (+1 earlier crossing)".to_owned(),
        more => format!(" (+{more} earlier crossings)"),
    };
    let usage = units::amount(pressure.usage_bytes);
    let percent = pressure.threshold_percent;
    format!("{whose} memory {crossed} {percent} %: {usage} {limit}{rate}{full}{by}{more}")
}

fn time(millis: u64) -> String {
    match millis {
        0..1_000 => format!("{millis} ms"),
        1_000..120_000 => format!("{} s", millis / 1_000),
        120_000..7_200_000 => format!("{} min", millis / 60_000),
        _ => format!("{} h", millis / 3_600_000),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::*;

    /// A pod's memory that fills.
    pub fn rising() -> proto::Pressure {
        proto::Pressure {
            cgroup: Some(proto::Cgroup {
                id: 4241,
                path: Some("/kubepods.slice/pod".into()),
                role: proto::CgroupRole::Pod.into(),
                pod: crate::describe::testing::container(true).pod,
            }),
            threshold_percent: 80,
            direction: PressureDirection::Up.into(),
            usage_bytes: (51 << 20) + (1 << 18),
            limit_bytes: Some(64 << 20),
            fill_rate: Some(3 << 20),
            time_to_limit_ms: Some(4_250),
            suppressed: 0,
            charged_by: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crossings_read_as_sentences() {
        let rising = testing::rising();
        assert_eq!(sentence(&rising), "pod memory reached 80 %: 51.2Mi of 64Mi, +3Mi/s, full in 4 s");
        let by = proto::Writer { pid: Some(99), comm: Some("stress".into()), ..Default::default() };
        let charged = proto::Pressure { charged_by: Some(by), ..rising.clone() };
        assert_eq!(
            sentence(&charged),
            "pod memory reached 80 %: 51.2Mi of 64Mi, +3Mi/s, full in 4 s, filled by stress (99)"
        );
        let fallen = proto::Pressure {
            direction: PressureDirection::Down.into(),
            fill_rate: Some(-(1 << 19)),
            time_to_limit_ms: None,
            suppressed: 2,
            ..rising.clone()
        };
        assert_eq!(
            sentence(&fallen),
            "pod memory fell below 80 %: 51.2Mi of 64Mi, -512Ki/s (+2 earlier crossings)"
        );
        let lifted = proto::Pressure { limit_bytes: None, fill_rate: None, suppressed: 0, ..fallen };
        assert_eq!(sentence(&lifted), "pod memory fell below 80 %: 51.2Mi without a limit");
    }

    #[test]
    fn times_have_the_unit_that_fits() {
        for (millis, shown) in [(350, "350 ms"), (1_999, "1 s"), (180_000, "3 min"), (7_200_000, "2 h")] {
            assert_eq!(time(millis), shown);
        }
    }
}
