//! What containers used, as a recording has sampled it: the points of curves. A daemon keeps no samples.
//!
//! Owns how many points a curve has. Never decides what belongs to a pod.

use std::collections::BTreeMap;

use kwitness_api::proto::amount::Amount;
use kwitness_api::{Source, SourceError, Timestamp, proto};

use super::micros::Micros;

/// The most points of a container: more than a screen has columns. When they are more, of each two the higher is kept.
const POINTS_MAX: usize = 2048;

/// What a container used at a time, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sampled {
    pub at: Micros,
    pub usage: u64,
    /// None: not known; inside, none: no limit.
    pub limit: Option<Option<u64>>,
}

/// Of each container, in the order of time; by cgroup ID and container ID.
#[derive(Debug, Default)]
pub struct Usage(BTreeMap<(u64, String), Vec<Sampled>>);

impl Usage {
    /// The samples since a time; none of a daemon.
    ///
    /// # Errors
    /// The recording cannot be read.
    pub async fn read(source: &Source, since: Option<Timestamp>) -> Result<Self, SourceError> {
        let mut usage = Self::default();
        if let Some(recording) = source.recording() {
            recording.samples(since, |sample| usage.take(sample)).await?;
        }
        Ok(usage)
    }

    /// Takes the next sample.
    pub(super) fn take(&mut self, sample: proto::UsageSample) {
        let proto::UsageSample { time, kernel_time, containers, .. } = sample;
        let Some(time) = time else { return };
        for usage in containers {
            let bytes = |amount: Option<&proto::Amount>| match amount?.amount.as_ref()? {
                Amount::Value(bytes) => Some(Some(*bytes)),
                Amount::Unlimited(_) => Some(None),
                Amount::Absent(_) | Amount::Unknown(_) => None,
            };
            let (used, limit) = (bytes(usage.memory_usage.as_ref()), bytes(usage.memory_limit.as_ref()));
            let (Some(Some(used)), Some(container)) = (used, usage.container) else { continue };
            // Its files were read a little later than the first ones.
            let later = i64::try_from(usage.kernel_time.saturating_sub(kernel_time)).unwrap_or_default();
            let at = time.to_unix_nanos().saturating_add(later).div_euclid(1000);
            let points = self.0.entry((container.cgroup_id, container.id)).or_default();
            if points.len() == POINTS_MAX {
                thin(points);
            }
            points.push(Sampled { at, usage: used, limit });
        }
    }

    /// Of a container.
    pub fn of(&self, container: &proto::Container) -> &[Sampled] {
        self.0.get(&(container.cgroup_id, container.id.clone())).map_or(&[], Vec::as_slice)
    }
}

/// Keeps half of them, peaks among them.
fn thin(points: &mut Vec<Sampled>) {
    let higher = |pair: &[Sampled]| pair.iter().copied().max_by_key(|point| point.usage);
    *points = points.chunks(2).filter_map(higher).collect();
}

#[cfg(test)]
mod tests {
    use super::*;
    use kwitness_api::proto::amount::Amount::{Unknown, Unlimited, Value};

    fn sample(seconds: i64, usage: Amount, limit: Amount) -> proto::UsageSample {
        let amount = |amount| Some(proto::Amount { amount: Some(amount) });
        let container = proto::Container { id: "c".into(), cgroup_id: 7, ..Default::default() };
        let usage = proto::ContainerUsage {
            container: Some(container),
            kernel_time: 5000,
            memory_usage: amount(usage),
            memory_limit: amount(limit),
            ..Default::default()
        };
        proto::UsageSample {
            time: Some(Timestamp { seconds, nanos: 0 }),
            kernel_time: 3000,
            containers: vec![usage],
            skipped: 0,
        }
    }

    #[test]
    fn what_is_not_known_is_no_point() {
        let mut usage = Usage::default();
        usage.take(sample(1, Value(5), Value(10)));
        usage.take(sample(2, Unknown("late".into()), Value(10)));
        usage.take(sample(3, Value(6), Unlimited(true)));
        usage.take(sample(4, Value(7), Unknown("late".into())));
        let container = proto::Container { id: "c".into(), cgroup_id: 7, ..Default::default() };
        let points: Vec<_> = usage.of(&container).iter().map(|of| (of.at, of.usage, of.limit)).collect();
        let wanted = [(1_000_002, 5, Some(Some(10))), (3_000_002, 6, Some(None)), (4_000_002, 7, None)];
        assert_eq!(points, wanted);
        assert!(usage.of(&proto::Container { id: "d".into(), ..container }).is_empty());
    }

    #[test]
    fn a_long_curve_is_bounded_and_keeps_its_peak() {
        let mut usage = Usage::default();
        let peak = 100;
        for second in 0..4 * POINTS_MAX as i64 {
            usage.take(sample(second, Value(if second == peak { 1000 } else { 1 }), Value(10)));
        }
        let container = proto::Container { id: "c".into(), cgroup_id: 7, ..Default::default() };
        let points = usage.of(&container);
        assert!(points.len() <= POINTS_MAX && points.len() >= POINTS_MAX / 2, "{}", points.len());
        assert!(points.iter().any(|point| point.usage == 1000 && point.at / 1_000_000 == peak));
        assert!(points.is_sorted_by_key(|point| point.at));
    }
}
