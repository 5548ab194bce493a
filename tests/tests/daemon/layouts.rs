//! Cgroups as they are on real nodes and as no runtime at hand makes them.

use kwitness_api::proto::QosClass;
use kwitness_tests::cgroup::path_of;
use kwitness_tests::handmade::new_id;
use kwitness_tests::pod::new_uid;
use kwitness_tests::prelude::*;

/// The longest path, with its NUL, that a record has room for (`PATH_CAP` of `kwitness-abi`).
const PATH_CAP: usize = 512;

/// Kata with the cgroupfs driver: the cgroup of the virtual machine is the sandbox of its pod.
pub(crate) async fn the_machine_of_kata_is_its_sandbox(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let (uid, id) = (new_uid()?, new_id()?);
    ctx.with_agent(&[], async |agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let path = format!("kubepods/besteffort/pod{uid}/kata_{id}");
        kubepods.container_at(&path, &uid, &id)?.live(&["sh", "-c", "exit 7"], 7)?;
        let seen = watcher.wait_until("the machine's end", |seen| seen.has(&id, "deleted")).await?;
        seen.check_complete()?;
        seen.check_whole(&id)?;
        for event in seen.events() {
            let container = event.container.as_ref().with_context(|| format!("no container: {event:?}"))?;
            let pod = container.pod.as_ref().with_context(|| format!("no pod: {event:?}"))?;
            let is_right = container.id == id && pod.uid == uid && pod.qos_class() == QosClass::BestEffort;
            ensure!(is_right, "{event:?}");
        }
        Ok(())
    })
    .await
}

/// A node in a container of a pod (kind): what runs there belongs to that container, also where its path is longer than a record's,
/// and a scan says the same as the records.
pub(crate) async fn a_cluster_in_a_pod_is_of_its_container(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    let (uid, id, inner_uid, inner_id) = (new_uid()?, new_id()?, new_uid()?, new_id()?);
    let slice = |uid: &str| uid.replace('-', "_");
    let outer = format!(
        "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{}.slice/cri-containerd-{id}.scope",
        slice(&uid)
    );
    let inner = format!(
        "{outer}/docker/{}/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/\
         kubelet-kubepods-burstable-pod{}.slice/cri-containerd-{inner_id}.scope/system.slice/dbus.service",
        new_id()?,
        slice(&inner_uid)
    );
    let mut agent = Agent::start(&ctx.environment, &[]).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let container = kubepods.container_at(&outer, &uid, &id)?;
    let service = kubepods.container_at(&inner, &uid, &id)?;
    let path = path_of(service.cgroup().directory())?;
    ensure!(path.len() >= PATH_CAP, "{path} has room in a record");
    let mut running = service.start("/usr/bin/busybox", &["sleep", "1000"])?;
    let ran = service.start("/usr/bin/busybox", &["sh", "-c", "exit 7"])?.wait().context("wait")?;
    ensure!(ran.code() == Some(7), "the service: {ran}");
    let seen = watcher.wait_until("a program's end", |seen| seen.has(&id, "exited")).await?;
    seen.check_complete()?;
    ensure!(seen.events().count() == seen.of(&id).count(), "events of others:\n{seen}");
    ensure!(seen.count("created") == 1, "more than one container:\n{seen}");
    drop(watcher);

    agent.restart().await?;
    let found = agent.list().await?.containers;
    let found: Vec<_> = found.iter().filter_map(|state| Some(&state.container.as_ref()?.cgroup_id)).collect();
    ensure!(found == [&container.cgroup().id()?], "the scan found {found:?}");
    let mut watcher = agent.watch(from_now()).await?;
    running.kill().context("kill the service")?;
    running.wait().context("wait for the service")?;
    let seen = watcher.wait_until("the end of the service", |seen| seen.has(&id, "exited")).await?;
    ensure!(seen.events().count() == seen.of(&id).count(), "events of others:\n{seen}");
    agent.stop()
}
