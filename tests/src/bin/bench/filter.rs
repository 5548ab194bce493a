//! What a watcher's filter costs: CPU of the daemon for an event and the time to that watcher, with a filter that lets the events
//! through, with one that lets none through, and without any, in turns.
//!
//! The container has names, as on a node: a namespace is the runtime's word.

use kwitness_api::proto::{EventKind, Filter, WatchRequest};
use kwitness_tests::naming_runtime::NamingRuntime;
use kwitness_tests::prelude::*;

use crate::curve::{Bound, Budget, Curve};
use crate::rate::{SATURATION, Sample, label, sample};
use crate::report::quantile;

const RATES: [u32; 3] = [100, 1000, SATURATION];
const NAMESPACE: &str = "bench";
const LIMIT: Duration = Duration::from_secs(240);
const EACH: Duration = Duration::from_secs(14);
const NAMED: Duration = Duration::from_secs(30);

/// By what a watcher filters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    Nothing,
    Container,
    Kind,
    Namespace,
    /// A container that does nothing: no event passes.
    AnotherContainer,
}

impl By {
    const ALL: [Self; 5] =
        [Self::Nothing, Self::Container, Self::Kind, Self::Namespace, Self::AnotherContainer];

    const fn name(self) -> &'static str {
        match self {
            Self::Nothing => "no filter",
            Self::Container => "by container",
            Self::Kind => "by kind",
            Self::Namespace => "by namespace",
            Self::AnotherContainer => "by another container",
        }
    }

    fn request(self, container: &HandMade, other: &HandMade) -> WatchRequest {
        let filter = match self {
            Self::Nothing => Filter::default(),
            Self::Container => Filter { containers: vec![container.id.clone()], ..Filter::default() },
            Self::Kind => Filter { kinds: vec![EventKind::Exited.into()], ..Filter::default() },
            Self::Namespace => Filter { namespaces: vec![NAMESPACE.to_owned()], ..Filter::default() },
            Self::AnotherContainer => Filter { containers: vec![other.id.clone()], ..Filter::default() },
        };
        WatchRequest { filter: Some(filter), ..from_now() }
    }
}

pub(crate) async fn measure(environment: &Environment) -> Result<Vec<Curve>> {
    let budget = Budget::of(LIMIT);
    let curve = |what: &str, by: By, unit, bound| {
        Curve::new(&format!("filter: {what}, {}", by.name()), "events a second", unit, bound)
    };
    let mut curves = By::ALL.map(|by| {
        let cpu = curve("CPU for an event", by, "us", Bound::Flat);
        let median = curve("hook to client p50", by, "us", Bound::None);
        (by, cpu, median, curve("hook to client p99", by, "us", Bound::None))
    });
    for rate in RATES {
        let label = label(rate);
        for (by, cpu, median, tail) in &mut curves {
            let sample = async {
                budget.check(EACH)?;
                at(environment, rate, *by).await
            };
            match sample.await {
                Ok(sample) => {
                    let note = sample.note(&label);
                    cpu.add(sample.rate, &[sample.cpu], &note);
                    if !sample.delays.is_empty() {
                        median.add(sample.rate, &[quantile(&sample.delays, 0.5)], &note);
                        tail.add(sample.rate, &[quantile(&sample.delays, 0.99)], &note);
                    }
                }
                Err(error) => {
                    [cpu, median, tail].into_iter().for_each(|curve| curve.leave_out(&label, &error))
                }
            }
        }
    }
    let all = curves.into_iter().flat_map(|(by, cpu, median, tail)| {
        let latency = (by != By::AnotherContainer).then_some([median, tail]);
        [cpu].into_iter().chain(latency.into_iter().flatten())
    });
    Ok(all.collect())
}

async fn at(environment: &Environment, rate: u32, by: By) -> Result<Sample> {
    let kubepods = Kubepods::make(environment)?;
    let (container, other) = (kubepods.container()?, kubepods.container()?);
    let runtime = NamingRuntime::serve(&[(&container, "busy"), (&other, "quiet")], NAMESPACE)?;
    let endpoint = format!("runtime.endpoint={}", runtime.socket().display());
    let agent = Agent::start(environment, &["log.level=warn", &endpoint]).await?;
    let named = async || {
        let containers = agent.list().await?.containers;
        let pods = containers.iter().filter_map(|state| state.container.as_ref()?.pod.as_ref());
        Ok((pods.filter(|pod| pod.namespace() == NAMESPACE).count() == 2).then_some(()))
    };
    wait_for("the containers' names", NAMED, named).await?;
    let sample = sample(&agent, &container, rate, by.request(&container, &other)).await?;
    let passes = by != By::AnotherContainer;
    ensure!(passes != sample.delays.is_empty(), "{}: {} events came", by.name(), sample.delays.len());
    agent.stop()?;
    Ok(sample)
}
