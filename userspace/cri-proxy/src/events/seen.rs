//! Which events were forwarded, so that a change of source duplicates none.
//!
//! A container (or sandbox) of the CRI is created, started, stopped and deleted once each, whichever source reports it: its id and the kind
//! name an event for good. What a source reports of a container after its deletion, out of order, is an event; what the other source
//! reports then is late. Owns that memory, bounded; never the events.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use prost::Message as _;

use super::super::limits;
use super::SourceKind;

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

/// `CONTAINER_DELETED_EVENT`.
const DELETED: i32 = 3;

/// What is to be done with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Not forwarded before.
    New,
    /// It was forwarded, or the other source had reported the container's deletion.
    Double,
    /// It cannot be decoded.
    Opaque,
}

/// The memory.
#[derive(Debug, Default)]
pub struct Seen {
    containers: HashMap<Arc<[u8]>, Forwarded>,
    /// Oldest first.
    order: VecDeque<Arc<[u8]>>,
}

/// What was forwarded of one container.
#[derive(Debug, Default)]
struct Forwarded {
    /// The kinds, a bit each.
    kinds: u8,
    deleted_by: Option<SourceKind>,
}

impl Forwarded {
    fn judge(&mut self, bit: u8, from: SourceKind) -> Verdict {
        if self.kinds & bit != 0 || self.deleted_by.is_some_and(|source| source != from) {
            return Verdict::Double;
        }
        self.kinds |= bit;
        if bit == 1 << DELETED {
            self.deleted_by = Some(from);
        }
        Verdict::New
    }
}

impl Seen {
    /// Judges an event of a source, and remembers it.
    pub fn judge(&mut self, event: &[u8], from: SourceKind) -> Verdict {
        let Ok(EventName { container_id, kind }) = EventName::decode(event) else { return Verdict::Opaque };
        let Some(bit) = u32::try_from(kind).ok().and_then(|kind| 1_u8.checked_shl(kind)) else {
            // A kind that the CRI of today does not have.
            return Verdict::New;
        };
        if let Some(forwarded) = self.containers.get_mut(&*container_id) {
            return forwarded.judge(bit, from);
        }
        if self.order.len() >= limits::CONTAINERS_SEEN
            && let Some(oldest) = self.order.pop_front()
        {
            self.containers.remove(&oldest);
        }
        let id: Arc<[u8]> = container_id.into();
        self.order.push_back(Arc::clone(&id));
        self.containers.entry(id).or_default().judge(bit, from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STOPPED: i32 = 2;

    fn judge(seen: &mut Seen, id: &str, kind: i32) -> Verdict {
        judge_from(SourceKind::Runtime, seen, id, kind)
    }

    fn judge_from(source: SourceKind, seen: &mut Seen, id: &str, kind: i32) -> Verdict {
        seen.judge(&EventName { container_id: id.into(), kind }.encode_to_vec(), source)
    }

    #[test]
    fn each_kind_once_and_nothing_of_a_late_source_after_the_end() {
        let mut seen = Seen::default();
        for kind in [0, 1] {
            assert_eq!(judge(&mut seen, "a", kind), Verdict::New);
            assert_eq!(judge(&mut seen, "a", kind), Verdict::Double);
            assert_eq!(judge(&mut seen, "b", kind), Verdict::New);
        }
        assert_eq!(judge(&mut seen, "a", DELETED), Verdict::New);
        assert_eq!(judge_from(SourceKind::Daemon, &mut seen, "a", STOPPED), Verdict::Double, "a late source");
        assert_eq!(judge(&mut seen, "b", STOPPED), Verdict::New);
    }

    /// containerd 1.7, when a container that has just exited is removed at once.
    #[test]
    fn a_source_may_report_the_stop_after_the_deletion() {
        for source in [SourceKind::Runtime, SourceKind::Daemon] {
            let mut seen = Seen::default();
            for kind in [0, 1, DELETED, STOPPED] {
                assert_eq!(judge_from(source, &mut seen, "a", kind), Verdict::New);
                assert_eq!(judge_from(source, &mut seen, "a", kind), Verdict::Double);
            }
        }
    }

    #[test]
    fn a_kind_of_tomorrow_is_passed_on_each_time() {
        let mut seen = Seen::default();
        for kind in [8, 9, -1, i32::MAX] {
            assert_eq!(judge(&mut seen, "a", kind), Verdict::New);
            assert_eq!(judge(&mut seen, "a", kind), Verdict::New);
        }
        assert_eq!(judge(&mut seen, "a", 0), Verdict::New);
    }

    #[test]
    fn the_memory_is_bounded() {
        let mut seen = Seen::default();
        for id in 0..=limits::CONTAINERS_SEEN {
            assert_eq!(judge(&mut seen, &id.to_string(), 0), Verdict::New);
        }
        assert_eq!(
            (seen.order.len(), seen.containers.len()),
            (limits::CONTAINERS_SEEN, limits::CONTAINERS_SEEN)
        );
        assert_eq!(judge(&mut seen, "1", 0), Verdict::Double);
        assert_eq!(judge(&mut seen, "0", 0), Verdict::New, "forgotten");
    }

    #[test]
    fn what_is_no_message_is_opaque_and_a_bad_name_is_not() {
        let mut seen = Seen::default();
        assert_eq!(seen.judge(b"\xff\xff\xff", SourceKind::Runtime), Verdict::Opaque);
        // A sandbox status (4) whose id (1) is not UTF-8, and a container id that is not.
        let event = b"\x0a\x02\xc3\x28\x10\x02\x22\x04\x0a\x02\xff\xfe";
        assert_eq!(seen.judge(event, SourceKind::Runtime), Verdict::New);
        assert_eq!(seen.judge(event, SourceKind::Runtime), Verdict::Double);
    }
}
