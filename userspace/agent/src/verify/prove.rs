//! Whether usage keeps to the limits that were judged: looks at the kernel's counters over an interval, and has the core find.
//!
//! Files are read on a blocking thread; of a thousand limits, each look takes some milliseconds. Changes nothing.

use std::sync::Arc;
use std::time::Duration;

use kwitness_core::model::{CgroupId, Judged, Resource};
use kwitness_core::verdicts::proof::{Interval, Proof, UsageCounters};
use procfs::Current as _;
use tokio::time::Instant;

use super::{Verifier, VerifyReport, levels, now};
use crate::cgroupfs::usage_files::{Amount, Counters};
use crate::cgroupfs::{CgroupFs, Directory};
use crate::engine::Stopped;

/// Looks at what is charged, in the interval: often enough to see it fall below a limit.
const LOOKS: u32 = 20;

/// A limit whose usage is watched.
struct Watched {
    path: Arc<str>,
    cgroup: CgroupId,
    resource: Resource,
    seen: Interval,
}

impl Verifier {
    /// Watches usage for so long, and puts to each verdict what that proves.
    ///
    /// # Errors
    /// The daemon is going down.
    pub async fn prove(&self, report: &mut VerifyReport, interval: Duration) -> Result<(), Stopped> {
        let cgroups = self.cgroups.clone();
        let limits: Vec<_> = report
            .judged
            .iter()
            .map(|(_, judged)| (judged.path.clone(), judged.cgroup, judged.judgement.resource))
            .collect();
        let prepared = tokio::task::spawn_blocking(move || {
            let cpus = cpus_online();
            let watched = |(path, cgroup, resource)| Watched::new(&cgroups, path, cgroup, resource, cpus);
            limits.into_iter().map(watched).collect::<Vec<_>>()
        });
        // A panic while reading is an error of ours, and nothing that was read.
        let mut all = prepared.await.map_err(|_| Stopped)?;
        let began = Instant::now();
        for look in 0..=LOOKS {
            tokio::time::sleep_until(began + interval * look / LOOKS).await;
            let cgroups = self.cgroups.clone();
            let looked = tokio::task::spawn_blocking(move || {
                all.iter_mut().for_each(|watched| watched.look(&cgroups, look == 0, look == LOOKS));
                all
            });
            // A panic while reading is a error of ours, and nothing that was read.
            all = looked.await.map_err(|_| Stopped)?;
        }
        let of = |((_, judged), watched): (&(_, Judged), &Watched)| -> Option<(Interval, Proof)> {
            Some((watched.seen, judged.judgement.proof(&watched.seen)?))
        };
        report.proofs = report.judged.iter().zip(&all).map(of).collect();
        Ok(())
    }
}

/// Those of the node: the daemon's own share of them, by affinity or quota, says nothing of what a container may run on.
fn cpus_online() -> u64 {
    procfs::CpuInfo::current().map_or(1, |cpus| cpus.num_cores() as u64).max(1)
}

impl Watched {
    fn new(cgroups: &CgroupFs, path: Arc<str>, cgroup: CgroupId, resource: Resource, cpus: u64) -> Self {
        let burst = match resource {
            Resource::Cpu => {
                let directory = cgroups.open(&path).ok();
                directory.and_then(|directory| Amount::read(&directory, "cpu.max.burst").number())
            }
            _ => None,
        };
        let at = now();
        let seen = Interval {
            from: at,
            to: at,
            first: UsageCounters::default(),
            last: UsageCounters::default(),
            memory: None,
            burst: burst.unwrap_or(0),
            cpus,
        };
        Self { path, cgroup, resource, seen }
    }

    fn look(&mut self, cgroups: &CgroupFs, is_first: bool, is_last: bool) {
        let found = cgroups.open(&self.path).ok();
        let is_it = |directory: &Directory| directory.id().is_ok_and(|id| id == self.cgroup);
        // Another cgroup by that name has other counters: of this one nothing more can be said.
        let Some(directory) = found.filter(is_it) else {
            self.seen.last = UsageCounters::default();
            self.seen.memory = None;
            return;
        };
        if is_first {
            self.seen.from = now();
            self.seen.first = counters(&directory, self.resource);
        }
        if self.resource == Resource::Memory
            && let Some(bytes) = Amount::read(&directory, "memory.current").number()
        {
            let (least, most) = self.seen.memory.unwrap_or((bytes, bytes));
            self.seen.memory = Some((least.min(bytes), most.max(bytes)));
        }
        if is_last {
            self.seen.last = counters(&directory, self.resource);
            // After the reading: what was used until then had at least that long.
            self.seen.to = now();
        }
    }
}

fn counters(directory: &Directory, resource: Resource) -> UsageCounters {
    match resource {
        Resource::Cpu => {
            let own = Counters::read(directory, "cpu.stat");
            // A cgroup counts its own throttling only: crun's inner one has the exact quota, and is held back first.
            let inner = levels::inner(directory).and_then(|inner| directory.child(&inner).ok());
            let inner =
                inner.and_then(|inner| Counters::read(&inner, "cpu.stat").get("nr_throttled").number());
            let throttled = own.get("nr_throttled").number();
            UsageCounters {
                cpu_usage: own.get("usage_usec").number(),
                throttled: throttled.map(|own| own.saturating_add(inner.unwrap_or(0))),
                reached: None,
            }
        }
        Resource::Memory => {
            let reached = Counters::read(directory, "memory.events").get("max").number();
            UsageCounters { reached, ..UsageCounters::default() }
        }
        Resource::CpuWeight | Resource::MemoryHigh | Resource::Swap => UsageCounters::default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_cpus_are_counted() {
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online").unwrap();
        let number = |text: &str| text.trim().parse::<u64>().unwrap();
        let of = |range: &str| match range.split_once('-') {
            Some((first, last)) => number(last) - number(first) + 1,
            None => 1,
        };
        assert_eq!(cpus_online(), online.trim().split(',').map(of).sum::<u64>());
    }

    #[test]
    fn the_throttling_of_cruns_inner_cgroup_counts() {
        let scope = tempfile::tempdir().unwrap();
        let inner = scope.path().join("container");
        std::fs::create_dir(&inner).unwrap();
        for (directory, members, throttled) in [(scope.path(), "", 2), (inner.as_path(), "7\n", 20)] {
            std::fs::write(directory.join("cgroup.procs"), members).unwrap();
            std::fs::write(directory.join("cpu.stat"), format!("usage_usec 9\nnr_throttled {throttled}\n"))
                .unwrap();
        }
        let counters = counters(&Directory::open(scope.path()).unwrap(), Resource::Cpu);
        assert_eq!((counters.throttled, counters.cpu_usage), (Some(22), Some(9)));
    }
}
