//! Files that are no recordings, or not whole, or not in order: each is an error that says so, and none is waited for or takes memory
//! without a bound.

use super::*;

use ruzstd::encoding::{CompressionLevel, compress_to_vec};

use crate::recording::read::unpack;

async fn refused(path: &std::path::Path) -> Error {
    Recording::open(path, None).await.unwrap_err()
}

#[tokio::test]
async fn what_is_no_regular_file_is_neither_read_nor_written() {
    let directory = tempfile::tempdir().unwrap();
    let mut others = vec![directory.path().to_owned()];
    #[cfg(unix)]
    {
        // Opening one for reading would wait for a writer. A link to it is no better.
        let fifo = directory.path().join("fifo");
        let made = std::process::Command::new("mkfifo").arg(&fifo).status().unwrap();
        assert!(made.success());
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&fifo, &link).unwrap();
        others.extend([fifo, link, "/dev/zero".into(), "/dev/null".into()]);
    }
    for path in others {
        assert!(matches!(refused(&path).await, Error::NotAFile { .. }), "{}", path.display());
        let written = Writer::open(&path, PLAIN, &header());
        let is_link = path.is_symlink();
        let is_refused = matches!(
            (&written, is_link),
            (Err(Error::NotAFile { .. }), false) | (Err(Error::SymbolicLink { .. }), true)
        );
        assert!(is_refused, "{}: {written:?}", path.display());
    }
}

#[tokio::test]
async fn other_files_are_no_recordings() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let no_lines = "x".repeat(2 * HEADER_MAX);
    let long = format!("{{\"type\":\"recording\",\"node\":\"{no_lines}\"}}\n");
    let packed = compress_to_vec(&b"{\"type\":\"created\"}\n"[..], CompressionLevel::Fastest);
    let others: [&[u8]; 7] = [
        b"",
        no_lines.as_bytes(),
        long.as_bytes(),
        b"\x7fELF\x02\x01\x01\n",
        b"{\"type\":\"usage\",\"time\":\"2026-01-01T00:00:00Z\"}\n",
        b"{\"type\":\"recording\",\"format\":\"many\"}\n",
        &packed,
    ];
    for other in others {
        fs::write(&path, other).unwrap();
        let error = refused(&path).await;
        assert!(matches!(error, Error::NoHeader { .. }), "{:?}: {error}", &other[..other.len().min(40)]);
        if !other.is_empty() {
            Writer::open(&path, PLAIN, &header()).unwrap_err();
            assert_eq!(fs::read(&path).unwrap(), other, "it is not overwritten");
        }
    }
    // Deeper than any message.
    let nested = format!("{{\"type\":\"created\",\"container\":{}", "[".repeat(100_000));
    let path = directory.path().join("nested");
    write(&path, PLAIN, &[]);
    fs::write(&path, [fs::read(&path).unwrap(), nested.into_bytes(), vec![b'\n']].concat()).unwrap();
    assert!(matches!(refused(&path).await, Error::Damaged { .. }));
}

#[tokio::test]
async fn a_recording_of_a_later_release_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let later = Header { format: FORMAT + 1, ..header() };
    Writer::open(&path, PLAIN, &later).unwrap().0.finish().unwrap();
    let written = fs::read(&path).unwrap();
    let to_write = Writer::open(&path, PLAIN, &header()).map(drop).unwrap_err();
    for error in [refused(&path).await, to_write] {
        assert!(matches!(error, Error::Newer { format, .. } if format == FORMAT + 1), "{error}");
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
    }
    assert_eq!(fs::read(&path).unwrap(), written, "it is not overwritten");
}

#[test]
fn a_frame_that_unpacks_to_too_much_is_given_up() {
    let zeros = vec![0; 4 << 20];
    let bomb = compress_to_vec(&zeros[..], CompressionLevel::Fastest);
    assert!(bomb.len() < zeros.len() / 100, "{}", bomb.len());
    let error = unpack(&mut &bomb[..], 1 << 20).unwrap_err();
    assert!(error.contains("more than 1048576 bytes"), "{error}");
    assert_eq!(unpack(&mut &bomb[..], 4 << 20).unwrap().len(), zeros.len());
}

#[tokio::test]
async fn parts_with_each_others_names_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    let older = directory.path().join("r.1");
    let (mut writer, _) = Writer::open(&path, PLAIN, &header()).unwrap();
    writer.append(&created(2, "a")).unwrap();
    writer.append(&created(3, "b")).unwrap();
    writer.rotate(&header()).unwrap();
    writer.append(&snapshot(3, &["a"])).unwrap();
    writer.append(&created(4, "c")).unwrap();
    writer.finish().unwrap();
    assert_eq!(seqs(&path).await, [2, 3, 4]);
    let other = directory.path().join("other");
    fs::rename(&path, &other).unwrap();
    fs::rename(&older, &path).unwrap();
    // Each can be read alone.
    assert_eq!((seqs(&path).await, seqs(&other).await), (vec![2, 3], vec![4]));
    fs::rename(&other, &older).unwrap();
    let error = refused(&path).await.to_string();
    assert!(error.contains("was begun before") && error.contains("r.1"), "{error}");
}

#[tokio::test]
async fn a_time_outside_of_a_recording_is_its_beginning_or_its_end() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("r");
    write(&path, PLAIN, &[snapshot(5, &["a"]), created(6, "b")]);
    let open = async |until| Recording::open(&path, Some(at(until))).await.unwrap();
    let before = open(1).await;
    assert!(before.list(&proto::Filter::default()).containers.is_empty());
    assert_eq!((before.known_since(), before.span()), (None, None));
    let after = open(i64::MAX).await;
    assert_eq!(after.list(&proto::Filter::default()).containers.len(), 2);
    assert_eq!(after.span(), Some((at(6), at(6))));
}
