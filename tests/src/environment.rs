//! Where the tests run, and what that place offers. The one table from which a test that cannot apply is chosen.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context, Result, bail, ensure};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tier {
    /// The machine's own kernel, in private namespaces.
    Host,
    /// A guest: the kernel and all of its cgroups are ours.
    Vm,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CgroupLayout {
    Unified,
    /// The controllers are in v1 hierarchies; a v2 hierarchy without controllers stands beside them.
    Hybrid,
}

/// An OCI runtime, by the name of its handler in containerd's configuration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Handler {
    Runc,
    Crun,
}

/// Who makes the containers' cgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CgroupDriver {
    /// The OCI runtime itself, with mkdir(2).
    Cgroupfs,
    Systemd,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Combination {
    pub handler: Handler,
    pub driver: CgroupDriver,
}

impl Handler {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Runc => "runc",
            Self::Crun => "crun",
        }
    }
}

impl CgroupDriver {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Cgroupfs => "cgroupfs",
            Self::Systemd => "systemd",
        }
    }
}

impl Combination {
    pub const ALL: [Self; 4] = [
        Self { handler: Handler::Runc, driver: CgroupDriver::Cgroupfs },
        Self { handler: Handler::Crun, driver: CgroupDriver::Cgroupfs },
        Self { handler: Handler::Runc, driver: CgroupDriver::Systemd },
        Self { handler: Handler::Crun, driver: CgroupDriver::Systemd },
    ];

    pub fn name(self) -> String {
        format!("{}_{}", self.handler.name(), self.driver.name())
    }
}

#[derive(Clone, Debug)]
pub struct Environment {
    pub tier: Tier,
    /// The folder with the program under test, the images and the tests.
    pub job: PathBuf,
    pub layout: CgroupLayout,
    pub cgroup2: PathBuf,
    /// The cgroup below which the tests make all of theirs, from the root of the hierarchy ("/kwitness-test-7"); none: the
    /// whole hierarchy is ours.
    pub subtree: Option<String>,
    pub systemd: bool,
    /// What takes long is wanted, too (`cargo xtask test --long`).
    pub long: bool,
    /// The release of the kubelets that tests start, "1.34" (`cargo xtask test --kubelet`); none: the usual one.
    pub kubelet: Option<String>,
}

impl Environment {
    /// Looks at the place. Fails with what is missing, for without the environment there is nothing to test.
    pub fn find() -> Result<Self> {
        let job = PathBuf::from(env::var_os("KWITNESS_JOB").context(
            "KWITNESS_JOB is not set: these programs run in the environment that `cargo xtask test` and \
             `cargo xtask demo` make",
        )?);
        let tier = match env::var("KWITNESS_TIER").context("read KWITNESS_TIER")?.as_str() {
            "host" => Tier::Host,
            "vm" => Tier::Vm,
            other => bail!("KWITNESS_TIER is `{other}`; it must be `host` or `vm`"),
        };
        let (cgroup2, layout) = find_cgroup2()?;
        let systemd = fs::read_to_string("/proc/1/comm").context("read /proc/1/comm")?.trim() == "systemd"
            && fs::exists("/run/systemd/system").context("look for /run/systemd/system")?;
        let subtree = env::var("KWITNESS_CGROUP").ok();
        ensure!(
            tier == Tier::Vm || subtree.is_some(),
            "KWITNESS_CGROUP is not set: on a machine with other cgroups the tests keep to one of their own"
        );
        let long = env::var_os("KWITNESS_LONG").is_some();
        let kubelet = env::var("KWITNESS_KUBELET").ok();
        Ok(Self { tier, job, layout, cgroup2, subtree, systemd, long, kubelet })
    }

    /// A path in the hierarchy that is ours to make: `name` ("kubepods/x"), below the subtree if there is one.
    pub fn cgroup(&self, name: &str) -> String {
        format!("{}/{name}", self.subtree.as_deref().unwrap_or_default())
    }

    /// The directory in the v2 hierarchy below which the tests make their cgroups.
    pub fn cgroup_directory(&self) -> PathBuf {
        self.cgroup2.join(self.subtree.as_deref().unwrap_or_default().trim_start_matches('/'))
    }

    pub fn kwitness(&self) -> PathBuf {
        self.job.join("bin/kwitness")
    }

    pub fn plugin(&self) -> PathBuf {
        self.job.join("bin/kubectl-kwitness")
    }

    pub fn of_tier<T>(&self, host: T, guest: T) -> T {
        match self.tier {
            Tier::Host => host,
            Tier::Vm => guest,
        }
    }

    pub fn first_combination(&self) -> Result<Combination> {
        let first = Combination::ALL.into_iter().find(|combination| self.refuses(*combination).is_none());
        first.context("this place can run no combination of OCI runtime and cgroup driver")
    }

    /// Why a row of a table does not run with that combination here; none if it does. `row` is its number in the table.
    ///
    /// A guest is emulated and slow: there, each row runs with one OCI runtime, and the next row with the other. Over a
    /// guest with each cgroup driver, each row so runs with both runtimes and with both drivers, and a table of two rows
    /// or more with all four combinations. With `--long`, each row runs with every combination.
    pub fn leaves_out(&self, combination: Combination, row: usize) -> Option<&'static str> {
        let first = match combination.driver {
            CgroupDriver::Cgroupfs => Handler::Runc,
            // The only combination in which a container has a cgroup of the runtime's within its own.
            CgroupDriver::Systemd => Handler::Crun,
        };
        let has_turn = (combination.handler == first) == row.is_multiple_of(2);
        let all = self.tier == Tier::Host || self.long;
        (!all && !has_turn).then_some("only with --long")
    }

    /// Why what is the same on every machine does not run here; none if it does: on the host, in a fraction of the time.
    pub fn same_everywhere(&self) -> Option<&'static str> {
        (self.tier == Tier::Vm && !self.long).then_some("the same on the host; here only with --long")
    }

    pub fn refuses(&self, combination: Combination) -> Option<&'static str> {
        match (combination.handler, combination.driver) {
            (_, CgroupDriver::Systemd) if !self.systemd => Some("PID 1 is not systemd"),
            // A systemd guest tests the systemd driver only: its kubelet would use no other.
            (_, CgroupDriver::Cgroupfs) if self.systemd => Some("PID 1 is systemd"),
            (Handler::Crun, _) if self.layout == CgroupLayout::Hybrid => Some("crun refuses hybrid cgroups"),
            _ => None,
        }
    }
}

/// The mount point of cgroup v2, and whether it is the only hierarchy.
pub fn find_cgroup2() -> Result<(PathBuf, CgroupLayout)> {
    let mounts = crate::process::mounts()?;
    let is_hybrid = mounts.iter().any(|(_, kind)| kind == "cgroup");
    let layout = if is_hybrid { CgroupLayout::Hybrid } else { CgroupLayout::Unified };
    let cgroup2 = mounts.into_iter().find(|(_, kind)| kind == "cgroup2");
    let cgroup2 = cgroup2.context("cgroup v2 is not mounted: mount -t cgroup2 none /sys/fs/cgroup")?;
    Ok((cgroup2.0, layout))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn guest(systemd: bool, long: bool) -> Environment {
        Environment {
            tier: Tier::Vm,
            job: PathBuf::new(),
            layout: CgroupLayout::Unified,
            cgroup2: PathBuf::new(),
            subtree: None,
            systemd,
            long,
            kubelet: None,
        }
    }

    /// The combinations with which that row runs, in a guest of each cgroup driver.
    fn combinations(row: usize, long: bool) -> HashSet<Combination> {
        let guests = [guest(false, long), guest(true, long)];
        let runs = |guest: &Environment, combination| {
            guest.refuses(combination).or(guest.leaves_out(combination, row)).is_none()
        };
        let all = Combination::ALL.into_iter();
        all.filter(|combination| guests.iter().any(|guest| runs(guest, *combination))).collect()
    }

    #[test]
    fn each_row_runs_with_both_runtimes_and_both_drivers() {
        for row in 0..4 {
            let run = combinations(row, false);
            assert_eq!(run.len(), 2, "{run:?}");
            assert_eq!(run.iter().map(|combination| combination.handler).collect::<HashSet<_>>().len(), 2);
            assert_eq!(run.iter().map(|combination| combination.driver).collect::<HashSet<_>>().len(), 2);
            assert_eq!(run.union(&combinations(row + 1, false)).count(), 4);
            assert_eq!(combinations(row, true).len(), 4);
        }
    }
}
