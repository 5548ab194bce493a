use std::fs;
use std::path::Path;

use super::*;
use kwitness_service::metrics::{breaches, in_page};

#[test]
fn probes_say_what_they_wait_for() {
    let text =
        |probe, stage, silence: Option<u64>| match health(probe, stage, silence.map(Duration::from_secs)) {
            Ok(reason) => format!("ok: {reason}"),
            Err(reason) => format!("failed: {reason}"),
        };
    assert_eq!(text(Probe::Startup, Stage::Loading, None), "failed: the probes are not attached yet");
    assert!(text(Probe::Ready, Stage::Scanning, None).ends_with("the first scan is not complete"));
    for stage in [Stage::Loading, Stage::Scanning] {
        assert_eq!(text(Probe::Live, stage, None), "ok: starting", "startup has a probe of its own");
    }
    for probe in [Probe::Startup, Probe::Ready, Probe::Live] {
        assert!(text(probe, Stage::Standby, None).starts_with("ok: standby: "), "{probe:?}");
    }
    assert!(text(Probe::Startup, Stage::Ready, Some(3600)).starts_with("ok: "), "it has started");
    assert_eq!(text(Probe::Live, Stage::Ready, Some(60)), "ok: running");
    assert!(text(Probe::Ready, Stage::Ready, Some(60)).starts_with("ok: "));
    for probe in [Probe::Live, Probe::Ready] {
        assert_eq!(text(probe, Stage::Ready, Some(61)), "failed: the engine has not answered for 61 s");
    }
    assert_eq!(text(Probe::Ready, Stage::Stopping, Some(0)), "failed: the daemon is stopping");
    assert_eq!(text(Probe::Live, Stage::Stopping, Some(99)), "ok: running", "it ends by itself");
}

#[test]
fn an_engine_that_never_answers_is_silent_since_it_has_to() {
    let metrics = Metrics::new(Labels { namespace: true, pod: true, container: true }, Arc::default());
    metrics.reached(Stage::Scanning);
    assert_eq!(metrics.collected().silence(), None);
    metrics.reached(Stage::Ready);
    let ready = metrics.collected().ready.expect("it is ready");
    let silence = metrics.collected().silence().expect("it has to answer");
    assert!(silence <= ready.elapsed());
    let answered = ready + Duration::from_secs(3600);
    metrics.collected().report = Some((Report::default(), answered));
    assert_eq!(metrics.collected().silence(), Some(Duration::ZERO), "the later of both counts");
}

#[test]
fn names_follow_conventions_and_stand_once() {
    assert_eq!(breaches(CATALOG), Vec::<String>::new());
}

#[test]
fn the_counters_of_bounds_exist() {
    let bounds = kwitness_core::lifecycle::Bounds::for_cgroups(64);
    let mut counters = kwitness_core::node::Node::new(bounds).counters();
    counters.extend(crate::reported::Reported::default().counters());
    for (name, _) in expose::BOUNDS.iter().filter(|(name, _)| *name != "cri_refused") {
        assert!(counters.contains_key(*name), "{name}");
    }
    assert!(counters.contains_key("limits_writes"));
}

fn repository(path: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)
}

/// `cargo xtask metrics` writes the table anew.
#[test]
fn the_reference_page_has_every_metric() {
    let page = repository("docs/metrics.md");
    let text = fs::read_to_string(&page).unwrap();
    let expected = in_page(&text, "daemon", CATALOG).expect("marks around the table");
    if std::env::var_os("KWITNESS_BLESS").is_some() {
        fs::write(&page, expected).unwrap();
    } else {
        assert_eq!(text, expected, "{} is not up to date", page.display());
    }
}

#[test]
fn before_there_is_anything_to_show_a_scrape_shows_the_process() {
    let metrics = Metrics::new(Labels { namespace: true, pod: true, container: true }, Arc::default());
    let text = metrics.metrics().text(kwitness_service::metrics::Format::Prometheus);
    for name in ["kwitness_build_info{version=", "process_resident_memory_bytes ", "process_open_fds "] {
        assert!(text.contains(&format!("\n{name}")), "{text}");
    }
    assert!(text.contains("\nkwitness_standby 0\n"), "{text}");
    assert!(!text.contains("kwitness_events_total"), "{text}");
    metrics.reached(Stage::Standby);
    let text = metrics.metrics().text(kwitness_service::metrics::Format::Prometheus);
    assert!(text.contains("\nkwitness_standby 1\n"), "{text}");
}
