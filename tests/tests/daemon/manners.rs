//! How the daemon comes and goes, and what it says when it cannot.

use std::fs;
use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;

use kwitness_api::proto::{Basis, Event, GapCause, event};
use kwitness_tests::events;
use kwitness_tests::hostile::{attack_all, attack_with_bodies};
use kwitness_tests::pod::new_uid;
use kwitness_tests::prelude::*;
use nix::sys::signal::Signal;

use crate::command::{client, kwitness, run, run_in_pid_namespace, run_in_time_namespace};

const LIMIT: Duration = Duration::from_secs(20);
/// `nobody`.
pub(crate) const NOBODY: u32 = 65_534;

pub(crate) async fn a_live_socket_is_not(ctx: &TestContext) -> Result<()> {
    ctx.with_agent(&[], async |agent| {
        let mut second = kwitness(ctx, ["daemon", "--socket"]);
        second.arg(agent.socket());
        let done = run(second).await?;
        let first = agent.pid().to_string();
        done.check(1)?.check_says(&["another instance", &first])?;
        // The first has not felt it.
        let kubepods = Kubepods::make(&ctx.environment)?;
        crate::command::a_short_life(agent, &kubepods).await?.0.seen().check_complete()
    })
    .await
}

pub(crate) async fn both_signals_end_it_well(ctx: &TestContext) -> Result<()> {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let mut agent = Agent::start(&ctx.environment, &[]).await?;
        // One who watches must not keep it from ending.
        let watcher = agent.watch(from_now()).await?;
        agent.process().signal(signal)?;
        let status = agent.process().wait(LIMIT)?;
        ensure!(status.success(), "{signal}: {status}\n{}", agent.log_tail());
        ensure!(!agent.socket().exists(), "{signal}: the socket is left behind");
        drop(watcher);
    }
    Ok(())
}

pub(crate) async fn sighup_applies_the_log_level(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir_in("/run").context("make a directory")?;
    let file = directory.path().join("config.toml");
    let configure = |text: &str| fs::write(&file, text).context("write the configuration");
    configure("[log]\nlevel = \"warn\"\n")?;
    let mut agent = Agent::start_configured(&ctx.environment, &file).await?;
    let logged = async |agent: &Agent, text: &str| {
        wait_for(text, LIMIT, async || Ok(agent.log()?.contains(text).then_some(()))).await
    };
    ensure!(!agent.log()?.contains(" INFO "), "a line of the level info\n{}", agent.log_tail());
    configure("[log]\nlevel = \"info\"\n")?;
    agent.process().signal(Signal::SIGHUP)?;
    logged(&agent, "log.level applied").await?;
    configure("[log]\nlevel = \"loud\"\n")?;
    agent.process().signal(Signal::SIGHUP)?;
    logged(&agent, "the configuration is not applied").await?;
    // Neither ended nor silent.
    agent.process().signal(Signal::SIGUSR1)?;
    logged(&agent, "counters").await?;
    agent.stop()
}

pub(crate) async fn all_errors_in_the_configuration_are_reported_together(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir_in("/run").context("make a directory")?;
    let file = directory.path().join("config.toml");
    let text = "[api]\nsokcet = \"/run/x.sock\"\n\n[kernel]\nlifecycle_ring = \"three\"\n";
    fs::write(&file, text).context("write the configuration")?;
    let mut command = kwitness(ctx, ["daemon", "--set", "journal.replay_windw=4096", "--config"]);
    command.arg(&file);
    let done = run(command).await?;
    done.check(78)?.check_says(&[
        "api.sokcet",
        "api.socket",
        "kernel.lifecycle_ring",
        "journal.replay_windw",
        "journal.replay_window",
        "config.toml:2",
        "config.toml:5",
    ])?;
    ensure!(!std::path::Path::new("/run/x.sock").exists(), "something was started nevertheless");
    let missing = directory.path().join("missing.toml");
    let mut command = kwitness(ctx, ["daemon", "--config"]);
    command.arg(&missing);
    run(command).await?.check(78)?.check_says(&["missing.toml"])
}

pub(crate) async fn without_root(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir_in("/run").context("make a directory")?;
    chown(directory.path(), Some(NOBODY), Some(NOBODY)).context("give the directory away")?;
    let mut command = kwitness(ctx, ["daemon", "--socket"]);
    command.arg(directory.path().join("kwitness.sock")).uid(NOBODY).gid(NOBODY);
    run(command).await?.check(77)?.check_says(&["privileges", "CAP_BPF"])?;
    // The privileges come before whatever else a user without them may not do.
    for arguments in [&["daemon", "--socket", "/run/kwitness-is-not-here/x.sock"][..], &["uninstall-pins"]] {
        let mut command = kwitness(ctx, arguments.iter().copied());
        command.uid(NOBODY).gid(NOBODY);
        let done = run(command).await?;
        done.check(77)?.check_says(&["root"])?;
        ensure!(
            !done.stderr.contains("directory") && done.stdout.is_empty(),
            "{}{}",
            done.stdout,
            done.stderr
        );
    }
    // A client that may not enter the socket's directory gets that as the error, and not that there is no daemon.
    ctx.with_agent(&[], async |agent| {
        let mut command = kwitness(ctx, ["ps", "--socket"]);
        command.arg(agent.socket()).uid(NOBODY).gid(NOBODY);
        run(command).await?.check(77)?.check_says(&["permission denied", "root:root 0750", "sudo"])
    })
    .await
}

/// Pids in records are the host's: in another pid namespace the daemon starts only if the configuration accepts that.
pub(crate) async fn another_pid_namespace_is_refused(ctx: &TestContext) -> Result<()> {
    ctx.with_agent(&[], async |agent| {
        let daemon = |setting: &str| {
            let mut command = kwitness(ctx, ["daemon", "--set", setting, "--socket"]);
            command.arg(agent.socket());
            run_in_pid_namespace(command)
        };
        let refused = daemon("kernel.pid_namespace=host").await?;
        refused.check(1)?.check_says(&["pid namespace", "hostPID: true", "kernel.pid_namespace"])?;
        ensure!(!refused.stderr.contains("another instance"), "it went on:\n{}", refused.stderr);
        // It goes on, until it finds the first one.
        let accepted = daemon("kernel.pid_namespace=any").await?;
        accepted.check(1)?.check_says(&["pid namespace", "another instance"])
    })
    .await
}

/// Records have the time since the boot of the initial time namespace: in another one, they would all be of the future.
pub(crate) async fn another_time_namespace_is_refused(ctx: &TestContext) -> Result<()> {
    let directory = tempfile::tempdir_in("/run").context("make a directory")?;
    let mut daemon = kwitness(ctx, ["daemon", "--socket"]);
    daemon.arg(directory.path().join("kwitness.sock"));
    run_in_time_namespace(daemon, 1500).await?.check(1)?.check_says(&["time namespace", "1500 s"])?;
    let doctor = run_in_time_namespace(kwitness(ctx, ["doctor"]), 1500).await?;
    ensure!(doctor.stdout.contains("time namespace"), "{}", doctor.stdout);
    ensure!(doctor.code != Some(0), "the doctor finds nothing fatal:\n{}", doctor.stdout);
    Ok(())
}

/// Whether the kernel has time namespaces.
pub(crate) fn no_time_namespaces() -> Option<&'static str> {
    let has_any = std::path::Path::new("/proc/self/timens_offsets").exists();
    (!has_any).then_some("this kernel has no time namespaces")
}

pub(crate) async fn without_a_daemon(ctx: &TestContext) -> Result<()> {
    let nowhere = std::path::Path::new("/run/kwitness-is-not-here.sock");
    for line in ["events", "ps", "status"] {
        let done = client(ctx, nowhere, line).await?;
        done.check(69)?.check_says(&["/run/kwitness-is-not-here.sock", "kwitness daemon"])?;
        ensure!(done.stdout.is_empty(), "{line} printed {}", done.stdout);
    }
    Ok(())
}

/// Rings, programs and an empty journal take far less; what one client can add is bounded.
pub(crate) async fn no_client_makes_the_daemon_too_large(ctx: &TestContext) -> Result<()> {
    const MAX: u64 = 256 << 20;
    const REPORT: &str = "/kwitness.v1alpha1.Kwitness/ReportCriRequests";
    const VERIFY: &str = "/kwitness.v1alpha1.Kwitness/Verify";
    ctx.with_agent(&[], async |agent| {
        attack_all(agent.socket(), REPORT, agent.pid(), MAX)?;
        // More of its calls may be active than of any other.
        attack_with_bodies(agent.socket(), VERIFY, agent.pid(), MAX)
    })
    .await
}

pub(crate) async fn the_probes_log_when_enabled(ctx: &TestContext) -> Result<()> {
    let kubepods = Kubepods::make(&ctx.environment)?;
    for (level, logs) in [("off", false), ("warn", false), ("debug", true)] {
        let mut agent = Agent::start(&ctx.environment, &[&format!("kernel.log={level}")]).await?;
        let mut watcher = agent.watch(from_now()).await?;
        let container = kubepods.container()?;
        let wanted = format!("cgroup {} is tracked, below", container.cgroup().id()?);
        let logged = |agent: &Agent| Ok::<_, anyhow::Error>(agent.log()?.contains(&wanted));
        if logs {
            let found = wait_for("the probes' log", LIMIT, async || Ok(logged(&agent)?.then_some(())));
            found.await.with_context(|| format!("kernel.log={level}: `{wanted}`"))?;
        } else {
            watcher.wait_until("the container", |seen| seen.count("created") > 0).await?;
        }
        drop(container);
        watcher.wait_until("its end", |seen| seen.count("deleted") > 0).await?;
        // Its whole log.
        agent.process().terminate(LIMIT)?;
        ensure!(logged(&agent)? == logs, "kernel.log={level}: `{wanted}`");
    }
    Ok(())
}

/// More cgroups than the smallest ring holds, made while the daemon is stopped: those that fit are reported, the others are
/// counted as lost, and in the end the daemon knows them all.
pub(crate) async fn a_loss_is_reported_and_repaired(ctx: &TestContext) -> Result<()> {
    // A record is larger than 64 bytes: 4 KiB hold fewer than 64 of them.
    const CONTAINERS: usize = 150;
    const LEAST_LOST: u64 = CONTAINERS as u64 - 64;
    let kubepods = Kubepods::make(&ctx.environment)?;
    let pod = new_uid()?;
    // The pod's own cgroup is there before the daemon, and is not counted.
    let _first = kubepods.container_of(&pod)?;
    ctx.with_agent(&["kernel.lifecycle_ring=4KiB"], async |agent| {
        let mut watcher = agent.watch(from_now()).await?;
        let paused = agent.pause()?;
        let containers = (0..CONTAINERS).map(|_| kubepods.container_of(&pod)).collect::<Result<Vec<_>>>()?;
        drop(paused);
        let complete = |seen: &Seen| {
            let last =
                |wanted: &str| seen.0.iter().rposition(|received| events::kind(&received.event) == wanted);
            let is_repaired = last("gap").is_some() && last("resynced") > last("gap");
            is_repaired && (made(seen, Basis::CgroupMkdir) + lost(seen)) >= CONTAINERS as u64
        };
        let seen = watcher.wait_until("each container, or its loss and the repair", complete).await?;
        seen.check_unbroken()?;
        for event in seen.events() {
            if let Some(event::Kind::Gap(gap)) = &event.kind {
                ensure!(gap.cause() == GapCause::RingFull, "{gap:?}");
                ensure!(gap.lost.contains_key("cgroup_mkdir"), "{gap:?}");
            }
        }
        let (reported, repaired) = (made(&seen, Basis::CgroupMkdir), made(&seen, Basis::RepairScan));
        let lost = lost(&seen);
        ensure!(lost >= LEAST_LOST, "only {lost} of {CONTAINERS} did not fit into 4 KiB");
        ensure!(reported + lost == CONTAINERS as u64, "{reported} reported and {lost} lost of {CONTAINERS}");
        ensure!(repaired == lost, "{repaired} repaired of {lost} lost");
        let status = agent.status().await?;
        ensure!(status.lost.get("ring_full/cgroup_mkdir") == Some(&lost), "{:?} is not {lost}", status.lost);
        ensure!(agent.list().await?.containers.len() == CONTAINERS + 1, "the list is not complete");
        drop(containers);
        Ok(())
    })
    .await
}

/// Containers whose making was reported on that basis.
fn made(seen: &Seen, basis: Basis) -> u64 {
    let created = seen.events().filter(|event| matches!(event.kind, Some(event::Kind::Created(_))));
    created.filter(|event| event.basis() == basis).count() as u64
}

/// Makings of cgroups that were counted as lost.
fn lost(seen: &Seen) -> u64 {
    let of_gap = |event: &Event| match &event.kind {
        Some(event::Kind::Gap(gap)) => gap.lost.get("cgroup_mkdir").copied(),
        _ => None,
    };
    seen.events().filter_map(of_gap).sum()
}
