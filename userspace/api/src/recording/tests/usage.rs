//! Samples are recorded without what is elsewhere in the file, and are answered with it; older recordings have none.

use super::*;
use crate::proto::amount::Amount as Of;

/// As an earlier release wrote it.
const FORMAT_1: &str = include_str!("../../../tests/fixtures/recording-1.kwr");
const MIB: u64 = 1 << 20;

fn amount(amount: Of) -> Option<proto::Amount> {
    Some(proto::Amount { amount: Some(amount) })
}

/// As the daemon sends it: with everything of the container.
fn sample(seconds: i64, of: &[(&str, u64)]) -> proto::UsageSample {
    let usage = |(id, bytes): &(&str, u64)| proto::ContainerUsage {
        container: Some(proto::Container {
            image: Some("registry.example/image:1".into()),
            labels: [("a-label".to_owned(), "of some length".to_owned())].into(),
            ..container(id, Some("app"))
        }),
        memory_usage: amount(Of::Value(*bytes)),
        memory_limit: amount(Of::Value(64 * MIB)),
        memory_high: amount(Of::Unlimited(true)),
        inactive_file: amount(Of::Value(0)),
        oom_kills: amount(Of::Value(0)),
        cpu_periods: amount(Of::Value(1000)),
        cpu_throttled: amount(Of::Value(10)),
        fill_rate: Some(1024),
        time_to_limit_ms: Some(1000),
        verdicts: vec![proto::LimitVerdict { file: "memory.max".into(), ..Default::default() }],
        ..Default::default()
    };
    let containers = of.iter().map(usage).collect();
    proto::UsageSample { time: Some(at(seconds)), kernel_time: 7, containers, skipped: 0 }
}

fn limit(seq: u64, id: &str, value: &str) -> Line {
    let container = container(id, Some("app"));
    let cgroup = proto::Cgroup { id: container.cgroup_id, ..Default::default() };
    let new = proto::Reading { reading: Some(proto::reading::Reading::Value(value.into())) };
    let changed = proto::LimitChanged {
        cgroup: Some(cgroup),
        file: "memory.max".into(),
        new: Some(new),
        ..Default::default()
    };
    event(seq, container, Kind::LimitChanged(Box::new(changed)))
}

/// One whose names are all known.
fn named(id: &str) -> proto::Container {
    let mut container = container(id, Some("app"));
    container.pod.get_or_insert_default().namespace = Some("prod".into());
    container
}

fn number(amount: Option<&proto::Amount>) -> Option<u64> {
    match amount?.amount {
        Some(Of::Value(number)) => Some(number),
        _ => None,
    }
}

#[test]
fn a_sample_is_small_and_is_read_as_it_was_written() {
    let line = Line::usage(sample(3, &[("a", MIB)]));
    let mut text = Vec::new();
    line.write(&mut text).unwrap();
    assert_eq!(Line::parse(&text).unwrap(), line);
    let text = String::from_utf8(text).unwrap();
    assert!(text.starts_with("{\"type\":\"usage\",\"time\":"), "{text}");
    assert!(text.len() < 512 && !text.contains("a-label") && !text.contains("verdict"), "{text}");
}

#[tokio::test]
async fn usage_is_answered_as_of_any_time() {
    for options in [PLAIN, ZSTD] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        let lines = [
            snapshot(1, &["a", "b"]),
            Line::usage(sample(10, &[("a", 10 * MIB), ("b", 1)])),
            limit(15, "a", "33554432"),
            Line::usage(sample(20, &[("a", 20 * MIB), ("b", 2)])),
            event(25, container("b", Some("app")), Kind::Deleted(proto::Deleted::default())),
            created(26, "c"),
            limit(27, "a", "max"),
        ];
        write(&path, options, &lines);
        let usage = async |until| {
            let recording = Recording::open(&path, Some(at(until))).await.unwrap();
            let sample = recording.usage(&proto::Filter::default());
            let mut usage = sample.containers;
            usage.sort_by_key(|usage| usage.container.as_ref().unwrap().cgroup_id);
            (sample.time, usage)
        };
        let (time, of) = usage(9).await;
        assert_eq!((time, of.len()), (None, 2), "none was taken yet");
        assert!(matches!(of[0].memory_usage.as_ref().unwrap().amount, Some(Of::Unknown(_))));

        let (time, of) = usage(12).await;
        assert_eq!((time, number(of[0].memory_usage.as_ref())), (Some(at(10)), Some(10 * MIB)));
        assert_eq!(of[0].container.as_ref().unwrap().name(), "app", "named by the snapshot");
        assert_eq!(of[0].time_to_limit_ms, Some(1000));

        // A limit that was changed after the sample is the new one, and the time until the old one is left out.
        let (_, of) = usage(16).await;
        assert_eq!(number(of[0].memory_limit.as_ref()), Some(32 * MIB));
        assert_eq!((number(of[0].memory_usage.as_ref()), of[0].time_to_limit_ms), (Some(10 * MIB), None));

        let (time, of) = usage(30).await;
        let ids: Vec<_> = of.iter().map(|of| of.container.as_ref().unwrap().id.as_str()).collect();
        assert_eq!((time, ids), (Some(at(20)), vec!["a", "c"]), "those that exist");
        assert_eq!(of[0].memory_limit.as_ref().unwrap().amount, Some(Of::Unlimited(true)));
        assert!(
            matches!(of[1].memory_usage.as_ref().unwrap().amount, Some(Of::Unknown(_))),
            "not sampled yet"
        );

        let recording = Recording::open(&path, Some(at(12))).await.unwrap();
        let mut times = Vec::new();
        recording.samples(None, |sample| times.extend(sample.time)).await.unwrap();
        assert_eq!(times, [at(10)], "up to the moment");
        let recording = Recording::open(&path, None).await.unwrap();
        times.clear();
        recording.samples(Some(at(11)), |sample| times.extend(sample.time)).await.unwrap();
        assert_eq!(times, [at(20)], "since a time");
        // They are no events, and end a recording like these.
        assert_eq!(seqs(&path).await, [15, 25, 26, 27]);
    }
}

/// The OOM kill of a container is that of the one that is restarted in its place, whenever its names became known.
#[tokio::test]
async fn an_oom_kill_is_known_without_samples() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let position = Some(proto::Position { epoch: "e".into(), seq: 9 });
    let state = proto::ContainerState { container: Some(named("b")), ..Default::default() };
    let answer = proto::Snapshot { position: position.clone(), containers: vec![state] };
    let verdict = proto::Verdict {
        verdict: proto::VerdictKind::InForce.into(),
        file: "memory.max".into(),
        cgroup: Some(proto::Cgroup { id: container("b", None).cgroup_id, ..Default::default() }),
        in_force: Some(proto::Reading { reading: Some(proto::reading::Reading::Value("4096".into())) }),
        ..Default::default()
    };
    let lines = [
        // Taken later than what follows, as in a recording that begins in the past.
        Line::Snapshot(At { time: at(9), after: position, answer }),
        event(3, container("a", None), Kind::OomKill(Box::default())),
        event(4, named("a"), Kind::Updated(proto::Updated::default())),
        event(5, named("b"), Kind::Created(proto::Created::default())),
        event(10, named("b"), Kind::Verdict(Box::new(verdict))),
    ];
    write(&path, PLAIN, &lines);
    let sample = Recording::open(&path, None).await.unwrap().usage(&proto::Filter::default());
    let [usage] = &sample.containers[..] else { panic!("{sample:?}") };
    assert_eq!((sample.time, usage.last_oom_kill), (None, Some(at(3))), "{usage:?}");
    assert_eq!(number(usage.memory_limit.as_ref()), Some(4096));
    assert_eq!(usage.verdicts[0].verdict(), proto::VerdictKind::InForce);
}

#[tokio::test]
async fn a_recording_of_an_earlier_release_is_read_and_continued_in_a_file_of_its_own() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    fs::write(&path, FORMAT_1).unwrap();
    let recording = Recording::open(&path, None).await.unwrap();
    assert_eq!(recording.header().format, 1);
    let sample = recording.usage(&proto::Filter::default());
    assert_eq!((sample.time, sample.containers.len()), (None, 1), "{sample:?}");
    let before = seqs(&path).await;
    assert_eq!(before.len(), FORMAT_1.lines().count() - 2, "all but header and snapshot");

    let header = Header { format: FORMAT, ..recording.header().clone() };
    let (mut writer, position) = Writer::open(&path, PLAIN, &header).unwrap();
    assert_eq!(position.map(|position| position.seq), before.last().copied());
    writer.append(&Line::usage(sample)).unwrap();
    writer.finish().unwrap();
    let older = directory.path().join("r.1");
    assert_eq!(fs::read_to_string(&older).unwrap(), FORMAT_1, "what it has stays as it is");
    assert_eq!(Lines::open(&path).unwrap().header().format, FORMAT);
    assert_eq!(seqs(&path).await, before);
}
