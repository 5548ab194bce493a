//! A container's usage as a row: numbers, or why there is none.

use std::time::Duration;

use kwitness_api::proto::{VerdictKind, amount};
use kwitness_api::{Timestamp, proto};

use crate::describe::{Names, names, qos_class, severity};
use crate::text::UNKNOWN;

/// A number, or why there is none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Amount {
    Is(u64),
    /// There is no limit.
    Unlimited,
    /// There is no such file on this node.
    Absent,
    /// It could not be read.
    Unknown(String),
}

impl Amount {
    fn of(amount: Option<&proto::Amount>) -> Self {
        match amount.and_then(|amount| amount.amount.as_ref()) {
            Some(amount::Amount::Value(number)) => Self::Is(*number),
            Some(amount::Amount::Unlimited(_)) => Self::Unlimited,
            Some(amount::Amount::Absent(_)) => Self::Absent,
            Some(amount::Amount::Unknown(reason)) => Self::Unknown(reason.clone()),
            None => Self::Unknown("not reported by this daemon".to_owned()),
        }
    }

    pub(super) fn number(&self) -> Option<u64> {
        match self {
            Self::Is(number) => Some(*number),
            Self::Unlimited | Self::Absent | Self::Unknown(_) => None,
        }
    }
}

/// A container, as a row shows it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) cgroup_id: u64,
    pub(super) names: Names,
    pub(super) id: String,
    pub(super) qos: &'static str,
    pub(super) usage: Amount,
    pub(super) limit: Amount,
    pub(super) high: Amount,
    pub(super) cache: Amount,
    pub(super) oom_kills: Amount,
    /// Bytes per second.
    pub(super) fill_rate: Option<i64>,
    pub(super) time_to_limit: Option<Duration>,
    pub(super) throttled: Option<f64>,
    pub(super) last_oom_kill: Option<Timestamp>,
    /// The worst of its limits: which one, and what.
    pub(super) verdict: Option<(String, VerdictKind)>,
}

impl Row {
    pub(super) fn new(usage: &proto::ContainerUsage) -> Self {
        let container = usage.container.as_ref();
        let class = container.and_then(|container| container.pod.as_ref()).map(proto::Pod::qos_class);
        let worst = usage.verdicts.iter().max_by_key(|verdict| severity(verdict.verdict()));
        Self {
            cgroup_id: container.map_or(0, |container| container.cgroup_id),
            names: names(container, false),
            id: container.map_or_else(|| UNKNOWN.to_owned(), |container| container.id.clone()),
            qos: class.map_or(UNKNOWN, qos_class),
            usage: Amount::of(usage.memory_usage.as_ref()),
            limit: Amount::of(usage.memory_limit.as_ref()),
            high: Amount::of(usage.memory_high.as_ref()),
            cache: Amount::of(usage.inactive_file.as_ref()),
            oom_kills: Amount::of(usage.oom_kills.as_ref()),
            fill_rate: usage.fill_rate,
            time_to_limit: usage.time_to_limit_ms.map(Duration::from_millis),
            throttled: usage.throttled_share,
            last_oom_kill: usage.last_oom_kill,
            verdict: worst.map(|worst| (worst.file.clone(), worst.verdict())),
        }
    }

    /// How much of its limit it uses, from 0 to 1; none: it has no limit, or that is not known.
    pub(super) fn share(&self) -> Option<f64> {
        let (usage, limit) = self.usage.number().zip(self.limit.number())?;
        (limit > 0).then(|| usage as f64 / limit as f64)
    }

    /// `prod/web-0/nginx`
    pub(super) fn full_name(&self) -> String {
        format!("{}/{}", self.names.qualified(), self.names.container)
    }
}
