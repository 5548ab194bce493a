//! One kubelet's pods: the verdicts on them as they start, after resizes, and after their files are overwritten.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use kwitness_api::proto::{VerdictKind, VerdictOf, VerifyRequest, reading};
use kwitness_tests::matrix::{KubeletVariant, Spec, short};
use kwitness_tests::prelude::*;

use crate::cluster::{Cluster, PAUSE, SOON, with_cluster};

/// A limit: the pod, the container ("": the pod itself), the file.
type Limit = (String, String, String);
type Verdicts = BTreeMap<Limit, Judged>;

/// A limit's verdict.
#[derive(Clone, Debug)]
struct Judged {
    kind: VerdictKind,
    reason: String,
    /// The file's content.
    reading: String,
    path: PathBuf,
    /// What each source says, for people.
    desired: String,
}

/// What went wrong so far, by pod.
#[derive(Default)]
struct Wrong(BTreeMap<&'static str, Vec<String>>);

/// Runs a kubelet's pods and checks their verdicts.
pub(crate) async fn verdicts(ctx: &TestContext, variant: KubeletVariant) -> Result<()> {
    let driver = if ctx.environment.systemd { CgroupDriver::Systemd } else { CgroupDriver::Cgroupfs };
    with_cluster(ctx, driver, variant, async |cluster| {
        let mut specs = variant.pods()?;
        specs.retain(|spec| ctx.environment.long || variant.short.contains(&spec.name));
        let failed = cluster.run(&specs).await?;
        let (running, others): (Vec<_>, Vec<_>) =
            specs.iter().cloned().partition(|spec| !failed.contains_key(spec.name));
        let mut wrong = Wrong::default();
        for spec in &others {
            wrong.add(spec, "at the start", failed.get(spec.name).cloned());
        }
        if !variant.tracked {
            unjudged(cluster.agent).await?;
        }
        let mut counts = BTreeMap::new();
        if variant.tracked {
            let started = judge(cluster).await?;
            wrong.note(&running, &started, "at the start");
            for spec in &running {
                counts.insert(spec.name, of_pod(&started, spec).count());
            }
            let up = resize(cluster, &running, started, 2, &mut wrong).await?;
            let down = resize(cluster, &running, up, 1, &mut wrong).await?;
            overwrite(cluster, &running, &down, &mut wrong).await?;
        }
        for spec in &specs {
            let count = counts.get(spec.name).copied().unwrap_or_default();
            let runtime = variant.handler(driver).name();
            let mark = if wrong.0.contains_key(spec.name) { " WRONG" } else { "" };
            println!("{} {count} ({runtime}){mark} |", spec.row(&variant));
        }
        let all: Vec<_> = wrong.0.into_values().flatten().collect();
        ensure!(all.is_empty(), "{} wrong verdicts:\n{}", all.len(), all.join("\n"));
        Ok(())
    })
    .await
}

/// Of containers outside of what is tracked, nothing is judged.
async fn unjudged(agent: &Agent) -> Result<()> {
    match agent.verify(VerifyRequest::default()).await {
        Err(status) if status.code() == tonic::Code::NotFound => Ok(()),
        other => bail!("not refused: {other:?}"),
    }
}

/// All verdicts, as they are; waits only for sources that a slow guest keeps from answering, and for the runtime's names of new
/// containers.
async fn judge(cluster: &Cluster<'_>) -> Result<Verdicts> {
    let mut missing = String::new();
    let all = wait_for("all sources and names", SOON, async || {
        if !missing.is_empty() {
            tokio::time::sleep(PAUSE).await;
        }
        let answer = cluster.agent.verify(VerifyRequest::default()).await.context("call Verify")?;
        if !answer.unavailable.is_empty() {
            missing = format!("sources are unavailable: {:?}", answer.unavailable);
            return Ok(None);
        }
        let mut unnamed = BTreeSet::new();
        let mut named = Verdicts::new();
        for of in answer.verdicts {
            let cgroup = of.verdict.as_ref().and_then(|verdict| verdict.cgroup.clone());
            match judged(cluster, of) {
                Some((limit, judged)) => {
                    named.insert(limit, judged);
                }
                None => unnamed.extend(cgroup.and_then(|cgroup| cgroup.path)),
            }
        }
        missing = format!("the runtime has no names for {unnamed:?}");
        Ok(unnamed.is_empty().then_some(named))
    });
    let all = all.await;
    all.with_context(|| missing)
}

/// None: its names are not known yet.
fn judged(cluster: &Cluster<'_>, of: VerdictOf) -> Option<(Limit, Judged)> {
    let verdict = of.verdict?;
    let cgroup = verdict.cgroup.as_ref()?;
    let (pod, container) = match &of.container {
        Some(container) => (container.pod.as_ref()?, container.name.clone()?),
        None => (cgroup.pod.as_ref()?, String::new()),
    };
    let pod = pod.name.as_deref()?;
    // The kubelet adds its node's name to that of a pod from a file.
    let pod = pod.strip_suffix(&format!("-{NODE}")).unwrap_or(pod).to_owned();
    let reading = match verdict.in_force.as_ref()?.reading.as_ref()? {
        reading::Reading::Value(value) => value.clone(),
        other => format!("{other:?}"),
    };
    let path = cluster.node.cgroup_directory(cgroup.path.as_deref()?).join(&verdict.file);
    let desired = verdict.desired.iter().map(|of| format!("{:?} {}", of.source(), of.value));
    let desired = desired.collect::<Vec<_>>().join(", ");
    let (kind, limit) = (verdict.verdict(), (pod, container, verdict.file));
    Some((limit, Judged { kind, reason: verdict.reason, reading, path, desired }))
}

fn of_pod<'a>(verdicts: &'a Verdicts, spec: &Spec) -> impl Iterator<Item = (&'a Limit, &'a Judged)> {
    let name = spec.name;
    verdicts.iter().filter(move |((pod, ..), _)| pod == name)
}

/// What is not as the table says.
fn mismatches(spec: &Spec, verdicts: &Verdicts) -> Vec<String> {
    let unexpected = |((_, whose, file), of): (&Limit, &Judged)| {
        let (kind, reason) = spec.expected(whose, file);
        let is_expected = of.kind == kind && of.reason.contains(reason);
        let Judged { reason, reading, desired, .. } = of;
        let (whose, is) = (shown(whose), short(of.kind));
        (!is_expected)
            .then(|| format!("{whose} {file} = {reading} is {is}, not {}: {reason} [{desired}]", short(kind)))
    };
    let mut wrong: Vec<_> = of_pod(verdicts, spec).filter_map(unexpected).collect();
    let judged = |name: &str| of_pod(verdicts, spec).any(|((_, whose, _), _)| whose == name);
    wrong.extend(spec.running().filter(|name| !judged(name)).map(|name| format!("{name} is not judged")));
    wrong
}

fn shown(whose: &str) -> &str {
    if whose.is_empty() { "pod" } else { whose }
}

impl Wrong {
    fn add(&mut self, spec: &Spec, when: &str, what: impl IntoIterator<Item = String>) {
        for what in what {
            println!("{} {when}: {what}", spec.name);
            self.0.entry(spec.name).or_default().push(format!("{} {when}: {what}", spec.name));
        }
    }

    fn note(&mut self, specs: &[Spec], verdicts: &Verdicts, when: &str) {
        for spec in specs {
            self.add(spec, when, mismatches(spec, verdicts));
        }
    }
}

/// Has all limits made so many times what they were, and waits until each file that has one says something else and all verdicts are
/// right.
async fn resize(
    cluster: &Cluster<'_>,
    specs: &[Spec],
    before: Verdicts,
    times: u64,
    wrong: &mut Wrong,
) -> Result<Verdicts> {
    let began = Instant::now();
    let when = format!("after the resize by {times}");
    let mut resized = Vec::new();
    for spec in specs.iter().filter(|spec| spec.can_resize()) {
        match cluster.resize(spec, times) {
            Ok(()) => resized.push(spec),
            Err(error) => wrong.add(spec, &when, [format!("{error:#}")]),
        }
    }
    let mut last = before.clone();
    let settled = wait_for("all resizes to be in force", SOON, async || {
        tokio::time::sleep(PAUSE).await;
        last = judge(cluster).await?;
        // What was wrong before will hardly be right.
        let mut waited = resized.iter().filter(|spec| !wrong.0.contains_key(spec.name));
        Ok(waited.all(|spec| unsettled(spec, &before, &last).is_empty()).then_some(()))
    });
    if let Err(error) = settled.await {
        println!("{error:#}; the kubelet on its resizes:\n{}", cluster.resizes()?);
    }
    println!("{} resizes by {times} after {:.1} s", resized.len(), began.elapsed().as_secs_f64());
    for spec in specs {
        let what = if spec.can_resize() { unsettled(spec, &before, &last) } else { mismatches(spec, &last) };
        wrong.add(spec, &when, what);
    }
    Ok(last)
}

/// What a resize has still to change.
fn unsettled(spec: &Spec, before: &Verdicts, now: &Verdicts) -> Vec<String> {
    let same = |(limit, of): (&Limit, &Judged)| {
        let (_, whose, file) = limit;
        let is_same = before.get(limit).is_some_and(|before| before.reading == of.reading);
        let changes = spec.changes(whose, file) && spec.expected(whose, file).0 == VerdictKind::InForce;
        (changes && is_same).then(|| format!("{} {file} still is {}", shown(whose), of.reading))
    };
    let same = of_pod(now, spec).filter_map(same);
    same.chain(mismatches(spec, now)).collect()
}

/// Overwrites the limit files of all containers, then one of each pod; each must be noticed, and its end, too.
async fn overwrite(
    cluster: &Cluster<'_>,
    specs: &[Spec],
    judged: &Verdicts,
    wrong: &mut Wrong,
) -> Result<()> {
    for of_pods in [false, true] {
        let mut written = BTreeMap::new();
        for spec in specs {
            for (limit, of) in of_pod(judged, spec) {
                let (_, whose, file) = limit;
                let is_unknown = spec.expected(whose, file).0 == VerdictKind::Unknown;
                if whose.is_empty() == of_pods
                    && let Some(other) = another(file, of, of_pods, is_unknown)
                {
                    match fs::write(&of.path, other) {
                        Ok(()) => {
                            written.insert(limit.clone(), spec);
                        }
                        Err(error) => {
                            let what = format!("{} {file} cannot be set to {other}: {error}", shown(whose));
                            wrong.add(spec, "overwriting", [what]);
                        }
                    }
                }
            }
        }
        let now = judge(cluster).await?;
        for (limit, spec) in &written {
            let (_, whose, file) = limit;
            let expected = match spec.expected(whose, file).0 {
                VerdictKind::Unknown => VerdictKind::Diverged,
                _ => VerdictKind::Reverted,
            };
            let is = now.get(limit).map(|of| of.kind);
            let what = || format!("{} {file} is {is:?}, not {}", shown(whose), short(expected));
            wrong.add(spec, "overwritten", (is != Some(expected)).then(what));
        }
        println!("{} files overwritten", written.len());
        for limit in written.keys() {
            let Judged { reading, path, .. } = &judged[limit];
            fs::write(path, reading).with_context(|| format!("write {}", path.display()))?;
        }
        let now = judge(cluster).await?;
        wrong.note(specs, &now, "restored");
    }
    Ok(())
}

/// The least quota.
const LOW: &str = "1000 100000";
/// Less CPU time than that, in the longest period.
const LOWER: &str = "1500 1000000";

/// Another content of a limit file, under which a sleeping process lives on, and which is wrong even where it is unknown what is
/// right; none: it is left as it is.
fn another(file: &str, of: &Judged, of_pod: bool, is_unknown: bool) -> Option<&'static str> {
    let reading = &*of.reading;
    // A tiny limit has the least quota, though not with every kubelet's settings.
    let low = if reading != LOW && of.desired.contains(LOW) { LOWER } else { LOW };
    // A pod's limit may be higher than the sum, so that only a lower one is wrong; that may be its own, where that is unknown.
    let other = match file {
        _ if of_pod && is_unknown => return None,
        "cpu.max" if of_pod || is_unknown || reading.starts_with("max") => low,
        "memory.max" if !of_pod && (is_unknown || reading == "max") => "536870912",
        "cpu.max" | "memory.max" if !of_pod => "max",
        "cpu.weight" if !of_pod => "77",
        _ => return None,
    };
    (other != reading).then_some(other)
}
