//! From what was counted to samples: one function for each source. Names and help stand in the [catalog](super::catalog).

use std::collections::BTreeMap;
use std::time::Duration;

use kwitness_abi::RecordKind;
use kwitness_core::model::{Resource, State};
use kwitness_service::metrics::Exposition;

use super::catalog::*;
use super::workload::Workload;
use super::{Sources, words};
use crate::clock::Clock;
use crate::cri_events::Events;
use crate::engine::Report;
use crate::probe::capability::CAPABILITIES;
use crate::probe::{CapabilityReport, RingState};
use crate::wire::{problem, unserved};
use kwitness_api::EventKind;

/// Whether there is anything to count.
pub(super) fn standby(exposition: &mut Exposition, is_standby: bool) {
    exposition.set(&STANDBY, u64::from(is_standby));
}

/// What the parts count themselves.
pub(super) fn daemon(exposition: &mut Exposition, sources: &Sources) {
    let Sources {
        hub,
        resolver,
        verifier,
        cri_events,
        admission,
        connections,
        capabilities,
        tracked_capacity,
        bindings,
        ..
    } = sources;
    if let Some(problem) = bindings.iter().find_map(unserved) {
        exposition.family(&PROBLEM).add([&problem.name], 1u64);
    }
    let mut hooks = exposition.family(&HOOK_INFO);
    for report in &capabilities.reports {
        let (hook, state) = hook(report);
        hooks.add([report.capability.name, hook, state], 1u64);
    }
    exposition.set(&TRACKED_LIMIT, *tracked_capacity);

    let extent = hub.extent();
    exposition.set(&JOURNAL_EVENTS, extent.events);
    exposition.set(&JOURNAL_CAPACITY, extent.capacity);
    if let Some(oldest) = hub.oldest() {
        let wall = Clock::read().wall(oldest).to_unix_nanos();
        exposition.set(&JOURNAL_OLDEST, wall as f64 / 1e9);
    }
    exposition.set(&JOURNAL_BYTES, extent.bytes);
    exposition.set(&JOURNAL_CAPACITY_BYTES, extent.capacity_bytes);
    exposition.set(&WATCHER_LAGGED, hub.lagged());

    for call in admission.limits() {
        exposition.family(&API_CALLS).add([&call.name], call.active);
        exposition.family(&API_CALLS_LIMIT).add([&call.name], call.max);
        exposition.family(&API_CALLS_REFUSED).add([&call.name], call.refused);
    }
    exposition.set(&API_CONNECTIONS, connections.connections.get());
    let mut closed = exposition.family(&API_CONNECTIONS_CLOSED);
    closed.add(["refused"], connections.connections_refused.get());
    closed.add(["silent"], connections.connections_silent.get());

    let runtime = resolver.status();
    // One that never answered has no endpoint yet, but an error.
    if !runtime.endpoint.is_empty() || !runtime.error.is_empty() {
        let up = u64::from(runtime.error.is_empty());
        exposition.family(&RUNTIME_UP).add([&runtime.name], up);
    }
    let counters = resolver.counters();
    exposition.set(&RUNTIME_LISTS, named(&counters, "cri_lists"));
    exposition.set(&RUNTIME_FAILURES, named(&counters, "cri_failures"));
    exposition.set(&UNRESOLVED, named(&counters, "cri_open"));
    for (method, calls) in resolver.calls().by_method() {
        for (code, count) in calls.codes {
            exposition.family(&RUNTIME_REQUESTS).add([method, code], count);
        }
        exposition.family(&RUNTIME_DURATION).add([method], &calls.durations);
    }
    bounds(exposition, &counters);

    let counters = verifier.reported().counters();
    let mut requests = exposition.family(&CRI_REQUESTS);
    requests.add(["accepted"], named(&counters, "cri_requests_reported"));
    requests.add(["malformed"], named(&counters, "cri_requests_malformed"));
    requests.add(["missed"], named(&counters, "cri_requests_missed"));
    bounds(exposition, &counters);
    self::cri_events(exposition, cri_events);
}

fn cri_events(exposition: &mut Exposition, events: &Events) {
    let counters = events.counters();
    exposition.set(&CRI_EVENTS, named(&counters, "cri_events_sent"));
    exposition.set(&CRI_EVENTS_WITHHELD, named(&counters, "cri_events_withheld"));
    exposition.set(&CRI_SUBSCRIBERS, named(&counters, "cri_events_subscribers"));
    exposition.set(&CRI_SLOW_SUBSCRIBERS, named(&counters, "cri_events_slow_subscribers"));
}

/// What the engine counted, so long ago.
pub(super) fn report(exposition: &mut Exposition, report: &Report, age: Duration) {
    let Report { lost, counters, programs, containers: _, problems, tracked, rings, scans } = report;
    exposition.set(&ENGINE_ANSWER_AGE, age.as_secs_f64());
    for RingState { name, size, used, records } in rings {
        let ring = name.to_lowercase();
        exposition.family(&KERNEL_RECORDS).add([&ring], *records);
        exposition.family(&RING_SIZE).add([&ring], *size);
        exposition.family(&RING_USED).add([&ring], *used);
    }
    exposition.set(&TRACKED, *tracked);
    for (reason, durations) in scans {
        exposition.family(&SCAN_DURATION).add([words::scan_reason(*reason)], durations);
    }
    exposition.set(&SCANS, named(counters, "scans"));
    exposition.set(&LIMIT_WRITES, named(counters, "limits_writes"));
    bounds(exposition, counters);
    let mut samples = exposition.family(&LOST_RECORDS);
    for ((cause, record), count) in lost_records(lost) {
        samples.add([&cause, &record], count);
    }
    let names: std::collections::BTreeSet<_> = problems.iter().map(|present| problem(present).name).collect();
    let mut samples = exposition.family(&PROBLEM);
    names.iter().for_each(|name| samples.add([name], 1u64));
    for stats in programs {
        if let Some(runs) = stats.runs {
            exposition.family(&PROGRAM_RUNS).add([stats.program], runs);
        }
        if let Some(time) = stats.run_time {
            exposition.family(&PROGRAM_SECONDS).add([stats.program], time.as_secs_f64());
        }
        if let Some(misses) = stats.recursion_misses {
            exposition.family(&PROGRAM_MISSES).add([stats.program], misses);
        }
    }
}

/// What events said.
pub(super) fn workload(exposition: &mut Exposition, workload: &Workload) {
    let mut events = exposition.family(&EVENTS);
    for (kind, count) in EventKind::ALL.iter().zip(workload.events) {
        events.add([kind.name()], count);
    }
    let mut add = |metric, counts: &BTreeMap<&'static str, u64>| {
        let mut samples = exposition.family(metric);
        counts.iter().for_each(|(name, count)| samples.add([name], *count));
    };
    add(&GAPS, &workload.gaps);
    add(&OOM_KILLS, &workload.oom_kills);
    add(&CONTAINER_STOPS, &workload.stops);
    let mut changes = exposition.family(&LIMIT_CHANGES);
    for ((file, outcome), count) in &workload.limit_changes {
        changes.add([file, outcome], *count);
    }
    let mut containers = exposition.family(&CONTAINERS);
    for (name, state) in
        [("created", State::Created), ("running", State::Running), ("stopped", State::Stopped)]
    {
        containers.add([name], workload.in_state(state));
    }
    exposition.set(&CONTAINER_START, &workload.start);
    let mut enforcement = exposition.family(&ENFORCEMENT);
    for (resource, durations) in Resource::ALL.into_iter().zip(&workload.enforcement) {
        enforcement.add([words::resource(resource)], durations);
    }
    let mut kills = exposition.family(&CONTAINER_OOM_KILLS);
    for (key, series) in workload.series() {
        kills.add([&key.namespace, &key.pod, &key.container], series.oom_kills);
    }
    let mut verdicts = exposition.family(&LIMIT_VERDICT);
    for ((key, resource, verdict), count) in workload.verdicts() {
        verdicts.add([&key.namespace, &key.pod, &key.container, resource, verdict], count);
    }
    exposition.set(&METRICS_CONTAINERS, workload.series().len());
    exposition.set(&METRICS_OMITTED, workload.omitted);
    exposition.set(&METRICS_MISSED, workload.missed);
}

/// Counters of what found no room, by their name in `Status`, and the bound's name here.
pub(super) const BOUNDS: [(&str, &str); 8] = [
    ("lifecycle_cgroups_full", "cgroups"),
    ("lifecycle_processes_full", "processes"),
    ("lifecycle_removed_forgotten", "removed_cgroups"),
    ("lifecycle_unknown_dropped", "unknown_records"),
    ("limits_cgroups_full", "limit_cgroups"),
    ("cri_requests_evicted", "cri_requests"),
    ("guard_limits_evicted", "guard_limits"),
    ("cri_refused", "runtime_queries"),
];

fn bounds(exposition: &mut Exposition, counters: &BTreeMap<String, u64>) {
    let mut samples = exposition.family(&BOUND_REACHED);
    for (name, bound) in BOUNDS {
        if let Some(count) = counters.get(name) {
            samples.add([bound], *count);
        }
    }
}

fn named(counters: &BTreeMap<String, u64>, name: &str) -> u64 {
    counters.get(name).copied().unwrap_or(0)
}

/// The losses by cause and record, those that never happened included: a counter that appears with its first step hides it.
fn lost_records(lost: &BTreeMap<String, u64>) -> BTreeMap<(String, String), u64> {
    let zero = |cause: &str, record: &str| ((cause.to_owned(), record.to_owned()), 0);
    let mut counts: BTreeMap<_, u64> = RecordKind::ALL
        .into_iter()
        .flat_map(|kind| [zero("ring_full", kind.name()), zero("malformed_record", kind.name())])
        .chain([
            zero("tracked_set_full", RecordKind::CgroupMkdir.name()),
            zero("malformed_record", "unknown"),
        ])
        .chain(CAPABILITIES.iter().map(|capability| zero("program_skipped", capability.name)))
        .collect();
    for (name, count) in lost {
        let (cause, record) = name.split_once('/').unwrap_or((name, ""));
        counts.insert((cause.to_owned(), record.to_owned()), *count);
    }
    counts
}

/// The hook that provides a capability, and how good that is.
fn hook(report: &CapabilityReport) -> (&str, &'static str) {
    match (&report.chosen, &report.substitute) {
        (Some(hook), _) => {
            (hook.kind.name(), if report.refused.is_empty() { "preferred" } else { "fallback" })
        }
        // "fanotify:/sys/fs/cgroup"
        (None, Some(substitute)) => (substitute.split(':').next().unwrap_or_default(), "fallback"),
        (None, None) => ("", "missing"),
    }
}
