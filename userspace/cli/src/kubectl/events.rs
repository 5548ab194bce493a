//! `kubectl kwitness events`: one stream of all nodes' events, across restarts of daemons, of nodes and of the API server.
//!
//! ```text
//!  a task a node: Watch (resumes by epoch and number) ──▶ queue ──▶ Merge (order of time) ──▶ one table
//!  every REFRESH: which nodes, which pods? ──▶ more tasks, other filters
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
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::cluster::Cluster;
use super::failure::Missing;
use super::merge::Merge;
use super::nodes::Nodes;
use super::targets::Targets;
use crate::args::Events;
use crate::connect::Outage;
use crate::events::Printer;
use crate::exit::Code;
use crate::history::history;
use crate::options::Filter;
use crate::output::{OfNode, note};
use crate::text::Moment;

/// How often the API server is asked for new nodes and pods.
const REFRESH: Duration = Duration::from_secs(10);
/// Batches on their way from the nodes. A full queue makes the nodes' daemons wait, and at last report a gap.
const QUEUE: usize = 64;

/// Runs it.
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
    followed.extend(&nodes, &targets, |node| match ends.remove(node) {
        Some(after) => WatchRequest { after, ..Default::default() },
        // It did not answer; what it has from the time that was asked for comes when it does.
        None => WatchRequest { since: since.map(|since| since.before(Utc::now())), ..Default::default() },
    });
    follow(&cluster, &filter, followed, receive, printer, began).await
}

fn now() -> Timestamp {
    Moment::Ago(Duration::ZERO).before(Utc::now())
}

/// What a node's stream yielded.
type Received = (Arc<str>, Result<Option<Item>, ClientError>);

/// The nodes that are followed.
struct Followed {
    kinds: Vec<i32>,
    /// What each is asked for.
    filters: BTreeMap<String, watch::Sender<proto::Filter>>,
    send: mpsc::Sender<Received>,
}

impl Followed {
    /// Follows nodes that are new, beginning with `request`; asks the others for the pods that there are now.
    fn extend(&mut self, nodes: &Nodes, targets: &Targets, mut request: impl FnMut(&str) -> WatchRequest) {
        for node in nodes.names() {
            let (Some(client), Some(filter)) = (nodes.get(node), targets.on(node)) else { continue };
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
            let request = WatchRequest { filter: Some(filter.clone()), ..request(node) };
            let (sender, filters) = watch::channel(filter);
            self.filters.insert(node.to_owned(), sender);
            tokio::spawn(follow_node(node.into(), client.clone(), request, filters, self.send.clone()));
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
    mut followed: Followed,
    mut receive: mpsc::Receiver<Received>,
    mut printer: Printer,
    mut refreshed: Timestamp,
) -> anyhow::Result<Code> {
    let mut merge = Merge::new();
    let mut outages: BTreeMap<Arc<str>, Outage> = BTreeMap::new();
    let (mut ended, mut missing) = (0, Missing::default());
    let mut refresh = interval(REFRESH);
    refresh.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // The first tick comes at once.
    refresh.tick().await;
    let mut is_refused = false;
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
            _ = refresh.tick() => {
                let at = now();
                match look(cluster, filter).await {
                    Ok((nodes, targets)) => {
                        let since = Some(refreshed);
                        followed.extend(&nodes, &targets, |_| WatchRequest { since, ..Default::default() });
                        refreshed = at;
                        if std::mem::take(&mut is_refused) {
                            note("the API server answers again");
                        }
                    }
                    Err(error) if !std::mem::replace(&mut is_refused, true) => {
                        note(&format!("{error:#}; new pods and nodes are not followed until it answers"));
                    }
                    Err(_) => {}
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

async fn look(cluster: &Arc<Cluster>, filter: &Filter) -> anyhow::Result<(Nodes, Targets)> {
    let nodes = cluster.nodes().await?;
    Ok((nodes, Targets::find(cluster, filter).await?.0))
}
