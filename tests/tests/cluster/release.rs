//! The chart's release by helm, on a control plane with controllers and scheduler: install, an upgrade in the middle of a storm
//! of containers, uninstall.
//!
//! ```text
//!  install ─▶ ready ─▶ a resize of a Deployment, from outside
//!                   ─▶ storm ─▶ upgrade ─▶ ready ─▶ end of the storm    each life is there, once, in one epoch
//!                                                   uninstall ─▶ nothing is left
//! ```
//!
//! There is no network plugin here: the chart is a copy whose pods are on the node's network, and otherwise the same. There, two pods
//! cannot have one port: each release has another one for its metrics and probes, and the API's is served by the daemon alone.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use aya::programs::loaded_programs;
use kwitness_tests::agent::replay;
use kwitness_tests::control_plane::Extent;
use kwitness_tests::outage::Storm;
use kwitness_tests::prelude::*;
use kwitness_tests::process::run;
use serde_json::Value;

use crate::daemonset::{IMAGE, NAMESPACE, PINS};
use crate::deployment;

const RELEASE: &str = "kwitness";
/// What the documentation says: with `--reuse-values`, a new chart's new values are missing.
const REUSE: &str = "--reset-then-reuse-values";
/// What the chart has on the host by default.
const RUN: &str = "/run/kwitness";
const SOCKET: &str = "/run/kwitness/kwitness.sock";
/// An emulated processor takes its time to remove what is pinned.
const PATIENCE: &str = "--set=terminationGracePeriodSeconds=120";
/// Whose pods are replaced, with all of a control plane on an emulated processor.
const LIMIT: Duration = Duration::from_secs(600);
const LIVES: usize = 20;
/// Between two of them: the upgrade needs the processor, too.
const BETWEEN: Duration = Duration::from_millis(100);

pub(crate) async fn an_upgrade_loses_nothing_and_an_uninstall_leaves_nothing(
    ctx: &Testbed<'_>,
) -> Result<()> {
    // It is another one.
    ctx.stop_api().await;
    let api = ControlPlane::start_as(&ctx.environment, Extent::Whole).await?;
    let done = ctx
        .with_node(async |node| {
            node.import(&ctx.environment.job.join("kwitness.tar"), IMAGE).await?;
            let runtime = Path::new(CONTAINERD_SOCKET);
            let kubelet = Kubelet::join(&ctx.environment, runtime, Pleg::Generic, &api).await?;
            let done = async {
                let release = Release::new(ctx, &api)?;
                let programs = programs();
                release.roll_out(&["install", "--create-namespace"], &[PATIENCE]).await?;
                release.follow_a_deployment(node).await?;
                release.upgrade().await?;
                release.uninstall(&programs).await
            };
            let done = done.await.with_context(|| kubelet.log_tail()).with_context(|| api.log_tail());
            kubelet.retire(node).await?;
            if done.is_err() {
                // The next test's daemon is not to have company in the kernel.
                let mut uninstall = Command::new(ctx.environment.kwitness());
                let said = run(uninstall.args(["uninstall-pins", "--socket", SOCKET]));
                println!("{said:?}");
            }
            done
        })
        .await;
    // Made by the kubelet for the pod.
    let removed = fs::remove_dir_all(RUN).with_context(|| format!("remove {RUN}"));
    done.and(removed)
}

struct Release<'a> {
    ctx: &'a TestContext,
    api: &'a ControlPlane,
    /// The copy of the chart, and helm's home.
    directory: tempfile::TempDir,
}

impl<'a> Release<'a> {
    fn new(ctx: &'a TestContext, api: &'a ControlPlane) -> Result<Self> {
        let directory = tempfile::tempdir_in("/run").context("make a directory for the chart")?;
        let this = Self { ctx, api, directory };
        copy(&ctx.environment.job.join("deploy/helm/kwitness"), &this.chart())?;
        let template = this.chart().join("templates/daemonset.yaml");
        let text = fs::read_to_string(&template).with_context(|| format!("read {}", template.display()))?;
        let on_host = text.replace("      hostPID: true\n", "      hostPID: true\n      hostNetwork: true\n");
        ensure!(on_host != text, "the DaemonSet's template has no hostPID");
        fs::write(&template, on_host).with_context(|| format!("write {}", template.display()))?;
        Ok(this)
    }

    fn chart(&self) -> PathBuf {
        self.directory.path().join("chart")
    }

    fn helm(&self, arguments: &[&str]) -> Result<()> {
        let mut command = Command::new(self.ctx.environment.job.join("bin/helm"));
        command.args(arguments).args(["--namespace", NAMESPACE, "--kubeconfig"]).arg(self.api.kubeconfig());
        command.env("HOME", self.directory.path());
        run(&mut command).map(|said| println!("helm {}:\n{said}", arguments.join(" ")))
    }

    /// Installs or upgrades, and waits until there is one pod, of that release and ready.
    async fn roll_out(&self, subcommand: &[&str], values: &[&str]) -> Result<()> {
        let chart = self.chart();
        let chart = chart.to_str().context("a path in UTF-8")?;
        // The API server would have to put its whole schema together.
        let common = [RELEASE, chart, "--disable-openapi-validation"];
        self.helm(&[subcommand, &common, values].concat())?;
        let mut last = Value::Null;
        let rolled_out = wait_for("the DaemonSet to be ready", LIMIT, async || {
            tokio::time::sleep(PAUSE).await;
            let set = self.get("daemonset", &[RELEASE])?;
            last = set["status"].clone();
            let is_seen = set["metadata"]["generation"] == last["observedGeneration"];
            let is_ready = ["updatedNumberScheduled", "numberReady", "desiredNumberScheduled"];
            // The last one's end comes after the next one's readiness.
            let pods = self.get("pods", &[])?;
            let is_alone = pods["items"].as_array().is_some_and(|pods| pods.len() == 1);
            Ok((is_seen && is_alone && is_ready.iter().all(|field| last[*field] == 1)).then_some(()))
        })
        .await;
        rolled_out.with_context(|| format!("{last:#}"))
    }

    fn get(&self, kind: &str, more: &[&str]) -> Result<Value> {
        let get = ["get", kind, "--namespace", NAMESPACE];
        self.api.json(&[&get[..], more].concat())
    }

    /// From outside, through the API server: the node's daemon, and the pods that controllers have made.
    async fn follow_a_deployment(&self, node: &Node) -> Result<()> {
        let plugin = deployment::plugin(self.ctx, self.api, NAMESPACE)?;
        let said = run(&mut plugin(&["status"]))?;
        ensure!(said.lines().nth(1).is_some_and(|line| line.starts_with(NODE)), "{said}");
        deployment::create(self.api)?;
        let pods = deployment::running(self.api).await?;
        let [first, second] = &*pods else { bail!("not two pods: {pods:?}") };
        deployment::a_resize_is_followed_to_every_pod(self.api, node, [first, second], &plugin).await?;
        // The runtime has programs of its own in the kernel for each of their containers.
        deployment::remove(self.api).await
    }

    async fn upgrade(&self) -> Result<()> {
        let storm = Storm::paced(Kubepods::make(&self.ctx.environment)?, BETWEEN);
        storm.more(LIVES).await?;
        let epoch = epochs(&replay(Path::new(SOCKET)).await?);
        ensure!(epoch.len() == 1 && Path::new(PINS).exists(), "{epoch:?}; is something pinned at {PINS}?");
        self.roll_out(&["upgrade", REUSE], &["--set=config.log.level=debug", "--set=http.port=9778"]).await?;
        storm.more(LIVES).await?;
        let (_kubepods, lived) = storm.end()?;
        let last = lived.last().context("nothing lived")?;
        let seen = wait_for("the last container's end", LIMIT, async || {
            // The next daemon may not serve yet.
            let Ok(seen) = replay(Path::new(SOCKET)).await else { return Ok(None) };
            Ok(seen.milestones(&last.id).contains(&"deleted").then_some(seen))
        })
        .await?;
        println!("{} lives and {} events over the upgrade", lived.len(), seen.0.len());
        let restarts = seen.count("agentRestarted");
        ensure!(restarts == 1, "{restarts} restarts in:\n{seen}");
        ensure!(epochs(&seen) == epoch, "{:?}, not {epoch:?}", epochs(&seen));
        seen.check_unbroken()?;
        ensure!(seen.count("gap") == 0, "a gap in:\n{seen}");
        let by_container = seen.by_container();
        for lived in &lived {
            let own = by_container.get(&lived.id).with_context(|| format!("nothing of {}", lived.id))?;
            own.check_whole(&lived.id)?;
        }
        Ok(())
    }

    /// Before, there were these programs in the kernel.
    async fn uninstall(&self, before: &BTreeSet<(u32, String)>) -> Result<()> {
        ensure!(Path::new(PINS).exists(), "nothing is pinned at {PINS}");
        let pods = self.get("pods", &[])?;
        let pods = pods["items"].as_array().context("no list of pods")?;
        let uids = pods.iter().filter_map(|pod| pod["metadata"]["uid"].as_str());
        let uids: Vec<_> = uids.map(str::to_owned).collect();
        ensure!(!uids.is_empty(), "there are no pods");
        self.helm(&["uninstall", RELEASE])?;

        wait_for("the pods' end", LIMIT, async || {
            tokio::time::sleep(PAUSE).await;
            let pods = self.get("pods", &[])?;
            Ok(pods["items"].as_array().is_some_and(Vec::is_empty).then_some(()))
        })
        .await?;
        let objects = self.get("daemonsets,configmaps,secrets,services,serviceaccounts", &[])?;
        let objects = objects["items"].as_array().into_iter().flatten();
        let names = objects.filter_map(|object| object["metadata"]["name"].as_str());
        let left: Vec<_> = names.filter(|name| !["default", "kube-root-ca.crt"].contains(name)).collect();
        ensure!(left.is_empty(), "left in the namespace: {left:?}");
        // The kubelet removes the cgroups when it looks at them next, and the runtime's own programs go with these.
        let cgroup2 = &self.ctx.environment.cgroup2;
        let gone = wait_for("the end of the pods' cgroups and programs", LIMIT, async || {
            let cgroups = uids.iter().any(|uid| find(cgroup2, uid));
            Ok((!cgroups && programs().is_subset(before)).then_some(()))
        });
        gone.await
            .with_context(|| format!("programs: {:?}", programs().difference(before).collect::<Vec<_>>()))?;
        ensure!(!Path::new(PINS).exists(), "{PINS} is left");
        let entries = fs::read_dir(RUN).with_context(|| format!("list {RUN}"))?;
        let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        let names = names.collect::<Result<Vec<_>>>()?;
        ensure!(names.is_empty(), "left in {RUN}: {names:?}");
        Ok(())
    }
}

fn epochs(seen: &Seen) -> BTreeSet<String> {
    seen.events().filter_map(|event| Some(event.position.as_ref()?.epoch.clone())).collect()
}

fn programs() -> BTreeSet<(u32, String)> {
    // One may go while they are listed.
    let programs = loaded_programs().filter_map(Result::ok);
    programs.map(|program| (program.id(), program.name_as_str().unwrap_or_default().to_owned())).collect()
}

fn find(directory: &Path, uid: &str) -> bool {
    let Ok(entries) = fs::read_dir(directory) else { return false };
    let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    directories.into_iter().any(|entry| {
        entry.file_name().to_string_lossy().replace('_', "-").contains(uid) || find(&entry.path(), uid)
    })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("create {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("list {}", from.display()))? {
        let entry = entry.with_context(|| format!("list {}", from.display()))?;
        let to = to.join(entry.file_name());
        if entry.file_type().context("stat a file of the chart")?.is_dir() {
            copy(&entry.path(), &to)?;
        } else {
            let text = fs::read(entry.path()).with_context(|| format!("read {}", entry.path().display()))?;
            fs::write(&to, text).with_context(|| format!("write {}", to.display()))?;
        }
    }
    Ok(())
}
