//! The kinds of events, generated from the members of `Event.kind`: the protobuf file is the one list.

use crate::proto;

include!(concat!(env!("OUT_DIR"), "/event_kind.rs"));

impl EventKind {
    /// The kind of that [name](Self::name).
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// Whether such an event says what is not known, of the node or of its container: whichever kinds are wanted, it is, and it
    /// counts against no limit.
    pub fn is_of_node(self) -> bool {
        matches!(self, Self::Gap | Self::Resynced | Self::AgentRestarted)
    }

    /// The kind of an event; none if it was sent by a newer daemon.
    pub fn of(event: &proto::Event) -> Option<Self> {
        event.kind.as_ref().map(Self::from)
    }
}

impl From<EventKind> for i32 {
    /// The number that stands for the kind in `Filter.kinds`.
    fn from(kind: EventKind) -> Self {
        kind as Self
    }
}

impl TryFrom<i32> for EventKind {
    type Error = UnknownKind;

    fn try_from(number: i32) -> Result<Self, UnknownKind> {
        Self::ALL.iter().copied().find(|kind| i32::from(*kind) == number).ok_or(UnknownKind(number))
    }
}

/// A number that stands for no kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no event kind with the number {0}")]
pub struct UnknownKind(pub i32);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_are_those_of_the_protobuf_file() {
        for kind in EventKind::ALL {
            assert_eq!(EventKind::named(kind.name()), Some(kind));
            assert_eq!(EventKind::try_from(i32::from(kind)), Ok(kind));
        }
        assert_eq!(EventKind::OomKill.name(), "oomKill");
        assert_eq!(i32::from(EventKind::OomKill), i32::from(proto::EventKind::OomKill));
        assert_eq!(EventKind::try_from(0), Err(UnknownKind(0)));
        assert_eq!(EventKind::named("oom"), None);
    }
}
