//! What a node cannot do at present.

use std::sync::Arc;

use super::container::Subject;
use super::observation::Unreadable;

/// Something that cannot be done at present, until its cause is gone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Problem {
    /// Cgroups cannot be read, and are left out.
    UnreadableCgroups(Unreadable),
    /// There are more cgroups than are followed.
    Full,
    /// Cgroups within this container are not followed, for it has more than its share of all that are.
    BeyondShare(Arc<Subject>),
}
