//! The `demo` and `chaos` tasks, and what they share with `bench`: one program of the tests' package, watched by a person, on a node
//! with a real container runtime.

use std::ffi::OsStr;
use std::fs;
use std::io::IsTerminal as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use clap::{Args, ValueEnum};

use crate::artifacts::{Builder, in_job};
use crate::job::{Job, MOUNT};
use crate::setup::kubernetes::{KUBELET, NEXT_KUBELET_NAME};
use crate::setup::{self, Needs, Tool};
use crate::versions::{DEFAULT_ROOT, DEMO_ROOT, KernelSeries, RootSpec};
use crate::vm::{Guest, LEAVES, Output};
use crate::workspace::{Cache, Workspace};
use crate::{host, images, step};

/// After this long it is given up.
const LIMIT: Duration = Duration::from_secs(3600);

/// The kernel of the guest in which a program runs that this machine's own kernel cannot serve.
const STAND_IN: &str = "6.12";
const MEMORY: u32 = 2048;
/// What a cgroup hierarchy with controllers in it has at its root.
const CONTROLLERS: &str = "/sys/fs/cgroup/cgroup.controllers";

/// What to show, and where.
#[derive(Args)]
pub struct Demo {
    /// What to show
    #[arg(value_enum, default_value_t = Scene::Life)]
    scene: Scene,
    /// Where to leave the picture of `oom`, `build` or `startup` [default: SCENE.svg in the target directory]
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    #[command(flatten)]
    options: Watched,
}

/// What there is to see.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Scene {
    /// Containers come and go
    Life,
    /// Containers are resized, and another process interferes: needs cgroup v2 with its controllers
    Resize,
    /// The same work is OOM-killed without the guard and finishes with it: always in a guest
    Oom,
    /// A build gets its memory before it needs it, without that it is OOM-killed: always in a guest
    Build,
    /// A JVM gets more CPU until it is ready: always in a guest
    Startup,
}

impl Scene {
    /// As the program takes it.
    fn name(self) -> String {
        self.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
    }

    /// Whether it claims something on a node of a cluster, and leaves a picture of that.
    const fn claims(self) -> bool {
        matches!(self, Self::Oom | Self::Build | Self::Startup)
    }

    /// The root whose programs it runs, if not every root has them.
    const fn root(self) -> Option<&'static str> {
        match self {
            Self::Build | Self::Startup => Some(DEMO_ROOT),
            Self::Life | Self::Resize | Self::Oom => None,
        }
    }

    /// Why it needs a guest, if it does on this machine.
    fn needs_guest(self) -> Option<String> {
        match self {
            Self::Resize if !has_controllers() => Some(format!("{CONTROLLERS} has no memory")),
            Self::Oom => Some("the guard stops processes".to_owned()),
            Self::Build | Self::Startup => Some("it brings a node with limits of its own".to_owned()),
            Self::Life | Self::Resize => None,
        }
    }
}

/// Shows a scene and returns its exit status.
pub fn demo(workspace: &Workspace, cache: &Cache, demo: &Demo) -> Result<i32> {
    let mut options = demo.options.clone();
    if options.vm.is_none()
        && let Some(reason) = demo.scene.needs_guest()
    {
        step::say("  --", "guest", &format!("{reason}: shown in a guest with kernel {STAND_IN}"));
        options.vm = Some(STAND_IN.to_owned());
    }
    if let Some(root) = demo.scene.root() {
        ensure!(
            [DEFAULT_ROOT, root].contains(&options.root()),
            "only the root {root} has what this scene runs"
        );
        options.set_root(root);
    }
    let name = demo.scene.name();
    options.arguments.insert(0, name.clone());
    let program = Program {
        name: "kwitness-demo",
        build: Build::Release,
        kubelet: None,
        collector: false,
        limit: LIMIT,
    };
    if !demo.scene.claims() {
        ensure!(demo.svg.is_none(), "the scene {name} leaves no picture");
        return task(workspace, cache, &program, &options, Output::Shown, None);
    }
    options.arguments.extend(["--svg".to_owned(), LEAVES.to_owned()]);
    let left = workspace.scratch("demo")?.join("left");
    let status = task(workspace, cache, &program, &options, Output::Shown, Some(&left))?;
    let text = fs::read_to_string(&left).with_context(|| format!("read {}", left.display()))?;
    let picture = text.replace('\r', "");
    // A claim that does not hold leaves its picture, too; a scene that broke off leaves none.
    if picture.is_empty() {
        ensure!(status != 0, "the scene left no picture");
        return Ok(status);
    }
    let file = demo.svg.clone().unwrap_or_else(|| workspace.target.join(format!("{name}.svg")));
    fs::write(&file, picture).with_context(|| format!("write {}", file.display()))?;
    step::say("  ok", "picture", &file.display().to_string());
    Ok(status)
}

/// How much chaos, and where.
#[derive(Args)]
pub struct Chaos {
    /// Repeat the sequence of actions of that seed [default: another one each time]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// How long: seconds, or minutes with an `m`
    #[arg(long = "for", value_name = "TIME", default_value = "60s")]
    duration: String,
    /// Half an hour
    #[arg(long, conflicts_with = "duration")]
    long: bool,
    #[command(flatten)]
    options: Watched,
}

/// Makes chaos around a daemon, and returns its exit status.
pub fn chaos(workspace: &Workspace, cache: &Cache, chaos: &Chaos) -> Result<i32> {
    let mut options = chaos.options.clone();
    let duration = if chaos.long { "30m" } else { &chaos.duration };
    options.arguments.extend(["--for".to_owned(), duration.to_owned()]);
    if let Some(seed) = chaos.seed {
        options.arguments.extend(["--seed".to_owned(), seed.to_string()]);
    }
    let program = Program {
        name: "kwitness-chaos",
        build: Build::ForTests,
        kubelet: None,
        collector: false,
        limit: LIMIT,
    };
    task(workspace, cache, &program, &options, Output::Shown, None)
}

/// Whether this machine has cgroup v2 with its controllers, and so limits.
fn has_controllers() -> bool {
    fs::read_to_string(CONTROLLERS).is_ok_and(|text| text.split_whitespace().any(|name| name == "memory"))
}

/// Where to run a program that a person watches.
#[derive(Args, Clone)]
pub struct Watched {
    /// Run in a guest with this kernel instead of on this machine's own
    #[arg(long, value_name = "SERIES", visible_alias = "kernel")]
    vm: Option<String>,
    /// Memory of the guest, in MiB.
    #[arg(skip = MEMORY)]
    pub memory: u32,
    /// The root, which decides the version of the container runtime
    #[arg(long, value_name = "NAME", default_value = DEFAULT_ROOT)]
    root: String,
    /// Passed on to the program
    #[arg(last = true, value_name = "ARGUMENTS")]
    pub arguments: Vec<String>,
}

impl Watched {
    /// Runs in a guest, of the usual kernel if none was chosen.
    pub fn set_guest(&mut self) {
        self.vm.get_or_insert_with(|| STAND_IN.to_owned());
    }

    pub fn root(&self) -> &str {
        &self.root
    }

    pub fn set_root(&mut self, name: &str) {
        name.clone_into(&mut self.root);
    }
}

#[derive(Clone, Copy, Debug)]
pub enum Build {
    /// kwitness as it is released.
    Release,
    /// As it is for the integration tests, which takes less time.
    ForTests,
}

/// A kubelet that is built.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kubelet {
    /// The one that tests run
    #[value(name = "1.36")]
    Pinned,
    /// That of the next release
    #[value(name = "1.37")]
    Next,
}

impl Kubelet {
    const fn needs(self) -> Tool {
        match self {
            Self::Pinned => Tool::Kubernetes,
            Self::Next => Tool::NextKubelet,
        }
    }

    const fn tool(self) -> &'static str {
        match self {
            Self::Pinned => KUBELET,
            Self::Next => NEXT_KUBELET_NAME,
        }
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Program {
    pub name: &'static str,
    pub build: Build,
    pub kubelet: Option<Kubelet>,
    pub collector: bool,
    /// After this long it is given up.
    pub limit: Duration,
}

/// Builds a program, runs it, and returns its exit status. With a file for what the program leaves it has the programs of Kubernetes,
/// too, and runs in a guest.
pub fn task(
    workspace: &Workspace,
    cache: &Cache,
    program: &Program,
    options: &Watched,
    output: Output,
    leaves: Option<&Path>,
) -> Result<i32> {
    let Program { name, build, kubelet, collector, limit } = *program;
    let root = RootSpec::find(&options.root)?;
    let kernel = options.vm.as_deref().map(KernelSeries::find).transpose()?;
    let mut needs = Needs::tools(&[Tool::Bpf]);
    needs.tools.extend(kubelet.map(Kubelet::needs));
    needs.tools.extend(collector.then_some(Tool::Collector));
    needs.tools.extend(leaves.map(|_| Tool::Kubernetes));
    match kernel {
        Some(kernel) => {
            needs.kernels.insert(kernel.name);
            needs.disks.insert(root.name);
        }
        None => needs.trees.extend([root.name]),
    }
    setup::ensure(cache, &needs)?;

    let dir = tempfile::tempdir_in(workspace.scratch("jobs")?)?;
    let mut job = Job::new(dir.path().join("job"))?;
    step::expected(&format!("build kwitness and {name}"), step::BUILD, || {
        let builder = Builder::new(workspace, cache)?;
        let (kwitness, built) = match build {
            Build::Release => (builder.released()?, builder.beside_released(name)?),
            Build::ForTests => (builder.kwitness()?, builder.tool(name)?),
        };
        job.add(&kwitness, &in_job("kwitness"))?;
        job.add(&built, &in_job(name))?;
        if let Some(kubelet) = kubelet {
            job.add(&cache.tool(kubelet.tool()), &in_job(KUBELET))?;
        }
        let collector = if collector { Tool::Collector.programs() } else { &[] };
        let kubernetes = leaves.map_or(&[][..], |_| Tool::Kubernetes.programs());
        for name in collector.iter().chain(kubernetes) {
            job.add(&cache.tool(name), &in_job(name))?;
        }
        images::write(cache, root, &job.dir().join("images.tar"))
    })?;
    job.env("KWITNESS_TIER", if kernel.is_some() { "vm" } else { "host" });
    job.env("KWITNESS_ROOT", root.name);
    // In a guest the program sees a terminal that is not the one of the person.
    let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    if no_color || !std::io::stdout().is_terminal() {
        job.env("NO_COLOR", "1");
    } else if matches!(output, Output::File(_)) {
        // What is passed on is seen by a person, too.
        job.env("CLICOLOR_FORCE", "1");
    }
    if let Some(columns) = std::env::var_os("COLUMNS").as_deref().and_then(OsStr::to_str) {
        job.env("COLUMNS", columns);
    }
    let mut words = vec![format!("{MOUNT}/{}", in_job(name).display())];
    words.extend(options.arguments.iter().cloned());
    job.command(&words)?;
    match kernel {
        Some(kernel) => {
            // A control plane needs a gigabyte of its own.
            let memory = if leaves.is_some() { 4096 } else { options.memory };
            let guest = Guest { kernel, root, processors: 1, memory, timeout: Some(limit), leaves };
            guest.run(cache, &job, output)
        }
        None => host::run(cache, &root.tree(cache)?, &job, output, Some(limit)),
    }
}
