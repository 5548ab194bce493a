//! `kubectl patch --subresource resize`, and what becomes of it: as the API reports, as the kernel has it, as kwitness judges.
//!
//! Whatever the API says of a resize, and when: the verdict must not follow it, but the kernel.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use kwitness_api::proto::event::Kind;
use kwitness_api::proto::{
    Cgroup, CgroupRole, Filter, VerdictKind, VerifyRequest, Wanted, WatchRequest, wanted,
};
use kwitness_tests::events::Received;
use kwitness_tests::prelude::*;
use serde_json::{Value, json};

use crate::join::{Cluster, SOON, Way, with_cluster};
use crate::timeline::{Source, Timeline};

const PATCH: &str = r#"{"spec":{"containers":[{"name":"main","resources":
    {"requests":{"cpu":"200m","memory":"48Mi"},"limits":{"cpu":"400m","memory":"96Mi"}}}]}}"#;
const MEMORY: u64 = 96 << 20;
const MILLI_CPU: u64 = 400;
/// What the kernel must say in the end, of the container and of its pod.
const IN_THE_END: [(&str, &str); 2] = [("memory.max", "100663296"), ("cpu.max", "40000 100000")];

pub(crate) async fn a_resize_is_in_force_when_the_kernel_has_it(ctx: &Testbed<'_>) -> Result<()> {
    ctx.with_api(async |api| all_ways(ctx, api).await).await
}

async fn all_ways(ctx: &Testbed<'_>, api: &ControlPlane) -> Result<()> {
    let began = Instant::now();
    for (name, pleg, way) in [
        ("evented", Pleg::Evented, Way::Proxy),
        ("straight", Pleg::Evented, Way::Straight),
        ("generic", Pleg::Generic, Way::Proxy),
    ] {
        let timeline = Timeline::default();
        let done = with_cluster(ctx, api, (pleg, way), async |cluster| {
            let id = cluster.pod(name).await?;
            follow(cluster, name, &id, &timeline).await?;
            if pleg == Pleg::Evented {
                cluster.kubelet.check_events_in_use().await?;
            }
            cluster.api.run(&["delete", "pod", name, "--force", "--grace-period=0", "--wait=false"]).map(drop)
        })
        .await;
        let since = began.elapsed().as_secs_f64();
        timeline.print(&format!("\n{name}: {pleg:?} PLEG, {way:?}, {since:.0} s after the start"));
        done?;
    }
    Ok(())
}

/// Patches, and collects what is reported until all say that it is done.
async fn follow(cluster: &Cluster<'_>, name: &str, id: &str, timeline: &Timeline) -> Result<()> {
    let before = verdicts(cluster.agent, request(name, id, 64 << 20, 200, 60_000)).await?;
    ensure!(all_in_force(&before), "before the resize: {before:?}");
    let watch = WatchRequest { filter: Some(of_pod(name)), ..from_now() };
    let mut watcher = cluster.agent.watch(watch).await?;

    let api = ApiWatches::open(cluster, name).await?;

    timeline.report(Source::Test, "kubectl patch --subresource resize");
    cluster.api.run(&["patch", "pod", name, "--subresource=resize", "--patch", PATCH])?;
    timeline.report(Source::Api, "patched");
    let waiting = async {
        // Answers when all is in force, and not before.
        let verdicts = verdicts(cluster.agent, request(name, id, MEMORY, MILLI_CPU, 600_000)).await?;
        timeline.report(Source::Verdict, format!("--wait: {}", summary(&verdicts)));
        ensure!(all_in_force(&verdicts), "waited in vain: {verdicts:?}");
        Ok(())
    };
    let looking = look(cluster, name, id, timeline);
    let asking = ask(&api, name, timeline);
    tokio::try_join!(waiting, looking, asking)?;

    let seen = watcher.wait_until("the last write", |seen| {
        let written = seen.events().filter_map(|event| match event.kind.as_ref()? {
            Kind::LimitChanged(changed) => changed.write.as_ref()?.value.as_deref(),
            _ => None,
        });
        let written: Vec<_> = written.collect();
        // Of the pod and of the container.
        IN_THE_END.iter().all(|(_, value)| written.iter().filter(|written| *written == value).count() >= 2)
    });
    for Received { event, at } in seen.await?.0 {
        if let Some(Kind::Verdict(verdict)) = &event.kind {
            let whose = whose(verdict.cgroup.as_ref());
            let what = format!("event: {whose} {} {}", verdict.file, short(verdict.verdict()));
            timeline.report_at(at, Source::Verdict, what);
        }
        let Some(Kind::LimitChanged(changed)) = &event.kind else { continue };
        let Some(write) = &changed.write else { continue };
        let whose = whose(changed.cgroup.as_ref());
        let writer = write.writer.as_ref().and_then(|writer| writer.comm.as_deref()).unwrap_or("?");
        let what =
            format!("{whose} {} = {} by {writer}", changed.file, write.value.as_deref().unwrap_or("?"));
        timeline.report_at(write.returned.unwrap_or(event.kernel_time), Source::Kernel, what);
    }
    check(timeline)
}

/// What the kernel has is in force, and nothing before that.
fn check(timeline: &Timeline) -> Result<()> {
    let mut written = 0;
    for (file, value) in IN_THE_END {
        for whose in ["pod", "container"] {
            let line = format!("{whose} {file} = {value} ");
            let at = timeline.first(Source::Kernel, |what| what.starts_with(&line));
            written = written.max(at.with_context(|| format!("no write seen: {line}"))?);
        }
    }
    for reported in timeline.all() {
        let early = reported.source == Source::Verdict
            && reported.what.ends_with("all in force")
            && reported.at < written;
        ensure!(!early, "a verdict before the last write: {reported:?}");
    }
    let verdict = timeline.first(Source::Verdict, |what| what.ends_with("all in force"));
    let verdict = verdict.context("no verdict `in force`")?;
    let milliseconds = |nanoseconds: u64| nanoseconds as f64 / 1e6;
    println!("in force is reported {:.1} ms after the last write returned", milliseconds(verdict - written));
    let completed = timeline.first(Source::Api, |what| what.starts_with("event ResizeCompleted"));
    if let Some(completed) = completed.filter(|completed| *completed < written) {
        println!(
            "the API reported ResizeCompleted {:.0} ms before the last write",
            milliseconds(written - completed)
        );
    }
    Ok(())
}

/// A pod's or a container's.
fn whose(cgroup: Option<&Cgroup>) -> &'static str {
    match cgroup.map(Cgroup::role) {
        Some(CgroupRole::Pod) => "pod",
        Some(CgroupRole::Container) => "container",
        _ => "another",
    }
}

/// Looks at the verdicts as they are, without waiting, until all are in force.
async fn look(cluster: &Cluster<'_>, name: &str, id: &str, timeline: &Timeline) -> Result<()> {
    let mut before = String::new();
    let began = Instant::now();
    loop {
        let verdicts = verdicts(cluster.agent, request(name, id, MEMORY, MILLI_CPU, 0)).await?;
        let now = summary(&verdicts);
        if now != before {
            timeline.report(Source::Verdict, now.clone());
            before = now;
        }
        if all_in_force(&verdicts) {
            return Ok(());
        }
        ensure!(began.elapsed() < SOON, "never in force: {before}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

struct ApiWatches {
    events: PathBuf,
    pod: PathBuf,
    _watching: [Managed; 2],
    _directory: tempfile::TempDir,
}

impl ApiWatches {
    /// Begins to ask, and waits until answers come.
    async fn open(cluster: &Cluster<'_>, name: &str) -> Result<Self> {
        const EVENTS: &str = r#"jsonpath={.involvedObject.name}|{.reason}|{.message}{"\n"}"#;
        const POD: &str = concat!(
            "jsonpath={.status.containerStatuses[0].resources.limits}|",
            r#"{.status.conditions[?(@.status=="True")].type}{"\n"}"#
        );
        let directory = tempfile::tempdir().context("make a directory for what kubectl says")?;
        let (events, pod) = (directory.path().join("events"), directory.path().join("pod"));
        let watching = [
            cluster.api.watch(&["get", "events", "--watch", "--output", EVENTS], &events)?,
            cluster.api.watch(&["get", "pod", name, "--watch", "--output", POD], &pod)?,
        ];
        for said in [&events, &pod] {
            let answered = async || Ok((!whole_lines(said)?.is_empty()).then_some(()));
            wait_for("kubectl to watch", SOON, answered).await?;
        }
        Ok(Self { events, pod, _watching: watching, _directory: directory })
    }
}

/// Follows what the API says, until it has the new limits and says no more that a resize is under way.
async fn ask(api: &ApiWatches, name: &str, timeline: &Timeline) -> Result<()> {
    let ApiWatches { events: events_said, pod: pod_said, .. } = api;
    let (mut reported, mut completed, mut settled) = (0, false, false);
    let mut before = String::new();
    let done = wait_for("the API to have the new limits", SOON, async || {
        let events = whole_lines(events_said)?;
        for event in &events[reported..] {
            let mut fields = event.splitn(3, '|');
            let (of, reason) = (fields.next().unwrap_or_default(), fields.next().unwrap_or_default());
            if of == name && reason.starts_with("Resize") {
                let limits = limits_of(fields.next().unwrap_or_default());
                timeline.report(Source::Api, format!("event {reason} {limits}").trim_end());
                completed |= reason == "ResizeCompleted";
            }
        }
        reported = events.len();
        if let Some(pod) = whole_lines(pod_said)?.last() {
            let (limits, conditions) = pod.split_once('|').unwrap_or_default();
            let under_way = conditions.split(' ').filter(|kind| kind.starts_with("PodResize"));
            let under_way: Vec<_> = under_way.collect();
            let limits: Value = serde_json::from_str(limits).unwrap_or_default();
            settled = limits == json!({ "cpu": "400m", "memory": "96Mi" }) && under_way.is_empty();
            let limits = (text(&limits["cpu"]), text(&limits["memory"]));
            let now = format!("status {} {} {}", limits.0, limits.1, under_way.join(" "));
            if now != before {
                timeline.report(Source::Api, now.trim_end());
                before = now;
            }
        }
        Ok((settled && completed).then_some(()))
    });
    done.await
}

fn whole_lines(path: &Path) -> Result<Vec<String>> {
    let said = fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let whole = said.rfind('\n').map_or("", |end| &said[..end]);
    Ok(whole.lines().map(str::to_owned).collect())
}

fn limits_of(message: &str) -> String {
    let Some(json) = message.find('{').and_then(|at| serde_json::from_str::<Value>(&message[at..]).ok())
    else {
        return String::new();
    };
    let limits = &json["containers"][0]["resources"]["limits"];
    format!("{} {}", text(&limits["cpu"]), text(&limits["memory"]))
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn of_pod(name: &str) -> Filter {
    Filter { pods: vec![name.to_owned()], ..Filter::default() }
}

fn request(name: &str, id: &str, memory: u64, milli_cpu: u64, wait_ms: u32) -> VerifyRequest {
    VerifyRequest {
        filter: Some(Filter { containers: vec![id.to_owned()], ..of_pod(name) }),
        wanted: Some(Wanted {
            memory: Some(wanted::Memory::MemoryBytes(memory)),
            cpu: Some(wanted::Cpu::MilliCpu(milli_cpu)),
        }),
        wait_ms,
        prove_ms: 0,
    }
}

async fn verdicts(agent: &Agent, request: VerifyRequest) -> Result<BTreeMap<String, VerdictKind>> {
    let answer = agent.verify(request).await.context("call Verify")?;
    let verdicts = answer.verdicts.into_iter().filter_map(|of| of.verdict);
    let verdicts: BTreeMap<_, _> =
        verdicts.map(|verdict| (verdict.file.clone(), verdict.verdict())).collect();
    if verdicts.is_empty() {
        bail!("nothing was judged; unavailable: {:?}", answer.unavailable);
    }
    Ok(verdicts)
}

fn all_in_force(verdicts: &BTreeMap<String, VerdictKind>) -> bool {
    IN_THE_END.iter().all(|(file, _)| verdicts.get(*file) == Some(&VerdictKind::InForce))
}

fn short(kind: VerdictKind) -> String {
    kind.as_str_name().trim_start_matches("VERDICT_KIND_").to_lowercase().replace('_', " ")
}

fn summary(verdicts: &BTreeMap<String, VerdictKind>) -> String {
    if all_in_force(verdicts) {
        return "all in force".to_owned();
    }
    let of = IN_THE_END.iter().map(|(file, _)| {
        let kind = verdicts.get(*file).map_or_else(|| "nothing".to_owned(), |kind| short(*kind));
        format!("{file} {kind}")
    });
    of.collect::<Vec<_>>().join(", ")
}
