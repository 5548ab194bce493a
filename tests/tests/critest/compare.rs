//! Both runs, and what may differ: nothing.

use std::path::Path;
use std::process::Command;

use kwitness_tests::node::Extras;
use kwitness_tests::prelude::*;
use kwitness_tests::registry::Registry;

use crate::report::{self, Report};

const LIMIT: Duration = Duration::from_secs(600);
/// Those that a runtime must pass to be called conformant.
const CONFORMANCE: &str = r"\[Conformance\]";
/// Fewer than that have passed only if something is wrong with the node.
const LEAST: usize = 44;
/// What fails on this node by itself, with and without a proxy, and why.
const KNOWN: &[(&str, &str)] = &[
    ("public image with digest", "the image of that digest cannot be made again"),
    ("listing container stats", "on hybrid cgroups containerd 1.7 finds no cgroup of the containers"),
    ("HostIpc", "the suite makes shared memory with `ipcmk`, which the node has not"),
    ("MaskedPaths", "the shell of Debian's busybox runs its own `ls`, which masking does not reach"),
    ("OOMKilled", "on hybrid cgroups containerd 1.7 reports `Error` now and then"),
];

/// A run of critest at a socket; `focus` is a regular expression.
fn critest(ctx: &TestContext, directory: &Path, socket: &Path, focus: Option<&str>) -> Result<Report> {
    let began = Instant::now();
    let report = directory.join("report.json");
    let mut command = Command::new(ctx.environment.job.join("bin/critest"));
    for kind in ["runtime", "image"] {
        command.arg(format!("-{kind}-endpoint=unix://{}", socket.display()));
    }
    command.args(["-ginkgo.no-color", "-ginkgo.seed=1"]).current_dir(directory);
    command.arg(format!("-ginkgo.json-report={}", report.display()));
    command.args(focus.map(|focus| format!("-ginkgo.focus={focus}")));
    let log = directory.join("critest.log");
    let mut process = Managed::spawn("critest", command, &log)?;
    // Its status says whether a test failed; which, the report does.
    let status = process.wait(LIMIT)?;
    let tests =
        report::read(&report).with_context(|| format!("critest: {status}\n{}", process.log_tail()))?;
    std::fs::remove_file(&report).context("remove the report")?;
    let count = |state: &str| tests.values().filter(|found| *found == state).count();
    for (name, state) in tests.iter().filter(|(_, state)| *state != "passed" && *state != "skipped") {
        println!("{state}: {name}");
    }
    println!(
        "at {}: {} passed, {} failed, {} skipped in {:.1} s",
        socket.display(),
        count("passed"),
        tests.len() - count("passed") - count("skipped"),
        count("skipped"),
        began.elapsed().as_secs_f64()
    );
    Ok(tests)
}

fn differing<'a>(straight: &'a Report, proxied: &'a Report) -> Vec<&'a str> {
    let names = straight.keys().chain(proxied.keys().filter(|name| !straight.contains_key(*name)));
    names.filter(|name| straight.get(*name) != proxied.get(*name)).map(String::as_str).collect()
}

/// A name as a regular expression that matches it alone.
fn exactly(name: &str) -> String {
    let escaped: String = name
        .chars()
        .flat_map(|c| (!c.is_alphanumeric() && c != ' ').then_some('\\').into_iter().chain([c]))
        .collect();
    format!("{escaped}$")
}

pub(crate) async fn the_same_tests_pass_and_fail_straight_and_through_the_proxy(
    ctx: &Testbed<'_>,
) -> Result<()> {
    let registry = Registry::start(&ctx.environment.job.join("layout")).await?;
    let extras = Extras { registry: Some(registry.address()), network: true, ..Extras::default() };
    let node = Node::start_with(&ctx.environment, ctx.combination.driver, &extras).await?;
    let agent = Agent::start(&ctx.environment, &[]).await?;
    let proxy = Proxy::start(&ctx.environment, agent.socket()).await?;
    let compared = compare(ctx, proxy.socket());
    let compared = compared.with_context(|| node.log_tail()).with_context(|| proxy.log_tail());
    node.shutdown().await?;
    compared?;
    proxy.stop()?;
    agent.stop()
}

fn compare(ctx: &TestContext, proxy: &Path) -> Result<()> {
    let directory = process::directory("critest")?;
    let long = ctx.environment.long;
    let focus = (!long).then_some(CONFORMANCE);
    let run = |socket: &Path, focus: Option<&str>| critest(ctx, directory.path(), socket, focus);
    let straight = run(Path::new(CONTAINERD_SOCKET), focus)?;
    let proxied = run(proxy, focus)?;

    let passed = straight.values().filter(|state| *state == "passed").count();
    ensure!(passed >= LEAST, "{passed} tests passed without the proxy: {straight:#?}");
    for (name, state) in &straight {
        let is_well = state == "passed" || state == "skipped";
        if is_well || KNOWN.iter().any(|(known, _)| name.contains(known)) {
            continue;
        }
        // The suite waits for a second where a busy machine takes longer.
        println!("{state}, once more: {name}");
        let again = run(Path::new(CONTAINERD_SOCKET), Some(&exactly(name)))?;
        let has_passed = again.get(name).is_some_and(|state| state == "passed");
        ensure!(has_passed, "{state} without the proxy, twice: {name}");
    }
    for name in differing(&straight, &proxied) {
        let states = (straight.get(name), proxied.get(name));
        println!("{states:?}, once more: {name}");
        // What time decides may differ between any two runs; what the proxy decides, in each of them.
        let focus = exactly(name);
        let again = (run(Path::new(CONTAINERD_SOCKET), Some(&focus))?, run(proxy, Some(&focus))?);
        let states = (again.0.get(name), again.1.get(name));
        ensure!(states.0 == states.1, "straight and through the proxy {states:?}: {name}");
    }
    Ok(())
}
