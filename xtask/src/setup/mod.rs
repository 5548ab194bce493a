//! Makes what the other tasks need, once: packages, tools, guest kernels, roots.
//!
//! Every task calls [`ensure()`] with its own [`Needs`]; where all is there already, that takes milliseconds. Owns the
//! order of steps and the checks that come before them.

pub mod apt;
pub mod clients;
mod collector;
pub mod critools;
pub mod disk;
mod go;
pub mod helm;
pub mod kernel;
pub mod kubernetes;
pub mod packages;
pub mod programs;
pub mod prometheus;
pub mod root;
pub mod tools;
mod vmlinux;

use std::collections::BTreeSet;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use clap::ValueEnum;

use crate::architecture::Architecture;
use crate::versions::{
    ARM64_GUEST_PACKAGES, BPF_PACKAGES, CACHE_BYTES, GUEST_PACKAGES, GUESTS, IMAGE_PACKAGES, KernelSeries,
    ON_DEMAND, PACKAGES_PACKAGES, ROOT_PACKAGES, ROOTS, RootSpec, WINDOWS_PACKAGES,
};
use crate::workspace::{Cache, Turn};
use crate::{run, step};

/// What a person may ask setup for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Tier {
    /// To build, and to run the tests inside the crates
    Unit,
    /// To run nodes on this machine's own kernel
    Host,
    /// To boot guests
    Vm,
    /// To check dependencies
    Lint,
}

/// What several tasks need, beside roots and kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Tool {
    /// The compiler, clippy and linker of the BPF programs.
    Bpf,
    /// cargo-deny and cargo-machete.
    Lint,
    /// crictl and critest.
    CriTools,
    /// Kubelet, API server, kubectl and etcd.
    Kubernetes,
    /// The kubelet of the next release.
    NextKubelet,
    /// The kubelets of all releases but the one of [`Self::Kubernetes`].
    OtherKubelets,
    Controllers,
    Clients,
    /// helm and kubeconform.
    Helm,
    Collector,
    /// Prometheus and promtool.
    Prometheus,
    /// Linkers for the image.
    Image,
    /// nfpm, and what reads its packages.
    Packages,
    /// The linker for Windows.
    Windows,
}

impl Tool {
    fn ensure(self, cache: &Cache) -> Result<()> {
        match self {
            Self::Bpf => tools::bpf_linker(cache),
            Self::Lint => tools::lint(cache),
            Self::CriTools => critools::ensure(cache),
            Self::Kubernetes => kubernetes::ensure(cache),
            Self::NextKubelet => kubernetes::ensure_next(cache),
            Self::OtherKubelets => kubernetes::ensure_others(cache),
            Self::Controllers => kubernetes::ensure_controllers(cache),
            Self::Clients => clients::ensure(cache),
            Self::Helm => helm::ensure(cache),
            Self::Collector => collector::ensure(cache),
            Self::Prometheus => prometheus::ensure(cache),
            Self::Packages => packages::ensure(cache),
            // Debian's packages are all of it.
            Self::Image | Self::Windows => Ok(()),
        }
    }

    /// Its programs that a job has, in the cache's tools.
    pub fn programs(self) -> &'static [&'static str] {
        match self {
            Self::CriTools => &critools::NAMES,
            Self::Kubernetes => &kubernetes::NAMES,
            Self::OtherKubelets => &kubernetes::OTHER_KUBELETS,
            Self::Controllers => &kubernetes::CONTROLLERS,
            Self::Clients => &clients::NAMES,
            Self::Helm => &helm::NAMES,
            Self::Collector => &collector::NAMES,
            Self::Prometheus => &prometheus::NAMES,
            Self::Bpf | Self::Lint | Self::NextKubelet | Self::Image | Self::Packages | Self::Windows => &[],
        }
    }
}

#[derive(Clone, Debug, Default)]
pub struct Needs {
    pub tools: BTreeSet<Tool>,
    /// Roots as trees, by name.
    pub trees: BTreeSet<&'static str>,
    /// Roots as disks, by name; a disk needs its tree.
    pub disks: BTreeSet<&'static str>,
    /// Kernels, by series.
    pub kernels: BTreeSet<&'static str>,
}

impl Needs {
    pub fn tools(tools: &[Tool]) -> Self {
        Self { tools: tools.iter().copied().collect(), ..Self::default() }
    }

    /// What these tiers need; all there is for none, but for the roots that are made on demand.
    pub fn of(tiers: &[Tier]) -> Self {
        let wanted = |tier| tiers.is_empty() || tiers.contains(&tier);
        let is_usual = |name: &&str| !ON_DEMAND.contains(name);
        let mut needs = Self::tools(&[Tool::Bpf]);
        if wanted(Tier::Host) {
            needs.tools.extend([
                Tool::CriTools,
                Tool::Kubernetes,
                Tool::Clients,
                Tool::Helm,
                Tool::Collector,
                Tool::Prometheus,
            ]);
            needs.trees = ROOTS.iter().map(|root| root.name).filter(is_usual).collect();
        }
        if wanted(Tier::Vm) {
            needs.tools.extend([
                Tool::Collector,
                Tool::Helm,
                Tool::Kubernetes,
                Tool::Packages,
                Tool::Prometheus,
            ]);
            needs.disks = GUESTS.iter().map(|(_, root)| *root).filter(is_usual).collect();
            needs.kernels =
                GUESTS.iter().filter(|(_, root)| is_usual(root)).map(|(kernel, _)| *kernel).collect();
        }
        if wanted(Tier::Lint) {
            needs.tools.extend([Tool::Lint, Tool::Helm, Tool::Prometheus]);
        }
        needs
    }

    pub fn extend(&mut self, other: Self) {
        let Self { tools, trees, disks, kernels } = other;
        self.tools.extend(tools);
        self.trees.extend(trees);
        self.disks.extend(disks);
        self.kernels.extend(kernels);
    }
}

/// Makes what is not there yet.
pub fn ensure(cache: &Cache, needs: &Needs) -> Result<()> {
    let _turn = cache.lock(Turn::Setup)?;
    check_host(cache)?;
    let roots: BTreeSet<_> = needs.trees.union(&needs.disks).copied().collect();
    let guests = !needs.disks.is_empty() || !needs.kernels.is_empty();
    let architectures = architectures(needs);

    let mut packages = Vec::new();
    for (needed, list) in [
        (needs.tools.contains(&Tool::Bpf), BPF_PACKAGES),
        (!roots.is_empty(), ROOT_PACKAGES),
        (guests, GUEST_PACKAGES),
        (architectures.contains(&Architecture::Arm64), ARM64_GUEST_PACKAGES),
        (needs.tools.contains(&Tool::Image), IMAGE_PACKAGES),
        (needs.tools.contains(&Tool::Packages), PACKAGES_PACKAGES),
        (needs.tools.contains(&Tool::Windows), WINDOWS_PACKAGES),
    ] {
        if needed {
            packages.extend_from_slice(list);
        }
    }
    apt::install(cache, "packages", &packages)?;

    // Downloads wait for the network and builds for the processor, so they run side by side.
    std::thread::scope(|scope| {
        let tools = scope.spawn(|| needs.tools.iter().try_for_each(|tool| tool.ensure(cache)));
        let made = make(cache, needs, &roots);
        match tools.join() {
            Ok(tools) => made.and(tools),
            Err(_) => bail!("the thread that builds tools died"),
        }
    })
}

fn architectures(needs: &Needs) -> BTreeSet<Architecture> {
    let Needs { trees, disks, kernels, .. } = needs;
    trees.iter().chain(disks).chain(kernels).map(|name| Architecture::of(name)).collect()
}

fn make(cache: &Cache, needs: &Needs, roots: &BTreeSet<&'static str>) -> Result<()> {
    for name in &needs.kernels {
        KernelSeries::find(name)?.ensure(cache)?;
    }
    for architecture in architectures(needs) {
        programs::ensure(cache, architecture)?;
    }
    for name in roots {
        let root = RootSpec::find(name)?;
        root.ensure_tree(cache)?;
        if needs.disks.contains(name) {
            root.ensure_image(cache)?;
        }
    }
    Ok(())
}

/// The `setup` task: [`ensure()`], with a beginning and an end to read.
pub fn task(cache: &Cache, needs: &Needs) -> Result<()> {
    let start = Instant::now();
    step::say("  ..", "setup", &format!("into {}", cache.root().display()));
    ensure(cache, needs)?;
    step::say("  ok", "setup", &format!("{}  all is there", step::seconds(start.elapsed())));
    Ok(())
}

/// What no step can mend.
fn check_host(cache: &Cache) -> Result<()> {
    let release = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let debian = release.lines().any(|line| line == "ID=debian");
    ensure!(
        debian && cfg!(target_arch = "x86_64"),
        "this machine is no Debian on x86-64. Tests, demo and BPF builds need Debian 12 or later there (a container or \
         a virtual machine will do); to build kwitness itself, `cargo build` is enough"
    );
    // A cache that has been filled once needs little more.
    if cache.root().join("stamps").exists() {
        return Ok(());
    }
    let text = run::output(Command::new("df").args(["--output=avail", "-B1", "--"]).arg(cache.root()))?;
    let free: u64 =
        text.lines().last().unwrap_or_default().trim().parse().context("read the output of df")?;
    ensure!(
        free >= CACHE_BYTES,
        "{} has {:.1} GB free, a complete setup needs {:.1}: make room, or set KWITNESS_CACHE to a directory on a \
         larger disk",
        cache.root().display(),
        free as f64 / 1e9,
        CACHE_BYTES as f64 / 1e9
    );
    Ok(())
}
