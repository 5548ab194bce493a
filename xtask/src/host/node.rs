//! The inner side of a node: makes its namespaces and its root, runs the job, and cleans up.
//!
//! A process of its own, since namespaces are entered once and for all.

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SIGKILL, SIGTERM, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, chdir, pivot_root, sethostname};

use super::cgroups::Cgroups;
use crate::job::MOUNT;
use crate::signals;

/// How long a job may take to end after SIGTERM, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
const PATIENCE: Duration = Duration::from_secs(30);
/// What a job finds in its environment, beside what it sets itself; from ours come only these.
const INHERITED: &[&str] = &["TERM", "COLUMNS", "LINES", "NO_COLOR", "RUST_LOG"];

/// What the outer side reports.
#[derive(Args)]
pub struct Node {
    /// The root, which stays as it is
    #[arg(long)]
    tree: PathBuf,
    /// The job
    #[arg(long)]
    job: PathBuf,
    /// An empty directory to mount on
    #[arg(long)]
    scratch: PathBuf,
    /// Where to report how it ended: `exit STATUS` of the job, `left WHAT` for each thing left behind
    #[arg(long)]
    report: PathBuf,
}

pub fn run(node: &Node) -> Result<()> {
    let mut report =
        File::create(&node.report).with_context(|| format!("create {}", node.report.display()))?;
    signals::catch()?;
    // An outer side that is killed cannot ask us to end; the kernel does.
    prctl::set_pdeathsig(SIGTERM).context("ask for a signal when xtask ends")?;
    prctl::set_child_subreaper(true).context("become the reaper of the job's processes")?;
    unshare(
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWNET
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS,
    )
    .context("make namespaces; is this a container without CAP_SYS_ADMIN?")?;
    enter_root(node)?;
    sethostname("node").context("set the host name")?;
    let up = Command::new("/usr/bin/ip").args(["link", "set", "lo", "up"]).status().context("start ip")?;
    ensure!(up.success(), "`ip link set lo up` ended with {up}");

    let cgroups = Cgroups::make()?;
    let ended = run_job(&cgroups.path());
    kill_children(&mut report)?;
    for cgroup in cgroups.remove()? {
        writeln!(report, "left the cgroup {}", cgroup.display()).context("write the report")?;
    }
    writeln!(report, "exit {}", status(ended?)).context("write the report")
}

fn status(ended: ExitStatus) -> i32 {
    ended.code().unwrap_or_else(|| 128 + ended.signal().unwrap_or(0))
}

/// Changes into the root: the tree below an overlay whose upper part is dropped with the namespace.
///
/// By pivot_root, never chroot: with a chroot, what enters a container's mount namespace comes out in the machine's
/// own root.
fn enter_root(node: &Node) -> Result<()> {
    mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None)?;
    let scratch = &node.scratch;
    mount_at(Some("tmpfs"), scratch, Some("tmpfs"), MsFlags::empty(), None)?;
    let [upper, work, root] = ["upper", "work", "root"].map(|name| scratch.join(name));
    for dir in [&upper, &work, &root] {
        fs::create_dir(dir).with_context(|| format!("create {}", dir.display()))?;
    }
    let layers =
        format!("lowerdir={},upperdir={},workdir={}", node.tree.display(), upper.display(), work.display());
    mount_at(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(&layers))?;

    let none = MsFlags::empty();
    mount_at(Some("proc"), &root.join("proc"), Some("proc"), none, None)?;
    for shared in ["sys", "dev"] {
        let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
        mount_at(Some(&format!("/{shared}")), &root.join(shared), None, bind, None)?;
    }
    let tracing = mount_at(Some("tracefs"), &root.join("sys/kernel/tracing"), Some("tracefs"), none, None);
    // Busy: the machine has it there, and so /sys brought it along.
    tracing.or_else(|error| if error.downcast_ref() == Some(&Errno::EBUSY) { Ok(()) } else { Err(error) })?;
    mount_at(Some("bpf"), &root.join("sys/fs/bpf"), Some("bpf"), none, None)?;
    for own in ["run", "tmp"] {
        mount_at(Some("tmpfs"), &root.join(own), Some("tmpfs"), none, None)?;
    }
    let job = root.join(MOUNT.trim_start_matches('/'));
    fs::create_dir(&job).with_context(|| format!("create {}", job.display()))?;
    let from = node.job.to_str().with_context(|| format!("{} is not UTF-8", node.job.display()))?;
    mount_at(Some(from), &job, None, MsFlags::MS_BIND, None)?;
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
    mount_at(None, &job, None, read_only, None)?;

    chdir(&root).with_context(|| format!("chdir to {}", root.display()))?;
    // The old root goes on top of the new one, and away.
    pivot_root(".", ".").context("pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).context("unmount the machine's root")?;
    chdir("/").context("chdir to the new root")?;
    // As systemd does on a real node: runtimes expect it.
    mount_at(None, Path::new("/"), None, MsFlags::MS_REC | MsFlags::MS_SHARED, None)
}

fn mount_at(
    from: Option<&str>,
    at: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: Option<&str>,
) -> Result<()> {
    mount(from, at, kind, flags, data).with_context(|| {
        let what = from.or(data).unwrap_or("mount flags");
        format!("mount {what} at {}", at.display())
    })
}

fn run_job(cgroup: &str) -> Result<ExitStatus> {
    let inherited = INHERITED.iter().filter_map(|name| Some((*name, std::env::var_os(name)?)));
    let mut job = Command::new("/usr/bin/sh")
        .arg(format!("{MOUNT}/run"))
        .current_dir("/tmp")
        .env_clear()
        .envs(inherited)
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("HOME", "/root")
        .env("KWITNESS_CGROUP", cgroup)
        .spawn()
        .context("start the job")?;
    let pid = Pid::from_raw(i32::try_from(job.id())?);
    let mut signalled: Option<Instant> = None;
    loop {
        if let Some(status) = job.try_wait().context("wait for the job")? {
            return Ok(status);
        }
        match signalled {
            None if signals::caught() => {
                signalled = Some(Instant::now());
                // From a terminal the job has its own Ctrl-C already; a second request to end does no harm.
                kill(pid, SIGTERM).context("ask the job to end")?;
            }
            Some(since) if since.elapsed() > GRACE => kill(pid, SIGKILL).context("kill the job")?,
            _ => {}
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Kills children until there are none: what a killed one leaves becomes our child. No process id can have been
/// reused by another process, since only we can free those of our children.
fn kill_children(report: &mut File) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        while let Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) =
            waitpid(None::<Pid>, Some(WaitPidFlag::WNOHANG))
        {}
        let children = children()?;
        if children.is_empty() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            for pid in children {
                let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                writeln!(report, "left the process {pid} {}", name.trim()).context("write the report")?;
            }
            return Ok(());
        }
        for pid in children {
            match kill(pid, SIGKILL) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => return Err(error).with_context(|| format!("kill {pid}")),
            }
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn children() -> Result<Vec<Pid>> {
    let path = format!("/proc/self/task/{}/children", nix::unistd::gettid());
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    text.split_whitespace().map(|pid| Ok(Pid::from_raw(pid.parse().context("read a process id")?))).collect()
}
