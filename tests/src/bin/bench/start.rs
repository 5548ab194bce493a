//! The floor for a start: the same programs loaded and attached by nothing but aya, one after the other, and a bare walk of the same
//! cgroup tree that reads every `cgroup.procs`. What kwitness adds is choosing hooks, knowing containers, and the API.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use aya::programs::{FEntry, FExit, KProbe, RawTracePoint, TracePoint};
use aya::{Btf, Ebpf, EbpfLoader};
use kwitness_agent::probe::{Loaded, OBJECT, Settings, kernel_layout};
use kwitness_tests::process::Killed;

pub(crate) struct Floor(Vec<String>);

impl Floor {
    pub(crate) fn of_this_kernel() -> Result<Self> {
        Ok(Self(chosen_hooks()?.into_iter().flat_map(|(_, hooks)| hooks).collect()))
    }

    /// The hooks of one capability alone; none: this kernel has none for it.
    pub(crate) fn of_capability(name: &str) -> Result<Option<Self>> {
        let mut hooks = chosen_hooks()?.into_iter();
        Ok(hooks.find(|(capability, _)| *capability == name).map(|(_, hooks)| Self(hooks)))
    }

    /// From execve to everything attached and walked, in milliseconds.
    pub(crate) fn time(&self, tree: &Path) -> Result<f64> {
        let began = Instant::now();
        let started = self.start(tree)?;
        let took = began.elapsed();
        drop(started);
        Ok(took.as_secs_f64() * 1e3)
    }

    /// Starts it; everything is attached until the result is dropped.
    pub(crate) fn start(&self, tree: &Path) -> Result<Killed> {
        let mut command = Command::new("/proc/self/exe");
        command.arg("attach").arg(tree).args(&self.0).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut started = Killed(command.spawn().context("start the floor")?);
        let mut ready = [0];
        let output = started.stdout.as_mut().context("the floor has no output")?;
        std::io::Read::read_exact(output, &mut ready).context("wait for the floor")?;
        Ok(started)
    }
}

/// What serves each capability on this kernel, if any hook does: its programs as the floor takes them.
fn chosen_hooks() -> Result<Vec<(&'static str, Vec<String>)>> {
    let attached = Loaded::load(&Settings::default())?.attach()?;
    let reports = attached.capabilities().reports.iter();
    let chosen = reports.filter_map(|report| Some((report.capability, report.chosen?)));
    let hooks = chosen.map(|(capability, hook)| {
        let programs = hook.programs().map(|program| {
            let is_return = hook.at_return == Some(program);
            format!("{}:{}:{program}:{is_return}", hook.kind, capability.target)
        });
        (capability.name, programs.collect())
    });
    Ok(hooks.collect())
}

/// What the floor's process runs: prints a byte when it is ready, and waits to be ended.
pub(crate) fn floor(tree: &Path, hooks: &[String]) -> Result<()> {
    let btf = Btf::from_sys_fs().context("read the kernel's BTF")?;
    let mut ebpf = EbpfLoader::new()
        .btf(Some(&btf))
        .override_global("LAYOUT", &kernel_layout()?, true)
        .map_max_entries("COUNTERS", u32::try_from(aya::util::nr_cpus().map_err(|(_, error)| error)?)?)
        .load(OBJECT)?;
    for hook in hooks {
        attach(&mut ebpf, &btf, hook).with_context(|| format!("attach {hook}"))?;
    }
    let cgroups = walk(tree)?;
    ensure!(cgroups > 0, "no cgroups below {}", tree.display());
    print!(".");
    std::io::stdout().flush().context("say that it is ready")?;
    loop {
        std::thread::park();
    }
}

fn attach(ebpf: &mut Ebpf, btf: &Btf, hook: &str) -> Result<()> {
    let [kind, target, program, is_return] = hook.split(':').collect::<Vec<_>>()[..] else {
        bail!("not kind:target:program:return")
    };
    let program = ebpf.program_mut(program).context("no such program")?;
    match (kind, is_return == "true") {
        ("raw_tp", _) => {
            let program: &mut RawTracePoint = program.try_into()?;
            program.load()?;
            program.attach(target)?;
        }
        ("tp", _) => {
            let program: &mut TracePoint = program.try_into()?;
            program.load()?;
            program.attach("sched", target)?;
        }
        ("fentry", false) => {
            let program: &mut FEntry = program.try_into()?;
            program.load(target, btf)?;
            program.attach()?;
        }
        ("fentry", true) => {
            let program: &mut FExit = program.try_into()?;
            program.load(target, btf)?;
            program.attach()?;
        }
        ("kprobe", _) => {
            let program: &mut KProbe = program.try_into()?;
            program.load()?;
            program.attach(target, 0)?;
        }
        _ => bail!("unknown kind of hook"),
    }
    Ok(())
}

/// Reads the processes of every cgroup below; how many cgroups there are.
fn walk(directory: &Path) -> Result<usize> {
    let path = directory.join("cgroup.procs");
    fs::read(&path).with_context(|| format!("read {}", path.display()))?;
    let mut cgroups = 1;
    for entry in fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            cgroups += walk(&entry.path())?;
        }
    }
    Ok(cgroups)
}
