//! Timelines of an incident: an OOM kill under a limit that another process lowered.

use std::collections::HashMap;

use prost::Message as _;

use super::model::Style;
use super::perfetto::{COUNTER, INSTANT, SLICE_BEGIN, SLICE_END, Trace, TracePacket};
use super::usage::Sampled;
use super::*;
use crate::time::{TimeFormat, Times};
use kwitness_api::proto::oom_kill::Exhausted;
use kwitness_api::{EventKind, Timestamp};

const BOOT: i64 = 1_767_357_000_000_000_000;
const HOSTILE: &str = "</script><img src=x onerror=alert(1)>{{data}}\u{202e}\x1b]0;x\x07\"'&";

fn times() -> Times {
    Times::at(TimeFormat::Clock, "2026-01-02T13:00:00Z")
}

fn pod() -> proto::Pod {
    proto::Pod {
        uid: "uid-1".into(),
        namespace: Some("prod".into()),
        name: Some("web-0".into()),
        ..Default::default()
    }
}

fn container(name: &str) -> proto::Container {
    proto::Container {
        id: "0123456789abcdef".into(),
        cgroup_id: 7,
        cgroup_path: "/kubepods/poduid-1/0123".into(),
        name: Some(name.into()),
        pod: Some(pod()),
        ..Default::default()
    }
}

fn cgroup() -> proto::Cgroup {
    proto::Cgroup {
        id: 5,
        path: Some("/kubepods/poduid-1".into()),
        role: proto::CgroupRole::Pod.into(),
        pod: Some(pod()),
    }
}

fn process(pid: u32, comm: &str, role: proto::ProcessRole) -> Option<proto::Process> {
    let role = role.into();
    Some(proto::Process { pid, start_time: u64::from(pid), parent_pid: 1, comm: comm.into(), role })
}

/// At so many milliseconds after boot.
fn event(millis: u64, container: Option<proto::Container>, kind: Kind) -> proto::Event {
    let kernel_time = millis * 1_000_000;
    proto::Event {
        position: Some(proto::Position { epoch: "e".into(), seq: millis }),
        time: Some(Timestamp::from_unix_nanos(BOOT + kernel_time as i64)),
        kernel_time,
        container,
        basis: proto::Basis::CgroupMkdir.into(),
        r#type: EventKind::from(&kind).name().into(),
        kind: Some(kind),
    }
}

fn value(text: &str) -> Option<proto::Reading> {
    Some(proto::Reading { reading: Some(proto::reading::Reading::Value(text.into())) })
}

fn lowered(millis: u64, value_after: &str, errno: Option<i32>) -> proto::Event {
    let writer = proto::Writer {
        pid: Some(991),
        comm: Some("vpa".into()),
        cgroup_path: Some("/system.slice/vpa".into()),
        ..Default::default()
    };
    let write = proto::LimitWrite {
        value: Some(value_after.into()),
        writer: Some(writer),
        errno,
        errno_name: errno.map(|_| "EINVAL".into()),
        began: Some(millis * 1_000_000),
        returned: Some(millis * 1_000_000 + 1000),
        outcome: proto::WriteOutcome::Accepted.into(),
        ..Default::default()
    };
    let changed = proto::LimitChanged {
        cgroup: Some(cgroup()),
        file: "memory.max".into(),
        old: value("134217728"),
        new: value(if errno.is_some() { "67108864" } else { value_after }),
        read_back: true,
        write: Some(write),
        coalesced: 0,
    };
    event(millis, None, Kind::LimitChanged(Box::new(changed)))
}

fn killed(millis: u64, name: &str) -> proto::Event {
    let kill = proto::OomKill {
        process: process(812, "java", proto::ProcessRole::Main),
        choice: proto::OomChoice::Chosen.into(),
        exhausted: Some(Exhausted::LimitOf(cgroup())),
        usage_bytes: Some(64 << 20),
        limit_bytes: Some(64 << 20),
        trigger: None,
    };
    event(millis, Some(container(name)), Kind::OomKill(Box::new(kill)))
}

fn incident(name: &str) -> Vec<proto::Event> {
    use proto::ProcessRole::{Child, Entered, Main};
    let signal = Some(proto::ExitStatus {
        status: Some(proto::exit_status::Status::Signal(9)),
        core_dumped: false,
        signal_name: "SIGKILL".into(),
    });
    let of = |millis, kind| event(millis, Some(container(name)), kind);
    let exec = |pid, role| {
        Kind::Exec(proto::Exec { process: process(pid, "x", role), program: format!("/bin/{name}") })
    };
    let exited = |pid, role| {
        let status = Some(proto::ExitStatus::default());
        Kind::Exited(proto::Exited { process: process(pid, "x", role), status, before_exec: false })
    };
    vec![
        of(1000, Kind::Created(proto::Created::default())),
        of(
            1100,
            Kind::Started(proto::Started {
                process: process(812, "java", Main),
                program: Some("/usr/bin/java".into()),
            }),
        ),
        of(1200, exec(20, Entered)),
        // They overlap: two lanes.
        of(1300, exec(21, Child)),
        of(1400, exited(20, Entered)),
        of(1500, exited(21, Child)),
        lowered(1600, "67108864", None),
        lowered(1700, "4096", Some(22)),
        killed(2000, name),
        of(
            2001,
            Kind::Stopped(proto::Stopped {
                main_status: signal,
                never_started: false,
                main_oom_killed: true,
            }),
        ),
        of(2100, Kind::Deleted(proto::Deleted::default())),
    ]
}

fn timeline(name: &str) -> Timeline {
    Timeline::new("prod/web-0".into(), "node-1".into(), &incident(name), &[], times())
}

fn fact<'a>(timeline: &'a Timeline, label: &str) -> &'a str {
    let facts = &timeline.answers[0].facts;
    facts.iter().find(|(found, _)| *found == label).map_or("", |(_, text)| text)
}

#[test]
fn what_killed_it_and_who_set_the_limit_is_answered() {
    let timeline = timeline("app");
    assert_eq!(timeline.answers.len(), 1, "the stop belongs to the kill: {:?}", timeline.answers);
    assert_eq!(timeline.answers[0].what, "prod/web-0 app was OOM-killed");
    assert_eq!(fact(&timeline, "limit"), "the pod's memory.max of 64Mi, usage 64Mi");
    assert_eq!(
        fact(&timeline, "set by"),
        "vpa (991) in /system.slice/vpa at 12:30:01.600, from 128Mi",
        "a write that was refused set nothing"
    );
}

#[test]
fn what_was_not_seen_is_not_guessed() {
    let set_by = |events: &[proto::Event]| {
        let timeline = Timeline::new(String::new(), String::new(), events, &[], times());
        fact(&timeline, "set by").to_owned()
    };
    assert!(set_by(&[killed(2000, "app")]).starts_with("unknown: no write was seen"));
    let other = [lowered(1600, "33554432", None), killed(2000, "app")];
    assert!(set_by(&other).starts_with("unknown: the last write that was seen was of another value"));
    let later = [killed(2000, "app"), lowered(2500, "67108864", None)];
    assert!(set_by(&later).starts_with("unknown: no write was seen"));
    // The event of a write comes after the file was read back, which may be after the kill that it made.
    let during = [killed(2000, "app"), lowered(2000, "67108864", None)];
    assert!(set_by(&during).ends_with("the kernel killed before the write returned"));
}

#[test]
fn where_events_are_missing_it_is_not_said_that_nothing_failed() {
    let started = || event(1000, Some(container("app")), Kind::Started(proto::Started::default()));
    let gap = event(1060, None, Kind::Gap(proto::Gap::default()));
    for (events, said) in
        [(vec![started()], "Nothing was killed"), (vec![started(), gap], "events are missing")]
    {
        let timeline = Timeline::new(String::new(), String::new(), &events, &[], times());
        let page = html::page(&timeline).unwrap();
        assert!(
            text::lines(&timeline, times(), None).join("\n").contains(said) && page.contains(said),
            "{page}"
        );
    }
}

/// A reboot later: cgroup IDs and the kernel's clock begin again.
fn rebooted(mut event: proto::Event) -> proto::Event {
    const AN_HOUR: i64 = 3_600_000_000_000;
    event.position.as_mut().unwrap().epoch = "f".into();
    event.time = event.time.map(|time| Timestamp::from_unix_nanos(time.to_unix_nanos() + AN_HOUR));
    if let Some(container) = &mut event.container {
        container.id = "fedcba9876543210".into();
    }
    event
}

#[test]
fn what_another_boot_had_by_the_same_ids_is_something_else() {
    let mut events = incident("app");
    events.extend(incident("app").into_iter().map(rebooted));
    let timeline = Timeline::new("prod/web-0".into(), "node-1".into(), &events, &[], times());
    let containers: Vec<_> = timeline.tracks.iter().filter(|track| track.name == "app").collect();
    assert_eq!(containers.len(), 2);
    assert!(containers.iter().all(|track| track.lanes.len() == 5), "one life each: {containers:?}");
    assert_eq!(timeline.tracks.iter().filter(|track| track.name == "(pod)").count(), 2);
    assert_eq!(timeline.boot_offset, None, "the last boot's clock does not give the time of the first");

    // No process has written that limit in this boot.
    let mut events = incident("app");
    events.push(rebooted(killed(2000, "app")));
    let timeline = Timeline::new("prod/web-0".into(), "node-1".into(), &events, &[], times());
    let set_by = |answer: &answers::Answer| {
        answer.facts.iter().find(|(label, _)| *label == "set by").unwrap().1.clone()
    };
    let [first, second] = &timeline.answers[..] else { panic!("{:?}", timeline.answers) };
    assert!(set_by(first).starts_with("vpa (991)"));
    assert!(set_by(second).starts_with("unknown: no write was seen"), "{}", set_by(second));
}

#[test]
fn a_container_is_on_one_track_over_epochs_of_one_boot() {
    let mut events = incident("app");
    let mut found = events[1].clone();
    found.position.as_mut().unwrap().epoch = "f".into();
    found.basis = proto::Basis::InitialScan.into();
    events.insert(2, found);
    let timeline = Timeline::new("prod/web-0".into(), "node-1".into(), &events, &[], times());
    let tracks: Vec<_> = timeline.tracks.iter().filter(|track| track.name == "app").collect();
    assert_eq!(tracks.len(), 1);
    let running: Vec<_> = tracks[0].lanes.iter().flatten().filter(|span| span.name == "running").collect();
    let [running] = running[..] else { panic!("{running:?}") };
    assert_eq!(running.from, (BOOT + 1_100_000_000) / 1000, "its start was seen");
}

#[test]
fn spans_of_one_lane_do_not_overlap() {
    let timeline = timeline("app");
    let track = timeline.tracks.iter().find(|track| track.name == "app").unwrap();
    let names: Vec<Vec<_>> =
        track.lanes.iter().map(|lane| lane.iter().map(|span| span.name.as_str()).collect()).collect();
    assert_eq!(
        names,
        [vec!["cgroup"], vec!["running"], vec!["java (812)"], vec!["app (20)"], vec!["app (21)"]]
    );
    for lane in &track.lanes {
        assert!(lane.windows(2).all(|pair| pair[0].to <= pair[1].from));
    }
    let pod = timeline.tracks.iter().find(|track| track.name == "(pod)").unwrap();
    let limit = pod.curves.iter().find(|curve| curve.name == "memory.max").unwrap();
    let values: Vec<_> = limit.points.iter().map(|point| point.value.unwrap() >> 20).collect();
    assert_eq!(values, [128, 64], "the value before the first write is known from it");
    assert_eq!(
        (limit.points[0].at, limit.until),
        (timeline.from, timeline.to),
        "no end of the pod's cgroup was seen"
    );
}

#[test]
fn a_hold_is_a_span_and_what_the_guard_decided_a_mark() {
    let mut events = incident("app");
    let kinds = crate::describe::guard::testing::kinds();
    events.extend(
        kinds.into_iter().zip(2000..).map(|(kind, millis)| event(millis, Some(container("app")), kind)),
    );
    let timeline = Timeline::new("app".into(), "node".into(), &events, &[], times());
    let track = timeline.tracks.iter().find(|track| track.name == "app").unwrap();
    let held = track.lanes.iter().flatten().find(|span| span.name == "java held").unwrap();
    assert_eq!(held.to - held.from, 54_000, "as long as the guard says");
    let marks: Vec<_> = track.marks.iter().filter(|mark| mark.name.starts_with("guard")).collect();
    let marks: Vec<_> = marks.iter().map(|mark| (mark.name.as_str(), mark.style)).collect();
    assert_eq!(
        marks,
        [
            ("guardHeld", Style::Notice),
            ("guardRaised", Style::Good),
            ("guardRefused limitAbove", Style::Bad),
            ("guardReturned", Style::Limit),
        ]
    );
    let usage = track.curves.iter().find(|curve| curve.name == "usage").unwrap();
    assert!(usage.points.iter().any(|point| point.value == Some(60 << 20)), "{usage:?}");
}

#[test]
fn samples_are_a_curve_beside_the_limit() {
    let container = container("app");
    let limit = Some(Some(64 << 20));
    let points = [(500, 10), (1500, 20), (2500, 30)];
    let points = points.map(|(millis, usage)| Sampled { at: BOOT / 1000 + millis * 1000, usage, limit });
    let of = |events: &[proto::Event]| {
        Timeline::new("app".into(), "node".into(), events, &[(&container, &points[..])], times())
    };
    let curve = |timeline: &Timeline, name: &str| {
        let track = timeline.tracks.iter().find(|track| track.name == "app").unwrap();
        let points = track.curves.iter().find(|curve| curve.name == name).unwrap().points.iter();
        points.map(|point| (point.at - BOOT / 1000, point.value.unwrap())).collect::<Vec<_>>()
    };
    let timeline = of(&incident("app"));
    assert_eq!(curve(&timeline, "usage"), [(500_000, 10), (1_500_000, 20), (2_500_000, 30)]);
    // As long as the container was there.
    assert_eq!(curve(&timeline, "memory.max"), [(1_000_000, 64 << 20)]);
    assert_eq!((timeline.from, timeline.to), (points[0].at, points[2].at));

    // The container's own limit, which an event has.
    let mut lowered = lowered(1600, "67108864", None);
    lowered.container = Some(container.clone());
    if let Some(Kind::LimitChanged(changed)) = &mut lowered.kind {
        changed.cgroup = Some(proto::Cgroup { id: container.cgroup_id, ..Default::default() });
    }
    assert_eq!(
        curve(&of(&[lowered]), "memory.max"),
        [(500_000, 128 << 20), (1_600_000, 64 << 20)],
        "its time is more exact"
    );
    assert!(html::page(&of(&[])).unwrap().contains("2026-01-02 12:30:00 to 2026-01-02 12:30:02."));
}

#[test]
fn text_fits_80_columns() {
    use unicode_width::UnicodeWidthStr as _;

    for name in ["a-container-with-a-long-name-数据库", "数据库数据库数据库数据库", HOSTILE] {
        for line in text::lines(&timeline(name), times(), Some(80)) {
            assert!(line.width() <= 80 && !line.chars().any(char::is_control), "{line}");
        }
    }
    let text = text::lines(&self::timeline("app"), times(), Some(80)).join("\n");
    let page = include_str!("../../../../docs/what-happened.md");
    assert!(page.contains(text.trim_end()), "docs/what-happened.md does not show:\n{text}");
}

#[test]
fn a_hostile_name_stays_text() {
    let page = html::page(&timeline(HOSTILE)).unwrap();
    assert!(!page.contains("<img"), "a name became markup");
    assert!(!page.contains('\x1b') && !page.contains('\u{202e}'), "an invisible character");
    assert_eq!(page.matches("</script>").count(), 2);
    let data = page.split("id=\"data\">").nth(1).unwrap().split("</script>").next().unwrap();
    let data: serde_json::Value = serde_json::from_str(data).unwrap();
    assert!(
        data["tracks"]
            .as_array()
            .unwrap()
            .iter()
            .any(|track| track["name"].as_str().unwrap().contains("<img"))
    );
    assert!(
        !page.contains("http://")
            || page.matches("http://").count() == page.matches("http://www.w3.org/2000/svg").count()
    );
    assert!(!page.contains("https://"), "nothing is loaded");
}

#[test]
fn a_trace_has_balanced_slices_on_named_tracks() {
    let timeline = timeline("app");
    let trace = Trace::decode(&*perfetto::trace(&timeline)).unwrap();
    let (mut parents, mut names) = (HashMap::new(), HashMap::new());
    let mut open: HashMap<u64, Vec<(String, u64)>> = HashMap::new();
    let mut slices = Vec::new();
    let (mut instants, mut counters) = (0, 0);
    for packet in &trace.packet {
        if let Some(track) = &packet.track_descriptor {
            parents.insert(track.uuid(), track.parent_uuid);
            names.insert(track.uuid(), track.name().to_owned());
            assert!(track.parent_uuid.is_none_or(|parent| names.contains_key(&parent)));
        }
        let Some(event) = &packet.track_event else { continue };
        let track = event.track_uuid();
        assert!(names.contains_key(&track), "an event before its track");
        match event.r#type() {
            SLICE_BEGIN => {
                open.entry(track).or_default().push((event.name().to_owned(), packet.timestamp()));
            }
            SLICE_END => {
                let (name, from) = open.get_mut(&track).and_then(Vec::pop).unwrap();
                assert!(packet.timestamp() >= from);
                slices.push((name, from / 1_000_000, packet.timestamp() / 1_000_000));
            }
            INSTANT => instants += 1,
            COUNTER => counters += 1,
            other => panic!("{other}"),
        }
    }
    assert!(open.values().all(Vec::is_empty), "a slice without an end: {open:?}");
    // In the kernel's own time.
    assert!(slices.contains(&("running".to_owned(), 1100, 2001)), "{slices:?}");
    assert!(slices.contains(&("java (812)".to_owned(), 1100, 2001)), "{slices:?}");
    assert_eq!((instants, counters), (5, 3));
    assert_eq!(parents.values().filter(|parent| parent.is_none()).count(), 1, "one root");
}

#[test]
fn traces_that_are_concatenated_share_no_track() {
    let trace = |subject: &str| {
        let timeline = Timeline::new(subject.into(), "node-1".into(), &incident("app"), &[], times());
        Trace::decode(&*perfetto::trace(&timeline)).unwrap().packet
    };
    let (one, other) = (trace("prod/web-0"), trace("prod/web-1"));
    let tracks = |packets: &[TracePacket]| {
        let tracks = packets.iter().filter_map(|packet| packet.track_descriptor.as_ref()?.uuid);
        tracks.collect::<BTreeSet<_>>()
    };
    assert!(tracks(&one).len() > 2 && tracks(&one).is_disjoint(&tracks(&other)));
    let sequences = |packets: &[TracePacket]| {
        let sequences = packets.iter().filter_map(|packet| packet.trusted_packet_sequence_id);
        sequences.collect::<BTreeSet<_>>()
    };
    assert_eq!((sequences(&one).len(), sequences(&other).len()), (1, 1));
    assert!(sequences(&one).is_disjoint(&sequences(&other)));
    assert_eq!(trace("prod/web-0"), one, "the same trace has the same numbers");
}

#[test]
fn a_pod_is_found_after_it_is_gone_and_others_are_left_out() {
    let mut events = incident("app");
    let mut other = container("db");
    other.cgroup_id = 9;
    other.pod = Some(proto::Pod { uid: "uid-2".into(), name: Some("db-0".into()), ..pod() });
    events.push(event(1050, Some(other.clone()), Kind::Created(proto::Created::default())));
    events.push(event(1060, None, Kind::Gap(proto::Gap::default())));
    let history =
        History { events, containers: vec![container("app"), other], usage: Usage::default(), place: "" };
    let filter = |name: &str| Filter { pod: vec![name.into()], ..Default::default() };
    let of_web = history.timeline(&filter("web-0"), "n", times()).unwrap();
    assert_eq!(of_web.subject, "prod/web-0");
    assert_eq!(of_web.events.len(), incident("app").len() + 1, "with the gap");
    assert!(of_web.tracks.iter().all(|track| track.name != "db"));
    assert!(
        history.timeline(&filter("wbe-0"), "n", times()).unwrap_err().to_string().contains("did you mean")
    );
    let of_node = history.timeline(&Filter::default(), "n", times()).unwrap();
    assert!(of_node.tracks.iter().any(|track| track.name == "db"));
}
