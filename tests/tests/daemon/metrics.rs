//! Metrics and probes over HTTP: what a scrape says is what a watcher saw.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use kwitness_api::EventKind;
use kwitness_tests::prelude::*;
use kwitness_tests::scrape::{get, scrape};

pub(crate) async fn metrics_and_probes(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let socket = directory.path().join("http.sock");
    let listen = format!("http.listen=unix://{}", socket.display());
    let pods = Kubepods::make(&ctx.environment)?;
    let mut agent = Agent::start(&ctx.environment, &[&listen, "runtime.endpoint=none"]).await?;

    for probe in ["/startupz", "/readyz", "/livez"] {
        let (status, body) = get(&socket, "GET", probe)?;
        ensure!(status == "HTTP/1.1 200 OK" && body.starts_with("ok: "), "{probe}: {status} {body}");
    }
    ensure!(get(&socket, "POST", "/metrics")?.0.starts_with("HTTP/1.1 405 "));
    ensure!(get(&socket, "GET", "/")?.0.starts_with("HTTP/1.1 404 "));

    let mut watcher = agent.watch(with_snapshot()).await?;
    let container = pods.container()?;
    container.start("/bin/sh", &["-c", "exit 3"])?.wait()?;
    let id = container.id.clone();
    drop(container);
    watcher.wait_until("the container's end", |seen| seen.has(&id, "deleted")).await?;

    // Nothing happens any more in what this daemon sees: the journal and a scrape are of the same moment.
    let (samples, seen) = (scrape(&socket)?, agent.replay().await?);
    for kind in EventKind::ALL {
        let sample = format!("kwitness_events_total{{type=\"{}\"}}", kind.name());
        let counted = samples.get(&sample).with_context(|| format!("no {sample}"))?;
        ensure!(*counted == seen.count(kind.name()) as f64, "{sample} is {counted}; the journal has\n{seen}");
    }
    ensure!(samples["kwitness_container_stops_total{reason=\"Error\"}"] == 1.0, "{samples:?}");
    ensure!(samples["kwitness_container_start_duration_seconds_count"] == 1.0, "{samples:?}");
    ensure!(samples["kwitness_api_calls{call=\"watch\"}"] == 1.0, "{samples:?}");
    let hooks = samples.keys().filter(|name| name.starts_with("kwitness_hook_info")).count();
    ensure!(hooks == agent.status().await?.capabilities.len(), "{hooks} hooks in {samples:?}");
    ensure!(!samples.keys().any(|name| name.contains(&id[..12])), "an id is a label: {samples:?}");

    // A daemon that does not get to run answers no probe; when it does again, it answers.
    let paused = agent.pause()?;
    let mut waiting = UnixStream::connect(&socket)?;
    waiting.write_all(b"GET /livez HTTP/1.1\r\nHost: node\r\n\r\n")?;
    drop(paused);
    let mut answer = String::new();
    waiting.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");

    agent.restart().await?;
    ensure!(scrape(&socket)?["kwitness_events_total{type=\"exec\"}"] == 0.0, "a new daemon counts anew");
    agent.stop()?;
    ensure!(!socket.exists(), "the daemon left its HTTP socket behind");
    Ok(())
}
