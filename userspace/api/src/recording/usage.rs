//! What containers use: how a sample is recorded, and what is known of usage as of a moment of a recording.
//!
//! Owns what of a sample is left out, and which events say more than the sample before them. Names and verdicts are added by whoever
//! answers: the recording has them elsewhere.

use std::collections::HashMap;

use super::Line;
use crate::proto::amount::Amount as Of;
use crate::proto::event::Kind;
use crate::proto::reading::Reading;
use crate::{Timestamp, proto};

impl Line {
    /// A sample as it is recorded: of each container only which one it is, and no verdicts.
    pub fn usage(mut sample: proto::UsageSample) -> Self {
        for usage in &mut sample.containers {
            usage.container = usage.container.as_ref().map(identity);
            usage.verdicts.clear();
        }
        Self::Usage(Box::new(sample))
    }
}

/// Which container it is, and nothing else of it.
fn identity(container: &proto::Container) -> proto::Container {
    proto::Container { id: container.id.clone(), cgroup_id: container.cgroup_id, ..Default::default() }
}

/// What is known of usage.
#[derive(Clone, Debug, Default)]
pub(super) struct Usage {
    /// The newest sample without its containers; none if there is none.
    pub sampled: Option<proto::UsageSample>,
    /// By cgroup ID.
    containers: HashMap<u64, proto::ContainerUsage>,
    /// The last OOM kill of each container, also of one that is gone, by container ID.
    pub kills: HashMap<String, (proto::Container, Timestamp)>,
}

impl Usage {
    /// Takes a sample: what it does not have is gone.
    pub fn sample(&mut self, sample: &proto::UsageSample) {
        let proto::UsageSample { time, kernel_time, skipped, .. } = *sample;
        self.sampled = Some(proto::UsageSample { time, kernel_time, skipped, containers: Vec::new() });
        let key = |usage: &proto::ContainerUsage| Some(usage.container.as_ref()?.cgroup_id);
        let containers = sample.containers.iter();
        self.containers = containers.filter_map(|usage| Some((key(usage)?, usage.clone()))).collect();
    }

    /// Takes what an event says of usage, of an event that is later than the state.
    pub fn event(&mut self, container: &proto::Container, kind: &Kind) {
        match kind {
            Kind::LimitChanged(changed) => {
                self.limit(container, changed.cgroup.as_ref(), &changed.file, changed.new.as_ref());
            }
            Kind::Verdict(verdict) => self.verdict(container, verdict),
            Kind::Deleted(_) => drop(self.containers.remove(&container.cgroup_id)),
            _ => {}
        }
    }

    /// Takes an OOM kill, of any event: a container that was killed before the state still has been.
    pub fn killed(&mut self, event: &proto::Event) {
        if let (Some(container), Some(time), Some(Kind::OomKill(_))) =
            (&event.container, event.time, &event.kind)
        {
            self.kills.insert(container.id.clone(), (container.clone(), time));
        }
    }

    /// Takes what a limit was found to be.
    pub fn verdict(&mut self, container: &proto::Container, verdict: &proto::Verdict) {
        self.limit(container, verdict.cgroup.as_ref(), &verdict.file, verdict.in_force.as_ref());
    }

    fn limit(
        &mut self,
        container: &proto::Container,
        cgroup: Option<&proto::Cgroup>,
        file: &str,
        reading: Option<&proto::Reading>,
    ) {
        let is_own = cgroup.is_some_and(|cgroup| cgroup.id == container.cgroup_id);
        let Some(amount) = reading.and_then(amount).filter(|_| is_own) else { return };
        let usage = self.containers.entry(container.cgroup_id).or_default();
        // A cgroup ID of before a reboot may be another container's.
        if usage.container.as_ref().is_none_or(|known| known.id != container.id) {
            *usage = proto::ContainerUsage { container: Some(identity(container)), ..Default::default() };
        }
        let limit = match file {
            "memory.max" => &mut usage.memory_limit,
            "memory.high" => &mut usage.memory_high,
            _ => return,
        };
        if limit.as_ref() != Some(&amount) {
            *limit = Some(amount);
            // It was that to the limit before.
            usage.time_to_limit_ms = None;
        }
    }

    /// What is known of a container. What is not, says so.
    pub fn of(&self, container: &proto::Container) -> proto::ContainerUsage {
        let is_it = |usage: &&proto::ContainerUsage| {
            usage.container.as_ref().is_some_and(|known| known.id == container.id)
        };
        let known = self.containers.get(&container.cgroup_id).filter(is_it);
        let mut usage = known.cloned().unwrap_or_default();
        for amount in [
            &mut usage.memory_usage,
            &mut usage.memory_limit,
            &mut usage.memory_high,
            &mut usage.inactive_file,
            &mut usage.oom_kills,
            &mut usage.cpu_periods,
            &mut usage.cpu_throttled,
        ] {
            amount.get_or_insert_with(|| proto::Amount {
                amount: Some(Of::Unknown("not recorded".to_owned())),
            });
        }
        usage
    }
}

/// What a limit file says, as a number of bytes; none if it could not be read.
fn amount(reading: &proto::Reading) -> Option<proto::Amount> {
    let amount = match reading.reading.as_ref()? {
        Reading::Value(value) if value == "max" => Of::Unlimited(true),
        Reading::Value(value) => Of::Value(value.parse().ok()?),
        Reading::Absent(_) => Of::Absent(true),
        Reading::Gone(_) | Reading::Unknown(_) => return None,
    };
    Some(proto::Amount { amount: Some(amount) })
}
