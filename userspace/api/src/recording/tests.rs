//! Recordings are written, torn, continued, rotated and read.

use std::fs;

use super::*;
use crate::client::Item;
use crate::proto::event::Kind;
use crate::{EventKind, Source};

mod hostile;
mod usage;

const PLAIN: Options = Options { max_size: 1 << 20, keep: 3, zstd: false };
const ZSTD: Options = Options { zstd: true, ..PLAIN };

fn header() -> Header {
    Header { format: FORMAT, node: "n1".into(), epoch: "e".into(), ..Default::default() }
}

fn at(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanos: 0 }
}

fn container(id: &str, name: Option<&str>) -> proto::Container {
    proto::Container {
        id: id.into(),
        cgroup_id: id.bytes().map(u64::from).sum(),
        name: name.map(str::to_owned),
        pod: Some(proto::Pod { uid: "u".into(), name: name.map(|_| "web-0".into()), ..Default::default() }),
        ..Default::default()
    }
}

fn event(seq: u64, container: proto::Container, kind: Kind) -> Line {
    Line::Event(Box::new(proto::Event {
        position: Some(proto::Position { epoch: "e".into(), seq }),
        time: Some(at(seq as i64)),
        container: Some(container),
        r#type: EventKind::from(&kind).name().into(),
        kind: Some(kind),
        ..Default::default()
    }))
}

fn created(seq: u64, id: &str) -> Line {
    event(seq, container(id, None), Kind::Created(proto::Created::default()))
}

fn snapshot(seq: u64, ids: &[&str]) -> Line {
    let state = |id: &&str| proto::ContainerState {
        container: Some(container(id, Some("app"))),
        state: proto::State::Running.into(),
        ..Default::default()
    };
    let position = Some(proto::Position { epoch: "e".into(), seq });
    let answer = proto::Snapshot { position: position.clone(), containers: ids.iter().map(state).collect() };
    Line::Snapshot(At { time: at(seq as i64), after: position, answer })
}

fn write(path: &std::path::Path, options: Options, lines: &[Line]) -> Option<u64> {
    let (mut writer, position) = Writer::open(path, options, &header()).unwrap();
    for line in lines {
        writer.append(line).unwrap();
        writer.flush().unwrap();
    }
    position.map(|position| position.seq)
}

async fn seqs(path: &std::path::Path) -> Vec<u64> {
    let recording = Recording::open(path, None).await.unwrap();
    let mut replay = recording.watch(proto::WatchRequest::default());
    let mut seqs = Vec::new();
    while let Some(Item::Events(events)) = replay.next().await.unwrap() {
        seqs.extend(events.iter().filter_map(|event| event.position.as_ref()).map(|position| position.seq));
    }
    seqs
}

#[test]
fn no_event_has_the_type_of_another_line() {
    for kind in EventKind::ALL {
        assert!(![HEADER, SNAPSHOT, VERDICTS, USAGE].contains(&kind.name()));
    }
}

#[test]
fn an_event_is_recorded_as_it_is_printed() {
    let line = created(7, "a");
    let mut text = Vec::new();
    line.write(&mut text).unwrap();
    let Line::Event(event) = &line else { unreachable!() };
    assert_eq!(
        String::from_utf8(text.clone()).unwrap(),
        format!("{}\n", serde_json::to_string(event).unwrap())
    );
    for line in [line, snapshot(3, &["a"]), Line::Header(header())] {
        let mut text = Vec::new();
        line.write(&mut text).unwrap();
        assert_eq!(Line::parse(&text).unwrap(), line);
    }
}

#[tokio::test]
async fn wherever_a_file_is_torn_what_is_whole_is_read_and_continued() {
    for options in [PLAIN, ZSTD] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        write(&path, options, &[snapshot(1, &[]), created(2, "a")]);
        let whole = fs::read(&path).unwrap().len();
        write(&path, options, &[created(3, "b")]);
        let all = fs::read(&path).unwrap();
        for length in whole..all.len() {
            fs::write(&path, &all[..length]).unwrap();
            assert_eq!(seqs(&path).await, [2], "{length} of {}", all.len());
            let torn = Recording::open(&path, None).await.unwrap().torn().is_some();
            assert_eq!(torn, length > whole, "{length}");
        }
        assert_eq!(write(&path, options, &[created(3, "b")]), Some(2));
        assert_eq!(fs::read(&path).unwrap(), all, "continued as if nothing had happened");
        assert_eq!(seqs(&path).await, [2, 3]);
    }
}

#[tokio::test]
async fn a_torn_header_is_begun_again_and_a_foreign_file_is_not_overwritten() {
    for options in [PLAIN, ZSTD] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        write(&path, options, &[]);
        let all = fs::read(&path).unwrap();
        for length in 0..all.len() {
            fs::write(&path, &all[..length]).unwrap();
            assert_eq!(write(&path, options, &[created(2, "a")]), None);
            assert_eq!(seqs(&path).await, [2]);
        }
        for foreign in ["precious\n", "{\"type\":\"created\"}\n", "{}"] {
            fs::write(&path, foreign).unwrap();
            let refused = Writer::open(&path, options, &header());
            assert!(matches!(refused, Err(Error::NoHeader { .. })), "{refused:?}");
            assert_eq!(fs::read_to_string(&path).unwrap(), foreign);
        }
    }
}

#[tokio::test]
async fn damage_in_the_middle_is_an_error_with_its_place() {
    for options in [PLAIN, ZSTD] {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("r");
        write(&path, options, &[created(2, "a")]);
        let place = fs::metadata(&path).unwrap().len();
        write(&path, options, &[created(3, "b"), created(4, "c")]);
        let mut bytes = fs::read(&path).unwrap();
        bytes[place as usize] ^= 0xff;
        fs::write(&path, &bytes).unwrap();
        let error = Recording::open(&path, None).await.unwrap_err();
        assert!(matches!(error, Error::Damaged { offset, .. } if offset == place), "{error}");
    }
}

#[tokio::test]
async fn a_full_file_gives_way_and_the_oldest_goes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let (mut writer, _) = Writer::open(&path, Options { max_size: 1, ..ZSTD }, &header()).unwrap();
    for seq in 1..=5 {
        assert!(writer.is_full());
        writer.rotate(&header()).unwrap();
        writer.append(&snapshot(seq * 10, &[])).unwrap();
        writer.append(&created(seq * 10 + 1, "a")).unwrap();
        writer.flush().unwrap();
    }
    let mut names: Vec<_> = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["r", "r.1", "r.2"]);
    assert_eq!(seqs(&path).await, [31, 41, 51]);
    assert_eq!(seqs(&directory.path().join("r.2")).await, [31]);
    // A crash right after the rotation: where to resume is in the file before.
    writer.rotate(&header()).unwrap();
    drop(writer);
    assert_eq!(write(&path, ZSTD, &[]), Some(51));
}

#[cfg(unix)]
#[tokio::test]
async fn a_recording_has_one_writer_and_a_link_is_not_followed() {
    use std::os::unix::fs::PermissionsExt as _;

    let directory = tempfile::tempdir().unwrap();
    let (path, link) = (directory.path().join("r"), directory.path().join("link"));
    let refused = |path| Writer::open(path, PLAIN, &header()).map(drop).unwrap_err();
    let mut writer = Writer::open(&path, PLAIN, &header()).unwrap().0;
    assert!(matches!(refused(&path), Error::InUse { .. }));
    writer.append(&created(2, "a")).unwrap();
    writer.rotate(&header()).unwrap();
    assert!(matches!(refused(&path), Error::InUse { .. }), "the next part, too");
    writer.append(&created(3, "b")).unwrap();
    writer.finish().unwrap();
    assert_eq!(seqs(&path).await, [2, 3], "readers are let in");
    for part in [&path, &directory.path().join("r.1")] {
        assert_eq!(fs::metadata(part).unwrap().permissions().mode() & 0o077, 0, "but the owner's only");
    }
    drop(writer);
    assert_eq!(write(&path, PLAIN, &[created(4, "c")]), Some(3));

    let before = fs::read(&path).unwrap();
    for target in [&path, &directory.path().join("nothing")] {
        _ = fs::remove_file(&link);
        std::os::unix::fs::symlink(target, &link).unwrap();
        let error = refused(&link);
        assert!(matches!(error, Error::SymbolicLink { .. }), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), before);
    assert!(!directory.path().join("nothing").exists());
    // In the place of an older part it gives way, and what it points to stays.
    let mut writer = Writer::open(&path, Options { keep: 2, ..PLAIN }, &header()).unwrap().0;
    let victim = directory.path().join("victim");
    fs::write(&victim, "precious").unwrap();
    fs::remove_file(directory.path().join("r.1")).unwrap();
    std::os::unix::fs::symlink(&victim, directory.path().join("r.1")).unwrap();
    writer.rotate(&header()).unwrap();
    assert_eq!(fs::read_to_string(&victim).unwrap(), "precious");
    assert!(!directory.path().join("r.1").is_symlink());
}

#[tokio::test]
async fn another_compression_begins_another_file_and_another_node_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    write(&path, PLAIN, &[created(2, "a")]);
    assert_eq!(write(&path, ZSTD, &[created(3, "b")]), Some(2));
    assert_eq!(seqs(&path).await, [2, 3]);
    let other = Header { node: "n2".into(), ..header() };
    assert!(matches!(Writer::open(&path, ZSTD, &other), Err(Error::OtherNode { .. })));
    fs::write(&path, b"{\"type\":\"recording\",\"format\":99,\"node\":\"n1\",\"kernel\":\"\",\"daemon\":\"\",\"epoch\":\"\",\"recorder\":\"\"}\n").unwrap();
    assert!(matches!(Recording::open(&path, None).await, Err(Error::Newer { format: 99, .. })));
}

#[tokio::test]
async fn a_recording_answers_as_of_any_time() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let verdict = |seq, kind: proto::VerdictKind| {
        let verdict =
            proto::Verdict { verdict: kind.into(), file: "memory.max".into(), ..Default::default() };
        event(seq, container("b", Some("job")), Kind::Verdict(Box::new(verdict)))
    };
    let of_main = Kind::Stopped(proto::Stopped::default());
    write(
        &path,
        ZSTD,
        &[
            // This event is in the snapshot: a recorder may be behind when it lists.
            snapshot(3, &["a"]),
            created(3, "a"),
            created(4, "b"),
            event(5, container("b", Some("job")), Kind::Started(proto::Started::default())),
            verdict(6, proto::VerdictKind::Shadowed),
            event(7, container("a", Some("app")), of_main),
            event(8, container("a", Some("app")), Kind::Deleted(proto::Deleted::default())),
        ],
    );
    let names = async |until, filter: proto::Filter| {
        let recording = Recording::open(&path, Some(at(until))).await.unwrap();
        let containers = recording.list(&filter).containers;
        let shown = containers.into_iter().map(|state| {
            (state.container.unwrap().name.unwrap(), proto::State::try_from(state.state).unwrap())
        });
        let mut shown: Vec<_> = shown.collect();
        shown.sort_by(|left, right| left.0.cmp(&right.0));
        shown
    };
    let all = proto::Filter::default;
    let (app, job) = (|state| ("app".to_owned(), state), |state| ("job".to_owned(), state));
    use proto::State::{Created, Running, Stopped};
    assert_eq!(names(3, all()).await, [app(Running)]);
    // The name that the runtime reported later.
    assert_eq!(names(4, all()).await, [app(Running), job(Created)]);
    assert_eq!(names(7, all()).await, [app(Stopped), job(Running)]);
    assert_eq!(names(9, all()).await, [job(Running)]);
    let only = proto::Filter { containers: vec!["job".into()], pods: vec!["web-0".into()], ..all() };
    assert_eq!(names(7, only).await, [job(Running)]);

    let mut source = Source::Recorded(Box::new(Recording::open(&path, None).await.unwrap()));
    let verdicts = source.verify(proto::VerifyRequest::default()).await.unwrap().verdicts;
    assert_eq!(verdicts.len(), 1);
    assert_eq!(verdicts[0].verdict.as_ref().unwrap().verdict(), proto::VerdictKind::Shadowed);
    let waits = proto::VerifyRequest { wait_ms: 1, ..Default::default() };
    assert!(source.verify(waits).await.is_err());

    let filter = proto::Filter {
        containers: vec!["job".into()],
        kinds: vec![EventKind::Created.into(), EventKind::Verdict.into()],
        ..all()
    };
    let request = proto::WatchRequest { filter: Some(filter), until: Some(at(5)), ..Default::default() };
    let mut events = source.watch(request).await.unwrap();
    let Some(Item::Events(events)) = events.next().await.unwrap() else { panic!() };
    assert_eq!(events.len(), 1);
    assert_eq!(events[0].container.as_ref().unwrap().name(), "job", "named by what was known at the end");
}

#[tokio::test]
async fn a_container_that_a_scan_found_has_the_start_of_its_main_process() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let process = proto::Process { pid: 9, start_time: 2_000_000_000, ..Default::default() };
    let started = proto::Started { process: Some(process), ..Default::default() };
    let Line::Event(mut found) = event(7, container("a", None), Kind::Started(started)) else {
        unreachable!()
    };
    found.basis = proto::Basis::InitialScan.into();
    found.kernel_time = 5_000_000_000;
    write(&path, PLAIN, &[snapshot(3, &[]), Line::Event(found)]);
    let recording = Recording::open(&path, None).await.unwrap();
    let states = recording.list(&proto::Filter::default()).containers;
    assert_eq!(states[0].started_at, Some(at(4)), "three seconds before it was found");
}

#[tokio::test]
async fn what_comes_after_the_end_of_a_container_does_not_bring_it_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let of = |seq, kind| event(seq, container("a", Some("app")), kind);
    let verdict = proto::Verdict { file: "memory.max".into(), ..Default::default() };
    let late = [
        of(5, Kind::Exited(proto::Exited::default())),
        of(6, Kind::Exec(proto::Exec::default())),
        of(7, Kind::Stopped(proto::Stopped::default())),
        of(8, Kind::OomKill(Box::default())),
        of(9, Kind::Verdict(Box::new(verdict))),
        of(10, Kind::LimitChanged(Box::default())),
        of(11, Kind::Pressure(Box::default())),
        of(12, Kind::GuardRaised(proto::GuardRaised::default())),
        of(13, Kind::Updated(proto::Updated::default())),
    ];
    let mut lines = vec![snapshot(3, &["a"]), of(4, Kind::Deleted(proto::Deleted::default()))];
    lines.extend(late);
    write(&path, PLAIN, &lines);
    let recording = Recording::open(&path, None).await.unwrap();
    assert_eq!(recording.list(&proto::Filter::default()).containers, []);
    let mut source = Source::Recorded(Box::new(recording));
    let answer = source.verify(proto::VerifyRequest::default()).await;
    assert!(answer.is_err() || answer.unwrap().verdicts.is_empty());

    // Another container in a cgroup of the same number, after a reboot.
    let mut next = container("b", Some("job"));
    next.cgroup_id = container("a", None).cgroup_id;
    lines.push(event(14, next.clone(), Kind::Started(proto::Started::default())));
    lines.push(of(15, Kind::Deleted(proto::Deleted::default())));
    fs::remove_file(&path).unwrap();
    write(&path, PLAIN, &lines);
    let there = Recording::open(&path, None).await.unwrap().list(&proto::Filter::default()).containers;
    assert_eq!(there.len(), 1);
    assert_eq!(there[0].container.as_ref().unwrap().id, "b");
}
