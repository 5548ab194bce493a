//! The kinds of events: the members of `Event.kind`, as an enum.

/// A kind of event without its contents.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "the protobuf file documents each")]
pub enum EventKind {
    Created,
    Started,
    Exec,
    Exited,
    Stopped,
    Deleted,
    Updated,
    Gap,
    Resynced,
    LimitChanged,
    Verdict,
    OomKill,
}

impl EventKind {
    /// Every kind, in the order of its number.
    pub const ALL: [Self; 12] = [
        Self::Created,
        Self::Started,
        Self::Exec,
        Self::Exited,
        Self::Stopped,
        Self::Deleted,
        Self::Updated,
        Self::Gap,
        Self::Resynced,
        Self::LimitChanged,
        Self::Verdict,
        Self::OomKill,
    ];

    /// The member of `Event.kind` in the canonical JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Started => "started",
            Self::Exec => "exec",
            Self::Exited => "exited",
            Self::Stopped => "stopped",
            Self::Deleted => "deleted",
            Self::Updated => "updated",
            Self::Gap => "gap",
            Self::Resynced => "resynced",
            Self::LimitChanged => "limitChanged",
            Self::Verdict => "verdict",
            Self::OomKill => "oomKill",
        }
    }

    /// The kind of that [name](Self::name).
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.name() == name)
    }
}
