//! Families of Prometheus as metrics of OTLP, by OpenTelemetry's "Prometheus and OpenMetrics Compatibility".
//!
//! | Prometheus | OTLP |
//! |---|---|
//! | counter | Sum, monotonic and cumulative since the start of the daemon |
//! | gauge | Gauge |
//! | histogram | Histogram, cumulative since then |
//!
//! Names stay as they are, so that rules and dashboards hold. Pure.

use std::collections::BTreeMap;

use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::common::v1::{InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::metrics::v1::{
    AggregationTemporality, Gauge, Histogram, HistogramDataPoint, Metric, NumberDataPoint, ResourceMetrics,
    ScopeMetrics, Sum, metric, number_data_point,
};
use opentelemetry_proto::tonic::resource::v1::Resource;
use prost::Message as _;

use super::text::{Family, Kind, Sample};
use crate::record::any_text;

/// The gauge that says when the daemon started, and its counters with it.
const START: &str = "process_start_time_seconds";
/// What a message holds, unless one metric is larger: a quarter of what gRPC servers accept by default.
const MESSAGE_BYTES: usize = 1 << 20;
/// The most points of a metric in one message; each has at most some 2 KiB of labels.
const POINTS_MAX: usize = 1000;

/// The messages for what was read at that time, in nanoseconds since the Unix epoch.
pub fn messages(families: Vec<Family>, resource: &Resource, time: u64) -> Vec<ExportMetricsServiceRequest> {
    let started = families.iter().find(|family| family.name == START);
    let started = started.and_then(|family| family.samples.first()?.value.parse::<f64>().ok());
    // Zero: it is not known.
    let start = started.map_or(0, |seconds| (seconds * 1e9) as u64);
    let mut messages = Vec::new();
    let (mut metrics, mut bytes) = (Vec::new(), 0);
    for metric in families.into_iter().flat_map(|family| self::metrics(family, start, time)) {
        let size = metric.encoded_len();
        if bytes > 0 && bytes + size > MESSAGE_BYTES {
            messages.push(message(std::mem::take(&mut metrics), resource));
            bytes = 0;
        }
        bytes += size;
        metrics.push(metric);
    }
    if !metrics.is_empty() {
        messages.push(message(metrics, resource));
    }
    messages
}

fn message(metrics: Vec<Metric>, resource: &Resource) -> ExportMetricsServiceRequest {
    let scope = InstrumentationScope {
        name: "kwitness".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    let scope_metrics = vec![ScopeMetrics { scope: Some(scope), metrics, ..Default::default() }];
    let resource = Some(resource.clone());
    ExportMetricsServiceRequest {
        resource_metrics: vec![ResourceMetrics { resource, scope_metrics, ..Default::default() }],
    }
}

fn metrics(family: Family, start: u64, time: u64) -> Vec<Metric> {
    let Family { name, help, kind, samples } = family;
    let cumulative = AggregationTemporality::Cumulative.into();
    let data: Vec<metric::Data> = match kind {
        Kind::Counter => chunks(samples.iter().map(|sample| number(sample, start, time)), |data_points| {
            metric::Data::Sum(Sum { data_points, aggregation_temporality: cumulative, is_monotonic: true })
        }),
        Kind::Gauge => chunks(samples.iter().map(|sample| number(sample, 0, time)), |data_points| {
            metric::Data::Gauge(Gauge { data_points })
        }),
        Kind::Histogram => chunks(histograms(&name, &samples, start, time).into_iter(), |data_points| {
            metric::Data::Histogram(Histogram { data_points, aggregation_temporality: cumulative })
        }),
    };
    let unit = unit(&name).to_owned();
    let metric = Metric { name, description: help, unit, ..Default::default() };
    data.into_iter().map(|data| Metric { data: Some(data), ..metric.clone() }).collect()
}

fn chunks<T>(points: impl Iterator<Item = T>, data: impl Fn(Vec<T>) -> metric::Data) -> Vec<metric::Data> {
    let mut points = points.peekable();
    let mut chunks = Vec::new();
    while points.peek().is_some() {
        chunks.push(data(points.by_ref().take(POINTS_MAX).collect()));
    }
    chunks
}

/// In UCUM.
fn unit(name: &str) -> &'static str {
    let name = name.strip_suffix("_total").unwrap_or(name);
    match name.rsplit_once('_') {
        Some((_, "seconds")) => "s",
        Some((_, "bytes")) => "By",
        _ => "",
    }
}

fn number(sample: &Sample, start: u64, time: u64) -> NumberDataPoint {
    use number_data_point::Value;
    let number = sample.value.parse().unwrap_or(f64::NAN);
    NumberDataPoint {
        attributes: attributes(&sample.labels),
        start_time_unix_nano: start,
        time_unix_nano: time,
        value: Some(sample.value.parse().map_or(Value::AsDouble(number), Value::AsInt)),
        ..Default::default()
    }
}

fn attributes(labels: &[(String, String)]) -> Vec<KeyValue> {
    let one = |(key, value): &(String, String)| KeyValue {
        key: key.clone(),
        value: Some(any_text(value)),
        ..Default::default()
    };
    labels.iter().map(one).collect()
}

/// What the samples of one histogram say of one set of labels.
#[derive(Default)]
struct Parts {
    /// Upper bounds and cumulative counts.
    buckets: Vec<(f64, u64)>,
    sum: Option<f64>,
    count: u64,
}

fn histograms(name: &str, samples: &[Sample], start: u64, time: u64) -> Vec<HistogramDataPoint> {
    let mut all: BTreeMap<Vec<(String, String)>, Parts> = BTreeMap::new();
    for sample in samples {
        let is_bound = |label: &&(String, String)| label.0 == "le";
        let bound = sample.labels.iter().find(is_bound).and_then(|(_, bound)| bound.parse().ok());
        let labels = sample.labels.iter().filter(|label| !is_bound(label)).cloned().collect();
        let parts = all.entry(labels).or_default();
        match (sample.name.strip_prefix(name), bound) {
            (Some("_bucket"), Some(bound)) => parts.buckets.push((bound, sample.value.parse().unwrap_or(0))),
            (Some("_count"), _) => parts.count = sample.value.parse().unwrap_or(0),
            (Some("_sum"), _) => parts.sum = sample.value.parse().ok(),
            _ => {}
        }
    }
    let point = |(labels, mut parts): (Vec<(String, String)>, Parts)| {
        parts.buckets.retain(|(bound, _)| bound.is_finite());
        parts.buckets.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        let explicit_bounds = parts.buckets.iter().map(|(bound, _)| *bound).collect();
        let mut below = 0;
        let cumulative = parts.buckets.iter().map(|(_, count)| *count).chain([parts.count]);
        let bucket_counts =
            cumulative.map(|count| count.saturating_sub(std::mem::replace(&mut below, count)));
        HistogramDataPoint {
            attributes: attributes(&labels),
            start_time_unix_nano: start,
            time_unix_nano: time,
            count: parts.count,
            sum: parts.sum,
            bucket_counts: bucket_counts.collect(),
            explicit_bounds,
            ..Default::default()
        }
    };
    all.into_iter().map(point).collect()
}

#[cfg(test)]
mod tests {
    use kwitness_service::metrics::{Exposition, Format, Histogram as Observed};

    use super::*;
    use crate::daemon_metrics::text;

    kwitness_service::metrics! {
        /// For these tests.
        CATALOG {
            EVENTS: Counter, "test_events_total", ["type"], "Events.";
            SIZE: Gauge, "test_size_bytes", [], "Size.";
            CPU: Counter, "test_cpu_seconds_total", [], "CPU time.";
            DELAY: Histogram, "test_delay_seconds", ["of"], "Delay.";
            STARTED: Gauge, "process_start_time_seconds", [], "Start.";
        }
    }

    fn exported(exposition: Exposition) -> Vec<ExportMetricsServiceRequest> {
        let families = text::parse(&exposition.text(Format::Prometheus)).unwrap();
        messages(families, &Resource::default(), 9_000_000_000)
    }

    fn metrics_of(message: &ExportMetricsServiceRequest) -> &[Metric] {
        &message.resource_metrics[0].scope_metrics[0].metrics
    }

    #[test]
    fn what_the_daemon_exposes_is_what_the_collector_gets() {
        let mut exposition = Exposition::default();
        exposition.family(&EVENTS).add(["a\"b\\c"], u64::from(u32::MAX));
        exposition.set(&SIZE, 4096u64);
        exposition.set(&CPU, 1.5);
        let mut delay = Observed::new(&[0.1, 1.0]);
        [0.1, 0.5, 0.5, 7.0].into_iter().for_each(|value| delay.observe(value));
        exposition.family(&DELAY).add(["x"], &delay);
        exposition.set(&STARTED, 3.5);
        let messages = exported(exposition);
        assert_eq!(messages.len(), 1);
        let metrics = metrics_of(&messages[0]);
        let about: Vec<_> = metrics
            .iter()
            .map(|metric| (metric.name.as_str(), metric.unit.as_str(), metric.description.as_str()))
            .collect();
        assert_eq!(
            about,
            [
                ("test_events_total", "", "Events."),
                ("test_size_bytes", "By", "Size."),
                ("test_cpu_seconds_total", "s", "CPU time."),
                ("test_delay_seconds", "s", "Delay."),
                ("process_start_time_seconds", "s", "Start."),
            ]
        );
        let data: Vec<_> = metrics.iter().map(|metric| metric.data.clone().unwrap()).collect();
        let metric::Data::Sum(events) = &data[0] else { panic!("{data:?}") };
        assert!(
            events.is_monotonic && events.aggregation_temporality() == AggregationTemporality::Cumulative
        );
        let point = &events.data_points[0];
        assert_eq!((point.start_time_unix_nano, point.time_unix_nano), (3_500_000_000, 9_000_000_000));
        assert_eq!(point.value, Some(number_data_point::Value::AsInt(i64::from(u32::MAX))));
        assert_eq!(point.attributes[0].value, Some(any_text("a\"b\\c")));
        let metric::Data::Gauge(size) = &data[1] else { panic!("{data:?}") };
        assert_eq!(size.data_points[0].start_time_unix_nano, 0, "a gauge begins nowhere");
        let metric::Data::Sum(cpu) = &data[2] else { panic!("{data:?}") };
        assert_eq!(cpu.data_points[0].value, Some(number_data_point::Value::AsDouble(1.5)));
        let metric::Data::Histogram(delay) = &data[3] else { panic!("{data:?}") };
        let point = &delay.data_points[0];
        assert_eq!((point.count, point.sum), (4, Some(8.1)));
        assert_eq!((&point.bucket_counts, &point.explicit_bounds), (&vec![1, 2, 1], &vec![0.1, 1.0]));
        assert_eq!(point.attributes.len(), 1, "the bound is no attribute");
    }

    #[test]
    fn messages_are_bounded_and_have_every_point() {
        let mut exposition = Exposition::default();
        let mut events = exposition.family(&EVENTS);
        for number in 0..10_000u64 {
            events.add([&format!("{number:0>250}")], number);
        }
        let messages = exported(exposition);
        assert!(messages.iter().all(|message| message.encoded_len() < 2 * MESSAGE_BYTES));
        let points = messages.iter().flat_map(metrics_of).map(|metric| match metric.data.as_ref().unwrap() {
            metric::Data::Sum(sum) => sum.data_points.len(),
            other => panic!("{other:?}"),
        });
        assert_eq!(points.sum::<usize>(), 10_000);
    }
}
