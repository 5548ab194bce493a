//! Each condition is forced, and the alert's labels must name the container that it happened to.

use kwitness_tests::prelude::*;
use kwitness_tests::prometheus::Prometheus;

const PORT: u16 = 9768;
const LIMIT: u64 = 24 << 20;
/// What another process writes instead of it.
const OTHER_LIMIT: &str = "50331648";
/// Panels that show what is not as it should be; and increases, which begin with a counter's second sample.
const MAY_BE_EMPTY: &[&str] = &[
    "OOM kills by pod",
    "Lost kernel records",
    "Gaps and bounds",
    "Hooks that are not the preferred ones",
    "Problems",
    "CRI proxy: source of events",
];

pub(crate) async fn alerts_fire_on_what_really_happened(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_node(async |node| {
        let listen = format!("http.listen=127.0.0.1:{PORT}");
        let agent = Agent::start(&ctx.environment, &[&listen]).await?;
        let prometheus = Prometheus::start(&ctx.environment, &[("kwitness", PORT)]).await?;
        let mut watcher = agent.watch(from_now()).await?;
        let pod = node.run_pod(&PodSpec::new("alerts", ctx.combination.handler)?).await?;
        let limited = |name: &str, line: &str| ContainerSpec::shell(name, line).limited(LIMIT);

        // Killed before or after its first scrape: it fires either way.
        let greedy = node.run(&pod, &limited("greedy", "exec tail < /dev/zero")).await?;
        watcher.wait_until("the kill", |seen| seen.has(&greedy, "oomKill")).await?;
        let of = |container| [("namespace", "default"), ("pod", "alerts"), ("container", container)];
        let labels = prometheus.wait_for_alert("ContainerOOMKilled", &of("greedy")).await?;
        ensure!(labels.get("job").map(String::as_str) == Some("kwitness"), "{labels:?}");

        let calm = node.run(&pod, &limited("calm", "exec sleep 100000")).await?;
        let named = |seen: &Seen| seen.subject(&calm).is_some_and(|subject| subject.name.is_some());
        let seen = watcher.wait_until("the container's name", named).await?;
        let path = seen.subject(&calm).context("it was seen")?.cgroup_path.clone();
        let in_force =
            r#"kwitness_limit_verdict{container="calm",resource="memory",verdict="in_force"} == 1"#;
        prometheus.wait_for_sample(in_force).await?;
        cgroup::write(&node.cgroup_directory(&path), "memory.max", OTHER_LIMIT)?;
        let mut reverted = of("calm").to_vec();
        reverted.push(("resource", "memory"));
        prometheus.wait_for_alert("ContainerLimitNotInForce", &reverted).await?;

        for (panel, expression) in prometheus.dashboard()? {
            let samples = prometheus.query(&expression).await.with_context(|| format!("panel {panel}"))?;
            let may_be_empty = MAY_BE_EMPTY.contains(&panel.as_str());
            ensure!(may_be_empty || !samples.is_empty(), "panel {panel} shows nothing: {expression}");
        }
        let firing = prometheus.query(r#"ALERTS{alertname=~"Kwitness(Down|Absent)"}"#).await?;
        ensure!(firing.is_empty(), "{firing:?}");
        node.remove_pod(&pod).await?;
        agent.stop()?;
        prometheus.wait_for_alert("KwitnessDown", &[("job", "kwitness")]).await?;
        Ok(())
    })
    .await
}
