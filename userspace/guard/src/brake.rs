//! The second brake: `memory.high` of a container whose held process has not stopped, because it is inside a system call. SIGSTOP
//! takes effect when that returns. Until then it charges memory, and without this it may be OOM-killed before the limit is raised.
//!
//! ```text
//!  a held process has not stopped ──▶ recorded ──▶ memory.high lowered ──▶ the kernel has whoever charges memory sleep
//!  it has, or its hold is over ─────▶ memory.high "max" ──▶ the record removed
//! ```
//!
//! A container whose `memory.high` is set (by the kubelet's MemoryQoS, or another process) has such a brake, which is left alone. So
//! what is restored is always `max`; and only if the file still has what was written.
//!
//! Whoever is above `memory.high` by a share r sleeps for about 64 s × r² per 64 pages, at most 2 s at a time, and not at all for less
//! than 10 ms (`calculate_high_delay` of `mm/memcontrol.c`); inside of system calls since Linux 5.18. The sleep does not end early. So a
//! brake is released a second before its hold must end ([`end`]): a process that sleeps then runs at most a second after that.
//!
//! Before Linux 6.16 a write of less than is used reclaims memory first: each write is made by a thread of its own, which is interrupted
//! when the brake is released.
//!
//! Owns the records and the threads. Whether a process has stopped is for [`crate::process`] to say.

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::os::unix::thread::JoinHandleExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use kwitness_abi::Hold;
use kwitness_api::proto::guard_report::Report;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use crate::cgroup::{self, Cgroup};
use crate::daemon::Container;
use crate::policy::Bytes;
use crate::program::nanos;
use crate::reporter::Reporter;
use crate::state_file;

/// `memory.high` is at most this share of the limit: near the limit whoever charges then sleeps for as long as the kernel has anyone
/// sleep.
const SHARE: (u64, u64) = (7, 8);
/// Half of the longest sleep.
const RELEASED_BEFORE: Duration = Duration::from_secs(1);
/// Between two attempts to restore a file.
const RETRY: Duration = Duration::from_millis(100);

/// A cgroup whose `memory.high` is lowered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Lowered {
    cgroup_id: u64,
    cgroup_path: String,
    /// The `memory.high` that the guard has set, in bytes.
    high: Bytes,
}

impl Lowered {
    /// Sets it to `max` again, unless another process has written it meanwhile.
    fn restore(&self, cgroup: &Cgroup) -> io::Result<()> {
        let restored = match cgroup.high() {
            Ok(high) if high == Some(self.high) => cgroup.set_high(None),
            other => other.map(drop),
        };
        match restored {
            Err(error) if cgroup::is_gone(&error) => Ok(()),
            restored => restored,
        }
    }
}

/// When the brake of a hold is released, whatever comes. A hold of less than two seconds has one for half of its time.
pub(crate) fn end(hold: &Hold) -> u64 {
    let longest = hold.until.saturating_sub(hold.since);
    hold.until.saturating_sub(nanos(RELEASED_BEFORE).min(longest / 2))
}

/// Restores what a guard has left lowered: of that cgroup, or of all. What cannot be restored is logged.
pub(crate) fn recover(path: &Path, only: Option<u64>) {
    let mut lowered = left(path);
    lowered.retain(|lowered| only.is_none_or(|id| id == lowered.cgroup_id));
    unrestored(lowered, |lowered| Cgroup::find(&lowered.cgroup_path, lowered.cgroup_id));
}

/// What a guard has left lowered.
fn left(path: &Path) -> Vec<Lowered> {
    state_file::read(path).unwrap_or_else(|error| {
        tracing::error!(path = %path.display(), %error, "cannot read whose memory.high was lowered");
        Vec::new()
    })
}

/// Restores all of that; what is left is what cannot be restored, which is logged.
fn unrestored(
    mut lowered: Vec<Lowered>,
    find: impl Fn(&Lowered) -> io::Result<Option<Cgroup>>,
) -> Vec<Lowered> {
    lowered.retain(|lowered| {
        let restored =
            find(lowered).and_then(|found| found.map_or(Ok(()), |cgroup| lowered.restore(&cgroup)));
        let failed = restored.err();
        if let Some(error) = &failed {
            let cgroup = &lowered.cgroup_path;
            tracing::error!(cgroup, %error, "cannot restore memory.high: write \"max\" to it");
        }
        failed.is_some()
    });
    lowered
}

/// The file that says what is lowered.
#[derive(Debug)]
struct Records {
    path: PathBuf,
    lowered: Vec<Lowered>,
}

impl Records {
    /// Before anything is lowered.
    fn add(&mut self, lowered: Lowered) -> io::Result<()> {
        self.lowered.push(lowered);
        state_file::write(&self.path, &self.lowered).inspect_err(|_| drop(self.lowered.pop()))
    }

    /// When it is not any more. A record that stays on disk does no harm: the file no longer has what it says.
    fn remove(&mut self, lowered: &Lowered) {
        self.lowered.retain(|other| other != lowered);
        if let Err(error) = state_file::write(&self.path, &self.lowered) {
            tracing::debug!(path = %self.path.display(), %error, "cannot remove a record");
        }
    }
}

/// What all threads share.
#[derive(Debug)]
struct Shared {
    records: Mutex<Records>,
    reporter: Reporter,
    count: AtomicU64,
}

impl Shared {
    /// Nothing that could panic runs while it is held.
    fn records(&self) -> std::sync::MutexGuard<'_, Records> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brakes a container until `released` has no sender any more.
    ///
    /// # Errors
    /// Why it cannot be braked.
    fn brake(
        &self,
        container: &Container,
        cgroup: &Cgroup,
        released: &Receiver<Infallible>,
    ) -> io::Result<()> {
        let Container { id, cgroup_id, cgroup_path, .. } = container;
        let Some(limit) = cgroup.limit()? else { return Ok(()) };
        if let Some(high) = cgroup.high()? {
            tracing::debug!(container = id, high = high.0, "another process has set memory.high");
            return Ok(());
        }
        let high = lowered(limit, cgroup.usage()?, procfs::page_size());
        if high == Bytes(0) || released.try_recv() == Err(TryRecvError::Disconnected) {
            return Ok(());
        }
        let lowered = Lowered { cgroup_id: *cgroup_id, cgroup_path: cgroup_path.clone(), high };
        self.records().add(lowered.clone())?;
        self.report(container, high);
        let set = cgroup.set_high(Some(high));
        if set.is_ok() {
            self.count.fetch_add(1, Ordering::Relaxed);
            tracing::info!(
                container = id,
                high = high.0,
                "memory.high lowered: a held process has not stopped"
            );
            // Nothing is ever sent.
            let _ = released.recv();
        }
        let mut is_logged = false;
        while let Err(error) = lowered.restore(cgroup) {
            if !std::mem::replace(&mut is_logged, true) {
                tracing::error!(container = id, %error, "cannot restore memory.high; trying again");
            }
            thread::sleep(RETRY);
        }
        self.report(container, Bytes(0));
        self.records().remove(&lowered);
        set
    }

    /// Has the daemon know. No source desires a `memory.high` of a pod.
    fn report(&self, container: &Container, high: Bytes) {
        if !container.is_pod() {
            self.reporter.push(&container.id, Report::SetsHigh(high.0));
        }
    }
}

/// What `memory.high` becomes: what is used, or less where that is near the limit. Whole pages, as the kernel keeps it.
fn lowered(limit: Bytes, usage: Bytes, page: u64) -> Bytes {
    let (part, whole) = SHARE;
    let high = usage.0.min(limit.0 / whole * part);
    Bytes(high / page * page)
}

/// A container's brake.
#[derive(Debug)]
struct Brake {
    /// Dropped to release it.
    hold: Option<Sender<Infallible>>,
    thread: JoinHandle<()>,
}

impl Brake {
    fn start(shared: &Arc<Shared>, container: &Container) -> io::Result<Self> {
        let (hold, released) = channel();
        let (shared, container) = (Arc::clone(shared), container.clone());
        let run = move || {
            let found = Cgroup::find(&container.cgroup_path, container.cgroup_id);
            let brake = |cgroup: Cgroup| shared.brake(&container, &cgroup, &released);
            match found.and_then(|cgroup| cgroup.map_or(Ok(()), brake)) {
                Err(error) if !cgroup::is_gone(&error) => {
                    tracing::warn!(container = container.id, %error, "cannot lower memory.high");
                }
                _ => {}
            }
        };
        let thread = thread::Builder::new().name("brake".to_owned()).spawn(run)?;
        Ok(Self { hold: Some(hold), thread })
    }

    /// Ends the reclaim that a write may be at.
    fn interrupt(&self) {
        if let Err(error) = pthread_kill(self.thread.as_pthread_t(), Signal::SIGURG) {
            tracing::debug!(%error, "cannot interrupt the thread of a brake");
        }
    }
}

/// The brakes that are on.
#[derive(Debug)]
pub(crate) struct Brakes {
    shared: Arc<Shared>,
    /// By cgroup.
    on: HashMap<u64, Brake>,
    /// Released, and not yet restored.
    ending: HashMap<u64, Brake>,
    /// For the log: a line when that changes.
    is_failing: bool,
}

impl Brakes {
    /// None is on. What is lowered is recorded in that file; what an earlier guard has left lowered is restored, or stays recorded
    /// for the watchdog and the next guard.
    pub fn recovered(path: PathBuf, reporter: Reporter) -> Self {
        let find = |lowered: &Lowered| Cgroup::find(&lowered.cgroup_path, lowered.cgroup_id);
        let lowered = unrestored(left(&path), find);
        let records = Mutex::new(Records { path, lowered });
        let shared = Arc::new(Shared { records, reporter, count: AtomicU64::new(0) });
        Self { shared, on: HashMap::new(), ending: HashMap::new(), is_failing: false }
    }

    /// Puts the brakes of these containers on, and releases all others. Does not wait for either.
    pub fn set<'a>(&mut self, wanted: impl IntoIterator<Item = &'a Container>) {
        let wanted: HashMap<_, _> =
            wanted.into_iter().map(|container| (container.cgroup_id, container)).collect();
        let released: Vec<u64> = self.on.keys().filter(|id| !wanted.contains_key(id)).copied().collect();
        released.into_iter().for_each(|id| self.release(id));
        self.ending.retain(|_, brake| !brake.thread.is_finished());
        self.ending.values().for_each(Brake::interrupt);
        for (id, container) in wanted {
            // What is being restored would be taken for another process' value.
            if self.on.contains_key(&id) || self.ending.contains_key(&id) {
                continue;
            }
            match Brake::start(&self.shared, container) {
                Ok(brake) => {
                    self.on.insert(id, brake);
                    self.is_failing = false;
                }
                Err(error) if !std::mem::replace(&mut self.is_failing, true) => {
                    tracing::warn!(%error, "cannot start a thread that lowers memory.high");
                }
                Err(_) => {}
            }
        }
    }

    /// Releases the brake of one cgroup, if it is on. Does not wait until its file is restored.
    pub fn release(&mut self, cgroup_id: u64) {
        if let Some(mut brake) = self.on.remove(&cgroup_id) {
            drop(brake.hold.take());
            self.ending.insert(cgroup_id, brake);
        }
    }

    /// Whether `memory.high` of that cgroup is, or was just now, the guard's.
    pub fn has(&self, cgroup_id: u64) -> bool {
        self.on.contains_key(&cgroup_id) || self.ending.contains_key(&cgroup_id)
    }

    /// Whether all are released and everything is restored.
    pub fn is_idle(&self) -> bool {
        self.on.is_empty() && self.ending.values().all(|brake| brake.thread.is_finished())
    }

    /// How often `memory.high` was lowered.
    pub fn count(&self) -> u64 {
        self.shared.count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const MIB: u64 = 1 << 20;
    const LIMIT: u64 = 64 * MIB;
    const USAGE: u64 = 40 * MIB + 5;

    fn container() -> Container {
        Container {
            id: "c".to_owned(),
            is_identified: true,
            cgroup_id: 7,
            cgroup_path: "/c".to_owned(),
            namespace: None,
            pod: None,
            pod_uid: None,
            name: None,
        }
    }

    /// A directory that stands for a cgroup, and where its brake is recorded.
    struct Stand {
        directory: tempfile::TempDir,
        shared: Arc<Shared>,
    }

    impl Stand {
        fn new(max: &str, high: &str) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let cgroup = directory.path().join("c");
            fs::create_dir(&cgroup).unwrap();
            let usage = USAGE.to_string();
            for (name, text) in [("memory.max", max), ("memory.high", high), ("memory.current", &usage)] {
                fs::write(cgroup.join(name), text).unwrap();
            }
            let brakes = Brakes::recovered(directory.path().join("brakes.json"), Reporter::new());
            Self { directory, shared: brakes.shared }
        }

        fn cgroup(&self) -> Cgroup {
            use std::os::unix::fs::MetadataExt as _;
            let id = fs::metadata(self.directory.path().join("c")).unwrap().ino();
            Cgroup::below(self.directory.path(), "/c", id).unwrap().unwrap()
        }

        fn high(&self) -> String {
            fs::read_to_string(self.directory.path().join("c/memory.high")).unwrap()
        }

        fn set_high(&self, text: &str) {
            fs::write(self.directory.path().join("c/memory.high"), text).unwrap();
        }

        fn recorded(&self) -> Vec<Lowered> {
            state_file::read(&self.directory.path().join("brakes.json")).unwrap()
        }

        /// Brakes it, calls `meanwhile` when the brake is on, and releases it.
        fn braked(&self, meanwhile: impl FnOnce()) {
            let (hold, released) = channel();
            thread::scope(|scope| {
                let (shared, cgroup) = (&self.shared, self.cgroup());
                let braking = scope.spawn(move || shared.brake(&container(), &cgroup, &released));
                while shared.count.load(Ordering::Relaxed) == 0 {
                    assert!(!braking.is_finished(), "it was not braked");
                    thread::yield_now();
                }
                meanwhile();
                drop(hold);
                braking.join().unwrap().unwrap();
            });
        }
    }

    #[test]
    fn a_brake_is_released_a_second_before_its_hold_must_end_or_in_the_middle_of_it() {
        let end = |millis: u64| {
            let [since, until] = [5_000, 5_000 + millis].map(|millis| millis * 1_000_000);
            let hold =
                Hold { cgroup_id: 7, since, until, usage: 1, limit: 1, tid: 1, signalled: 1, comm: [0; 16] };
            (end(&hold) - since) / 1_000_000
        };
        assert_eq!([100, 2_000, 3_000, 10_000].map(end), [50, 1_000, 2_000, 9_000]);
    }

    #[test]
    fn memory_high_is_what_is_used_and_less_near_the_limit() {
        let high = |usage: u64| lowered(Bytes(LIMIT), Bytes(usage), 4096).0;
        assert_eq!(high(USAGE), 40 * MIB);
        for usage in [56 * MIB, 63 * MIB] {
            assert_eq!(high(usage), 56 * MIB);
        }
        assert_eq!(high(4095), 0);
    }

    #[test]
    fn what_an_earlier_guard_left_stays_recorded_unless_it_is_restored_or_gone() {
        let stand = Stand::new(&LIMIT.to_string(), "4096");
        let of =
            |cgroup_id, path: &str| Lowered { cgroup_id, cgroup_path: path.to_owned(), high: Bytes(4096) };
        let all = vec![of(1, "/gone"), of(2, "/unreadable"), of(3, "/c")];
        let kept = unrestored(all, |lowered| match &*lowered.cgroup_path {
            "/gone" => Ok(None),
            "/unreadable" => Err(io::ErrorKind::PermissionDenied.into()),
            _ => Ok(Some(stand.cgroup())),
        });
        assert_eq!((kept, stand.high().as_str()), (vec![of(2, "/unreadable")], "max"));
    }

    #[test]
    fn what_is_lowered_is_recorded_until_it_is_restored() {
        let stand = Stand::new(&LIMIT.to_string(), "max");
        stand.braked(|| {
            let high = Bytes(40 * MIB);
            assert_eq!(stand.high(), high.0.to_string());
            let recorded = stand.recorded();
            assert_eq!(recorded.len(), 1);
            assert_eq!((recorded[0].cgroup_id, recorded[0].high), (7, high));
        });
        assert_eq!((stand.high().as_str(), stand.recorded()), ("max", Vec::new()));
    }

    #[test]
    fn what_another_process_has_set_meanwhile_stays() {
        let stand = Stand::new(&LIMIT.to_string(), "max");
        stand.braked(|| stand.set_high("1048576"));
        assert_eq!((stand.high().as_str(), stand.recorded()), ("1048576", Vec::new()));
    }

    #[test]
    fn a_container_without_a_limit_or_with_a_brake_of_its_own_is_left_alone() {
        let limit = LIMIT.to_string();
        for (max, high) in [("max", "max"), (limit.as_str(), "50331648")] {
            let stand = Stand::new(max, high);
            let (_hold, released) = channel();
            stand.shared.brake(&container(), &stand.cgroup(), &released).unwrap();
            assert_eq!((stand.high().as_str(), stand.recorded()), (high, Vec::new()));
        }
    }

    #[test]
    fn what_cannot_be_recorded_is_not_lowered_nor_what_is_released_before() {
        let stand = Stand::new(&LIMIT.to_string(), "max");
        let (hold, released) = channel();
        drop(hold);
        stand.shared.brake(&container(), &stand.cgroup(), &released).unwrap();
        assert_eq!(stand.high(), "max", "released");
        let stand = Stand::new(&LIMIT.to_string(), "max");
        fs::create_dir(stand.directory.path().join("brakes.json")).unwrap();
        let (_hold, released) = channel();
        stand.shared.brake(&container(), &stand.cgroup(), &released).unwrap_err();
        assert_eq!(stand.high(), "max", "not recorded");
    }
}
