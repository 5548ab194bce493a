//! What was reported, compared with what was done; and how long the report took.

use kwitness_api::proto::{Basis, StatusResponse};
use kwitness_cri::events::ContainerEventType;
use kwitness_tests::cri_events::Subscriber;
use kwitness_tests::prelude::*;

use crate::script::Deed;
use crate::stage;

#[derive(Debug)]
pub(crate) struct Findings {
    done: usize,
    reported: usize,
    events: usize,
    lost: u64,
    wrong: Vec<String>,
    latency: Vec<u64>,
    runtime: Vec<u64>,
}

impl Findings {
    pub(crate) fn reach(
        deeds: &[Deed],
        seen: &Seen,
        runtime: &Subscriber,
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
        let reported = seen.count("created");
        if reported != deeds.len() {
            wrong.push(format!("{} containers were made, {reported} were reported", deeds.len()));
        }
        // What rests on a kernel record, and so has the kernel's time.
        let from_kernel = seen.0.iter().filter(|received| {
            !matches!(received.event.basis(), Basis::Unspecified | Basis::Runtime | Basis::Daemon)
        });
        let latency =
            from_kernel.map(|received| received.at.saturating_sub(received.event.kernel_time)).collect();
        let runtimes = runtime.reported();
        // Only the ends compare: a runtime reports a start before the container's program is executed.
        let stopped = seen.events().filter(|event| kind(event) == "stopped");
        let runtime = stopped.filter_map(|event| {
            let id = &event.container.as_ref()?.id;
            let received = runtimes.find(id, ContainerEventType::ContainerStoppedEvent)?;
            Some((received.at - event.time?.to_unix_nanos()).max(0).unsigned_abs())
        });
        let runtime = runtime.collect();
        let lost = status.lost.values().sum();
        Ok(Self { done: deeds.len(), reported, events: seen.0.len(), lost, wrong, latency, runtime })
    }

    pub(crate) fn is_good(&self) -> bool {
        self.wrong.is_empty() && self.lost == 0
    }

    pub(crate) fn print(&self) {
        stage::say(if self.is_good() {
            "Everything was seen."
        } else {
            "Something was missed or misreported."
        });
        stage::item("containers", &format!("{} created, {} reported", self.done, self.reported));
        stage::item("events", &format!("{}, lost {}", self.events, self.lost));
        stage::item(
            "latency",
            &format!("{}, from the kernel's hook to an API client", spread(&self.latency)),
        );
        let runtime = spread(&self.runtime);
        stage::item("", &format!("{runtime}, until the runtime's own event says that a container stopped"));
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
            format!("p50 {:6.2} ms, p99 {:6.2} ms", *median as f64 / 1e6, *tail as f64 / 1e6)
        }
        None => "not reported".to_owned(),
    }
}
