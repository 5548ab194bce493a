//! `kwitness export` as a service manager runs it.

use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// An upgrade of the package restarts it, and must not wait for a daemon that does not run.
#[test]
fn it_is_ready_while_it_waits_for_the_daemon() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    let manager = UnixDatagram::bind(at("notify")).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut exporter = Command::new(env!("CARGO_BIN_EXE_kwitness"))
        .args(["export", "--otlp-endpoint", "http://127.0.0.1:9", "--socket"])
        .arg(at("no-daemon.sock"))
        .arg("--state-file")
        .arg(at("state.json"))
        .env("NOTIFY_SOCKET", at("notify"))
        .spawn()
        .unwrap();
    let mut notice = [0; 64];
    let received = manager.recv(&mut notice);
    kill(Pid::from_raw(exporter.id() as i32), Signal::SIGTERM).unwrap();
    assert!(exporter.wait().unwrap().success(), "it ends well");
    assert_eq!(notice[..received.unwrap()].trim_ascii(), b"READY=1");
}
