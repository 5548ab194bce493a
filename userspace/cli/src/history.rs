//! What is over: events in the order of the journal, with the names that are known by now.
//!
//! A container's first events are recorded before the runtime has named it. The daemon sends them as they were recorded; here
//! the names are filled in from later events and from the list of containers.

use std::collections::HashMap;

use kwitness_api::client::{Client, Error, Item};
use kwitness_api::proto;

/// Everything that the daemon has recorded and the request asks for, and where it ends.
pub async fn read(
    client: &mut Client,
    request: proto::WatchRequest,
) -> Result<(Vec<proto::Event>, Option<proto::Position>), Error> {
    let mut watch = client.watch(proto::WatchRequest { no_follow: true, ..request }).await?;
    let mut events = Vec::new();
    while let Some(item) = watch.next().await? {
        if let Item::Events(batch) = item {
            events.extend(batch);
        }
    }
    let here = client.list(proto::Filter::default()).await?.containers;
    arrange(&mut events, here.into_iter().filter_map(|state| state.container));
    Ok((events, watch.position().cloned()))
}

fn arrange(events: &mut Vec<proto::Event>, here: impl Iterator<Item = proto::Container>) {
    // Stable: a gap of this watcher has no number, and stays before what it stands before.
    let mut next = u64::MAX;
    let mut keys = Vec::with_capacity(events.len());
    for event in events.iter().rev() {
        next = event.position.as_ref().map_or(next, |position| position.seq);
        keys.push(next);
    }
    keys.reverse();
    let mut order: Vec<_> = (0..events.len()).collect();
    order.sort_by_key(|index| keys[*index]);
    *events = order.into_iter().map(|index| std::mem::take(&mut events[index])).collect();

    let mut known: HashMap<u64, proto::Container> = HashMap::new();
    let named = events.iter().filter_map(|event| event.container.clone()).chain(here);
    for container in named.filter(|container| container.pod.as_ref().is_some_and(|pod| pod.name.is_some())) {
        known.insert(container.cgroup_id, container);
    }
    for container in events.iter_mut().filter_map(|event| event.container.as_mut()) {
        if let Some(known) = known.get(&container.cgroup_id).filter(|known| known.id == container.id) {
            container.clone_from(known);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::describe::testing::container;

    #[test]
    fn history_is_ordered_and_named() {
        let event = |seq: Option<u64>, known| proto::Event {
            position: seq.map(|seq| proto::Position { epoch: "e".into(), seq }),
            container: Some(container(known)),
            ..Default::default()
        };
        let other = proto::Container { cgroup_id: 5, id: "other".into(), ..container(false) };
        let mut events = vec![
            event(Some(4), true),
            event(None, false),
            event(Some(7), false),
            event(Some(2), false),
            proto::Event { container: Some(other.clone()), ..event(Some(3), false) },
        ];
        arrange(&mut events, std::iter::once(proto::Container { id: "reused".into(), ..other.clone() }));
        let seqs: Vec<_> =
            events.iter().map(|event| event.position.as_ref().map(|position| position.seq)).collect();
        assert_eq!(seqs, [Some(2), Some(3), Some(4), None, Some(7)]);
        assert_eq!(events[0].container, Some(container(true)), "by a later event");
        assert_eq!(events[1].container, Some(other), "its cgroup's number is another container's now");
    }
}
