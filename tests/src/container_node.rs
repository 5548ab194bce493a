//! A node that is itself a container, as kind and k3d make them: processes in mount, cgroup and pid namespaces of their own, whose
//! cgroup is the root of all that they see of the hierarchy. Made by hand, without a container runtime.
//!
//! An executable that starts such nodes is also their first process: its `main` calls [`become_node_if_requested`] before anything
//! else.

use std::env;
use std::fs::{self, File, Permissions};
use std::io::{self, BufRead as _, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, anyhow, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};

use crate::cgroup::{self, TestCgroup};
use crate::environment::{Environment, find_cgroup2};
use crate::handmade::{CGROUP, HandMade, Kubepods, OWN_CGROUPS};
use crate::process;

/// The cgroup that shall be the node's, in a process that shall become one.
const NODE: &str = "KWITNESS_TEST_NODE";
/// What the node's first process prints once all is in place.
const READY: &str = "the node is ready";
const INIT: &str = "init";
const SERVICES: &str = "services";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Daemon {
    /// A service, in the node's own namespaces.
    Service,
    /// A pod with `hostPID` and the node's `/sys/fs/cgroup`: its cgroup namespace is its own.
    Pod,
}

/// A running node; it ends, with all its processes, when dropped.
#[derive(Debug)]
pub struct ContainerNode {
    /// What programs on the node find. `kwitness` there starts as it would on the node.
    pub environment: Environment,
    /// What the test finds of it.
    outside: Environment,
    init: Child,
    _files: tempfile::TempDir,
    top: TestCgroup,
}

impl ContainerNode {
    pub fn start(environment: &Environment, name: &str, daemon: Daemon) -> Result<Self> {
        let subtree = environment.cgroup(&format!("node-{name}-{}", std::process::id()));
        let top = TestCgroup::make(&environment.cgroup2, &subtree)?;
        let files = process::directory("node")?;
        let outside = Environment { subtree: Some(subtree), ..environment.clone() };
        let environment = Environment { subtree: None, job: files.path().to_owned(), ..environment.clone() };
        install(&outside, &environment, daemon).context("install kwitness on the node")?;
        let mut command = Command::new("/proc/self/exe");
        command.env(NODE, top.directory()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut init = command.spawn().context("start the node")?;
        let output = init.stdout.take().context("the node has no standard output")?;
        let node = Self { environment, outside, init, _files: files, top };
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line).context("read what the node says")?;
        ensure!(line.trim() == READY, "the node does not start: `{line}`");
        Ok(node)
    }

    pub fn kubepods(&self) -> Result<Kubepods> {
        Kubepods::make(&self.outside)
    }

    /// A cgroup's path on the node.
    pub fn path_of(&self, directory: &Path) -> Result<String> {
        let path = directory.strip_prefix(self.top.directory());
        let path = path.with_context(|| format!("{} is not the node's", directory.display()))?;
        Ok(format!("/{}", path.display()))
    }

    /// A cgroup's directory on the node.
    pub fn directory_of(&self, directory: &Path) -> Result<PathBuf> {
        Ok(self.environment.cgroup2.join(self.path_of(directory)?.trim_start_matches('/')))
    }

    /// Starts a container's main process on the node, the first of a pid namespace of its own.
    pub fn start_container(&self, container: &HandMade, program: &str, arguments: &[&str]) -> Result<Child> {
        let directory = self.directory_of(container.cgroup().directory())?;
        self.inside(|| container.start_with_own_pids(&directory, program, arguments))
    }

    /// Runs `body` on the node, in a thread that sees its files, and whose children are the node's processes. It cannot start
    /// threads.
    pub fn inside<T: Send>(&self, body: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        let open = |name: &str| {
            let path = format!("/proc/{}/ns/{name}", self.init.id());
            File::open(&path).with_context(|| format!("open {path}"))
        };
        // The parent of the first process has all of its namespaces, but for the pids.
        let pids = open("pid_for_children")?;
        let (cgroups, mounts) = (open("cgroup")?, open("mnt")?);
        let _entered = Entered::enter(&self.outside.cgroup2, &self.top.directory().join(SERVICES))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // A mount namespace is entered by whoever shares its directories with no other.
                unshare(CloneFlags::CLONE_FS).context("unshare the thread's directories")?;
                setns(&pids, CloneFlags::CLONE_NEWPID).context("enter the node's pid namespace")?;
                setns(&cgroups, CloneFlags::CLONE_NEWCGROUP).context("enter its cgroup namespace")?;
                setns(&mounts, CloneFlags::CLONE_NEWNS).context("enter its mount namespace")?;
                body()
            });
            thread.join().unwrap_or_else(|_| Err(anyhow!("the thread on the node panicked")))
        })
    }
}

impl Drop for ContainerNode {
    fn drop(&mut self) {
        // The first process ends with its input; both fail only for a node that has ended.
        drop(self.init.stdin.take());
        let _ = self.init.wait();
    }
}

/// This process is in another cgroup until this is dropped. With `nsdelegate`, as hierarchies are mounted, a process moves between
/// cgroups that its namespace shows only: a child begins in one of the node's.
struct Entered {
    earlier: PathBuf,
}

impl Entered {
    fn enter(cgroup2: &Path, directory: &Path) -> Result<Self> {
        let earlier = process::cgroup_path(std::process::id())?;
        cgroup::enter(directory, std::process::id())?;
        Ok(Self { earlier: cgroup2.join(earlier.trim_start_matches('/')) })
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        if let Err(error) = cgroup::enter(&self.earlier, std::process::id()) {
            eprintln!("{error:#}");
        }
    }
}

/// Puts a program there that enters the daemon's cgroup, and its namespaces, before it becomes kwitness.
fn install(outside: &Environment, node: &Environment, daemon: Daemon) -> Result<()> {
    let program = node.kwitness();
    fs::create_dir_all(program.parent().context("a program in no directory")?)?;
    let helper = env::current_exe()?;
    let cgroup = node.cgroup2.join(SERVICES);
    let own = if daemon == Daemon::Pod { format!("export {OWN_CGROUPS}=1\n") } else { String::new() };
    let script = format!(
        "#!/bin/sh\nexport {CGROUP}='{}'\n{own}exec '{}' '{}' \"$@\"\n",
        cgroup.display(),
        helper.display(),
        outside.kwitness().display()
    );
    fs::write(&program, script)?;
    fs::set_permissions(&program, Permissions::from_mode(0o755))?;
    Ok(())
}

/// In a process that [`ContainerNode::start`] made: becomes the node and does not return. In any other: does nothing.
pub fn become_node_if_requested() -> Result<()> {
    let Some(top) = env::var_os(NODE) else { return Ok(()) };
    if std::process::id() == 1 {
        be_first()?;
        std::process::exit(0);
    }
    cgroup::enter(Path::new(&top), std::process::id())?;
    unshare(CloneFlags::CLONE_NEWCGROUP | CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
        .context("unshare the node's namespaces")?;
    let status = Command::new("/proc/self/exe").status().context("start the first process")?;
    std::process::exit(status.code().unwrap_or(1));
}

/// The node's first process: mounts what its namespaces are seen by, and stays until its input ends.
fn be_first() -> Result<()> {
    const NONE: Option<&str> = None;
    let (cgroup2, _) = find_cgroup2()?;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("make mounts private")?;
    // The last first: it may be mounted over another.
    for (point, kind) in process::mounts()?.into_iter().rev().filter(|(_, kind)| kind == "cgroup2") {
        umount2(&point, MntFlags::MNT_DETACH)
            .with_context(|| format!("unmount {kind} {}", point.display()))?;
    }
    mount(Some("cgroup2"), &cgroup2, Some("cgroup2"), MsFlags::empty(), NONE).context("mount cgroup2")?;
    mount(Some("proc"), "/proc", Some("proc"), MsFlags::empty(), NONE).context("mount procfs")?;
    for name in [INIT, SERVICES] {
        fs::create_dir(cgroup2.join(name)).with_context(|| format!("make the cgroup {name}"))?;
    }
    cgroup::enter(&cgroup2.join(INIT), std::process::id())?;
    println!("{READY}");
    io::copy(&mut io::stdin().lock(), &mut io::sink()).context("wait for the end of the input")?;
    Ok(())
}
