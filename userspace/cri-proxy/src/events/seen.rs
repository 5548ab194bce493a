//! Which events were forwarded, so that a change of source duplicates none.
//!
//! A container (or sandbox) of the CRI is created, started, stopped and deleted once each, whichever source reports it: its id and the kind
//! name an event for good. What comes after the container's deletion is an event too: a source may report out of order, and the source
//! that reported the deletion may have missed the stop. Owns that memory, bounded; never the events.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use prost::Message as _;

use super::super::limits;

/// Of the CRI's `ContainerEventResponse` what names the event; the rest is skipped. The id as bytes: a name that is not UTF-8 must
/// not cost an event.
#[derive(Clone, PartialEq, prost::Message)]
pub struct EventName {
    /// The container's or the sandbox's id.
    #[prost(bytes = "vec", tag = "1")]
    pub container_id: Vec<u8>,
    /// The CRI's `ContainerEventType`.
    #[prost(int32, tag = "2")]
    pub kind: i32,
}

/// Whether an event was forwarded before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dedup {
    /// The event was not forwarded before.
    New,
    /// It was, from whichever source.
    Duplicate,
    /// That is not known: it cannot be decoded.
    Undecodable,
}

/// The events that were forwarded.
#[derive(Debug, Default)]
pub struct Seen {
    containers: HashMap<Arc<[u8]>, Forwarded>,
    /// Oldest first.
    order: VecDeque<Arc<[u8]>>,
}

/// What was forwarded of a container.
#[derive(Clone, Copy, Debug)]
struct Forwarded {
    /// The kinds, a bit each.
    kinds: u8,
    /// The number of the last event.
    last: u64,
}

/// The bit of a kind; none: it is one that the CRI of today does not have.
fn bit(kind: i32) -> Option<u8> {
    u32::try_from(kind).ok().and_then(|kind| 1_u8.checked_shl(kind))
}

impl Seen {
    /// Looks whether an event is a duplicate, and remembers it with the number that it gets if it is forwarded.
    pub fn check(&mut self, event: &[u8], number: u64) -> Dedup {
        let Ok(EventName { container_id, kind }) = EventName::decode(event) else {
            return Dedup::Undecodable;
        };
        let Some(bit) = bit(kind) else { return Dedup::New };
        if let Some(forwarded) = self.containers.get_mut(&*container_id) {
            if forwarded.kinds & bit != 0 {
                return Dedup::Duplicate;
            }
            *forwarded = Forwarded { kinds: forwarded.kinds | bit, last: number };
            return Dedup::New;
        }
        if self.order.len() >= limits::CONTAINERS_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.containers.remove(&oldest);
        }
        let id: Arc<[u8]> = container_id.into();
        self.order.push_back(Arc::clone(&id));
        self.containers.insert(id, Forwarded { kinds: bit, last: number });
        Dedup::New
    }

    /// The number up to which everything must have been sent for that event to be among it; none: it has not come yet.
    pub fn number(&self, event: &EventName) -> Option<u64> {
        let forwarded = self.containers.get(&*event.container_id)?;
        (forwarded.kinds & bit(event.kind)? != 0).then_some(forwarded.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPPED: i32 = 2;
    const DELETED: i32 = 3;

    fn check(seen: &mut Seen, id: &str, kind: i32) -> Dedup {
        seen.check(&EventName { container_id: id.into(), kind }.encode_to_vec(), 0)
    }

    #[test]
    fn an_event_that_was_forwarded_has_a_number() {
        let named = |id: &str, kind| EventName { container_id: id.into(), kind };
        let mut seen = Seen::default();
        seen.check(&named("a", 0).encode_to_vec(), 7);
        assert_eq!(seen.number(&named("a", 0)), Some(7));
        assert_eq!(seen.number(&named("a", 1)), None, "another kind");
        assert_eq!(seen.number(&named("b", 0)), None, "another container");
        seen.check(&named("a", 1).encode_to_vec(), 8);
        seen.check(&named("a", 1).encode_to_vec(), 9);
        assert_eq!(seen.number(&named("a", 1)), Some(8), "a duplicate is not forwarded");
        assert_eq!(seen.number(&named("a", 9)), None);
    }

    /// containerd reports the stop after the deletion when a container that has just exited is removed at once (1.7), and reports no
    /// stop of a sandbox that is removed right after its own start: the daemon's comes after the runtime's deletion then.
    #[test]
    fn each_kind_is_new_once_in_whatever_order() {
        for kinds in [[0, 1, STOPPED, DELETED], [0, 1, DELETED, STOPPED], [DELETED, STOPPED, 1, 0]] {
            let mut seen = Seen::default();
            for kind in kinds {
                assert_eq!(check(&mut seen, "a", kind), Dedup::New);
                assert_eq!(check(&mut seen, "a", kind), Dedup::Duplicate);
                assert_eq!(check(&mut seen, "b", kind), Dedup::New);
            }
        }
    }

    #[test]
    fn a_kind_of_tomorrow_is_passed_on_each_time() {
        let mut seen = Seen::default();
        for kind in [8, 9, -1, i32::MAX] {
            assert_eq!(check(&mut seen, "a", kind), Dedup::New);
            assert_eq!(check(&mut seen, "a", kind), Dedup::New);
        }
        assert_eq!(check(&mut seen, "a", 0), Dedup::New);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut seen = Seen::default();
        for id in 0..=limits::CONTAINERS_SEEN {
            assert_eq!(check(&mut seen, &id.to_string(), 0), Dedup::New);
        }
        assert_eq!(
            (seen.order.len(), seen.containers.len()),
            (limits::CONTAINERS_SEEN, limits::CONTAINERS_SEEN)
        );
        assert_eq!(check(&mut seen, "1", 0), Dedup::Duplicate);
        assert_eq!(check(&mut seen, "0", 0), Dedup::New, "forgotten");
    }

    #[test]
    fn what_is_no_message_is_undecodable_and_a_bad_name_is_not() {
        let mut seen = Seen::default();
        assert_eq!(seen.check(b"\xff\xff\xff", 0), Dedup::Undecodable);
        // A sandbox status (4) whose id (1) is not UTF-8, and a container id that is not.
        let event = b"\x0a\x02\xc3\x28\x10\x02\x22\x04\x0a\x02\xff\xfe";
        assert_eq!(seen.check(event, 0), Dedup::New);
        assert_eq!(seen.check(event, 0), Dedup::Duplicate);
    }
}
