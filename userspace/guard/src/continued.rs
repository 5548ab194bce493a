//! Holds that the guard did not end itself: who did, and why. What ended without a guard is put down in a file, for the next one to
//! report.
//!
//! Owns the file and these words. Never continues anything.

use std::path::Path;
use std::time::Duration;

use kwitness_abi::{COMM_LEN, GUARD_HELD_CAP, Hold, ProcessKey};
use kwitness_api::proto;
use kwitness_api::proto::guard_report::Report;
use serde::{Deserialize, Serialize};

use crate::process::State;
use crate::program::{self, nanos};
use crate::reporter;
use crate::state_file;

/// Holds that are kept: as many as there can be at a time.
const KEPT: usize = GUARD_HELD_CAP as usize;
/// What no daemon has known a container for within this time is reported to none any more.
const AGE_MAX: Duration = Duration::from_secs(3600);

/// Why a hold was ended by another process than the guard: the first three by the watchdog.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum Reason {
    /// The guard has ended.
    GuardDead,
    /// It hangs, or is stopped.
    LeaseEnded,
    /// It has not ended the hold at its deadline.
    Overrun,
    /// Guard and watchdog have ended: the next guard did.
    GuardRestarted,
}

impl Reason {
    /// Its name in the log and in the event.
    pub fn name(self) -> &'static str {
        match self {
            Self::GuardDead => "guardDead",
            Self::LeaseEnded => "leaseEnded",
            Self::Overrun => "overrun",
            Self::GuardRestarted => "guardRestarted",
        }
    }
}

/// A hold that ended so.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Continued {
    /// The armed cgroup.
    pub cgroup_id: u64,
    pid: u32,
    start_boottime: u64,
    comm: [u8; COMM_LEN],
    since: u64,
    /// When it ended: `CLOCK_BOOTTIME` in nanoseconds, as all times here.
    pub at: u64,
    state: State,
    pub reason: Reason,
}

impl Continued {
    /// A hold that ended then.
    pub fn new(key: ProcessKey, hold: &Hold, at: u64, state: State, reason: Reason) -> Self {
        let ProcessKey { pid, start_boottime, .. } = key;
        let Hold { cgroup_id, since, comm, .. } = *hold;
        Self { cgroup_id, pid, start_boottime, comm, since, at, state, reason }
    }

    /// For the daemon.
    pub fn report(&self) -> Report {
        Report::Continued(proto::GuardContinued {
            process: reporter::process(self.pid, self.start_boottime, &self.comm),
            held_ns: self.at.saturating_sub(self.since),
            state: self.state.report().into(),
            reason: self.reason.name().to_owned(),
        })
    }

    /// Whether it can have happened.
    fn is_plausible(&self, now: u64) -> bool {
        let Self { pid, start_boottime, since, at, .. } = *self;
        pid != 0 && start_boottime <= since && since <= at && at <= now
    }
}

/// Adds to what is there. Of more than there is room for, the oldest have no event.
pub(crate) fn add(path: &Path, new: Vec<Continued>) {
    if new.is_empty() {
        return;
    }
    let mut all = load(path);
    all.extend(new);
    let excess = all.len().saturating_sub(KEPT);
    if excess > 0 {
        tracing::warn!(excess, "too many holds ended without a guard: the oldest are not reported");
        all.drain(..excess);
    }
    save(path, &all);
}

/// What is to be reported. What no guard or watchdog has written is none of it, and no reason not to guard.
pub(crate) fn load(path: &Path) -> Vec<Continued> {
    match read(path, program::now()) {
        Ok(all) => all,
        Err(error) => {
            let path = path.display();
            tracing::warn!(%path, %error, "cannot read which holds ended without a guard: they are not reported");
            Vec::new()
        }
    }
}

fn read(path: &Path, now: u64) -> std::io::Result<Vec<Continued>> {
    let mut all: Vec<Continued> = state_file::read(path)?;
    if all.len() > KEPT || !all.iter().all(|of| of.is_plausible(now)) {
        return Err(std::io::Error::other("it is not a guard's"));
    }
    let before = all.len();
    all.retain(|of| now - of.at < nanos(AGE_MAX));
    let old = before - all.len();
    if old > 0 {
        tracing::warn!(old, "holds that ended long ago without a guard are not reported");
    }
    Ok(all)
}

/// Puts down what is still to be reported.
pub(crate) fn save(path: &Path, all: &[Continued]) {
    if let Err(error) = state_file::write(path, all) {
        let path = path.display();
        tracing::warn!(%path, %error, "cannot record which holds ended without a guard: they are not reported");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::fs;

    use serde_json::json;

    use super::*;

    const SECOND: u64 = 1_000_000_000;

    /// A hold that began and ended these seconds after boot.
    pub(crate) fn continued(pid: u32, since: u64, at: u64) -> Continued {
        let hold = Hold {
            cgroup_id: 7,
            since: since * SECOND,
            until: (since + 3) * SECOND,
            usage: 1,
            limit: 1,
            tid: pid,
            signalled: 1,
            comm: *b"java\0\0\0\0\0\0\0\0\0\0\0\0",
        };
        let key = ProcessKey { start_boottime: SECOND, pid, pad: 0 };
        Continued::new(key, &hold, at * SECOND, State::Running, Reason::GuardDead)
    }

    #[test]
    fn what_is_added_is_kept_and_reported_with_its_reason() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("continued.json");
        add(&path, Vec::new());
        assert!(!path.exists());
        let all = [1, 2].map(|pid| continued(pid, 10, 12));
        save(&path, &all);
        assert_eq!(read(&path, 20 * SECOND).unwrap(), all);
        let Report::Continued(report) = continued(7, 10, 12).report() else { panic!() };
        assert_eq!((report.held_ns, &*report.reason), (2 * SECOND, "guardDead"));
        assert_eq!(report.process.unwrap().comm, "java");
    }

    #[test]
    fn more_than_can_be_held_is_bounded_and_what_is_old_is_forgotten() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("continued.json");
        let count = u32::try_from(KEPT).unwrap() + 3;
        let now = program::now();
        let all =
            (1..=count).map(|pid| Continued { start_boottime: 0, since: 0, at: now, ..continued(pid, 0, 0) });
        add(&path, all.collect());
        let kept = load(&path);
        assert_eq!((kept.len(), kept[0].pid), (KEPT, 4));
        assert_eq!(read(&path, now + nanos(AGE_MAX)).unwrap(), []);
    }

    #[test]
    fn foreign_content_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("continued.json");
        let good = serde_json::to_value([continued(7, 10, 12)]).unwrap();
        let with = |field: &str, value: serde_json::Value| {
            let mut list = good.clone();
            list[0][field] = value;
            fs::write(&path, list.to_string()).unwrap();
            read(&path, 20 * SECOND)
        };
        assert_eq!(with("pid", json!(7)).unwrap(), [continued(7, 10, 12)]);
        for (field, value) in [
            ("pid", json!(0)),
            ("at", json!(21 * SECOND)),
            ("at", json!(9 * SECOND)),
            ("startBoottime", json!(11 * SECOND)),
            ("reason", json!("another")),
            ("state", json!("asleep")),
            ("comm", json!("java")),
            ("more", json!(1)),
        ] {
            with(field, value.clone()).expect_err(&format!("{field} {value}"));
        }
        let many = vec![continued(7, 10, 12); KEPT + 1];
        fs::write(&path, serde_json::to_vec(&many).unwrap()).unwrap();
        read(&path, 20 * SECOND).unwrap_err();
        fs::write(&path, "not json").unwrap();
        assert_eq!(load(&path), [], "no reason not to guard");
        add(&path, vec![Continued { start_boottime: 0, since: 0, at: 1, ..continued(7, 0, 0) }]);
        assert_eq!(read(&path, SECOND).unwrap().len(), 1, "it is replaced");
    }
}
