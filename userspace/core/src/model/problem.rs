//! What a node cannot do at present.

use super::observation::Unreadable;

/// Something that cannot be done at present, until its cause is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Cgroups cannot be read, and are left out.
    UnreadableCgroups(Unreadable),
}
