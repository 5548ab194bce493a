//! `kwitness demo`: a recorded incident, played in a quarter of a minute. No daemon, no cluster, no privileges.
//!
//! The recording is one of a real node. `userspace/agent/examples/incident.rs` says which, and makes it.

use std::time::Duration;

use kwitness_api::client::Item;
use kwitness_api::recording::Recording;
use kwitness_api::{EventKind, Source, proto};

use crate::args::Demo;
use crate::connect;
use crate::exit::Code;
use crate::options::Filter;
use crate::output::{Format, Output, note, write_new};
use crate::time::{TimeFormat, Times};
use crate::timeline::{self, History};

const RECORDING: &[u8] = include_bytes!("incident.kwr");
/// The pod that it is about.
const POD: &str = "greedy";
/// How long the events are played, and the longest pause in between.
const LENGTH: Duration = Duration::from_secs(20);
const PAUSE_MAX: Duration = Duration::from_secs(2);

pub async fn run(options: Demo) -> anyhow::Result<Code> {
    if let Some(path) = options.save {
        save(&path)?;
        let path = path.display();
        note(&format!("saved; try: kwitness timeline {POD} --file {path} -o html > {POD}.html"));
        return Ok(Code::Success);
    }
    let mut source = source().await?;
    let node = source.recording().map(|recording| recording.header().node.clone()).unwrap_or_default();
    let times = Times::new(TimeFormat::Clock, true);
    let mut out = Output::new();
    let filter = proto::Filter { pods: vec![POD.to_owned()], ..Default::default() };
    let request = proto::WatchRequest { filter: Some(filter), ..Default::default() };
    let mut events = Vec::new();
    let mut watch = source.watch(request).await?;
    while let Some(Item::Events(batch)) = watch.next().await? {
        events.extend(batch.into_iter().filter(is_shown));
    }
    let pauses = pauses(&events);
    out.line(&title(&node, &events, (!options.no_wait).then(|| pauses.iter().sum())))?;
    out.line("")?;
    out.flush()?;
    // All of it was on one day.
    let clock = times.as_of(connect::now(&source));
    let mut printer = crate::events::Printer::new(Format::Table, clock, false).wrapping();
    printer.room(&events);
    for (event, pause) in events.iter().zip(pauses) {
        if !options.no_wait {
            tokio::time::sleep(pause).await;
        }
        printer.events(std::slice::from_ref(event))?;
    }
    let request = proto::WatchRequest { resolve_names: true, ..Default::default() };
    let history = History::read(&mut source, request).await?;
    let pod = Filter { pod: vec![POD.to_owned()], ..Default::default() };
    let timeline = history.timeline(&pod, &node, times)?;
    out.line("")?;
    out.line(&format!("$ kwitness timeline {POD}"))?;
    for line in timeline::lines(&timeline, times, out.width(Format::Table)) {
        out.line(&line)?;
    }
    out.line("Go on with the recording itself:")?;
    out.line("$ kwitness demo --save incident.kwr")?;
    out.line(&format!("$ kwitness timeline {POD} --file incident.kwr -o html > {POD}.html"))?;
    out.flush()?;
    Ok(Code::Success)
}

/// Writes the recording to a new file.
pub fn save(path: &std::path::Path) -> anyhow::Result<()> {
    write_new(path, RECORDING)
}

/// What is shown, how long that took then, and how long it takes now.
fn title(node: &str, events: &[proto::Event], played: Option<Duration>) -> String {
    let span = events.first().zip(events.last());
    let took = span.map_or(0, |(first, last)| last.kernel_time.saturating_sub(first.kernel_time));
    let took = Duration::from_nanos(took).as_secs();
    let played = played.map_or(String::new(), |played| format!(", played in {}", played.as_secs()));
    format!("A recording of node {node}: {took} seconds of the pod {POD}{played}.")
}

/// The recording.
pub async fn source() -> anyhow::Result<Source> {
    Ok(Source::Recorded(Box::new(Recording::embedded(RECORDING).await?)))
}

/// Containers' lives, OOM kills, and the memory limits in between.
fn is_shown(event: &proto::Event) -> bool {
    match &event.kind {
        Some(proto::event::Kind::LimitChanged(changed)) => changed.file == "memory.max",
        Some(proto::event::Kind::Verdict(verdict)) => verdict.file == "memory.max",
        Some(kind) => {
            !matches!(EventKind::from(kind), EventKind::Exec | EventKind::Exited | EventKind::Updated)
        }
        None => false,
    }
}

/// The pauses before the events: as they were, all shortened by the same factor, and none too long.
fn pauses(events: &[proto::Event]) -> Vec<Duration> {
    let mut last = events.first().map_or(0, |event| event.kernel_time);
    let real: Vec<_> = events
        .iter()
        .map(|event| {
            Duration::from_nanos(
                event.kernel_time.saturating_sub(std::mem::replace(&mut last, event.kernel_time)),
            )
        })
        .collect();
    let total: Duration = real.iter().sum();
    let factor = (LENGTH.as_secs_f64() / total.as_secs_f64().max(f64::MIN_POSITIVE)).min(1.0);
    real.into_iter().map(|pause| pause.mul_f64(factor).min(PAUSE_MAX)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use kwitness_core::units;

    #[tokio::test]
    async fn the_recording_shows_an_oom_kill_and_who_set_the_limit() {
        let mut source = source().await.unwrap();
        assert!(source.recording().unwrap().torn().is_none());
        let history = History::read(&mut source, proto::WatchRequest::default()).await.unwrap();
        let pod = Filter { pod: vec![POD.into()], ..Default::default() };
        let times = Times::at(TimeFormat::Clock, "2026-01-02T13:00:00Z");
        let timeline = history.timeline(&pod, "node", times).unwrap();
        let killed: Vec<_> = timeline.answers.iter().filter(|answer| answer.what.contains("OOM")).collect();
        assert_eq!(killed.len(), 2, "{:?}", timeline.answers);
        for answer in killed {
            let fact =
                |label| answer.facts.iter().find(|(found, _)| *found == label).map(|(_, text)| text.as_str());
            assert!(fact("limit").unwrap().contains(&units::bytes(24 << 20)), "{answer:?}");
            assert!(fact("set by").unwrap().starts_with("systemd (1)"), "{answer:?}");
        }
    }

    #[test]
    fn it_is_played_in_time() {
        let event = |kernel_time| proto::Event { kernel_time, ..Default::default() };
        let hour = 3_600_000_000_000;
        let pauses = pauses(&[event(5), event(hour), event(hour / 2), event(2 * hour)]);
        assert_eq!(pauses[0], Duration::ZERO);
        assert!(pauses.iter().sum::<Duration>() <= LENGTH && pauses.iter().all(|pause| *pause <= PAUSE_MAX));
    }

    #[test]
    fn the_title_says_how_long_it_took_and_how_long_it_is_played() {
        let event =
            |seconds: u64| proto::Event { kernel_time: seconds * 1_000_000_000, ..Default::default() };
        let events = [event(5), event(9), event(33)];
        let played = Some(Duration::from_millis(15_100));
        let expected = "A recording of node n: 28 seconds of the pod greedy, played in 15.";
        assert_eq!(title("n", &events, played), expected);
        assert_eq!(title("n", &events, None), "A recording of node n: 28 seconds of the pod greedy.");
    }
}
