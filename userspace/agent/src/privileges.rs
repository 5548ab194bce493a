//! What the daemon may do beyond an unprivileged process, why, and for how long.
//!
//! ```text
//!  main thread ── keep LASTING, SETUP ──┬── keep LASTING ──▶ log, HTTP listener, runtime, engine: every other thread
//!                                       └── setup thread ──▶ loads, attaches, opens fanotify, and ends
//! ```
//!
//! Capabilities are a thread's, so what only the setup takes is given to one thread, and ends with it. Owns the tables that units, chart
//! and documentation agree with; how a capability is given up is `kwitness_service::privileges`'.

use std::sync::mpsc::{self, SyncSender};
use std::thread::{self, JoinHandle};

use anyhow::Context as _;
use kwitness_api::proto;
use kwitness_service::memory;
use kwitness_service::privileges::{self, CapabilitySet, Privilege};

/// Until the daemon ends.
pub const LASTING: [Privilege; 4] = [
    Privilege {
        capability: CapabilitySet::BPF,
        purpose: "bpf(2): read the maps; untrack cgroups; what is pinned",
    },
    Privilege {
        capability: CapabilitySet::SYS_PTRACE,
        purpose: "program and mount namespace of processes with more privileges, at each scan",
    },
    Privilege {
        capability: CapabilitySet::DAC_READ_SEARCH,
        purpose: "cgroups, checkpoints and a configuration that belong to other users",
    },
    Privilege {
        capability: CapabilitySet::DAC_OVERRIDE,
        purpose: "the runtime's socket and --record in directories of other users",
    },
];

/// Only until the probes are attached.
pub const SETUP: [Privilege; 3] = [
    Privilege {
        capability: CapabilitySet::PERFMON,
        purpose: "load programs that read kernel memory; attach kprobes and classic tracepoints",
    },
    Privilege { capability: CapabilitySet::SYS_ADMIN, purpose: "fanotify, where the kernel is in lockdown" },
    Privilege {
        capability: CapabilitySet::SYS_RESOURCE,
        purpose: "raise RLIMIT_MEMLOCK, which Linux before 5.11 counts maps against",
    },
];

type Job = Box<dyn FnOnce() + Send>;

/// A thread that may still do what loading and attaching take.
#[derive(Debug)]
pub struct Setup {
    jobs: SyncSender<Job>,
    thread: JoinHandle<()>,
}

impl Setup {
    /// Gives up in this thread what does not last, and everything else before that. To be called before there is another thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start() -> anyhow::Result<Self> {
        let lasting = lasting_of(privileges::held()?);
        privileges::keep_only(lasting | Privilege::set(&SETUP))?;
        let (jobs, receive) = mpsc::sync_channel::<Job>(1);
        let wait = move || {
            receive.into_iter().for_each(|job| job());
            // The kernel's type information alone is some 15 MB.
            memory::give_back_of_thread();
        };
        let thread = thread::Builder::new().name("setup".to_owned()).spawn(wait);
        privileges::keep_only(lasting)?;
        Ok(Self { jobs, thread: thread.context("cannot start the setup thread")? })
    }

    /// Runs `job` on that thread, and waits for its end.
    ///
    /// # Errors
    /// `job` panicked.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let (send, receive) = mpsc::sync_channel(1);
        // Room for one: it does not wait, and the receiver is there until it has ended.
        let job: Job = Box::new(move || send.send(job()).unwrap_or_default());
        self.jobs.send(job).ok().and_then(|()| receive.recv().ok()).context("the setup panicked")
    }

    /// Runs the last one, and waits for the end of the thread.
    ///
    /// # Errors
    /// `job` panicked.
    pub fn finish<T: Send + 'static>(self, job: impl FnOnce() -> T + Send + 'static) -> anyhow::Result<T> {
        let result = self.run(job);
        let Self { jobs, thread } = self;
        drop(jobs);
        thread.join().ok().context("the setup panicked")?;
        result
    }
}

/// Of what a process holds, what the daemon keeps until its end.
fn lasting_of(held: CapabilitySet) -> CapabilitySet {
    privileges::for_bpf(Privilege::set(&LASTING), held)
}

/// What this thread holds, and what for, in the API's shape. Empty if the kernel does not say.
pub fn held() -> Vec<proto::Privilege> {
    in_words(privileges::held().unwrap_or(CapabilitySet::empty()))
}

fn in_words(held: CapabilitySet) -> Vec<proto::Privilege> {
    let purpose = |capability: CapabilitySet| {
        let known = LASTING.iter().find(|privilege| privilege.capability == capability);
        known.map_or("in place of CAP_BPF, which was not granted", |privilege| privilege.purpose)
    };
    let named = held.iter_names().map(|(_, capability)| capability);
    named
        .map(|capability| proto::Privilege {
            name: privileges::names(capability).concat(),
            purpose: purpose(capability).to_owned(),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    fn table() -> BTreeSet<String> {
        LASTING.iter().chain(&SETUP).map(Privilege::name).collect()
    }

    fn read(path: &str) -> String {
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").join(path)).unwrap()
    }

    #[test]
    fn the_unit_grants_the_table() {
        let unit = read("deploy/systemd/kwitness.service");
        let granted: BTreeSet<_> = unit
            .lines()
            .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="))
            .flat_map(|names| names.split_whitespace().map(str::to_owned))
            .collect();
        assert_eq!(granted, table());
    }

    /// Of the chart's, each is in the table: nothing is granted that the daemon gives up at its start.
    #[test]
    fn the_chart_grants_nothing_else() {
        let template = read("deploy/helm/kwitness/templates/daemonset.yaml");
        let listed = template.split_once("              add:\n").unwrap().1;
        let lines = listed.lines().map(str::trim).take_while(|line| !line.ends_with("name: http"));
        let granted: BTreeSet<_> = lines
            .filter_map(|line| line.strip_prefix("- "))
            .filter(|name| name.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_'))
            .map(|name| format!("CAP_{name}"))
            .collect();
        assert!(granted.contains("CAP_BPF") && granted.len() > 4, "{granted:?}");
        assert!(granted.is_subset(&table()), "{granted:?}");
    }

    #[test]
    fn the_documentation_has_the_table() {
        let page = read("docs/operations.md");
        for (privileges, kept) in [(&LASTING[..], "until it ends"), (&SETUP[..], "until it has attached")] {
            for privilege in privileges {
                let row = format!("| `{}` | {} | {kept} |", privilege.name(), privilege.purpose);
                assert!(page.lines().any(|line| line == row), "docs/operations.md has no row {row}");
            }
        }
    }

    #[test]
    fn admin_lasts_only_in_place_of_bpf() {
        let all = CapabilitySet::BPF | CapabilitySet::SYS_ADMIN | CapabilitySet::CHOWN;
        assert_eq!(lasting_of(all), Privilege::set(&LASTING));
        let held = lasting_of(CapabilitySet::SYS_ADMIN) & CapabilitySet::SYS_ADMIN;
        let words = in_words(held);
        assert_eq!(words.len(), 1);
        assert_eq!(
            (&*words[0].name, &*words[0].purpose),
            ("CAP_SYS_ADMIN", "in place of CAP_BPF, which was not granted")
        );
    }

    /// On a thread of its own: the other tests need their capabilities.
    #[test]
    fn what_is_for_the_setup_is_held_there_alone() {
        let before = privileges::held().unwrap();
        let (here, there) = thread::spawn(|| {
            let setup = Setup::start().unwrap();
            (privileges::held().unwrap(), setup.finish(|| privileges::held().unwrap()).unwrap())
        })
        .join()
        .unwrap();
        let lasting = lasting_of(before);
        assert_eq!(here, before & lasting);
        assert_eq!(there, before & (lasting | Privilege::set(&SETUP)));
    }

    #[test]
    fn a_panic_of_the_setup_is_an_error() {
        let setup = thread::spawn(|| Setup::start().unwrap()).join().unwrap();
        assert_eq!(setup.run(|| 7).unwrap(), 7);
        let error = setup.run(|| -> () { panic!("on purpose") }).unwrap_err();
        assert_eq!(error.to_string(), "the setup panicked");
        assert!(setup.finish(|| 7).is_err());
    }

    /// The kernel shows a process's capabilities by its first thread.
    #[test]
    fn what_is_missing_is_what_the_asking_thread_has_not() {
        let before = crate::probe::environment::missing_privileges();
        let (here, there) = thread::spawn(|| {
            let setup = Setup::start().unwrap();
            let missing = crate::probe::environment::missing_privileges;
            (missing(), setup.finish(missing).unwrap())
        })
        .join()
        .unwrap();
        assert_eq!(there, before);
        assert!(here.contains(&"CAP_PERFMON"), "{here:?}");
    }
}
