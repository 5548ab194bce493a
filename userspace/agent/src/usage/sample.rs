//! A sample: what was read of all containers, with what follows from it, in the API's shape.

use std::collections::HashMap;
use std::sync::Arc;

use kwitness_api::{Timestamp, proto};
use kwitness_core::model::{CgroupId, KernelTime, LastVerdict, Subject};
use kwitness_core::usage::{Meter, Point, time_to_limit};

use super::kills::Kills;
use super::read::{Files, Outcome};
use crate::cgroupfs::usage_files::Amount;
use crate::clock::Clock;
use crate::hub::{Filter, selects};
use crate::wire::{convert, verdicts};

/// What all containers used at one time.
#[derive(Debug)]
pub struct Sample {
    at: KernelTime,
    time: Timestamp,
    /// Each without its `container`, which differs in nothing but is large: it is added for whom it is sent to.
    containers: Vec<(Arc<Subject>, proto::ContainerUsage)>,
}

impl Sample {
    /// From what was read. `meters` has one for each container that is not gone.
    pub(super) fn new(
        clock: Clock,
        subjects: Vec<Arc<Subject>>,
        outcomes: Vec<Outcome>,
        meters: &mut HashMap<CgroupId, Meter>,
        kills: &Kills,
        last_verdicts: &[LastVerdict],
    ) -> Self {
        let mut judged: HashMap<CgroupId, Vec<proto::LimitVerdict>> = HashMap::new();
        for LastVerdict { subject, resource, verdict, .. } in last_verdicts {
            if let Some(subject) = subject {
                judged.entry(subject.cgroup_id).or_default().push(proto::LimitVerdict {
                    file: resource.file().to_string(),
                    verdict: verdicts::kind(verdict).into(),
                });
            }
        }
        let usage = |(subject, outcome): (Arc<Subject>, Outcome)| {
            let (at, files) = outcome.files(clock.now())?;
            let meter = meters.get_mut(&subject.cgroup_id)?;
            let mut usage = measured(at, files, meter);
            usage.last_oom_kill = kills.last(&subject).map(|at| clock.wall(at));
            usage.verdicts = judged.remove(&subject.cgroup_id).unwrap_or_default();
            Some((subject, usage))
        };
        Self {
            at: clock.now(),
            time: clock.wall(clock.now()),
            containers: subjects.into_iter().zip(outcomes).filter_map(usage).collect(),
        }
    }

    /// The sample without containers.
    pub fn head(&self, skipped: u64) -> proto::UsageSample {
        let containers = Vec::new();
        proto::UsageSample { time: Some(self.time), kernel_time: self.at.0, containers, skipped }
    }

    /// The containers that match.
    pub fn containers(&self, filter: &Filter) -> impl Iterator<Item = proto::ContainerUsage> {
        let wanted = self.containers.iter().filter(|(subject, _)| selects(filter, subject));
        wanted.map(|(subject, usage)| proto::ContainerUsage {
            container: Some(convert::container(subject)),
            ..usage.clone()
        })
    }
}

fn measured(at: KernelTime, files: Files, meter: &mut Meter) -> proto::ContainerUsage {
    let periods = files.cpu_periods.number().zip(files.cpu_throttled.number());
    meter.push(at, Point { memory: files.memory_usage.number(), periods });
    let fill_rate = meter.fill_rate();
    let time_to_limit = files
        .memory_usage
        .number()
        .zip(files.memory_limit.number())
        .zip(fill_rate)
        .and_then(|((usage, limit), rate)| time_to_limit(usage, limit, rate));
    proto::ContainerUsage {
        container: None,
        kernel_time: at.0,
        memory_usage: amount(files.memory_usage),
        memory_limit: amount(files.memory_limit),
        memory_high: amount(files.memory_high),
        inactive_file: amount(files.inactive_file),
        oom_kills: amount(files.oom_kills),
        cpu_periods: amount(files.cpu_periods),
        cpu_throttled: amount(files.cpu_throttled),
        fill_rate,
        time_to_limit_ms: time_to_limit.map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
        throttled_share: meter.throttled_share(),
        last_oom_kill: None,
        verdicts: Vec::new(),
    }
}

fn amount(amount: Amount) -> Option<proto::Amount> {
    use proto::amount::Amount as Of;
    let amount = match amount {
        Amount::Is(number) => Of::Value(number),
        Amount::Unlimited => Of::Unlimited(true),
        Amount::Absent => Of::Absent(true),
        Amount::Unknown(reason) => Of::Unknown(reason),
    };
    Some(proto::Amount { amount: Some(amount) })
}
