//! What has been recorded so far, bounded, as every command reads it that does not follow.
//!
//! Owns the bound. Never prints an event.

use std::collections::VecDeque;

use kwitness_api::client::Item;
use kwitness_api::{Source, SourceError, proto};
use prost::Message;

use crate::output::note;

/// Bytes of history that are held at a time, as they are on the wire; several nodes have them together.
pub const HISTORY_BYTES: usize = 128 << 20;

/// What has been recorded so far.
#[derive(Debug, Default)]
pub struct Past {
    /// The latest events that there is room for, in order.
    pub events: VecDeque<proto::Event>,
    /// Where it ends.
    pub end: Option<proto::Position>,
    bytes: usize,
    /// How many older events there was no room for.
    left_out: u64,
}

impl Past {
    /// Takes events, and leaves the oldest out that there is no room for.
    fn take(&mut self, events: Vec<proto::Event>, bytes_max: usize) {
        self.bytes += events.iter().map(Message::encoded_len).sum::<usize>();
        self.events.extend(events);
        while self.bytes > bytes_max
            && let Some(oldest) = self.events.pop_front()
        {
            self.bytes -= oldest.encoded_len();
            self.left_out += 1;
        }
    }

    /// Says how many events are left out, if any, and of which node.
    pub fn note_left_out(&self, node: Option<&str>) {
        if self.left_out > 0 {
            let node = node.map(|node| format!("node {node}: ")).unwrap_or_default();
            let left_out = self.left_out;
            note(&format!(
                "{node}{left_out} older events are left out: there is more history than memory is taken for; narrow it \
                 with --since, --kind or a pod"
            ));
        }
    }
}

/// What has been recorded, with the names that are known by now; at most so many bytes of it, the latest. A daemon that goes silent
/// is an error, see [`Watch`](kwitness_api::client::Watch).
pub async fn history(
    source: &Source,
    request: proto::WatchRequest,
    bytes_max: usize,
) -> Result<Past, SourceError> {
    let request = proto::WatchRequest { no_follow: true, resolve_names: true, ..request };
    let mut watch = source.watch(request).await?;
    let mut past = Past::default();
    while let Some(item) = watch.next().await? {
        if let Item::Events(batch) = item {
            past.take(batch, bytes_max);
        }
    }
    past.end = watch.position().cloned();
    Ok(past)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn history_is_bounded_in_bytes_and_the_oldest_is_left_out() {
        let event = |seq| proto::Event {
            position: Some(proto::Position { epoch: "e".into(), seq }),
            container: Some(proto::Container { id: "c".repeat(1000), ..Default::default() }),
            ..Default::default()
        };
        let room = 10 * event(1).encoded_len();
        let mut past = Past::default();
        for batch in 0..4 {
            past.take((1..=6).map(|number| event(6 * batch + number)).collect(), room);
        }
        let seqs: Vec<_> =
            past.events.iter().filter_map(|event| Some(event.position.as_ref()?.seq)).collect();
        assert_eq!(seqs, (15..=24).collect::<Vec<_>>());
        assert_eq!(past.left_out, 14);
        past.take(vec![event(25)], 0);
        assert!(past.events.is_empty() && past.bytes == 0);
    }
}
