//! Kubernetes Events at a real API server, created by the chart's account, which may do nothing else: over a denial and an
//! outage, once each.
//!
//! ```text
//!  time ─▶  no role yet      role          limit      API server killed        exporter that
//!           OOM kill: 403    created       reverted   OOM kill    started      knows nothing
//!                               └▶ Event     └▶ Event               └▶ Event     └▶ no Event
//! ```
//!
//! The same OOM kill has to be seen in the Collector, and with `--long` in Prometheus.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{Verdict, VerdictKind};
use kwitness_tests::cluster_node::{PodRequest, registered, running};
use kwitness_tests::otel::{Collector, Exported, Exporter};
use kwitness_tests::prelude::*;
use kwitness_tests::prometheus::Prometheus;
use kwitness_tests::scrape::scrape;
use serde_json::{Value, json};

use crate::join::{Cluster, SOON, Way, with_configured_cluster};

const PORT: u16 = 9768;
/// As `cargo xtask test` renders the chart.
const NAMESPACE: &str = "kwitness";
const ACCOUNT: &str = "kwitness-export";
/// Killed while the account has no role, and while there is no API server.
const EARLY: &str = "early";
const OUTAGE: &str = "outage";
/// Its limit is above its pod's; with `--long` only.
const SHADOWED: &str = "shadowed";
const LIMIT: u64 = 48 << 20;
/// What another process writes instead of it.
const LOWER: u64 = 32 << 20;

pub(crate) async fn an_oom_kill_is_one_event_of_its_pod(ctx: &Testbed<'_>) -> Result<()> {
    let listen = format!("http.listen=127.0.0.1:{PORT}");
    let way = (Pleg::Generic, Way::Straight);
    ctx.with_api(async |api| {
        with_configured_cluster(ctx, api, way, &[&listen], async |cluster| {
            let out = Out::make()?;
            let mut collector = Collector::start(&ctx.environment).await?;
            let scene = Scene { ctx, cluster, out: &out };
            scene.play(&collector).await?;
            collector.stop()
        })
        .await
    })
    .await
}

struct Scene<'a> {
    ctx: &'a TestContext,
    cluster: &'a Cluster<'a>,
    out: &'a Out,
}

/// What a Kubernetes Event of kwitness's is about.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct About {
    pod: String,
    reason: String,
}

impl Scene<'_> {
    async fn play(&self, collector: &Collector) -> Result<()> {
        let Self { ctx, cluster, .. } = *self;
        let api = cluster.api;
        let objects = self.objects()?;
        api.create(&list(&objects, &["Namespace", "ServiceAccount"]))?;
        let kubeconfig = api.kubeconfig_of(NAMESPACE, ACCOUNT)?;
        let prometheus = match ctx.environment.long {
            true => Some(Prometheus::start(&ctx.environment, &[("kwitness", PORT)]).await?),
            false => None,
        };
        let ids = self.run_pods().await?;

        let exporter = self.export(collector, &kubeconfig)?;
        let done = async {
            self.out.signal(EARLY)?;
            self.denied(&exporter).await?;
            api.create(&list(&objects, &["ClusterRole", "ClusterRoleBinding"]))?;
            let event = self.wait_for_event(EARLY, "OOMKilled").await?;
            self.check_oom_kill(&event, EARLY)?;
            self.check_rest_is_a_series(&ids).await?;
            self.check_nothing_else_is_permitted(&kubeconfig)?;
            check_table(&api.run(&["get", "events", "--namespace", "default"])?)?;
            seen_by(collector, prometheus.as_ref()).await?;

            self.revert(&ids).await?;
            self.survive_an_outage().await
        };
        done.await.with_context(|| exporter.log_tail())?;

        // Everything again, from the journal: the names are those that there are.
        exporter.stop_for_good(collector)?;
        let exporter = self.export(collector, &kubeconfig)?;
        // What waits for 30 s may be over by then.
        let is_again = |event: &&Value| event["reason"] != "LimitNotInForce";
        let expected = self.events()?.iter().filter(is_again).count() as f64;
        let existing = wait_for("the API server to refuse what there is", SOON, async || {
            // It may not listen yet.
            Ok(self.count("existing").is_ok_and(|count| count >= expected).then_some(()))
        });
        existing.await.with_context(|| exporter.log_tail())?;
        let counts = self.counts()?;
        for (pod, reason) in [(EARLY, "OOMKilled"), (OUTAGE, "LimitReverted"), (OUTAGE, "OOMKilled")] {
            let about = About { pod: pod.to_owned(), reason: reason.to_owned() };
            ensure!(counts.get(&about) == Some(&1), "{about:?} in {counts:?}");
        }
        exporter.stop()
    }

    fn objects(&self) -> Result<Vec<Value>> {
        let path = self.ctx.environment.job.join("exporter.json");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// The ids of the pods' containers, by the pods' names, once they run.
    async fn run_pods(&self) -> Result<BTreeMap<&'static str, String>> {
        let long = self.ctx.environment.long;
        let names: Vec<_> = [EARLY, OUTAGE].into_iter().chain(long.then_some(SHADOWED)).collect();
        registered(self.cluster.api).await?;
        for name in &names {
            // The kernel kills all of the container, of which each process is an OOM kill of its own.
            let line = format!("{}; tail </dev/zero & tail </dev/zero & wait", until(name));
            let resources = json!({ "limits": { "memory": LIMIT.to_string() } });
            let directory = self.out.path();
            let pod = PodRequest { name, line: &line, directory, resources, mounts: &[] };
            self.cluster.api.create(&pod.object())?;
        }
        let mut ids = BTreeMap::new();
        for name in names {
            ids.insert(name, running(self.cluster.api, self.cluster.node, name).await?);
        }
        Ok(ids)
    }

    fn export(&self, collector: &Collector, kubeconfig: &Path) -> Result<Exporter> {
        let listen = format!("--http-listen=unix://{}", self.socket().display());
        let arguments = ["--node-name", NODE, &listen];
        Exporter::start_reporting(
            &self.ctx.environment,
            self.cluster.agent,
            collector,
            kubeconfig,
            &arguments,
        )
    }

    fn socket(&self) -> PathBuf {
        self.out.at("export.sock")
    }

    fn count(&self, result: &str) -> Result<f64> {
        let series = format!("kwitness_export_kubernetes_events_total{{result=\"{result}\"}}");
        scrape(&self.socket())?.get(&series).copied().with_context(|| format!("no {series}"))
    }

    /// Waits until the log says that the account may not, and the count that it is tried again.
    async fn denied(&self, exporter: &Exporter) -> Result<()> {
        wait_for("the denial in the exporter's log, and its count", SOON, async || {
            let is_logged = exporter.log()?.contains("cannot create resource");
            Ok((is_logged && self.count("failed")? >= 1.0).then_some(()))
        })
        .await?;
        ensure!(self.count("refused")? == 0.0, "the first denial is believed");
        Ok(())
    }

    /// kwitness's, but for those that stand for a series.
    fn events(&self) -> Result<Vec<Value>> {
        let list = self.cluster.api.json(&["get", "events", "--namespace", "default"])?;
        let all = list["items"].as_array().context("no list of events")?;
        let is_ours = |event: &&Value| event["reportingComponent"] == "kwitness" && event["series"].is_null();
        Ok(all.iter().filter(is_ours).cloned().collect())
    }

    async fn wait_for_event(&self, pod: &str, reason: &str) -> Result<Value> {
        wait_for(&format!("the Kubernetes Event {reason} of {pod}"), SOON, async || {
            tokio::time::sleep(PAUSE).await;
            let is_it = |event: &Value| event["involvedObject"]["name"] == pod && event["reason"] == reason;
            Ok(self.events()?.into_iter().find(is_it))
        })
        .await
    }

    fn counts(&self) -> Result<BTreeMap<About, usize>> {
        let mut counts = BTreeMap::new();
        for event in self.events()? {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            let about = About { pod: text(&event["involvedObject"]["name"]), reason: text(&event["reason"]) };
            *counts.entry(about).or_default() += 1;
        }
        Ok(counts)
    }

    /// What a person reads, and what `kubectl describe pod` selects by.
    fn check_oom_kill(&self, event: &Value, pod: &str) -> Result<()> {
        println!("{event:#}");
        let object = self.cluster.api.get("pod", pod)?;
        let expected = json!({
            "apiVersion": "v1",
            "kind": "Pod",
            "namespace": "default",
            "name": pod,
            "uid": object["metadata"]["uid"],
            "fieldPath": "spec.containers{main}",
        });
        ensure!(event["involvedObject"] == expected, "{event:#}");
        for (field, value) in [
            ("type", "Warning"),
            ("reason", "OOMKilled"),
            ("action", "OOMKill"),
            ("reportingComponent", "kwitness"),
            ("reportingInstance", NODE),
        ] {
            ensure!(event[field] == value, "{field}: {event:#}");
        }
        let message = event["message"].as_str().context("no message")?;
        // The pod has the same limit as its only container, and a little more in it.
        let is_said = message.starts_with("OOMKilled by the ")
            && message.contains(" limit (")
            && message.contains(&format!(" of {}Mi)", LIMIT >> 20));
        ensure!(is_said, "{message}");
        Ok(())
    }

    /// The other processes of the same kill are counted, and no Event each.
    async fn check_rest_is_a_series(&self, ids: &BTreeMap<&str, String>) -> Result<()> {
        let id = ids.get(EARLY).context("no such pod")?;
        let kills = wait_for("the other kills to be counted", SOON, async || {
            let seen = self.cluster.agent.replay().await?;
            let kills = seen.of(id).filter(|event| matches!(event.kind, Some(Kind::OomKill(_)))).count();
            Ok((self.count("similar")? + 1.0 == kills as f64).then_some(kills))
        });
        let kills = kills.await?;
        println!("{kills} processes were OOM-killed");
        Ok(())
    }

    fn check_nothing_else_is_permitted(&self, kubeconfig: &Path) -> Result<()> {
        let read = ["get", "--raw", "/apis/events.k8s.io/v1/namespaces/default/events"];
        let output = self.cluster.api.kubectl_as(kubeconfig, &read).output().context("run kubectl")?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.to_lowercase().contains("forbidden"), "{output:?}");
        Ok(())
    }

    /// Another process overwrites a limit that is in force; with `--long`, and one of a pod, which is in force no more for 30 s.
    async fn revert(&self, ids: &BTreeMap<&str, String>) -> Result<()> {
        let cgroup = self.cgroup(OUTAGE, ids).await?;
        self.in_force(OUTAGE).await?;
        cgroup::write(&cgroup, "memory.max", LOWER)?;
        let event = self.wait_for_event(OUTAGE, "LimitReverted").await?;
        let message = event["message"].as_str().context("no message")?;
        ensure!(message.starts_with("memory.max ") && event["action"] == "Resize", "{event:#}");

        if ids.contains_key(SHADOWED) {
            self.in_force(SHADOWED).await?;
            let cgroup = self.cgroup(SHADOWED, ids).await?;
            let pod = cgroup.parent().context("a container's cgroup in a pod's")?;
            cgroup::write(pod, "memory.max", LOWER)?;
            let event = self.wait_for_event(SHADOWED, "LimitNotInForce").await?;
            let of_container = event["involvedObject"]["fieldPath"] == "spec.containers{main}";
            ensure!(of_container && event["type"] == "Warning", "{event:#}");
        }
        Ok(())
    }

    async fn cgroup(&self, pod: &str, ids: &BTreeMap<&str, String>) -> Result<PathBuf> {
        self.cluster.node.cgroup_of(ids.get(pod).context("no such pod")?).await
    }

    /// Waits until the daemon says so of a container's memory limit: what was never in force is not reverted.
    async fn in_force(&self, pod: &str) -> Result<()> {
        let what = format!("the limit of {pod} to be in force");
        let is_in_force = |verdict: &Verdict| verdict.verdict() == VerdictKind::InForce;
        limit::judged(self.cluster.agent, &limit::of_pod(pod), &what, SOON, is_in_force).await.map(drop)
    }

    /// The kill comes while nothing listens, and its Event when something does.
    async fn survive_an_outage(&self) -> Result<()> {
        let api = self.cluster.api;
        let before = self.count("failed")?;
        api.kill_api_server()?;
        self.out.signal(OUTAGE)?;
        wait_for("the exporter to try in vain", SOON, async || {
            Ok((self.count("failed")? > before).then_some(()))
        })
        .await?;
        api.start_api_server().await?;
        let event = self.wait_for_event(OUTAGE, "OOMKilled").await?;
        let message = event["message"].as_str().context("no message")?;
        let of_limit = format!(" of {}Mi)", LOWER >> 20);
        let is_said = message.starts_with("OOMKilled by the container limit (");
        ensure!(is_said && message.contains(&of_limit), "{message}");
        ensure!(self.count("refused")? == 0.0, "an Event was refused");
        Ok(())
    }
}

fn list(objects: &[Value], kinds: &[&str]) -> Value {
    // What is not in the namespace has it in its name.
    let of_cluster = format!("{NAMESPACE}:{ACCOUNT}");
    let is_one = |object: &&Value| {
        let is_kind = kinds.iter().any(|kind| object["kind"] == *kind);
        let name = &object["metadata"]["name"];
        is_kind && (object["kind"] == "Namespace" || *name == ACCOUNT || *name == of_cluster.as_str())
    };
    let items: Vec<_> = objects.iter().filter(is_one).collect();
    json!({ "apiVersion": "v1", "kind": "List", "items": items })
}

/// `kubectl get events` knows when it was.
fn check_table(text: &str) -> Result<()> {
    let pod = format!("pod/{EARLY}");
    let line = text.lines().find(|line| line.contains("OOMKilled") && line.contains(&pod));
    let line = line.with_context(|| format!("no line of it in\n{text}"))?;
    ensure!(!line.contains("<unknown>"), "{line}");
    Ok(())
}

/// The same kill, elsewhere.
async fn seen_by(collector: &Collector, prometheus: Option<&Prometheus>) -> Result<()> {
    let is_it = |record: &Exported| {
        let pod = record.attributes.get("k8s.pod.name");
        record.name == "kwitness.oom.kill" && pod.is_some_and(|pod| pod == EARLY)
    };
    collector.wait_until("the OOM kill", |received| received.iter().any(is_it)).await?;
    if let Some(prometheus) = prometheus {
        prometheus.wait_for_alert("ContainerOOMKilled", &[("namespace", "default"), ("pod", EARLY)]).await?;
    }
    Ok(())
}
