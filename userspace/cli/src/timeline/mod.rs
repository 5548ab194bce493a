//! `kwitness timeline`: what happened to a pod or a node, as text, a page, a trace or JSON.
//!
//! Owns which events belong to a pod. Reads a daemon or a recording, and writes nothing but its output.

mod answers;
mod html;
mod micros;
mod model;
mod perfetto;
#[cfg(test)]
mod tests;
mod text;
mod usage;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;

use clap::ValueEnum;
use clap_complete::engine::ArgValueCompleter;
use kwitness_api::proto::event::Kind;
use kwitness_api::{EventKind, Source, proto};

use crate::describe::names;
use crate::exit::Code;
use crate::history::{HISTORY_BYTES, history};
use crate::options::{FILTERS, Filter, From, OUTPUT, TimeOptions};
use crate::output::{Format, Output};
use crate::text::Moment;
use crate::{complete, connect, select};
pub use model::Timeline;
pub use text::lines;
use usage::Usage;

/// How a timeline is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// The answers, a chart and the events, for the terminal
    Text,
    /// One page for a browser, which needs no network
    Html,
    /// A trace for ui.perfetto.dev and trace_processor (protobuf)
    Perfetto,
    /// One JSON object
    Json,
}

#[derive(Debug, clap::Args)]
pub struct Options {
    /// The pod: name, NAMESPACE/NAME, UID, or the beginning of names; also one that is gone [default: the node]
    #[arg(value_name = "POD", add = ArgValueCompleter::new(complete::pods))]
    pub pod: Option<String>,
    /// Only pods in this namespace
    #[arg(long, short = 'n', value_name = "NAMESPACE", add = ArgValueCompleter::new(complete::namespaces), help_heading = FILTERS)]
    pub namespace: Option<String>,
    /// Start here: an age ("5m", "1h30m") or a time (RFC 3339) [default: 1h, of a recording all]
    #[arg(long, value_name = "WHEN", help_heading = FILTERS)]
    pub since: Option<Moment>,
    /// Output format
    #[arg(long, short = 'o', value_enum, default_value_t = Form::Text, value_name = "FORMAT", help_heading = OUTPUT)]
    pub output: Form,
    #[command(flatten)]
    pub from: From,
    #[command(flatten)]
    pub times: TimeOptions,
}

pub async fn run(socket: Option<OsString>, options: Options) -> anyhow::Result<Code> {
    let source = options.from.open(socket).await?;
    show(source, options).await
}

/// What happened, by that source.
pub async fn show(mut source: Source, options: Options) -> anyhow::Result<Code> {
    let Options { pod, namespace, since, output, from: _, times } = options;
    let mut out = Output::new();
    if output == Form::Perfetto && out.is_terminal() {
        anyhow::bail!("a Perfetto trace is binary: write it to a file (-o perfetto > FILE)");
    }
    let since = match (since, source.recording()) {
        (None, Some(_)) => None,
        (since, _) => {
            let since = since.unwrap_or(Moment::Ago(std::time::Duration::from_secs(3600)));
            Some(connect::moment(&source, since))
        }
    };
    let filter = Filter {
        pod: pod.into_iter().collect(),
        namespace: namespace.into_iter().collect(),
        ..Default::default()
    };
    let request = proto::WatchRequest {
        since: since.or(Some(kwitness_api::Timestamp::default())),
        ..Default::default()
    };
    let history = History::read(&mut source, request).await?;
    // A file is read elsewhere, too.
    let times = TimeOptions { utc: times.utc || output != Form::Text, ..times }.shown(Format::Table);
    let timeline = history.timeline(&filter, &node(&source).await?, times)?;
    match output {
        Form::Text => text::write(&mut out, &timeline, times)?,
        Form::Json => out.value(Format::Json, &timeline)?,
        Form::Html => out.bytes(html::page(&timeline)?.as_bytes())?,
        Form::Perfetto => out.bytes(&perfetto::trace(&timeline))?,
    }
    out.flush()?;
    Ok(Code::Success)
}

async fn node(source: &Source) -> anyhow::Result<String> {
    match source {
        Source::Live(client) => Ok(client.clone().status().await?.node_name),
        Source::Recorded(recording) => Ok(recording.header().node.clone()),
    }
}

/// Events, and the containers that they and the node have.
#[derive(Debug, Default)]
pub struct History {
    events: Vec<proto::Event>,
    containers: Vec<proto::Container>,
    usage: Usage,
    /// Where they were looked for, as errors say it.
    place: &'static str,
}

impl History {
    /// The requested events, with a note if there is no room for all.
    pub async fn read(source: &mut Source, request: proto::WatchRequest) -> anyhow::Result<Self> {
        let here = source.list(proto::Filter::default()).await?.containers;
        let usage = Usage::read(source, request.since).await?;
        let past = history(source, request, HISTORY_BYTES).await?;
        past.note_left_out(None);
        let events = Vec::from(past.events);
        let mut containers: BTreeMap<_, _> = BTreeMap::new();
        let of_events = events.iter().filter_map(|event| event.container.clone());
        let of_node = here.into_iter().filter_map(|state| state.container);
        for container in of_events.chain(of_node) {
            // The last one has the most names.
            containers.insert((container.cgroup_id, container.id.clone()), container);
        }
        let place = select::place(source);
        Ok(Self { events, containers: containers.into_values().collect(), usage, place })
    }

    /// The timeline of the pods that match; of the node, if nothing is said of pods.
    pub fn timeline(
        &self,
        filter: &Filter,
        node: &str,
        times: crate::time::Times,
    ) -> anyhow::Result<Timeline> {
        let timeline = |subject: String, events: &[proto::Event], containers: &[&proto::Container]| {
            let sampled = containers.iter().map(|container| (*container, self.usage.of(container)));
            let sampled: Vec<_> = sampled.filter(|(_, points)| !points.is_empty()).collect();
            Timeline::new(subject, node.to_owned(), events, &sampled, times)
        };
        if filter.is_empty() {
            let all: Vec<_> = self.containers.iter().collect();
            return Ok(timeline("all pods".to_owned(), &self.events, &all));
        }
        let selected = select::among(&self.containers, filter, self.place)?;
        let uid = |pod: Option<&proto::Pod>| pod.map(|pod| pod.uid.clone());
        let is_selected = |container: &&proto::Container| {
            let Some(pod) = &container.pod else { return false };
            (selected.pods.is_empty()
                || selected.pods.contains(&pod.uid)
                || selected.pods.iter().any(|name| pod.name.as_ref() == Some(name)))
                && (selected.namespaces.is_empty()
                    || pod.namespace.as_ref().is_some_and(|of| selected.namespaces.contains(of)))
        };
        let of_pods: Vec<_> = self.containers.iter().filter(is_selected).collect();
        let uids: BTreeSet<_> = of_pods.iter().filter_map(|container| uid(container.pod.as_ref())).collect();
        let subjects: BTreeSet<_> =
            of_pods.iter().map(|container| names(Some(container), false).qualified()).collect();
        let is_about = |event: &&proto::Event| match pod_of(event) {
            About::Pod(pod) => uids.contains(&pod.uid),
            About::Everything => true,
            About::Other => false,
        };
        let events: Vec<_> = self.events.iter().filter(is_about).cloned().collect();
        let subject = subjects.into_iter().collect::<Vec<_>>().join(", ");
        Ok(timeline(subject, &events, &of_pods))
    }
}

enum About<'a> {
    Pod(&'a proto::Pod),
    /// A loss, or a limit above all pods.
    Everything,
    Other,
}

fn pod_of(event: &proto::Event) -> About<'_> {
    if let Some(container) = &event.container {
        return container.pod.as_ref().map_or(About::Other, About::Pod);
    }
    let cgroup = match &event.kind {
        Some(Kind::LimitChanged(changed)) => changed.cgroup.as_ref(),
        Some(Kind::Verdict(verdict)) => verdict.cgroup.as_ref(),
        Some(Kind::Pressure(pressure)) => pressure.cgroup.as_ref(),
        _ if EventKind::of(event).is_some_and(EventKind::is_of_node) => return About::Everything,
        _ => None,
    };
    match cgroup {
        Some(proto::Cgroup { pod: Some(pod), .. }) => About::Pod(pod),
        Some(cgroup) if matches!(cgroup.role(), proto::CgroupRole::Qos | proto::CgroupRole::Kubepods) => {
            About::Everything
        }
        _ => About::Other,
    }
}
