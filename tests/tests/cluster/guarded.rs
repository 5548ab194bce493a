//! The guard with a kubelet, by the kind of pod that it raises, and by what keeps it from that.
//!
//! Every pod of a test has another name, none the beginning of another's, and stays until the cluster ends.

use std::path::{Path, PathBuf};
use std::process::Command;

use kwitness_guard::status::Status;
use kwitness_tests::cluster_node::PodRequest;
use kwitness_tests::guarded::GuardedNode;
use kwitness_tests::prelude::*;
use nix::sys::signal::Signal;
use procfs::{Current as _, Meminfo};
use serde_json::{Value, json};

use crate::join::SOON;

const MIB: u64 = 1 << 20;
const LIMIT: u64 = 64 * MIB;
const RAISED: u64 = 128 * MIB;
/// In an emulated guest a raise may come after the hold: it counts all the same, for what is taken stays below the limit.
const POLICY: &str = "[[rule]]\nthreshold = \"60%\"\nstep = \"64Mi\"\nceiling = \"128Mi\"\n\
                      longest_hold = \"10s\"\ncool_down = \"10s\"\n";
/// What one container takes, in bytes: more than the threshold of its own limit.
const ALONE: u64 = 48_000_000;
/// What each of two containers takes: less than that, and together more than the threshold of a pod's limit that is as high.
const OF_TWO: u64 = 25_000_000;

/// A pod of a test.
struct Pod<'a> {
    cluster: &'a GuardedNode,
    name: &'a str,
    out: Out,
}

impl<'a> Pod<'a> {
    /// Creates it, as `edit` makes it of one with one container, and waits until all of that is armed: a container as
    /// `default/POD/CONTAINER`, a pod as `default/POD`.
    async fn start(
        cluster: &'a GuardedNode,
        name: &'a str,
        edit: impl FnOnce(&mut Value),
        armed: &[&str],
    ) -> Result<Self> {
        let out = Out::make()?;
        let line = "mkfifo /out/main; exec tail </out/main >/dev/null";
        let resources =
            json!({ "requests": { "memory": "16Mi" }, "limits": { "memory": LIMIT.to_string() } });
        let request = PodRequest { name, line, directory: out.path(), resources, mounts: &[] };
        let mut object = request.object();
        edit(&mut object);
        cluster.api.create(&object)?;
        let is_armed = |name: &&str, status: &Status| status.armed.iter().any(|armed| armed.name == *name);
        let what = format!("{armed:?} to be armed");
        let all = |status: &Status| armed.iter().all(|name| is_armed(name, status)).then_some(());
        cluster.guard.wait(&what, all).await?;
        Ok(Self { cluster, name, out })
    }

    /// Fills that container's pipe from outside of it, and keeps it open.
    async fn take(&self, container: &str, bytes: u64) -> Result<Managed> {
        self.out.wait(container, SOON).await?;
        let at = self.out.path().display();
        let line = format!(
            "exec 3>{at}/{container}; head -c {bytes} /dev/zero >&3; : >{at}/taken-{container}; exec sleep 100000"
        );
        let mut command = Command::new("sh");
        command.args(["-c", &line]);
        Managed::spawn("feeder", command, &self.out.at(&format!("log-{container}")))
    }

    /// Waits until the container has taken all of it: it has been continued.
    async fn taken(&self, container: &str) -> Result<()> {
        self.out.wait(&format!("taken-{container}"), SOON).await
    }

    /// The directory of the cgroup that is armed by that name.
    async fn cgroup(&self, container: &str) -> Result<PathBuf> {
        self.cluster.node.cgroup_of(&self.container_id(container).await?).await
    }

    /// Its spec, as the API has it.
    fn spec(&self) -> Result<Value> {
        Ok(self.cluster.api.get("pod", self.name)?["spec"].take())
    }

    /// Why holds of its container ended without a raise.
    async fn refusals(&self, container_id: &str) -> Result<Vec<String>> {
        let ended = self.cluster.guard.wait("the end of each hold", |status| {
            status.armed.iter().all(|armed| armed.held.is_empty()).then(|| status.history.clone())
        });
        let of_container = ended.await?.into_iter().filter(|ended| ended.container_id == container_id);
        Ok(of_container.filter_map(|ended| ended.refused).collect())
    }

    async fn container_id(&self, container: &str) -> Result<String> {
        let name = format!("default/{}/{container}", self.name);
        let status = self.cluster.guard.status().await?;
        let armed = status.armed.iter().find(|armed| armed.name == name);
        Ok(armed.with_context(|| format!("{name} is not armed: {status:?}"))?.container_id.clone())
    }
}

async fn wait_limit(directory: &Path, limit: u64) -> Result<()> {
    cgroup::wait_number(directory, "memory.max", SOON, |now| now == limit).await.map(drop)
}

/// Guaranteed; with a limit of the pod's own that its container has, too; with one that two containers share.
pub(crate) async fn every_kind_of_pod_is_raised(ctx: &TestContext) -> Result<()> {
    let cluster = GuardedNode::start(&ctx.environment, POLICY).await?;
    let done = async {
        guaranteed(&cluster).await.context("a Guaranteed pod")?;
        whole(&cluster).await.context("a container without a limit of its own")?;
        shared(&cluster).await.context("a pod's limit that is hit first")
    };
    let done = done.await;
    cluster.explain(done)?;
    cluster.stop().await
}

async fn guaranteed(cluster: &GuardedNode) -> Result<()> {
    let pod = Pod::start(cluster, "guaranteed", guaranteed_of("64Mi"), &["default/guaranteed/main"]).await?;
    let cgroup = pod.cgroup("main").await?;
    let _feeder = pod.take("main", ALONE).await?;
    wait_limit(&cgroup, RAISED).await?;
    pod.taken("main").await?;
    let raised = &pod.spec()?["containers"][0]["resources"];
    ensure!(raised["requests"]["memory"] == "128Mi" && raised["limits"]["memory"] == "128Mi", "{raised}");
    let class = cluster.status("guaranteed")?["qosClass"].take();
    ensure!(class == "Guaranteed", "its class is {class}");
    ensure!(memory_event(&cgroup, "oom_kill")? == 0, "OOM-killed");
    Ok(())
}

/// The kubelet gives its container the limit of the pod.
async fn whole(cluster: &GuardedNode) -> Result<()> {
    let edit = |pod: &mut Value| {
        pod["spec"]["containers"][0]["resources"] = json!({});
        pod["spec"]["resources"] =
            json!({ "requests": { "memory": "16Mi" }, "limits": { "memory": "64Mi" } });
    };
    let pod = Pod::start(cluster, "whole", edit, &["default/whole/main"]).await?;
    let cgroup = pod.cgroup("main").await?;
    wait_limit(&cgroup, LIMIT).await?;
    let _feeder = pod.take("main", ALONE).await?;
    wait_limit(&cgroup, RAISED).await?;
    pod.taken("main").await?;
    let spec = pod.spec()?;
    ensure!(spec["resources"]["limits"]["memory"] == "128Mi", "{spec}");
    ensure!(spec["containers"][0]["resources"]["limits"].is_null(), "{spec}");
    ensure!(memory_event(&cgroup, "oom_kill")? == 0, "OOM-killed");
    Ok(())
}

/// No container comes near the limit that the kubelet gives it.
async fn shared(cluster: &GuardedNode) -> Result<()> {
    let edit = |pod: &mut Value| {
        pod["spec"]["resources"] =
            json!({ "requests": { "memory": "16Mi" }, "limits": { "memory": "64Mi" } });
        let containers = &mut pod["spec"]["containers"];
        containers[0]["resources"] = json!({});
        let mut other = containers[0].clone();
        other["name"] = json!("other");
        other["command"][2] = json!("mkfifo /out/other; exec tail </out/other >/dev/null");
        *containers = json!([containers[0].take(), other]);
    };
    let all = ["default/shared/main", "default/shared/other", "default/shared"];
    let pod = Pod::start(cluster, "shared", edit, &all).await?;
    let cgroup = pod.cgroup("main").await?;
    let of_pod = cgroup.parent().context("the container's cgroup is in its pod's")?;
    wait_limit(of_pod, LIMIT).await?;
    let _main = pod.take("main", OF_TWO).await?;
    pod.taken("main").await?;
    let _other = pod.take("other", OF_TWO).await?;
    wait_limit(of_pod, RAISED).await?;
    pod.taken("other").await?;
    let spec = pod.spec()?;
    ensure!(spec["resources"]["limits"]["memory"] == "128Mi", "{spec}");
    let raises = cluster.guard.status().await?.armed;
    let raises: Vec<_> = raises.iter().map(|armed| (&*armed.name, armed.raises)).collect();
    let of_shared = |name| raises.contains(&(name, 0));
    ensure!(of_shared("default/shared/main") && of_shared("default/shared/other"), "{raises:?}");
    ensure!(raises.contains(&("default/shared", 1)), "{raises:?}");
    for container in [cgroup.as_path(), &pod.cgroup("other").await?] {
        ensure!(memory_event(container, "oom_kill")? == 0, "OOM-killed");
    }
    Ok(())
}

/// What the node has for pods in the test of that, in KiB.
const ALLOCATABLE: u64 = 256 << 10;

/// More than the node has in all, and more than other pods leave: everything runs again.
pub(crate) async fn what_the_node_has_no_room_for_ends_the_hold(ctx: &TestContext) -> Result<()> {
    let total = Meminfo::current().context("read /proc/meminfo")?.mem_total >> 10;
    let rest = total.checked_sub(ALLOCATABLE).context("this machine has too little memory")?;
    let settings = [
        ("systemReserved".to_owned(), json!({ "memory": format!("{rest}Ki") })),
        ("evictionHard".to_owned(), json!({ "imagefs.available": "0%", "nodefs.available": "0%" })),
        // As a limit of all pods it would refuse the raise before the API does.
        ("enforceNodeAllocatable".to_owned(), json!(["none"])),
    ];
    let huge = POLICY.replace("threshold", "pod = \"huge\"\nthreshold");
    let huge = huge.replace("64Mi", "224Mi").replace("128Mi", "288Mi");
    let policy = huge + POLICY;
    let cluster = GuardedNode::start_with(&ctx.environment, &policy, settings.into_iter().collect()).await?;
    let done = async {
        let pod = Pod::start(&cluster, "huge", guaranteed_of("64Mi"), &["default/huge/main"]).await?;
        let _huge = refused(&pod, &["resizeForbidden"]).await.context("more than the node has")?;
        // It takes nothing.
        let _beside = Pod::start(&cluster, "beside", guaranteed_of("96Mi"), &["default/beside/main"]).await?;
        let pod = Pod::start(&cluster, "late", guaranteed_of("64Mi"), &["default/late/main"]).await?;
        // In an emulated guest the kubelet may need longer than the hold to say so.
        let _late = refused(&pod, &["resizeDeferred", "tooLate"]).await.context("more than others leave")?;
        let taken_back = async || {
            let resources = pod.spec()?["containers"][0]["resources"].take();
            Ok(["limits", "requests"].iter().all(|of| resources[of]["memory"] == "64Mi").then_some(()))
        };
        wait_for("the spec to have the limit that is in force again", SOON, taken_back).await
    };
    let done = done.await;
    cluster.explain(done)?;
    cluster.stop().await
}

/// What makes a pod Guaranteed, with that much memory.
fn guaranteed_of(memory: &str) -> impl FnOnce(&mut Value) {
    let equal = json!({ "memory": memory, "cpu": "10m" });
    move |pod| pod["spec"]["containers"][0]["resources"] = json!({ "requests": equal, "limits": equal })
}

/// A LimitRange, a ResourceQuota, an API server that is away, and a pod that is being deleted: everything runs again.
pub(crate) async fn what_the_api_refuses_ends_the_hold(ctx: &TestContext) -> Result<()> {
    let cluster = GuardedNode::start(&ctx.environment, POLICY).await?;
    let done = async {
        limited(&cluster).await.context("a LimitRange")?;
        quota(&cluster).await.context("a ResourceQuota")?;
        offline(&cluster).await.context("an API server that is away")?;
        deleted(&cluster).await.context("a pod that is being deleted")
    };
    let done = done.await;
    cluster.explain(done)?;
    cluster.stop().await
}

/// A pod whose raise does not come, for one of these reasons. It ends with what fills it.
async fn refused(pod: &Pod<'_>, reasons: &[&str]) -> Result<Managed> {
    let (id, cgroup) = (pod.container_id("main").await?, pod.cgroup("main").await?);
    let feeder = pod.take("main", ALONE).await?;
    pod.taken("main").await?;
    let refusals = pod.refusals(&id).await?;
    let first = refusals.first().context("nothing was refused")?;
    ensure!(reasons.contains(&first.as_str()), "{refusals:?}");
    wait_limit(&cgroup, LIMIT).await?;
    Ok(feeder)
}

async fn limited(cluster: &GuardedNode) -> Result<()> {
    let limits = json!([{ "type": "Container", "max": { "memory": "96Mi" } }]);
    cluster.api.create(&json!({
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": { "name": "most", "namespace": "default" },
        "spec": { "limits": limits },
    }))?;
    let pod = Pod::start(cluster, "limited", |_| {}, &["default/limited/main"]).await?;
    refused(&pod, &["resizeForbidden"]).await?;
    cluster.api.run(&["delete", "limitrange", "most"]).map(drop)
}

/// No controller runs that would count what is used: the quota's status is the test's.
async fn quota(cluster: &GuardedNode) -> Result<()> {
    let pod = Pod::start(cluster, "quota", |_| {}, &["default/quota/main"]).await?;
    let hard = json!({ "limits.memory": "64Mi" });
    cluster.api.create(&json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": { "name": "most", "namespace": "default" },
        "spec": { "hard": hard },
    }))?;
    let status = json!({ "status": { "hard": hard, "used": hard } }).to_string();
    cluster.api.run(&[
        "patch",
        "resourcequota",
        "most",
        "--subresource=status",
        "--type=merge",
        "-p",
        &status,
    ])?;
    refused(&pod, &["resizeForbidden"]).await?;
    cluster.api.run(&["delete", "resourcequota", "most"]).map(drop)
}

async fn offline(cluster: &GuardedNode) -> Result<()> {
    let pod = Pod::start(cluster, "offline", |_| {}, &["default/offline/main"]).await?;
    cluster.api.kill_api_server()?;
    let done = refused(&pod, &["apiUnavailable"]).await;
    cluster.api.start_api_server().await?;
    done.map(drop)
}

/// Its kubelet does not see that yet, or it would have killed it.
async fn deleted(cluster: &GuardedNode) -> Result<()> {
    let pod = Pod::start(cluster, "deleted", |_| {}, &["default/deleted/main"]).await?;
    process::signal(cluster.kubelet.pid(), Signal::SIGSTOP)?;
    let done = async {
        cluster.api.run(&["delete", "pod", "deleted", "--wait=false"])?;
        refused(&pod, &["gone"]).await.map(drop)
    };
    let done = done.await;
    process::signal(cluster.kubelet.pid(), Signal::SIGCONT)?;
    done
}
