//! What a daemon that ends leaves for the next one (`kernel.pin`), as the command line and metrics show it.

use std::collections::BTreeMap;
use std::path::Path;

use kwitness_api::proto;
use kwitness_tests::outage::{Bpffs, lasting, ledger_of};
use kwitness_tests::prelude::*;
use kwitness_tests::scrape::scrape;

use crate::command::{kwitness, run};

const LIMIT: Duration = Duration::from_secs(120);

/// A daemon that ends leaves its programs and its ledger; `uninstall-pins` removes them, and so does `--unpin`.
pub(crate) async fn nothing_is_left_behind(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let directory = format!("kernel.pin_directory={}", bpffs.pins().display());
    let socket = agent.socket().to_owned();
    let uninstall = async || {
        let mut command = kwitness(ctx, ["uninstall-pins", "--set", &directory, "--socket"]);
        command.arg(&socket);
        run(command).await
    };
    uninstall().await?.check(1)?.check_says(&["another daemon uses"])?;
    agent.process().terminate(LIMIT)?;
    ensure!(bpffs.sets()?.len() == 1, "{:?}", bpffs.sets()?);
    ensure!(ledger_of(&agent).exists(), "there is no {}", ledger_of(&agent).display());
    uninstall().await?.check(0)?;
    check_gone(&bpffs, &agent)?;
    uninstall().await?.check(0).context("nothing to be removed")?;

    let mut agent = bpffs.agent(&ctx.environment).await?;
    agent.kill()?;
    agent.add_argument("--unpin");
    agent.start_again().await?;
    agent.process().terminate(LIMIT)?;
    check_gone(&bpffs, &agent)
}

/// Programs that a daemon has left and that the next one does not use, because they are pinned elsewhere or beside something else, are
/// named, and removed as the problem says.
pub(crate) async fn programs_that_no_daemon_reads_are_named(ctx: &TestContext) -> Result<()> {
    let bpffs = Bpffs::mount()?;
    let mut agent = bpffs.agent(&ctx.environment).await?;
    let (usual, foreign) = (bpffs.pins(), bpffs.pins().join("foreign"));
    let setting = |directory: &Path| format!("kernel.pin_directory={}", directory.display());
    let remedy = format!("kwitness uninstall-pins --set {}", setting(&usual));
    let named = async |agent: &Agent| {
        let problems = agent.status().await?.problems;
        let is_named = |of: &proto::Problem| of.name == "unread_programs" && of.remedy == remedy;
        Ok::<_, anyhow::Error>(problems.iter().any(is_named))
    };
    ensure!(!named(&agent).await?, "its own are read");
    agent.kill()?;
    std::fs::create_dir(&foreign).context("make a directory beside the set")?;
    agent.start_again().await?;
    wait_for("the problem", LIMIT, async || Ok(named(&agent).await?.then_some(()))).await?;

    agent.kill()?;
    std::fs::remove_dir(&foreign).context("remove it")?;
    agent.add_argument("--set");
    agent.add_argument(&setting(&bpffs.pins().with_file_name("elsewhere")));
    agent.start_again().await?;
    wait_for("the problem", LIMIT, async || Ok(named(&agent).await?.then_some(()))).await?;
    let mut doctor = kwitness(ctx, ["doctor", "--socket"]);
    doctor.arg(agent.socket());
    let said = run(doctor).await?.stdout;
    ensure!(said.contains("unread programs") && said.contains(&remedy), "{said}");

    let mut uninstall = kwitness(ctx, ["uninstall-pins", "--set"]);
    uninstall.arg(setting(&usual)).arg("--socket").arg(agent.socket());
    run(uninstall).await?.check(0)?;
    ensure!(!usual.exists() && ledger_of(&agent).exists(), "{}", agent.log_tail());
    wait_for("no problem", LIMIT, async || Ok((!named(&agent).await?).then_some(()))).await?;
    agent.stop()
}

/// That neither pins nor a ledger are left.
pub(crate) fn check_gone(bpffs: &Bpffs, agent: &Agent) -> Result<()> {
    for path in [bpffs.pins(), ledger_of(agent)] {
        ensure!(!path.exists(), "{} is still there", path.display());
    }
    Ok(())
}

/// What an earlier daemon left says which containers there are, and is not counted again: to Prometheus that would be new events.
pub(crate) async fn metrics_begin_at_zero_and_know_what_there_is(ctx: &TestContext) -> Result<()> {
    const RUNNING: &str = "kwitness_containers{state=\"running\"}";
    const CREATED: &str = "kwitness_events_total{type=\"created\"}";
    let (bpffs, kubepods) = (Bpffs::mount()?, Kubepods::make(&ctx.environment)?);
    let directory = tempfile::tempdir_in("/run").context("make a directory in /run")?;
    let http = directory.path().join("http.sock");
    let listen = format!("http.listen=unix://{}", http.display());
    // So short a journal forgets how the lasting container began: others make more events than it holds, and none of them more
    // than its share.
    let settings = [listen.as_str(), "runtime.endpoint=none", "journal.replay_window=1024"];
    let mut agent = bpffs.agent_with(&ctx.environment, &settings).await?;
    let mut watcher = agent.watch(from_now()).await?;
    let lasting = lasting(&kubepods, &mut watcher).await?;
    let script = "i=0; while [ $i -lt 20 ]; do /usr/bin/busybox true; i=$((i + 1)); done";
    for _ in 0..40 {
        let busy_id = kubepods.container()?.live(&["sh", "-c", script], 0)?;
        watcher.wait_until("the busy container's end", |seen| seen.has(&busy_id, "deleted")).await?;
    }
    let first = agent.replay().await?;
    ensure!(!first.has(lasting.id(), "created"), "the journal still has it:\n{first}");
    let of = |samples: &BTreeMap<String, f64>| {
        [RUNNING, CREATED, "kwitness_metrics_missed_events_total"].map(|name| samples.get(name).copied())
    };
    let before = of(&scrape(&http)?);
    ensure!(before[0] == Some(1.0) && before[1] >= Some(2.0), "{before:?}");

    agent.restart().await?;
    // The engine says what the journal does not; until then the container is not known.
    let known = async || Ok((of(&scrape(&http)?) == [Some(1.0), Some(0.0), Some(0.0)]).then_some(()));
    wait_for("the lasting container in the metrics", LIMIT, known)
        .await
        .with_context(|| format!("{:?}", scrape(&http)))?;
    lasting.end()?;
    drop(kubepods);
    agent.stop()
}
