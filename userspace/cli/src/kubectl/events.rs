//! `kubectl kwitness events`: one stream of all nodes' events, across restarts of daemons, of nodes and of the API server.
//!
//! ```text
//!  a task a node: Watch (resumes by epoch and number) ──▶ queue ──▶ Merge (order of time) ──▶ one table
//!  pods change (watch): which nodes, which pods? ──▶ more tasks, other filters
//! ```
//!
//! Owns who is followed. How a stream is resumed, and what a loss is, the client knows: a gap is an event of its node.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use chrono::Utc;
use kwitness_api::client::{Error as ClientError, Item};
use kwitness_api::proto::{self, WatchRequest};
use kwitness_api::{Client, Source, Timestamp};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::cluster::Cluster;
use super::failure::Missing;
use super::merge::Merge;
use super::targets::{self, Targets};
use super::watch::{Change, MOST, Pods};
use crate::args::Events;
use crate::connect::Outage;
use crate::events::Printer;
use crate::exit::Code;
use crate::history::history;
use crate::options::Filter;
use crate::output::{OfNode, note};
use crate::text::Moment;

/// Changes of pods are looked at together for so long: a rollout has many.
const SETTLE: Duration = Duration::from_millis(250);
/// Batches on their way from the nodes. A full queue makes the nodes' daemons wait, and at last report a gap.
const QUEUE: usize = 64;

/// Runs `kubectl kwitness events`.
pub async fn run(cluster: Arc<Cluster>, filter: Filter, options: Events) -> anyhow::Result<Code> {
    let Events { kind, since, no_follow, times, output, .. } = options;
    let began = now();
    let nodes = cluster.nodes().await?;
    let (targets, not_here) = Targets::find(&cluster, &filter).await?;
    let kinds: Vec<_> = kind.into_iter().map(i32::from).collect();
    let printer = Printer::new(output.output, times.shown(output.output), !filter.is_one_namespace());
    let mut printer = printer.of_nodes(nodes.names());
    let mut ends = BTreeMap::new();
    let mut missing = Missing::default();
    let since = since.or(no_follow.then_some(Moment::At(Timestamp::default())));
    if let Some(since) = since {
        let since = Some(since.before(Utc::now()));
        let request = |node: &str| {
            let filter = Some(proto::Filter { kinds: kinds.clone(), ..targets.on(node)? });
            Some(WatchRequest { filter, since, ..Default::default() })
        };
        let room = nodes.history_bytes();
        let read = |client, request| async move { history(&Source::Live(client), request, room).await };
        let past;
        (past, missing) = nodes.each(request, read).await;
        past.iter().for_each(|(node, past)| past.note_left_out(Some(node)));
        let events = past.iter().flat_map(|(node, past)| OfNode::all_of(node, &past.events));
        let mut events: Vec<_> = events.collect();
        events.sort_by_key(|of| of.value.time);
        if let Some(not_here) = not_here.clone().filter(|_| no_follow && events.is_empty()) {
            return Err(not_here.into());
        }
        printer.print(&events)?;
        ends = past.into_iter().map(|(node, past)| (node, past.end)).collect();
    }
    if no_follow {
        return Ok(missing.code(Code::Success));
    }
    if let Some(not_here) = not_here {
        note(&format!("{not_here}; waiting for its events"));
    }
    printer.header()?;
    let (send, receive) = mpsc::channel(QUEUE);
    let mut followed = Followed { kinds, filters: BTreeMap::new(), send };
    let client = |node: &str| nodes.get(node).cloned();
    followed.extend(nodes.names(), client, &targets, |node| match ends.remove(node) {
        Some(after) => WatchRequest { after, ..Default::default() },
        // It did not answer; what it has from the requested time on comes when it does.
        None => WatchRequest { since: since.map(|since| since.before(Utc::now())), ..Default::default() },
    });
    let mut scopes = vec![cluster.scope_of_daemons()];
    if targets::needs_pods(&filter) {
        scopes.extend(targets::scopes(&cluster, &filter).await?);
    }
    let pods = Pods::watch(&cluster, scopes);
    follow(&cluster, &filter, pods, followed, receive, printer, began).await
}

fn now() -> Timestamp {
    Moment::Ago(Duration::ZERO).before(Utc::now())
}

/// What a node's stream yielded.
type Received = (Arc<str>, Result<Option<Item>, ClientError>);

/// The nodes that are followed.
struct Followed {
    kinds: Vec<i32>,
    /// What each is queried for.
    filters: BTreeMap<String, watch::Sender<proto::Filter>>,
    send: mpsc::Sender<Received>,
}

impl Followed {
    /// Follows nodes that are new, beginning with `request`; asks the others for the pods that there are now.
    fn extend<'a>(
        &mut self,
        nodes: impl Iterator<Item = &'a str>,
        client: impl Fn(&str) -> Option<Client>,
        targets: &Targets,
        mut request: impl FnMut(&str) -> WatchRequest,
    ) {
        for node in nodes {
            let Some(filter) = targets.on(node) else { continue };
            let filter = proto::Filter { kinds: self.kinds.clone(), ..filter };
            if let Some(known) = self.filters.get(node) {
                known.send_if_modified(|known| {
                    *known != filter && {
                        known.clone_from(&filter);
                        true
                    }
                });
                continue;
            }
            let Some(client) = client(node) else { continue };
            let request = WatchRequest { filter: Some(filter.clone()), ..request(node) };
            let (sender, filters) = watch::channel(filter);
            self.filters.insert(node.to_owned(), sender);
            tokio::spawn(follow_node(node.into(), client, request, filters, self.send.clone()));
        }
    }
}

/// Passes on what a node yields, until it fails for good or nothing follows it any more.
async fn follow_node(
    node: Arc<str>,
    client: Client,
    request: WatchRequest,
    mut filters: watch::Receiver<proto::Filter>,
    send: mpsc::Sender<Received>,
) {
    let mut watch = client.watch_eventually(request);
    loop {
        let received = tokio::select! {
            received = watch.next() => received,
            changed = filters.changed() => match changed {
                Ok(()) => {
                    watch.refilter(filters.borrow_and_update().clone());
                    continue;
                }
                Err(_) => return,
            },
        };
        let is_last = !matches!(received, Ok(Some(_)));
        if send.send((Arc::clone(&node), received)).await.is_err() || is_last {
            return;
        }
    }
}

/// Prints what comes, until no node is left that could send anything.
async fn follow(
    cluster: &Arc<Cluster>,
    filter: &Filter,
    mut pods: Pods,
    mut followed: Followed,
    mut receive: mpsc::Receiver<Received>,
    mut printer: Printer,
    began: Timestamp,
) -> anyhow::Result<Code> {
    let mut merge = Merge::new();
    let mut outages: BTreeMap<Arc<str>, Outage> = BTreeMap::new();
    let (mut ended, mut missing) = (0, Missing::default());
    let mut look: Option<Instant> = None;
    loop {
        let due = merge.due();
        tokio::select! {
            received = receive.recv() => {
                let Some((node, received)) = received else { break };
                match received {
                    Ok(Some(item)) => {
                        if let Some(text) = outages.entry(Arc::clone(&node)).or_default().text(&item) {
                            note(&format!("node {node}: {text}"));
                        }
                        if let Item::Events(events) = item {
                            for event in events {
                                let time = event.time.unwrap_or_default();
                                merge.push(time, (Arc::clone(&node), event), Instant::now());
                            }
                        }
                    }
                    Ok(None) => ended += 1,
                    Err(error) => {
                        missing.add(error.into());
                        ended += 1;
                    }
                }
            }
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
            changes = pods.changed() => {
                for change in changes {
                    match change {
                        Change::Pods => _ = look.get_or_insert_with(|| Instant::now() + SETTLE),
                        Change::Failed(failure) if failure.is_denied() => {
                            note(&format!("{failure}; until then pods are listed about every 30 s"));
                        }
                        Change::Failed(failure) => {
                            note(&format!("{failure}; new pods and nodes are not followed until it answers"));
                        }
                        Change::Recovered => note("the API server answers again"),
                        Change::Full => note(&format!(
                            "more than {MOST} pods match: some are not followed; narrow them with -n or -l"
                        )),
                    }
                }
            }
            () = sleep_until(look.unwrap_or_else(Instant::now)), if look.is_some() => {
                look = None;
                if let Some(found) = pods.known()
                    && let Some(((_, daemons), found)) = found.split_first()
                {
                    let (targets, _) = Targets::among(filter, found);
                    let daemons: BTreeMap<_, _> = cluster.daemons_of(daemons).collect();
                    let client = |node: &str| Some(cluster.client(node, daemons.get(node)?.clone()));
                    // One that is new has nothing from before that has been shown.
                    let request = |_: &str| WatchRequest { since: Some(began), ..Default::default() };
                    followed.extend(daemons.keys().map(String::as_str), client, &targets, request);
                }
            }
        }
        let taken = merge.take(Instant::now());
        let events: Vec<_> = taken.iter().map(|(node, value)| OfNode { node: Some(node), value }).collect();
        if !events.is_empty() {
            printer.print(&events)?;
        }
        if ended == followed.filters.len() && merge.due().is_none() && ended > 0 {
            break;
        }
    }
    Ok(missing.code(Code::Success))
}
