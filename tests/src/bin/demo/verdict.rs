//! What was told, compared with what was done; and how long the telling took.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use kwitness::proto::v1::{Basis, StatusResponse};
use kwitness_tests::agent::boottime;
use kwitness_tests::cri::{Cri, v1};
use kwitness_tests::events::{Seen, kind};
use tokio::task::JoinHandle;

use crate::script::Deed;
use crate::stage;

/// When the runtime's own events came, by container and type.
#[derive(Debug)]
pub(crate) struct RuntimeEvents {
    arrived: Arc<Mutex<HashMap<(String, v1::ContainerEventType), u64>>>,
    task: JoinHandle<()>,
}

impl RuntimeEvents {
    /// Subscribes to the runtime's events, to compare with.
    pub(crate) async fn collect(cri: &Cri) -> Result<Self> {
        let mut stream = cri.get_container_events().await?;
        let arrived = Arc::new(Mutex::new(HashMap::new()));
        let sink = Arc::clone(&arrived);
        let task = tokio::spawn(async move {
            while let Ok(Some(event)) = stream.message().await {
                let at = boottime();
                let key = (event.container_id.clone(), event.container_event_type());
                sink.lock().unwrap_or_else(PoisonError::into_inner).insert(key, at);
            }
        });
        Ok(Self { arrived, task })
    }
}

impl Drop for RuntimeEvents {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The outcome.
#[derive(Debug)]
pub(crate) struct Verdict {
    done: usize,
    told: usize,
    events: usize,
    lost: u64,
    wrong: Vec<String>,
    latency: Vec<u64>,
    runtime: Vec<(&'static str, Vec<u64>)>,
}

impl Verdict {
    /// Compares.
    pub(crate) fn reach(
        deeds: &[Deed],
        seen: &Seen,
        runtime: &RuntimeEvents,
        status: &StatusResponse,
    ) -> Result<Self> {
        let mut wrong = Vec::new();
        let mut check = |result: Result<()>| {
            if let Err(error) = result {
                wrong.push(format!("{error:#}"));
            }
        };
        check(seen.check_unbroken());
        check(seen.check_complete());
        for deed in deeds {
            check(seen.check_life(&deed.life()).and_then(|()| seen.check_known(&deed.life())));
        }
        let told = seen.count("created");
        if told != deeds.len() {
            wrong.push(format!("{} containers were made, {told} were told of", deeds.len()));
        }
        // What rests on a kernel record, and so has the kernel's time.
        let from_kernel = seen.0.iter().filter(|received| {
            !matches!(received.event.basis(), Basis::Unspecified | Basis::Runtime | Basis::Daemon)
        });
        let latency =
            from_kernel.map(|received| received.at.saturating_sub(received.event.kernel_time)).collect();
        let arrived = runtime.arrived.lock().unwrap_or_else(PoisonError::into_inner);
        let compare = |own: &'static str, theirs: v1::ContainerEventType| {
            let of_kind = seen.events().filter(|event| kind(event) == own);
            let delays = of_kind.filter_map(|event| {
                let key = (event.container.as_ref()?.id.clone(), theirs);
                Some(arrived.get(&key)?.saturating_sub(event.kernel_time))
            });
            (own, delays.collect())
        };
        let runtime = vec![
            compare("started", v1::ContainerEventType::ContainerStartedEvent),
            compare("stopped", v1::ContainerEventType::ContainerStoppedEvent),
        ];
        let lost = status.lost.values().sum();
        Ok(Self { done: deeds.len(), told, events: seen.0.len(), lost, wrong, latency, runtime })
    }

    /// Nothing was missed, doubled or told wrongly.
    pub(crate) fn is_good(&self) -> bool {
        self.wrong.is_empty() && self.lost == 0
    }

    /// Says it.
    pub(crate) fn print(&self) {
        stage::say(if self.is_good() {
            "Everything was seen."
        } else {
            "Something was missed or told wrongly."
        });
        stage::item("containers", &format!("{} made, {} told of", self.done, self.told));
        stage::item("events", &format!("{}, lost {}", self.events, self.lost));
        stage::item("latency", &format!("kernel hook to API client {}", spread(&self.latency)));
        for (kind, delays) in &self.runtime {
            stage::item("", &format!("the runtime's own `{kind}` {}", spread(delays)));
        }
        stage::faint("Latency counts from the kernel's own time of what happened.");
        for wrong in &self.wrong {
            stage::item("WRONG", wrong);
        }
    }
}

/// The median and the 99th percentile, in milliseconds.
fn spread(values: &[u64]) -> String {
    let mut sorted = values.to_vec();
    sorted.sort_unstable();
    let at = |share: usize| sorted.get((sorted.len() * share / 100).min(sorted.len().saturating_sub(1)));
    match at(50).zip(at(99)) {
        Some((median, tail)) => {
            format!(
                "p50 {:.2} ms, p99 {:.2} ms ({} events)",
                *median as f64 / 1e6,
                *tail as f64 / 1e6,
                sorted.len()
            )
        }
        None => "not told".to_owned(),
    }
}
