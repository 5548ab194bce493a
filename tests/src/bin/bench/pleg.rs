//! What a kubelet saves that learns of changes by events: CPU of kubelet, container runtime and kwitness with pods at rest, calls to
//! the runtime, and the time from a container's end until the kubelet acts.

use std::cell::Cell;
use std::path::Path;
use std::time::SystemTime;

use kwitness_tests::cri::v1;
use kwitness_tests::kubelet::{Setup, container, pod};
use kwitness_tests::node::containerd_version;
use kwitness_tests::prelude::*;
use serde_json::{Value, json};

use crate::footprint::{cpu_times, ran};
use crate::report::{Row, Target, quantile};

const PODS: [usize; 3] = [10, 50, 110];
const CONTAINERS: usize = 2;
const ROUNDS: usize = 3;
/// From the last pod's start to the measurement: the kubelet reports, collects garbage and looks at what it has started.
const SETTLE: Duration = Duration::from_secs(20);
const REST: Duration = Duration::from_secs(60);
const LIMIT: Duration = Duration::from_secs(600);
/// Containers that are killed, each of another pod: the second end of the same one waits for a back-off.
const ENDS: usize = 10;
/// As a kubelet in production logs.
const VERBOSITY: u8 = 2;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Source {
    Generic,
    Runtime,
    Kwitness,
}

const SOURCES: [Source; 3] = [Source::Generic, Source::Runtime, Source::Kwitness];

impl Source {
    const fn name(self) -> &'static str {
        match self {
            Self::Generic => "generic",
            Self::Runtime => "evented, containerd",
            Self::Kwitness => "evented, kwitness",
        }
    }

    const fn pleg(self) -> Pleg {
        match self {
            Self::Generic => Pleg::Generic,
            Self::Runtime | Self::Kwitness => Pleg::Evented,
        }
    }
}

/// What was measured with one source and one number of pods. CPU in seconds a minute, the rest a minute or in milliseconds.
#[derive(Default)]
struct Figures {
    kubelet: Vec<f64>,
    containerd: Vec<f64>,
    daemon: Vec<f64>,
    proxy: Vec<f64>,
    calls: Vec<f64>,
    daemon_calls: Vec<f64>,
    relists: Vec<f64>,
    acts: Vec<f64>,
}

pub(crate) async fn measure(environment: &Environment, sizes: &[usize]) -> Result<Vec<Row>> {
    let sizes = if sizes.is_empty() { &PODS } else { sizes };
    let versions =
        format!("kubelet {}, containerd {}", Kubelet::version(environment)?, containerd_version()?);
    let mut rows = Vec::new();
    for &pods in sizes {
        let mut all = SOURCES.map(|source| (source, Ok(Figures::default())));
        for round in 0..ROUNDS {
            // Each source begins a round once: what the machine does meanwhile meets all alike.
            let mut order = [0, 1, 2];
            order.rotate_left(round % SOURCES.len());
            for place in order {
                let (source, figures) = &mut all[place];
                let Ok(known) = figures else { continue };
                let measured = one(environment, *source, pods, known).await;
                if let Err(error) = measured {
                    *figures = Err(error);
                }
            }
        }
        for (source, figures) in all {
            let name = format!("pleg: {pods} pods, {}", source.name());
            match figures {
                Ok(figures) => rows.extend(figures.rows(&name, source, &versions)),
                Err(error) => rows.push(Row::missing(&name, &format!("{error:#}"))),
            }
        }
    }
    Ok(rows)
}

impl Figures {
    fn rows(&self, name: &str, source: Source, versions: &str) -> Vec<Row> {
        let row = |what: &str, rounds: &[f64], unit, note: String| {
            Row::of(&format!("{name}: {what}"), rounds, unit, Target::None, note)
        };
        let at_rest = || {
            let rest = REST.as_secs();
            format!("CPU at rest; {ROUNDS} rounds of {rest} s, {CONTAINERS} containers a pod; {versions}")
        };
        let calls = format!("the kubelet's, by its own count; {} relists", quantile(&self.relists, 0.5));
        let acts = "a container's main process is killed; until the runtime has made the next one".to_owned();
        let mut rows = vec![
            row("kubelet", &self.kubelet, "s/min", at_rest()),
            row("containerd", &self.containerd, "s/min", at_rest()),
            row("calls", &self.calls, "/min", calls),
            row("end to next", &self.acts, "ms", acts),
        ];
        if source == Source::Kwitness {
            rows.push(row("daemon", &self.daemon, "s/min", at_rest()));
            rows.push(row("proxy", &self.proxy, "s/min", at_rest()));
            let note = "the daemon's, for CRI events".to_owned();
            rows.push(row("daemon's calls", &self.daemon_calls, "/min", note));
        }
        rows
    }
}

/// A node of its own with that many pods: measured at rest, and then while containers end.
async fn one(environment: &Environment, source: Source, pods: usize, figures: &mut Figures) -> Result<()> {
    let combination = environment.first_combination()?;
    let mut node = Node::start(environment, combination.driver).await?;
    let mut kwitness = None;
    if source == Source::Kwitness {
        let agent = Agent::start(environment, &["log.level=warn"]).await?;
        let proxy = Proxy::start(environment, agent.socket()).await?;
        kwitness = Some((agent, proxy));
    }
    let runtime = kwitness.as_ref().map_or(Path::new(CONTAINERD_SOCKET), |(_, proxy)| proxy.socket());
    let mut setup = Setup { driver: combination.driver, verbosity: VERBOSITY, ..source.pleg().into() };
    setup.settings.insert("maxPods".to_owned(), json!(pods + 10));
    let kubelet = Kubelet::start_as(environment, runtime, setup, None).await?;
    let measured = with_pods(&node, &kubelet, kwitness.as_ref(), source, pods, figures).await;
    let measured = measured.with_context(|| kubelet.log_tail());
    kubelet.retire(&mut node).await?;
    if let Some((agent, proxy)) = kwitness {
        proxy.stop()?;
        agent.stop()?;
    }
    node.shutdown().await?;
    measured
}

async fn with_pods(
    node: &Node,
    kubelet: &Kubelet,
    kwitness: Option<&(Agent, Proxy)>,
    source: Source,
    pods: usize,
    figures: &mut Figures,
) -> Result<()> {
    for number in 0..pods {
        kubelet.place(&name(number), &manifest(number))?;
    }
    let all = pods * CONTAINERS;
    let run = Cell::new(0);
    let started = wait_for("all containers", LIMIT, async || {
        run.set(running(node).await?.len());
        Ok((run.get() == all).then_some(()))
    });
    // More than there should be: the kubelet has started one again that ran.
    started.await.with_context(|| format!("{} containers run, not {all}", run.get()))?;
    if source.pleg() == Pleg::Evented {
        let connected = kubelet.metric("kubelet_evented_pleg_connection_success_count").await?;
        ensure!(connected.is_some_and(|times| times >= 1.0), "the kubelet gets no events");
    }
    tokio::time::sleep(SETTLE).await;

    let mut pids = vec![kubelet.pid(), node.containerd_pid()?];
    pids.extend(kwitness.iter().flat_map(|(agent, proxy)| [agent.pid(), proxy.pid()]));
    let calls = async || kubelet.metric_sum("kubelet_runtime_operations_total").await;
    let daemon_calls = async || match kwitness {
        Some((agent, _)) => {
            let counters = agent.status().await?.counters;
            anyhow::Ok(counters.get("cri_events_calls").copied().unwrap_or_default())
        }
        None => Ok(0),
    };
    let (called, asked, relisted) = (calls().await?, daemon_calls().await?, kubelet.relists().await?);
    let before = pids.iter().map(|pid| cpu_times(*pid)).collect::<Result<Vec<_>>>()?;
    let began = Instant::now();
    tokio::time::sleep(REST).await;
    let minutes = began.elapsed().as_secs_f64() / 60.0;
    let mut busy = Vec::new();
    for (pid, before) in pids.iter().zip(&before) {
        busy.push(ran(before, &cpu_times(*pid)?).as_secs_f64() / minutes);
    }
    figures.kubelet.push(busy[0]);
    figures.containerd.push(busy[1]);
    figures.daemon.extend(busy.get(2));
    figures.proxy.extend(busy.get(3));
    figures.calls.push((calls().await? - called) / minutes);
    figures.daemon_calls.push((daemon_calls().await? - asked) as f64 / minutes);
    figures.relists.push((kubelet.relists().await? - relisted) / minutes);

    for number in 0..pods.min(ENDS) {
        figures.acts.push(end(node, number).await?);
    }
    Ok(())
}

/// Kills the first container of a pod; the milliseconds until the runtime has made the next one.
async fn end(node: &Node, number: usize) -> Result<f64> {
    let of_pod = async || {
        let containers = running(node).await?.into_iter();
        let is = |container: &v1::Container| {
            let label = |name: &str| container.labels.get(name).map_or("", String::as_str);
            label("io.kubernetes.container.name") == "c0"
                // The kubelet adds its node's name to that of a static pod.
                && label("io.kubernetes.pod.name").starts_with(&name(number))
        };
        anyhow::Ok(containers.filter(is).map(|container| container.id).next())
    };
    let old = of_pod().await?.context("the container that is to end")?;
    let pid = node.pid(&old).await?;
    let killed = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).context("a clock before 1970")?;
    process::kill_pid(pid)?;
    let next = wait_for("the next container", LIMIT, async || Ok(of_pod().await?.filter(|id| *id != old)));
    // By the runtime's own time: however seldom it is asked here.
    let created = node.status(&next.await?).await?.created_at;
    Ok((created as f64 - killed.as_nanos() as f64) / 1e6)
}

async fn running(node: &Node) -> Result<Vec<v1::Container>> {
    let all = node.cri().list_containers(v1::ListContainersRequest::default()).await?.containers;
    let runs = |container: &v1::Container| container.state() == v1::ContainerState::ContainerRunning;
    Ok(all.into_iter().filter(runs).collect())
}

/// No name is the beginning of another.
fn name(number: usize) -> String {
    format!("pod{number:03}")
}

fn manifest(number: usize) -> Value {
    let sleeper = |number: usize| container(&format!("c{number}"), &["/bin/sleep", "100000"]);
    pod(&name(number), &(0..CONTAINERS).map(sleeper).collect::<Vec<_>>())
}
