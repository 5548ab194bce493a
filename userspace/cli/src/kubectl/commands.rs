//! `kubectl kwitness ps`, `verify`, `status` and `timeline`: each asks the nodes once.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use futures_util::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kwitness_api::client::Error as ClientError;
use kwitness_api::{Client, EventKind, Source, Timestamp, proto};
use tokio::time::Instant;

use super::cluster::Cluster;
use super::failure::Failure;
use super::targets::{self, Targets, lasting, name_of, node_of, uid_of, wanted};
use crate::args::{Ps, Status, Verify};
use crate::exit::{Code, NotHere};
use crate::history::history;
use crate::options::Filter;
use crate::output::{Format, OfNode, Output, note};
use crate::table::{Cell, Fit, Table};
use crate::text::age;
use crate::{ps, select, timeline, verify};

/// `Verify` calls that a node is asked at a time: one a container.
const VERIFIED: usize = 64;

/// The containers of all nodes.
pub async fn ps(cluster: Arc<Cluster>, filter: Filter, options: Ps) -> anyhow::Result<Code> {
    let nodes = cluster.nodes().await?;
    let (targets, not_here) = Targets::find(&cluster, &filter).await?;
    if let Some(not_here) = not_here {
        return Err(not_here.into());
    }
    let list = |client, filter: proto::Filter| async move {
        ps::list(&mut Source::Live(client), &filter, options.all).await
    };
    let (answers, missing) = nodes.each(|node| targets.on(node), list).await;
    let mut containers: Vec<_> =
        answers.iter().flat_map(|(node, containers)| OfNode::all_of(node, containers)).collect();
    options.output.sort(&mut containers)?;
    let format = options.output.output;
    if containers.is_empty() && missing.is_none() && matches!(format, Format::Table | Format::Wide) {
        note("no containers found");
    }
    let mut printer = ps::Printer::new(format, !filter.is_one_namespace(), options.no_headers);
    printer.write(&containers, Utc::now())?;
    Ok(missing.code(Code::Success))
}

/// Whether the limits of the pods' specs are in force.
pub async fn verify(cluster: Arc<Cluster>, filter: Filter, options: Verify) -> anyhow::Result<Code> {
    let nodes = cluster.nodes().await?;
    let pods = targets::pods(&cluster, &filter).await??;
    let is_wanted = |pod: &Pod| node_of(pod).is_none_or(|node| cluster.is_wanted(node));
    let (running, others): (Vec<_>, Vec<_>) = pods.into_iter().filter(is_wanted).partition(|pod| {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        node_of(pod).is_some() && phase == Some("Running")
    });
    if running.is_empty() {
        return Err(NotHere(format!("none of these pods is running ({} are not)", others.len())).into());
    }
    let pods_of = |node: &str| {
        let pods: Vec<_> = running.iter().filter(|pod| node_of(pod) == Some(node)).collect();
        (!pods.is_empty()).then_some(pods)
    };
    let deadline = Instant::now() + options.wait;
    let judge = |client, pods| judge(client, pods, &filter.container, &options, deadline);
    let (answers, mut missing) = nodes.each(pods_of, judge).await;
    let unwatched: BTreeSet<_> = running.iter().filter_map(node_of).collect();
    let unwatched: Vec<_> = unwatched.into_iter().filter(|node| nodes.get(node).is_none()).collect();
    if !unwatched.is_empty() {
        let text = format!("no daemon of kwitness on the nodes of some pods: {}", unwatched.join(", "));
        missing.add(Failure::new(Code::Unreachable, text));
    }
    let (mut verdicts, mut is_incomplete) = (Vec::new(), false);
    for (node, answer) in &answers {
        for source in &answer.unavailable {
            note(&format!("warning: node {node}: cannot query {source}"));
        }
        for container in &answer.unknown {
            note(&format!("node {node}: the daemon knows no container {container}"));
        }
        is_incomplete |= !answer.unknown.is_empty();
        verdicts.extend(OfNode::all_of(node, &answer.verdicts));
    }
    if verdicts.is_empty() && !is_incomplete && missing.is_none() {
        note("no CPU or memory limit is set for these containers");
    }
    options.output.sort(&mut verdicts)?;
    let format = options.output.output;
    let mut printer = verify::Printer::new(format, None, filter.is_one_namespace(), true)
        .with_times_of_the_api(options.times.shown(format));
    printer.write(&verdicts, None)?;
    let all: Vec<_> = verdicts.into_iter().map(|of| of.value.clone()).collect();
    let of_answers = if answers.is_empty() { Code::Success } else { verify::code(&all) };
    Ok(match missing.code(of_answers) {
        code if u8::from(code) == 0 && is_incomplete => Code::Verdict(proto::VerdictKind::Unknown),
        code => code,
    })
}

/// What a node answered.
#[derive(Default)]
struct Judged {
    verdicts: Vec<proto::VerdictOf>,
    unavailable: BTreeSet<String>,
    /// Containers that the daemon does not know.
    unknown: Vec<String>,
}

/// Asks a node whether its pods have the limits of their specs: a call a container, and one a pod for the pod's own limits.
async fn judge(
    mut client: Client,
    pods: Vec<&Pod>,
    containers: &[String],
    options: &Verify,
    deadline: Instant,
) -> Result<Judged, ClientError> {
    // Its first call connects; without one, all would wait for the same connection's failure.
    client.status().await?;
    let mut questions = Vec::new();
    for pod in pods {
        let is_wanted = |name: &String| containers.is_empty() || containers.contains(name);
        for container in lasting(pod).filter(|container| is_wanted(&container.name)) {
            questions.push((pod, Some(container)));
        }
        if containers.is_empty() {
            questions.push((pod, None));
        }
    }
    let answers = futures_util::stream::iter(questions).map(|(pod, container)| {
        let mut client = client.clone();
        async move {
            let of_spec = container.map(wanted).unwrap_or_default();
            let of_caller = proto::Wanted { memory: options.memory, cpu: options.cpu };
            let filter = proto::Filter {
                pods: uid_of(pod).map(str::to_owned).into_iter().collect(),
                containers: container.map(|container| container.name.clone()).into_iter().collect(),
                ..Default::default()
            };
            let request = proto::VerifyRequest {
                filter: Some(filter),
                wanted: Some(proto::Wanted {
                    memory: of_caller.memory.or(of_spec.memory),
                    cpu: of_caller.cpu.or(of_spec.cpu),
                })
                .filter(|_| container.is_some()),
                wait_ms: millis(deadline.saturating_duration_since(Instant::now())),
                prove_ms: options.prove.map_or(0, millis),
            };
            Ok::<_, ClientError>(match client.verify(request).await {
                Err(ClientError::NotFound(_)) => match container {
                    Some(container) => {
                        let unknown = vec![format!("{} of pod {}", container.name, name_of(pod))];
                        Judged { unknown, ..Judged::default() }
                    }
                    None => Judged::default(),
                },
                answer => {
                    let proto::VerifyResponse { mut verdicts, unavailable } = answer?;
                    // Of a pod the containers were queried one by one.
                    verdicts.retain(|of| of.container.is_some() == container.is_some());
                    Judged { verdicts, unavailable: unavailable.into_iter().collect(), unknown: Vec::new() }
                }
            })
        }
    });
    let add = |mut all: Judged, one: Judged| {
        all.verdicts.extend(one.verdicts);
        all.unavailable.extend(one.unavailable);
        all.unknown.extend(one.unknown);
        async { Ok(all) }
    };
    answers.buffered(VERIFIED).try_fold(Judged::default(), add).await
}

fn millis(duration: Duration) -> u32 {
    u32::try_from(duration.as_millis()).unwrap_or(u32::MAX)
}

/// A line for each daemon.
pub async fn status(cluster: Arc<Cluster>, options: Status) -> anyhow::Result<Code> {
    let nodes = cluster.nodes().await?;
    let ask = |mut client: Client, ()| async move { client.status().await };
    let (answers, missing) = nodes.each(|_| Some(()), ask).await;
    let mut out = Output::new();
    match options.output.output {
        Format::Table | Format::Wide if answers.is_empty() => {}
        format @ (Format::Table | Format::Wide) => out.text(&status_table(&answers, out.width(format)))?,
        format => {
            for (_, status) in &answers {
                out.value(format, status)?;
            }
        }
    }
    out.flush()?;
    Ok(missing.code(Code::Success))
}

fn status_table(answers: &[(String, proto::StatusResponse)], limit: Option<usize>) -> String {
    let headings = ["VERSION", "AGE", "CONTAINERS", "LOST", "HOOKS"];
    let table = Table::new(limit).column("NODE", 0, Fit::Middle(9));
    let table = headings.into_iter().fold(table, |table, heading| table.column(heading, 0, Fit::Whole));
    let table = table.column("PROBLEMS", 0, Fit::End(8));
    let rows: Vec<_> = answers
        .iter()
        .map(|(node, status)| {
            let lost: u64 = status.lost.values().sum();
            let hooks = status.capabilities.iter().filter(|capability| !capability.hook.is_empty()).count();
            let problems: Vec<_> = status.problems.iter().map(|problem| problem.name.as_str()).collect();
            let problems = if problems.is_empty() { "none".to_owned() } else { problems.join(", ") };
            vec![
                Cell::from(node),
                status.version.as_str().into(),
                age(status.started_at, Utc::now()).into(),
                status.containers.to_string().into(),
                lost.to_string().into(),
                format!("{hooks}/{}", status.capabilities.len()).into(),
                problems.into(),
            ]
        })
        .collect();
    table.render(&rows)
}

/// What happened to a pod, by the daemon of its node; without a pod, what happened on the one node that is named.
pub async fn timeline(
    cluster: Arc<Cluster>,
    filter: Filter,
    options: timeline::Options,
) -> anyhow::Result<Code> {
    let nodes = cluster.nodes().await?;
    if filter.pod.is_empty() {
        let names: Vec<_> = nodes.names().collect();
        let [node] = &*names else {
            return Err(Failure::new(Code::Failure, "name a pod, or one node with --node").into());
        };
        let client = nodes.get(node).cloned();
        return show(client, timeline::Options { namespace: None, ..options }).await;
    }
    let (node, pod, namespace) = match targets::pods(&cluster, &filter).await? {
        Ok(pods) => match &*pods {
            [pod] => (node_of(pod).map(str::to_owned), name_of(pod), None),
            pods => {
                let names: Vec<_> = pods.iter().map(name_of).collect();
                let text = format!("a timeline is of one pod; these match: {}", names.join(", "));
                return Err(Failure::new(Code::Failure, text).into());
            }
        },
        // The API server has forgotten it; the daemon of its node may not have.
        Err(not_here) => {
            let request = proto::WatchRequest {
                filter: Some(select::literally(&filter)),
                since: Some(Timestamp::default()),
                // One of its events is enough to know its node.
                limit: 1,
                ..Default::default()
            };
            let room = nodes.history_bytes();
            let read = |client, request| async move { history(&Source::Live(client), request, room).await };
            let (past, _) = nodes.each(|_| Some(request.clone()), read).await;
            // That of a pod's own limit has no container.
            let is_of_pod =
                |event: &proto::Event| EventKind::of(event).is_some_and(|kind| !kind.is_of_node());
            let had = past.into_iter().find(|(_, past)| past.events.iter().any(is_of_pod));
            let (node, _) = had.ok_or(not_here)?;
            (Some(node), filter.pod.join(","), filter.namespace.into_iter().next())
        }
    };
    let Some(node) = node else {
        return Err(NotHere(format!("pod {pod} is on no node yet")).into());
    };
    let client = nodes.get(&node).cloned();
    if client.is_none() {
        let text = format!("no daemon of kwitness on node {node}, where pod {pod} is");
        return Err(Failure::new(Code::Unreachable, text).into());
    }
    show(client, timeline::Options { pod: Some(pod), namespace, ..options }).await
}

async fn show(client: Option<Client>, options: timeline::Options) -> anyhow::Result<Code> {
    let client = client.ok_or_else(|| Failure::new(Code::Unreachable, "the node has no daemon"))?;
    timeline::show(Source::Live(client), options).await.map_err(|error| {
        error
            .downcast::<kwitness_api::SourceError>()
            .map_or_else(|error| error, |error| Failure::from(error).into())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_for_each_daemon() {
        let status = proto::StatusResponse {
            version: "0.1.0".into(),
            containers: 12,
            lost: [("ring_full/task_exec".to_owned(), 3)].into(),
            capabilities: vec![
                proto::Capability { hook: "raw_tp:x".into(), ..Default::default() },
                proto::Capability::default(),
            ],
            problems: vec![proto::Problem { name: "other_pod".into(), ..Default::default() }],
            ..Default::default()
        };
        let healthy = proto::StatusResponse { version: "0.1.0".into(), ..Default::default() };
        let answers = [("worker-1".to_owned(), status), ("worker-2".to_owned(), healthy)];
        let text = anstream::adapter::strip_str(&status_table(&answers, None)).to_string();
        let expected = "\
NODE      VERSION  AGE  CONTAINERS  LOST  HOOKS  PROBLEMS
worker-1  0.1.0    -    12          3     1/2    other_pod
worker-2  0.1.0    -    0           0     0/0    none
";
        assert_eq!(text, expected);
    }
}
