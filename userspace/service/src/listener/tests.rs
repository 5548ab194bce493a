//! Each condition is forced: a full house, no descriptors, a silent client, a file that is gone.

use std::fs;
use std::fs::File;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::*;
use crate::slots::KEPT;

const SOON: Duration = Duration::from_secs(20);

struct Listening {
    listener: Listener,
    path: std::path::PathBuf,
    _directory: tempfile::TempDir,
}

fn listening(limits: Limits) -> Listening {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("run/test.sock");
    Socket::make_directory(&path).unwrap();
    let listener = Listener::new(Socket::listen(&path).unwrap(), limits).unwrap();
    Listening { listener, path, _directory: directory }
}

const LIMITS: Limits =
    Limits { connections: 2, silence: Duration::from_secs(3600), watch: Duration::from_millis(20) };

#[tokio::test]
async fn one_too_many_is_closed_and_the_next_has_its_place() {
    let Listening { mut listener, path, _directory } = listening(LIMITS);
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(UnixStream::connect(&path).await.unwrap());
    }
    let first = listener.accept().await;
    let _second = listener.accept().await;
    let counters = listener.counters();
    let next = tokio::spawn(async move { listener.accept().await });
    let read = timeout(SOON, clients[2].read(&mut [0])).await.unwrap().unwrap();
    assert_eq!((read, counters.connections_refused.get()), (0, 1), "the third is closed");
    drop(first);
    let _fourth = UnixStream::connect(&path).await.unwrap();
    timeout(SOON, next).await.unwrap().unwrap();
    assert_eq!(counters.connections.get(), 4);
}

/// In a process of its own: this test starts itself again. It opens two connections and waits for the end of the newer one.
#[test]
fn a_client_that_takes_all_connections_keeps_no_other_out() {
    const CHILD: &str = "KWITNESS_TEST_TAKES_ALL";
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if let Some(path) = std::env::var_os(CHILD) {
        runtime.block_on(async {
            let mut streams = Vec::new();
            for _ in 0..KEPT + 1 {
                streams.push(UnixStream::connect(&path).await.unwrap());
            }
            let mut last = streams.pop().unwrap();
            assert_eq!(timeout(SOON, last.read(&mut [0])).await.unwrap().unwrap(), 0);
            assert_eq!(streams[0].try_read(&mut [0]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        });
        return;
    }
    runtime.block_on(async {
        let Listening { mut listener, path, _directory } =
            listening(Limits { connections: KEPT + 1, ..LIMITS });
        let mut child = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "listener::tests::a_client_that_takes_all_connections_keeps_no_other_out"])
            .env(CHILD, &path)
            .spawn()
            .unwrap();
        let mut accepted = Vec::new();
        for _ in 0..KEPT + 1 {
            accepted.push(listener.accept().await);
        }
        let _own = UnixStream::connect(&path).await.unwrap();
        timeout(SOON, listener.accept()).await.expect("it is accepted");
        assert_eq!(
            accepted.last_mut().unwrap().read(&mut [0; 64]).await.unwrap(),
            0,
            "its server sees it, too"
        );
        assert!(child.wait().unwrap().success());
    });
}

#[tokio::test(start_paused = true)]
async fn a_client_that_does_not_begin_is_closed_and_one_that_began_is_not() {
    let limits = Limits { watch: Duration::from_secs(3600), ..LIMITS };
    let Listening { mut listener, path, _directory } = listening(limits);
    let mut quick = UnixStream::connect(&path).await.unwrap();
    quick.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut begun = listener.accept().await;
    let _silent = UnixStream::connect(&path).await.unwrap();
    let mut waiting = listener.accept().await;
    let error = waiting.read(&mut [0; 64]).await.unwrap_err();
    assert_eq!((error.kind(), listener.counters().connections_silent.get()), (io::ErrorKind::TimedOut, 1));
    assert_eq!(begun.read(&mut [0; 64]).await.unwrap(), 33);
    timeout(2 * limits.silence, begun.read(&mut [0; 64])).await.unwrap_err();
}

#[tokio::test]
async fn a_file_that_was_removed_or_replaced_is_made_again() {
    let Listening { mut listener, path, _directory } = listening(LIMITS);
    let directory = path.parent().unwrap();
    let accepting = tokio::spawn(async move {
        loop {
            let _closed = listener.accept().await;
        }
    });
    let connected = async || {
        while UnixStream::connect(&path).await.is_err() {
            sleep(Duration::from_millis(5)).await;
        }
    };
    fs::remove_file(&path).unwrap();
    timeout(SOON, connected()).await.unwrap();
    fs::remove_dir_all(directory).unwrap();
    timeout(SOON, connected()).await.unwrap();
    // What a process left that died.
    fs::remove_file(&path).unwrap();
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    timeout(SOON, connected()).await.unwrap();
    accepting.abort();
}

#[tokio::test]
async fn anothers_live_socket_and_a_file_that_is_none_are_left_alone() {
    let Listening { mut listener, path, _directory } = listening(LIMITS);
    fs::remove_file(&path).unwrap();
    let other = std::os::unix::net::UnixListener::bind(&path).unwrap();
    listener.keep_reachable();
    assert!(listener.gone && !listener.socket.is_reachable());
    drop(other);
    fs::remove_file(&path).unwrap();
    fs::write(&path, "precious").unwrap();
    listener.keep_reachable();
    assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
}

/// In a process of its own, for the limit is the process's: this test starts itself again.
#[test]
fn without_descriptors_it_waits_and_goes_on() {
    const CHILD: &str = "KWITNESS_TEST_WITHOUT_DESCRIPTORS";
    if std::env::var_os(CHILD).is_none() {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "listener::tests::without_descriptors_it_waits_and_goes_on"])
            .env(CHILD, "1")
            .status()
            .unwrap();
        assert!(status.success());
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let Listening { mut listener, path, _directory } = listening(LIMITS);
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
        setrlimit(Resource::RLIMIT_NOFILE, 64, hard).unwrap();
        let _client = UnixStream::connect(&path).await.unwrap();
        let mut held = Vec::new();
        while let Ok(file) = File::open("/dev/null") {
            held.push(file);
        }
        let longer = async {
            while listener.pause.is_none_or(|pause| pause <= PAUSE.0) {
                // As often as it is asked, it tries and begins to wait.
                timeout(PAUSE.0, listener.accept()).await.unwrap_err();
            }
        };
        timeout(SOON, longer).await.expect("it waits, longer each time");
        drop(held);
        timeout(SOON, listener.accept()).await.unwrap();
        assert!(listener.pause.is_none());
    });
}
