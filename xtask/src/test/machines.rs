//! Where each target of the integration tests runs, and what it needs there: the tables, and the choice of the command line.

use anyhow::{Result, bail, ensure};

use super::{Test, Tier};
use crate::architecture::Architecture;
use crate::artifacts::Executable;
use crate::setup::{Needs, Tool};
use crate::tally::Tally;
use crate::versions::{BROWSER_ROOT, CLIENT_ROOT, CNI_ROOT, DEFAULT_ROOT, GUESTS, KernelSeries, RootSpec};

/// The roots of nodes on this machine's kernel.
const HOSTS: &[&str] = &[DEFAULT_ROOT, CNI_ROOT, CLIENT_ROOT, BROWSER_ROOT, "bookworm", "forky"];
/// Where each target runs, by the names in the table at the end; tests that do not apply there are listed as ignored.
///
/// - The hooks of the probes depend on the kernel: each series once, whatever its process 1 is.
/// - What is made of their records (lifecycle, limits) depends on the cgroup driver and little on the kernel: the host, the newest
///   kernel, and systemd.
/// - The CRI proxy needs nothing of a kernel: containerd 1.6, 1.7 and 2.x on the host, and no emulation.
/// - CRI events depend on the container runtime and its cgroup driver, not on the kernel: containerd 1.7, 2.x, and systemd.
/// - The daemon's command line and start-up depend on little of the kernel: the host's and the newest.
/// - Registers, trampolines and atomic operations depend on the architecture: the probes and the daemon on arm64, with `--long` only.
/// - The guard stops processes of containers with limits: a guest with cgroup v2. Its program depends on the kernel: with `--long`,
///   the oldest and the newest that it is for, too.
/// - A kubelet runs with containerd 1.7 and with 1.6, which has no events of its own. critest's pods need CNI plugins.
/// - Clients of other languages need Python, and nothing of a kernel; the timeline's page needs a browser.
/// - The demos of a build and of a JVM need a compiler and a JDK in the root, and a guest with cgroup v2; with `--long` only.
/// - A cluster runs in a guest too, because hybrid cgroups, as the host may have, have no limits to resize. With `--long`, helm releases
///   the chart there.
/// - The OpenTelemetry Collector needs nothing of a kernel.
/// - Prometheus needs limits to alert on, and nothing else of a kernel.
/// - A package is installed where systemd runs its units.
/// - The verdict matrix needs limits, and with `--long` a guest for each cgroup driver.
///
/// Of OCI runtimes and cgroup drivers, the host runs each test with all combinations that it has. A guest runs it with one, and the
/// next test with another: over the guests, each with both runtimes and both drivers (`Environment::leaves_out` of the tests). With
/// `--long`, all of them.
const RUNS_IN: &[(&str, &[&str])] = &[
    ("browser", &["host trixie-browser"]),
    ("clients", &["host trixie-python"]),
    ("cluster", &["host", "vm 6.12 trixie"]),
    ("cri", &["host", "host bookworm", "host forky"]),
    ("cri_events", &["host", "host forky", "vm 6.12 trixie-systemd"]),
    ("critest", &["host trixie-cni"]),
    ("daemon", &["host", "vm 7.2 forky", ARM64]),
    ("demos", &["vm 6.12 trixie-demo"]),
    ("export", &["host"]),
    ("guard", &["vm 6.1 trixie", "vm 6.12 trixie", "vm 7.2 forky"]),
    ("kubelet", &["host", "host bookworm"]),
    ("limits", &["host", "vm 7.2 forky", "vm 6.12 trixie-systemd"]),
    ("matrix", &["vm 6.12 trixie", "vm 6.12 trixie-systemd"]),
    ("outage", &["host", "vm 5.10 trixie", "vm 6.1 trixie", "vm 6.12 trixie", "vm 7.2 forky"]),
    ("packages", &["vm 6.12 trixie-systemd"]),
    ("prometheus", &["vm 6.12 trixie"]),
    ("probes", &["host", "vm 5.10 trixie", "vm 6.1 trixie", "vm 6.12 trixie", "vm 7.2 forky", ARM64]),
    ("runtime", &["host", "vm 7.2 forky", "vm 6.12 trixie-systemd"]),
];
/// The guest of another architecture, for which everything is built once more.
const ARM64: &str = "vm 6.12-arm64 trixie-arm64";
/// What of that runs with `--long` only.
const LONG_ONLY: &[(&str, &str)] = &[
    ("daemon", ARM64),
    ("demos", "vm 6.12 trixie-demo"),
    ("guard", "vm 6.1 trixie"),
    ("guard", "vm 7.2 forky"),
    ("matrix", "vm 6.12 trixie-systemd"),
    ("outage", "vm 5.10 trixie"),
    ("outage", "vm 6.1 trixie"),
    ("outage", "vm 6.12 trixie"),
    ("outage", "vm 7.2 forky"),
    ("probes", ARM64),
];
pub const WITH_TOOL: &[(Tool, &[&str])] = &[
    (Tool::CriTools, &["cri", "cri_events", "critest"]),
    (Tool::Kubernetes, &["cluster", "demos", "kubelet", "matrix"]),
    (Tool::OtherKubelets, &["kubelet", "matrix"]),
    (Tool::Controllers, &["cluster"]),
    (Tool::Clients, &["clients"]),
    (Tool::Collector, &["cluster", "export"]),
    (Tool::Helm, &["cluster"]),
    (Tool::Packages, &["packages"]),
    (Tool::Prometheus, &["cluster", "prometheus"]),
];
pub const WITH_PLUGIN: &[&str] = &["cluster"];
/// The targets that need what is in `deploy`.
pub const WITH_DEPLOYMENT: &[&str] = &["cluster", "prometheus"];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    /// This machine's own kernel.
    Host {
        root: &'static RootSpec,
    },
    Guest {
        kernel: &'static KernelSeries,
        root: &'static RootSpec,
    },
}

impl Machine {
    /// As in the table at the end, and in [`RUNS_IN`].
    pub fn name(self) -> String {
        match self {
            Self::Host { root } if root.name == DEFAULT_ROOT => "host".to_owned(),
            Self::Host { root } => format!("host {}", root.name),
            Self::Guest { kernel, root } => format!("vm {} {}", kernel.name, root.name),
        }
    }

    pub fn root(self) -> &'static RootSpec {
        match self {
            Self::Host { root } | Self::Guest { root, .. } => root,
        }
    }

    pub fn architecture(self) -> Architecture {
        match self {
            Self::Host { .. } => Architecture::HOST,
            Self::Guest { kernel, .. } => kernel.architecture(),
        }
    }

    pub fn chosen(test: &Test) -> Result<Vec<Self>> {
        let tier = |tier| test.tier.is_empty() || test.tier.contains(&tier);
        for kernel in &test.kernel {
            KernelSeries::find(kernel)?;
        }
        for root in &test.root {
            RootSpec::find(root)?;
        }
        let wanted = |named: &[String], name: &str| named.is_empty() || named.iter().any(|a| a == name);
        let mut machines = Vec::new();
        if tier(Tier::Host) {
            for name in HOSTS.iter().filter(|name| wanted(&test.root, name)) {
                machines.push(Self::Host { root: RootSpec::find(name)? });
            }
        }
        if tier(Tier::Vm) {
            let before = machines.len();
            for (kernel, root) in GUESTS {
                if wanted(&test.kernel, kernel) && wanted(&test.root, root) {
                    machines.push(Self::Guest {
                        kernel: KernelSeries::find(kernel)?,
                        root: RootSpec::find(root)?,
                    });
                }
            }
            if machines.len() == before && (!test.kernel.is_empty() || test.tier.contains(&Tier::Vm)) {
                let guests: Vec<_> = GUESTS.iter().map(|(kernel, root)| format!("{kernel} {root}")).collect();
                bail!("no guest has that kernel and root; there are: {}", guests.join(", "));
            }
        }
        let named = !machines.is_empty();
        machines.retain(|machine| machine.targets(test).next().is_some());
        let what = if test.target.is_empty() { "any target".to_owned() } else { test.target.join(", ") };
        ensure!(!named || !machines.is_empty(), "there is no run of {what} there, or with --long only");
        Ok(machines)
    }

    /// The targets that the command line asks for, of those that run here.
    pub fn targets(self, test: &Test) -> impl Iterator<Item = &'static str> {
        let is_wanted =
            |target: &str| test.target.is_empty() || test.target.iter().any(|name| name == target);
        let all = RUNS_IN.iter().map(|(target, _)| *target);
        all.filter(move |target| is_wanted(target) && self.runs(target, test.long))
    }

    /// What setup must make for the targets that the command line asks for.
    pub fn needs(self, test: &Test) -> Needs {
        let mut needs = Needs::tools(&[Tool::Bpf]);
        let tools = self.tools(test.long, |target| self.targets(test).any(|name| name == target));
        if test.kubelet.is_some() && tools.contains(&Tool::Kubernetes) {
            needs.tools.insert(Tool::OtherKubelets);
        }
        needs.tools.extend(tools);
        match self {
            Self::Host { root } => needs.trees.extend([root.name]),
            Self::Guest { kernel, root } => {
                needs.kernels.insert(kernel.name);
                needs.disks.insert(root.name);
            }
        }
        needs
    }

    /// The tools that the targets need here.
    pub fn tools(self, long: bool, is_target: impl Fn(&str) -> bool) -> Vec<Tool> {
        let is_here = |tool: Tool| match tool {
            // Guests run without crictl: one machine with a newer or an older one proves no more.
            Tool::CriTools => matches!(self, Self::Host { .. }),
            Tool::OtherKubelets => long,
            Tool::Controllers => long && matches!(self, Self::Guest { .. }),
            _ => true,
        };
        let needed = WITH_TOOL
            .iter()
            .filter(|(tool, targets)| is_here(*tool) && targets.iter().any(|target| is_target(target)));
        needed.map(|(tool, _)| *tool).collect()
    }

    pub fn runs(self, target: &str, long: bool) -> bool {
        let name = self.name();
        if !long && LONG_ONLY.contains(&(target, name.as_str())) {
            return false;
        }
        RUNS_IN.iter().any(|(of, machines)| *of == target && machines.contains(&name.as_str()))
    }
}

/// Programs that could not be made.
#[derive(Debug)]
pub struct Missing {
    pub targets: &'static [&'static str],
    pub why: String,
}

/// The targets that can be started, and a failure for each of the others.
pub fn startable<'a>(
    targets: impl Iterator<Item = &'a Executable>,
    missing: &[Missing],
) -> (Vec<&'a Executable>, Tally) {
    let mut tally = Tally::default();
    let mut there = Vec::new();
    for target in targets {
        match missing.iter().find(|missing| missing.targets.contains(&target.name.as_str())) {
            Some(Missing { why, .. }) => {
                tally += Tally::failure(format!("{} did not run: {why}", target.name));
            }
            None => there.push(target),
        }
    }
    (there, tally)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::PathBuf;

    use super::*;
    use crate::versions::KERNELS;

    fn test(tiers: &[Tier], kernels: &[&str], roots: &[&str]) -> Test {
        let owned = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        Test {
            tier: tiers.to_vec(),
            kernel: owned(kernels),
            root: owned(roots),
            target: Vec::new(),
            filter: None,
            kubelet: None,
            long: false,
        }
    }

    fn names(test: &Test) -> Vec<String> {
        Machine::chosen(test).unwrap().into_iter().map(Machine::name).collect()
    }

    #[test]
    fn machines_are_chosen_by_tier_kernel_and_root() {
        assert_eq!(names(&test(&[Tier::Unit], &[], &[])), [] as [&str; 0]);
        assert_eq!(
            names(&test(&[Tier::Host], &[], &[])),
            [
                "host",
                "host trixie-cni",
                "host trixie-python",
                "host trixie-browser",
                "host bookworm",
                "host forky"
            ]
        );
        assert_eq!(names(&test(&[Tier::Host], &[], &["bookworm"])), ["host bookworm"]);
        assert_eq!(names(&test(&[Tier::Vm], &["6.12"], &[])), ["vm 6.12 trixie-systemd", "vm 6.12 trixie"]);
        assert_eq!(names(&test(&[Tier::Vm], &["6.12"], &["trixie"])), ["vm 6.12 trixie"]);
        assert_eq!(names(&test(&[], &["7.2"], &["trixie", "forky"])), ["host", "host forky", "vm 7.2 forky"]);
        assert!(Machine::chosen(&test(&[Tier::Vm], &["4.19"], &[])).is_err());
        assert!(Machine::chosen(&test(&[Tier::Vm], &["5.10"], &["forky"])).is_err());
    }

    #[test]
    fn machines_without_a_named_target_are_left_out() {
        let of =
            |tiers: &[Tier], target: &str| Test { target: vec![target.to_owned()], ..test(tiers, &[], &[]) };
        assert_eq!(names(&of(&[Tier::Host], "daemon")), ["host"]);
        assert_eq!(names(&of(&[], "critest")), ["host trixie-cni"]);
        assert_eq!(names(&of(&[], "kubelet")), ["host", "host bookworm"]);
        assert!(Machine::chosen(&of(&[Tier::Vm], "kubelet")).is_err());
        assert_eq!(names(&of(&[], "matrix")), ["vm 6.12 trixie"]);
        assert!(Machine::chosen(&of(&[], "demos")).is_err(), "with --long only");
        assert!(Machine::chosen(&test(&[Tier::Vm], &[], &["trixie-demo"])).is_err());
        assert_eq!(names(&Test { long: true, ..of(&[], "demos") }), ["vm 6.12 trixie-demo"]);
        let long = Test { long: true, ..of(&[], "matrix") };
        assert_eq!(names(&long), ["vm 6.12 trixie-systemd", "vm 6.12 trixie"]);
        let host = Machine::chosen(&of(&[Tier::Host], "cri")).unwrap()[0];
        let needs = host.needs(&of(&[Tier::Host], "cri"));
        assert_eq!(needs.tools.into_iter().collect::<Vec<_>>(), [Tool::Bpf, Tool::CriTools]);
        assert!(host.needs(&test(&[Tier::Host], &[], &[])).tools.contains(&Tool::Kubernetes));
        let has = |machine: Machine, test: Test, tool| machine.needs(&test).tools.contains(&tool);
        let with_kubelet = |target| Test { kubelet: Some("1.34".to_owned()), ..of(&[Tier::Host], target) };
        let others = ["kubelet", "daemon"].map(|target| has(host, with_kubelet(target), Tool::OtherKubelets));
        assert_eq!(others, [true, false]);
        let guest = Machine::chosen(&of(&[Tier::Vm], "cluster")).unwrap()[0];
        let controllers = [false, true]
            .map(|long| has(guest, Test { long, ..of(&[Tier::Vm], "cluster") }, Tool::Controllers));
        assert_eq!(controllers, [false, true]);
    }

    #[test]
    fn every_machine_of_a_target_exists() {
        let all = names(&Test { long: true, ..test(&[], &[], &[]) });
        for (target, machines) in RUNS_IN {
            for machine in *machines {
                assert!(all.iter().any(|name| name == machine), "{target}: {machine}");
            }
        }
    }

    #[test]
    fn every_target_runs_somewhere() {
        let manifest = include_str!("../../../tests/Cargo.toml").parse::<toml::Table>().unwrap();
        let targets =
            manifest["test"].as_array().unwrap().iter().map(|target| target["name"].as_str().unwrap());
        let in_table: BTreeSet<_> = RUNS_IN.iter().map(|(target, _)| *target).collect();
        assert_eq!(in_table, targets.collect());
    }

    #[test]
    fn the_probes_run_on_every_kernel() {
        let found = RUNS_IN.iter().find(|(target, _)| *target == "probes").unwrap().1;
        for kernel in KERNELS {
            let of = format!("vm {} ", kernel.name);
            assert!(found.iter().any(|machine| machine.starts_with(&of)), "{of}: {found:?}");
        }
    }

    #[test]
    fn a_target_without_its_programs_is_a_failure_and_the_others_run() {
        let built = |name: &str| Executable { name: name.to_owned(), path: PathBuf::from(name) };
        let built = ["daemon", "kubelet"].map(built);
        let missing = [Missing { targets: &["kubelet"], why: "go cannot build it".to_owned() }];
        let (there, tally) = startable(built.iter(), &missing);
        assert_eq!(there.iter().map(|built| built.name.as_str()).collect::<Vec<_>>(), ["daemon"]);
        assert_eq!(
            (tally.failed, tally.reasons),
            (1, vec!["kubelet did not run: go cannot build it".to_owned()])
        );
        let (there, tally) = startable(built.iter(), &[]);
        assert_eq!((there.len(), tally), (2, Tally::default()));
    }
}
