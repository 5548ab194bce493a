//! Nodes that are themselves containers, several on one kernel: each daemon sees its node's pods and nothing else, with the paths
//! and pids that the node has.

use std::fs;
use std::path::Path;
use std::process::Command;

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Exec, Exited, Process, Started};
use kwitness_tests::container_node::{ContainerNode, Daemon};
use kwitness_tests::handmade::new_id;
use kwitness_tests::pod::new_uid;
use kwitness_tests::prelude::*;
use kwitness_tests::process::Killed;
use nix::sys::signal::Signal;

const BUSYBOX: &str = "/usr/bin/busybox";
/// A container's program: waits for another one to end, and exits with code 7.
const WAIT: &str = "/usr/bin/busybox sleep 1000; exit 7";
const LIMIT: Duration = Duration::from_secs(60);

/// A running container, with what its processes are called.
struct Running {
    /// What has started it; a node cannot end before its parent, which is outside, has waited for it.
    helper: Killed,
    container: HandMade,
    /// The helper's id on the node.
    helper_id: u32,
    /// The main process's, and that of the program that it waits for: outside, and on the node.
    main: (u32, u32),
    waited_for: (u32, u32),
}

impl Running {
    async fn start(node: &ContainerNode, container: HandMade) -> Result<Self> {
        let helper = Killed(node.start_container(&container, BUSYBOX, &["sh", "-c", WAIT])?);
        let processes = wait_for("the container's processes", LIMIT, async || {
            let mut processes: [Option<(u32, u32)>; 3] = [None; 3];
            for pid in cgroup::pids(container.cgroup().directory())? {
                // Here, on the node, and in the container, where the main process is the first.
                match process::ids(pid).as_deref() {
                    Ok(&[outside, on_node]) => processes[0] = Some((outside, on_node)),
                    Ok(&[outside, on_node, 1]) => processes[1] = Some((outside, on_node)),
                    Ok(&[outside, on_node, _]) => processes[2] = Some((outside, on_node)),
                    // Gone meanwhile.
                    _ => {}
                }
            }
            let [Some((_, helper_id)), Some(main), Some(waited_for)] = processes else { return Ok(None) };
            Ok(Some((helper_id, main, waited_for)))
        });
        let (helper_id, main, waited_for) = processes.await?;
        let command = node.inside(|| {
            let path = format!("/proc/{}/cmdline", main.1);
            fs::read_to_string(&path).with_context(|| format!("read {path} on the node"))
        })?;
        ensure!(command.contains(WAIT), "on the node, process {} is {command:?}", main.1);
        Ok(Self { helper, container, helper_id, main, waited_for })
    }

    /// Ends the program that the main process waits for, and so the container.
    fn end(&mut self) -> Result<()> {
        process::signal(self.waited_for.0, Signal::SIGKILL)?;
        let status = self.helper.wait().context("wait for the container")?;
        ensure!(status.code() == Some(7), "the container: {status}");
        Ok(())
    }

    /// That both processes ended as the node calls them.
    fn check_exits(&self, seen: &Seen) -> Result<()> {
        let exits: Vec<_> = seen
            .of(&self.container.id)
            .filter_map(|event| match &event.kind {
                Some(Kind::Exited(Exited { process, status, .. })) => {
                    Some((process.as_ref()?.pid, End::of(status.as_ref()?)?))
                }
                _ => None,
            })
            .collect();
        for expected in [(self.waited_for.1, End::Signal(9)), (self.main.1, End::Code(7))] {
            ensure!(exits.contains(&expected), "{expected:?} is not in {exits:?}");
        }
        Ok(())
    }
}

struct Watched {
    watcher: Watcher,
    agent: Agent,
    earlier: Running,
    ids: Vec<String>,
    kubepods: Kubepods,
    node: ContainerNode,
}

impl Watched {
    async fn start(ctx: &TestContext, name: &str, daemon: Daemon) -> Result<Self> {
        let node = ContainerNode::start(&ctx.environment, name, daemon)?;
        let kubepods = node.kubepods()?;
        let earlier = Running::start(&node, kubepods.container()?).await?;
        let mut agent = node.inside(|| Agent::spawn(&node.environment, &[]))?;
        agent.wait_ready().await?;
        let watcher = agent.watch(from_now()).await?;
        let ids = vec![earlier.container.id.clone()];
        Ok(Self { watcher, agent, earlier, ids, kubepods, node })
    }

    /// That the daemon has found the container that ran before it, and no other.
    async fn check_scan(&self) -> Result<()> {
        let found = self.agent.list().await?.containers;
        let [state] = &found[..] else { anyhow::bail!("not one container, but {found:?}") };
        let container = state.container.as_ref().context("a state without a container")?;
        let path = self.node.path_of(self.earlier.container.cgroup().directory())?;
        ensure!(container.id == self.earlier.container.id && container.cgroup_path == path, "{container:?}");
        ensure!(state.main.as_ref().map(|main| main.pid) == Some(self.earlier.main.1), "{state:?}");
        Ok(())
    }

    /// Makes a container, below a parent of pods that is as new, by a process of the node; that one's id there.
    fn make(&self) -> Result<(HandMade, u32)> {
        let (uid, id) = (new_uid()?, new_id()?);
        let path = format!("late-{uid}/kubepods/burstable/pod{uid}/{id}");
        let directory = self.node.directory_of(&self.kubepods.directory().join(&path))?;
        let output = self.node.inside(|| {
            let mut command = Command::new(BUSYBOX);
            command.args(["sh", "-c", "echo $$; exec /usr/bin/busybox mkdir -p \"$0\""]).arg(&directory);
            process::run(&mut command)
        })?;
        let maker = output.trim().parse().with_context(|| format!("`{output}` is no pid"))?;
        Ok((self.kubepods.container_at(&path, &uid, &id)?, maker))
    }

    /// Lets a container live and go, and checks how each step is reported.
    async fn a_life(&mut self) -> Result<()> {
        let (container, maker) = self.make()?;
        let path = self.node.path_of(container.cgroup().directory())?;
        let id = container.id.clone();
        self.ids.push(id.clone());
        let mut running = Running::start(&self.node, container).await?;
        running.end()?;
        let (main, waited_for) = (running.main.1, running.waited_for.1);
        let stopped = self.watcher.wait_until("the container's end", |seen| seen.has(&id, "stopped")).await?;
        running.check_exits(&stopped).with_context(|| format!("in:\n{stopped}"))?;
        let helper = running.helper_id;
        drop(running);
        let seen = self.watcher.wait_until("its removal", |seen| seen.has(&id, "deleted")).await?;
        seen.check_complete()?;
        for event in seen.of(&id) {
            let subject = event.container.as_ref().context("an event without a container")?;
            ensure!(subject.cgroup_path == path, "{} is not {path}", subject.cgroup_path);
            let is = |process: &Option<Process>, pid, parent_pid| {
                process.as_ref().is_some_and(|process| (process.pid, process.parent_pid) == (pid, parent_pid))
            };
            let is_right = match &event.kind {
                Some(Kind::Created(created)) => created.actor.as_ref().map(|actor| actor.pid) == Some(maker),
                Some(Kind::Started(Started { process, .. })) => is(process, main, helper),
                Some(Kind::Exec(Exec { process, program })) if program == BUSYBOX => {
                    is(process, waited_for, main)
                }
                // The helper starts itself once more.
                Some(Kind::Exec(Exec { process, .. })) => is(process, main, helper),
                // By the test, which is no process of the node.
                Some(Kind::Deleted(deleted)) => deleted.actor.as_ref().map(|actor| actor.pid) == Some(0),
                _ => true,
            };
            ensure!(
                is_right,
                "the node has helper {helper}, main {main}, child {waited_for}, maker {maker}, but {event:?}"
            );
        }
        seen.check_whole(&id)
    }

    /// Ends the container that ran before the daemon, and the daemon, which has reported nothing of another node.
    async fn end(mut self) -> Result<()> {
        self.earlier.end()?;
        let id = self.earlier.container.id.clone();
        let seen = self.watcher.wait_until("the end of the first", |seen| seen.has(&id, "stopped")).await?;
        self.earlier.check_exits(&seen).with_context(|| format!("in:\n{seen}"))?;
        for event in seen.events() {
            let is_own = event.container.as_ref().is_some_and(|container| self.ids.contains(&container.id));
            ensure!(is_own, "not of this node: {event:?}");
        }
        self.agent.stop()
    }
}

pub(crate) async fn two_nodes_on_one_kernel_see_each_their_own_pods(ctx: &TestContext) -> Result<()> {
    let mut one = Watched::start(ctx, "one", Daemon::Service).await?;
    let mut other = Watched::start(ctx, "other", Daemon::Pod).await?;
    one.check_scan().await?;
    other.check_scan().await?;
    // What the other's containers did came before.
    one.a_life().await?;
    other.a_life().await?;
    one.a_life().await?;
    other.a_life().await?;
    one.end().await?;
    other.end().await
}

pub(crate) async fn the_doctor_knows_a_node_that_is_a_container(ctx: &TestContext) -> Result<()> {
    let node = ContainerNode::start(&ctx.environment, "doctor", Daemon::Pod)?;
    let report = node.inside(|| {
        let mut doctor = Command::new(node.environment.kwitness());
        process::run(doctor.args(["doctor", "-o", "json", "--socket", "/run/kwitness-is-not-here.sock"]))
    })?;
    let report: serde_json::Value = serde_json::from_str(&report).context("parse the report")?;
    ensure!(report["healthy"] == true, "{report:#}");
    for name in ["cgroup v2", "pid namespace"] {
        let checks = report["checks"].as_array().context("no checks")?;
        let check = checks.iter().find(|check| check["name"] == name);
        let found = check.and_then(|check| check["found"].as_str()).with_context(|| format!("no {name}"))?;
        ensure!(found.contains("the node is a container"), "{name}: {found}");
    }
    Ok(())
}

/// A pod without `hostPID` has a pid namespace and a `/proc` of its own, in which no other process of the node is.
pub(crate) async fn a_pod_without_the_nodes_pids_is_refused(ctx: &TestContext) -> Result<()> {
    const START: &str =
        "/usr/bin/busybox mount -t proc proc /proc && exec \"$0\" daemon --socket \"$1\" 2>&1";
    let node = ContainerNode::start(&ctx.environment, "pids", Daemon::Pod)?;
    let kubepods = node.kubepods()?;
    let container = kubepods.container()?;
    let directory = tempfile::tempdir_in("/run").context("make a directory")?;
    let socket = directory.path().join("kwitness.sock");
    let program = ctx.environment.kwitness();
    let arguments = ["-c", START, text(&program)?, text(&socket)?];
    let daemon = node.start_container(&container, "/bin/sh", &arguments)?;
    let ended = tokio::task::spawn_blocking(|| daemon.wait_with_output());
    let ended = tokio::time::timeout(LIMIT, ended).await.context("the daemon does not end")??;
    let output = ended.context("read the daemon's output")?;
    let said = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.code() == Some(1), "it ended with {}:\n{said}", output.status);
    for words in ["not in the node's pid namespace", "hostPID: true", "kernel.pid_namespace"] {
        ensure!(said.contains(words), "`{words}` is not in:\n{said}");
    }
    Ok(())
}

fn text(path: &Path) -> Result<&str> {
    path.to_str().context("a path in UTF-8")
}
