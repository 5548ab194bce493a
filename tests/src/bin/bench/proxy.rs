//! A unary call through the CRI proxy against the same call straight, and what the proxy takes with a hundred clients.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kwitness_tests::agent::connect;
use kwitness_tests::environment::{Environment, Tier};
use kwitness_tests::process::{Managed, wait_for};
use kwitness_tests::proxy::Proxy;
use tokio::net::UnixListener;
use tokio::task::JoinSet;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::{Channel, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::footprint::{cpu_times, resident};
use crate::report::{Row, Target, quantile};

const ROUNDS: usize = 10;
/// Twice `RUNTIME_IDLE`, after which the proxy closes idle connections, and a little.
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

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Row>> {
    let (rounds, calls) = match environment.tier {
        Tier::Host => (ROUNDS, CALLS),
        Tier::Vm => (ROUNDS_IN_A_GUEST, CALLS_IN_A_GUEST),
    };
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let socket = directory.path().join("runtime.sock");
    let mut command = Command::new("/proc/self/exe");
    command.arg("answer").arg(&socket).stdin(Stdio::null());
    let mut server = Managed::spawn("the server", command, &directory.path().join("log"))?;
    let straight = wait_for("the server", LIMIT, async || {
        server.check_running()?;
        Ok(connect(&socket).await.ok())
    });
    let straight = straight.await?;
    let proxy = Proxy::before(environment, &socket, &directory.path().join("no-daemon.sock")).await?;
    let proxied = connect(proxy.socket()).await?;
    let mut rows = Vec::new();
    for in_flight in IN_FLIGHT {
        let (mut before, mut through) = (Vec::new(), Vec::new());
        let mut busy = Duration::ZERO;
        for _ in 0..rounds {
            before.push(round(&straight, in_flight, calls).await.context("straight")?);
            let ran = cpu_times(proxy.pid())?;
            through.push(round(&proxied, in_flight, calls).await.context("through the proxy")?);
            busy += crate::footprint::ran(&ran, &cpu_times(proxy.pid())?);
        }
        for (share, name, target) in [(0.5, "p50", 100.0), (0.99, "p99", 300.0)] {
            let of = |rounds: &[Vec<f64>]| rounds.iter().map(|one| quantile(one, share)).collect::<Vec<_>>();
            let (before, through) = (of(&before), of(&through));
            let added: Vec<_> =
                through.iter().zip(&before).map(|(through, before)| through - before).collect();
            rows.push(Row::of(
                &format!("proxy: added to a call, {in_flight} in flight, {name}"),
                &added,
                "us",
                Target::AtMost(target),
                format!(
                    "straight {:.0} us, through the proxy {:.0} us, {:.1} x; {:.0} us of a core for a call; {rounds} rounds of {calls} calls",
                    quantile(&before, 0.5),
                    quantile(&through, 0.5),
                    quantile(&through, 0.5) / quantile(&before, 0.5),
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
        &format!("proxy: resident with {CLIENTS} connections"),
        &[resident(proxy.pid())? / 1e6],
        "MB",
        Target::AtMost(10.0),
        "each has made a call, and rests; the program's own text included".to_owned(),
    ));
    drop((clients, straight, proxied));
    proxy.stop()?;
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
