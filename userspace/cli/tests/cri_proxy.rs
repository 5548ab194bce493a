//! `kwitness cri-proxy` as a service manager runs it: with a socket that was passed, restarted while clients call.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::future::{Future as _, poll_fn};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::task::Poll;
use std::time::{Duration, Instant};

use kwitness_cri::runtime::VersionRequest;
use kwitness_cri::runtime::runtime_service_client::RuntimeServiceClient;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

struct Proxy(Child);

impl Proxy {
    fn start(listener: &UnixListener, runtime: &Path) -> Self {
        // What systemd does: the socket as descriptor 3, and the process it is meant for.
        let script = "exec 3<&0 </dev/null; LISTEN_PID=$$ LISTEN_FDS=1 exec \"$@\"";
        let child = Command::new("sh")
            .args(["-c", script, "sh", env!("CARGO_BIN_EXE_kwitness"), "cri-proxy", "--runtime-endpoint"])
            .arg(runtime)
            .stdin(Stdio::from(OwnedFd::from(listener.try_clone().unwrap())))
            .spawn();
        Self(child.unwrap())
    }

    fn stop(mut self) -> bool {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        self.0.wait().unwrap().success()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn connect(socket: &Path) -> RuntimeServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).unwrap();
    RuntimeServiceClient::new(endpoint.connect().await.unwrap())
}

async fn version(client: &mut RuntimeServiceClient<Channel>) -> tonic::Status {
    client.version(VersionRequest::default()).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_restart_makes_calls_wait_and_not_fail() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cri.sock");
    let runtime = directory.path().join("no-runtime.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let mut proxy = Proxy::start(&listener, &runtime);
    let is_answered = |status: tonic::Status| {
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("no-runtime.sock: connect: no such file"), "{status}");
    };
    let mut client = connect(&socket).await;
    is_answered(version(&mut client).await);
    for _ in 0..3 {
        assert!(proxy.stop(), "it ends well");
        // No process serves now, and yet a new connection is accepted and its call waits.
        let mut other = connect(&socket).await;
        let mut waiting = Box::pin(version(&mut other));
        // Polled once, it is on its way.
        let begun = poll_fn(|context| Poll::Ready(waiting.as_mut().poll(context))).await;
        assert!(begun.is_pending());
        proxy = Proxy::start(&listener, &runtime);
        is_answered(waiting.await);
    }
    assert!(socket.exists(), "it is not the proxy's to remove");
}

#[tokio::test]
async fn what_it_listens_on_must_not_be_what_it_calls() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("cri.sock");
    let run = |more: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kwitness"));
        command.arg("cri-proxy").arg("--listen").arg(&socket).args(more).output().unwrap()
    };
    let at = format!("unix://{}", socket.display());
    for more in [["--runtime-endpoint", at.as_str()], ["--socket", socket.to_str().unwrap()]] {
        let began = Instant::now();
        let output = run(&more);
        assert!(began.elapsed() < Duration::from_secs(10));
        assert_eq!(output.status.code(), Some(1));
        let said = String::from_utf8(output.stderr).unwrap();
        assert!(said.contains("the proxy would listen on the "), "{said}");
    }
}

#[tokio::test]
async fn metrics_are_served_and_an_address_that_is_taken_keeps_no_kubelet_out() {
    let directory = tempfile::tempdir().unwrap();
    let (socket, http) = (directory.path().join("cri.sock"), directory.path().join("http.sock"));
    let start = || {
        let child = Command::new(env!("CARGO_BIN_EXE_kwitness"))
            .args(["cri-proxy", "--runtime-endpoint", "/no-runtime.sock", "--listen"])
            .arg(&socket)
            .arg(format!("--http-listen=unix://{}", http.display()))
            .spawn();
        Proxy(child.unwrap())
    };
    let _taken = UnixListener::bind(&http).unwrap();
    for is_taken in [true, false] {
        let proxy = start();
        let began = Instant::now();
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60));
            std::thread::yield_now();
        }
        let refused = version(&mut connect(&socket).await).await;
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        if is_taken {
            assert!(proxy.stop());
            std::fs::remove_file(&http).unwrap();
            continue;
        }
        let text = get(&http, "/metrics");
        assert!(text.contains("\nkwitness_cri_proxy_runtime_up 0\n"), "{text}");
        assert!(
            text.contains("\nkwitness_cri_proxy_calls_failed_total{reason=\"unavailable\"} 1\n"),
            "{text}"
        );
        assert!(get(&http, "/readyz").ends_with("ok: serving\n"));
        assert!(proxy.stop());
        assert!(!http.exists(), "the proxy left its HTTP socket behind");
    }
}

fn get(socket: &Path, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::os::unix::net::UnixStream::connect(socket).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: node\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}
