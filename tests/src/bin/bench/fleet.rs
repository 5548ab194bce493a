//! What a fleet costs: exporters of many nodes, fed from one recording, and one real OpenTelemetry Collector.
//!
//! A real daemon observes a storm of containers once. Then each simulated node exports what it recorded, again and again, under a name, a
//! connection and a state file of its own: records, queue, sender and answers are the exporter's. All nodes share one process and one
//! runtime, so that their CPU time is the sender's and no one else's. The collector decodes and drops. Bytes are those of the loopback
//! device, TCP, its acknowledgements and HTTP/2 included.

use std::sync::Arc;

use kwitness_api::proto::Event;
use kwitness_export::{CollectorOptions, SimulatedNode, Tally};
use kwitness_tests::otel::Collector;
use kwitness_tests::outage::Storm;
use kwitness_tests::prelude::*;
use kwitness_tests::process::raise_descriptors;
use serde::Serialize;
use tokio::task::JoinSet;

use crate::report::{FAINT, HEAD, Row, Table, Target, number};

/// Containers in the recording; each has at least four events.
const LIVES: usize = 150;
const ROUNDS: usize = 3;
/// How often a node exports the recording in a round.
const REPEATS: usize = 3;
/// Events of one message. A node has few at a time, and waits for the answer before it sends more.
const BATCH: usize = 64;
/// Fleets on paper.
const FLEETS: [f64; 3] = [1_000.0, 5_000.0, 50_000.0];
/// Only a hang takes as long.
const LIMIT: Duration = Duration::from_secs(900);

/// What a run was to measure and what it found, so that another one can be compared.
#[derive(Debug, Serialize)]
struct Parameters {
    nodes: usize,
    recorded_events: usize,
    repeats: usize,
    rounds: usize,
    events_per_message: usize,
    cpus: usize,
    /// For the fleets on paper.
    events_per_node_second: f64,
}

#[derive(Debug, Serialize)]
struct Paper {
    nodes: f64,
    events_per_second: f64,
    megabits_per_second: f64,
    /// Of all nodes together.
    sender_cpus: f64,
    collector_cpus: f64,
}

#[derive(Clone, Copy, Debug)]
struct Round {
    events: f64,
    seconds: f64,
    bytes: f64,
    sender: f64,
    collector: f64,
}

/// Measures so many nodes, and prints what fleets of that rate would need.
pub(crate) async fn measure(environment: &Environment, nodes: usize, rate: f64, table: Table) -> Result<()> {
    ensure!(nodes > 0, "a fleet has nodes");
    // Each node has a connection, and so has the collector for each.
    let (wanted, most) = (nodes as u64 + 256, raise_descriptors()?);
    ensure!(most >= wanted, "{nodes} nodes need {wanted} file descriptors; the hard limit is {most}");
    let events = Arc::new(record(environment).await?);
    let parameters = Parameters {
        nodes,
        recorded_events: events.len(),
        repeats: REPEATS,
        rounds: ROUNDS,
        events_per_message: BATCH,
        cpus: std::thread::available_parallelism()?.get(),
        events_per_node_second: rate,
    };
    let mut collector = Collector::start_dropping(environment).await?;
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let options = CollectorOptions { endpoint: Collector::endpoint(), ca: None, headers: Vec::new() };
    let fleet = (0..nodes).map(|number| {
        let state = directory.path().join(format!("{number}.json"));
        SimulatedNode::new(format!("node-{number}"), &options, &state, sentence)
    });
    let mut fleet = fleet.collect::<Result<Vec<_>>>()?;
    // Connections are made before anything is measured.
    fleet = export(fleet, &Arc::new(events[..1].to_vec()), 1).await?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let (measured, back) = round(fleet, &events, &collector).await?;
        fleet = back;
        rounds.push(measured);
    }
    let memory = process::status(collector.pid()?)?.vmrss.context("no VmRSS")? as f64 / 1024.0;
    collector.stop()?;

    let total = fleet.iter().map(SimulatedNode::tally).fold(Tally::default(), |sum, one| Tally {
        accepted: sum.accepted + one.accepted,
        lost: sum.lost + one.lost,
        messages: sum.messages + one.messages,
        failed: sum.failed + one.failed,
    });
    ensure!(total.lost == 0, "the collector refused {} records", total.lost);
    let rows = rows(&parameters, &rounds, memory, total);
    let paper = FLEETS.map(|fleet| on_paper(fleet, rate, &rounds));
    table.columns();
    rows.iter().for_each(|row| table.row(row));
    show(table, rate, &paper);
    table.foot(&rows)?;
    if table.json {
        let all = serde_json::json!({ "fleet": { "parameters": parameters, "rows": rows, "paper": paper } });
        println!("{all}");
    }
    Ok(())
}

fn rows(parameters: &Parameters, rounds: &[Round], memory: f64, total: Tally) -> Vec<Row> {
    let of = |value: fn(&Round) -> f64| rounds.iter().map(value).collect::<Vec<_>>();
    let row =
        |name: &str, values: &[f64], unit, note: String| Row::of(name, values, unit, Target::None, note);
    let Parameters { nodes, recorded_events, repeats, events_per_message, cpus, .. } = parameters;
    let setting = format!(
        "{nodes} nodes, each {repeats} times {recorded_events} events, {events_per_message} a message; {cpus} CPUs for both sides"
    );
    vec![
        row(
            "fleet: events a second, as fast as it goes",
            &of(|round| round.events / round.seconds),
            "",
            setting,
        ),
        row(
            "fleet: wire of an event",
            &of(|round| round.bytes / round.events),
            "B",
            "both directions, without compression".to_owned(),
        ),
        row(
            "fleet: CPU of the senders for 1000 events",
            &of(|round| round.sender / round.events * 1e6),
            "ms",
            "without reading from a daemon; the body is shorter than a real one's".to_owned(),
        ),
        row(
            "fleet: CPU of the collector for 1000 events",
            &of(|round| round.collector / round.events * 1e6),
            "ms",
            "decodes and drops: what it does with records comes on top".to_owned(),
        ),
        row(
            "fleet: memory of the collector",
            &[memory],
            "MiB",
            format!(
                "resident after the last round; {} messages, {} attempts repeated",
                total.messages, total.failed
            ),
        ),
    ]
}

fn on_paper(nodes: f64, rate: f64, rounds: &[Round]) -> Paper {
    let sum = |value: fn(&Round) -> f64| rounds.iter().map(value).sum::<f64>();
    let events = sum(|round| round.events);
    let per_second = nodes * rate;
    Paper {
        nodes,
        events_per_second: per_second,
        megabits_per_second: per_second * sum(|round| round.bytes) / events * 8.0 / 1e6,
        sender_cpus: per_second * sum(|round| round.sender) / events,
        collector_cpus: per_second * sum(|round| round.collector) / events,
    }
}

fn show(table: Table, rate: f64, paper: &[Paper]) {
    table.line(&format!("{FAINT}On paper, at {} events a node and second:{FAINT:#}", number(rate)));
    table.line(&format!(
        "{HEAD}{:>8} {:>12} {:>12} {:>16} {:>16}{HEAD:#}",
        "NODES", "EVENTS/S", "MBIT/S", "SENDERS' CPUS", "COLLECTOR CPUS"
    ));
    for Paper { nodes, events_per_second, megabits_per_second, sender_cpus, collector_cpus } in paper {
        table.line(&format!(
            "{nodes:>8} {events_per_second:>12.0} {:>12} {:>16} {:>16}",
            number(*megabits_per_second),
            number(*sender_cpus),
            number(*collector_cpus)
        ));
    }
}

/// What a daemon observes of a storm.
async fn record(environment: &Environment) -> Result<Vec<Event>> {
    let kubepods = Kubepods::make(environment)?;
    let agent = Agent::start(environment, &[]).await?;
    let storm = Storm::begin(kubepods);
    storm.more(LIVES).await?;
    let _ended = storm.end()?;
    let seen = agent.replay().await?;
    let events: Vec<_> = seen.0.into_iter().map(|received| received.event).collect();
    ensure!(events.len() >= LIVES, "{} events of {LIVES} containers", events.len());
    Ok(events)
}

/// The exporter's is that of `kwitness events`, which this program does not have.
fn sentence(event: &Event) -> String {
    format!("{} in {}", event.r#type, event.container.as_ref().map_or("", |container| &container.cgroup_path))
}

async fn round(
    fleet: Vec<SimulatedNode>,
    events: &Arc<Vec<Event>>,
    collector: &Collector,
) -> Result<(Round, Vec<SimulatedNode>)> {
    let usage = || Ok::<_, anyhow::Error>((loopback()?, cpu(std::process::id())?, cpu(collector.pid()?)?));
    let taken = |fleet: &[SimulatedNode]| fleet.iter().map(|node| node.tally().accepted).sum::<u64>();
    let before = taken(&fleet);
    let (bytes, sender, receiver) = usage()?;
    let began = Instant::now();
    let fleet = export(fleet, events, REPEATS).await?;
    let seconds = began.elapsed().as_secs_f64();
    let after = usage()?;
    let round = Round {
        events: (taken(&fleet) - before) as f64,
        seconds,
        bytes: (after.0 - bytes) as f64,
        sender: after.1 - sender,
        collector: after.2 - receiver,
    };
    ensure!(round.events > 0.0, "no event arrived");
    Ok((round, fleet))
}

async fn export(
    fleet: Vec<SimulatedNode>,
    events: &Arc<Vec<Event>>,
    repeats: usize,
) -> Result<Vec<SimulatedNode>> {
    let mut tasks = JoinSet::new();
    for mut node in fleet {
        let events = Arc::clone(events);
        tasks.spawn(async move {
            for _ in 0..repeats {
                for batch in events.chunks(BATCH) {
                    node.export(batch.to_vec()).await;
                }
            }
            node
        });
    }
    let all = async {
        let mut fleet = Vec::new();
        while let Some(node) = tasks.join_next().await {
            fleet.push(node.context("a node's task")?);
        }
        anyhow::Ok(fleet)
    };
    tokio::time::timeout(LIMIT, all).await.context("the collector does not take the records")?
}

/// Bytes that the loopback device of this network namespace has sent.
fn loopback() -> Result<u64> {
    let devices = procfs::net::dev_status().context("read /proc/net/dev")?;
    Ok(devices.get("lo").context("no loopback device")?.sent_bytes)
}

/// CPU seconds of a process.
fn cpu(pid: u32) -> Result<f64> {
    let stat = process::procfs_of(pid)?.stat().context("read the CPU time")?;
    Ok((stat.utime + stat.stime) as f64 / procfs::ticks_per_second() as f64)
}
