//! Whether usage keeps to the limits that were judged: looks at the kernel's counters over an interval, and has the core find.
//!
//! Files are read on a blocking thread; of a thousand limits, each look takes some milliseconds. Changes nothing.

use std::sync::Arc;
use std::time::Duration;

use kwitness_core::model::{CgroupId, Judged, Judgement, Reading, Resource};
use kwitness_core::verdicts::proof::{Interval, Proof, Unproved, UsageCounters};
use procfs::Current as _;
use tokio::time::Instant;

use super::{Verifier, VerifyReport, levels, now};
use crate::cgroupfs::limit_files::read_limit_file;
use crate::cgroupfs::usage_files::{Amount, FlatKeyed};
use crate::cgroupfs::{CgroupFs, Directory};
use crate::engine::Stopped;

/// Looks at what is charged and at the limit itself, in the interval: often enough to see usage fall below a limit.
const LOOKS: u32 = 20;

/// A limit whose usage is watched.
struct Watched {
    path: Arc<str>,
    cgroup: CgroupId,
    resource: Resource,
    /// What the limit file said when it was judged.
    limit: Reading,
    /// What `cpu.max.burst` says at first, of a limit of CPU time.
    burst: Option<u64>,
    seen: Interval,
}

impl Verifier {
    /// Watches usage for so long, and puts to each verdict what that proves. How many limits there are is known by the verdicts only:
    /// where others watch too many, these stay, each with that as the reason why nothing is proven.
    ///
    /// # Errors
    /// The daemon is going down.
    pub async fn prove(&self, report: &mut VerifyReport, interval: Duration) -> Result<(), Stopped> {
        // As long as any file is read for this, even if the call has ended.
        let Some(share) = self.turns.watch(report.judged.len()) else {
            let at = now();
            let of = |(_, judged): &(_, Judged)| judged.judgement.unproved(at, Unproved::TooManyWatched);
            report.proofs = report.judged.iter().map(of).collect();
            return Ok(());
        };
        let cgroups = self.cgroups.clone();
        let limits: Vec<_> = report
            .judged
            .iter()
            .map(|(_, judged)| (judged.path.clone(), judged.cgroup, judged.judgement.clone()))
            .collect();
        let prepared = tokio::task::spawn_blocking(move || {
            let cpus = cpus_online();
            let watched = |(path, cgroup, judgement): (_, _, Judgement)| {
                Watched::new(&cgroups, path, cgroup, judgement.resource, judgement.in_force, cpus)
            };
            (limits.into_iter().map(watched).collect::<Vec<_>>(), share)
        });
        // A panic while reading is an error of ours, and nothing that was read.
        let (mut all, mut share) = prepared.await.map_err(|_| Stopped)?;
        let began = Instant::now();
        for look in 0..=LOOKS {
            tokio::time::sleep_until(began + interval * look / LOOKS).await;
            let cgroups = self.cgroups.clone();
            let looked = tokio::task::spawn_blocking(move || {
                all.iter_mut().for_each(|watched| watched.look(&cgroups, look == 0, look == LOOKS));
                (all, share)
            });
            // A panic while reading is an error of ours, and nothing that was read.
            (all, share) = looked.await.map_err(|_| Stopped)?;
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
    fn new(
        cgroups: &CgroupFs,
        path: Arc<str>,
        cgroup: CgroupId,
        resource: Resource,
        limit: Reading,
        cpus: u64,
    ) -> Self {
        let burst = cgroups.open(&path).ok().and_then(|directory| burst(&directory, resource));
        let seen = Interval { burst: burst.unwrap_or(0), ..Interval::begun(now(), cpus) };
        Self { path, cgroup, resource, limit, burst, seen }
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
        // After what was used: the limit that held it is this one, or the one before.
        let limit = read_limit_file(&directory, self.resource.file());
        let is_readable = matches!(limit, Reading::Is(_) | Reading::Absent);
        self.seen.limit_changed |= is_readable && limit != self.limit;
        self.seen.limit_changed |= burst(&directory, self.resource) != self.burst;
    }
}

/// `cpu.max.burst` in microseconds, of a limit of CPU time; none: there is none.
fn burst(directory: &Directory, resource: Resource) -> Option<u64> {
    match resource {
        Resource::Cpu => Amount::read(directory, "cpu.max.burst").number(),
        _ => None,
    }
}

fn counters(directory: &Directory, resource: Resource) -> UsageCounters {
    match resource {
        Resource::Cpu => {
            let own = FlatKeyed::read(directory, "cpu.stat");
            // A cgroup counts its own throttling only: crun's inner one has the exact quota, and is held back first.
            let inner = levels::inner(directory).and_then(|inner| directory.child(&inner).ok());
            let inner =
                inner.and_then(|inner| FlatKeyed::read(&inner, "cpu.stat").get("nr_throttled").number());
            let throttled = own.get("nr_throttled").number();
            UsageCounters {
                cpu_usage: own.get("usage_usec").number(),
                throttled: throttled.map(|own| own.saturating_add(inner.unwrap_or(0))),
                reached: None,
            }
        }
        Resource::Memory => {
            let reached = FlatKeyed::read(directory, "memory.events").get("max").number();
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

    /// Watches CPU time and memory of a scope while its files change; whether a change of each limit was noticed.
    fn watched_while(change: impl FnOnce(&std::path::Path)) -> [bool; 2] {
        let root = tempfile::tempdir().unwrap();
        let scope = root.path().join("scope");
        std::fs::create_dir(&scope).unwrap();
        for (file, text) in [
            ("cgroup.procs", "7\n"),
            ("cpu.max", "50000 100000\n"),
            ("cpu.max.burst", "0\n"),
            ("cpu.stat", "usage_usec 9\nnr_throttled 1\n"),
            ("memory.max", "4096\n"),
            ("memory.current", "8192\n"),
            ("memory.events", "max 0\n"),
        ] {
            std::fs::write(scope.join(file), text).unwrap();
        }
        let cgroups = CgroupFs::at(root.path());
        let directory = cgroups.open("/scope").unwrap();
        let id = directory.id().unwrap();
        let mut all = [Resource::Cpu, Resource::Memory].map(|resource| {
            let limit = read_limit_file(&directory, resource.file());
            Watched::new(&cgroups, "/scope".into(), id, resource, limit, 1)
        });
        all.iter_mut().for_each(|watched| watched.look(&cgroups, true, false));
        assert!(all.iter().all(|watched| !watched.seen.limit_changed));
        change(&scope);
        all.iter_mut().for_each(|watched| watched.look(&cgroups, false, true));
        all.map(|watched| watched.seen.limit_changed)
    }

    #[test]
    fn a_limit_that_is_changed_within_the_interval_is_noticed() {
        let write = |file: &'static str, text: &'static str| {
            move |scope: &std::path::Path| std::fs::write(scope.join(file), text).unwrap()
        };
        assert_eq!(watched_while(|_| ()), [false, false]);
        assert_eq!(watched_while(write("cpu.max", "200000 100000\n")), [true, false]);
        assert_eq!(watched_while(write("cpu.max.burst", "10000\n")), [true, false]);
        assert_eq!(watched_while(write("memory.max", "max\n")), [false, true]);
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
