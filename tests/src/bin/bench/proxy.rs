//! What the CRI proxy adds to a unary call, against what a plain copy of the bytes between the same two sockets adds; and what the
//! proxy takes with a hundred clients.

use std::path::{Path, PathBuf};
use std::process::Command;

use kwitness_tests::agent::connect;
use kwitness_tests::prelude::*;
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::footprint::{anonymous, cpu_times, resident};
use crate::report::{Row, Target, quantile};

const ROUNDS: usize = 10;
/// Twice the proxy's look at idle connections (`RUNTIME_IDLE`), and a little.
const AT_REST: Duration = Duration::from_secs(22);
const CALLS: usize = 3000;
const ROUNDS_IN_A_GUEST: usize = 3;
const CALLS_IN_A_GUEST: usize = 300;
const IN_FLIGHT: [usize; 3] = [1, 16, 64];
const CLIENTS: usize = 100;
const LIMIT: Duration = Duration::from_secs(30);

/// The runtime's stand-in: the smallest gRPC service there is, so that the proxy's part is the most of a call.
pub(crate) async fn serve(socket: &Path) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    let (_reporter, service) = tonic_health::server::health_reporter();
    let connections = UnixListenerStream::new(listener);
    Server::builder().add_service(service).serve_with_incoming(connections).await.context("serve")
}

/// The floor: what any process in between costs, whatever it does with the bytes.
pub(crate) async fn forward(socket: &Path, server: PathBuf) -> Result<()> {
    let listener = UnixListener::bind(socket).with_context(|| format!("listen on {}", socket.display()))?;
    loop {
        let (mut client, _) = listener.accept().await.context("accept a connection")?;
        let server = server.clone();
        tokio::spawn(async move {
            let mut server = UnixStream::connect(&server).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await
        });
    }
}

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, calls) = environment.of_tier((ROUNDS, CALLS), (ROUNDS_IN_A_GUEST, CALLS_IN_A_GUEST));
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let socket = directory.path().join("runtime.sock");
    let mut command = Command::new("/proc/self/exe");
    command.arg("answer").arg(&socket);
    let mut server = Managed::spawn("the server", command, &directory.path().join("log"))?;
    let straight = server.wait_for("the server", LIMIT, async || Ok(connect(&socket).await.ok())).await?;
    let proxy = Proxy::before(environment, &socket, &directory.path().join("no-daemon.sock")).await?;
    let proxied = connect(proxy.socket()).await?;
    let forwarded_at = directory.path().join("forwarder.sock");
    let mut command = Command::new("/proc/self/exe");
    command.arg("forward").arg(&forwarded_at).arg(&socket);
    let mut forwarder = Managed::spawn("the forwarder", command, &directory.path().join("forwarder.log"))?;
    let connected = async || Ok(connect(&forwarded_at).await.ok());
    let forwarded = forwarder.wait_for("the forwarder", LIMIT, connected).await?;
    let mut rows = Vec::new();
    for in_flight in IN_FLIGHT {
        let (mut before, mut copied, mut through) = (Vec::new(), Vec::new(), Vec::new());
        let mut busy = Duration::ZERO;
        for _ in 0..rounds {
            before.push(round(&straight, in_flight, calls).await.context("straight")?);
            copied.push(round(&forwarded, in_flight, calls).await.context("through the forwarder")?);
            let ran = cpu_times(proxy.pid())?;
            through.push(round(&proxied, in_flight, calls).await.context("through the proxy")?);
            busy += crate::footprint::ran(&ran, &cpu_times(proxy.pid())?);
        }
        for (share, name) in [(0.5, "p50"), (0.99, "p99")] {
            let of = |rounds: &[Vec<f64>]| rounds.iter().map(|one| quantile(one, share)).collect::<Vec<_>>();
            let (before, copied, through) = (of(&before), of(&copied), of(&through));
            let added = |with: &[f64]| {
                with.iter().zip(&before).map(|(with, before)| with - before).collect::<Vec<_>>()
            };
            let median = |values: &[f64]| quantile(values, 0.5);
            rows.push(Row::ratio(
                &format!("proxy: added to a call, {in_flight} in flight, {name}"),
                &added(&through),
                &added(&copied),
                Target::AtMost(1.3),
                format!(
                    "straight {:.0} us, forwarder {:.0} us, proxy {:.0} us ({:.2} x the forwarder in all); {:.0} us of a core for a call; {rounds} rounds of {calls} calls",
                    median(&before),
                    median(&copied),
                    median(&through),
                    median(&through) / median(&copied),
                    busy.as_secs_f64() * 1e6 / (rounds * calls) as f64
                ),
            ));
        }
    }
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        let channel = connect(proxy.socket()).await?;
        round(&channel, 1, 1).await?;
        clients.push(channel);
    }
    // Idle connections are closed by then.
    tokio::time::sleep(AT_REST).await;
    rows.push(Row::of(
        &format!("proxy: anonymous memory with {CLIENTS} connections"),
        &[anonymous(proxy.pid())? / 1e6],
        "MB",
        Target::AtMost(6.0),
        format!(
            "each has made a call, and rests; resident with the text: {:.1} MB",
            resident(proxy.pid())? / 1e6
        ),
    ));
    drop((clients, straight, forwarded, proxied));
    proxy.stop()?;
    forwarder.terminate(LIMIT)?;
    server.terminate(LIMIT)?;
    Ok(rows)
}

/// The times of that many calls, so many of them at a time, in microseconds.
async fn round(channel: &Channel, in_flight: usize, calls: usize) -> Result<Vec<f64>> {
    let mut callers = JoinSet::new();
    for _ in 0..in_flight {
        let mut client = HealthClient::new(channel.clone());
        callers.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..calls.div_ceil(in_flight) {
                let began = Instant::now();
                client.check(HealthCheckRequest::default()).await.context("the call")?;
                times.push(began.elapsed().as_secs_f64() * 1e6);
            }
            anyhow::Ok(times)
        });
    }
    let mut all = Vec::new();
    while let Some(times) = callers.join_next().await {
        all.extend(times.context("a caller panicked")??);
    }
    Ok(all)
}
