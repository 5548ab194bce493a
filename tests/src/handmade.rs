//! Containers as the kernel sees them, made by hand: a cgroup at the place where a kubelet would have it, and in it a
//! process with a mount namespace of its own. For what needs a thousand of them, or none of the runtime.
//!
//! An executable that starts such containers is also their init helper: its `main` calls
//! [`become_container_if_requested`] before anything else.

use std::env;
use std::ffi::CString;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;

use crate::cgroup::{self, TestCgroup};
use crate::environment::Environment;
use crate::pod::new_uid;

/// The cgroup that the process shall enter before it becomes what its command line says.
pub(crate) const CGROUP: &str = "KWITNESS_TEST_CGROUP";

/// Set: it shall have a cgroup namespace of its own.
pub(crate) const OWN_CGROUPS: &str = "KWITNESS_TEST_OWN_CGROUPS";

/// Set: it shall be the first process of a pid namespace of its own.
const OWN_PIDS: &str = "KWITNESS_TEST_OWN_PIDS";

/// Where the pods are, all of one class.
const PODS: &str = "kubepods/burstable";

/// A cgroup for pods, apart from any other on this machine; removed with all below when dropped.
#[derive(Debug)]
pub struct Kubepods {
    root: TestCgroup,
}

#[derive(Debug)]
pub struct HandMade {
    pub id: String,
    pub pod_uid: String,
    cgroup: TestCgroup,
}

/// A container whose process runs until it is killed.
#[derive(Debug)]
pub struct Running {
    container: HandMade,
    process: Child,
}

pub fn new_id() -> Result<String> {
    Ok(format!("{}{}", new_uid()?, new_uid()?).replace('-', ""))
}

impl Kubepods {
    pub fn make(environment: &Environment) -> Result<Self> {
        let path = environment.cgroup(&format!("handmade-{}", std::process::id()));
        let root = TestCgroup::make(&environment.cgroup2, &path)?;
        let pods = root.directory().join(PODS);
        std::fs::create_dir_all(&pods).with_context(|| format!("make {}", pods.display()))?;
        Ok(Self { root })
    }

    /// Makes a container's cgroup, in a pod of its own.
    pub fn container(&self) -> Result<HandMade> {
        self.container_of(&new_uid()?)
    }

    /// Makes a container, with a process that runs until it is killed.
    pub fn run(&self) -> Result<Running> {
        let container = self.container()?;
        let process = container.start("/usr/bin/busybox", &["sleep", "100000"])?;
        Ok(Running { container, process })
    }

    /// The same as [`Self::container`], with a file for its memory limit; [`Kubepods::enable`] comes first.
    pub fn limited_container(&self) -> Result<HandMade> {
        let container = self.container()?;
        let pod = container.cgroup.directory().parent().context("a container's cgroup without a parent")?;
        cgroup::write(pod, "cgroup.subtree_control", "+memory")?;
        Ok(container)
    }

    pub fn container_of(&self, pod_uid: &str) -> Result<HandMade> {
        let id = new_id()?;
        self.container_at(&format!("{PODS}/pod{pod_uid}/{id}"), pod_uid, &id)
    }

    /// Makes the cgroup of a container at that path, which is to be read as that container of that pod.
    pub fn container_at(&self, path: &str, pod_uid: &str, id: &str) -> Result<HandMade> {
        let cgroup = TestCgroup::make(self.root.directory(), path)?;
        Ok(HandMade { id: id.to_owned(), pod_uid: pod_uid.to_owned(), cgroup })
    }

    /// Gives its pods' cgroups these controllers ("+memory"), and so limits.
    pub fn enable(&self, controllers: &str) -> Result<()> {
        let root = self.root.directory();
        let mut directories = [root.to_owned(), root.join("kubepods"), root.join(PODS)].into_iter();
        directories.try_for_each(|directory| cgroup::write(&directory, "cgroup.subtree_control", controllers))
    }

    /// The directory that paths of [`Kubepods::container_at`] are in.
    pub fn directory(&self) -> &Path {
        self.root.directory()
    }

    pub fn id(&self) -> Result<u64> {
        cgroup::id(&self.root.directory().join(PODS))
    }
}

impl HandMade {
    pub fn cgroup(&self) -> &TestCgroup {
        &self.cgroup
    }

    /// Starts its main process, as an OCI runtime does: a helper enters the cgroup, leaves the node's mount namespace
    /// and executes the program. What it prints comes by a pipe.
    pub fn start(&self, program: &str, arguments: &[&str]) -> Result<Child> {
        self.spawn(helper(self.cgroup.directory()).arg(program).args(arguments))
    }

    /// Runs one of busybox' programs to its end, which must have that code, and removes the container, whose id it was.
    pub fn live(self, arguments: &[&str], code: i32) -> Result<String> {
        let status = self.start("/usr/bin/busybox", arguments)?.wait().context("wait for the program")?;
        ensure!(status.code() == Some(code), "container {} ended with {status}", self.id);
        Ok(self.id)
    }

    /// The same as [`Self::start`] in a pid namespace of its own, with its cgroup in that directory; what is started there is its
    /// parent, and ends as it does.
    pub fn start_with_own_pids(&self, cgroup: &Path, program: &str, arguments: &[&str]) -> Result<Child> {
        self.spawn(helper(cgroup).env(OWN_PIDS, "1").arg(program).args(arguments))
    }

    fn spawn(&self, helper: &mut Command) -> Result<Child> {
        let child = helper.stdin(Stdio::null()).stdout(Stdio::piped()).spawn();
        child.with_context(|| format!("start container {}", self.id))
    }
}

/// This executable, which enters a cgroup and becomes what its command line says.
fn helper(cgroup: &Path) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.env(CGROUP, cgroup);
    command
}

impl Running {
    pub fn id(&self) -> &str {
        &self.container.id
    }

    pub fn pid(&self) -> u32 {
        self.process.id()
    }

    /// Kills the process and removes the container, whose id it was.
    pub fn end(mut self) -> Result<String> {
        self.process.kill().context("kill the container")?;
        self.process.wait().context("wait for the container")?;
        Ok(self.container.id)
    }
}

/// In a process that [`HandMade::start`] made: becomes the container's program and does not return. In any other:
/// does nothing.
pub fn become_container_if_requested() -> Result<()> {
    let Some(directory) = env::var_os(CGROUP) else { return Ok(()) };
    // A scan that comes before the program knows an OCI runtime's helper by that.
    prctl::set_name(c"runc:[2:INIT]").context("set the name of the process")?;
    cgroup::enter(Path::new(&directory), std::process::id())?;
    if env::var_os(OWN_PIDS).is_some() {
        unshare(CloneFlags::CLONE_NEWPID).context("unshare the pid namespace")?;
        let mut first = helper(Path::new(&directory));
        let status = first.args(env::args_os().skip(1)).env_remove(OWN_PIDS).status();
        std::process::exit(status.context("start the first process")?.code().unwrap_or(1));
    }
    if env::var_os(OWN_CGROUPS).is_some() {
        unshare(CloneFlags::CLONE_NEWCGROUP).context("unshare the cgroup namespace")?;
    }
    unshare(CloneFlags::CLONE_NEWNS).context("unshare the mount namespace")?;
    let words = env::args_os().skip(1).map(|word| CString::new(word.into_vec()));
    let words = words.collect::<Result<Vec<_>, _>>().context("a NUL in the command line")?;
    let program = words.first().context("no program to execute")?;
    let environment: [&std::ffi::CStr; 0] = [];
    nix::unistd::execve(program, &words, &environment).with_context(|| format!("execute {program:?}"))?;
    Ok(())
}
